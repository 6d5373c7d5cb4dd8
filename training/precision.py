"""The precision of training's arithmetic."""

from __future__ import annotations

import torch

from sam2.modeling.attention import cpu_supports
from sam2.modeling.sam2_base import resolve_dtype

PRECISIONS = ("auto", "bfloat16", "float32")


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that a recipe's `precision` means on a device: "auto" is bfloat16 where the device computes in it."""
    if precision == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    dtype = resolve_dtype(precision)
    assert dtype is not None
    return dtype


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16; others emulate it, at a half of float32's speed and less."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (cpu_supports("avx512_bf16") or cpu_supports("amx_tile"))

"""The precision of the network's arithmetic."""

from __future__ import annotations

from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device | None = None) -> torch.dtype | None:
    """The torch dtype called "float32", "bfloat16" or "float16"; None stays None.

    Args:
        device: where it will compute: "auto" is bfloat16 if it does so in hardware, else float32. Without a device
            there is no "auto".

    Raises:
        ValueError: anything else.
    """
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype == "auto" and device is not None:
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        names = [*_DTYPES] if device is None else ["auto", *_DTYPES]
        raise ValueError(f"dtype must be one of {', '.join(names)} or None, got {dtype!r}")
    return _DTYPES[dtype]  # type: ignore[index]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16; others emulate it, at a half of float32's speed and less."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (cpu_supports("avx512_bf16") or cpu_supports("amx_tile"))


def cpu_supports(feature: str) -> bool:
    """Whether this processor has a feature by torch's name for it, as "avx512_bf16"; False where torch can't tell."""
    # Private functions, which not every version of torch has.
    test: Any = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return test is not None and test()

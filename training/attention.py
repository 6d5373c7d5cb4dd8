"""Attention that trains fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sam2.modeling.attention import write_out


def fast_attention(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which attention trains fast on this device.

    On a CPU the fused kernel goes forward as fast as two matrix products but backward ten times as slowly (torch 2.5 to
    2.15, bfloat16 with AMX: 122 against 11 ms for the first block of the small model). On a GPU cuDNN's kernels, which
    torch 2.11 prefers on Hopper, are planned anew for every number of objects and every length of the memory
    (see also `clips.exactly`); the others take any size as it comes.
    """
    if device.type == "cuda":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return _PlainAttention() if device.type == "cpu" else nullcontext()


class _PlainAttention(TorchFunctionMode):
    """Computes scaled_dot_product_attention as two matrix products wherever it has no mask."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3 and set(kwargs or {}) <= {"dropout_p"}:
            return write_out(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

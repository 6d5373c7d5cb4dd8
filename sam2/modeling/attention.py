"""Softmax attention, as each device computes it fastest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2.modeling.precision import cpu_supports

SHARES_BYTES = 16 * 2**20  # of shares held at once when they are written out; more leaves the cache, and gains nothing


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, for q (..., Nq, D), k and v (..., Nk, D) -> (..., Nq, D).

    The fused kernel answers, but for bfloat16 on a CPU that multiplies it in AVX-512 and has no AMX: there (torch 2.14)
    the kernel converts to float32, and two matrix products are up to 2.6 times as fast, and no slower on any size of
    the models here; a frame of the small model takes 8 % less time. Not while gradients are recorded, which would keep
    the shares: training chooses for itself.
    """
    if WRITES_OUT_BFLOAT16 and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.is_grad_enabled():
        return attend_in_parts(q, k, v, dropout_p)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """`attend` by `write_out`, so many queries at a time that their shares take no more than `SHARES_BYTES`."""
    queries = max(1, SHARES_BYTES // max(1, q[..., :1, :1].numel() * k.shape[-2] * q.element_size()))
    if queries >= q.shape[-2]:
        return write_out(q, k, v, dropout_p)
    return torch.cat([write_out(part, k, v, dropout_p) for part in q.split(queries, dim=-2)], dim=-2)


def write_out(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """`attend` as two matrix products, with all its shares (..., Nq, Nk) in memory."""
    shares = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return F.dropout(shares, dropout_p).to(v.dtype) @ v


WRITES_OUT_BFLOAT16 = cpu_supports("avx512_bf16") and not cpu_supports("amx_tile")

"""Attention, fused and written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sam2.modeling.attention as attention
from sam2.modeling.attention import attend


def tokens(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize("parts", [1, 3, 10])
@pytest.mark.parametrize("shape", [(2, 3), (4,), ()])
def test_written_out_and_fused_attention_agree(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], parts: int):
    q, k, v = tokens(torch.bfloat16, (*shape, 10, 16), (*shape, 7, 16), (*shape, 7, 16))
    monkeypatch.setattr(attention, "SHARES_BYTES", -(-10 // parts) * q[..., :1, :1].numel() * 7 * 2)
    monkeypatch.setattr(attention, "WRITES_OUT_BFLOAT16", True)
    calls = []
    write_out = attention.write_out
    monkeypatch.setattr(attention, "write_out", lambda q, *rest: calls.append(q) or write_out(q, *rest))
    answer = attend(q, k, v)
    assert len(calls) == parts
    assert answer.dtype == torch.bfloat16
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (answer.double() - exact).abs().max() < 2e-2  # three roundings to eight bits


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_but_bfloat16_on_a_cpu_that_multiplies_it_is_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    monkeypatch.setattr(attention, "WRITES_OUT_BFLOAT16", dtype != torch.bfloat16)
    monkeypatch.setattr(attention, "write_out", None)
    q, k, v = tokens(dtype, (1, 2, 9, 16), (1, 2, 5, 16), (1, 2, 5, 16))
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@torch.no_grad()
@pytest.mark.parametrize("writes_out", [False, True])
def test_dropout_reaches_the_shares(monkeypatch: pytest.MonkeyPatch, writes_out: bool):
    monkeypatch.setattr(attention, "WRITES_OUT_BFLOAT16", writes_out)
    q, k, v = tokens(torch.bfloat16, (1, 1, 4, 16), (1, 1, 4, 16), (1, 1, 4, 16))
    assert not attend(q, k, v, dropout_p=1.0).any()


def test_what_records_gradients_keeps_the_fused_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "WRITES_OUT_BFLOAT16", True)
    monkeypatch.setattr(attention, "write_out", None)
    q, k, v = tokens(torch.bfloat16, (1, 1, 4, 16), (1, 1, 4, 16), (1, 1, 4, 16))
    attend(q.requires_grad_(), k, v).sum().backward()
    assert q.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("writes_out", [False, True])
def test_nothing_may_ask_nothing(monkeypatch: pytest.MonkeyPatch, writes_out: bool):
    monkeypatch.setattr(attention, "WRITES_OUT_BFLOAT16", writes_out)
    assert attend(*tokens(torch.bfloat16, (0, 2, 4, 8), (0, 2, 4, 8), (0, 2, 4, 8))).shape == (0, 2, 4, 8)

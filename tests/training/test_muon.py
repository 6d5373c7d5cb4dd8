"""Muon: its steps, beside torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalised

SHAPES = [(6, 15), (15, 6), (8, 8)]


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in (*SHAPES, SHAPES[0])]


def descend(optimiser: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_lengths(shape: tuple[int, int]):
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    matrices *= torch.tensor([1e-3, 1, 10, 1e3])[:, None, None]
    found = orthogonalised(matrices)
    assert found.shape == matrices.shape and found.dtype == matrices.dtype
    u, lengths, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ v.mT  # diagonal, if the singular vectors are the same
    kept = torch.diagonal(inner, dim1=1, dim2=2)
    torch.testing.assert_close(torch.diag_embed(kept), inner, atol=1e-4, rtol=0)
    well = lengths > 0.05 * lengths.norm(dim=1, keepdim=True)
    assert well.float().mean() > 0.8
    assert ((kept > 0.65) & (kept < 1.25))[well].all()


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought its own Muon")
def test_steps_equal_those_of_torch_within_its_bfloat16():
    ours, theirs, start = parameters(0), parameters(0), parameters(0)
    mine = Muon(ours, lr=0.01, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    descend(mine, ours, 5)
    descend(other, theirs, 5)
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - before).norm()
    saved, expected = mine.state_dict()["state"], other.state_dict()["state"]
    assert all(torch.equal(saved[i]["momentum_buffer"], expected[i]["momentum_buffer"]) for i in range(len(ours)))
    mine.load_state_dict(copy.deepcopy(other.state_dict()))  # runs that began with torch's go on with this one
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(b)
    start = [value.detach().clone() for value in ours]
    descend(mine, ours, 1)
    descend(other, theirs, 1)
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - before).norm()


def test_matrices_without_a_gradient_stay_as_they_are():
    params = parameters(0)
    optimiser = Muon(params, lr=0.01, weight_decay=0.1)
    params[0].grad = torch.ones_like(params[0])
    optimiser.step()
    assert not torch.equal(params[0], parameters(0)[0])
    assert all(torch.equal(a, b) for a, b in zip(params[1:], parameters(0)[1:], strict=True))


def test_anything_but_matrices_is_refused():
    with pytest.raises(ValueError, match=r"Muon is for matrices, got shapes \[\(3,\)\]"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)

"""Muon, the optimiser of weight matrices (Jordan et al. 2024), on any processor and any torch.

`torch.optim.Muon` computes in bfloat16 wherever it runs, which processors without such arithmetic take fifty times as
long for: three quarters of a training step on a CPU with AVX2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values grow to about 1 within STEPS
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates, which these are scaled to (Liu et al. 2025, arXiv:2502.16982)


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is replaced by nearly its nearest semi-orthogonal matrix.

    It is as large as AdamW's updates, so that one learning rate fits both. Weight decay is decoupled. The state is
    that of `torch.optim.Muon`.

    Args:
        params: groups of matrices.
        momentum: of Nesterov's kind, 0 to 1.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        wrong = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon is for matrices, got shapes {wrong}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)  # one batch of products for all matrices of a shape
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                directions = [self._direction(p, p.grad, group["momentum"]) for p in parameters]
                updates = orthogonalised(torch.stack(directions))
                rate = group["lr"] * LIKE_ADAMW * math.sqrt(max(shape))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _direction(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Take in the gradient; where to go."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (N, rows, columns) near 1, by Newton-Schulz steps.

    Those above 0.2 % of the matrix's norm land between 0.68 and 1.21, smaller ones below, zeros at zero. In bfloat16 on
    a GPU, in float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide is matrices else x.mT).to(matrices.dtype)

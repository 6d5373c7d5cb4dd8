"""Which parameters learn how fast, the course of the learning rate, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sam2.modeling.sam2_base import SAM2Base
from training.muon import Muon
from training.recipe import Optimiser, Stage

TRUNK = "image_encoder.trunk."


class Optimisers:
    """AdamW alone, or Muon for matrices beside AdamW for the rest, handled as one optimiser."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of each part."""
        for part in self.parts:
            part.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, also of AdamW by itself. Raises ValueError if it is of other optimisers."""
        parts = state.get("parts", [state])
        if len(parts) != len(self.parts):
            raise ValueError(f"the saved state is of {len(parts)} optimisers, this run has {len(self.parts)}")
        for part, saved in zip(self.parts, parts, strict=True):
            part.load_state_dict(saved)


def build_optimiser(network: SAM2Base, options: Optimiser) -> Optimisers:
    """The optimiser of a run, with one group for each factor on the learning rate ("lr_scale") and weight decay."""
    matrices = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    if options.kind == "adamw":
        return Optimisers([_adamw(network, options, dict(network.named_parameters()))])
    rest = {name: p for name, p in network.named_parameters() if name not in matrices}
    groups = _groups(network, options, {n: p for n, p in network.named_parameters() if n in matrices})
    muon = Muon(groups, lr=0.0)
    return Optimisers([muon, _adamw(network, options, rest)])


def _adamw(network: SAM2Base, options: Optimiser, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    betas = (options.betas[0], options.betas[1])
    return torch.optim.AdamW(_groups(network, options, parameters), lr=0.0, betas=betas)


def _groups(network: SAM2Base, options: Optimiser, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    embeddings |= {name for name, _ in network.named_parameters(recurse=False)}
    embeddings |= {f"{TRUNK}pos_embed", f"{TRUNK}pos_embed_window"}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decayed = parameter.ndim > 1 and name not in embeddings
        key = (_lr_scale(network, name, options), options.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "lr_scale": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def _lr_scale(network: SAM2Base, name: str, options: Optimiser) -> float:
    """Layer-wise decay (Clark et al. 2020; Bao et al. 2021, BEiT): the deeper a trunk layer, the slower it learns."""
    if not name.startswith(TRUNK):
        return 1.0
    trunk = network.image_encoder.trunk
    depth = trunk.get_num_layers() + 1 - trunk.get_layer_id(name.removeprefix(TRUNK))
    return options.trunk_lr * options.layer_decay**depth


def frozen_parameters(network: nn.Module, stage: Stage, number: int) -> set[str]:
    """The names of the parameters that stage `number` leaves as they are.

    Raises:
        ValueError: a name in `freeze` is of no part of the network, or nothing would be left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    frozen: set[str] = set()
    for part in stage.freeze:
        within = {name for name in names if f"{name}.".startswith(f"{part}.")}
        if not within:
            raise ValueError(f"stages.{number}.freeze: the network has no part {part!r}")
        frozen |= within
    if len(frozen) == len(names):
        raise ValueError(f"stages.{number}.freeze: nothing is left to train")
    return frozen


def learning_rate(stage: Stage, step: int) -> float:
    """The learning rate at a step of a stage, counted from 0: a linear warm-up, then half a cosine to `lr_end`."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.lr_end + (stage.lr - stage.lr_end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def set_learning_rate(optimiser: Optimisers, rate: float) -> None:
    """Set every group's learning rate to its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


class AveragedWeights:
    """An exponential moving average of the weights, which forgets its beginning: the decay grows from 0 with the steps.

    `values`: name -> float32 tensor, of parameters and buffers, on the device of the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = network.state_dict()
        for name, value in self.values.items():
            value.lerp_(current[name], 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, value in self.values.items():
            value.copy_(values[name])

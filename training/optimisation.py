"""Which parameters learn how fast, the course of the learning rate, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam2.modeling.sam2_base import SAM2Base
from training.recipe import Optimiser, Stage

TRUNK = "image_encoder.trunk."


def build_optimiser(network: SAM2Base, options: Optimiser) -> torch.optim.AdamW:
    """AdamW with one group for each factor on the learning rate ("lr_scale") and weight decay."""
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    embeddings |= {name for name, _ in network.named_parameters(recurse=False)}
    embeddings |= {f"{TRUNK}pos_embed", f"{TRUNK}pos_embed_window"}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        decayed = parameter.ndim > 1 and name not in embeddings
        key = (_lr_scale(network, name, options), options.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "lr_scale": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=(options.betas[0], options.betas[1]))


def _lr_scale(network: SAM2Base, name: str, options: Optimiser) -> float:
    """Layer-wise decay (Clark et al. 2020; Bao et al. 2021, BEiT): the deeper a trunk layer, the slower it learns."""
    if not name.startswith(TRUNK):
        return 1.0
    trunk = network.image_encoder.trunk
    depth = trunk.get_num_layers() + 1 - trunk.get_layer_id(name.removeprefix(TRUNK))
    return options.trunk_lr * options.layer_decay**depth


def learning_rate(stage: Stage, step: int) -> float:
    """The learning rate at a step of a stage, counted from 0: a linear warm-up, then half a cosine to `lr_end`."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.lr_end + (stage.lr - stage.lr_end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
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

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
TRUNK_POSITIONS = {f"{TRUNK}pos_embed", f"{TRUNK}pos_embed_window"}


class Optimisers:
    """AdamW alone, or Muon for matrices beside AdamW for the rest, handled as one optimiser.

    Args:
        names: of all parameters. What is saved of each goes by its name: a resumed run may group them otherwise.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer], names: Mapping[Tensor, str]) -> None:
        self.parts, self.names = list(parts), names

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
        """What `load_state_dict` needs: kind of optimiser -> name of a parameter -> its state, e.g. momentum."""
        return {
            type(part).__name__: {self.names[parameter]: dict(values) for parameter, values in part.state.items()}
            for part in self.parts
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; learning rates, weight decay and so on are this run's, not the saved one's.

        Raises:
            ValueError: it is of other optimisers.
        """
        kinds = [type(part).__name__ for part in self.parts]
        if set(state) != set(kinds):
            raise ValueError(f"optimiser.kind: the saved run has {' and '.join(state)}, this one {' and '.join(kinds)}")
        for kind, part in zip(kinds, self.parts, strict=True):
            own = part.state_dict()
            order = [self.names[parameter] for group in part.param_groups for parameter in group["params"]]
            saved = {i: state[kind][name] for i, name in enumerate(order) if name in state[kind]}
            part.load_state_dict({"state": saved, "param_groups": own["param_groups"]})


def build_optimiser(network: SAM2Base, options: Optimiser) -> Optimisers:
    """The optimiser of a run, with one group for each factor on the learning rate ("lr_scale") and weight decay."""
    matrices = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    if options.kind == "adamw":
        return Optimisers([_adamw(network, options, dict(network.named_parameters()))], names)
    rest = {name: p for name, p in network.named_parameters() if name not in matrices}
    groups = _groups(network, options, {n: p for n, p in network.named_parameters() if n in matrices})
    muon = Muon(groups, lr=0.0)
    return Optimisers([muon, _adamw(network, options, rest)], names)


def _adamw(network: SAM2Base, options: Optimiser, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    betas = (options.betas[0], options.betas[1])
    return torch.optim.AdamW(_groups(network, options, parameters), lr=0.0, betas=betas)


def _groups(network: SAM2Base, options: Optimiser, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    embeddings |= {name for name, _ in network.named_parameters(recurse=False)}
    embeddings |= TRUNK_POSITIONS
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decayed = parameter.ndim > 1 and name not in embeddings
        key = (_lr_scale(network, name, options), options.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "lr_scale": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def _lr_scale(network: SAM2Base, name: str, options: Optimiser) -> float:
    """Layer-wise decay (Clark et al. 2020; Bao et al. 2021, BEiT): the deeper a trunk layer, the slower it learns.

    Not its position embeddings, which stand before the first layer and would hardly learn at all.
    """
    if not name.startswith(TRUNK):
        return 1.0
    if name in TRUNK_POSITIONS:
        return options.trunk_lr
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

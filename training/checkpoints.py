"""What a run leaves on disk: weights in Meta's format, and all that is needed to go on after a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam2.utils.files import replacing
from training.optimisation import AveragedWeights, Optimisers
from training.recipe import Recipe

WEIGHTS_FILE = "model.pt"
RESUME_FILE = "resume.pt"


class CheckpointError(OSError):
    """A checkpoint that could not be written; the one before is untouched."""


class Resumed(NamedTuple):
    """Where a run stands."""

    step: int  # the next one
    recipe: dict[str, Any]
    ranks: int  # processes that trained


def save_file(path: Path, content: Any) -> None:
    """Write with torch.save, at once or not at all. Raises CheckpointError when the disk is full or not writable."""
    try:
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        kept = f"the one written before is untouched: {path}" if path.exists() else "there is none yet"
        free = shutil.disk_usage(path.parent).free / 2**20
        raise CheckpointError(f"could not write {path}, {free:.0f} MB are free ({error}); {kept}") from error


def save_weights(path: Path, weights: Mapping[str, Tensor], *, half: bool = False) -> None:
    """Write weights as Meta's checkpoints hold them, {"model": name -> tensor}; `half` keeps float16."""
    dtype = torch.float16 if half else torch.float32
    kept = {
        name: value.to("cpu", dtype if value.is_floating_point() else value.dtype) for name, value in weights.items()
    }
    save_file(path, {"model": kept})


def save_run(
    folder: Path, recipe: Recipe, step: int, network: nn.Module, optimiser: Optimisers,
    average: AveragedWeights, ranks: int = 1,
) -> None:  # fmt: skip
    """Write what `load_run` needs, then the averaged weights as a checkpoint; `step` is the next one."""
    content = {
        "step": step, "recipe": asdict(recipe), "model": network.state_dict(), "optimiser": optimiser.state_dict(),
        "average": average.values, "ranks": ranks,
    }  # fmt: skip
    save_file(folder / RESUME_FILE, content)
    save_weights(folder / WEIGHTS_FILE, average.values, half=recipe.export_float16)


def load_run(
    folder: Path, network: nn.Module, optimiser: Optimisers, average: AveragedWeights
) -> Resumed:  # fmt: skip
    """Restore weights, optimiser and averages, in place.

    Raises:
        FileNotFoundError: nothing to resume in this folder.
        ValueError: it was written by a run of another network, with other optimisers, or by an earlier version.
    """
    path = folder / RESUME_FILE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: {path} is not there")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "ranks" not in content:
        weights = folder / WEIGHTS_FILE
        raise ValueError(f"{path} was written by an earlier version: start a new run with init_from={weights}")
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} was written by a run of another model than this recipe's") from error
    optimiser.load_state_dict(content["optimiser"])
    average.load(content["average"])
    return Resumed(content["step"], content["recipe"], content["ranks"])

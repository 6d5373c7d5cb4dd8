"""What the tests of training share: a network small enough to train in seconds, and a recipe for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sam2.build_sam import build_sam2, packaged_file
from sam2.modeling.sam2_base import SAM2Base
from training.clips import ClipBatch, Sample, collate
from training.recipe import LossWeights, Recipe, Stage, Validation

SIZE = 64  # pixels
OVERRIDES = [f"++model.image_size={SIZE}"]


@pytest.fixture
def network() -> SAM2Base:
    """The embedded model, which knows objects when it sees them."""
    return build_sam2(
        "nano", packaged_file("checkpoints/sam2.1_hiera_nano.pt"), device="cpu", mode="train",
        apply_postprocessing=False, hydra_overrides_extra=OVERRIDES,
    )  # fmt: skip


@pytest.fixture
def untrained() -> Callable[[int], SAM2Base]:
    """Networks like the embedded model that have learned nothing, by seed."""

    def build(seed: int) -> SAM2Base:
        torch.manual_seed(seed)
        return build_sam2(
            "nano", None, device="cpu", mode="train", apply_postprocessing=False, hydra_overrides_extra=OVERRIDES
        )

    return build


@pytest.fixture
def recipe() -> Recipe:
    """Three steps of two-frame clips, in float32."""
    return Recipe(
        model="nano", model_overrides=list(OVERRIDES), init_from="checkpoints/sam2.1_hiera_nano.pt", device="cpu",
        precision="float32", workers=0, log_every=1,
        stages=[Stage(steps=3, frames=2, clips=1, lr=1e-3, lr_end=1e-4, warmup=2)],
        loss=LossWeights(), validation=Validation(every=0, clips=2, frames=2),
    )  # fmt: skip


def square_sample(left: int, num_frames: int, colour: int = 220) -> Sample:
    """A square of 20 pixels that moves right by 4 pixels a frame."""
    frames = np.full((num_frames, SIZE, SIZE, 3), 60, np.uint8)
    masks = np.zeros((1, num_frames, SIZE, SIZE), bool)
    for t in range(num_frames):
        masks[0, t, 22:42, left + 4 * t : left + 4 * t + 20] = True
        frames[t][masks[0, t]] = (colour, 40, 90)
    return Sample(frames, masks)


@pytest.fixture
def batch() -> ClipBatch:
    """Two clips of three frames; the first has one object, the second two."""
    second = square_sample(30, 3, colour=120)
    second = second._replace(masks=np.concatenate([second.masks, np.roll(second.masks, -20, axis=2)]))
    return collate([square_sample(8, 3), second])

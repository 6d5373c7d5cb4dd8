"""How well a network tracks held-out clips: mean region similarity J after a mask, a box or one click."""

from __future__ import annotations

import torch
from torch import Tensor

from training.clips import ClipBatch, collate
from training.losses import mask_iou
from training.model import ClipModel
from training.prompts import KINDS
from training.recipe import PromptMix, Validation
from training.sources import Wanted, beginnings, drawn_sample, open_videos

CLIPS_AT_ONCE = 4
OBJECTS = 2  # per clip


def held_out_clips(options: Validation, size: int) -> list[ClipBatch]:
    """The clips that are measured, always the same: drawn ones of the seeds 0, 1, ..., or the beginnings of videos.

    Raises:
        ValueError: no video of the folder begins with an object.
    """
    wanted = Wanted(options.frames, size, OBJECTS, options.difficulty)
    if options.source is not None:
        samples = beginnings(open_videos(options.source), options.clips, wanted)
        if not samples:
            raise ValueError(f"validation.source: no video of {options.source.root} shows an object on its first frame")
    else:
        samples = [drawn_sample(seed, wanted) for seed in range(options.clips)]
    firsts = range(0, len(samples), CLIPS_AT_ONCE)
    return [collate(samples[first : first + CLIPS_AT_ONCE]) for first in firsts]


@torch.no_grad()
def mean_similarity(model: ClipModel, batches: list[ClipBatch], kind: str, seed: int = 0) -> float:
    """Mean J over objects and frames, the prompted one left out, after prompts of one kind on the first frame.

    J is the IoU; where the object is absent, 1 for an empty answer and 0 otherwise.
    """
    device = model.network.device
    mask, box, click = (float(each == kind) for each in KINDS)
    mix = PromptMix(mask=mask, box=box, click=click, correction=0.0, first_correction=0.0)
    scores: list[Tensor] = []
    torch.manual_seed(seed)
    for batch in batches:
        batch = batch.to(device)
        masks = model(batch, mix, keep_masks=True).masks
        assert masks is not None
        scores.append(mask_iou(masks, batch.masks)[:, 1:].mean(dim=1))
    return torch.cat(scores).mean().item()


def validate(model: ClipModel, batches: list[ClipBatch]) -> dict[str, float]:
    """`mean_similarity` for every kind of prompt: {"mask": J, "box": J, "click": J}; clicks and boxes on a part."""
    was_training = model.training
    model.eval()
    try:
        return {kind: mean_similarity(model, batches if kind == "mask" else batches[:2], kind) for kind in KINDS}
    finally:
        model.train(was_training)

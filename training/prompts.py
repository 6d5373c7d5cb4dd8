"""Simulated users: how each object is prompted on the first frame, and clicks where an answer is wrong.

Random numbers come from torch's global generator, which the loop seeds at every step. B objects, S x S pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sam2.modeling.outputs import PointInputs
from sam2.modeling.sam2_utils import sample_box_points, sample_random_points_from_errors
from training.recipe import PromptMix

KINDS = ("mask", "box", "click")


class PromptGroup(NamedTuple):
    """Objects that are prompted in one way. rows: int64 (b,). masks: bool (b, 1, S, S), or points."""

    kind: str
    rows: Tensor
    mask: Tensor | None
    points: PointInputs | None


class Corrections(NamedTuple):
    """Which frames of a step are corrected, by how many clicks; 0 clicks, and frame 0, for none."""

    first_clicks: int
    frame: int
    clicks: int
    practice_frame: int | None  # on which boxes and clicks are tried that nobody remembers
    practice_clicks: int


def group_prompts(masks: Tensor, mix: PromptMix) -> list[PromptGroup]:
    """Draw a kind of prompt for each object of the first frame, masks bool (B, 1, S, S).

    Of B objects every kind has its share to within one: groups of nearly the same sizes from step to step.
    """
    bounds = torch.tensor([mix.mask, mix.box, mix.click], dtype=torch.float64).cumsum(0)
    places = (torch.randperm(len(masks)) + torch.rand((), dtype=torch.float64)) / len(masks)
    kinds = torch.bucketize(places * bounds[-1], bounds[:-1], right=True).to(masks.device)
    groups = []
    for i, kind in enumerate(KINDS):
        rows = (kinds == i).nonzero()[:, 0]
        if len(rows):
            groups.append(prompt_group(kind, rows, masks[rows]))
    return groups


def prompt_group(kind: str, rows: Tensor, masks: Tensor) -> PromptGroup:
    """Prompt the objects `rows`, whose masks are bool (b, 1, S, S), by "mask", "box" or "click"."""
    if kind == "mask":
        return PromptGroup(kind, rows, masks, None)
    if kind == "box":
        corners, labels = sample_box_points(masks)
        return PromptGroup(kind, rows, None, PointInputs(corners, labels))
    return PromptGroup(kind, rows, None, PointInputs(*sample_random_points_from_errors(masks, None)))


def draw_corrections(mix: PromptMix, num_frames: int) -> Corrections:
    """Decide which frames are corrected."""
    first_chance, later_chance, practice_chance = torch.rand(3).tolist()
    first_clicks, later_clicks, practice_clicks = torch.randint(1, mix.max_corrections + 1, (3,)).tolist()
    practice_frame = int(torch.randint(num_frames, ()).item())
    frame = int(torch.randint(1, max(num_frames, 2), ()).item())
    corrects_later = later_chance < mix.correction and num_frames > 1
    return Corrections(
        first_clicks=first_clicks if first_chance < mix.first_correction else 0,
        frame=frame if corrects_later else 0,
        clicks=later_clicks if corrects_later else 0,
        practice_frame=practice_frame if practice_chance < mix.practice else None,
        practice_clicks=practice_clicks,
    )


def add_click(points: PointInputs | None, target: Tensor, answer: Tensor) -> PointInputs:
    """One more click per object where the answer, bool (B, 1, S, S), differs from the target."""
    coords, labels = sample_random_points_from_errors(target, answer)
    if points is None:
        return PointInputs(coords, labels)
    return PointInputs(torch.cat([points.point_coords, coords], 1), torch.cat([points.point_labels, labels], 1))

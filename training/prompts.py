"""Simulated users: how each object is prompted, on the first frame and others, and clicks where an answer is wrong.

Random numbers come from torch's global generator, which the loop seeds at every step. B objects, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Plan(NamedTuple):
    """What a user does in a step: on which frames, with how many clicks."""

    prompted: tuple[int, ...]  # frames that are prompted before anything is tracked, the first one first
    first_clicks: int  # that correct the answer to a prompt, 0 for none
    corrected: tuple[int, ...]  # tracked frames whose answer is corrected
    clicks: int  # on each of them
    practice_frame: int | None  # on which boxes and clicks are tried that nobody remembers
    practice_clicks: int


def group_prompts(masks: Tensor, mix: PromptMix, near: Tensor) -> list[PromptGroup]:
    """Draw a kind of prompt for each object of the first frame, masks bool (B, 1, S, S).

    Those that are seen in a search region, `near` bool (B,), are prompted by their masks. Of the others every kind has
    its share to within one: groups of nearly the same sizes from step to step.
    """
    bounds = torch.tensor([mix.mask, mix.box, mix.click], dtype=torch.float64).cumsum(0)
    others = (~near).nonzero()[:, 0]
    places = (torch.randperm(len(others)) + torch.rand((), dtype=torch.float64)) / len(others)
    kinds = torch.full((len(masks),), KINDS.index("mask"), device=masks.device)
    kinds[others] = torch.bucketize(places * bounds[-1], bounds[:-1], right=True).to(masks.device)
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


def prompt_again(groups: Sequence[PromptGroup], masks: Tensor) -> list[PromptGroup]:
    """Prompt the same objects on another frame, each in its own way; those that are absent by their empty mask."""
    visible = masks.flatten(1).any(dim=1)
    again = []
    for group in groups:
        there, absent = group.rows[visible[group.rows]], group.rows[~visible[group.rows]]
        for kind, rows in ((group.kind, there), ("mask", absent)):
            if len(rows):
                again.append(prompt_group(kind, rows, masks[rows]))
    return again


def draw_plan(mix: PromptMix, num_frames: int, lead: int = 0) -> Plan:
    """Decide which frames are prompted and corrected: any but the `lead` ones after the first."""
    frames = [0, *range(1 + lead, num_frames)]
    count = len(frames)
    first_chance, later_chance, practice_chance = torch.rand(3).tolist()
    first_clicks, later_clicks, practice_clicks = torch.randint(1, mix.max_corrections + 1, (3,)).tolist()
    practice = int(torch.randint(count, ()).item())
    corrected = [int(torch.randint(1, max(count, 2), ()).item())]
    if mix.corrected_frames > 1:
        corrected += _some_numbers(count, mix.corrected_frames - 1)
    prompted = [0, *_some_numbers(count, mix.prompted_frames - 1)]
    corrects_later = later_chance < mix.correction and count > 1
    return Plan(
        prompted=tuple(frames[i] for i in prompted),
        first_clicks=first_clicks if first_chance < mix.first_correction else 0,
        corrected=tuple(frames[i] for i in sorted({*corrected} - {*prompted})) if corrects_later else (),
        clicks=later_clicks,
        practice_frame=frames[practice] if practice_chance < mix.practice else None,
        practice_clicks=practice_clicks,
    )


def _some_numbers(end: int, most: int) -> list[int]:
    """0 to `most` of the numbers from 1 to below `end`, in order."""
    if most == 0:
        return []
    count = int(torch.randint(most + 1, ()).item())
    return sorted((1 + torch.randperm(end - 1)[:count]).tolist())


def add_click(points: PointInputs | None, target: Tensor, answer: Tensor) -> PointInputs:
    """One more click per object where the answer, bool (B, 1, S, S), differs from the target."""
    coords, labels = sample_random_points_from_errors(target, answer)
    if points is None:
        return PointInputs(coords, labels)
    return PointInputs(torch.cat([points.point_coords, coords], 1), torch.cat([points.point_labels, labels], 1))

"""Whether the mask the network gave an object can be believed: a look-alike, or all of the frame, is no place to go on
from.

SAM 2 remembers every frame it tracks, also those on which it was wrong, and goes on from them. Trackers built on it
leave out of memory what scores badly (SAM2Long, Ding et al. 2024, arXiv:2410.16268; SAMURAI, Yang et al. 2024,
arXiv:2411.11922) or what does not move as the object did (SAMURAI). Here both are reasons to doubt a mask. It is shown
as it is and called suspect; memory reads the frames before it as if it had never been.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from sam2.modeling.search_region import Size

LEAST_LENGTH = 0.02  # of the frame's longer side: what is smaller may jump by its own length and mean nothing by it


class Shape(NamedTuple):
    """Where an object is and how large, in pixels of the video."""

    x: float  # its centre of mass
    y: float
    area: float
    length: float  # twice the spread of its pixels around the centre: 0.8 of a square's side, 0.6 of a line's length


class Look(NamedTuple):
    """What the network says of an object on a frame."""

    shape: Shape | None  # None where its mask is empty
    object_score: float  # 0 to 1
    predicted_iou: float  # about 0 to 1


@dataclass(frozen=True)
class TrackGuard:
    """When a mask is not believed. An option that makes no sense is a ValueError when it is set.

    Size and place are compared with those of the last frame that was believed. What may have happened since grows with
    the root of the time, as it does where nothing is known of a motion: an object that stays where it leapt to, or as
    large as it became, is believed in the end, after 4 frames where it went twice as far as it may in one.

    Attributes:
        least_object_score: how sure the network must be that the object is in the frame, 0 to 1; 0 for any.
        least_predicted_iou: how well the network must think that its mask fits, 0 to 1; 0 for any.
        most_growth: how many times as large in area as one frame before the object may be; math.inf for any.
        most_leap: how far from where it was one frame before its centre may be, in lengths of the object, on the frame
            it is the longer on; math.inf for any.
        cut_distance: a frame of whose colours the one before lacks more than this share (`colour_distance`) begins a
            new scene, where objects may have any place and size; 1 for no cuts.
    """

    least_object_score: float = 0.5
    least_predicted_iou: float = 0.3
    most_growth: float = 10.0
    most_leap: float = 1.5
    cut_distance: float = 0.4

    def __post_init__(self) -> None:
        for name in ("least_object_score", "least_predicted_iou", "cut_distance"):
            _check(self, name, "a number from 0 to 1", lambda value: 0 <= value <= 1)
        _check(self, "most_growth", "a number of 1 or more", lambda value: value >= 1)
        _check(self, "most_leap", "a number above 0", lambda value: value > 0)

    @property
    def finds_cuts(self) -> bool:
        """Whether frames are compared at all."""
        return self.cut_distance < 1

    def doubt(self, now: Look, before: Shape | None, gap: int, frame: Size) -> str | None:
        """Why a mask is not to be believed, in words; None where it is.

        Args:
            before: the object when it was last believed; None where nothing is known of it, or a scene began since.
            gap: how many frames ago that was, 1 for the last one.
            frame: its size.
        """
        if now.object_score < self.least_object_score:
            return f"object score {now.object_score:.2f}, least {self.least_object_score:g}"
        if now.shape is None:
            return "nothing of it is seen"
        if max(now.predicted_iou, 0.0) < self.least_predicted_iou:  # models without a sigmoid there go below 0
            return f"predicted IoU {now.predicted_iou:.2f}, least {self.least_predicted_iou:g}"
        if before is None:
            return None
        least, time = LEAST_LENGTH * max(frame), math.sqrt(gap)
        growth = max(now.shape.area, least**2) / max(before.area, least**2)
        if growth > self.most_growth * time:
            return f"{growth:.1f} times as large as {gap} frames before, most {self.most_growth * time:.1f}"
        # Of an object that comes out from behind something, only a sliver may have been there before.
        length = max(before.length, now.shape.length, least)
        leap = math.hypot(now.shape.x - before.x, now.shape.y - before.y) / length
        if leap > self.most_leap * time:
            return f"{leap:.1f} lengths from where it was {gap} frames before, most {self.most_leap * time:.1f}"
        return None


def check_guard(guard: TrackGuard | None) -> TrackGuard | None:
    """A guard, or None. Raises TypeError for anything else."""
    if guard is not None and not isinstance(guard, TrackGuard):
        raise TypeError(f"guard must be a TrackGuard, or None for none, got {guard!r}")
    return guard


def shapes_of(masks: Tensor, frame: Size) -> list[Shape | None]:
    """Each object's shape, None where its mask is empty.

    Args:
        masks: booleans (N, 1, h, w) over the whole frame.
        frame: its size.
    """
    n, _, h, w = masks.shape
    in_columns, in_rows = masks[:, 0].sum(dim=1), masks[:, 0].sum(dim=2)  # (N, w), (N, h)
    counted = torch.cat([in_columns, in_rows], dim=1).cpu().double()  # one copy for all objects
    shapes: list[Shape | None] = []
    for columns, rows in zip(*counted.split([w, h], dim=1), strict=True):
        pixels = float(columns.sum())
        if pixels == 0:
            shapes.append(None)
            continue
        (x, x_spread), (y, y_spread) = (
            _moments(counts, length / len(counts)) for counts, length in ((columns, frame.width), (rows, frame.height))
        )
        area = pixels * frame.width * frame.height / (w * h)
        shapes.append(Shape(x, y, area, 2 * math.sqrt(x_spread + y_spread)))
    return shapes


def _moments(counts: Tensor, scale: float) -> tuple[float, float]:
    """Mean and variance of where pixels are, of their counts by place and a place's length."""
    places = (torch.arange(len(counts), dtype=counts.dtype) + 0.5) * scale
    shares = counts / counts.sum()
    mean = float((shares * places).sum())
    return mean, float((shares * (places - mean) ** 2).sum())


def _check(guard: TrackGuard, name: str, expected: str, is_fine: Callable[[float], bool]) -> None:
    value = getattr(guard, name)
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isnan(number) or not is_fine(number):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    object.__setattr__(guard, name, number)  # NumPy's own numbers can be written to no JSON

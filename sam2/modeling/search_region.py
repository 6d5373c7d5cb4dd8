"""Where an object is looked for: a part of the frame around the place where it was last, which the network sees larger.

Trackers of single objects have long looked for them in a search region some times as large as the object (SiamFC,
Bertinetto et al. 2016; STARK, Yan et al. 2021). A region is cut out of the frame at its native size and resized to the
network's input, S x S pixels. What the network says of it is put back into the frame.

H, W: a frame's rows and columns.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sam2.modeling.outputs import PointInputs

LEAST_SHARE = 0.25  # of the frame's shorter side: a region is no smaller, as it would show blur enlarged
COVER = 1.15  # a region is so many times as large as the object, at least: else it could not be seen to grow
TOLERANCE = 0.2  # natural logarithm of a size: the region keeps its own as long as the wanted one is as near as this
PACE = 0.3  # of the way to the wanted size is gone in a frame, so that the object's scale changes slowly
GROWTH = 1.15  # a region in which nothing was found is so many times as wide and high on the next frame
BOX_FACTOR = 3.0  # a box is answered from a region so many times its size: the object is told apart by what is around
FIRST_CORNER = 2  # label of a box's first corner; its second has 3
NO_POINT = -1  # label of a point that is none, for the prompt encoder
DRIFT = 1.05  # a region is larger by this for each frame since the object was seen, the first one not counted
LONG_AGO = 1000  # frames, after which a region of any size has become the whole frame
OUTSIDE_LOGIT = -10.0  # of what the network did not look at


class Size(NamedTuple):
    """Of a frame, in pixels."""

    height: int
    width: int


class Box(NamedTuple):
    """Pixels of the frame, x from `left` to `right`, y from `top` to `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def longer_side(self) -> float:
        """Of width and height, in pixels."""
        return max(self.right - self.left, self.bottom - self.top)

    def joined(self, other: Box | None) -> Box:
        """The smallest box around both."""
        if other is None:
            return self
        return Box(
            min(self.left, other.left), min(self.top, other.top),
            max(self.right, other.right), max(self.bottom, other.bottom),
        )  # fmt: skip


class Region(NamedTuple):
    """A part of a frame, in whole pixels of it."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def whole(cls, frame: Size) -> Region:
        """All of it."""
        return cls(0, 0, frame.width, frame.height)

    @property
    def rows(self) -> slice:
        """Of the frame."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Of the frame."""
        return slice(self.left, self.left + self.width)


# Where to look


def check_search_factor(factor: float | None) -> float | None:
    """The factor, if regions can be so many times an object's size. Raises ValueError otherwise."""
    if factor is None:
        return None
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 1 <= factor < math.inf:
        raise ValueError(f"search_factor must be a number of 1 or more, or None, got {factor!r}")
    return float(factor)


def region_around(box: Box, frame: Size, factor: float) -> Region:
    """The region for an object whose place is known: a square, as far as it fits into the frame.

    Args:
        factor: its side is so many times the longer one of the object's box, and never less than `COVER` times.
    """
    return _placed(box, _wanted_side(box, frame, factor), frame)


def next_region(last: Region, box: Box | None, frame: Size, factor: float, gap: int = 1) -> Region:
    """The region on a frame, from the one before.

    Args:
        last: where the object was looked for.
        box: where it was found; None where it was not.
        factor: as of `region_around`.
        gap: how many frames ago that was; the region grows with each one of which nothing is known.
    """
    side, gap = float(max(last.width, last.height)), min(gap, LONG_AGO)
    if box is None:
        there = Box(last.left, last.top, last.left + last.width, last.top + last.height)
        return _placed(there, side * GROWTH**gap, frame)
    change = math.log(_wanted_side(box, frame, factor) / side)
    if abs(change) > TOLERANCE:
        side *= math.exp(PACE * change)
    side = max(side, COVER * box.longer_side)
    return _placed(box, side * DRIFT ** (gap - 1), frame)


def _wanted_side(box: Box, frame: Size, factor: float) -> float:
    """Side of the region that suits an object."""
    return min(max(max(factor, COVER) * box.longer_side, LEAST_SHARE * min(frame)), max(frame))


def _placed(box: Box, side: float, frame: Size) -> Region:
    """A region of this side, cut to the frame's size, its centre as near to the box's as the frame allows."""
    width, height = min(max(round(side), 1), frame.width), min(max(round(side), 1), frame.height)
    left, top = round((box.left + box.right - width) / 2), round((box.top + box.bottom - height) / 2)
    return Region(min(max(left, 0), frame.width - width), min(max(top, 0), frame.height - height), width, height)


# From the frame to the region, and back


def box_of_mask(mask: Tensor, frame: Size) -> Box | None:
    """The box around an object; None where nothing is.

    Args:
        mask: booleans (1, 1, h, w) over the whole frame.
    """
    height, width = mask.shape[-2:]
    is_row, is_column = mask[0, 0].any(dim=1), mask[0, 0].any(dim=0)
    rows, columns = torch.cat([is_row, is_column]).cpu().split([height, width])
    ys, xs = rows.nonzero().flatten(), columns.nonzero().flatten()
    if len(ys) == 0:
        return None
    x_scale, y_scale = frame.width / width, frame.height / height
    return Box(int(xs[0]) * x_scale, int(ys[0]) * y_scale, (int(xs[-1]) + 1) * x_scale, (int(ys[-1]) + 1) * y_scale)


def box_of_points(points: PointInputs, frame: Size, side: int) -> Box | None:
    """The box around clicks on the object and a box's corners; None where there are none.

    Args:
        points: in pixels of the whole frame at side x side.
    """
    return _box_around(points, points.point_labels > 0, frame, side)


def box_of_box_prompt(points: PointInputs, frame: Size, side: int) -> Box | None:
    """The box among points, if there is one. Args as of `box_of_points`."""
    return _box_around(points, points.point_labels >= FIRST_CORNER, frame, side)


def _box_around(points: PointInputs, chosen: Tensor, frame: Size, side: int) -> Box | None:
    scale = points.point_coords.new_tensor([frame.width, frame.height]) / side
    places = (points.point_coords * scale)[chosen].cpu()
    if len(places) == 0:
        return None
    return Box(*places.amin(dim=0).tolist(), *places.amax(dim=0).tolist())


def points_in_region(points: PointInputs, region: Region, frame: Size, side: int) -> PointInputs:
    """Points in pixels of the whole frame at side x side -> in pixels of the region at side x side.

    Clicks on what is not the object count inside the region only: nothing is found outside of it anyway.
    """
    coords, labels = points
    at_frame = coords * coords.new_tensor([frame.width, frame.height]) / side
    inside = at_frame - coords.new_tensor([region.left, region.top])
    moved = inside * side / coords.new_tensor([region.width, region.height])
    is_far = ((moved < 0) | (moved > side)).any(dim=-1) & (labels == 0)
    return points._replace(point_coords=moved, point_labels=labels.masked_fill(is_far, NO_POINT))


def mask_in_region(mask: Tensor, region: Region, frame: Size) -> Tensor:
    """The region's part of a mask (1, 1, h, w) of the whole frame, in the frame's own pixels."""
    if mask.shape[-2:] != frame:
        mask = F.interpolate(mask, frame, mode="bilinear", align_corners=False)
    return mask[..., region.rows, region.columns]


def logits_in_region(logits: Tensor, region: Region, frame: Size, side: int) -> Tensor:
    """The region's part of mask logits (B, 1, h, w) of the whole frame, (B, 1, side, side)."""
    columns = (region.width / frame.width, (region.width + 2 * region.left) / frame.width - 1)
    rows = (region.height / frame.height, (region.height + 2 * region.top) / frame.height - 1)
    return F.grid_sample(logits.float(), _grid(logits, columns, rows, side), padding_mode="border", align_corners=False)


def logits_in_frame(logits: Tensor, region: Region, frame: Size, side: int) -> Tensor:
    """Mask logits (B, 1, h, w) of a region as those of the whole frame, (B, 1, side, side), `OUTSIDE_LOGIT` around."""
    columns = (frame.width / region.width, (frame.width - 2 * region.left) / region.width - 1)
    rows = (frame.height / region.height, (frame.height - 2 * region.top) / region.height - 1)
    grid = _grid(logits, columns, rows, side)
    placed = F.grid_sample(logits.float(), grid, padding_mode="border", align_corners=False)
    is_outside = (grid.abs() > 1).any(dim=-1)[:, None]
    return placed.masked_fill(is_outside, OUTSIDE_LOGIT)


def _grid(like: Tensor, columns: tuple[float, float], rows: tuple[float, float], side: int) -> Tensor:
    """Where (-1 to 1) each of side x side pixels looks: a scale and a shift of its own place, for columns and rows."""
    (x_scale, x_shift), (y_scale, y_shift) = columns, rows
    own = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) * (2 / side) - 1
    x, y = own * x_scale + x_shift, own * y_scale + y_shift
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1).expand(len(like), -1, -1, -1)

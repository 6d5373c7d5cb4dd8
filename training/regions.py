"""Clips as the network sees them with search regions (`sam2.modeling.search_region`): a part of the frame around one
object, which follows it.

T frames of H x W pixels, seen at S x S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sam2.modeling.search_region import Box, Region, Size, box_of_mask, next_region, region_around
from training.clips import Sample
from training.views import View

BLUR = 0.03  # of a box's longer side: standard deviation of where the network finds each edge of it


def follow_in_regions(
    pictures: Sequence[np.ndarray], masks: np.ndarray, factor: float, size: int, view: View, rng: np.random.Generator
) -> Sample:
    """A clip of one object, each frame cut to the region that the object is looked for in.

    Args:
        pictures: RGB uint8 (H, W, 3), T of them.
        masks: bool (T, H, W), not empty on the first frame.
        factor: a region is so many times as long as the object, as the predictor's `search_factor`.
        size: S.
        view: how what the regions show is mirrored and coloured; its crop and its turn are left out.

    Returns:
        frames (T, S, S, 3) and masks (1, T, S, S).
    """
    frame = Size(*masks.shape[1:])
    regions = regions_of([_box(mask, frame) for mask in masks], frame, factor, rng)
    view = view._replace(left=0.0, top=0.0, width=1.0, height=1.0, turn=0.0)
    frames = [view.frame(p[r.rows, r.columns], size) for p, r in zip(pictures, regions, strict=True)]
    shown = [view.mask(m[r.rows, r.columns], size) for m, r in zip(masks, regions, strict=True)]
    return Sample(np.stack(frames), np.stack(shown)[None], near=True)


def regions_of(boxes: Sequence[Box | None], frame: Size, factor: float, rng: np.random.Generator) -> list[Region]:
    """The regions in which an object is looked for that is in these boxes; None where it is hidden.

    In use a region follows from what was found on the frame before: of the object no more than the last region shows,
    and that not to the pixel. The first box was given, and is exact.
    """
    first = boxes[0]
    if first is None:
        raise ValueError("the object is not to be seen on the first frame")
    regions, found = [region_around(first, frame, factor)], boxes[0]
    for t in range(1, len(boxes)):
        regions.append(next_region(regions[-1], found, frame, factor))
        found = _as_found(boxes[t], regions[-1], rng)
    return regions


def _as_found(box: Box | None, region: Region, rng: np.random.Generator) -> Box | None:
    """A box as the network sees it in a region; None where no part of it is inside."""
    if box is None:
        return None
    left, top, right, bottom = np.asarray(box) + BLUR * box.longer_side * rng.standard_normal(4)
    seen = Box(
        max(left, region.left), max(top, region.top),
        min(right, region.left + region.width), min(bottom, region.top + region.height),
    )  # fmt: skip
    return seen if seen.left < seen.right and seen.top < seen.bottom else None


def _box(mask: np.ndarray, frame: Size) -> Box | None:
    return box_of_mask(torch.from_numpy(mask)[None, None], frame)

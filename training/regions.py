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

BLUR = 0.03  # of a box's width and height: standard deviation of where the network finds an edge of it


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

    Raises:
        ValueError: pictures of another size than the masks, or nothing on the first mask.
    """
    sizes = {picture.shape[:2] for picture in pictures}
    if sizes != {masks.shape[1:]}:
        raise ValueError(f"search regions need masks of the frames' size, got {masks.shape[1:]} and {sorted(sizes)}")
    regions = regions_of(masks, factor, rng)
    view = view._replace(left=0.0, top=0.0, width=1.0, height=1.0, turn=0.0)
    frames = [view.frame(p[r.rows, r.columns], size) for p, r in zip(pictures, regions, strict=True)]
    shown = [view.mask(m[r.rows, r.columns], size) for m, r in zip(masks, regions, strict=True)]
    return Sample(np.stack(frames), np.stack(shown)[None], near=True)


def regions_of(masks: np.ndarray, factor: float, rng: np.random.Generator) -> list[Region]:
    """The regions in which an object is looked for that is where its masks, bool (T, H, W), say.

    In use a region follows from what was found on the frame before: of the object no more than the last region shows,
    and that not to the pixel. The first mask was given, and is exact.
    """
    frame = Size(*masks.shape[1:])
    found = _box(masks[0])
    if found is None:
        raise ValueError("the object is not to be seen on the first frame")
    regions = [region_around(found, frame, factor)]
    for t in range(1, len(masks)):
        regions.append(next_region(regions[-1], found, frame, factor))
        found = _found_in(regions[-1], masks[t], rng)
    return regions


def _found_in(region: Region, mask: np.ndarray, rng: np.random.Generator) -> Box | None:
    """About the box of what a region shows of an object; None where that is nothing."""
    seen = _box(mask[region.rows, region.columns])
    if seen is None:
        return None
    left, top, right, bottom = seen
    width, height = right - left, bottom - top
    edges = np.asarray(seen) + BLUR * np.array([width, height, width, height]) * rng.standard_normal(4)
    left, top, right, bottom = np.clip(edges, 0, [region.width, region.height] * 2).tolist()
    return Box(region.left + left, region.top + top, region.left + right, region.top + bottom)


def _box(mask: np.ndarray) -> Box | None:
    return box_of_mask(torch.from_numpy(mask)[None, None], Size(*mask.shape))

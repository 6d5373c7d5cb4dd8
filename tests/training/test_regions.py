"""Clips of one object, seen in the regions that it is looked for in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sam2.modeling.search_region import GROWTH, Box, Region, Size, next_region, region_around
from training import regions
from training.regions import follow_in_regions, regions_of
from training.views import View

FRAME = Size(120, 200)
FACTOR = 2.0


def walk(count: int, step: int = 6) -> list[Box]:
    """A box of 40 x 30 pixels that goes to the right."""
    return [Box(20 + step * t, 40, 60 + step * t, 70) for t in range(count)]


def clip(boxes: Sequence[Box | None]) -> tuple[list[np.ndarray], np.ndarray]:
    """White boxes on black, and their masks."""
    masks = np.zeros((len(boxes), *FRAME), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box is not None:
            mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return [np.repeat(255 * mask[..., None].astype(np.uint8), 3, axis=2) for mask in masks], masks


@pytest.fixture
def exact(monkeypatch):
    """The object is found to the pixel."""
    monkeypatch.setattr(regions, "BLUR", 0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_each_region_follows_from_where_the_object_was_on_the_frame_before(exact):
    boxes = walk(4)
    found = regions_of(boxes, FRAME, FACTOR, rng())
    assert found[0] == found[1] == region_around(boxes[0], FRAME, FACTOR)
    assert found[2] == next_region(found[1], boxes[1], FRAME, FACTOR) != found[1]
    assert found[3] == next_region(found[2], boxes[2], FRAME, FACTOR)


def test_where_an_object_is_found_is_not_exact_but_where_it_was_given_is():
    boxes = walk(5)
    several = [regions_of(boxes, FRAME, FACTOR, np.random.default_rng(seed)) for seed in range(12)]
    assert all(found[:2] == several[0][:2] for found in several)
    lefts = np.array([found[2].left for found in several])
    assert len(set(lefts)) > 3 and np.abs(lefts - region_around(boxes[1], FRAME, FACTOR).left).max() < 8


def test_a_region_grows_while_the_object_is_hidden(exact):
    boxes = [*walk(2), None, None, None]
    found = regions_of(boxes, FRAME, FACTOR, rng())
    assert found[2].width == found[1].width  # on the frame before, it was seen
    assert found[3].width == pytest.approx(GROWTH * found[2].width, abs=1) and found[4].width > found[3].width


def test_an_object_that_leaves_its_region_at_once_is_not_found_there(exact):
    away = Box(150, 40, 190, 70)
    found = regions_of([walk(1)[0], away, away, away], FRAME, FACTOR, rng())
    assert found[1].left + found[1].width < away.left
    assert found[2].width == pytest.approx(GROWTH * found[1].width, abs=1)


def test_of_an_object_no_more_is_found_than_the_region_shows(exact):
    grown = Box(0, 0, 200, 120)
    seen = Box(60, 20, 140, 100)  # the first region
    found = regions_of([Box(80, 45, 120, 75), grown, grown], FRAME, FACTOR, rng())
    assert found[1] == Region(60, 20, 80, 80)
    assert found[2] == next_region(found[1], seen, FRAME, FACTOR)


def test_frames_and_masks_show_the_same_part():
    pictures, masks = clip(walk(4))
    sample = follow_in_regions(pictures, masks, FACTOR, 64, View(), rng())
    assert sample.frames.shape == (4, 64, 64, 3) and sample.masks.shape == (1, 4, 64, 64) and sample.near
    assert np.array_equal(sample.masks[0], sample.frames[..., 0] >= 128)
    share = sample.masks.mean(axis=(0, 2, 3))
    assert share == pytest.approx(4 * [40 * 30 / 80**2], rel=0.2)  # of the frame, it is a twentieth


def test_a_view_mirrors_and_colours_but_does_not_move_the_region():
    pictures, masks = clip([*walk(3), None])
    plain = follow_in_regions(pictures, masks, FACTOR, 64, View(), rng())
    view = View(left=0.3, top=0.2, width=0.6, height=0.6, turn=10.0, mirrored=True, gain=(0.5, 1.0, 1.0))
    varied = follow_in_regions(pictures, masks, FACTOR, 64, view, rng())
    assert np.array_equal(varied.masks, plain.masks[..., ::-1])
    assert np.array_equal(varied.frames[..., 1], plain.frames[:, :, ::-1, 1])
    assert np.array_equal(varied.frames[..., 0] >= 64, varied.masks[0]) and varied.frames[..., 0].max() == 128
    assert not varied.masks[0, 3].any()


def test_an_object_that_is_hidden_at_first_cannot_be_followed():
    with pytest.raises(ValueError, match="not to be seen on the first frame"):
        regions_of([None, *walk(1)], FRAME, FACTOR, rng())

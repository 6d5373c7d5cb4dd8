"""Clips of one object, seen in the regions that it is looked for in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam2.build_sam import build_sam2_video_predictor
from sam2.modeling.search_region import GROWTH, Box, Region, Size, next_region, region_around
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.prompts import resize_mask
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
    found = regions_of(clip(boxes)[1], FACTOR, rng())
    assert found[0] == found[1] == region_around(boxes[0], FRAME, FACTOR)
    assert found[2] == next_region(found[1], boxes[1], FRAME, FACTOR) != found[1]
    assert found[3] == next_region(found[2], boxes[2], FRAME, FACTOR)


def test_where_an_object_is_found_is_not_exact_but_where_it_was_given_is():
    boxes = walk(5)
    several = [regions_of(clip(boxes)[1], FACTOR, np.random.default_rng(seed)) for seed in range(12)]
    assert all(found[:2] == several[0][:2] for found in several)
    lefts = np.array([found[2].left for found in several])
    assert len(set(lefts)) > 3 and np.abs(lefts - region_around(boxes[1], FRAME, FACTOR).left).max() < 8


def test_a_region_grows_while_the_object_is_hidden(exact):
    boxes = [*walk(2), None, None, None]
    found = regions_of(clip(boxes)[1], FACTOR, rng())
    assert found[2].width == found[1].width  # on the frame before, it was seen
    assert found[3].width == pytest.approx(GROWTH * found[2].width, abs=1) and found[4].width > found[3].width


def test_an_object_that_leaves_its_region_at_once_is_not_found_there(exact):
    away = Box(150, 40, 190, 70)
    found = regions_of(clip([walk(1)[0], away, away, away])[1], FACTOR, rng())
    assert found[1].left + found[1].width < away.left
    assert found[2].width == pytest.approx(GROWTH * found[1].width, abs=1)


def test_of_an_object_no_more_is_found_than_the_region_shows(exact):
    grown = Box(0, 0, 200, 120)
    seen = Box(60, 20, 140, 100)  # the first region
    found = regions_of(clip([Box(80, 45, 120, 75), grown, grown])[1], FACTOR, rng())
    assert found[1] == Region(60, 20, 80, 80)
    assert found[2] == next_region(found[1], seen, FRAME, FACTOR)


def test_of_two_parts_only_the_one_in_the_region_is_found(exact):
    near, far = Box(20, 40, 60, 70), Box(150, 10, 190, 20)
    (_, masks), (_, others) = clip([near] * 3), clip([None, far, far])
    assert regions_of(masks | others, FACTOR, rng()) == regions_of(masks, FACTOR, rng())


def test_thin_things_are_found_whenever_they_are_seen():
    bar = [Box(20, 60, 180, 62)] * 20
    found = regions_of(clip(bar)[1], FACTOR, rng())
    assert {region.width for region in found} == {200} and {region.height for region in found} == {120}
    upright = [Box(100, 20, 102, 60)] * 20
    found = regions_of(clip(upright)[1], FACTOR, rng())
    assert {region.width for region in found} == {80} and np.ptp([region.left for region in found]) <= 1


def test_the_predictor_looks_in_the_same_regions_where_it_finds_the_truth(exact, monkeypatch):
    drawn = draw_clip(12, 240, 320, num_objects=1, seed=3)
    masks = drawn.labels == 1
    masks[5:8] = False  # hidden
    predictor = build_sam2_video_predictor(device="cpu", image_size=128, search_factor=1.25)
    predictor.skip_mad_threshold = 0
    track_object, looked = predictor._track_object, {}

    def answer_truly(state, track, request, region, remember):
        looked[request.frame_idx] = region
        output = track_object(state, track, request, region, remember)
        truth = resize_mask(
            torch.from_numpy(masks[request.frame_idx])[None, None].float(), output.pred_masks.shape[-2:]
        )
        return replace(output, pred_masks=torch.where(truth >= 0.5, 8.0, -8.0))

    monkeypatch.setattr(predictor, "_track_object", answer_truly)
    with predictor.open(drawn.frames) as state:
        predictor.add_new_mask(state, 0, 1, masks[0])
        for _ in predictor.propagate_in_video(state, progress=False):
            pass
    expected = regions_of(masks, 1.25, rng())
    assert len({region.width for region in expected}) > 3
    pixel = 320 / 128  # of the masks that a session keeps
    for t, region in enumerate(expected):
        assert np.abs(np.subtract(looked[t], region)).max() <= 2 * pixel, t


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


def test_what_cannot_be_followed_is_refused():
    pictures, masks = clip(walk(2))
    with pytest.raises(ValueError, match=r"need masks of the frames' size, got \(120, 200\) and \[\(60, 100\)\]"):
        follow_in_regions([picture[::2, ::2] for picture in pictures], masks, FACTOR, 64, View(), rng())
    with pytest.raises(ValueError, match="not to be seen on the first frame"):
        regions_of(clip([None, *walk(1)])[1], FACTOR, rng())

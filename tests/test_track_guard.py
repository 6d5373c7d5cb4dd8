"""Which masks are believed: pure decisions, and the shapes that they are made on."""

import math

import pytest
import torch

from sam2.modeling.search_region import Size
from sam2.track_guard import LEAST_LENGTH, Look, Shape, TrackGuard, check_guard, shapes_of

FRAME = Size(480, 854)
HERE = Shape(x=100, y=200, area=1600, length=40)
GUARD = TrackGuard()


def look(x=100.0, y=200.0, area=1600.0, score=0.99, iou=0.9, length=40.0):
    return Look(Shape(x, y, area, length), score, iou)


def test_an_object_where_it_was_is_believed():
    assert GUARD.doubt(look(), HERE, 1, FRAME) is None
    assert GUARD.doubt(look(), None, 1, FRAME) is None


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (look(score=0.49), "object score 0.49, least 0.5"),
        (look(iou=0.29), "predicted IoU 0.29, least 0.3"),
        (Look(None, 0.99, 0.9), "nothing of it is seen"),
        (look(area=16_100), "10.1 times as large as 1 frames before, most 10.0"),
        (look(x=161), "1.5 lengths from where it was 1 frames before, most 1.5"),
        (look(y=139), "1.5 lengths from where it was 1 frames before, most 1.5"),
        (look(x=137, y=249), "1.5 lengths from where it was 1 frames before, most 1.5"),
    ],
)
def test_reasons_to_doubt(seen, why):
    assert GUARD.doubt(seen, HERE, 1, FRAME) == why


@pytest.mark.parametrize("seen", [look(score=0.5), look(iou=0.3), look(area=16_000), look(x=160), look(area=1)])
def test_at_the_limits_it_is_believed(seen):
    assert GUARD.doubt(seen, HERE, 1, FRAME) is None


@pytest.mark.parametrize("seen", [look(x=900, area=1e6), look(x=100, y=0)])
def test_without_a_place_before_only_the_network_is_asked(seen):
    assert GUARD.doubt(seen, None, 1, FRAME) is None


def test_more_may_have_happened_in_a_longer_time_by_its_root():
    twice = look(x=100 + 2 * 60)
    assert [GUARD.doubt(twice, HERE, gap, FRAME) is None for gap in (1, 3, 4, 5)] == [False, False, True, True]
    larger = look(area=3 * 16_000)
    assert [GUARD.doubt(larger, HERE, gap, FRAME) is None for gap in (1, 8, 9)] == [False, False, True]


def test_tiny_things_may_jump_by_more_than_their_length():
    least = LEAST_LENGTH * FRAME.width
    speck = Shape(100, 200, 4, 2)
    assert GUARD.doubt(look(x=100 + 1.4 * least, area=4, length=2), speck, 1, FRAME) is None
    assert GUARD.doubt(look(x=100 + 1.6 * least, area=4, length=2), speck, 1, FRAME) is not None
    assert GUARD.doubt(look(area=9 * least**2), speck, 1, FRAME) is None
    assert GUARD.doubt(look(area=11 * least**2), speck, 1, FRAME) is not None


def test_an_object_that_comes_out_from_behind_something_may_have_been_a_sliver():
    sliver = Shape(100, 200, 160, 8)
    assert GUARD.doubt(look(x=159), sliver, 1, FRAME) is None
    assert GUARD.doubt(look(x=161), sliver, 1, FRAME) is not None


def test_each_limit_can_be_taken_off():
    off = TrackGuard(least_object_score=0, least_predicted_iou=0, most_growth=math.inf, most_leap=math.inf)
    assert off.doubt(look(x=9e3, area=1e6, score=0.01, iou=-0.1), HERE, 1, FRAME) is None
    assert off.doubt(Look(None, 0.01, 0.9), HERE, 1, FRAME) == "nothing of it is seen"
    assert TrackGuard(cut_distance=1).finds_cuts is False
    assert TrackGuard(cut_distance=0.99).finds_cuts is True


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("least_object_score", 1.1, "a number from 0 to 1"),
        ("least_predicted_iou", -0.1, "a number from 0 to 1"),
        ("cut_distance", math.nan, "a number from 0 to 1"),
        ("most_growth", 0.9, "a number of 1 or more"),
        ("most_leap", 0, "a number above 0"),
        ("most_leap", "2", "a number above 0"),
        ("most_leap", True, "a number above 0"),
        ("most_growth", None, "a number of 1 or more"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"^{name} must be {expected}, got {value!r}$"):
        TrackGuard(**{name: value})


@pytest.mark.parametrize("value", [True, "on", {"most_leap": 2}, TrackGuard])
def test_only_a_guard_is_one(value):
    with pytest.raises(TypeError, match="guard must be a TrackGuard, or None for none, got"):
        check_guard(value)
    assert check_guard(None) is None
    assert check_guard(GUARD) is GUARD


def test_shapes_are_in_pixels_of_the_video():
    masks = torch.zeros(3, 1, 24, 32, dtype=torch.bool)
    masks[0, 0, 6:12, 8:16] = True  # a quarter of the height, a quarter of the width
    masks[2, 0, 20, :] = True
    square, nothing, line = shapes_of(masks, Size(240, 640))
    assert nothing is None
    assert square is not None
    assert line is not None
    assert (square.x, square.y, square.area) == pytest.approx((240, 90, 60 * 160))
    # of an even spread over a length its variance is a twelfth of its square, less a twelfth of a pixel's
    assert square.length == pytest.approx(2 * math.sqrt((160**2 - 20**2 + 60**2 - 10**2) / 12))
    assert (line.x, line.y, line.area) == pytest.approx((320, 205, 640 * 10))
    assert line.length == pytest.approx(2 * math.sqrt((640**2 - 20**2) / 12))


def test_no_masks_have_no_shapes():
    assert shapes_of(torch.zeros(0, 1, 8, 8, dtype=torch.bool), FRAME) == []

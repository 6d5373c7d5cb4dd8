"""What tracking says of each object on each frame."""

import math

import numpy as np
import pytest
import torch

from sam2.frame_skipping import FrameDecision
from sam2.results import Box, FrameResult, frame_result
from sam2.utils.davis import merge_masks


def decided(action="processed", frame=3):
    return FrameDecision(frame, action, 0.0, "", 0.01)


def logits_of(*pictures):
    """(N, 1, H, W) logits from rows of text: "." is outside, a digit the logit."""
    rows = [[[-1.0 if c == "." else float(c) for c in row] for row in picture.split()] for picture in pictures]
    return torch.tensor(rows)[:, None]


ONE = logits_of("..... .11.. .111. .....")


def result_of(logits, action="processed", ids=None, scores=None, **options) -> FrameResult:
    n = len(logits)
    return frame_result(decided(action), ids or range(1, n + 1), logits, scores or [2.0] * n, [0.9] * n, **options)


def test_mask_box_area_and_scores_of_an_object():
    result = frame_result(decided(), ["dog"], ONE, torch.tensor([[2.0]]), torch.tensor([[0.9]]))
    dog = result["dog"]
    assert dog.mask.dtype == bool and np.argwhere(dog.mask).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2], [2, 3]]
    assert (dog.box, dog.area, dog.status) == (Box(1, 1, 4, 3), 5, "tracked")
    assert dog.object_score == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-7)
    assert dog.predicted_iou == pytest.approx(0.9, rel=1e-6)
    assert (result.frame, result.obj_ids, result.height, result.width) == (3, ["dog"], 4, 5)


def test_a_box_holds_the_whole_mask_and_nothing_more():
    corners = result_of(logits_of("1... .... ...1"))[1]
    assert corners.box == (0, 0, 4, 3) and corners.mask[0:3, 0:4].sum() == corners.area == 2
    assert result_of(logits_of(".... .1.. ...."))[1].box == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("action", "status"),
    [("prompted", "prompted"), ("processed", "tracked"), ("reused", "reused"), ("warped", "warped")],
)
def test_the_status_says_how_an_object_came_by_its_mask(action, status):
    assert result_of(ONE, action)[1].status == status


def test_each_object_may_have_a_status_of_its_own():
    both = torch.cat([ONE, ONE])
    result = result_of(both, "prompted", [4, 5], statuses=["tracked", "prompted"])
    assert [each.status for each in result.objects] == ["tracked", "prompted"]


def test_an_object_without_a_result_is_left_out():
    masks = logits_of("11.. 22..", ".... ....", ".21. .22.")
    result = result_of(masks, ids=[7, 8, 9], scores=[1.0, 2.0, 3.0], statuses=["reused", None, "tracked"])
    assert {each.obj_id: each.status for each in result.objects} == {7: "reused", 9: "tracked"}
    assert [each.object_score for each in result.objects] == pytest.approx([1 / (1 + math.exp(-s)) for s in (1, 3)])
    assert result.label_map().tolist() == [[7, 9, 9, 0], [7, 7, 9, 0]]
    nothing = result_of(masks, statuses=[None] * 3)
    assert nothing.objects == () and not nothing.label_map().any()


@pytest.mark.parametrize("action", ["prompted", "processed", "reused", "warped"])
def test_an_object_that_is_not_to_be_seen_is_occluded_whatever_was_done_with_the_frame(action):
    hidden, empty, seen = result_of(torch.cat([ONE, -ONE.abs(), ONE]), action, scores=[-0.1, 3.0, 0.1]).objects
    assert (hidden.status, hidden.box, hidden.area) == ("occluded", (1, 1, 4, 3), 5)
    assert (empty.status, empty.box, empty.area) == ("occluded", None, 0)
    assert seen.status != "occluded"


def test_a_score_far_below_0_is_a_probability_of_0():
    assert result_of(ONE, scores=[-1024.0])[1].object_score == 0.0
    assert result_of(ONE, scores=[1024.0])[1].object_score == 1.0


def test_where_masks_overlap_the_highest_logit_owns_the_pixel_and_the_first_of_equals():
    result = result_of(logits_of("11.. 22..", ".21. .22."), ids=[7, 9])
    assert result.label_map().tolist() == [[7, 9, 9, 0], [7, 7, 9, 0]]
    assert result.owner.tolist() == [[1, 2, 2, 0], [1, 1, 2, 0]]
    assert result.has_overlaps and not result_of(logits_of("1.", ".1")).has_overlaps


def test_the_label_map_is_that_of_the_logits():
    logits = torch.randn(5, 1, 20, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    assert np.array_equal(result_of(logits, ids=[9, 3, 200, 4, 1]).label_map(), merge_masks([9, 3, 200, 4, 1], logits))


def test_more_objects_than_a_byte_counts_are_told_apart():
    logits = torch.full((300, 1, 10, 30), -1.0)
    for i in range(300):
        logits[i, 0, i // 30, i % 30] = 1.0
    assert np.array_equal(result_of(logits).owner.reshape(-1), np.arange(1, 301))


@pytest.mark.parametrize("obj_id", [0, 256, -1, "dog", True])
def test_an_id_that_is_no_pixel_value_has_no_label_map(obj_id):
    with pytest.raises(ValueError, match="a label map holds ids from 1 to 255"):
        result_of(ONE, ids=[obj_id]).label_map()


def test_a_frame_without_objects_is_background():
    result = frame_result(decided(), [], torch.zeros(0, 1, 3, 4), [], [])
    assert (len(result), result.objects, result.has_overlaps) == (0, (), False)
    assert result.label_map().tolist() == np.zeros((3, 4)).tolist()


def test_a_frame_is_read_by_id():
    result = result_of(torch.cat([ONE, ONE]), ids=[7, "dog"])
    assert list(result) == [7, "dog"] and "dog" in result and 8 not in result
    with pytest.raises(KeyError, match=r"obj_id 8 is not on frame 3; its objects are \[7, 'dog'\]"):
        result[8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([1, 2], ONE, [0.0, 0.0], [0.0, 0.0]),
            r"mask_logits must be \(2, 1, H, W\), one per object, got \(1, 1, 4, 5\)",
        ),
        (([1], ONE[:, 0], [0.0], [0.0]), r"mask_logits must be \(1, 1, H, W\)"),
        (([1], ONE, [0.0, 1.0], [0.0]), r"object_score_logits must be 1 numbers, one per object, got shape \(2,\)"),
        (([1], ONE, [0.0], []), r"predicted_ious must be 1 numbers"),
    ],
)
def test_not_one_mask_and_score_per_object_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        frame_result(decided(), *arguments)
    with pytest.raises(ValueError, match="statuses must be 1, one per object, got 0"):
        frame_result(decided(), [1], ONE, [0.0], [0.0], statuses=[])


@pytest.mark.gpu
def test_results_are_the_same_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits = torch.randn(5, 1, 20, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    here, there = result_of(logits), result_of(logits.cuda())
    assert np.array_equal(here.owner, there.owner)
    for a, b in zip(here.objects, there.objects, strict=True):
        assert np.array_equal(a.mask, b.mask) and (a.box, a.area, a.status) == (b.box, b.area, b.status)

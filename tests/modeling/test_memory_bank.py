"""Which frames are remembered, by hand-computed tables; no network."""

import pytest
import torch

from sam2.modeling.memory_bank import BankRules, MemoryBank, memory_frames, pointer_frames, select_memory
from sam2.modeling.outputs import FrameOutput
from sam2.modeling.sam2_utils import select_closest_cond_frames

RULES = BankRules(
    num_maskmem=3, stride=1, max_prompted=-1, max_pointers=4, signed_distance=True, pointers_from_past_only=True
)


def output() -> FrameOutput:
    return FrameOutput(torch.zeros(1), torch.zeros(1), torch.zeros(1))


def indices(remembered, outputs) -> list[tuple[int, int]]:
    """(distance, frame index) of each remembered output."""
    return [(r.distance, next(t for t, out in outputs.items() if out is r.output)) for r in remembered]


@pytest.mark.parametrize(
    ("frame_idx", "stride", "reverse", "expected"),
    [
        (9, 1, False, [(1, 7), (2, 8)]),
        (9, 3, False, [(1, 6), (2, 8)]),  # the newest slot is the previous frame, whatever the stride
        (1, 1, False, [(1, -1), (2, 0)]),
        (4, 1, True, [(1, 6), (2, 5)]),
        (4, 3, True, [(1, 6), (2, 5)]),
        (5, 4, True, [(1, 8), (2, 6)]),
    ],
)
def test_memory_slots_are_strided_and_end_with_the_neighbouring_frame(frame_idx, stride, reverse, expected):
    assert memory_frames(frame_idx, num_maskmem=3, stride=stride, reverse=reverse) == expected


def test_strided_slots_go_back_in_whole_strides():
    assert memory_frames(20, num_maskmem=5, stride=4, reverse=False) == [(1, 8), (2, 12), (3, 16), (4, 19)]
    assert memory_frames(20, num_maskmem=5, stride=4, reverse=True) == [(1, 32), (2, 28), (3, 24), (4, 21)]


@pytest.mark.parametrize(
    ("frame_idx", "reverse", "expected"),
    [(2, False, [(1, 1), (2, 0)]), (7, False, [(1, 6), (2, 5), (3, 4)]), (7, True, [(1, 8), (2, 9)])],
)
def test_pointers_come_from_the_nearest_frames_inside_the_video(frame_idx, reverse, expected):
    assert pointer_frames(frame_idx, num_frames=10, max_pointers=4, reverse=reverse) == expected


def test_prompted_frames_come_first_and_propagated_ones_fill_the_slots():
    prompted, propagated = {0: output(), 9: output()}, {t: output() for t in range(1, 6)}
    selection = select_memory(MemoryBank(prompted, propagated), 6, False, 10, RULES)
    assert indices(selection.maps, prompted | propagated) == [(0, 0), (0, 9), (1, 4), (2, 5)]
    # The prompted frame 9 lies in the future, so its pointer is not read.
    assert indices(selection.pointers, prompted | propagated) == [(6, 0), (1, 5), (2, 4), (3, 3)]


def test_pointers_from_the_future_count_negative_when_they_are_read():
    prompted = {9: output()}
    rules = RULES._replace(pointers_from_past_only=False)
    assert select_memory(MemoryBank(prompted, {}), 6, False, 10, rules).pointers[0].distance == -3
    assert select_memory(MemoryBank(prompted, {}), 6, True, 10, rules).pointers[0].distance == 3
    unsigned = rules._replace(signed_distance=False)
    assert select_memory(MemoryBank(prompted, {}), 6, False, 10, unsigned).pointers[0].distance == 3


def test_prompted_frames_beyond_the_limit_serve_as_propagated_ones():
    prompted = {t: output() for t in (0, 4, 5, 9)}
    rules = RULES._replace(max_prompted=2)
    selection = select_memory(MemoryBank(prompted, {}), 6, False, 10, rules)
    assert indices(selection.maps, prompted) == [(0, 5), (0, 9), (1, 4)]


def test_an_object_without_prompts_cannot_be_tracked():
    with pytest.raises(RuntimeError, match="frame 3 has no prompted frame"):
        select_memory(MemoryBank({}, {}), 3, False, 10, RULES)


@pytest.mark.parametrize(
    ("frame_idx", "limit", "selected"),
    [(5, -1, [0, 4, 6, 9]), (5, 2, [4, 6]), (5, 3, [4, 6, 9]), (0, 2, [0, 4]), (10, 2, [9, 6])],
)
def test_the_closest_prompted_frames_are_selected(frame_idx, limit, selected):
    outputs = {t: t for t in (0, 4, 6, 9)}
    chosen, rest = select_closest_cond_frames(frame_idx, outputs, limit)
    assert list(chosen) == selected
    assert sorted(chosen | rest) == [0, 4, 6, 9]

"""Which frames and objects a propagation covers: some objects only, both directions, changes on the way, any end."""

import sys

import cv2
import numpy as np
import pytest
import torch
from sessions import track

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.utils import video_file
from sam2.utils.drawn_clips import draw_clip
from sam2.video_propagation import ForwardFrames

HEIGHT, WIDTH, LENGTH = 96, 128, 12


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3)


@pytest.fixture(scope="module")
def predictor():
    small = ["++model.image_size=128", "++model.skip_mad_threshold=0"]
    return build_sam2_video_predictor(device="cpu", hydra_overrides_extra=small)


@pytest.fixture
def state(predictor, clip):
    with predictor.open(list(clip.frames), keep="all") as state:
        yield state


def prompt(predictor, state, clip, *pairs):
    for obj_id, t in pairs:
        predictor.add_new_mask(state, t, obj_id, clip.labels[t] == obj_id)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_program_without_stderr_is_shown_no_progress_bar(predictor, state, clip, monkeypatch, direction):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw, or in a windowed program made by PyInstaller
    prompt(predictor, state, clip, (1, 1))
    assert len(list(predictor.propagate_in_video(state, direction=direction))) == LENGTH - (direction == "forward")


# Order of frames


def frames_of(length, estimate, first=0, last=None):
    return ForwardFrames(first, last, lambda t: t < length, lambda: estimate)


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (frames_of(4, 4), [0, 1, 2, 3]),
        (frames_of(4, 9, first=2), [2, 3]),
        (frames_of(6, 3), [0, 1, 2, 3, 4, 5]),
        (frames_of(6, 6, last=3), [0, 1, 2, 3]),
        (frames_of(6, 9, last=8), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_forward_frames_end_where_the_clip_does_whatever_was_estimated(order, wanted):
    assert list(order) == wanted


@pytest.mark.parametrize("estimate", [3, 5, 8])
def test_the_last_of_the_forward_frames_is_known_when_it_is_reached(estimate):
    order = frames_of(5, estimate)
    assert [frame_idx == order[-1] for frame_idx in order] == [False, False, False, False, True]


@pytest.mark.parametrize("declared", [30, 45])
def test_a_video_that_declares_too_many_or_too_few_frames_is_tracked_to_its_end(
    predictor, tmp_path, monkeypatch, declared
):
    clip = draw_clip(36, 48, 64, num_objects=1, seed=3)
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 25, (64, 48))
    for frame in clip.frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    for each in (video_file.OpenCvDecoder, video_file.PyAvDecoder):
        monkeypatch.setattr(each, "declared", declared)
    with predictor.open(str(tmp_path / "clip.avi")) as state:
        prompt(predictor, state, clip, (1, 0))
        masks = track(predictor, state)
        assert list(masks) == list(range(36)) and state.num_frames == 36
        with pytest.raises(ValueError, match=r"frame_idx must be a frame in \[0, 35\], got 36"):
            predictor.add_new_mask(state, 36, 1, clip.labels[0] == 1)


# Some objects only


def test_objects_that_are_not_asked_for_show_what_was_found_before_and_stay_as_they_are(predictor, state, clip):
    prompt(predictor, state, clip, (1, 0), (2, 0))
    before = track(predictor, state)
    prompt(predictor, state, clip, (7, 4))
    kept = dict(state.track(1).propagated)
    after = track(predictor, state, obj_ids=[7])
    assert list(after) == list(range(4, LENGTH)), "from the earliest prompt of the objects that are tracked"
    assert all(torch.equal(after[t][:2], before[t]) for t in after)
    assert state.track(1).propagated == kept
    with predictor.open(list(clip.frames), keep="all") as alone:
        prompt(predictor, alone, clip, (7, 4))
        wanted = track(predictor, alone)
    assert all(torch.equal(after[t][2:], wanted[t]) for t in wanted)


def test_objects_never_seen_on_a_frame_show_none_beside_those_that_are_tracked(predictor, state, clip):
    prompt(predictor, state, clip, (1, 0), (2, 6))
    masks = track(predictor, state, obj_ids=[1])
    assert (masks[3][1] == -1024).all() and (masks[3][0] > 0).any()
    assert 3 not in state.track(2).propagated


def statuses(result):
    return {each.obj_id: each.status for each in result.objects}


def test_results_leave_out_objects_that_were_not_looked_for(predictor, state, clip):
    prompt(predictor, state, clip, (2, 6), (1, 0))
    results = list(predictor.propagate_results(state, progress=False, obj_ids=[1], max_frame_num_to_track=1))
    assert [statuses(result) for result in results] == [{1: "prompted"}, {1: "tracked"}]
    assert results[1][1].object_score > 0.5 and results[1][1].predicted_iou > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obj_ids": [3]}, r"obj_id 3 is not in this session; its objects are \[1\]"),
        ({"obj_ids": []}, "obj_ids must name at least one object"),
        ({"direction": "up"}, 'direction must be "forward", "backward", "both" or None'),
        ({"direction": "forward", "reverse": True}, "reverse=True goes backward, got direction='forward'"),
        ({"direction": "both", "start_frame_idx": 2}, 'direction="both" goes from the prompts to both ends'),
        ({"direction": "both", "max_frame_num_to_track": 2}, 'direction="both" goes from the prompts to both ends'),
    ],
)
def test_bad_scopes_are_refused(predictor, state, clip, options, message):
    prompt(predictor, state, clip, (1, 0))
    with pytest.raises(ValueError, match=message):
        list(predictor.propagate_in_video(state, **options))


def test_ids_may_come_from_any_iterable_but_not_alone(predictor, state, clip):
    prompt(predictor, state, clip, (1, 0))
    assert next(predictor.propagate_in_video(state, obj_ids=iter([1]), progress=False))[1] == [1]
    with pytest.raises(TypeError, match="obj_ids must be a list of ids, or None for all, got 1"):
        predictor.propagate_in_video(state, obj_ids=1)


@pytest.mark.parametrize(("gate", "action"), [("naive", "reused"), ("memory_guided", "warped")])
def test_each_object_has_the_status_of_its_own_mask_whatever_is_done_with_the_frame_now(
    predictor, state, clip, monkeypatch, gate, action
):
    monkeypatch.setattr(predictor, "skipping", SkipOptions(1000.0, gate))
    prompt(predictor, state, clip, (1, 0), (2, 3))
    track(predictor, state, obj_ids=[1])
    assert state.decision_of[4].action == action
    predictor.skip_mad_threshold = 0
    results = list(predictor.propagate_results(state, progress=False, obj_ids=[2]))
    assert [statuses(result) for result in results[:2]] == [{1: action, 2: "prompted"}, {1: action, 2: "tracked"}]
    predictor.skip_mad_threshold = 1000.0
    results = list(predictor.propagate_results(state, 0, progress=False, obj_ids=[1]))
    assert [statuses(result) for result in results[2:5]] == [
        {1: action}, {1: action, 2: "prompted"}, {1: action, 2: "tracked"}
    ]  # fmt: skip


# Directions


def test_backward_is_reverse(predictor, state, clip):
    prompt(predictor, state, clip, (1, 5))
    backward = track(predictor, state, direction="backward")
    again = track(predictor, state, reverse=True)
    assert list(backward) == [5, 4, 3, 2, 1, 0]
    assert all(torch.equal(backward[t], again[t]) for t in backward)


def test_both_directions_yield_each_frame_once_in_order_and_equal_two_runs_by_hand(predictor, state, clip):
    prompt(predictor, state, clip, (1, 7), (2, 3))
    both = track(predictor, state, direction="both")
    assert list(both) == list(range(LENGTH))
    for row, (obj_id, t) in enumerate(((1, 7), (2, 3))):
        with predictor.open(list(clip.frames), keep="all") as alone:
            prompt(predictor, alone, clip, (obj_id, t))
            by_hand = track(predictor, alone, start_frame_idx=t, reverse=True)
            by_hand |= track(predictor, alone, start_frame_idx=t)
        assert all(torch.equal(both[t][row], by_hand[t][0]) for t in range(LENGTH))


def test_both_directions_in_a_window_session_show_nearly_the_same(predictor, state, clip):
    prompt(predictor, state, clip, (1, 10))
    wanted = track(predictor, state, direction="both")
    with predictor.open(list(clip.frames)) as window:
        prompt(predictor, window, clip, (1, 10))
        found = track(predictor, window, direction="both")
    for t in range(LENGTH):
        first, second = found[t] > 0, wanted[t] > 0
        assert (first & second).sum() >= 0.98 * (first | second).sum()
        assert torch.equal(found[t], wanted[t]) == (t >= 10 - predictor.reach or t <= predictor.reach)


@pytest.mark.parametrize("gate", [("naive", 0.05), ("memory_guided", 0.3)])
def test_both_directions_skip_frames_too(predictor, state, clip, monkeypatch, gate):
    monkeypatch.setattr(predictor, "skipping", predictor.skipping)  # restored afterwards
    predictor.skip_strategy, predictor.skip_mad_threshold = gate
    prompt(predictor, state, clip, (1, 7), (2, 3))
    assert list(track(predictor, state, direction="both")) == list(range(LENGTH))
    assert sorted(d.frame for d in state.decisions) == list(range(LENGTH))
    assert all((state.track(obj_id).latest_masks(t) is not None) for obj_id in (1, 2) for t in range(LENGTH))


def both(predictor, state, edits):
    """The results by frame, each of `edits` being made after its frame was shown."""
    results = {}
    for result in predictor.propagate_results(state, progress=False, direction="both"):
        results[result.frame] = result
        edits.get(result.frame, lambda: None)()
    assert list(results) == list(range(LENGTH))
    return results


def test_an_object_added_before_the_first_prompt_of_both_directions_is_tracked_from_the_next_frame(
    predictor, state, clip
):
    prompt(predictor, state, clip, (1, 4))
    results = both(predictor, state, {1: lambda: prompt(predictor, state, clip, (2, 1))})
    assert [statuses(results[t]) for t in range(6)] == [
        {1: "tracked"}, {1: "tracked"}, *2 * [{1: "tracked", 2: "tracked"}],
        {1: "prompted", 2: "tracked"}, {1: "tracked", 2: "tracked"},
    ]  # fmt: skip
    assert 2 in state.track(1).propagated and 0 not in state.track(2).propagated
    with predictor.open(list(clip.frames), keep="all") as alone:
        prompt(predictor, alone, clip, (2, 1))
        wanted = list(predictor.propagate_results(alone, progress=False))[1:]
    assert all(np.array_equal(results[each.frame][2].mask, each[2].mask) for each in wanted)


def test_a_sticky_correction_before_the_first_prompt_of_both_directions_is_tracked_on_from(predictor, clip):
    with predictor.open(list(clip.frames), keep="all", corrections="sticky") as state:
        prompt(predictor, state, clip, (1, 4))
        results = both(predictor, state, {2: lambda: predictor.add_new_mask(state, 2, 1, clip.labels[2] == 2)})
        assert [results[t][1].status for t in range(5)] == ["tracked"] * 4 + ["prompted"]
        assert state.track(1).tracked[3] is False and state.track(1).tracked[1] is True


@pytest.mark.parametrize("t", [2, 8])
def test_a_session_that_is_reset_before_the_first_prompt_of_both_directions_goes_on_with_new_prompts(
    predictor, state, clip, t
):
    def start_again():
        predictor.reset_state(state)
        prompt(predictor, state, clip, (2, t))

    prompt(predictor, state, clip, (1, 5))
    results = both(predictor, state, {2: start_again})
    seen = [statuses(results[t]) for t in range(3, LENGTH)]
    before = 0 if t == 2 else t - 3
    assert seen[:before] == [{}] * before
    assert seen[before] == {2: "tracked" if t == 2 else "prompted"} and seen[before + 1] == {2: "tracked"}


def test_prompts_between_the_call_and_the_first_frame_of_both_directions_count(predictor, state, clip):
    prompt(predictor, state, clip, (1, 4))
    results = predictor.propagate_results(state, progress=False, direction="both")
    prompt(predictor, state, clip, (2, 6))
    assert all(set(result) == {1, 2} for result in results)


# Changes inside the loop


def click_between(clip, t):
    y, x = np.argwhere(clip.labels[t] == 2).mean(0)
    return {"points": [[x, y]], "labels": [1]}


@pytest.mark.parametrize("corrections", ["tracked", "sticky"])
def test_adding_removing_and_correcting_in_the_loop_changes_no_other_object(predictor, clip, corrections):
    def run(edit):
        shown = {}
        with predictor.open(list(clip.frames), keep="all", corrections=corrections) as state:
            prompt(predictor, state, clip, (1, 0), (2, 0))
            for t, obj_ids, logits in predictor.propagate_in_video(state, progress=False):
                shown[t] = dict(zip(obj_ids, logits, strict=True))
                edit(state, t)
        return shown

    def edit(state, t):
        if t == 2:
            prompt(predictor, state, clip, (2, 2))  # corrected by a mask
        if t == 3:
            predictor.add_new_mask(state, 3, 9, clip.labels[3] > 0)
        if t == 5:
            predictor.add_new_points_or_box(state, 5, 2, **click_between(clip, 5))
        if t == 7:
            predictor.remove_object(state, 9)

    undisturbed, edited = run(lambda state, t: None), run(edit)
    assert [list(edited[t]) for t in (3, 4, 7, 8)] == [[1, 2], [1, 2, 9], [1, 2, 9], [1, 2]]
    assert all(torch.equal(edited[t][1], undisturbed[t][1]) for t in range(LENGTH))
    assert all(torch.equal(edited[t][2], undisturbed[t][2]) for t in range(3))
    assert not torch.equal(edited[6][2], undisturbed[6][2])


def test_what_is_yielded_is_the_callers_to_change(predictor, clip, monkeypatch):
    monkeypatch.setattr(predictor, "skipping", predictor.skipping)
    predictor.skip_mad_threshold = 1000.0
    frames = [frame[:32, :32] for frame in clip.frames]  # as small as the masks: nothing is resized
    with predictor.open(frames) as state:
        predictor.add_new_mask(state, 0, 1, np.eye(32))
        for _, _, logits in predictor.propagate_in_video(state, progress=False):
            assert not (logits == 7).any()
            logits.fill_(7)


@pytest.mark.parametrize("threshold", [0, 1000.0])
def test_an_object_whose_prompts_are_taken_back_in_the_loop_is_not_tracked_until_it_gets_a_new_one(
    predictor, state, clip, monkeypatch, threshold
):
    monkeypatch.setattr(predictor, "skipping", SkipOptions(threshold))
    prompt(predictor, state, clip, (1, 0), (2, 0))
    seen = []
    for result in predictor.propagate_results(state, progress=False):
        seen.append(result)
        if result.frame == 2:
            predictor.clear_all_prompts_in_frame(state, 0, 2)
        if result.frame == 5:
            prompt(predictor, state, clip, (2, 5))
    shown = [statuses(result).get(2) for result in seen]
    carried = "reused" if threshold else "tracked"
    assert shown == ["prompted", carried, carried, None, None, None, "tracked", *5 * [carried]]
    assert all(1 in result for result in seen)
    keys = [t for t, decision in state.decision_of.items() if decision.action == "processed"]
    assert keys == ([3, 6] if threshold else list(range(1, LENGTH)))


@pytest.mark.parametrize("threshold", [0, 1000.0])
def test_a_cleared_object_shows_nothing_of_what_was_found_from_its_prompts(
    predictor, state, clip, monkeypatch, threshold
):
    monkeypatch.setattr(predictor, "skipping", SkipOptions(threshold))
    prompt(predictor, state, clip, (1, 0), (2, 0))
    track(predictor, state)
    predictor.clear_all_prompts_in_frame(state, 0, 2)
    masks = track(predictor, state, obj_ids=[1])
    assert all((masks[t][1] == -1024).all() and (masks[t][0] > 0).any() for t in masks)


def test_taking_back_one_of_several_prompts_in_the_loop_makes_a_key_frame(predictor, state, clip, monkeypatch):
    monkeypatch.setattr(predictor, "skipping", SkipOptions(1000.0))
    prompt(predictor, state, clip, (1, 0), (1, 3))
    for t, _, _ in predictor.propagate_in_video(state, progress=False):
        if t == 5:
            predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert [d.frame for d in state.decisions if d.action == "processed"] == [6]


def test_the_loop_ends_when_no_object_has_a_prompt(predictor, state, clip):
    prompt(predictor, state, clip, (1, 0))
    frames = []
    for t, _, _ in predictor.propagate_in_video(state, progress=False):
        frames.append(t)
        if t == 3:
            predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert frames == [0, 1, 2, 3]
    predictor.add_new_points_or_box(state, 3, 1, points=[[40, 40]], labels=[1])  # a first prompt: nothing to correct
    assert list(state.track(1).pending_prompted) == [3]


def test_taking_back_prompts_clears_what_a_paused_run_knew(predictor, state, clip, monkeypatch):
    monkeypatch.setattr(predictor, "skipping", SkipOptions(1000.0))
    prompt(predictor, state, clip, (1, 0), (1, 3))
    next(predictor.propagate_in_video(state, progress=False))
    assert state.paused is not None
    predictor.clear_all_prompts_in_frame(state, 3, 1)
    assert state.paused is None

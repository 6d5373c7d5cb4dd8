"""Tracking with a guard through scene cuts: noticed once, never skipped, and nothing is carried across them."""

import cv2
import numpy as np
import pytest
import torch
from sessions import results_on, see_discs, track

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.track_guard import TrackGuard
from sam2.utils.drawn_clips import draw_clip
from sam2.video_state import VideoState

COLOUR = (13, 113, 156)
GREY, RED = np.full((96, 128, 3), 90, np.uint8), np.full((96, 128, 3), (200, 30, 30), np.uint8)


def backdrop(seed):
    noise = np.random.default_rng(seed).integers(0, 255, (240, 432, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 6)
    return 60 + 120 * (soft - soft.min()) / (soft.max() - soft.min())


def disc(x, y):
    return cv2.circle(np.zeros((240, 432), np.uint8), (x, y), 22, 1, -1) > 0


def overlap(one, other):
    return (one & other).sum() / max((one | other).sum(), 1)


def results_of(predictor, frames, mask):
    state = predictor.init_state(frames)
    predictor.add_new_mask(state, 0, 1, mask)
    return state, {result.frame: result for result in predictor.propagate_results(state, progress=False)}


@pytest.fixture(scope="module")
def clip():
    return draw_clip(14, 96, 128, num_objects=2, seed=3, still=range(6, 10))


@pytest.fixture(scope="module")
def model():
    return build_sam2_video_predictor(device="cpu", image_size=128)


@pytest.fixture(scope="module")
def large():
    predictor = build_sam2_video_predictor(device="cpu", guard=TrackGuard())
    predictor.skip_mad_threshold = 0
    return predictor


@pytest.fixture
def small(model):
    model.guard, model.skipping, model.search_factor = TrackGuard(), SkipOptions(0), None
    return model


def test_an_edit_that_makes_the_loop_go_back_invents_no_cut(small, clip):
    """With look-ahead the frames up to the cut wait; after the edit they are asked for again."""
    small.skipping = SkipOptions(50, "memory_guided", lookahead=6)
    frames = [*clip.frames[:9], *(255 - frame for frame in clip.frames[9:14])]
    state = small.init_state(frames)
    small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    cuts = []
    for result in small.propagate_results(state, progress=False):
        cuts += [result.frame] * result.scene_cut
        if result.frame in (3, 7, 8):
            small.add_new_mask(state, result.frame, result.frame, clip.labels[0] == 2)
    assert cuts == [9]
    assert state.scene_cuts == [9]


def test_streams_remember_a_cut_as_long_as_clips_do(small, monkeypatch):
    """Gone with the cut, and back elsewhere long after it."""
    small.guard = TrackGuard(most_leap=0.5)
    see_discs(monkeypatch, small, lambda t: (6, 16) if t < 3 else None if t < 30 else (26, 16))
    frames = [*[GREY] * 3, *[RED] * 33]
    _, results = results_on(small, frames)
    with small.stream(color="rgb") as stream:
        stream.prompt(1, mask=np.ones((96, 128), bool))
        live = [stream.step(frame) for frame in frames]
    assert [t for t in results if results[t].scene_cut] == [3]
    assert [t for t, result in enumerate(live) if result.scene_cut] == [3]
    statuses = [results[t][1].status for t in results]
    assert statuses == [result[1].status for result in live]
    assert statuses[30:] == ["tracked"] * len(statuses[30:])


def test_cuts_between_frames():
    state = VideoState(None, None, None)
    for t, is_cut in ((9, True), (4, True), (4, True), (7, True), (7, False), (5, False)):
        state.note_scene(t, is_cut)
    assert state.scene_cuts == [4, 9]
    assert [state.has_cut(3, t) for t in (2, 3, 4, 5)] == [False, False, True, True]
    assert [state.has_cut(t, 3) for t in (2, 3, 4, 5)] == [False, False, True, True]
    assert [state.has_cut(4, t) for t in (8, 9)] == [False, True]
    assert not state.has_cut(9, 99)


def test_a_cut_is_on_record_and_forgets_places(large):
    """The object is elsewhere in the new scene, where it may be."""
    here, far = disc(80, 90), disc(330, 150)
    one, other = backdrop(1).astype(np.uint8), (backdrop(2) * (1, 0.5, 0.2)).astype(np.uint8)
    one[here] = other[far] = COLOUR
    joined = [*[one] * 6, *[other] * 4]
    state, results = results_of(large, joined, here)
    assert [t for t in results if results[t].scene_cut] == [6]
    assert state.scene_cuts == [6]
    found = results[6][1]
    assert overlap(found.mask, far) > 0.5  # else there is nothing to see here
    assert found.status == "tracked"
    large.guard = TrackGuard(cut_distance=1)
    state, results = results_of(large, joined, here)
    assert not any(results[t].scene_cut for t in results)
    assert results[6][1].status == "suspect"


@pytest.mark.parametrize("gate", [SkipOptions(1e6), SkipOptions(50, "memory_guided", lookahead=6)])
def test_a_scene_begins_with_a_key_frame_that_says_nothing_of_frames_before(small, clip, gate):
    """Gates that would skip all: the frames before the cut have the masks of their own key frame."""
    small.skipping, small.guard = gate, TrackGuard(least_object_score=0, least_predicted_iou=0)
    frames = [*clip.frames[:5], *(255 - frame for frame in clip.frames[5:10])]
    state = small.init_state(frames)
    small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    shown = track(small, state)
    actions = {d.frame: (d.action, d.reason) for d in state.decisions}
    assert actions[5] == ("processed", "scene cut")
    assert {actions[t][0] for t in range(1, 5)} == {"warped" if gate.lookahead else "reused"}
    state = small.init_state(frames[:5])
    small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    small.skipping = SkipOptions(gate.threshold, gate.strategy)
    before = track(small, state)
    assert all(torch.allclose(shown[t], before[t]) for t in range(5))


def test_a_run_that_goes_on_notices_a_cut_on_its_first_frame(small, clip):
    frames = [*clip.frames[:5], *(255 - frame for frame in clip.frames[5:10])]
    state = small.init_state(frames)
    small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    track(small, state, max_frame_num_to_track=4)
    track(small, state, start_frame_idx=5)
    assert state.scene_cuts == [5]
    back = {r.frame: r for r in small.propagate_results(state, 9, reverse=True, progress=False)}
    assert set(back) == set(range(10))
    assert state.scene_cuts == [5]
    assert [t for t in back if back[t].scene_cut] == [4]  # backwards the other scene begins there


def test_a_new_scene_is_searched_everywhere(small, clip):
    small.search_factor = 1.25
    frames = [*clip.frames[:5], *(255 - frame for frame in clip.frames[5:10])]
    state = small.init_state(frames, keep="all")
    small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    track(small, state)
    region = state.track(1).region
    assert region(4).width < 128
    assert (region(5).width, region(5).height) == (128, 96)


def test_streams_keep_the_last_cut_only(small):
    frames = [*[GREY] * 3, *[RED] * 3, *[GREY] * 3]
    with small.stream(color="rgb") as stream:
        stream.prompt(1, mask=np.ones((96, 128), bool))
        assert [t for t, frame in enumerate(frames) if stream.step(frame).scene_cut] == [3, 6]
        assert stream.state.scene_cuts == [6]


def test_a_stream_notices_a_cut_where_other_options_begin(small):
    with small.stream(color="rgb") as stream:
        stream.prompt(1, mask=np.ones((96, 128), bool))
        stream.step(GREY)
        stream.step(GREY)
        small.skipping = SkipOptions(0.5)
        assert stream.step(RED).scene_cut


def test_a_cut_that_is_known_stays_known_where_nothing_is_compared(small):
    state, _ = results_on(small, [*[GREY] * 3, *[RED] * 3])
    assert state.scene_cuts == [3]
    del state.decision_of[2]  # so that the frame before is none that was tracked
    again = list(small.propagate_results(state, 3, progress=False))
    assert [result.frame for result in again if result.scene_cut] == [3]


def test_without_a_guard_there_are_no_cuts(small):
    state, _ = results_on(small, [*[GREY] * 3, *[RED] * 3])
    small.guard = None
    assert not any(result.scene_cut for result in small.propagate_results(state, 0, progress=False))
    small.reset_state(state)
    assert state.scene_cuts == []


def test_a_run_backwards_that_goes_on_notices_a_cut_on_its_first_frame(small):
    state, _ = results_on(small, [*[GREY] * 4, *[RED] * 4])
    state.scene_cuts.clear()
    track(small, state, start_frame_idx=7, max_frame_num_to_track=3, reverse=True)
    assert state.scene_cuts == []
    track(small, state, start_frame_idx=3, reverse=True)
    assert state.scene_cuts == [4]


def test_cuts_are_saved_and_calibration_leaves_them(small, tmp_path):
    state, _ = results_on(small, frames := [*[GREY] * 3, *[RED] * 5])
    small.save(state, tmp_path / "cut.pt")
    assert small.load(tmp_path / "cut.pt", frames).scene_cuts == [3]
    state.scene_cuts.clear()
    small.calibrate(state, thresholds=[0.1], num_frames=8)
    assert state.scene_cuts == []

"""Tracking with a guard: lost objects are found again, look-alikes are called suspect, and memory does without both."""

import copy
import dataclasses
import functools
import json

import cv2
import numpy as np
import pytest
import torch
from sessions import results_on, see_discs, session, track

from sam2 import exports
from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import FrameDecision, SkipOptions
from sam2.modeling.outputs import FrameRequest
from sam2.results import frame_result
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2.track_guard import TrackGuard
from sam2.utils.drawn_clips import draw_clip
from sam2.video_results import VideoResults
from sam2.video_state import ObjectTrack

HEIGHT, WIDTH = 240, 432
HIDDEN = range(10, 16)  # when the object is not to be seen, and its twin is
COLOUR = (13, 113, 156)


def backdrop(seed=1):
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 6)
    return 60 + 120 * (soft - soft.min()) / (soft.max() - soft.min())


def disc(x, y, radius=22):
    return cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (x, y), radius, 1, -1) > 0


def painted(*discs):
    frame = backdrop()
    for each in discs:
        frame[each] = COLOUR
    return frame.astype(np.uint8)


@pytest.fixture(scope="module")
def behind_a_wall():
    """Frames and masks of a disc that goes behind a wall, and comes out on the other side eight frames later."""
    wall, frames, masks = slice(150, 230), [], []
    for t in range(34):
        mask = disc(60 + 6 * t, 90, 24)
        frame = painted(mask)
        frame[:, wall] = (backdrop()[:, wall] * 0.5 + 30).astype(np.uint8)
        mask[:, wall] = False
        frames.append(frame)
        masks.append(mask)
    return frames, masks


@pytest.fixture(scope="module")
def twins():
    """Frames and masks of a disc, and masks of its twin, which is there while the disc is not, five lengths away."""
    frames, masks, others = [], [], []
    for t in range(24):
        mask, other = disc(80 + 2 * t, 90), disc(280 + t, 150)
        nothing = np.zeros_like(mask)
        mask, other = (nothing, other) if t in HIDDEN else (mask, nothing)
        frames.append(painted(mask, other))
        masks.append(mask)
        others.append(other)
    return frames, masks, others


@pytest.fixture(scope="module")
def clip():
    return draw_clip(14, 96, 128, num_objects=2, seed=3, still=range(6, 10))


def build(**options):
    return build_sam2_video_predictor(device="cpu", **options)


@pytest.fixture(scope="module")
def large():
    return build()


@pytest.fixture(scope="module")
def small():
    return build(image_size=128)


@pytest.fixture(autouse=True)
def as_it_was(large, small):
    for model in (large, small):
        model.guard, model.skipping, model.search_factor = TrackGuard(), SkipOptions(0), None
    yield
    for model in (large, small):
        model.guard, model.skipping, model.search_factor = None, SkipOptions(), None


def results_of(predictor, frames, mask, **options):
    state = predictor.init_state(frames, **options)
    predictor.add_new_mask(state, 0, 1, mask)
    return state, {result.frame: result for result in predictor.propagate_results(state, progress=False)}


def overlap(one, other):
    return (one & other).sum() / max((one | other).sum(), 1)


@pytest.fixture
def doubting(monkeypatch):
    """doubting(predictor, 3, 4): masks of these frames are doubted, of all objects or of those of `obj_ids`."""

    def doubt(predictor, *frames, obj_ids=None):
        def doubts(state, tracks, outputs, frame_idx, *rest):
            ids = {id(track): obj_id for obj_id, track in state.objects.items()}
            is_doubted = [obj_ids is None or ids[id(track)] in obj_ids for track in tracks]
            is_doubted = [
                each and frame_idx not in track.prompted for each, track in zip(is_doubted, tracks, strict=True)
            ]
            return ["a test" if frame_idx in frames and each else None for each in is_doubted]

        monkeypatch.setattr(predictor, "_doubts", doubts)

    return doubt


@pytest.fixture
def seeing(monkeypatch):
    """seeing(predictor, place_of): see `see_discs`."""
    return functools.partial(see_discs, monkeypatch)


# What it is for


def test_an_object_is_found_again_behind_a_wall(large, behind_a_wall):
    frames, masks = behind_a_wall
    state, results = results_of(large, frames, masks[0])
    gone = [t for t, mask in enumerate(masks) if not mask.any()]
    doubted = [t for t in results if results[t][1].status in ("occluded", "suspect")]
    assert doubted[: len(gone)] == gone and doubted[len(gone) :] in ([], [25], [25, 26])  # when it is coming out
    assert {results[t][1].status for t in gone} == {"occluded"}
    assert min(overlap(results[t][1].mask, masks[t]) for t in range(29, 34)) > 0.8
    assert {results[t][1].status for t in range(29, 34)} == {"tracked"}
    assert state.track(1).doubted.spans == [(19, doubted[-1])]  # what memory steps over: no more, no less
    large.guard = None
    state, _ = results_of(large, frames, masks[0])
    assert not state.track(1).doubted.spans


def test_a_twin_is_suspect_and_not_remembered(large, twins):
    frames, masks, others = twins
    large.guard = TrackGuard(most_leap=2.5)  # lengths of 0.8 diameters: the twin is 5 to 6 of them away
    state, results = results_of(large, frames, masks[0])
    assert [t for t in results if results[t][1].status == "suspect"] == list(HIDDEN)
    assert min(overlap(results[t][1].mask, others[t]) for t in HIDDEN) > 0.8  # it is shown nevertheless
    assert [results[t][1].status for t in range(16, 24)] == ["tracked"] * 8
    assert min(overlap(results[t][1].mask, masks[t]) for t in range(16, 24)) > 0.8
    assert state.track(1).doubted.spans == [(10, 15)]
    large.guard = None
    _, results = results_of(large, frames, masks[0])
    assert not [t for t in results if results[t][1].status == "suspect"]


def test_a_mask_of_nearly_all_of_the_frame_is_suspect(large, twins, monkeypatch):
    frames, masks, _ = twins
    keep = type(large)._keep

    def everywhere(self, state, output, region=None):
        (kept,) = keep(self, state, output, region)
        if state.features.keys() == {4}:
            kept.pred_masks = torch.full_like(kept.pred_masks, 5.0)
        return [kept]

    monkeypatch.setattr(type(large), "_keep", everywhere)
    state, results = results_of(large, frames[:8], masks[0])
    assert [results[t][1].status for t in range(8)] == ["prompted", *["tracked"] * 3, "suspect", *["tracked"] * 3]
    assert results[4][1].area == HEIGHT * WIDTH


# Memory


def test_nothing_doubted_is_nothing_changed(small, clip):
    guarded = track(small, session(small, clip, [1, 2]))
    small.guard = None
    plain = track(small, session(small, clip, [1, 2]))
    assert all(torch.equal(guarded[t], plain[t]) for t in plain)


@pytest.mark.parametrize(
    ("start", "doubted", "frame_idx", "read"),
    [(0, (4, 5, 6), 9, [8, 7, 3, 2, 1]), (13, (7, 8, 9), 4, [5, 6, 10, 11, 12])],
)
def test_memory_steps_over_doubted_frames(small, clip, doubting, start, doubted, frame_idx, read):
    doubting(small, *doubted)
    state = session(small, clip, frame_idx=start, keep="all")
    shown = track(small, state, reverse=start > 0)
    assert set(doubted) <= set(shown)
    selection = small._selection(state.track(1).bank, FrameRequest(frame_idx, 14, reverse=start > 0))
    newest_last = [(small.num_maskmem - 1 - k, t) for k, t in enumerate(read)][: small.num_maskmem - 1][::-1]
    assert [(each.distance, each.frame_idx) for each in selection.maps] == [(0, start), *newest_last]
    assert [(each.distance, each.frame_idx) for each in selection.pointers[1:]] == list(enumerate(read, 1))


def test_windows_keep_what_lies_before_the_doubted_frames(small, clip, doubting, caplog):
    """Twenty more frames than memory reaches are doubted; maps of before them are still read."""
    frames = list(clip.frames)
    frames = [*frames[:10], *[frames[9]] * 20, *frames[10:]]
    doubting(small, *range(10, 30))
    shown = {}
    for keep in ("window", "all"):
        state = small.init_state(frames, keep=keep)
        small.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        shown[keep] = track(small, state)
        kept = [t for t, output in state.track(1).propagated.items() if output.maskmem_features is not None]
        assert len(kept) == len(frames) - 1 if keep == "all" else len(kept) <= 3 * small.reach
    assert all(torch.equal(shown["window"][t], shown["all"][t]) for t in shown["all"])
    assert not caplog.records  # nothing was made again


def test_one_objects_doubts_are_no_others(small, clip, doubting):
    small.max_batch_objects = 2
    plain = track(small, session(small, clip, [1, 2]))
    doubting(small, 3, 4, obj_ids=[1])
    shown = track(small, session(small, clip, [1, 2]))
    small.max_batch_objects = None
    alone = track(small, session(small, clip, [1]))
    changed = [t for t in shown if not torch.equal(shown[t][0], plain[t][0])]
    assert changed[0] == 4  # the first that would have read frame 3
    assert all(torch.allclose(shown[t][1], plain[t][1], atol=1e-3) for t in shown)
    assert all(torch.allclose(shown[t][0], alone[t][0], atol=1e-3) for t in shown)


def test_a_batch_remembers_what_its_objects_do(small, clip, doubting):
    doubting(small, 3, 4, 5)
    one_by_one = track(small, session(small, clip, [1, 2]))
    small.max_batch_objects = 2
    together = track(small, session(small, clip, [1, 2]))
    small.max_batch_objects = None
    assert all(torch.allclose(one_by_one[t], together[t], atol=1e-3) for t in one_by_one)


def test_a_correction_is_believed(small, clip, doubting):
    doubting(small, 3, 4, 5)
    state = session(small, clip)
    track(small, state)
    assert state.track(1).doubted.spans == [(3, 5)]
    small.add_new_mask(state, 4, 1, clip.labels[4] == 1)
    small.propagate_in_video_preflight(state)
    assert state.track(1).doubted.spans == [(3, 3), (5, 5)]
    assert 4 in state.track(1).bank.believed


def test_doubts_are_forgotten_with_their_frames(small, clip, doubting):
    doubting(small, 3, 4, 5)
    state = session(small, clip)
    track(small, state)
    state.track(1).forget_propagated(4, 1)
    assert state.track(1).doubted.spans == [(4, 4)]
    state.track(1).forget_propagated(20, 30)
    assert not state.track(1).doubted


def test_steps_of_a_subclass_do_not_get_doubted_frames(clip, doubting):
    given = []

    class Own(SAM2VideoPredictor):
        def _prepare_memory_conditioned_features(self, **kwargs):
            given.append((kwargs["frame_idx"], sorted(kwargs["output_dict"]["non_cond_frame_outputs"])))
            return super()._prepare_memory_conditioned_features(**kwargs)

    target = f"{__name__}.Own"
    globals()["Own"] = Own
    predictor = build(image_size=128, hydra_overrides_extra=[f"model._target_={target}"], guard=TrackGuard())
    predictor.skip_mad_threshold = 0
    doubting(predictor, 3, 4)
    track(predictor, session(predictor, clip))
    assert dict(given)[5] == [1, 2]
    assert dict(given)[7] == [1, 2, 5, 6]


# Together with everything else


@pytest.mark.parametrize(
    "gate", [SkipOptions(0.05), SkipOptions(0.3, "memory_guided"), SkipOptions(0.3, "memory_guided", lookahead=4)]
)
def test_frames_skipped_after_a_doubted_one_are_doubted(small, clip, doubting, gate):
    small.skipping = gate
    state = session(small, clip)
    results = {result.frame: result for result in small.propagate_results(state, progress=False)}
    actions = {d.frame: d.action for d in state.decisions}
    key = next(t for t in actions if actions[t] == "processed" and actions.get(t + 1) in ("reused", "warped"))
    doubting(small, key)
    state = session(small, clip)
    results = {result.frame: result for result in small.propagate_results(state, progress=False)}
    end = next(t for t in range(key + 1, 15) if actions.get(t) not in ("reused", "warped"))
    assert state.track(1).doubted.spans == [(key, end - 1)]
    assert {results[t][1].status for t in range(key, end)} == {"suspect"}
    known = [small._result(state, answer) for answer in _known(state, range(key, end))]
    assert {result[1].status for result in known} == {"suspect"}


def _known(state, frames):
    from sam2.video_propagation import known_answer

    return [known_answer(state, state.decision_of[t]) for t in frames]


def test_what_an_earlier_run_found_is_not_compared_with(small, seeing):
    """Wrong in a run without a guard, right when it is tracked again with one, with look-ahead."""
    seeing(small, lambda t: (6, 16) if t < 3 else (26, 16))
    small.guard = None
    state, _ = results_on(small, STILL[:13])
    small.guard, small.skipping = TrackGuard(), SkipOptions(1e6, "memory_guided", lookahead=4)
    seeing(small, lambda t: (6, 16))
    again = list(small.propagate_results(state, 0, progress=False))
    assert {result[1].status for result in again[1:]} == {"tracked", "warped"}


def test_frames_that_wait_after_a_doubted_one_are_stepped_over(small, seeing, monkeypatch):
    """With look-ahead they are shown after the next key frame has read memory."""
    small.skipping = SkipOptions(1e6, "memory_guided", lookahead=4)
    seeing(small, lambda t: (26, 16) if t == 4 else (6, 16))
    read, select = {}, type(small)._selection

    def watched(bank, request):
        selection = select(small, bank, request)
        read[request.frame_idx] = [(each.frame_idx, each.distance) for each in selection.pointers[1:]]
        return selection

    monkeypatch.setattr(small, "_selection", watched)
    state, results = results_on(small, STILL[:11])
    assert [t for t in results if results[t][1].status == "suspect"] == [4, 5, 6, 7]
    assert read[10] == [(8, 2)]
    seeing(small, lambda t: (26, 16) if t == 8 else (6, 16))
    state, results = results_on(small, STILL[:11])
    assert [t for t in results if results[t][1].status == "suspect"] == [8, 9]
    assert read[10] == [(4, 4)]  # 8 and 9 do not count


@pytest.mark.parametrize("guard", [None, TrackGuard()])
def test_frames_with_nothing_to_track(small, clip, guard):
    """One object is removed, the other's prompt is yet to come."""
    small.guard, small.skipping = guard, SkipOptions()
    state = session(small, clip)
    small.add_new_mask(state, 5, 2, clip.labels[5] == 2)
    frames = []
    for result in small.propagate_results(state, direction="both", progress=False):
        frames.append(result.frame)
        if result.frame == 1:
            small.remove_object(state, 1)
    assert frames == [*range(14)]


def test_the_log_says_why(small, seeing, caplog):
    seeing(small, lambda t: (26, 16) if t == 4 else (6, 16))
    with caplog.at_level("INFO", logger="sam2.video_propagation"):
        results_on(small, STILL[:6])
    (said,) = [record.getMessage() for record in caplog.records if "Doubting" in record.getMessage()]
    assert said.startswith("Doubting object 1 on frame 4: ")
    assert "lengths from where it was 1 frames before" in said


def test_a_stream_compares_with_a_key_frame_of_long_ago_as_the_clip_does(small, seeing):
    """More frames are skipped than a stream keeps. From the prompt it would be too far."""
    small.guard = TrackGuard(most_leap=0.45)
    small.skipping = SkipOptions(1e6, "naive", max_consecutive_skips=20)
    seeing(small, lambda t: (12 + t * 6 // 21, 12))
    frames, mask = STILL[:1] * 50, cv2.circle(np.zeros((96, 128), np.uint8), (50, 38), 14, 1, -1)
    _, results = results_of(small, frames, mask)
    with small.stream(color="rgb") as stream:
        stream.prompt(1, mask=mask)
        live = [stream.step(frame) for frame in frames]
        assert len(stream.state.track(1).propagated) <= 2
    assert [result[1].status for result in live] == [results[t][1].status for t in results]
    assert [results[t][1].status for t in (21, 42, 49)] == ["tracked", "tracked", "reused"]


@pytest.mark.parametrize("factor", [None, 1.25])
def test_a_stream_answers_as_the_clip_does(large, twins, factor):
    frames, masks, _ = twins
    large.search_factor = factor
    _, results = results_of(large, frames, masks[0])
    with large.stream(color="rgb") as stream:
        stream.prompt(1, mask=masks[0])
        for t, frame in enumerate(frames):
            result = stream.step(frame)
            assert np.array_equal(result[1].mask, results[t][1].mask), t
            assert result[1].status == results[t][1].status


def test_streams_stay_small_while_an_object_is_doubted(small, clip, doubting):
    """... for thousands of frames; here for some hundred, on frames of noise."""
    doubting(small, *range(6, 300))
    noise = np.random.default_rng(0)
    with small.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        sizes = []
        for t in range(120):
            stream.step(clip.frames[t] if t < 6 else noise.integers(0, 255, (96, 128, 3), np.uint8))
            known = stream.state.track(1)
            stores = (known.propagated, known.faded, known.carried, known.faded_carried, known.tracked)
            sizes.append(sum(map(len, stores)))
        assert sizes[60] == sizes[119]
        assert [t for t in known.bank.believed if t > 0] == [1, 2, 3, 4, 5]
        assert all(known.propagated[t].maskmem_features is not None for t in range(1, 6))
        assert known.doubted.spans == [(6, 119)]


def test_it_goes_on_after_saving(small, clip, doubting, tmp_path):
    doubting(small, 3, 4, 5)
    whole = track(small, session(small, clip))
    state = session(small, clip)
    for t, _, _ in small.propagate_in_video(state, progress=False):
        if t == 6:
            break
    small.save(state, tmp_path / "half.pt")
    loaded = small.load(tmp_path / "half.pt", list(clip.frames))
    assert loaded.track(1).doubted.spans == [(3, 5)]
    rest = track(small, loaded, start_frame_idx=7)
    assert all(torch.equal(rest[t], whole[t]) for t in range(7, 14))
    other = copy.deepcopy(loaded)
    other.track(1).doubted.add(9)
    assert 9 not in loaded.track(1).doubted


def test_a_region_does_not_follow_a_doubted_mask(large, twins):
    frames, masks, _ = twins
    large.search_factor = 1.25
    state, results = results_of(large, frames, masks[0], keep="all")
    doubted = [t for t in results if t in state.track(1).doubted]
    assert doubted
    regions = [state.track(1).region(t) for t in doubted]
    assert regions[-1].width > 1.5 * regions[0].width
    centres = [region.left + region.width / 2 for region in regions]
    assert max(centres) - min(centres) < 30  # the twin is 200 pixels away
    assert overlap(results[23][1].mask, masks[23]) > 0.8


STILL = [np.full((96, 128, 3), 90, np.uint8)] * 40


def test_with_look_ahead_a_mask_is_not_compared_with_what_follows_from_it(small, seeing):
    """The network sees a leap; frames that are shown before it do not know."""
    small.skipping = SkipOptions(1e6, "memory_guided", lookahead=4)
    seeing(small, lambda t: (6, 16) if t < 6 else (26, 16))
    state, results = results_on(small, STILL[:11])
    actions = {d.frame: d.action for d in state.decisions}
    assert [t for t in actions if actions[t] in ("processed", "prompted")] == [0, 4, 8, 10]
    assert [t for t in results if results[t][1].status == "suspect"] == [8, 9, 10]
    assert all(results[t][1].box.x1 < 60 for t in range(1, 8))
    small.guard = None
    state, results = results_on(small, STILL[:11])
    assert results[7][1].box.x1 > 60  # blended from both sides


def test_objects_that_are_gone_are_blended_as_ever(small, seeing):
    small.skipping = SkipOptions(1e6, "memory_guided", lookahead=4)
    seeing(small, lambda t: (6, 16) if t < 6 else None)
    shown = {}
    for small.guard in (TrackGuard(), None):
        _, shown[small.guard] = results_on(small, STILL[:11])
    guarded, plain = shown.values()
    assert all(np.array_equal(guarded[t][1].mask, plain[t][1].mask) for t in plain)


def test_copies_are_no_evidence_of_their_own(small, seeing):
    """A thing that drifts by a fifth of its length a frame, of which every ninth frame is seen."""
    small.skipping = SkipOptions(1e6, "naive", max_consecutive_skips=8)
    seeing(small, lambda t: (4 + t * 26 // 39, 16))
    state, results = results_on(small, STILL)
    assert [d.frame for d in state.decisions if d.action == "processed"] == [9, 18, 27, 36]
    assert not state.track(1).doubted
    seeing(small, lambda t: (4 if t < 9 else 20, 16))  # four lengths at once
    state, _ = results_on(small, STILL[:12])
    assert state.track(1).doubted.spans == []  # nine frames are long enough for that
    small.skipping = SkipOptions(0)
    state, _ = results_on(small, STILL[:12])
    assert list(state.track(1).doubted)[:1] == [9]


def test_calibration_leaves_doubts_as_they_are(small, seeing):
    seeing(small, lambda t: (6, 16) if t % 7 else (26, 16))
    state, _ = results_on(small, STILL[:12])
    before = state.track(1).doubted.spans
    assert before
    small.guard = TrackGuard(most_leap=1e3)
    small.calibrate(state, thresholds=[0.1], num_frames=12)
    assert state.track(1).doubted.spans == before


def test_tracking_again_without_a_guard_believes_what_it_passes(small, clip, doubting):
    doubting(small, 3, 4, 9)
    state = session(small, clip)
    track(small, state)
    assert list(state.track(1).doubted) == [3, 4, 9]
    doubting(small)
    track(small, state, start_frame_idx=4)
    assert list(state.track(1).doubted) == [3]


def test_both_directions_doubt_by_what_was_believed_on_their_way(small, seeing):
    seeing(small, lambda t: (26, 16) if t in (3, 9) else (6, 16))
    state = small.init_state(STILL[:13])
    small.add_new_mask(state, 6, 1, np.ones((96, 128), bool))
    results = {r.frame: r for r in small.propagate_results(state, direction="both", progress=False)}
    assert [t for t in results if results[t][1].status == "suspect"] == [3, 9]
    again = {r.frame: r for r in small.propagate_results(state, 12, reverse=True, progress=False)}
    assert [t for t in again if again[t][1].status == "suspect"] == [9, 3]


def test_frames_deleted_under_upstreams_names_are_not_doubted(small, clip, doubting):
    doubting(small, 3, 4, 5)
    state = session(small, clip)
    track(small, state)
    outputs = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    outputs.pop(4)
    del outputs[5]
    assert list(state.track(1).doubted) == [3]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_believed_frame_is_one_the_network_saw(reverse):
    known = ObjectTrack()
    step = -1 if reverse else 1
    known.prompted = {0: None}
    known.propagated = dict.fromkeys((step * 10, step * 12))
    known.faded, known.carried = {step * 5: None}, dict.fromkeys((step * 11, step * 13))
    known.doubted.add(step * 12)
    assert known.last_believed(step * 14, reverse) == step * 10
    assert known.last_believed(step * 9, reverse) == step * 5
    assert known.last_believed(step * 90, reverse) == step * 10  # far beyond what is looked through one by one
    assert known.last_believed(0, reverse) is None


# Around it


def test_results_keep_it(large, twins, tmp_path):
    frames, masks, _ = twins
    large.guard = TrackGuard(most_leap=2.5)
    _, results = results_of(large, frames[:14], masks[0])
    collected = VideoResults.collect(results.values())
    collected.save(tmp_path / "all.json", "json")
    loaded = VideoResults.load(tmp_path / "all.json")
    assert [loaded[t][1].status for t in loaded] == [results[t][1].status for t in results]
    assert "scene_cut" not in (tmp_path / "all.json").read_text()  # as it was before there were cuts
    cut = VideoResults.collect(dataclasses.replace(result, scene_cut=t == 5) for t, result in results.items())
    cut.save(tmp_path / "cut.json", "json")
    assert [t for t, result in VideoResults.load(tmp_path / "cut.json").items() if result.scene_cut] == [5]


def test_suspects_have_a_question_mark_in_the_labelled_video(monkeypatch):
    names = []
    monkeypatch.setattr(
        exports, "draw_objects", lambda picture, drawn, owner: names.extend(each.name for each in drawn)
    )
    masks = torch.ones(2, 1, 8, 8)
    decision = FrameDecision(0, "processed", 0.0, "", 0.0)
    result = frame_result(decision, [7, 9], masks, [5, 5], [1, 1], statuses=["tracked", "suspect"])
    exports._labelled_frame(VideoResults.collect([result]), {7: 1, 9: 2}, 0, np.zeros((8, 8, 3), np.uint8))
    assert names == ["7", "9?"]


def test_sessions_of_before_there_were_guards_are_read(small, clip, tmp_path):
    state = session(small, clip)
    track(small, state, max_frame_num_to_track=5)
    small.save(state, tmp_path / "new.pt")
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    assert content["version"] == 4
    content["version"] = 3
    del content["scene_cuts"]
    for _, stored in content["objects"]:
        del stored["doubted"]
    torch.save(content, tmp_path / "old.pt")
    new, old = (small.load(tmp_path / name, list(clip.frames)) for name in ("new.pt", "old.pt"))
    assert not old.track(1).doubted and old.scene_cuts == []
    shown = [track(small, each, start_frame_idx=6) for each in (new, old)]
    assert all(torch.equal(shown[0][t], shown[1][t]) for t in range(6, 14))


def test_builders_take_a_guard():
    guard = TrackGuard(most_leap=2)
    assert build(guard=guard).guard == guard
    overrides = ["++model.guard._target_=sam2.track_guard.TrackGuard", "++model.guard.most_growth=5"]
    assert build(hydra_overrides_extra=overrides).guard == TrackGuard(most_growth=5)
    assert build(hydra_overrides_extra=overrides, guard=guard).guard == guard
    assert build().guard is None
    assert json.dumps(
        dataclasses.asdict(TrackGuard(np.float32(0.5), cut_distance=np.float64(0.5), most_leap=np.int64(2)))
    )
    with pytest.raises(TypeError, match="guard must be a TrackGuard, or None for none, got True"):
        build(guard=True)

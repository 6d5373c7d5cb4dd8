"""Skipping inside propagation: what is skipped, what never is, and what is on record."""

import logging

import numpy as np
import pytest
import torch
from sessions import track

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import RecordedMasks, SkipOptions, decision_table, play_through, skip_rate
from sam2.utils.change_detection import GateFrame, KeyFrame, Verdict
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.mask_carrier import SmallFrame

HEIGHT, WIDTH, LENGTH = 96, 128, 12
STILL = range(4, 8)


class Alternate:
    """Skips every frame but each third one."""

    def decide(self, evidence):
        return Verdict(evidence.frame_idx % 3 != 0, 0.5, "a test")


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3, still=STILL, motion="fast")


@pytest.fixture(scope="module")
def model():
    return build_sam2_video_predictor(
        "nano", None, device="cpu", hydra_overrides_extra=["++model.image_size=128"]
    ).eval()  # fmt: skip


@pytest.fixture
def predictor(model):
    """The embedded model at 128 pixels, with a threshold that only still frames stay below."""
    model.load_state_dict(build_sam2_video_predictor(device="cpu").state_dict())
    model.skip_mad_threshold = 0.01
    yield model
    model.skipping = SkipOptions()


@pytest.fixture
def state(predictor, clip):
    state = predictor.init_state(list(clip.frames), keep="all")  # the model's memory is shorter than the clip
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.add_new_mask(state, 0, 2, clip.labels[0] == 2)
    yield state
    state.frames.close()


def actions(state):
    return {d.frame: d.action for d in state.decisions}


@pytest.mark.parametrize("off", [0, None, 0.0])
def test_off_is_sam_2_bit_for_bit(predictor, clip, off):
    answers = []
    for settings in ({"skip_mad_threshold": off}, {"skip_mad_threshold": 1e-9}):
        for name, value in settings.items():
            setattr(predictor, name, value)
        state = predictor.init_state([*clip.frames[:4], *clip.frames[8:]])  # nothing stands still
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        answers.append(track(predictor, state))
        assert set(actions(state).values()) == {"prompted", "processed"}
    assert all(torch.equal(answers[0][t], answers[1][t]) for t in answers[0])


def test_by_default_frames_below_the_published_threshold_are_copied():
    options = build_sam2_video_predictor(device="cpu").skipping
    assert options == SkipOptions(0.05, "naive", "auto", 0, None) and options.is_on and not options.warps


def test_still_frames_reuse_the_last_processed_masks(predictor, state):
    masks = track(predictor, state)
    assert [t for t, action in actions(state).items() if action == "reused"] == list(STILL)
    assert all(torch.equal(masks[t], masks[3]) for t in STILL)
    assert not torch.equal(masks[8], masks[3])


def test_a_skipped_frame_is_never_encoded_nor_made_a_float_image(predictor, state, monkeypatch):
    encoded, prepared = [], []
    encode, prepare = predictor.forward_image, type(state.frames).__getitem__
    monkeypatch.setattr(predictor, "forward_image", lambda image: encoded.append(1) or encode(image))
    monkeypatch.setattr(type(state.frames), "__getitem__", lambda self, i: prepared.append(i) or prepare(self, i))
    track(predictor, state)
    assert len(encoded) == LENGTH - len(STILL) - 1, "the first frame was encoded when it was prompted"
    assert not set(prepared) & set(STILL)


def test_a_skipped_frame_is_in_no_memory_and_its_masks_can_be_asked_for(predictor, state):
    masks = track(predictor, state)
    for obj_id in (1, 2):
        known = state.track(obj_id)
        assert not set(known.bank.prompted | known.bank.propagated) & set(STILL)
        assert sorted(known.carried) == list(STILL)
    masks[5].numpy()[...] = masks[6].numpy()  # what was yielded is the caller's: changing it harms no session
    _, _, shown = predictor.clear_all_prompts_in_frame(state, 5, 1)
    torch.testing.assert_close(shown, masks[6])


def test_a_frame_that_was_tracked_and_is_then_skipped_leaves_memory(predictor, state):
    predictor.skip_mad_threshold = 0
    track(predictor, state)
    assert 5 in state.track(1).propagated
    predictor.skip_mad_threshold = 0.01
    track(predictor, state)
    assert 5 not in state.track(1).propagated and 5 in state.track(1).carried
    predictor.skip_mad_threshold = 0
    track(predictor, state)
    assert 5 in state.track(1).propagated and not state.track(1).carried


def test_a_prompted_frame_is_never_skipped(predictor, state, clip):
    predictor.add_new_mask(state, 5, 2, clip.labels[5] == 2)
    predictor.skip_mad_threshold = 1000
    track(predictor, state)
    prompted = [t for t, action in actions(state).items() if action == "prompted"]
    assert prompted == [0, 5]
    assert all(action == "reused" for t, action in actions(state).items() if t not in (0, 5))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_frames_than_allowed_are_skipped_in_a_row(predictor, state, limit):
    predictor.skip_mad_threshold, predictor.max_consecutive_skips = 1000, limit
    track(predictor, state)
    processed = [t for t, action in actions(state).items() if action != "reused"]
    assert processed == list(range(0, LENGTH, limit + 1))
    assert any("limit of" in d.reason for d in state.decisions)


def test_a_change_inside_the_loop_makes_the_next_frame_a_key_frame(predictor, state, clip):
    predictor.skip_mad_threshold = 1000
    for t, obj_ids, logits in predictor.propagate_in_video(state, progress=False):
        assert len(obj_ids) == len(logits)
        if t == 2:
            predictor.remove_object(state, 2)
        if t == 6:
            predictor.add_new_mask(state, 6, 3, clip.labels[6] == 2)
    assert [t for t, action in actions(state).items() if action == "processed"] == [3, 7]


def test_backward_tracking_skips_too(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 11, 1, clip.labels[11] == 1)
    masks = track(predictor, state, start_frame_idx=11, reverse=True)
    assert list(masks) == list(range(11, -1, -1))
    # Frames 3 to 7 are alike; backwards, 7 is the first of them.
    assert [t for t, action in actions(state).items() if action == "reused"] == [6, 5, 4, 3]


def test_a_correction_on_a_skipped_frame_refines_what_was_shown_there(predictor, state, clip, monkeypatch):
    masks = track(predictor, state)
    seen = []
    segment = predictor.segment
    monkeypatch.setattr(predictor, "segment", lambda *args: seen.append(args[2]) or segment(*args))
    _, _, answer = predictor.add_new_points_or_box(state, 5, 1, points=[[2, 2]], labels=[0])
    assert seen[0].reads_memory and seen[0].previous_logits is not None
    torch.testing.assert_close(answer[1], masks[5][1], msg="the other object stays as it was shown")


def test_warped_frames_follow_the_object(predictor, clip):
    moving = draw_clip(6, HEIGHT, WIDTH, num_objects=1, seed=3, motion="smooth")
    predictor.skip_strategy, predictor.skip_mad_threshold = Alternate(), 1
    errors = {}
    for warp in ("flow", None):
        predictor.skip_warp = warp
        state = predictor.init_state(list(moving.frames))
        predictor.add_new_mask(state, 0, 1, moving.labels[0] == 1)
        masks = track(predictor, state)
        assert actions(state)[2] == ("warped" if warp else "reused")
        errors[warp] = np.mean([((masks[t][0, 0].numpy() > 0) != (moving.labels[t] == 1)).mean() for t in (2, 5)])
    assert errors["flow"] < errors[None]


def test_look_ahead_yields_every_frame_once_in_order(predictor, state):
    predictor.skip_strategy, predictor.skip_mad_threshold, predictor.skip_lookahead = "memory_guided", 50, 5
    assert list(track(predictor, state)) == list(range(LENGTH))
    assert list(actions(state)) == list(range(LENGTH))
    assert [t for t, action in actions(state).items() if action == "processed"] == [5, 10, 11]


@pytest.fixture
def ahead(predictor):
    """Look-ahead that takes every fifth frame for a key frame."""
    predictor.skipping = SkipOptions(50.0, "memory_guided", lookahead=5)
    return predictor


def edited(predictor, state, frame_idx, edit):
    """The results by frame, `edit` being made after one was shown."""
    results = {}
    for result in predictor.propagate_results(state, progress=False):
        results[result.frame] = result
        if result.frame == frame_idx:
            edit()
    assert list(results) == list(range(LENGTH)) == list(actions(state))
    return results


def test_with_look_ahead_an_object_added_in_the_loop_is_there_on_the_next_frame(ahead, state, clip):
    results = edited(ahead, state, 2, lambda: ahead.add_new_mask(state, 2, 3, clip.labels[2] > 0))
    assert [t for t, result in results.items() if 3 in result] == list(range(3, LENGTH))
    assert [t for t, action in actions(state).items() if action == "processed"] == [3, 8, 11]
    assert set(results[4]) == {1, 2, 3} and results[4][3].status == "warped"


@pytest.mark.parametrize("t", [4, 5])  # of the frames that were decided on already, one that waits and the key frame
def test_with_look_ahead_a_prompt_on_a_frame_to_come_is_shown_there(ahead, state, clip, t):
    results = edited(ahead, state, 2, lambda: ahead.add_new_mask(state, t, 2, clip.labels[t] == 1))
    assert results[t][2].status == "prompted" and actions(state)[t] == "prompted"
    assert np.mean(results[t][2].mask == (clip.labels[t] == 1)) > 0.98
    assert list(state.track(2).prompted) == [0, t]


def test_with_look_ahead_an_id_that_is_given_anew_is_the_new_object_at_once(ahead, state, clip):
    def replace():
        ahead.remove_object(state, 1)
        ahead.add_new_mask(state, 2, 1, clip.labels[2] == 2)

    results = edited(ahead, state, 2, replace)
    assert sorted(state.track(1).tracked) == list(range(3, LENGTH))
    assert list(results[3]) == [2, 1]
    first, second = results[3][1].mask, results[3][2].mask
    assert (first & second).sum() > 0.8 * (first | second).sum()


def test_with_look_ahead_an_edit_finds_the_session_where_it_was_shown(ahead, clip):
    def run(keep, edit):
        with ahead.open(list(clip.frames), keep=keep) as state:
            ahead.add_new_mask(state, 0, 1, clip.labels[0] == 1)
            for t, _, logits in ahead.propagate_in_video(state, progress=False):
                assert max(state.track(1).tracked) == t, "the key frame beyond is none of the session's yet"
                if t == 7 and edit:
                    ahead.add_new_points_or_box(state, 6, 1, points=[[40, 40]], labels=[0])
                yield logits

    window, everything = (list(run(keep, True)) for keep in ("window", "all"))
    undisturbed = list(run("all", False))
    assert [torch.equal(a, b) for a, b in zip(window, everything, strict=True)] == [True] * LENGTH
    assert [torch.equal(a, b) for a, b in zip(window, undisturbed, strict=True)][:8] == [True] * 8


def test_with_look_ahead_and_both_directions_each_object_keeps_its_own_masks(ahead, clip):
    with ahead.open(list(clip.frames), keep="all") as state:
        for obj_id, t in ((1, 7), (2, 3)):
            ahead.add_new_mask(state, t, obj_id, clip.labels[t] == obj_id)
        assert list(track(ahead, state, direction="both")) == list(range(LENGTH))
        for t in (4, 5, 6):  # forward, only the second object is tracked there
            assert actions(state)[t] == "warped"
            assert state.track(1).tracked[t] is True and state.track(2).tracked[t] is False


def test_your_own_strategy_decides(predictor, state):
    predictor.skip_strategy = Alternate()
    track(predictor, state)
    assert [t for t, action in actions(state).items() if action == "processed"] == [3, 6, 9]
    assert state.decisions[1].reason == "a test" and state.decisions[1].change == 0.5


def test_what_your_strategy_measures_in_numpy_or_torch_is_on_record_as_a_number(predictor, state):
    class Measured:
        def decide(self, evidence):
            return Verdict(False, np.float32(0.25) if evidence.age % 2 else torch.tensor(0.5), "measured")

    predictor.skip_strategy = Measured()
    list(predictor.propagate_in_video(state, max_frame_num_to_track=2, progress=False))
    assert [type(decision.change) for decision in state.decisions] == [float] * 3


def test_decisions_are_on_record_as_text_too(predictor, state, caplog):
    with caplog.at_level(logging.INFO, logger="sam2"):
        track(predictor, state)
    assert [d.frame for d in state.decisions] == list(range(LENGTH))
    assert all(d.seconds > 0 for d in state.decisions)
    assert skip_rate(state.decisions) == len(STILL) / LENGTH and skip_rate([]) == 0
    table = state.decision_table().splitlines()
    assert len(table) == LENGTH + 1 and table[5].split()[:2] == ["4", "reused"]
    assert decision_table([]).count("\n") == 0
    assert "Skipping frame 4 due to low MAD (0.00)" in caplog.messages
    predictor.reset_state(state)
    assert state.decisions == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("skip_mad_threshold", -0.1, "skip_mad_threshold must be a finite number of 0 or more, got -0.1"),
        ("skip_mad_threshold", float("nan"), "skip_mad_threshold must be a finite number"),
        ("skip_mad_threshold", "low", "skip_mad_threshold must be a number of 0 or more, or None, got 'low'"),
        ("skip_strategy", "clever", "skip_strategy must be one of naive, mask_aware, memory_guided, got 'clever'"),
        ("skip_strategy", object(), "skip_strategy must be a name or an object with a method decide"),
        ("skip_warp", "affine", 'skip_warp must be "flow", "auto" or None'),
        ("skip_lookahead", 3, "skip_lookahead needs skip_strategy 'memory_guided'"),
        ("skip_lookahead", -1, "skip_lookahead must be a whole number of 0 or more"),
        ("max_consecutive_skips", 0, "max_consecutive_skips must be at least 1"),
        ("max_consecutive_skips", 1.5, "max_consecutive_skips must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_they_are_set(predictor, name, value, message):
    before = getattr(predictor, name)
    with pytest.raises(ValueError, match=message):
        setattr(predictor, name, value)
    assert getattr(predictor, name) == before


def test_options_can_come_from_the_config():
    overrides = [
        "++model.image_size=64", "++model.skip_mad_threshold=0.1", "++model.skip_strategy=memory_guided",
        "++model.skip_lookahead=4", "++model.max_consecutive_skips=7",
    ]  # fmt: skip
    predictor = build_sam2_video_predictor("nano", device="cpu", hydra_overrides_extra=overrides)
    assert predictor.skipping == SkipOptions(0.1, "memory_guided", "auto", 4, 7)
    assert predictor.skipping.warps


def test_runs_side_by_side_prepare_each_frame_once_and_answer_it_in_order():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    asked = []

    def frame_at(t):
        asked.append(t)
        return GateFrame(picture)

    def key_frame(t, frame):
        return KeyFrame(t, frame, np.full((1, 64, 64), float(t + 1), np.float32), np.ones(1), np.ones(1))

    options = [
        SkipOptions(50.0, "memory_guided", lookahead=5),
        SkipOptions(50.0, "naive", max_consecutive_skips=2),
    ]
    answers = list(play_through(range(12), frame_at, RecordedMasks(key_frame, prompted={0}), options))
    assert asked == list(range(12))
    assert [[answer.decision.frame for answer in row] for row in answers] == [[t, t] for t in range(12)]
    assert [t for t, row in enumerate(answers) if row[0].logits is None] == [0, 5, 10, 11]
    assert [t for t, row in enumerate(answers) if row[1].logits is None] == [0, 3, 6, 9]
    assert [row[1].logits[0, 0, 0] for row in answers[4:6]] == [4.0, 4.0]  # copied from frame 3


def test_side_by_side_a_run_with_skipping_off_processes_every_frame():
    frame, nothing = np.zeros((8, 8, 3), np.uint8), np.zeros(0, np.float32)
    source = RecordedMasks(lambda t, f: KeyFrame(t, f, nothing.reshape(0, 1, 1), nothing, nothing), prompted={0})
    options = [SkipOptions(0.0), SkipOptions(0.1)]
    answers = list(play_through(range(3), lambda t: GateFrame(frame), source, options))
    actions = [[answer.decision.action for answer in row] for row in answers]
    assert actions == [["prompted", "prompted"], ["processed", "reused"], ["processed", "reused"]]
    assert answers[1][0].decision.reason == "skipping is off"


def test_frames_are_made_small_ahead_only_where_masks_are_carried():
    assert SkipOptions(0.1).prepare is None and SkipOptions(0.0, "memory_guided").prepare is None
    assert (
        SkipOptions(0.1, "memory_guided", warp=None).prepare == SkipOptions(0.1, warp="flow").prepare == SmallFrame.of
    )

"""Finding the threshold for a clip: what is promised is what a real run then does, and nothing else changes."""

import numpy as np
import pytest
import torch

from sam2 import calibration
from sam2.build_sam import build_sam2_video_predictor, packaged_file
from sam2.calibration import CalibrationPoint, calibrate
from sam2.frame_skipping import SkipOptions, skip_rate
from sam2.utils.change_detection import KeyFrame, NaivePolicy
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.video_io import FrameList
from sam2.utils.vos_metrics import score_label_maps

LENGTH = 10
THRESHOLDS = (0.05, 0.2, 0.6)


@pytest.fixture(scope="module")
def model():
    """The embedded model, small."""
    nano = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")
    return build_sam2_video_predictor("nano", nano, device="cpu", hydra_overrides_extra=["++model.image_size=128"])


@pytest.fixture
def predictor(model):
    model.skipping = SkipOptions(strategy="memory_guided")
    return model


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, 96, 128, num_objects=2, seed=3, motion="slow")


@pytest.fixture
def state(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
    yield state
    state.frames.close()


def track(predictor, state, threshold, **options):
    """Masks of every frame, boolean (objects, H, W)."""
    predictor.skip_mad_threshold = threshold
    return [(m > 0)[:, 0].numpy() for _, _, m in predictor.propagate_in_video(state, progress=False, **options)]


def fidelity_of(masks, reference):
    """J&F, each object scored alone."""
    objects = range(len(reference[0]))
    scores = [
        score_label_maps("clip", [m[i].astype(np.uint8) for m in reference], [m[i].astype(np.uint8) for m in masks])
        for i in objects
    ]
    return np.mean([score.scores.mean for score in scores])


# What it finds


def test_the_threshold_it_finds_does_what_it_says(predictor, state):
    found = calibrate(predictor, state, 0.95, thresholds=THRESHOLDS)
    masks = track(predictor, state, found.threshold)
    decisions = state.decisions
    assert found.threshold in THRESHOLDS and found.fidelity >= 0.95
    assert found.skip_rate == skip_rate(decisions) > 0
    assert found.fidelity == pytest.approx(fidelity_of(masks, track(predictor, state, 0)), abs=1e-12)


def test_points_are_those_of_the_gate_with_the_reference_masks_on_key_frames(predictor, state):
    found = calibrate(predictor, state, thresholds=(0.6, 0.05))
    reference = track(predictor, state, 0)
    low_res = [
        np.stack([(track.prompted.get(t) or track.propagated[t]).pred_masks[0, 0] for track in state.objects.values()])
        for t in range(LENGTH)
    ]
    for point in found.points:
        gate = SkipOptions(point.threshold, "memory_guided").gate()
        masks = []
        for t in range(LENGTH):
            frame = state.gate_frame(t)
            skipped = gate.decide(t, frame).action == "warped"
            if skipped:
                logits = torch.from_numpy(gate.answer())[:, None]
                shown = torch.nn.functional.interpolate(logits, (96, 128), mode="bilinear", align_corners=False)
                masks.append((shown[:, 0] > 0).numpy())
            else:
                outputs = [track.prompted.get(t) or track.propagated[t] for track in state.objects.values()]
                ious = np.array([output.ious.item() for output in outputs])
                scores = np.array([output.object_score_logits.item() for output in outputs])
                gate.remember(KeyFrame(t, frame, low_res[t], ious, scores))
                masks.append(None)
        assert point.skip_rate == sum(mask is not None for mask in masks) / LENGTH
        shown = [expected if mask is None else mask for mask, expected in zip(masks, reference, strict=True)]
        assert point.fidelity == pytest.approx(fidelity_of(shown, reference), abs=1e-12)
    assert [point.threshold for point in found.points] == [0.05, 0.6]


def test_it_takes_the_threshold_that_skips_most_of_those_that_keep_the_fidelity(predictor, state):
    found = calibrate(predictor, state, 0.9, thresholds=THRESHOLDS)
    keeping = [point for point in found.points if point.fidelity >= 0.9]
    assert found.threshold == max(keeping, key=lambda point: (point.skip_rate, point.threshold)).threshold
    assert len({point.skip_rate for point in keeping}) > 1


def test_a_threshold_that_breaks_its_promise_gives_way_to_the_next_smaller_one(predictor, state, monkeypatch):
    promised = tuple(CalibrationPoint(threshold, 1.0, 0.5) for threshold in (0.001, 0.05, 50.0))
    monkeypatch.setattr(calibration, "_simulate", lambda *args: promised)
    predictor.skip_strategy = "naive"
    wanted = 0.999
    found = calibrate(predictor, state, wanted, thresholds=(0.001, 0.05, 50.0))
    reference = track(predictor, state, 0)
    assert fidelity_of(track(predictor, state, 50.0), reference) < wanted
    assert found.threshold in (0.0, 0.001) and found.fidelity >= wanted


def test_where_no_threshold_keeps_the_fidelity_it_says_to_skip_nothing(predictor, state):
    found = calibrate(predictor, state, 1.0, thresholds=(0.6, 1.0))
    assert found[:4] == (0.0, 1.0, 0.0, 1.0) and len(found.points) == 2


def test_a_still_clip_is_skipped_but_for_its_prompted_frame_and_gets_faster():
    nano = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")  # at its own size: on smaller pictures masks flicker
    predictor = build_sam2_video_predictor("nano", nano, device="cpu")
    still = draw_clip(8, 96, 128, num_objects=1, seed=1, motion="still")
    state = predictor.init_state(list(still.frames))
    predictor.add_new_mask(state, 0, 1, still.labels[0] == 1)
    predictor.skip_strategy = "naive"
    found = calibrate(predictor, state, thresholds=[0.05])
    assert found.skip_rate == found.points[0].skip_rate == 7 / 8
    assert found.speedup > 2
    state.frames.close()


def test_the_slice_begins_at_the_earliest_prompt_or_where_it_is_told_to(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 4, 1, clip.labels[4] == 1)
    predictor.skip_strategy = "naive"
    everything = [50.0]  # skips all frames but the prompted one, so that the skip rate tells the slice's length
    assert calibrate(predictor, state, 0.01, thresholds=everything).skip_rate == 5 / 6
    assert calibrate(predictor, state, 0.01, num_frames=4, thresholds=everything).skip_rate == 3 / 4
    assert calibrate(predictor, state, 0.01, 3, start_frame_idx=3, thresholds=everything).skip_rate == 1 / 3
    state.frames.close()


class Estimated(FrameList):
    """Declares a number of frames until its end was looked for."""

    declared: int | None = None

    def __len__(self):
        return self.declared or super().__len__()

    def has(self, index):
        if index >= super().__len__():
            self.declared = None
        return index < super().__len__()


@pytest.mark.parametrize("declared", [6, 30])
def test_the_slice_ends_where_the_video_does_whatever_it_declares(predictor, clip, declared):
    predictor.skip_strategy = "naive"
    video = Estimated(list(clip.frames))
    video.declared = declared
    with predictor.open(video) as state:
        predictor.add_new_mask(state, 2, 1, clip.labels[2] == 1)
        assert calibrate(predictor, state, 0.01, thresholds=[50.0]).skip_rate == 7 / 8


def test_options_of_the_predictor_hold_while_it_looks(predictor, state):
    predictor.skip_strategy, predictor.max_consecutive_skips = "naive", 1
    found = calibrate(predictor, state, 0.01, thresholds=[50.0])
    assert found.skip_rate == found.points[0].skip_rate == 1 / 2


def test_looking_ahead_is_played_through_as_it_is_run(predictor, state):
    predictor.skip_lookahead = 4
    found = calibrate(predictor, state, 0.5, thresholds=[50.0])
    assert found.points[0].skip_rate == found.skip_rate == 6 / 10  # frames 0, 4, 8 and 9 are key frames


# What it leaves alone


def test_neither_session_nor_predictor_change(predictor, clip):
    def session(calibrated):
        state = predictor.init_state(list(clip.frames))
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        first = track(predictor, state, 0, max_frame_num_to_track=3)
        predictor.add_new_points_or_box(state, 2, 1, points=[[40, 40]], labels=[1])
        predictor.add_new_mask(state, 1, 2, clip.labels[1] == 2)
        options, decisions = predictor.skipping, state.decisions
        if calibrated:
            predictor.calibrate(state, 0.9, num_frames=6, thresholds=[0.3])
        assert predictor.skipping is options and state.decisions == decisions
        stores = [
            (sorted(t.prompted), sorted(t.propagated), sorted(t.pending_prompted), sorted(t.pending_propagated))
            for t in state.objects.values()
        ]
        memory = [o.maskmem_features is None for t in state.objects.values() for o in t.pending_prompted.values()]
        return stores, memory, [*first, *track(predictor, state, 0)]

    (stores, memory, masks), (untouched_stores, untouched_memory, untouched) = session(True), session(False)
    assert stores == untouched_stores and memory == untouched_memory
    assert all(np.array_equal(a, b) for a, b in zip(masks, untouched, strict=True))


# What it refuses


@pytest.mark.parametrize("fidelity", [0, -0.5, 1.01, float("nan")])
def test_a_fidelity_that_is_no_share_is_refused(predictor, state, fidelity):
    with pytest.raises(ValueError, match="fidelity must be above 0"):
        calibrate(predictor, state, fidelity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 2}, "at least 3 frames"),
        ({"num_frames": -1}, "num_frames must be"),
        ({"start_frame_idx": LENGTH - 2}, "at least 3 frames"),
        ({"start_frame_idx": LENGTH}, "start_frame_idx must be a frame"),
        ({"thresholds": []}, "thresholds must hold"),
        ({"thresholds": [0.1, -0.1]}, "thresholds"),
    ],
)
def test_arguments_out_of_range_are_refused(predictor, state, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(predictor, state, **options)


def test_a_session_without_prompts_is_refused(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    with pytest.raises(RuntimeError, match="nothing to track"):
        calibrate(predictor, state)
    state.frames.close()


def test_a_strategy_without_a_threshold_is_refused(predictor, state):
    predictor.skip_strategy = NaivePolicy(0.1)
    with pytest.raises(ValueError, match="has no threshold to find"):
        calibrate(predictor, state)


def test_a_slice_may_be_longer_than_memory_reaches(predictor):
    long = draw_clip(18, 64, 96, num_objects=1, seed=3, motion="slow")
    state = predictor.init_state(list(long.frames))
    predictor.add_new_mask(state, 0, 1, long.labels[0] == 1)
    assert state.keep == "window"
    (point,) = calibrate(predictor, state, 0.5, thresholds=[0.3]).points
    assert 0 < point.skip_rate < 1
    state.close()


def test_where_the_session_paused_is_not_where_calibration_goes_on(predictor, state):
    predictor.skip_mad_threshold = 0.3
    for t, *_ in predictor.propagate_in_video(state, progress=False):
        if t == 4:
            break
    assert state.paused is not None
    assert calibration._private_copy(state).paused is None
    calibrate(predictor, state, 0.5, start_frame_idx=5, thresholds=[0.3])
    assert state.paused is not None and state.paused.last == 4

"""The measures of change, the policies that decide by them, and the gate around them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.utils.change_detection import (
    STRATEGIES,
    Evidence,
    GateFrame,
    KeyFrame,
    MaskAwarePolicy,
    MemoryGuidedPolicy,
    Motion,
    NaivePolicy,
    SkipGate,
    Verdict,
    check_count,
    make_policy,
    mean_abs_diff,
    pixel_levels,
    should_skip_frame,
)
from sam2.utils.drawn_clips import DrawnClip, Event, draw_clip
from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD


def grey_frame(value: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def key_frame(frame: np.ndarray, *masks: np.ndarray, frame_idx: int = 0) -> KeyFrame:
    logits = np.stack([np.where(mask, 10.0, -10.0) for mask in masks]).astype(np.float32)
    return KeyFrame(frame_idx, GateFrame(frame), logits, np.ones(len(masks)), np.full(len(masks), 5.0))


def evidence_of(*losses: float, likeness: float = 1.0, novelty: float = 0.0, is_seen: bool = True) -> Evidence:
    """A run of skipped frames with these predicted losses of one object, the last one to be decided on."""
    motions = [Motion(np.array([loss]), np.array([likeness]), novelty) for loss in losses]
    key = key_frame(grey_frame(0), np.full((64, 64), is_seen))
    return Evidence(len(losses), len(losses), GateFrame(grey_frame(0)), key, motions[:-1], lambda: motions[-1])


def clip_key(clip: DrawnClip, t: int) -> KeyFrame:
    return key_frame(clip.frames[t], *(clip.labels[t] == i + 1 for i in range(2)), frame_idx=t)


def key_frames_of(clip: DrawnClip, gate: SkipGate) -> list[int]:
    """Run the gate over a clip whose key frames show its labels; the frames that were processed."""
    gate.remember(clip_key(clip, 0))
    processed = [0]
    for t in range(1, len(clip.frames)):
        key = clip_key(clip, t)
        if gate.decide(t, key.frame).action == "processed":
            gate.remember(key)
            processed.append(t)
    return processed


def test_the_measure_counts_whole_standard_deviations_truncated_toward_zero():
    """Red levels -2.12, -0.99, 0.99, 2.25 of the values 0, 66, 181, 255 become -2, 0, 0, 2."""
    frame = np.zeros((1, 4, 3), np.uint8)
    frame[0, :, 0] = 0, 66, 181, 255
    levels = pixel_levels(frame)[0, :, 0].astype(int)
    assert (levels - levels[1]).tolist() == [-2, 0, 0, 2]
    assert mean_abs_diff(frame[:, :1], frame[:, 3:]) == pytest.approx(4 / 3)


def test_the_table_equals_normalising_floats_for_every_value():
    values = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    mean, std = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
    expected = ((values.astype(np.float32) / np.float32(255) - mean) / std).astype(np.int16)
    np.testing.assert_array_equal(pixel_levels(values).astype(int) + expected.min(), expected)


def test_normalised_float_tensors_measure_the_same():
    first, second = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    floats = [(torch.from_numpy(f).permute(2, 0, 1) / 255 - mean) / std for f in (first, second)]
    assert mean_abs_diff(*floats) == pytest.approx(mean_abs_diff(first, second), rel=1e-6)
    assert mean_abs_diff(torch.from_numpy(first), torch.from_numpy(second)) == mean_abs_diff(first, second)


def test_a_frame_is_skipped_strictly_below_the_threshold():
    assert should_skip_frame(grey_frame(0), grey_frame(0), 0.01)
    assert not should_skip_frame(grey_frame(0), grey_frame(0), 0)
    # Black is -2, -2, -1 and white 2, 2, 2: a difference of 11 / 3.
    assert not should_skip_frame(grey_frame(0), grey_frame(255), 3.66)
    assert should_skip_frame(grey_frame(0), grey_frame(255), 3.67)


@pytest.mark.parametrize(
    "previous, current, error, message",
    [
        (grey_frame(0), grey_frame(0, width=32), ValueError, "of one shape"),
        (grey_frame(0).astype(np.float32), grey_frame(0), TypeError, "frame must be uint8"),
        (grey_frame(0)[..., 0], grey_frame(0)[..., 0], ValueError, r"frame must be \(H, W, 3\)"),
    ],
)
def test_the_measure_refuses_frames_it_cannot_compare(previous, current, error, message):
    with pytest.raises(error, match=message):
        mean_abs_diff(previous, current)


@pytest.mark.parametrize("clip", ["blackswan", "paragliding-launch"])
def test_naive_decisions_are_the_published_ones(shared, clip):
    golden = json.loads((shared / "golden" / "published_gate.json").read_text())[clip]
    paths = sorted((shared / "davis_mini" / "JPEGImages" / "480p" / clip).iterdir())
    frames = [GateFrame(np.asarray(Image.open(path).convert("RGB").resize((1024, 1024)))) for path in paths]
    for threshold, expected in golden.items():
        if threshold == "consecutive_mad":
            continue
        gate = SkipGate(NaivePolicy(float(threshold)))
        logits, ones = np.ones((1, 4, 4), np.float32), np.ones(1)
        gate.remember(KeyFrame(0, frames[0], logits, ones, ones))
        skipped, measured = [], []
        for t in range(1, len(frames)):
            decision = gate.decide(t, frames[t])
            measured.append(decision.change)
            if decision.action == "processed":
                gate.remember(KeyFrame(t, frames[t], logits, ones, ones))
            else:
                skipped.append(t)
        assert skipped == expected["skipped"]
        np.testing.assert_allclose(measured, expected["mad"], atol=1e-6)


def test_mask_aware_sees_a_small_object_that_the_whole_picture_hides():
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    moved = grey_frame(0)
    moved[30:34, 30:34] = 255
    gates = [SkipGate(policy) for policy in (NaivePolicy(0.1), MaskAwarePolicy(0.1))]
    for gate in gates:
        gate.remember(key_frame(grey_frame(0), mask, np.eye(64, dtype=bool)[::-1] & (np.arange(64) < 8)))
    naive, mask_aware = (gate.decide(1, GateFrame(moved)) for gate in gates)
    assert naive.action == "reused" and naive.change == pytest.approx(16 / 64**2 * 11 / 3)
    # 4 x 4 pixels that changed, in surroundings that reach 2 pixels further on each side.
    assert mask_aware.action == "processed" and mask_aware.change == pytest.approx(16 / 64 * 11 / 3)


def test_mask_aware_looks_everywhere_for_an_object_that_is_missing():
    gate = SkipGate(MaskAwarePolicy(0.5))
    gate.remember(key_frame(grey_frame(0), np.zeros((64, 64), bool)))
    assert gate.decide(1, GateFrame(grey_frame(255))).action == "processed"


def test_predicted_losses_add_up_to_the_threshold():
    policy = MemoryGuidedPolicy(0.5)
    verdict = policy.decide(evidence_of(0.2, 0.25))
    assert verdict.skip and verdict.reason == "low predicted loss (0.450)"
    assert verdict.change == pytest.approx(0.45)
    assert policy.decide(evidence_of(0.2, 0.25, 0.1)).skip is False


def test_with_lookahead_a_frame_counts_with_its_mirror_image():
    """1, 2, 3, 4 tenths from one side and the same from the other: 1 + 2 + 2 + 1."""
    policy = MemoryGuidedPolicy(0.65, lookahead=8)
    assert policy.decide(evidence_of(0.1, 0.2, 0.3, 0.4)).change == pytest.approx(0.6)
    assert policy.decide(evidence_of(0.1, 0.2, 0.3, 0.4)).skip
    assert not MemoryGuidedPolicy(0.65).decide(evidence_of(0.1, 0.2, 0.3, 0.4)).skip
    assert not MemoryGuidedPolicy(9.0, lookahead=4).decide(evidence_of(0.1, 0.2, 0.3, 0.4)).skip


def test_an_object_that_looks_like_something_else_is_looked_at_at_once():
    assert not MemoryGuidedPolicy(9.0).decide(evidence_of(0.01, likeness=0.3)).skip


def test_something_new_counts_only_while_an_object_is_missing():
    policy = MemoryGuidedPolicy(9.0)
    assert policy.decide(evidence_of(0.01, novelty=50.0)).skip
    assert not policy.decide(evidence_of(0.01, novelty=50.0, is_seen=False)).skip


@pytest.mark.parametrize("kind", ["appear", "vanish", "dash"])
@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_event_in_a_still_scene_is_missed(kind, noise, seed):
    clip = draw_clip(16, 120, 214, 2, seed, still=range(1, 16), events=[Event(8, 1, kind)], noise=noise)
    processed = key_frames_of(clip, SkipGate(MemoryGuidedPolicy(1.0), warp=True))
    assert 8 in processed
    assert not set(processed) & set(range(1, 8))


def test_a_still_scene_needs_one_frame_however_noisy():
    clip = draw_clip(12, 120, 214, 2, 3, still=range(1, 12), noise=5.0)
    assert key_frames_of(clip, SkipGate(MemoryGuidedPolicy(0.1), warp=True)) == [0]


def test_carried_masks_follow_moving_objects():
    clip = draw_clip(10, 120, 214, 2, 1, motion="smooth", camera_shift=2.0)
    gate = SkipGate(MemoryGuidedPolicy(9.0), warp=True)
    gate.remember(clip_key(clip, 0))
    for t in range(1, 10):
        assert gate.decide(t, GateFrame(clip.frames[t])).action == "warped"
    seen = gate.answer() > 0
    for i in range(2):
        found, copied, wanted = seen[i], clip.labels[0] == i + 1, clip.labels[9] == i + 1
        overlap = np.sum(found & wanted) / np.sum(found | wanted)
        assert overlap > 0.85 > np.sum(copied & wanted) / np.sum(copied | wanted)


def test_without_warping_the_key_frame_is_copied():
    clip = draw_clip(3, 120, 214, 2, 1)
    gate = SkipGate(MemoryGuidedPolicy(9.0))
    key = clip_key(clip, 0)
    gate.remember(key)
    assert gate.decide(1, GateFrame(clip.frames[1])).action == "reused"
    assert gate.answer() is key.logits


def test_lookahead_returns_the_frames_between_from_both_sides():
    clip = draw_clip(9, 120, 214, 2, 1, motion="smooth", camera_shift=2.0)
    gate = SkipGate(MemoryGuidedPolicy(9.0, lookahead=8), lookahead=True)
    assert gate.remember(clip_key(clip, 0)) == []
    one_sided = []
    for t in range(1, 8):
        gate.decide(t, GateFrame(clip.frames[t]))
        one_sided.append(gate.answer())
    blended = gate.remember(clip_key(clip, 8))
    assert len(blended) == 7

    def error(answers):
        return sum(np.sum((answers[t - 1][0] > 0) != (clip.labels[t] == 1)) for t in range(1, 8))

    assert error(blended) < error(one_sided)
    gate.decide(9, GateFrame(clip.frames[8]))
    assert len(gate.flush()) == 1 and gate.flush() == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("limit, expected", [(0, range(10)), (3, [0, 4, 8])])
def test_no_policy_skips_more_frames_in_a_row_than_allowed(strategy, limit, expected):
    clip = draw_clip(10, 64, 64, 2, 0, still=range(1, 10))
    gate = SkipGate(make_policy(strategy, 100.0), max_consecutive_skips=limit)
    assert key_frames_of(clip, gate) == list(expected)


def test_backward_tracking_decides_alike():
    clip = draw_clip(3, 64, 64, 2, 0, still=range(1, 3))
    gate = SkipGate(NaivePolicy(0.1), max_consecutive_skips=1)
    gate.remember(clip_key(clip, 2))
    assert [gate.decide(t, GateFrame(clip.frames[t])).action for t in (1, 0)] == ["reused", "processed"]


def test_the_gate_learns_from_key_frames_how_far_masks_can_be_trusted():
    """The network's mask leaps although nothing moves: what is carried next is expected to be wrong, too."""
    frame, columns = grey_frame(0, 96, 96), np.arange(96) + np.zeros((96, 1))
    gate = SkipGate(MemoryGuidedPolicy(0.1), warp=True)
    gate.remember(key_frame(frame, columns < 40))
    before = gate.decide(1, GateFrame(frame)).change
    gate.remember(key_frame(frame, columns < 50, frame_idx=1))
    assert before == pytest.approx(0.7 * 0.003)
    assert gate.decide(2, GateFrame(frame)).change > 5 * before


def test_masks_that_the_decoder_was_unsure_of_are_trusted_less():
    frame, columns = grey_frame(0, 96, 96), np.arange(96) + np.zeros((96, 1))
    changes = []
    for predicted_iou in (1.0, 0.5):
        gate = SkipGate(MemoryGuidedPolicy(0.1), warp=True)
        gate.remember(key_frame(frame, columns < 40)._replace(predicted_ious=np.array([predicted_iou])))
        changes.append(gate.decide(1, GateFrame(frame)).change)
    assert changes[1] == pytest.approx(1.5 * changes[0])


def test_after_forgetting_the_next_frame_is_processed():
    gate = SkipGate(NaivePolicy(1.0))
    gate.remember(key_frame(grey_frame(0), np.ones((4, 4), bool)))
    gate.forget()
    assert gate.decide(1, GateFrame(grey_frame(0))).action == "processed"
    with pytest.raises(RuntimeError, match="no frame was skipped"):
        gate.answer()


def test_objects_may_change_in_number_between_key_frames():
    clip = draw_clip(4, 64, 64, 2, 0)
    gate = SkipGate(MemoryGuidedPolicy(9.0), warp=True)
    gate.remember(key_frame(clip.frames[0], clip.labels[0] == 1))
    gate.decide(1, GateFrame(clip.frames[1]))
    gate.remember(clip_key(clip, 2))
    gate.decide(3, GateFrame(clip.frames[3]))
    assert gate.answer().shape == (2, 64, 64)


def test_naive_frames_are_never_turned_into_flow_or_floats():
    gate = SkipGate(NaivePolicy(1.0))
    gate.remember(key_frame(grey_frame(0), np.ones((4, 4), bool)))
    frame = GateFrame(grey_frame(0))
    gate.decide(1, frame)
    assert "small" not in vars(frame) and frame.levels.dtype == np.uint8


def test_a_policy_of_ones_own_needs_one_method():
    class EveryThird:
        def decide(self, evidence):
            return Verdict(evidence.age < 3, evidence.age, "every third frame")

    clip = draw_clip(7, 64, 64, 2, 0)
    assert key_frames_of(clip, SkipGate(EveryThird())) == [0, 3, 6]


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf, "0.1", True, [0.1]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bad_thresholds_are_refused_when_they_are_set(strategy, threshold):
    with pytest.raises(ValueError, match="skip_mad_threshold must be a"):
        make_policy(strategy, threshold)


def test_unknown_strategies_and_counts_are_refused():
    with pytest.raises(ValueError, match="skip_strategy must be one of naive, mask_aware, memory_guided, got 'clever'"):
        make_policy("clever", 0.1)
    with pytest.raises(ValueError, match="skip_lookahead needs skip_strategy 'memory_guided', got 'naive'"):
        make_policy("naive", 0.1, lookahead=4)
    with pytest.raises(ValueError, match="max_consecutive_skips must be a whole number of 0 or more"):
        SkipGate(NaivePolicy(0.1), max_consecutive_skips=-1)
    with pytest.raises(ValueError, match="frames must be a whole number"):
        check_count(1.5, "frames")  # type: ignore[arg-type]

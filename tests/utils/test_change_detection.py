"""The measures of change, and the policies that decide by them."""

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
    Search,
    check_count,
    make_policy,
    mean_abs_diff,
    pixel_levels,
    should_skip_frame,
)
from sam2.utils.skip_gate import SkipGate
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


def test_mask_aware_measures_around_a_mask_that_is_lost_at_the_size_of_the_gate():
    logits = np.full((1, 64, 64), -1.0, np.float32)
    logits[0, 63, 41] = 1.0  # of 16 pixels a side that the gate compares, nearest are every fourth
    frame, moved = np.zeros((2, 16, 16, 3), np.uint8)
    moved[12:, 10:] = 255
    key = KeyFrame(0, GateFrame(frame), logits, np.ones(1), np.ones(1))
    measured = Evidence(1, 1, GateFrame(moved), key, [], lambda: pytest.fail("not asked for"))
    assert measured.object_changes.tolist() == pytest.approx([11 / 3 * 4 / 6])  # of 3 columns 2 changed


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


def looks_again(age: int, fruitless: int, *, novelty: float = 50.0, known: float = 50.0, past: float = 50.0) -> bool:
    """Whether the policy asks for a key frame, `age` frames after one that did not bring the object back."""
    motions = [Motion(np.array([0.0]), np.array([1.0]), past)] * (age - 1)
    motions.append(Motion(np.array([0.0]), np.array([1.0]), novelty))
    key, search = key_frame(grey_frame(0), np.zeros((64, 64), bool)), Search(fruitless, known)
    evidence = Evidence(age, age, GateFrame(grey_frame(0)), key, motions[:-1], lambda: motions[-1], search)
    return not MemoryGuidedPolicy(9.0).decide(evidence).skip


@pytest.mark.parametrize("fruitless, wait", [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (9, 16)])
def test_with_each_key_frame_in_vain_the_wait_for_the_next_doubles(fruitless, wait):
    assert [looks_again(age, fruitless) for age in range(1, 17)] == [age >= wait for age in range(1, 17)]


def test_what_is_new_after_a_still_moment_or_twice_as_new_ends_the_wait():
    assert not looks_again(3, fruitless=4)
    assert looks_again(3, fruitless=4, past=9.0)
    assert looks_again(3, fruitless=4, novelty=101.0) and not looks_again(3, fruitless=4, novelty=99.0)
    assert not looks_again(3, fruitless=4, past=9.0, novelty=19.0), "nothing is new"

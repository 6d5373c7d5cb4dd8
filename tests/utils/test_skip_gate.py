"""The gate: what it never misses, what it answers, what it learns and remembers."""

from __future__ import annotations

import numpy as np
import pytest

from sam2.utils.change_detection import (
    STRATEGIES,
    GateFrame,
    KeyFrame,
    MemoryGuidedPolicy,
    NaivePolicy,
    Verdict,
    make_policy,
)
from sam2.utils.drawn_clips import DrawnClip, Event, draw_clip
from sam2.utils.skip_gate import SkipGate


def grey_frame(value: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def key_frame(frame: np.ndarray, *masks: np.ndarray, frame_idx: int = 0) -> KeyFrame:
    logits = np.stack([np.where(mask, 10.0, -10.0) for mask in masks]).astype(np.float32)
    return KeyFrame(frame_idx, GateFrame(frame), logits, np.ones(len(masks)), np.full(len(masks), 5.0))


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


@pytest.mark.parametrize("is_continued", [True, False])
def test_a_key_frame_that_could_have_been_skipped_counts_as_none_of_the_frames_between(is_continued):
    clip = draw_clip(9, 120, 214, 2, 1, motion="smooth", camera_shift=2.0)
    gates = [SkipGate(MemoryGuidedPolicy(9.0, lookahead=9), lookahead=True) for _ in range(2)]
    key, last = clip_key(clip, 0), clip_key(clip, 8)
    last = last if is_continued else last._replace(logits=last.logits[:1])
    for gate in gates:
        gate.remember(key)
        for t in range(1, 8):
            gate.decide(t, GateFrame(clip.frames[t]))
    assert gates[1].decide(8, last.frame).action == "warped"  # and then the user prompts it, or the clip ends there
    expected, found = (gate.remember(last) for gate in gates)
    assert len(found) == 7
    np.testing.assert_array_equal(found, expected)


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


def restless(clip: DrawnClip, frames: range) -> DrawnClip:
    """The clip with something new in one corner of each of these frames."""
    pictures, rng = clip.frames.copy(), np.random.default_rng(0)
    for t in frames:
        pictures[t, :30, :30] = rng.integers(0, 256, (30, 30, 1))
    return clip._replace(frames=pictures)


def test_an_object_that_is_not_found_again_is_looked_for_less_and_less():
    clip = draw_clip(40, 120, 214, 2, 5, still=range(1, 40), events=[Event(1, 2, "vanish")])
    clip = restless(clip, range(1, 40))
    # At 1 it vanished; from there on each wait is twice the last one, up to 16 frames.
    assert key_frames_of(clip, SkipGate(MemoryGuidedPolicy(99.0), warp=True)) == [0, 1, 2, 4, 8, 16, 32]


def test_an_object_that_appears_when_all_stands_still_is_seen_however_long_it_was_looked_for():
    clip = draw_clip(30, 120, 214, 2, 5, still=range(1, 30), events=[Event(26, 2, "appear")])
    processed = key_frames_of(restless(clip, range(1, 22)), SkipGate(MemoryGuidedPolicy(99.0), warp=True))
    assert processed == [0, 1, 3, 7, 15, 26]


@pytest.mark.parametrize("stop", [3, 7, 12])
def test_a_gate_goes_on_from_a_memo_as_if_nothing_had_been_between(stop):
    clip = draw_clip(20, 120, 214, 2, 1, motion="smooth", camera_shift=2.0)
    gates = [SkipGate(MemoryGuidedPolicy(0.1), warp=True) for _ in range(2)]
    assert gates[0].memo() is None

    def go_on(gate, frames):
        answers = []
        for t in frames:
            decision = gate.decide(t, GateFrame(clip.frames[t]))
            if decision.action == "processed":
                gate.remember(clip_key(clip, t))
            answers.append((decision, None if decision.action == "processed" else gate.answer()))
        return answers

    gates[0].remember(clip_key(clip, 0))
    go_on(gates[0], range(1, stop))
    memo = gates[0].memo()
    assert memo is not None
    since = [(t, GateFrame(clip.frames[t])) for t in range(memo.frame_idx + 1, stop)]
    gates[1].resume(memo, GateFrame(clip.frames[memo.frame_idx]), since)
    expected, found = (go_on(gate, range(stop, 20)) for gate in gates)
    assert [decision for decision, _ in found] == [decision for decision, _ in expected]
    assert {decision.action for decision, _ in found} == {"processed", "warped"}
    for (_, one), (_, other) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("is_continued", [True, False])
def test_with_lookahead_a_gate_that_goes_on_returns_the_frames_that_were_not_answered(is_continued):
    clip = draw_clip(7, 120, 214, 2, 1, motion="smooth", camera_shift=2.0)
    gates = [SkipGate(MemoryGuidedPolicy(9.0, lookahead=8), lookahead=True) for _ in range(2)]
    key, frames = clip_key(clip, 0), [GateFrame(frame) for frame in clip.frames]
    gates[0].remember(key)
    memo = gates[0].memo()
    assert memo is not None
    for t in (1, 2, 3):
        gates[0].decide(t, frames[t])
    gates[1].resume(memo, key.frame, [(t, frames[t]) for t in (1, 2, 3)])
    for gate in gates:
        gate.decide(4, frames[4])
    last = clip_key(clip, 5)
    last = last if is_continued else last._replace(logits=last.logits[:1])
    expected, found = (gate.remember(last) for gate in gates)
    assert (len(expected), len(found)) == (4, 1)
    np.testing.assert_array_equal(found[0], expected[3])
    assert gates[1].decide(6, frames[6]).action == "warped" and len(gates[1].flush()) == 1

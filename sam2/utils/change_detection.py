"""Which frames need the network: how much a frame changed, and the policies that decide by it.

A policy is an object with one method, `decide(evidence) -> Verdict`; `sam2.utils.skip_gate` gathers the evidence.

S the network's input size, H, W a frame's rows and columns, N objects, h, w of their mask logits. Frames: RGB uint8.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch

from sam2.utils.mask_carrier import SmallFrame
from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD

Action = Literal["prompted", "processed", "reused", "warped"]

STRATEGIES = ("naive", "mask_aware", "memory_guided")

NOVELTY_OF_AN_OBJECT = 20.0
"""Grey levels of 255 by which a block of the picture differs from what flow explains if an object returns there."""

QUIET = NOVELTY_OF_AN_OBJECT / 2
"""Below this nothing comes or goes anywhere in the picture."""

LONGEST_WAIT = 16
"""Frames; however often an object was looked for in vain, it is looked for again after so many."""

LOST_LIKENESS = 0.4
"""Below this an object's pixels are something else: it left faster than can be followed, or something hides it."""

SURROUNDINGS = 1 / 32
"""How far an object's surroundings reach beyond its mask, as a share of the picture's side."""


def pixel_levels(frame: np.ndarray) -> np.ndarray:
    """The whole number of standard deviations between each pixel and ImageNet's mean, truncated toward zero.

    Returns:
        uint8, the shape of `frame`, levels -2 to 2 kept as 0 to 4: only their differences count.

    Raises:
        TypeError: `frame` is not uint8.
        ValueError: `frame` is not (H, W, 3).
    """
    if frame.dtype != np.uint8:
        raise TypeError(f"frame must be uint8 (0 to 255), got {frame.dtype}")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame must be (H, W, 3), got {frame.shape}")
    return cv2.LUT(frame, _level_table())


def mean_abs_diff(previous: np.ndarray | torch.Tensor, current: np.ndarray | torch.Tensor) -> float:
    """The published measure of change: mean absolute difference of ImageNet-normalised pixels truncated toward zero.

    It counts pixels that cross a whole standard deviation, and is no share of the pixel range: on real clips 0.10 is
    about 2 to 3 % of the range. The published decisions are those of frames resized to the network's input size.

    Args:
        previous, current: frames of one size; uint8 RGB (H, W, 3), or ImageNet-normalised float tensors (3, H, W).

    Raises:
        ValueError: the frames differ in shape or kind.
    """
    if isinstance(previous, torch.Tensor) and isinstance(current, torch.Tensor) and previous.is_floating_point():
        if previous.shape != current.shape:
            raise ValueError(f"frames must be of one shape, got {tuple(previous.shape)} and {tuple(current.shape)}")
        return (previous.to(torch.int16) - current.to(torch.int16)).abs().float().mean().item()
    first, second = (np.asarray(f.cpu() if isinstance(f, torch.Tensor) else f) for f in (previous, current))
    return _level_distance(pixel_levels(first), pixel_levels(second))


def should_skip_frame(
    previous: np.ndarray | torch.Tensor, current: np.ndarray | torch.Tensor, threshold: float
) -> bool:
    """Whether `current` changed less than `threshold` since `previous`, the last frame that was processed.

    Frames and units as in `mean_abs_diff`.

    Raises:
        ValueError: a threshold that is not a number of 0 or more, or frames that `mean_abs_diff` refuses.
    """
    return mean_abs_diff(previous, current) < check_threshold(threshold)


def check_threshold(threshold: float | None, name: str = "skip_mad_threshold") -> float:
    """The threshold as a float; 0 for None, which is off.

    Raises:
        ValueError: negative, infinite, NaN or not a number.
    """
    if threshold is None:
        return 0.0
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number of 0 or more, or None, got {threshold!r}")
    if not math.isfinite(threshold) or threshold < 0:
        raise ValueError(f"{name} must be a finite number of 0 or more, got {threshold}")
    return float(threshold)


class GateFrame:
    """One frame as the gate sees it; each reduced view is made when it is first asked for, once.

    Args:
        frame: native size, (H, W, 3).
        pixels: the same frame at the network's input size, (S, S, 3); `frame` itself if left out.
        small: `SmallFrame.of(frame)` if it is there already.
    """

    def __init__(
        self, frame: np.ndarray, pixels: np.ndarray | None = None, small: SmallFrame | None = None
    ) -> None:  # fmt: skip
        self.frame = frame
        self.pixels = frame if pixels is None else pixels
        if small is not None:
            self.small = small

    @cached_property
    def levels(self) -> np.ndarray:
        """`pixel_levels` at the network's input size, (S, S, 3)."""
        return pixel_levels(self.pixels)

    @cached_property
    def small(self) -> SmallFrame:
        """Grey and small, for flow and tracking."""
        return SmallFrame.of(self.frame)


class KeyFrame(NamedTuple):
    """The last frame that the network saw, and what it said.

    logits: float32 (N, h, w), of any size that covers the picture. predicted_ious: (N,), 0 to 1. object_scores: (N,)
    logits, above 0 where the object is seen. believed: (N,) booleans, False for masks that say nothing of the frames
    before; None where all do.
    """

    frame_idx: int
    frame: GateFrame
    logits: np.ndarray
    predicted_ious: np.ndarray
    object_scores: np.ndarray
    believed: np.ndarray | None = None


class Motion(NamedTuple):
    """What carrying the key frame's masks to this frame tells.

    losses: predicted 1 - IoU of each carried mask, (N,).
    likeness: how like the key frame's each object's pixels still are, (N,), 1 the same, about 0 something else.
    novelty: largest mean grey difference, 0 to 255, of any block of the picture from what the frame before explains;
        0 while the key frame lacks no object.
    """

    losses: np.ndarray
    likeness: np.ndarray
    novelty: float


class Search(NamedTuple):
    """How objects that the key frame lacks were looked for.

    fruitless: key frames in a row, up to the last, that lacked the same ones as the key frame before.
    novelty: the largest that any of these showed, as in `Motion`.
    """

    fruitless: int = 0
    novelty: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What a policy may look at. Nothing is measured before it is asked for.

    Attributes:
        frame_idx: of the frame to decide on.
        age: how many frames lie between it and its key frame, itself included: 1 or more.
        frame, key: this frame and its key frame.
        past: `Motion` of each frame skipped since the key frame, oldest first; empty if the policy never asked for it.
        search: how objects that the key frame lacks were looked for.
    """

    frame_idx: int
    age: int
    frame: GateFrame
    key: KeyFrame
    past: Sequence[Motion]
    measure_motion: Callable[[], Motion]
    search: Search = Search()

    @cached_property
    def frame_change(self) -> float:
        """`mean_abs_diff` of the whole picture, at the network's input size."""
        return _level_distance(self.key.frame.levels, self.frame.levels)

    @cached_property
    def object_changes(self) -> np.ndarray:
        """The same within each object's surroundings, (N,); of the whole picture for an object that is not seen."""
        return np.array([self._change_around(logits > 0) for logits in self.key.logits])

    @cached_property
    def motion(self) -> Motion:
        """What carrying the masks here tells."""
        return self.measure_motion()

    def _change_around(self, mask: np.ndarray) -> float:
        if not mask.any():
            return self.frame_change
        region = _surroundings(mask, *self.frame.levels.shape[:2])
        top, left, height, width = _bounding_box(region)
        window = np.s_[top : top + height, left : left + width]
        changed = cv2.norm(self.key.frame.levels[window], self.frame.levels[window], cv2.NORM_L1, region[window])
        return changed / (3 * np.count_nonzero(region))


class Verdict(NamedTuple):
    """A policy's answer.

    skip: whether the network is spared this frame. change: what was measured, in the unit of the policy's threshold.
    reason: for the log.
    """

    skip: bool
    change: float
    reason: str


class Decision(NamedTuple):
    """What is done with a frame, on record: the measured change in the unit of the policy's threshold, and why."""

    action: Action
    change: float
    reason: str


class SkipPolicy(Protocol):
    """What a strategy must offer. It keeps no state of the clip: `evidence` holds all there is."""

    def decide(self, evidence: Evidence) -> Verdict:
        """Whether to skip the frame."""
        ...


class NaivePolicy:
    """As published: skip while the picture changed less than `threshold` since the key frame (`mean_abs_diff`)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = check_threshold(threshold)

    def decide(self, evidence: Evidence) -> Verdict:
        change = evidence.frame_change
        return Verdict(change < self.threshold, change, f"{_low(change < self.threshold)} MAD ({change:.2f})")


class MaskAwarePolicy:
    """The same measure in each object's surroundings: skip while the one that changed most is below `threshold`."""

    def __init__(self, threshold: float) -> None:
        self.threshold = check_threshold(threshold)

    def decide(self, evidence: Evidence) -> Verdict:
        changes = evidence.object_changes
        change = float(changes.max()) if len(changes) else evidence.frame_change
        reason = f"{_low(change < self.threshold)} MAD around objects ({change:.2f})"
        return Verdict(change < self.threshold, change, reason)


class MemoryGuidedPolicy:
    """Skip while the masks that are carried along can be trusted.

    The predicted losses (1 - IoU) of the frames skipped since the key frame are summed for each object, this frame's
    included; when the worst sum reaches `threshold` a key frame is due. So a rigid object in a moving picture is
    carried far, and frames are spent where masks bend, are thin or get lost. An object that no longer looks like itself
    makes a key frame at once. In the spirit of Li, Shi and Lin, "Low-Latency Video Semantic Segmentation", CVPR 2018:
    key frames by the predicted deviation of the masks, not by the change of pixels.

    Args:
        threshold: overlap that an object may lose between two key frames, summed over the skipped frames. 0.1 loses
            hardly anything; 1.0 skips every other frame of a hard clip and nine of ten of an easy one.
        lookahead: above 0, skipped frames are answered from the key frames on both sides, which lie at most this many
            frames apart: a frame then counts with the smaller of its own loss and that of its mirror image.

    Raises:
        ValueError: `threshold` or `lookahead` is negative or no number.
    """

    def __init__(self, threshold: float, *, lookahead: int = 0) -> None:
        self.threshold = check_threshold(threshold)
        self.lookahead = check_count(lookahead, "skip_lookahead")

    def decide(self, evidence: Evidence) -> Verdict:
        motion = evidence.motion
        losses = np.array([*(past.losses for past in evidence.past), motion.losses])  # (frames, N)
        if self.lookahead:
            # If the next frame were a key frame, those up to here would be carried back from it too.
            losses = np.minimum(losses, losses[::-1])
        sums = losses.sum(axis=0)
        change = float(sums.max()) if sums.size else 0.0
        if self.lookahead and evidence.age >= self.lookahead:
            return Verdict(False, change, f"end of look-ahead ({evidence.age} frames)")
        if (motion.likeness < LOST_LIKENESS).any():
            return Verdict(False, change, f"object looks unlike its key frame ({motion.likeness.min():.2f})")
        if is_missing(evidence.key.logits).any() and self._may_be_back(evidence):
            return Verdict(False, change, f"something new ({motion.novelty:.0f}) while an object is missing")
        reason = f"{_low(change < self.threshold)} predicted loss ({change:.3f})"
        return Verdict(change < self.threshold, change, reason)

    def _may_be_back(self, evidence: Evidence) -> bool:
        """Whether something new may be an object that is missing.

        Where something moves all the time, something is always new: with every key frame that does not bring the object
        back, the wait for the next one doubles. A still moment ends it, and twice as much that is new.
        """
        novelty, search = evidence.motion.novelty, evidence.search
        return novelty > NOVELTY_OF_AN_OBJECT and (
            evidence.age >= min(2**search.fruitless, LONGEST_WAIT)
            or novelty > 2 * search.novelty
            or any(past.novelty < QUIET for past in evidence.past)
        )


def make_policy(strategy: str, threshold: float, *, lookahead: int = 0) -> SkipPolicy:
    """The policy of a name in `STRATEGIES`.

    Raises:
        ValueError: an unknown name, a bad threshold or look-ahead, or a look-ahead with a strategy that has none.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"skip_strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if strategy == "memory_guided":
        return MemoryGuidedPolicy(threshold, lookahead=lookahead)
    if check_count(lookahead, "skip_lookahead"):
        raise ValueError(f"skip_lookahead needs skip_strategy 'memory_guided', got {strategy!r}")
    return NaivePolicy(threshold) if strategy == "naive" else MaskAwarePolicy(threshold)


def check_count(value: int | None, name: str) -> int:
    """A number of frames; 0 for None.

    Raises:
        ValueError: negative or not a whole number.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number of 0 or more, or None, got {value!r}")
    return int(value)


def _low(is_low: bool) -> str:
    return "low" if is_low else "high"


def is_missing(logits: np.ndarray) -> np.ndarray:
    """Which objects have no mask, (N, h, w) logits -> (N,) booleans."""
    return np.logical_not((logits > 0).any(axis=(1, 2)))


def _level_distance(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        raise ValueError(f"frames must be of one shape, got {first.shape} and {second.shape}")
    return cv2.norm(first, second, cv2.NORM_L1) / first.size


def _surroundings(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask grown by `SURROUNDINGS` all around, uint8 (height, width)."""
    region = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    if not region.any():  # so small a mask that none of its pixels was picked
        rows, columns = mask.nonzero()
        region[rows * height // mask.shape[0], columns * width // mask.shape[1]] = 1
    reach = max(1, round(SURROUNDINGS * max(height, width)))
    return cv2.dilate(region, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))


def _bounding_box(region: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is not 0."""
    left, top, width, height = cv2.boundingRect(region)
    return top, left, height, width


@functools.lru_cache(maxsize=1)
def _level_table() -> np.ndarray:
    """Level of each 8-bit value, (1, 256, 3), counted from the lowest."""
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    mean, std = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
    levels = ((values - mean) / std).astype(np.int16)
    return (levels - levels.min()).astype(np.uint8)[None]

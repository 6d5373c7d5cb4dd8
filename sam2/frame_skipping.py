"""Frames that do not need the network: the options, the order of decisions, and their record.

The loop knows no network: whoever has masks (the predictor, a calibration, an annotation) is a `MaskSource` to it.
N objects; h, w rows and columns of their mask logits.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from sam2.utils.change_detection import (
    Action,
    Decision,
    GateFrame,
    KeyFrame,
    SkipPolicy,
    check_count,
    check_threshold,
    make_policy,
)
from sam2.utils.mask_carrier import SmallFrame
from sam2.utils.skip_gate import SkipGate

Warp = Literal["auto", "flow"] | None

SKIPPED: tuple[Action, ...] = ("reused", "warped")
"""Actions on frames that the network does not see."""


@dataclass(frozen=True)
class SkipOptions:
    """When and how frames are skipped. An option that makes no sense is a ValueError when it is set.

    Attributes:
        threshold: skip below this change; 0 or None never skips, and every answer is SAM 2's. Its unit is the
            strategy's: for "naive" and "mask_aware" `mean_abs_diff`, for "memory_guided" the overlap of masks that may
            be lost between two key frames. A change of strategy leaves the number as it is: give both.
        strategy: "naive", "mask_aware", "memory_guided", or your own object with a method `decide`.
        warp: "flow" carries the key frame's masks along, None copies them, "auto" carries for "memory_guided" only.
        lookahead: process the next key frame, at most so many frames ahead, before the frames that are skipped, and
            answer these from both sides; 0 looks back only. For clips, and "memory_guided".
        max_consecutive_skips: process a frame after so many skipped ones; None for no limit.
    """

    threshold: float | None = 0.05
    strategy: str | SkipPolicy = "naive"
    warp: Warp = "auto"
    lookahead: int = 0
    max_consecutive_skips: int | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_count(self.max_consecutive_skips, "max_consecutive_skips")
        if self.warp not in ("auto", "flow", None):
            raise ValueError(f'skip_warp must be "flow", "auto" or None, got {self.warp!r}')
        if self.max_consecutive_skips == 0:
            raise ValueError(
                "max_consecutive_skips must be at least 1, or None for no limit; a threshold of 0 skips none"
            )
        self.policy()

    @property
    def is_on(self) -> bool:
        """Whether any frame may be skipped."""
        return check_threshold(self.threshold) > 0

    @property
    def warps(self) -> bool:
        """Whether masks are carried along."""
        return self.warp == "flow" or (self.warp == "auto" and self.strategy == "memory_guided")

    @property
    def prepare(self) -> Callable[[np.ndarray], SmallFrame] | None:
        """What every frame (H, W, 3) will be asked for, so that it can be made ahead; None for nothing."""
        return SmallFrame.of if self.is_on and (self.warps or self.strategy == "memory_guided") else None

    def policy(self) -> SkipPolicy:
        """The object that decides."""
        if isinstance(self.strategy, str):
            return make_policy(self.strategy, check_threshold(self.threshold), lookahead=self.lookahead)
        if not callable(getattr(self.strategy, "decide", None)):
            raise ValueError(f"skip_strategy must be a name or an object with a method decide, got {self.strategy!r}")
        if self.lookahead:
            raise ValueError('skip_lookahead needs skip_strategy "memory_guided"')
        return self.strategy

    def gate(self) -> SkipGate:
        """A gate for one run through a clip."""
        return SkipGate(
            self.policy(),
            warp=self.warps,
            lookahead=self.lookahead > 0,
            max_consecutive_skips=self.max_consecutive_skips,
        )


class FrameDecision(NamedTuple):
    """What was done with one frame, on record."""

    frame: int
    action: Action
    change: float  # in the unit of the strategy's threshold; 0 where nothing was measured
    reason: str
    seconds: float  # spent on this frame


class Answered(NamedTuple):
    """One frame in the order it is shown."""

    decision: FrameDecision
    logits: np.ndarray | None  # (N, h, w) of a skipped frame; None for one that has masks of its own


class MaskSource(Protocol):
    """Who has the masks of the frames that are not skipped."""

    def is_over(self) -> bool:
        """Whether there is nothing left to track."""
        ...

    def take_edits(self) -> bool:
        """Take in what the user did since the last call: whether prompts or objects changed, so that the next frame
        must not be skipped."""
        ...

    def is_prompted(self, frame_idx: int) -> bool:
        """Whether the user gave a prompt on this frame."""
        ...

    def begins_scene(self, frame_idx: int) -> bool:
        """Whether the video cuts to another scene with this frame. Asked of each in order, where no edit makes the loop
        go over some of them again."""
        ...

    def process(self, frame_idx: int) -> None:
        """Process a frame. With look-ahead, those skipped before it are yielded first; after a change on one of them
        this comes again, for the frame after that one."""
        ...

    def key_frame(self, frame_idx: int, frame: GateFrame) -> KeyFrame:
        """What the gate may know of the frame that was just processed."""
        ...


def gated_frames(
    order: Sequence[int],
    frame_at: Callable[[int], GateFrame],
    source: MaskSource,
    options: SkipOptions,
    *,
    gate: SkipGate | None = None,
) -> Iterator[Answered]:
    """Decide on each frame, process it or answer it from its key frames; yields every frame once, in order.

    Args:
        order: frame indices, ascending or descending by one.
        frame_at: the frame as the gate sees it.
        gate: one of these options that knows the frames before, to go on with; a fresh one by default.
    """
    gate = gate or options.gate()
    upcoming = iter(order)
    waiting: list[FrameDecision] = []  # frames that are answered when the next key frame is known
    while (frame_idx := next(upcoming, None)) is not None:
        start = time.perf_counter()
        if source.take_edits():
            gate.forget()
        if source.is_over():
            return
        frame, is_cut = frame_at(frame_idx), source.begins_scene(frame_idx)
        decision = _decide(gate, source, frame_idx, frame, is_cut)
        if decision.action in SKIPPED and not (options.lookahead and frame_idx == order[-1]):
            if options.lookahead:
                waiting.append(_record(frame_idx, decision, start))
            else:
                logits = gate.answer()
                yield Answered(_record(frame_idx, decision, start), logits)
            continue
        if decision.action in SKIPPED:
            decision = decision._replace(action="processed", reason="last frame of the look-ahead")
        source.process(frame_idx)
        decided = time.perf_counter()
        answers = gate.remember(source.key_frame(frame_idx, frame), new_scene=is_cut)
        share = (time.perf_counter() - decided) / max(len(waiting), 1)
        record = _record(frame_idx, decision, start)
        for i, (skipped, logits) in enumerate(zip(waiting, answers, strict=True), 1):
            record = record._replace(seconds=record.seconds - share)
            yield Answered(skipped._replace(seconds=skipped.seconds + share), logits)
            if source.take_edits():
                # What was prepared no longer holds: go on at the frame after the one that was shown.
                gate.forget()
                upcoming = itertools.chain((each.frame for each in waiting[i:]), [frame_idx], upcoming)
                break
        else:
            yield Answered(record, None)
        waiting = []


def all_frames(order: Sequence[int], source: MaskSource) -> Iterator[Answered]:
    """Process every frame, in order: SAM 2 as it is."""
    for frame_idx in order:
        start = time.perf_counter()
        source.take_edits()
        if source.is_over():
            return
        action = "prompted" if source.is_prompted(frame_idx) else "processed"
        source.process(frame_idx)
        yield Answered(_record(frame_idx, Decision(action, 0.0, "skipping is off"), start), None)


class RecordedMasks:
    """Masks that are known beforehand, in the network's place (`MaskSource`). Any number of runs may share one.

    Args:
        key_frame: a frame's masks, by its index and picture.
        prompted: frames that are never skipped, at least the first one.
    """

    def __init__(self, key_frame: Callable[[int, GateFrame], KeyFrame], prompted: Collection[int]) -> None:
        self._key_frame = key_frame
        self._prompted = prompted

    def is_over(self) -> bool:
        return False

    def take_edits(self) -> bool:
        return False

    def is_prompted(self, frame_idx: int) -> bool:
        return frame_idx in self._prompted

    def begins_scene(self, frame_idx: int) -> bool:
        return False

    def process(self, frame_idx: int) -> None:
        pass

    def key_frame(self, frame_idx: int, frame: GateFrame) -> KeyFrame:
        return self._key_frame(frame_idx, frame)


def play_through(
    order: Sequence[int],
    frame_at: Callable[[int], GateFrame],
    source: RecordedMasks,
    options: Sequence[SkipOptions],
) -> Iterator[tuple[Answered, ...]]:
    """Skip by several options side by side, so that each frame is prepared once; yields all answers to a frame.

    Args:
        order: frame indices, ascending or descending by one.
        frame_at: the frame as the gate sees it.
    """
    # Runs that look ahead are at most so many frames further than the others.
    reach = max(each.lookahead for each in options) + 1
    frame_at = functools.lru_cache(maxsize=reach)(frame_at)
    runs = [gated_frames(order, frame_at, source, o) if o.is_on else all_frames(order, source) for o in options]
    return zip(*runs, strict=True)


def _decide(gate: SkipGate, source: MaskSource, frame_idx: int, frame: GateFrame, is_cut: bool) -> Decision:
    if source.is_prompted(frame_idx):
        # Also measured here: what the masks carried to a prompted frame lack is what the gate learns from.
        measured = gate.decide(frame_idx, frame)
        return Decision("prompted", measured.change, "prompt")
    measured = gate.decide(frame_idx, frame)
    return Decision("processed", measured.change, "scene cut") if is_cut else measured


def _record(frame_idx: int, decision: Decision, start: float) -> FrameDecision:
    change = float(decision.change)  # a policy may have measured it in NumPy or torch, which no JSON takes
    return FrameDecision(frame_idx, decision.action, change, decision.reason, time.perf_counter() - start)


def decision_table(decisions: Iterable[FrameDecision]) -> str:
    """The decisions as lines of text: frame, action, change, milliseconds, reason."""
    lines = [f"{'frame':>6}  {'action':10}{'change':>8}{'ms':>9}  reason"]
    lines += [f"{d.frame:6}  {d.action:10}{d.change:8.3f}{1000 * d.seconds:9.1f}  {d.reason}" for d in decisions]
    return "\n".join(lines)


def skip_rate(decisions: Iterable[FrameDecision]) -> float:
    """Share of frames that the network did not see, 0 to 1; 0 for none at all."""
    skipped = [d.action in SKIPPED for d in decisions]
    return sum(skipped) / max(len(skipped), 1)

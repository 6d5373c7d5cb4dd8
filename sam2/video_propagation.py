"""One way through a clip: which frames in which order, which objects on each of them, and what is shown of all.

N objects of the session; h, w of low-res mask logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam2.frame_skipping import SKIPPED, Answered, FrameDecision, SkipOptions, all_frames, gated_frames
from sam2.modeling.outputs import FrameOutput
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from sam2.utils.change_detection import GateFrame, KeyFrame
from sam2.utils.skip_gate import SkipGate
from sam2.video_memory import FadedOutput
from sam2.video_state import CarriedMask, ObjectId, ObjectTrack, PausedRun, VideoState, fade
from sam2.video_tracking import VideoTracker

logger = logging.getLogger(__name__)

Direction = Literal["forward", "backward", "both"]


class FrameAnswer(NamedTuple):
    """All objects on one frame."""

    decision: FrameDecision
    obj_ids: list[ObjectId]
    masks: Tensor  # (N, 1, h, w) low-res logits, NO_OBJ_SCORE where an object has none
    object_scores: list[Tensor]  # N of (1, 1), logits, above 0 where the object is in the frame
    predicted_ious: list[Tensor]  # N of (1, 1)
    prompted_ids: list[ObjectId]


class ForwardFrames(Sequence[int]):
    """Frames from `first` on, to `last` or to the end of a clip whose length may be an estimate.

    Args:
        has: whether the clip has a frame.
        estimate: number of frames that the clip seems to have.
    """

    def __init__(self, first: int, last: int | None, has: Callable[[int], bool], estimate: Callable[[], int]) -> None:
        self.first, self.last = first, last
        self._has, self._estimate = has, estimate
        self._current: int | None = None

    def __iter__(self) -> Iterator[int]:
        self._current = self.first
        while (self.last is None or self._current <= self.last) and self._has(self._current):
            yield self._current
            self._current += 1

    def __len__(self) -> int:
        end = self._estimate()
        if self._current is not None:  # certain about the next frame, so that the last one is known for what it is
            end = max(end, self._current + 2) if self._has(self._current + 1) else self._current + 1
        return max(0, (end if self.last is None else min(end, self.last + 1)) - self.first)

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return range(self.first, self.first + len(self))[index]


class Scope(NamedTuple):
    """Which objects are tracked, and where."""

    obj_ids: frozenset[ObjectId] | None = None  # None for all, those that are added on the way included
    from_prompt: bool = False  # each from its own first prompted frame on, in the direction of the run

    def includes(self, obj_id: ObjectId) -> bool:
        """Whether the object is tracked at all."""
        return self.obj_ids is None or obj_id in self.obj_ids

    def covers(self, track: ObjectTrack, frame_idx: int, reverse: bool) -> bool:
        """Whether an included object is tracked on a frame."""
        if not self.from_prompt:
            return True
        first = min(track.prompted, default=frame_idx)
        return frame_idx <= first if reverse else frame_idx >= first


def frame_order(state: VideoState, start: int, max_frames: int | None, reverse: bool) -> Sequence[int]:
    """Frames in the order they are tracked, `start` and up to `max_frames` more."""
    if not reverse:
        last = None if max_frames is None else start + max_frames
        return ForwardFrames(start, last, state.frames.has, lambda: state.num_frames)
    if start == 0:
        return range(0)
    return range(start, (0 if max_frames is None else max(start - max_frames, 0)) - 1, -1)


class TrackingRun:
    """One way through a clip: what the loop over frames asks for its masks (`MaskSource`).

    Args:
        scope: what is tracked; all other objects show what is known of them from before.
    """

    def __init__(self, tracker: VideoTracker, state: VideoState, reverse: bool, scope: Scope) -> None:
        self.tracker, self.state, self.reverse, self.scope = tracker, state, reverse, scope
        self._known = state.obj_ids  # at the frame before
        self._shown: list[ObjectId] = []  # at the frame processed last, as are the following
        self._tracked: list[ObjectId] = []
        self._frame_idx = -1
        self._outputs: list[FrameOutput | FadedOutput] = []
        self._masks = torch.empty(0)  # (tracked objects, 1, h, w)

    def frames(self, order: Sequence[int], options: SkipOptions) -> Iterator[FrameAnswer]:
        """Decide on the frames one by one, process or skip them, and put it on record.

        A run that starts at the frame after the one where the last run stopped, with nothing changed in between, goes
        on with what the gate knew there: the two are one.
        """
        self.state.frames.also = options.prepare
        if not options.is_on:
            self.state.paused = None
            yield from self._answers(all_frames(order, self))
            return
        gate = options.gate()
        self._take_over(gate, order, options)
        for answer in self._answers(gated_frames(order, self.state.gate_frame, self, options, gate=gate)):
            memo = gate.memo()
            # With look-ahead, frames that were skipped are yielded after the gate has gone on from them.
            is_resumable = memo is not None and not (options.lookahead and answer.decision.action in SKIPPED)
            self.state.paused = None
            if memo is not None and is_resumable:
                self.state.paused = PausedRun(answer.decision.frame, self.reverse, self._tracked, options, memo)
            yield answer
        self.state.paused = None

    def _answers(self, decided: Iterable[Answered]) -> Iterator[FrameAnswer]:
        for decision, carried in decided:
            self.state.record(decision)
            if decision.action in SKIPPED:
                logger.info("Skipping frame %d due to %s", decision.frame, decision.reason)
            yield self._answer(decision, self._masks if carried is None else self._carry(decision.frame, carried))

    def _take_over(self, gate: SkipGate, order: Sequence[int], options: SkipOptions) -> None:
        """Let the gate go on where the last run stopped, if this one starts there."""
        paused, self.state.paused = self.state.paused, None
        step = -1 if self.reverse else 1
        if paused is None or len(order) == 0 or (paused.reverse, paused.options) != (self.reverse, options):
            return
        if paused.last + step != order[0] or list(self._tracks(order[0])) != paused.obj_ids:
            return
        key = paused.memo.frame_idx
        outputs = [self.state.objects[obj_id].latest_output(key) for obj_id in paused.obj_ids]
        self._outputs = [output for output in outputs if output is not None]
        if len(self._outputs) < len(outputs):
            return
        self._frame_idx, self._tracked, self._shown = key, paused.obj_ids, self.state.obj_ids
        since = ((t, self.state.gate_frame(t)) for t in range(key + step, order[0], step))
        gate.resume(paused.memo, self.state.gate_frame(key), since)

    def is_over(self) -> bool:
        self.state.check_open()
        return not any(self.scope.includes(obj_id) for obj_id in self.state.objects)

    def has_changed(self) -> bool:
        pending = [track for track in self.state.objects.values() if track.has_pending]
        for track in pending:
            self.tracker._commit_prompts(self.state, track)
        before, self._known = self._known, self.state.obj_ids
        return bool(pending) or before != self._known

    def is_prompted(self, frame_idx: int) -> bool:
        return any(frame_idx in track.prompted for track in self._tracks(frame_idx).values())

    def process(self, frame_idx: int) -> None:
        tracks = self._tracks(frame_idx)
        self._frame_idx, self._tracked, self._shown = frame_idx, list(tracks), self.state.obj_ids
        self._outputs = [*self.tracker._track_frame(self.state, list(tracks.values()), frame_idx, self.reverse)]
        side = self.tracker.image_size // 4
        nothing = torch.empty(0, 1, side, side, device=self.state.device)
        masks = [output.pred_masks.to(self.state.device, non_blocking=True) for output in self._outputs]
        self._masks = torch.cat(masks) if masks else nothing

    def key_frame(self, frame_idx: int, frame: GateFrame) -> KeyFrame:
        return key_frame_of(self._outputs, frame_idx, frame)

    def _tracks(self, frame_idx: int) -> dict[ObjectId, ObjectTrack]:
        return {
            obj_id: track
            for obj_id, track in self.state.objects.items()
            if self.scope.includes(obj_id) and self.scope.covers(track, frame_idx, self.reverse)
        }

    def _scores(self) -> list[Tensor]:
        return [output.object_score_logits.to(self.state.device) for output in self._outputs]

    def _ious(self) -> list[Tensor]:
        return [_iou(output).to(self.state.device) for output in self._outputs]

    def _carry(self, frame_idx: int, logits: np.ndarray) -> Tensor:
        """Show masks (N, h, w) that were carried to a skipped frame; returns them as (N, 1, h, w)."""
        masks = torch.tensor(logits, device=self.state.storage_device)[:, None]
        tracks = [self.state.objects.get(obj_id) for obj_id in self._tracked]
        scores, ious = stack_numbers(self._scores()).tolist(), stack_numbers(self._ious()).tolist()
        for i, track in enumerate(tracks):
            if track is not None:  # it may have been removed since
                track.carry(frame_idx, CarriedMask(masks[i : i + 1], scores[i], ious[i]))
                track.tracked[frame_idx] = self.reverse
        if self.state.keep == "window":
            # A look-ahead shows skipped frames after the key frame beyond them, which is the one to be remembered.
            newest = min if self.reverse else max
            position = newest(frame_idx, self._frame_idx)
            fade([track for track in tracks if track is not None], position, self.tracker.reach)
        return masks.to(self.state.device, copy=True)  # what is yielded is the caller's to change

    def _answer(self, decision: FrameDecision, masks: Tensor) -> FrameAnswer:
        """Put the tracked objects' masks (N, 1, h, w) together with what is known of the others."""
        t = decision.frame
        prompted = [o for o in self._shown if (track := self.state.objects.get(o)) and t in track.prompted]
        if self._tracked == self._shown:
            return FrameAnswer(decision, list(self._shown), masks, self._scores(), self._ious(), prompted)
        each = [masks[i : i + 1] for i in range(len(masks))]
        rows = dict(zip(self._tracked, zip(each, self._scores(), self._ious(), strict=True), strict=True))
        known = [rows.get(obj_id) or known_result(self.state, obj_id, t, masks) for obj_id in self._shown]
        shown, scores, ious = ([*column] for column in zip(*known, strict=True))
        return FrameAnswer(decision, list(self._shown), torch.cat(shown), scores, ious, prompted)


def known_answer(state: VideoState, frame_idx: int, like: Tensor) -> FrameAnswer:
    """What is known of all objects on a frame that was tracked before."""
    known = [known_result(state, obj_id, frame_idx, like) for obj_id in state.objects]
    masks, scores, ious = ([*column] for column in zip(*known, strict=True))
    prompted = [obj_id for obj_id, track in state.objects.items() if frame_idx in track.prompted]
    return FrameAnswer(state.decision_of[frame_idx], state.obj_ids, torch.cat(masks), scores, ious, prompted)


def known_result(state: VideoState, obj_id: ObjectId, frame_idx: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One object's masks (1, 1, h, w), object score (1, 1) and predicted IoU (1, 1), as they were found before.

    Args:
        like: mask logits of the size and on the device that are wanted.
    """
    track = state.objects.get(obj_id)
    prompted = track is not None and frame_idx in track.pending_prompted
    masks = None if track is None else track.latest_masks(frame_idx, prompted)
    if track is None or masks is None:
        nothing = like.new_full((1, 1), NO_OBJ_SCORE)
        return like.new_full((1, 1, *like.shape[-2:]), NO_OBJ_SCORE), nothing, torch.zeros_like(nothing)
    output = track.latest_output(frame_idx, prompted)
    if output is not None:
        return masks.to(like.device), output.object_score_logits.to(like.device), _iou(output).to(like.device)
    carried = track.carried.get(frame_idx) or track.faded_carried[frame_idx]
    score, iou = (like.new_full((1, 1), number) for number in (carried.object_score, carried.predicted_iou))
    return masks.to(like.device), score, iou


def key_frame_of(outputs: Sequence[FrameOutput | FadedOutput], frame_idx: int, frame: GateFrame) -> KeyFrame:
    """What the gate may know of a frame that was processed, from the outputs of its N objects."""
    if not outputs:
        return KeyFrame(frame_idx, frame, np.empty((0, 1, 1), np.float32), *np.empty((2, 0), np.float32))
    return KeyFrame(
        frame_idx, frame, logits=torch.cat([output.pred_masks for output in outputs])[:, 0].float().cpu().numpy(),
        predicted_ious=stack_numbers([_iou(output) for output in outputs]).cpu().numpy(),
        object_scores=stack_numbers([output.object_score_logits for output in outputs]).cpu().numpy(),
    )  # fmt: skip


def stack_numbers(values: Sequence[Tensor]) -> Tensor:
    """One number (1, 1) of each object, as float32 (N,). Numbers of any precision, within any autocast."""
    return torch.cat([value.float().flatten() for value in values]) if values else torch.empty(0)


def _iou(output: FrameOutput | FadedOutput) -> Tensor:
    return torch.ones_like(output.object_score_logits) if output.ious is None else output.ious

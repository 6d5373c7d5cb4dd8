"""One way through a clip: which frames in which order, which objects on each of them, and what is shown of all.

N objects of the session; h, w of low-res mask logits.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sam2.frame_skipping import SKIPPED, Answered, FrameDecision, SkipOptions, all_frames, gated_frames
from sam2.modeling.outputs import FrameOutput
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from sam2.results import Status
from sam2.utils.change_detection import Action, GateFrame, KeyFrame
from sam2.utils.scene_cuts import ColourWatch
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
    statuses: list[Status | None]  # N; None where an object has no result
    scene_cut: bool  # another scene begins with the frame, in the direction of the run


class ObjectAnswer(NamedTuple):
    """One object on one frame; the fields are those of `FrameAnswer`."""

    masks: Tensor  # (1, 1, h, w)
    object_score: Tensor  # (1, 1)
    predicted_iou: Tensor  # (1, 1)
    status: Status | None


class ProcessedFrame(NamedTuple):
    """A frame that the network saw."""

    frame_idx: int
    obj_ids: list[ObjectId]  # of the session then: they are shown on this frame, and those skipped after it
    tracks: dict[ObjectId, ObjectTrack]  # of those that were tracked
    outputs: Sequence[FrameOutput | FadedOutput]  # of the same


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

    @classmethod
    def of(cls, obj_ids: Collection[ObjectId] | None, from_prompt: bool) -> Scope:
        """The scope of these objects. Raises TypeError or ValueError where they are no ids, or none."""
        if obj_ids is None:
            return cls(None, from_prompt)
        if isinstance(obj_ids, str) or not isinstance(obj_ids, Iterable):
            raise TypeError(f"obj_ids must be a list of ids, or None for all, got {obj_ids!r}")
        ids = frozenset(obj_ids)
        if not ids:
            raise ValueError("obj_ids must name at least one object, or be None for all")
        return cls(ids, from_prompt)

    def includes(self, obj_id: ObjectId) -> bool:
        """Whether the object is tracked at all, if it has a prompt."""
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

    What the network says of a frame enters the session when the frame is shown. With look-ahead, frames skipped before
    it are shown first, and edits meanwhile find a session that has come no further than what the user has seen.

    Args:
        scope: what is tracked; all other objects show what is known of them from before.
        colours: of the frame before, where the run goes on after another one.
    """

    def __init__(
        self, tracker: VideoTracker, state: VideoState, reverse: bool, scope: Scope, colours: ColourWatch | None = None
    ) -> None:
        self.tracker, self.state, self.reverse, self.scope = tracker, state, reverse, scope
        self._edits = (state.edits, state.obj_ids)  # when they were last taken in
        nothing = ProcessedFrame(-1, [], {}, [])
        self._shown = self._next = nothing  # the frame processed last that was shown, and the one processed last
        self._found: list[FrameOutput] = []  # on the latter
        self._looks_ahead = False
        self._doubts: list[str | None] = []  # of the same, why they are not believed
        self._colours = colours or ColourWatch(reverse)

    def frames(self, order: Sequence[int], options: SkipOptions) -> Iterator[FrameAnswer]:
        """Decide on the frames one by one, process or skip them, and put it on record.

        A run that starts at the frame after the one where the last run stopped, with nothing changed in between, goes
        on with what the gate knew there: the two are one.
        """
        self.state.frames.also = options.prepare
        # Regions are cut out of the frames as they are; the gate looks at whole frames.
        self.state.frames.resizes = self.state.search_factor is None or options.is_on
        self._looks_ahead = options.lookahead > 0
        self._look_at_frame_before(order)
        if not options.is_on:
            self.state.paused = None
            yield from self._answers(all_frames(order, self))
            return
        gate = options.gate()
        self._take_over(gate, order, options)
        memo = gate.memo()
        for answer in self._answers(gated_frames(order, self.state.gate_frame, self, options, gate=gate)):
            if answer.decision.action not in SKIPPED:
                memo = gate.memo()  # on skipped frames, with look-ahead, the gate is further than what was shown
            assert memo is not None
            tracked = list(self._shown.tracks)
            self.state.paused = PausedRun(answer.decision.frame, self.reverse, tracked, options, memo)
            yield answer
        self.state.paused = None

    def known_frames(self) -> Iterator[FrameAnswer]:
        """The frames from 0 to the first prompted one, as they were found before; prompts that are given meanwhile may
        make one of the next frames the first."""
        frame_idx = 0
        while not self.is_over() and frame_idx < min(self.first_prompts()):
            decision = self.state.decision_of.get(frame_idx) or nothing_done(frame_idx)
            yield known_answer(self.state, decision)
            frame_idx += 1
            self.take_edits()

    def first_prompts(self) -> list[int]:
        """The first prompted frame of each object that is tracked."""
        return [min(track.prompted) for track in self._included().values()]

    def _answers(self, decided: Iterable[Answered]) -> Iterator[FrameAnswer]:
        for decision, carried in decided:
            self.state.record(decision)
            if carried is None:
                self._show_next()
                masks = [output.pred_masks for output in self._shown.outputs]
            else:
                logger.info("Skipping frame %d due to %s", decision.frame, decision.reason)
                masks = self._carry(decision, carried)
            yield self._answer(decision, masks)

    def _take_over(self, gate: SkipGate, order: Sequence[int], options: SkipOptions) -> None:
        """Let the gate go on where the last run stopped, if this one starts there."""
        paused, self.state.paused = self.state.paused, None
        step = -1 if self.reverse else 1
        if paused is None or len(order) == 0 or (paused.reverse, paused.options) != (self.reverse, options):
            return
        tracks = self._tracks(order[0])
        if paused.last + step != order[0] or list(tracks) != paused.obj_ids:
            return
        key = paused.memo.frame_idx
        found = [track.latest_output(key) for track in tracks.values()]
        outputs = [output for output in found if output is not None]
        if len(outputs) < len(found):
            return
        self._shown = ProcessedFrame(key, self.state.obj_ids, tracks, outputs)
        since = ((t, self.state.gate_frame(t)) for t in range(key + step, order[0], step))
        gate.resume(paused.memo, self.state.gate_frame(key), since)

    def _is_cut(self, frame_idx: int) -> bool:
        """Whether another scene begins with a frame, in the direction of the run."""
        return self.tracker.guard is not None and frame_idx + self.reverse in self.state.scene_cuts

    def _look_at_frame_before(self, order: Sequence[int]) -> None:
        """Where a run goes on after another, its first frame may begin a scene too."""
        guard = self.tracker.guard
        if guard is None or not guard.finds_cuts or len(order) == 0 or self.state.is_live:
            return
        before = order[0] + (1 if self.reverse else -1)
        if before in self.state.decision_of and self.state.frames.has(before):
            self._colours.change(before, self.state.frames.frame(before))

    def is_over(self) -> bool:
        self.state.check_open()
        return not self._included()

    def take_edits(self) -> bool:
        self.state.check_open()
        for track in self.state.objects.values():
            self.tracker._commit_prompts(self.state, track)
        before, self._edits = self._edits, (self.state.edits, self.state.obj_ids)
        return before != self._edits

    def is_prompted(self, frame_idx: int) -> bool:
        return any(frame_idx in track.prompted for track in self._tracks(frame_idx).values())

    def begins_scene(self, frame_idx: int) -> bool:
        guard = self.tracker.guard
        if guard is None or not guard.finds_cuts:
            return False
        change = self._colours.change(frame_idx, self.state.frames.frame(frame_idx))
        if change is not None:
            self.state.note_scene(frame_idx + self.reverse, change > guard.cut_distance)
        return self._is_cut(frame_idx)

    def process(self, frame_idx: int) -> None:
        tracks = self._tracks(frame_idx)
        # With look-ahead the frames since the last key frame are yet to be shown.
        since = self._shown.frame_idx if self._looks_ahead and self._shown.frame_idx >= 0 else None
        known = list(tracks.values())
        if since is not None:
            for track in known:
                track.spread_doubt(since, frame_idx)
        is_cut = self.begins_scene(frame_idx)
        self._found = self.tracker._track_frame(self.state, known, frame_idx, self.reverse, since, is_cut)
        self._doubts = self.tracker._doubts(self.state, known, self._found, frame_idx, self.reverse, since)
        for obj_id, doubt in zip(tracks, self._doubts, strict=True):
            if doubt is not None:
                logger.info("Doubting object %r on frame %d: %s", obj_id, frame_idx, doubt)
        self._next = ProcessedFrame(frame_idx, self.state.obj_ids, tracks, self._found)

    def key_frame(self, frame_idx: int, frame: GateFrame) -> KeyFrame:
        key = key_frame_of(self._found, frame_idx, frame)
        if not any(self._doubts):
            return key
        # What is gone is no mistake: it went somewhere between the key frames, as ever.
        is_shown = (key.logits > 0).any(axis=(1, 2))
        return key._replace(believed=np.array([doubt is None for doubt in self._doubts]) | ~is_shown)

    def _included(self) -> dict[ObjectId, ObjectTrack]:
        """What is tracked somewhere. An object whose prompts were all taken back is not, until it gets a new one."""
        objects = self.state.objects.items()
        return {obj_id: track for obj_id, track in objects if self.scope.includes(obj_id) and track.prompted}

    def _tracks(self, frame_idx: int) -> dict[ObjectId, ObjectTrack]:
        included = self._included().items()
        return {obj_id: track for obj_id, track in included if self.scope.covers(track, frame_idx, self.reverse)}

    def _show_next(self) -> None:
        """The frame that was processed is shown now: its outputs enter the session."""
        self._shown = self._next
        tracks = list(self._shown.tracks.values())
        self.tracker._commit_frame(self.state, tracks, self._found, self._doubts, self._shown.frame_idx, self.reverse)

    def _carry(self, decision: FrameDecision, logits: np.ndarray) -> list[Tensor]:
        """Show masks (N, h, w) that were carried to a skipped frame; returns N of (1, 1, h, w)."""
        tracks, outputs = [*self._shown.tracks.values()], self._shown.outputs
        masks = torch.tensor(logits, device=self.state.storage_device)[:, None]
        scores = stack_numbers([output.object_score_logits for output in outputs]).tolist()
        ious = stack_numbers([_iou(output) for output in outputs]).tolist()
        for i, track in enumerate(tracks):
            region = outputs[i].region
            carried = CarriedMask(masks[i : i + 1], scores[i], ious[i], decision.action, region)
            track.carry(decision.frame, carried, doubted=self._shown.frame_idx in track.doubted)
            track.tracked[decision.frame] = self.reverse
        if self.state.keep == "window":
            fade(tracks, decision.frame, self.tracker.reach)
        return [masks[i : i + 1] for i in range(len(tracks))]

    def _answer(self, decision: FrameDecision, masks: Sequence[Tensor]) -> FrameAnswer:
        """Put the tracked objects' masks, N of (1, 1, h, w), together with what is known of the others."""
        t, device, shown = decision.frame, self.state.device, self._shown
        rows: dict[ObjectId, ObjectAnswer] = {}
        for (obj_id, track), output, each in zip(shown.tracks.items(), shown.outputs, masks, strict=True):
            status = _status(track, t, t in track.prompted, decision.action)
            score = output.object_score_logits.to(device)
            rows[obj_id] = ObjectAnswer(each.to(device, non_blocking=True), score, _iou(output).to(device), status)
        known = [rows.get(obj_id) or known_result(self.state, obj_id, t) for obj_id in shown.obj_ids]
        return _join(decision, shown.obj_ids, known, self._is_cut(t))


@torch.inference_mode()
def one_way(run: TrackingRun, order: Sequence[int], options: SkipOptions, progress: bool) -> Iterator[FrameAnswer]:
    """All frames of an order."""
    with _bar(len(order), progress) as bar:
        for answer in run.frames(order, options):
            bar.update()
            yield answer


@torch.inference_mode()
def both_ways(
    tracker: VideoTracker, state: VideoState, scope: Scope, options: SkipOptions, progress: bool
) -> Iterator[FrameAnswer]:
    """All frames of the clip in order of time, after each object was tracked back from its first prompt."""
    back, on = (TrackingRun(tracker, state, reverse, scope) for reverse in (True, False))
    backward = frame_order(state, max(back.first_prompts()), None, reverse=True)
    with _bar(len(backward) + state.num_frames, progress) as bar:
        for _ in back.frames(backward, options):
            bar.update()
        start = 0
        for answer in on.known_frames():
            bar.update()
            yield answer
            start = answer.decision.frame + 1
        for answer in on.frames(frame_order(state, start, None, reverse=False), options):
            bar.update()
            yield answer


def _bar(total: int, progress: bool) -> tqdm:
    """The progress bar of a run. A program without a console, as of pythonw, has no stderr to show it on."""
    return tqdm(total=total, desc="propagate in video", disable=not progress or sys.stderr is None)


def nothing_done(frame_idx: int) -> FrameDecision:
    """What is on record of a frame on which no object was tracked."""
    return FrameDecision(frame_idx, "reused", 0.0, "no object to track", 0.0)


def known_answer(state: VideoState, decision: FrameDecision) -> FrameAnswer:
    """What is known of all objects on a frame that was tracked before."""
    known = [known_result(state, obj_id, decision.frame) for obj_id in state.objects]
    return _join(decision, state.obj_ids, known, decision.frame in state.scene_cuts)


def known_result(state: VideoState, obj_id: ObjectId, frame_idx: int) -> ObjectAnswer:
    """One object as it was found before; without a mask where it was not, or all its prompts were taken back since."""
    track, device = state.track(obj_id), state.device
    prompted = frame_idx in track.pending_prompted
    output = track.latest_output(frame_idx, prompted) if track.has_prompts else None
    if output is not None:
        is_prompt = prompted or frame_idx in track.pending_propagated or frame_idx in track.prompted
        score, iou = output.object_score_logits.to(device), _iou(output).to(device)
        return ObjectAnswer(output.pred_masks.to(device), score, iou, _status(track, frame_idx, is_prompt, "processed"))
    carried = track.carried.get(frame_idx) or track.faded_carried.get(frame_idx) if track.has_prompts else None
    if carried is not None:
        score, iou = (
            torch.full((1, 1), number, device=device) for number in (carried.object_score, carried.predicted_iou)
        )
        return ObjectAnswer(carried.logits.to(device), score, iou, _status(track, frame_idx, False, carried.action))
    nothing = torch.full((1, 1, state.mask_side, state.mask_side), NO_OBJ_SCORE, device=device)
    return ObjectAnswer(nothing, nothing[:, :, 0, 0], torch.zeros(1, 1, device=device), None)


def _status(track: ObjectTrack, frame_idx: int, prompted: bool, action: Action) -> Status:
    """How one object came by its mask on a frame with which something was done."""
    if prompted:
        return "prompted"
    if frame_idx in track.doubted:
        return "suspect"
    return "reused" if action == "reused" else "warped" if action == "warped" else "tracked"


def _join(
    decision: FrameDecision, obj_ids: Sequence[ObjectId], answers: Sequence[ObjectAnswer], scene_cut: bool
) -> FrameAnswer:
    """The answers of all N objects as one, in memory of its own: what is yielded is the caller's to change."""
    masks, scores, ious, statuses = ([*column] for column in zip(*answers, strict=True))
    return FrameAnswer(decision, list(obj_ids), torch.cat(masks), scores, ious, statuses, scene_cut)


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

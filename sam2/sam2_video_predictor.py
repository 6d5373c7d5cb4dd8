"""Segment and track objects in a video (SAM 2, Ravi et al. 2024): prompts in, masks of every frame out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sam2.frame_skipping import SkipOptions, Warp
from sam2.modeling.compilation import compile_with_cloned_outputs
from sam2.modeling.outputs import PointInputs
from sam2.modeling.sam2_base import NO_OBJ_SCORE as NO_OBJ_SCORE  # for who imports it from here
from sam2.modeling.search_region import check_search_factor
from sam2.results import FrameResult, frame_result
from sam2.track_guard import TrackGuard
from sam2.upstream_hooks import UpstreamHooks
from sam2.utils.change_detection import SkipPolicy
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.misc import load_video_frames
from sam2.utils.prompts import read_box, read_mask, read_points, resize_mask
from sam2.utils.video_io import StrPath
from sam2.video_propagation import (
    Direction,
    FrameAnswer,
    Scope,
    TrackingRun,
    both_ways,
    frame_order,
    one_way,
    stack_numbers,
)
from sam2.video_state import Corrections, Keep, ObjectId, ObjectTrack, VideoState
from sam2.video_tracking import resize_masks

if TYPE_CHECKING:
    from sam2.calibration import Calibration
    from sam2.streaming import Color, VideoStream

logger = logging.getLogger(__name__)


def _skip_option(name: str) -> property:
    """An attribute of the predictor that stands for a field of its `SkipOptions`, checked when it is set."""

    def read(self: SAM2VideoPredictor) -> Any:
        return getattr(self.skipping, name)

    def write(self: SAM2VideoPredictor, value: Any) -> None:
        self.skipping = dataclasses.replace(self.skipping, **{name: value})

    return property(read, write, doc=f"`SkipOptions.{name}`.")


Answer = tuple[int, list[ObjectId], Tensor]  # frame index, object ids, mask logits (objects, 1, height, width)


class SAM2VideoPredictor(UpstreamHooks):
    """Tracks any number of objects through a video.

    A session is a `VideoState` from `init_state`; the predictor itself keeps nothing between calls. Each object is
    tracked as if it were alone, so objects can be added and removed at any time.

    Args:
        fill_hole_area: fill holes of up to so many low-res pixels in the masks that are shown; 0 fills none.
        non_overlap_masks: give every pixel of the masks that are shown to at most one object.
        clear_non_cond_mem_around_input: after a prompt, forget what was tracked within reach of memory around it, so
            that corrections are not outvoted by the mistakes they correct.
        add_all_frames_to_correct_as_cond: a corrected frame counts as prompted from then on, so that propagation keeps
            the correction instead of tracking the frame anew; `init_state(..., corrections="sticky")` is the same for
            one session.
        skip_mad_threshold, skip_strategy, skip_warp, skip_lookahead, max_consecutive_skips: which frames to skip, and
            how (`SkipOptions`); also attributes, which can be set at any time and count from the next start of a loop.
            The default skips frames that hardly differ from the last processed one; a threshold of 0 or None skips
            none. Each strategy has its own unit of the threshold: set that again when you change the strategy.
        max_batch_objects: so many objects at most go through the network at once; None takes 1 on a CPU, where
            batches gain little and an object's masks are then the same bit for bit whatever the others are, and 16
            elsewhere, where they differ by rounding. Only objects that remember the same frames share a batch.
        search_factor: look for each object in a square of the frame around it, so many times as long as the longer
            side of its box, 1 or more, which the network sees the larger; None looks everywhere, as SAM 2 does. Also an
            attribute, which counts for sessions that are opened afterwards. `max_batch_objects` counts for nothing
            then. See `sam2.modeling.search_region`.
        guard: when masks are doubted: they are shown as "suspect", and memory does not read them (`TrackGuard`). None
            believes all masks, as SAM 2 does. Also an attribute, which counts from the next frame.
        **kwargs: options of `SAM2Base`.
    """

    def __init__(
        self, fill_hole_area: int = 0, non_overlap_masks: bool = False, clear_non_cond_mem_around_input: bool = False,
        add_all_frames_to_correct_as_cond: bool = False, *, skip_mad_threshold: float | None = 0.05,
        skip_strategy: str | SkipPolicy = "naive", skip_warp: Warp = "auto", skip_lookahead: int = 0,
        max_consecutive_skips: int | None = None, max_batch_objects: int | None = None,
        search_factor: float | None = None, guard: TrackGuard | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            fill_hole_area=fill_hole_area, clear_non_cond_mem_around_input=clear_non_cond_mem_around_input,
            max_batch_objects=max_batch_objects, guard=guard, **kwargs,
        )  # fmt: skip
        self.skipping = SkipOptions(
            skip_mad_threshold, skip_strategy, skip_warp, skip_lookahead, max_consecutive_skips
        )  # fmt: skip
        self.search_factor = search_factor
        self.non_overlap_masks = non_overlap_masks
        self.add_all_frames_to_correct_as_cond = add_all_frames_to_correct_as_cond

    skip_mad_threshold = _skip_option("threshold")
    skip_strategy = _skip_option("strategy")
    skip_warp = _skip_option("warp")
    skip_lookahead = _skip_option("lookahead")
    max_consecutive_skips = _skip_option("max_consecutive_skips")

    @property
    def search_factor(self) -> float | None:
        """How many times an object's length the regions are in which it is looked for; None for the whole frame."""
        return self._search_factor

    @search_factor.setter
    def search_factor(self, value: float | None) -> None:
        self._search_factor = check_search_factor(value)

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """Build from a Hugging Face id, a folder or a checkpoint file: see `build_sam2_video_predictor_hf`."""
        from sam2.build_sam import build_sam2_video_predictor_hf

        return build_sam2_video_predictor_hf(model_id, **kwargs)

    # Session

    def init_state(
        self, video_path: Any, offload_video_to_cpu: bool = False, offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False, *, keep: Keep = "window", corrections: Corrections = "tracked",
    ) -> VideoState:  # fmt: skip
        """Open a video for prompting and tracking. Frames are decoded when they are needed.

        Args:
            video_path: a folder of images, a video file, a list of images, an array or tensor of frames: whatever
                `sam2.utils.video_io.open_source` takes.
            offload_video_to_cpu: keep prepared frames on the CPU until they are encoded.
            offload_state_to_cpu: keep memory and masks on the CPU, for less GPU memory and some speed.
            async_loading_frames: upstream's option; frames are always read ahead in the background.
            keep: "window" keeps what memory attention can still read, which does not grow with the video: the frames
                around the current one and around every prompt. Of all others it keeps the object pointer and the
                masks, packed to some KB (`PackedMask`). The masks that are tracked are the same as with "all". Where
                an old frame is shown again its edges are right to a small share of a pixel; where a later click or
                start needs memory that was dropped, it is made again from the packed masks and a warning is logged:
                the answer is then close to that of "all", not equal. "all" keeps everything, as upstream does.
            corrections: what a click on a frame does that was tracked before. "tracked", as upstream: it tells memory
                more, and the next propagation tracks the frame anew. "sticky": the frame counts as prompted from then
                on, and propagation returns the corrected mask.

        Raises:
            FileNotFoundError, ValueError: there is no such video, it has no usable frames, or an option is unknown.
        """
        for name, value, allowed in (
            ("keep", keep, ("window", "all")),
            ("corrections", corrections, ("tracked", "sticky")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        device = self.device
        frames, _, _ = load_video_frames(
            video_path=video_path, image_size=self.image_size, offload_video_to_cpu=offload_video_to_cpu,
            async_loading_frames=async_loading_frames, compute_device=device,
        )  # fmt: skip
        if not isinstance(frames, FrameLoader):  # somebody put a function of their own in its place
            raise TypeError(
                f"load_video_frames must return a FrameLoader, got {type(frames).__name__}: init_state takes arrays, "
                "tensors, lists and any FrameSource as they are"
            )
        return VideoState(
            frames, device=device, storage_device=torch.device("cpu") if offload_state_to_cpu else device,
            offload_video_to_cpu=offload_video_to_cpu, offload_state_to_cpu=offload_state_to_cpu,
            keep=keep, corrections=corrections, search_factor=self.search_factor,
        )  # fmt: skip

    @contextmanager
    def open(self, video: Any, **options: Any) -> Iterator[VideoState]:
        """`init_state` for a `with` statement: the session is closed, and its memory freed, at the end of it."""
        state = self.init_state(video, **options)
        try:
            yield state
        finally:
            state.close()

    def save(self, state: VideoState, path: StrPath) -> None:
        """Write a session to a file, to go on with `load` later or on another machine: prompts, memory, masks and
        decisions, everything but the video, the weights and what the user keeps in it under names of their own.

        Raises:
            ValueError: the session is closed, or a stream. TypeError: an object's id is no number, string or tuple.
        """
        from sam2.state_file import save_state

        save_state(self, state, path)

    def load(self, path: StrPath, video: Any, **options: Any) -> VideoState:
        """Open a video with the session that `save` wrote; what follows is what would have followed there.

        Args:
            video: the same video, from wherever it lies now.
            **options: the offloading options of `init_state`; `keep`, `corrections` and the search factor are the saved
                session's.

        Raises:
            FileNotFoundError: there is no such file or video.
            ValueError: the file is no session, or one of another video or another model.
        """
        from sam2.state_file import load_state

        return load_state(self, path, video, **options)

    def stream(
        self, *, color: Color | None = None, corrections: Corrections = "tracked", offload_state_to_cpu: bool = False
    ) -> VideoStream:
        """Track frames as they come, from a camera or any iterator: see `VideoStream`.

        Args:
            color: the order of the colours of frames that are arrays or tensors, "bgr" from OpenCV, "rgb" from most
                others; PIL images know theirs.
            corrections, offload_state_to_cpu: as of `init_state`.

        Raises:
            ValueError: `color` is neither, or `skip_lookahead` is on.
        """
        from sam2.streaming import VideoStream

        return VideoStream(self, color=color, corrections=corrections, offload_state_to_cpu=offload_state_to_cpu)

    @torch.inference_mode()
    def reset_state(self, inference_state: VideoState) -> None:
        """Forget all objects, their prompts and results; the video stays open."""
        inference_state.check_open()
        inference_state.objects.clear()
        inference_state.decision_of.clear()
        inference_state.scene_cuts.clear()
        inference_state.note_edit()

    # Prompts

    @torch.inference_mode()
    def add_new_points_or_box(
        self, inference_state: VideoState, frame_idx: int, obj_id: ObjectId, points: Any = None, labels: Any = None,
        clear_old_points: bool = True, normalize_coords: bool = True, box: Any = None,
    ) -> Answer:  # fmt: skip
        """Prompt an object, new or known, with clicks, a box or both on one frame.

        Args:
            frame_idx: 0 to num_frames - 1.
            obj_id: any hashable value.
            points: (P, 2) as (x, y). labels: (P,), 1 for the object, 0 for what is not.
            clear_old_points: forget the frame's earlier clicks; otherwise the new ones are added to them.
            normalize_coords: coordinates are pixels of the video; otherwise shares of its width and height.
            box: (x_min, y_min, x_max, y_max); it always replaces earlier clicks.

        Returns:
            `frame_idx`, all object ids, and mask logits (objects, 1, height, width), above 0 inside an object.

        Raises:
            ValueError, TypeError: bad input; the session is as it was before the call.
        """
        state = inference_state
        frame_idx = state.check_frame("frame_idx", frame_idx)
        if points is None and labels is None and box is None:
            raise ValueError("give points with labels, a box, or both")
        height, width = (state.video_height, state.video_width) if normalize_coords else (1, 1)
        coords, marks = read_points(points, labels)
        if box is not None:
            if not clear_old_points:
                raise ValueError("a box replaces earlier clicks: it needs clear_old_points=True")
            corners = read_box(box, height, width)
            coords = torch.cat([corners, coords.to(corners.device)], dim=1)
            marks = torch.cat([torch.tensor([[2, 3]], dtype=torch.int32), marks.cpu()], dim=1)
        coords = coords / coords.new_tensor([width, height]) * self.image_size
        coords, marks = coords.to(state.device), marks.to(state.device)

        track = state.objects.get(obj_id) or ObjectTrack()
        earlier = None if clear_old_points else track.points.get(frame_idx)
        if earlier is not None:
            coords = torch.cat([earlier.point_coords, coords], dim=1)
            marks = torch.cat([earlier.point_labels, marks], dim=1)
        prompt = PointInputs(coords, marks)
        self._answer_prompt(state, track, frame_idx, prompt, self._is_prompted_frame(state, track, frame_idx))
        track.points[frame_idx] = prompt
        track.masks.pop(frame_idx, None)
        return self._show_prompted(state, obj_id, track, frame_idx)

    def add_new_points(self, *args: Any, **kwargs: Any) -> Answer:
        """Upstream's older name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    @torch.inference_mode()
    def add_new_mask(self, inference_state: VideoState, frame_idx: int, obj_id: ObjectId, mask: Any) -> Answer:
        """Prompt an object, new or known, with its mask on one frame.

        Args:
            mask: (height, width) of the video, or (S, S) of the network's input; non-zero is the object. One so small
                that nothing of it is left at the network's size is logged as a warning. One so thin that its answer, at
                a quarter of that size, has an IoU with it below 0.5 is remembered as it was given, not as it is shown;
                with search regions every mask is, and shown as S x S pixels of the frame have it.

        Returns, Raises: as `add_new_points_or_box`.
        """
        state = inference_state
        frame_idx = state.check_frame("frame_idx", frame_idx)
        square = (self.image_size, self.image_size)
        given = read_mask(mask, ((state.video_height, state.video_width), square)).to(state.device)
        prompt, track = resize_mask(given, square), state.objects.get(obj_id) or ObjectTrack()
        seen = prompt if state.search_factor is None else given
        answer = self._answer_prompt(state, track, frame_idx, seen, self._is_prompted_frame(state, track, frame_idx))
        kept = prompt if state.search_factor is None else answer.pred_masks > 0
        if (given >= 0.5).any() and not kept.any():
            is_there = bool((answer.object_score_logits > 0).any())
            logger.warning(
                "the mask of obj_id %r on frame %d is empty once it is reduced to the network's %d x %d pixels: %s",
                obj_id, frame_idx, *square,
                "it is remembered, but not shown" if is_there else "the object counts as absent there",
            )  # fmt: skip
        track.masks[frame_idx] = prompt
        track.points.pop(frame_idx, None)
        return self._show_prompted(state, obj_id, track, frame_idx)

    def _is_prompted_frame(self, state: VideoState, track: ObjectTrack, frame_idx: int) -> bool:
        """Whether a prompt on this frame makes it a prompted one: always before it was tracked, else by option."""
        sticky = state.corrections == "sticky" or self.add_all_frames_to_correct_as_cond
        # parity: a further prompt on a prompted frame that was tracked is shown, and lost when tracking goes on. Live
        # there is no going back to it, so there it counts.
        refined = state.is_live and frame_idx in track.prompted
        return frame_idx not in track.tracked or sticky or refined

    def _show_prompted(self, state: VideoState, obj_id: ObjectId, track: ObjectTrack, frame_idx: int) -> Answer:
        """Add the object to the session now that its prompt was answered, and show all objects on that frame."""
        state.objects.setdefault(obj_id, track)
        return self._show(state, frame_idx, prompted=self._is_prompted_frame(state, track, frame_idx))

    def _show(self, state: VideoState, frame_idx: int, prompted: bool) -> Answer:
        """The newest masks of all objects on a frame, NO_OBJ_SCORE where an object has none."""
        masks = self._consolidate_temp_output_across_obj(state, frame_idx, prompted, consolidate_at_video_res=True)
        return frame_idx, state.obj_ids, self._separate(masks["pred_masks_video_res"])

    @torch.inference_mode()
    def clear_all_prompts_in_frame(
        self, inference_state: VideoState, frame_idx: int, obj_id: ObjectId, need_output: bool = True
    ) -> Answer | None:
        """Take back an object's prompts on one frame; returns the frame's masks if `need_output`.

        What they answered stays as if it had been tracked. In a running loop, an object without any prompt left is not
        tracked from the next frame on, and shows no mask, until it gets a new one.

        Raises:
            ValueError: unknown object or frame.
        """
        frame_idx = inference_state.check_frame("frame_idx", frame_idx)
        inference_state.track(obj_id).forget_prompts(frame_idx)
        inference_state.note_edit()
        return self._show_after_change(inference_state, frame_idx) if need_output else None

    @torch.inference_mode()
    def remove_object(
        self, inference_state: VideoState, obj_id: ObjectId, strict: bool = False, need_output: bool = True
    ) -> tuple[list[ObjectId], list[tuple[int, Tensor]]]:
        """Remove an object from the session. The other objects' results stay as they are.

        Args:
            strict: an unknown object is an error rather than nothing to do.

        Returns:
            The remaining ids, and (frame index, mask logits of the remaining objects) for each frame the object had
            been prompted on, if `need_output`.

        Raises:
            RuntimeError: unknown object and `strict`.
        """
        state = inference_state
        state.check_open()
        if obj_id not in state.objects:
            if strict:
                raise RuntimeError(f"obj_id {obj_id!r} is not in this session; its objects are {state.obj_ids}")
            return state.obj_ids, []
        frames = state.objects.pop(obj_id).prompt_frames()
        state.note_edit()
        if not need_output or not state.objects:
            return state.obj_ids, []
        shown = [self._show_after_change(state, t) for t in frames]
        return state.obj_ids, [(t, masks) for t, _, masks in shown]

    def _show_after_change(self, state: VideoState, frame_idx: int) -> Answer:
        prompted = any(frame_idx in track.pending_prompted for track in state.objects.values())
        return self._show(state, frame_idx, prompted)

    # Propagation

    @torch.inference_mode()
    def propagate_in_video_preflight(self, inference_state: VideoState) -> None:
        """Write the prompts that are pending to memory.

        Raises:
            RuntimeError: there is no object, or an object without any prompt.
        """
        self._prepare(inference_state, Scope())

    def _prepare(self, state: VideoState, scope: Scope) -> None:
        """`propagate_in_video_preflight`; only the objects that are tracked need a prompt."""
        state.check_open()
        if not state.objects:
            raise RuntimeError("nothing to track: add points, a box or a mask for an object first")
        for obj_id, track in state.objects.items():
            self._commit_prompts(state, track)
            if scope.includes(obj_id) and not track.prompted:
                raise RuntimeError(f"nothing to track for obj_id {obj_id!r}: add points, a box or a mask for it first")

    def propagate_in_video(
        self, inference_state: VideoState, start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None, reverse: bool = False, *, progress: bool = True,
        obj_ids: Collection[ObjectId] | None = None, direction: Direction | None = None,
    ) -> Iterator[Answer]:  # fmt: skip
        """Track objects through the video.

        Objects may be prompted, corrected, added and removed while the loop runs, and prompts taken back; it takes
        effect on the next frame, which is processed then, and on no other object but for that. The loop ends when no
        object with a prompt is left.

        Args:
            start_frame_idx: first frame; by default the earliest frame that any tracked object was prompted on. After
                the last frame there is nothing to do.
            max_frame_num_to_track: how many frames to go from there, the first one not counted (upstream's rule: N
                gives N + 1 frames); by default to the end.
            reverse: go backwards in time; from frame 0 there is nothing to do.
            progress: show a progress bar.
            obj_ids: track these only. The others are yielded as they were found before, NO_OBJ_SCORE where they were
                not, and stay as they are.
            direction: "forward" or "backward" (which is `reverse`), or "both": each object backward from its first
                prompted frame to the start of the video, then forward from there to the end, which takes no
                `start_frame_idx` or `max_frame_num_to_track`. All frames are yielded once, in order of time, after the
                backward part is done. On each object it is what two calls would do, backward first. Edits in the loop
                count forward only: an object that is added is tracked from its prompt on, and so is a known one from a
                prompted frame before its first. For the way back, propagate again.

        Yields:
            Frame index, object ids, mask logits (objects, 1, height, width), above 0 inside an object.

        Raises:
            ValueError, TypeError: bad arguments, at the call. Where the loop starts, as it may be made before its
                prompts: ValueError for an unknown id in `obj_ids`, RuntimeError if there is nothing to track.
        """
        answers = self._plan(
            inference_state, start_frame_idx, max_frame_num_to_track, reverse, progress, obj_ids, direction
        )
        return ((a.decision.frame, a.obj_ids, self._at_video_size(inference_state, a)) for a in answers)

    def propagate_results(
        self, inference_state: VideoState, start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None, reverse: bool = False, *, progress: bool = True,
        obj_ids: Collection[ObjectId] | None = None, direction: Direction | None = None,
    ) -> Iterator[FrameResult]:  # fmt: skip
        """`propagate_in_video` that yields masks, boxes, scores and statuses rather than logits: see `sam2.results`.

        Objects that were not looked for on a frame, now or before, are left out of its result.
        """
        answers = self._plan(
            inference_state, start_frame_idx, max_frame_num_to_track, reverse, progress, obj_ids, direction
        )
        return (self._result(inference_state, answer) for answer in answers)

    def _plan(
        self, state: VideoState, start: int | None, max_frames: int | None, reverse: bool, progress: bool,
        obj_ids: Collection[ObjectId] | None, direction: Direction | None,
    ) -> Iterator[FrameAnswer]:  # fmt: skip
        """Check the arguments of a propagation at once; it sets out when the first frame is asked for."""
        state.check_open()
        if max_frames is not None and max_frames < 0:
            raise ValueError(f"max_frame_num_to_track must not be negative, got {max_frames}")
        if direction not in (None, "forward", "backward", "both"):
            raise ValueError(f'direction must be "forward", "backward", "both" or None, got {direction!r}')
        if reverse and direction not in (None, "backward"):
            raise ValueError(f"reverse=True goes backward, got direction={direction!r} as well")
        backward = bool(reverse) or direction == "backward"
        if start is not None:
            start = state.check_frame("start_frame_idx", start, or_later=not backward)
        if direction == "both" and (start is not None or max_frames is not None):
            raise ValueError('direction="both" goes from the prompts to both ends: it takes no start and no limit')
        scope = Scope.of(obj_ids, from_prompt=direction == "both")
        return self._set_out(state, scope, start, max_frames, backward, progress)

    def _set_out(
        self, state: VideoState, scope: Scope, start: int | None, max_frames: int | None, backward: bool,
        progress: bool,
    ) -> Iterator[FrameAnswer]:  # fmt: skip
        """What waits for the first step of the loop, so that the loop may be made before its prompts."""
        for obj_id in scope.obj_ids or ():
            state.track(obj_id)
        with torch.inference_mode():
            self._prepare(state, scope)
        if scope.from_prompt:
            yield from both_ways(self, state, scope, self.skipping, progress)
            return
        tracks = [track for obj_id, track in state.objects.items() if scope.includes(obj_id)]
        start = min(t for track in tracks for t in track.prompted) if start is None else start
        run = TrackingRun(self, state, backward, scope)
        yield from one_way(run, frame_order(state, start, max_frames, backward), self.skipping, progress)

    def _at_video_size(self, state: VideoState, answer: FrameAnswer) -> Tensor:
        """An answer's masks as they are shown, logits (N, 1, H, W); they are the caller's to change."""
        shown = resize_masks(answer.masks, (state.video_height, state.video_width))
        return self._separate(shown.clone() if shown is answer.masks else shown)

    def _result(self, state: VideoState, answer: FrameAnswer) -> FrameResult:
        return frame_result(
            answer.decision, answer.obj_ids, self._at_video_size(state, answer), stack_numbers(answer.object_scores),
            stack_numbers(answer.predicted_ious), statuses=answer.statuses, scene_cut=answer.scene_cut,
        )  # fmt: skip

    def _separate(self, masks: Tensor) -> Tensor:
        return self._apply_non_overlapping_constraints(masks) if self.non_overlap_masks else masks

    def calibrate(self, inference_state: VideoState, fidelity: float = 0.95, **options: Any) -> Calibration:
        """The threshold that keeps a wanted fidelity on a slice of this clip: see `sam2.calibration.calibrate`."""
        from sam2.calibration import calibrate

        return calibrate(self, inference_state, fidelity, **options)


class SAM2VideoPredictorVOS(SAM2VideoPredictor):
    """The predictor with its parts compiled, for long runs of video object segmentation on a GPU.

    The first frames are slow while torch.compile works; the image encoder is compiled by `compile_image_encoder`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compile_all_components()

    def _compile_all_components(self) -> None:
        """Compile all parts but the image encoder. Override it to compile them in another way."""
        compile_with_cloned_outputs(self.memory_encoder, dynamic=False)
        compile_with_cloned_outputs(self.memory_attention, dynamic=True)  # the number of memories varies
        compile_with_cloned_outputs(self.sam_prompt_encoder, dynamic=False)
        compile_with_cloned_outputs(self.sam_mask_decoder, dynamic=False)

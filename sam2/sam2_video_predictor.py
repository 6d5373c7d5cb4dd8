"""Segment and track objects in a video (SAM 2, Ravi et al. 2024): prompts in, masks of every frame out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sam2.frame_skipping import SKIPPED, SkipOptions, Warp, all_frames, gated_frames
from sam2.modeling.compilation import compile_with_cloned_outputs
from sam2.modeling.outputs import FrameFeatures, FrameOutput, FrameRequest, PointInputs
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base, keep_highest_object
from sam2.utils.change_detection import GateFrame, KeyFrame, SkipPolicy
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.misc import fill_holes_in_mask_scores
from sam2.utils.prompts import read_box, read_mask, read_points
from sam2.video_state import ObjectId, ObjectTrack, VideoState

if TYPE_CHECKING:
    from sam2.calibration import Calibration


logger = logging.getLogger(__name__)


def _skip_option(name: str) -> property:
    """An attribute of the predictor that stands for a field of its `SkipOptions`, checked when it is set."""

    def read(self: SAM2VideoPredictor) -> Any:
        return getattr(self.skipping, name)

    def write(self: SAM2VideoPredictor, value: Any) -> None:
        self.skipping = dataclasses.replace(self.skipping, **{name: value})

    return property(read, write, doc=f"`SkipOptions.{name}`.")


Answer = tuple[int, list[ObjectId], Tensor]  # frame index, object ids, mask logits (objects, 1, height, width)


class SAM2VideoPredictor(SAM2Base):
    """Tracks any number of objects through a video.

    A session is a `VideoState` from `init_state`; the predictor itself keeps nothing between calls. Each object is
    tracked as if it were alone, so objects can be added and removed at any time.

    Args:
        fill_hole_area: fill holes of up to so many low-res pixels in the masks that are shown; 0 fills none.
        non_overlap_masks: give every pixel of the masks that are shown to at most one object.
        clear_non_cond_mem_around_input: after a prompt, forget what was tracked within reach of memory around it, so
            that corrections are not outvoted by the mistakes they correct.
        add_all_frames_to_correct_as_cond: a corrected frame counts as prompted from then on, so that propagation keeps
            the correction instead of tracking the frame anew.
        skip_mad_threshold, skip_strategy, skip_warp, skip_lookahead, max_consecutive_skips: which frames to skip, and
            how (`SkipOptions`); also attributes, which can be set at any time and count from the next propagation. The
            default skips frames that hardly differ from the last processed one; a threshold of 0 or None skips none.
        **kwargs: options of `SAM2Base`.
    """

    def __init__(
        self, fill_hole_area: int = 0, non_overlap_masks: bool = False, clear_non_cond_mem_around_input: bool = False,
        add_all_frames_to_correct_as_cond: bool = False, *, skip_mad_threshold: float | None = 0.05,
        skip_strategy: str | SkipPolicy = "naive", skip_warp: Warp = "auto", skip_lookahead: int = 0,
        max_consecutive_skips: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.skipping = SkipOptions(
            skip_mad_threshold, skip_strategy, skip_warp, skip_lookahead, max_consecutive_skips
        )  # fmt: skip
        self.fill_hole_area, self.non_overlap_masks = fill_hole_area, non_overlap_masks
        self.clear_non_cond_mem_around_input = clear_non_cond_mem_around_input
        self.add_all_frames_to_correct_as_cond = add_all_frames_to_correct_as_cond

    skip_mad_threshold = _skip_option("threshold")
    skip_strategy = _skip_option("strategy")
    skip_warp = _skip_option("warp")
    skip_lookahead = _skip_option("lookahead")
    max_consecutive_skips = _skip_option("max_consecutive_skips")

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """Build from a Hugging Face id, a folder or a checkpoint file: see `build_sam2_video_predictor_hf`."""
        from sam2.build_sam import build_sam2_video_predictor_hf

        return build_sam2_video_predictor_hf(model_id, **kwargs)

    # Session

    def init_state(
        self, video_path: Any, offload_video_to_cpu: bool = False, offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> VideoState:  # fmt: skip
        """Open a video for prompting and tracking. Frames are decoded when they are needed.

        Args:
            video_path: a folder of images, a video file, a list of images, an array or tensor of frames: whatever
                `sam2.utils.video_io.open_source` takes.
            offload_video_to_cpu: keep prepared frames on the CPU until they are encoded.
            offload_state_to_cpu: keep memory and masks on the CPU, for less GPU memory and some speed.
            async_loading_frames: upstream's option; frames are always read ahead in the background.

        Raises:
            FileNotFoundError, ValueError: there is no such video, or it has no usable frames.
        """
        device = self.device
        frames = FrameLoader(video_path, self.image_size, device, offload_video_to_cpu=offload_video_to_cpu)
        return VideoState(
            frames, device=device, storage_device=torch.device("cpu") if offload_state_to_cpu else device,
            offload_video_to_cpu=offload_video_to_cpu, offload_state_to_cpu=offload_state_to_cpu,
        )  # fmt: skip

    @torch.inference_mode()
    def reset_state(self, inference_state: VideoState) -> None:
        """Forget all objects, their prompts and results; the video stays open."""
        inference_state.objects.clear()
        inference_state.decision_of.clear()

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
        self._answer_prompt(state, track, frame_idx, prompt)
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
            mask: (height, width) of the video, or (S, S) of the network's input; non-zero is the object.

        Returns, Raises: as `add_new_points_or_box`.
        """
        state = inference_state
        frame_idx = state.check_frame("frame_idx", frame_idx)
        square = (self.image_size, self.image_size)
        prompt = read_mask(mask, ((state.video_height, state.video_width), square)).to(state.device)
        if prompt.shape[-2:] != square:
            prompt = F.interpolate(prompt, square, mode="bilinear", align_corners=False, antialias=True)
        prompt = (prompt >= 0.5).float()
        track = state.objects.get(obj_id) or ObjectTrack()
        self._answer_prompt(state, track, frame_idx, prompt)
        track.masks[frame_idx] = prompt
        track.points.pop(frame_idx, None)
        return self._show_prompted(state, obj_id, track, frame_idx)

    def _is_prompted_frame(self, track: ObjectTrack, frame_idx: int) -> bool:
        """Whether a prompt on this frame makes it a prompted one: always before it was tracked, else by option."""
        return frame_idx not in track.tracked or self.add_all_frames_to_correct_as_cond

    def _answer_prompt(
        self, state: VideoState, track: ObjectTrack, frame_idx: int, prompt: PointInputs | Tensor
    ) -> None:
        """Segment one object on one frame under its prompt, and keep the answer until it is written to memory."""
        points = prompt if isinstance(prompt, PointInputs) else None
        prompted = self._is_prompted_frame(track, frame_idx)
        previous = track.latest_masks(frame_idx, prompted) if points is not None else None
        request = FrameRequest(
            frame_idx, state.num_frames,
            reverse=track.tracked.get(frame_idx, False),
            reads_memory=frame_idx in track.tracked,
            points=points,
            mask=None if isinstance(prompt, PointInputs) else prompt,
            # Unbounded logits would drown the clicks that refine them.
            previous_logits=None if previous is None else previous.to(state.device).clamp(-32.0, 32.0),
        )  # fmt: skip
        output = self._track_object(state, track, request, remember=False)
        # Prompts wait here, so that a frame is written to memory once, however many prompts refine it.
        (track.pending_prompted if prompted else track.pending_propagated)[frame_idx] = output

    def _show_prompted(self, state: VideoState, obj_id: ObjectId, track: ObjectTrack, frame_idx: int) -> Answer:
        """Add the object to the session now that its prompt was answered, and show all objects on that frame."""
        state.objects.setdefault(obj_id, track)
        return self._show(state, frame_idx, prompted=self._is_prompted_frame(track, frame_idx))

    def _show(self, state: VideoState, frame_idx: int, prompted: bool) -> Answer:
        """The newest masks of all objects on a frame, NO_OBJ_SCORE where an object has none."""
        size = (state.video_height, state.video_width)
        shown = []
        for track in state.objects.values():
            masks = track.latest_masks(frame_idx, prompted)
            if masks is None:
                shown.append(torch.full((1, 1, *size), NO_OBJ_SCORE, device=state.device))
            else:
                shown.append(_resize(masks.to(state.device), size))
        return frame_idx, state.obj_ids, self._separate(torch.cat(shown))

    @torch.inference_mode()
    def clear_all_prompts_in_frame(
        self, inference_state: VideoState, frame_idx: int, obj_id: ObjectId, need_output: bool = True
    ) -> Answer | None:
        """Take back an object's prompts on one frame; returns the frame's masks if `need_output`.

        Raises:
            ValueError: unknown object or frame.
        """
        frame_idx = inference_state.check_frame("frame_idx", frame_idx)
        inference_state.track(obj_id).forget_prompts(frame_idx)
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
        if obj_id not in state.objects:
            if strict:
                raise RuntimeError(f"obj_id {obj_id!r} is not in this session; its objects are {state.obj_ids}")
            return state.obj_ids, []
        frames = state.objects.pop(obj_id).prompt_frames()
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
        if not inference_state.objects:
            raise RuntimeError("nothing to track: add points, a box or a mask for an object first")
        for obj_id, track in inference_state.objects.items():
            self._commit_prompts(inference_state, track)
            if not track.prompted:
                raise RuntimeError(f"nothing to track for obj_id {obj_id!r}: add points, a box or a mask for it first")

    def _commit_prompts(self, state: VideoState, track: ObjectTrack) -> None:
        """Write an object's pending outputs to memory."""
        for prompted in (False, True):
            pending = track.pending_prompted if prompted else track.pending_propagated
            for frame_idx in list(pending):
                self._write_prompted_memory(state, frame_idx, pending[frame_idx])
                track.commit_frame(frame_idx, pending.pop(frame_idx), prompted)
                self._forget_around_prompt(track, frame_idx)
        for frame_idx in track.prompted:
            track.propagated.pop(frame_idx, None)

    def _write_prompted_memory(self, state: VideoState, frame_idx: int, output: FrameOutput) -> None:
        masks = _resize(output.pred_masks.to(state.device), (self.image_size, self.image_size))
        with self.autocast():
            features = self._features(state, frame_idx)
            # parity: mask prompts enter memory as clicks do.
            memory = self.write_memory(features, masks, output.object_score_logits, from_points=True)
        self._keep_memory(state, output, memory.features, memory.position)

    def _keep_memory(self, state: VideoState, output: FrameOutput, features: Tensor, position: Tensor) -> None:
        """Put a frame's memory into its output, as it is stored."""
        # bfloat16 halves the memory bank, and is how Meta's models were evaluated.
        output.maskmem_features = features.to(state.storage_device, torch.bfloat16, non_blocking=True)
        if state.memory_position is None:
            state.memory_position = position.clone()
        output.maskmem_pos_enc = [state.memory_position]  # the same for all frames and objects

    def _forget_around_prompt(self, track: ObjectTrack, frame_idx: int) -> None:
        if self.clear_non_cond_mem_around_input:
            track.forget_propagated(frame_idx, self.memory_temporal_stride_for_eval * self.num_maskmem)

    def propagate_in_video(
        self, inference_state: VideoState, start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None, reverse: bool = False, *, progress: bool = True,
    ) -> Iterator[Answer]:  # fmt: skip
        """Track all objects through the video.

        Objects may be prompted, added and removed while the loop runs; it takes effect on the next frame.

        Args:
            start_frame_idx: first frame; by default the earliest frame that any object was prompted on.
            max_frame_num_to_track: how many frames to go from there, the first one not counted (upstream's rule: N
                gives N + 1 frames); by default to the end.
            reverse: go backwards in time; from frame 0 there is nothing to do.
            progress: show a progress bar.

        Yields:
            Frame index, object ids, mask logits (objects, 1, height, width), above 0 inside an object.

        Raises:
            RuntimeError: there is nothing to track. ValueError: bad arguments.
        """
        state = inference_state
        if max_frame_num_to_track is not None and max_frame_num_to_track < 0:
            raise ValueError(f"max_frame_num_to_track must not be negative, got {max_frame_num_to_track}")
        if start_frame_idx is not None:
            start_frame_idx = state.check_frame("start_frame_idx", start_frame_idx)
        self.propagate_in_video_preflight(state)
        if start_frame_idx is None:
            start_frame_idx = min(t for track in state.objects.values() for t in track.prompted)
        order = _processing_order(start_frame_idx, max_frame_num_to_track, state.num_frames, reverse)
        return self._propagate(state, order, reverse, progress)

    def calibrate(self, inference_state: VideoState, fidelity: float = 0.95, **options: Any) -> Calibration:
        """The threshold that keeps a wanted fidelity on a slice of this clip: see `sam2.calibration.calibrate`."""
        from sam2.calibration import calibrate

        return calibrate(self, inference_state, fidelity, **options)

    @torch.inference_mode()
    def _propagate(self, state: VideoState, order: range, reverse: bool, progress: bool) -> Iterator[Answer]:
        run = _Run(self, state, reverse)
        if self.skipping.is_on:
            frames = gated_frames(order, state.gate_frame, run, self.skipping)
        else:
            frames = all_frames(order, run)
        with tqdm(total=len(order), desc="propagate in video", disable=not progress) as bar:
            for decision, carried in frames:
                state.record(decision)
                if decision.action in SKIPPED:
                    logger.info("Skipping frame %d due to %s", decision.frame, decision.reason)
                masks = run.masks if carried is None else run.carry(decision.frame, carried)
                shown = _resize(masks, (state.video_height, state.video_width))
                bar.update()
                yield decision.frame, list(run.obj_ids), self._separate(shown)

    def _track_or_show(self, state: VideoState, track: ObjectTrack, frame_idx: int, reverse: bool) -> Tensor:
        """One object's low-res masks on a frame: the prompt's answer where there is one, else tracked."""
        if frame_idx in track.prompted:
            self._forget_around_prompt(track, frame_idx)
            output = track.prompted[frame_idx]
        else:
            request = FrameRequest(frame_idx, state.num_frames, reverse=reverse)
            output = self._track_object(state, track, request, remember=True)
            track.commit_frame(frame_idx, output, prompted=False)
        track.tracked[frame_idx] = reverse
        return output.pred_masks.to(state.device, non_blocking=True)

    # Network

    def _features(self, state: VideoState, frame_idx: int) -> FrameFeatures:
        """The encoder's maps of a frame; those of the last frame are kept, for all objects and repeated prompts."""
        if state.features is None or state.features[0] != frame_idx:
            state.features = None  # free the old maps before making new ones
            image = state.frames[frame_idx].to(state.device, torch.float32)
            state.features = (frame_idx, self.encode_image(image[None]))
        return state.features[1]

    def _track_object(
        self, state: VideoState, track: ObjectTrack, request: FrameRequest, remember: bool
    ) -> FrameOutput:
        """Run the network for one object on one frame; what is returned is all that the session keeps of it."""
        with self.autocast():
            features = self._features(state, request.frame_idx)
            output = self.track(features, track.bank, request, remember)
        masks = output.pred_masks
        if self.fill_hole_area > 0:
            masks = fill_holes_in_mask_scores(masks, self.fill_hole_area)
        kept = FrameOutput(
            pred_masks=masks.to(state.storage_device, non_blocking=True), obj_ptr=output.obj_ptr,
            object_score_logits=output.object_score_logits, ious=output.ious,
        )  # fmt: skip
        if output.maskmem_features is not None and output.maskmem_pos_enc is not None:
            self._keep_memory(state, kept, output.maskmem_features, output.maskmem_pos_enc[-1])
        return kept

    def _separate(self, masks: Tensor) -> Tensor:
        return keep_highest_object(masks) if self.non_overlap_masks else masks


class _Run:
    """One propagation through a clip: what the loop over frames asks for its masks (`MaskSource`)."""

    def __init__(self, predictor: SAM2VideoPredictor, state: VideoState, reverse: bool) -> None:
        self.predictor, self.state, self.reverse = predictor, state, reverse
        self.obj_ids = state.obj_ids
        self.masks = torch.empty(0)  # low-res logits (N, 1, h, w) of the frame processed last

    def is_over(self) -> bool:
        return not self.state.objects

    def has_changed(self) -> bool:
        pending = [track for track in self.state.objects.values() if track.has_pending]
        for track in pending:
            self.predictor._commit_prompts(self.state, track)
        before, self.obj_ids = self.obj_ids, self.state.obj_ids
        return bool(pending) or before != self.obj_ids

    def is_prompted(self, frame_idx: int) -> bool:
        return any(frame_idx in track.prompted for track in self.state.objects.values())

    def process(self, frame_idx: int) -> None:
        tracks = self.state.objects.values()
        masks = [self.predictor._track_or_show(self.state, track, frame_idx, self.reverse) for track in tracks]
        self.masks = torch.cat(masks)

    def key_frame(self, frame_idx: int, frame: GateFrame) -> KeyFrame:
        tracks = self.state.objects.values()
        outputs = [track.prompted.get(frame_idx) or track.propagated[frame_idx] for track in tracks]
        sure = torch.ones(1, 1, device=self.state.device)
        ious = [sure if output.ious is None else output.ious for output in outputs]
        return KeyFrame(
            frame_idx,
            frame,
            logits=self.masks[:, 0].float().cpu().numpy(),
            predicted_ious=_to_numpy(ious),
            object_scores=_to_numpy([output.object_score_logits for output in outputs]),
        )

    def carry(self, frame_idx: int, logits: np.ndarray) -> Tensor:
        """Show masks (N, h, w) that were carried to a skipped frame; returns them as (N, 1, h, w)."""
        masks = torch.tensor(logits, device=self.state.storage_device)[:, None]
        for obj_id, mask in zip(self.obj_ids, masks.split(1), strict=True):
            if (track := self.state.objects.get(obj_id)) is not None:
                track.carry(frame_idx, mask)
                track.tracked[frame_idx] = self.reverse
        return masks.to(self.state.device, copy=True)  # what is yielded is the caller's to change


class SAM2VideoPredictorVOS(SAM2VideoPredictor):
    """The predictor with its parts compiled, for long runs of video object segmentation on a GPU.

    The first frames are slow while torch.compile works; the image encoder is compiled by `compile_image_encoder`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        compile_with_cloned_outputs(self.memory_encoder, dynamic=False)
        compile_with_cloned_outputs(self.memory_attention, dynamic=True)  # the number of memories varies
        compile_with_cloned_outputs(self.sam_prompt_encoder, dynamic=False)
        compile_with_cloned_outputs(self.sam_mask_decoder, dynamic=False)


def _to_numpy(values: Sequence[Tensor]) -> np.ndarray:
    """One number (1, 1) of each object, as (N,); a single copy where they are on a GPU."""
    return torch.cat(list(values))[:, 0].float().cpu().numpy()


def _processing_order(start: int, max_frames: int | None, num_frames: int, reverse: bool) -> range:
    """Frames in the order they are tracked, `start` and up to `max_frames` more."""
    reach = num_frames if max_frames is None else max_frames
    if not reverse:
        return range(start, min(start + reach, num_frames - 1) + 1)
    if start == 0:
        return range(0)
    return range(start, max(start - reach, 0) - 1, -1)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (B, 1, h, w) at another size."""
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)

"""Inner methods of upstream's video predictor that other people's loops and subclasses call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sam2.modeling.outputs import FrameOutput, PointInputs
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from sam2.modeling.upstream_steps import as_frame_output
from sam2.video_state import ObjectId, ObjectTrack, VideoState
from sam2.video_tracking import VideoTracker, repeat_features, resize_masks


class UpstreamHooks(VideoTracker):
    """What upstream's methods of these names answer, from a `VideoState`.

    They are here to be called. This package tracks without them, so overriding them changes only who calls them.
    """

    _separate: Callable[[Tensor], Tensor]

    def _obj_id_to_idx(self, inference_state: VideoState, obj_id: ObjectId) -> int:
        """The object's place in every answer. parity: an unknown object is added, without a prompt."""
        inference_state.objects.setdefault(obj_id, ObjectTrack())
        return inference_state.obj_ids.index(obj_id)

    def _obj_idx_to_id(self, inference_state: VideoState, obj_idx: int) -> ObjectId:
        """The id of the object at a place. Raises KeyError where there is none."""
        return inference_state["obj_idx_to_id"][obj_idx]

    def _get_obj_num(self, inference_state: VideoState) -> int:
        """How many objects the session has."""
        return len(inference_state.objects)

    def _get_image_feature(
        self, inference_state: VideoState, frame_idx: int, batch_size: int
    ) -> tuple[Tensor, Mapping[str, Any], list[Tensor], list[Tensor], list[tuple[int, int]]]:
        """A frame (B, 3, S, S), and what `forward_image` and `_prepare_backbone_features` make of it."""
        with self.autocast():
            features = repeat_features(self._features(inference_state, frame_idx), batch_size)
        image, _ = inference_state["cached_features"][frame_idx]
        encoded = {"backbone_fpn": features.maps, "vision_pos_enc": features.positions}
        return image.expand(batch_size, -1, -1, -1), *self._prepare_backbone_features(encoded)

    def _run_single_frame_inference(
        self, inference_state: VideoState, output_dict: Mapping[str, Mapping[int, FrameOutput]], frame_idx: int,
        batch_size: int, is_init_cond_frame: bool, point_inputs: Mapping[str, Tensor] | PointInputs | None,
        mask_inputs: Tensor | None, reverse: bool, run_mem_encoder: bool, prev_sam_mask_logits: Tensor | None = None,
    ) -> tuple[FrameOutput, Tensor]:  # fmt: skip
        """One object on one frame: what the session may keep of it, and its mask logits (1, 1, S / 4, S / 4), or
        (1, 1, S, S) in a session with search regions.

        Args, apart from the session: as `track_step`.

        Raises:
            ValueError: `batch_size` is not 1, the only one that upstream's own loops ask for.
        """
        if batch_size != 1:
            raise ValueError(f"batch_size must be 1, got {batch_size}: run the objects one by one")
        state = inference_state
        _, _, tokens, positions, sizes = self._get_image_feature(state, frame_idx, batch_size)
        with self.autocast():
            output = self.track_step(
                frame_idx, is_init_cond_frame, tokens, positions, sizes, point_inputs, mask_inputs, output_dict,
                state.num_frames, track_in_reverse=reverse, run_mem_encoder=run_mem_encoder,
                prev_sam_mask_logits=prev_sam_mask_logits,
            )  # fmt: skip
        (kept,) = self._keep(state, as_frame_output(output))
        return kept, kept.pred_masks.to(state.device)

    def _get_orig_video_res_output(self, inference_state: VideoState, any_res_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (N, 1, h, w) on the session's device, and as they are shown: (N, 1, height, width)."""
        masks = any_res_masks.to(inference_state.device)
        size = (inference_state.video_height, inference_state.video_width)
        return masks, self._separate(resize_masks(masks, size))

    def _consolidate_temp_output_across_obj(
        self, inference_state: VideoState, frame_idx: int, is_cond: bool, consolidate_at_video_res: bool = False
    ) -> dict[str, Tensor]:
        """The newest mask logits of all objects on a frame, NO_OBJ_SCORE where an object has none.

        Args:
            is_cond: of pending answers, look at those that make a prompted frame, else at the others.
            consolidate_at_video_res: "pred_masks_video_res" (N, 1, height, width); else "pred_masks" (N, 1, S/4, S/4).
        """
        state = inference_state
        name, size = "pred_masks", (self.image_size // 4, self.image_size // 4)
        if consolidate_at_video_res:
            name, size = "pred_masks_video_res", (state.video_height, state.video_width)
        shown = torch.full((len(state.objects), 1, *size), NO_OBJ_SCORE, device=state.device)
        for index, track in enumerate(state.objects.values()):
            masks = track.latest_masks(frame_idx, is_cond)
            if masks is not None:
                shown[index] = resize_masks(masks.to(state.device), size)[0]
        return {name: shown}

    def _run_memory_encoder(
        self, inference_state: VideoState, frame_idx: int, batch_size: int, high_res_masks: Tensor,
        object_score_logits: Tensor, is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor] | None]:  # fmt: skip
        """Masks (B, 1, S, S) logits on a frame as memory (B, mem_dim, h, w) and its positions, as they are stored."""
        state = inference_state
        _, _, tokens, _, sizes = self._get_image_feature(state, frame_idx, batch_size)
        with self.autocast():
            features, positions = self._encode_new_memory(
                tokens, sizes, high_res_masks, object_score_logits, is_mask_from_pts
            )
        stored = features.to(state.storage_device, torch.bfloat16)
        return stored, self._get_maskmem_pos_enc(state, {"maskmem_pos_enc": positions})

    def _get_maskmem_pos_enc(self, inference_state: VideoState, current_out: Mapping[str, Any]) -> list[Tensor] | None:
        """The one position encoding that all memory of a session shares, as often as the output has objects."""
        positions = current_out["maskmem_pos_enc"]
        if positions is None:
            return None
        position = inference_state.memory_position
        if position is None:
            position = inference_state.memory_position = positions[-1][:1].clone()
        return [position.expand(len(positions[-1]), -1, -1, -1)]

    def _clear_non_cond_mem_around_input(self, inference_state: VideoState, frame_idx: int) -> None:
        """Forget what was tracked within reach of memory around a frame, on the frame itself too."""
        reach = self.memory_temporal_stride_for_eval * self.num_maskmem
        for outputs in inference_state["output_dict_per_obj"].values():
            for t in range(frame_idx - reach, frame_idx + reach + 1):
                outputs["non_cond_frame_outputs"].pop(t, None)

    def _reset_tracking_results(self, inference_state: VideoState) -> None:
        """Forget all prompts and results; the objects stay, without a prompt."""
        inference_state.objects.update({obj_id: ObjectTrack() for obj_id in inference_state.objects})
        inference_state.decision_of.clear()
        inference_state.scene_cuts.clear()
        inference_state.note_edit()

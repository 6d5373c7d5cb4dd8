"""A frame's steps under upstream's names and arguments, for loops and training code that call the network's insides.

Shapes: B objects, C channels, M candidate masks, S the input size, HW the tokens of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.memory_bank import MemoryBank
from sam2.modeling.outputs import (
    EncodedMemory,
    FrameFeatures,
    FrameOutput,
    FrameRequest,
    PointInputs,
    SamOutput,
    as_point_inputs,
)

Points = Mapping[str, Tensor] | PointInputs | None
Outputs = Mapping[str, Mapping[int, Any]] | None  # "cond_frame_outputs" and "non_cond_frame_outputs", by frame index
Sizes = Sequence[tuple[int, int]]


class SamHeads(NamedTuple):
    """A `SamOutput` in upstream's order, and with all candidates at the input size."""

    low_res_multimasks: Tensor  # (B, M, S / 4, S / 4) logits
    high_res_multimasks: Tensor  # (B, M, S, S)
    ious: Tensor  # (B, M)
    low_res_masks: Tensor  # (B, 1, S / 4, S / 4)
    high_res_masks: Tensor  # (B, 1, S, S)
    obj_ptr: Tensor  # (B, C)
    object_score_logits: Tensor  # (B, 1)


STEPS = (
    "track_step", "_track_step", "_prepare_memory_conditioned_features", "_forward_sam_heads", "_use_mask_as_output",
    "_encode_memory_in_output", "_encode_new_memory",
)  # fmt: skip


class UpstreamSteps(nn.Module):
    """What upstream's methods of these names answer, each from what upstream's calls.

    The network itself goes a shorter way (see `SAM2Base`), unless a subclass overrides one of them: then frames are
    tracked, and prompts written to memory, by these steps. To change the network for both, override `encode_image`,
    `read_memory`, `decode_masks` or `write_memory`, which these steps call.
    """

    num_maskmem: int
    hidden_dim: int
    use_mask_input_as_output_without_sam: bool
    _use_multimask: Callable[[bool, Points], bool]
    answer_with_mask: Callable[[FrameFeatures, Tensor], SamOutput]
    decode_masks: Callable[..., SamOutput]
    read_memory: Callable[[FrameFeatures, MemoryBank, FrameRequest], Tensor]
    write_memory: Callable[..., EncodedMemory]

    # Args that they share:
    #     current_vision_feats, current_vision_pos_embeds, feat_sizes: from `_prepare_backbone_features`; where one map
    #         is enough, the last of them.
    #     point_inputs: "point_coords" (B, P, 2) and "point_labels" (B, P). mask_inputs: (B, 1, S, S).
    #     output_dict: "cond_frame_outputs" and "non_cond_frame_outputs", earlier results by frame index: what
    #         `track_step` returned, or dicts with its keys; empty or None will do where no memory is read.

    def track_step(
        self, frame_idx: int, is_init_cond_frame: bool, current_vision_feats: Sequence[Tensor],
        current_vision_pos_embeds: Sequence[Tensor], feat_sizes: Sizes, point_inputs: Points,
        mask_inputs: Tensor | None, output_dict: Outputs, num_frames: int, track_in_reverse: bool = False,
        run_mem_encoder: bool = True, prev_sam_mask_logits: Tensor | None = None,
    ) -> FrameOutput:  # fmt: skip
        """Segment a frame and write its memory."""
        _, heads, _, _ = self._track_step(
            frame_idx, is_init_cond_frame, current_vision_feats, current_vision_pos_embeds, feat_sizes, point_inputs,
            mask_inputs, output_dict, num_frames, track_in_reverse, prev_sam_mask_logits,
        )  # fmt: skip
        candidates, _, ious, low_res_masks, high_res_masks, pointer, score = heads
        output = FrameOutput(
            low_res_masks, pointer, score, _iou_of(low_res_masks, candidates, ious), high_res_masks,
            point_inputs=as_point_inputs(point_inputs), mask_inputs=mask_inputs,
        )  # fmt: skip
        self._encode_memory_in_output(
            current_vision_feats, feat_sizes, point_inputs, run_mem_encoder, high_res_masks, score, output
        )
        return output

    def _track_step(
        self, frame_idx: int, is_init_cond_frame: bool, current_vision_feats: Sequence[Tensor],
        current_vision_pos_embeds: Sequence[Tensor], feat_sizes: Sizes, point_inputs: Points,
        mask_inputs: Tensor | None, output_dict: Outputs, num_frames: int, track_in_reverse: bool,
        prev_sam_mask_logits: Tensor | None,
    ) -> tuple[dict[str, Any], SamHeads, list[Tensor] | None, Tensor]:  # fmt: skip
        """Segment a frame.

        Returns:
            The prompts as a dict to be filled, the masks, the decoder's finer maps, and the map (B, C, h, w) they are
            decoded from.
        """
        finer = zip(current_vision_feats[:-1], feat_sizes[:-1], strict=True)
        high_res = [to_map(x, size) for x, size in finer] or None
        if mask_inputs is not None and self.use_mask_input_as_output_without_sam:
            top = to_map(current_vision_feats[-1], feat_sizes[-1])
            heads = self._use_mask_as_output(top, high_res, mask_inputs)
        else:
            top = self._prepare_memory_conditioned_features(
                frame_idx=frame_idx, is_init_cond_frame=is_init_cond_frame,
                current_vision_feats=current_vision_feats[-1:],
                current_vision_pos_embeds=current_vision_pos_embeds[-1:], feat_sizes=feat_sizes[-1:],
                output_dict=output_dict, num_frames=num_frames, track_in_reverse=track_in_reverse,
            )  # fmt: skip
            heads = self._forward_sam_heads(
                backbone_features=top, point_inputs=point_inputs,
                mask_inputs=mask_inputs if prev_sam_mask_logits is None else prev_sam_mask_logits,
                high_res_features=high_res, multimask_output=self._use_multimask(is_init_cond_frame, point_inputs),
            )  # fmt: skip
        return {"point_inputs": point_inputs, "mask_inputs": mask_inputs}, heads, high_res, top

    def _prepare_memory_conditioned_features(
        self, frame_idx: int, is_init_cond_frame: bool, current_vision_feats: Sequence[Tensor],
        current_vision_pos_embeds: Sequence[Tensor], feat_sizes: Sizes, output_dict: Outputs, num_frames: int,
        track_in_reverse: bool = False,
    ) -> Tensor:  # fmt: skip
        """Read memory into the coarsest map -> (B, C, h, w)."""
        coarsest = (current_vision_feats[-1], current_vision_pos_embeds[-1])
        features = FrameFeatures(*([to_map(x, feat_sizes[-1])] for x in coarsest))
        request = FrameRequest(frame_idx, num_frames, reverse=track_in_reverse, reads_memory=not is_init_cond_frame)
        return self.read_memory(features, _bank(output_dict), request)

    def _forward_sam_heads(
        self, backbone_features: Tensor, point_inputs: Points = None, mask_inputs: Tensor | None = None,
        high_res_features: Sequence[Tensor] | None = None, multimask_output: bool = False,
    ) -> SamHeads:  # fmt: skip
        """Decode a conditioned map (B, C, h, w): `SAM2Base.decode_masks`."""
        points = as_point_inputs(point_inputs)
        return _heads(self.decode_masks(backbone_features, points, mask_inputs, high_res_features, multimask_output))

    def _use_mask_as_output(
        self, backbone_features: Tensor, high_res_features: Sequence[Tensor] | None, mask_inputs: Tensor
    ) -> SamHeads:
        """Answer a given mask (B, 1, S, S) with itself: `SAM2Base.answer_with_mask`."""
        features = FrameFeatures([*(high_res_features or ()), backbone_features], [])
        return _heads(self.answer_with_mask(features, mask_inputs))

    def _encode_new_memory(
        self, current_vision_feats: Sequence[Tensor], feat_sizes: Sizes, pred_masks_high_res: Tensor,
        object_score_logits: Tensor, is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Masks (B, 1, S, S) logits as memory (B, M, h, w) and its position encoding, in a list."""
        features = FrameFeatures([to_map(current_vision_feats[-1], feat_sizes[-1])], [])
        memory = self.write_memory(features, pred_masks_high_res, object_score_logits, from_points=is_mask_from_pts)
        return memory.features, [memory.position]

    def _encode_memory_in_output(
        self, current_vision_feats: Sequence[Tensor], feat_sizes: Sizes, point_inputs: Points, run_mem_encoder: bool,
        high_res_masks: Tensor, object_score_logits: Tensor, current_out: dict[str, Any] | FrameOutput,
    ) -> None:  # fmt: skip
        """Put the memory of a frame, or None, into `current_out`."""
        memory: tuple[Any, Any] = (None, None)
        if run_mem_encoder and self.num_maskmem > 0:
            memory = self._encode_new_memory(
                current_vision_feats=current_vision_feats, feat_sizes=feat_sizes, pred_masks_high_res=high_res_masks,
                object_score_logits=object_score_logits, is_mask_from_pts=point_inputs is not None,
            )  # fmt: skip
        current_out["maskmem_features"], current_out["maskmem_pos_enc"] = memory

    # The network's way through them

    @property
    def has_own_steps(self) -> bool:
        """Whether a subclass overrides one of the steps, or another function was put in the place of one."""
        return any(getattr(getattr(self, name), "__func__", None) is not getattr(UpstreamSteps, name) for name in STEPS)

    def track_by_steps(
        self, features: FrameFeatures, bank: MemoryBank, request: FrameRequest, remember: bool
    ) -> FrameOutput:
        """`SAM2Base.track` by way of `track_step`."""
        output = self.track_step(
            frame_idx=request.frame_idx, is_init_cond_frame=not request.reads_memory, **_as_tokens(features),
            current_vision_pos_embeds=[to_tokens(x) for x in features.positions],
            point_inputs=None if request.points is None else request.points._asdict(), mask_inputs=request.mask,
            output_dict={"cond_frame_outputs": bank.prompted, "non_cond_frame_outputs": bank.believed},
            num_frames=request.num_frames, track_in_reverse=request.reverse, run_mem_encoder=remember,
            prev_sam_mask_logits=request.previous_logits,
        )  # fmt: skip
        return as_frame_output(output)

    def write_by_steps(
        self, features: FrameFeatures, masks: Tensor, object_score_logits: Tensor, from_points: bool
    ) -> EncodedMemory:
        """`SAM2Base.write_memory` by way of `_encode_new_memory`."""
        memory, positions = self._encode_new_memory(
            **_as_tokens(features), pred_masks_high_res=masks, object_score_logits=object_score_logits,
            is_mask_from_pts=from_points,
        )  # fmt: skip
        return EncodedMemory(memory, positions[-1])


def as_frame_output(output: FrameOutput | Mapping[str, Any]) -> FrameOutput:
    """What a `track_step` returned, also the dict of one that somebody else wrote; keys of its own are left out."""
    if isinstance(output, FrameOutput):
        return output
    known: dict[str, Any] = {name: output.get(name) for name in FrameOutput.names}
    if known["ious"] is None:
        known["ious"] = torch.ones_like(known["object_score_logits"])  # upstream's has none
    return FrameOutput(**known)


def _as_tokens(features: FrameFeatures) -> dict[str, Any]:
    sizes = [(x.shape[-2], x.shape[-1]) for x in features.maps]
    return {"current_vision_feats": [to_tokens(x) for x in features.maps], "feat_sizes": sizes}


def _iou_of(masks: Tensor, candidates: Tensor, ious: Tensor) -> Tensor:
    """The predicted IoU (B, 1) of the candidate that was chosen, or the best where it is none of them."""
    chosen = (candidates == masks).flatten(2).all(dim=-1)  # (B, M)
    considered = chosen | ~chosen.any(dim=-1, keepdim=True)
    return ious.masked_fill(~considered, -torch.inf).amax(dim=-1, keepdim=True)


def _bank(output_dict: Outputs) -> MemoryBank:
    stored = output_dict or {}
    return MemoryBank(stored.get("cond_frame_outputs", {}), stored.get("non_cond_frame_outputs", {}))


def _heads(output: SamOutput) -> SamHeads:
    candidates, chosen = output.low_res_multimasks, output.high_res_masks
    upscaled = chosen
    if candidates.shape[1] > 1:
        upscaled = F.interpolate(candidates, chosen.shape[-2:], mode="bilinear", align_corners=False)
        # The chosen one was upscaled by itself, from which it may differ by rounding.
        upscaled[torch.arange(len(upscaled)), output.ious.argmax(dim=-1)] = chosen[:, 0]
    return SamHeads(
        candidates, upscaled, output.ious, output.low_res_masks, chosen, output.obj_ptr, output.object_score_logits
    )


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (HW, B, C)."""
    return x.flatten(2).permute(2, 0, 1)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(HW, B, C) -> (B, C, H, W)."""
    return tokens.permute(1, 2, 0).unflatten(2, size)

"""The SAM 2 network (Ravi et al. 2024, arXiv:2408.00714): encode a frame, read memory, decode masks, write memory.

Shapes: B objects, C channels of the model, M channels of a memory map, S the input size, h = w = S / 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.backbones.image_encoder import ImageEncoder
from sam2.modeling.compilation import compile_with_cloned_outputs
from sam2.modeling.memory_attention import MemoryAttention
from sam2.modeling.memory_bank import BankRules, MemoryBank, Remembered, Selection, select_memory
from sam2.modeling.memory_encoder import MemoryEncoder
from sam2.modeling.outputs import (
    EncodedMemory,
    FrameFeatures,
    FrameOutput,
    FrameRequest,
    MemoryTokens,
    PointInputs,
    SamOutput,
    as_point_inputs,
)
from sam2.modeling.precision import resolve_dtype
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PADDING, PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_utils import MLP, get_1d_sine_pe, select_closest_cond_frames
from sam2.modeling.upstream_steps import Points, UpstreamSteps, to_map, to_tokens

NO_OBJ_SCORE = -1024.0  # mask logit of an object that is not in the frame
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a 0/1 mask as logits, when a given mask is itself the answer


def keep_highest_object(masks: Tensor) -> Tensor:
    """Give every pixel to one object: logits (B, 1, H, W) of all but the highest are pushed down to -10 at most."""
    if masks.shape[0] == 1:
        return masks
    winner = masks.max(dim=0, keepdim=True).indices  # on the CPU ten times as fast as argmax
    objects = torch.arange(masks.shape[0], device=masks.device)[:, None, None, None]
    return torch.where(winner == objects, masks, masks.clamp(max=MASK_BIAS))


class SAM2Base(UpstreamSteps):
    """The network and its options, which are the keys of the YAML configs.

    A frame goes through four methods: `encode_image`, `read_memory`, `decode_masks` and `write_memory`;
    `segment` and `track` put them together for one or several objects of equal history.

    Args, in the order of a frame's way through the network:
        image_encoder, memory_attention, memory_encoder: the three large parts.
        image_size: side S of the square input, divisible by 32. backbone_stride: pixels per token.

        num_maskmem: memory slots, the prompted frames' slot included; 0 switches memory off.
        memory_temporal_stride_for_eval: take every n-th past frame. max_cond_frames_in_attn: prompted frames read at
            most, -1 for all.
        directly_add_no_mem_embed: without memory, add a learned vector instead of attending to a learned token.
        use_obj_ptrs_in_encoder, max_obj_ptrs_in_encoder: read object pointers, of so many frames at most.
        add_tpos_enc_to_obj_ptrs, proj_tpos_enc_in_obj_ptrs, use_signed_tpos_enc_to_obj_ptrs: tell pointers their age,
            through a linear layer, negative for the future. only_obj_ptrs_in_the_past_for_eval: no prompted pointers
            from the future.

        use_high_res_features_in_sam: the decoder gets strides 4 and 8 too.
        multimask_output_in_sam, multimask_output_for_tracking, multimask_min_pt_num, multimask_max_pt_num: several
            masks, on prompted and on tracked frames, for that many clicks.
        use_multimask_token_for_obj_ptr: the pointer comes from the chosen mask's own token.
        iou_prediction_use_sigmoid, sam_mask_decoder_extra_args: see `MaskDecoder`.
        use_mask_input_as_output_without_sam: a given mask is the answer, without decoding.
        pred_obj_scores, pred_obj_scores_mlp: predict whether the object is in the frame.
        fixed_no_obj_ptr, soft_no_obj_ptr, use_mlp_for_obj_ptr_proj: the pointer of an absent object, and its layer.

        sigmoid_scale_for_mem_enc, sigmoid_bias_for_mem_enc: scale of the mask that enters memory.
        binarize_mask_from_pts_for_mem_enc: prompted masks enter memory as 0 or 1.
        non_overlap_masks_for_mem_enc: at most one object of a batch per pixel enters memory (the video predictor
            tracks each object in a batch of its own, where this changes nothing).
        no_obj_embed_spatial: mark the memory of a frame without the object.

        compile_image_encoder: compile the image encoder with torch.compile.
        compute_dtype: "float32", "bfloat16" or "float16" for the network's arithmetic, whatever autocast the caller
            is in; None follows the caller's autocast.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder, memory_attention: MemoryAttention, memory_encoder: MemoryEncoder,
        num_maskmem: int = 7, image_size: int = 512, backbone_stride: int = 16,
        sigmoid_scale_for_mem_enc: float = 1.0, sigmoid_bias_for_mem_enc: float = 0.0,
        binarize_mask_from_pts_for_mem_enc: bool = False, use_mask_input_as_output_without_sam: bool = False,
        max_cond_frames_in_attn: int = -1, directly_add_no_mem_embed: bool = False,
        use_high_res_features_in_sam: bool = False, multimask_output_in_sam: bool = False,
        multimask_min_pt_num: int = 1, multimask_max_pt_num: int = 1, multimask_output_for_tracking: bool = False,
        use_multimask_token_for_obj_ptr: bool = False, iou_prediction_use_sigmoid: bool = False,
        memory_temporal_stride_for_eval: int = 1, non_overlap_masks_for_mem_enc: bool = False,
        use_obj_ptrs_in_encoder: bool = False, max_obj_ptrs_in_encoder: int = 16,
        add_tpos_enc_to_obj_ptrs: bool = True, proj_tpos_enc_in_obj_ptrs: bool = False,
        use_signed_tpos_enc_to_obj_ptrs: bool = False, only_obj_ptrs_in_the_past_for_eval: bool = False,
        pred_obj_scores: bool = False, pred_obj_scores_mlp: bool = False, fixed_no_obj_ptr: bool = False,
        soft_no_obj_ptr: bool = False, use_mlp_for_obj_ptr_proj: bool = False, no_obj_embed_spatial: bool = False,
        sam_mask_decoder_extra_args: Mapping[str, Any] | None = None, compile_image_encoder: bool = False,
        *, compute_dtype: str | torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if memory_temporal_stride_for_eval < 1:
            raise ValueError(
                f"memory_temporal_stride_for_eval must be at least 1, got {memory_temporal_stride_for_eval}"
            )
        if proj_tpos_enc_in_obj_ptrs and not add_tpos_enc_to_obj_ptrs:
            raise ValueError("proj_tpos_enc_in_obj_ptrs needs add_tpos_enc_to_obj_ptrs")
        if fixed_no_obj_ptr and not (pred_obj_scores and use_obj_ptrs_in_encoder):
            raise ValueError("fixed_no_obj_ptr needs pred_obj_scores and use_obj_ptrs_in_encoder")
        self.image_encoder = image_encoder
        self.backbone_stride = backbone_stride
        self.hidden_dim = image_encoder.neck.d_model
        self.compute_dtype = resolve_dtype(compute_dtype)

        self.memory_attention = memory_attention
        self.num_maskmem = num_maskmem
        self.memory_temporal_stride_for_eval = memory_temporal_stride_for_eval
        self.max_cond_frames_in_attn = max_cond_frames_in_attn
        self.directly_add_no_mem_embed = directly_add_no_mem_embed
        self.use_obj_ptrs_in_encoder = use_obj_ptrs_in_encoder
        self.max_obj_ptrs_in_encoder = max_obj_ptrs_in_encoder
        self.add_tpos_enc_to_obj_ptrs = add_tpos_enc_to_obj_ptrs
        self.proj_tpos_enc_in_obj_ptrs = proj_tpos_enc_in_obj_ptrs
        self.use_signed_tpos_enc_to_obj_ptrs = use_signed_tpos_enc_to_obj_ptrs
        self.only_obj_ptrs_in_the_past_for_eval = only_obj_ptrs_in_the_past_for_eval

        self.use_high_res_features_in_sam = use_high_res_features_in_sam
        self.num_feature_levels = 3 if use_high_res_features_in_sam else 1
        self.multimask_output_in_sam = multimask_output_in_sam
        self.multimask_output_for_tracking = multimask_output_for_tracking
        self.multimask_min_pt_num, self.multimask_max_pt_num = multimask_min_pt_num, multimask_max_pt_num
        self.use_multimask_token_for_obj_ptr = use_multimask_token_for_obj_ptr
        self.iou_prediction_use_sigmoid = iou_prediction_use_sigmoid
        self.use_mask_input_as_output_without_sam = use_mask_input_as_output_without_sam
        self.pred_obj_scores, self.pred_obj_scores_mlp = pred_obj_scores, pred_obj_scores_mlp
        self.fixed_no_obj_ptr, self.soft_no_obj_ptr = fixed_no_obj_ptr, soft_no_obj_ptr
        self.use_mlp_for_obj_ptr_proj = use_mlp_for_obj_ptr_proj
        self.sam_mask_decoder_extra_args = sam_mask_decoder_extra_args

        self.memory_encoder = memory_encoder
        self.mem_dim = memory_encoder.out_dim
        self.sigmoid_scale_for_mem_enc = sigmoid_scale_for_mem_enc
        self.sigmoid_bias_for_mem_enc = sigmoid_bias_for_mem_enc
        self.binarize_mask_from_pts_for_mem_enc = binarize_mask_from_pts_for_mem_enc
        self.non_overlap_masks_for_mem_enc = non_overlap_masks_for_mem_enc

        self._build_embeddings(no_obj_embed_spatial)
        self.image_size, self.sam_image_embedding_size = image_size, image_size // backbone_stride
        self._build_sam_heads()
        self.fit_image_size(image_size)
        if compile_image_encoder:
            compile_with_cloned_outputs(self.image_encoder, dynamic=False)

    def _build_embeddings(self, no_obj_embed_spatial: bool) -> None:
        """The learned vectors that stand for time, for no memory and for no object."""

        def vector(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))

        self.maskmem_tpos_enc = vector(self.num_maskmem, 1, 1, self.mem_dim)
        self.no_mem_embed = vector(1, 1, self.hidden_dim)
        self.no_mem_pos_enc = vector(1, 1, self.hidden_dim)
        has_pointers = self.pred_obj_scores and self.use_obj_ptrs_in_encoder
        self.no_obj_ptr = vector(1, self.hidden_dim) if has_pointers else None
        self.no_obj_embed_spatial = vector(1, self.mem_dim) if no_obj_embed_spatial else None

    def fit_image_size(self, side: int) -> None:
        """Prepare for frames of side x side pixels; no weight depends on it.

        Raises:
            ValueError: `side` is not divisible by 32.
        """
        if side % 32:
            raise ValueError(f"image_size must be divisible by 32, got {side}")
        grid = side // self.backbone_stride
        self.image_size, self.sam_image_embedding_size = side, grid
        self.memory_attention.fit_grid(grid)
        self.sam_prompt_encoder.fit_image_size((grid, grid), (side, side))

    def _build_sam_heads(self) -> None:
        """SAM's prompt encoder and mask decoder, and the layers that turn an output token into an object pointer."""
        dim = self.hidden_dim
        image_size, grid = self.image_size, self.sam_image_embedding_size
        self.sam_prompt_embed_dim = dim
        self.sam_prompt_encoder = PromptEncoder(dim, (grid, grid), (image_size, image_size), mask_in_chans=16)
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, num_heads=8, mlp_dim=2048),
            use_high_res_features=self.use_high_res_features_in_sam,
            use_multimask_token_for_obj_ptr=self.use_multimask_token_for_obj_ptr,
            pred_obj_scores=self.pred_obj_scores, pred_obj_scores_mlp=self.pred_obj_scores_mlp,
            iou_prediction_use_sigmoid=self.iou_prediction_use_sigmoid,
            **(self.sam_mask_decoder_extra_args or {}),
        )  # fmt: skip
        self.obj_ptr_proj: nn.Module = nn.Identity()
        if self.use_obj_ptrs_in_encoder:
            self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
            self.obj_ptr_proj = MLP(dim, dim, dim, 3) if self.use_mlp_for_obj_ptr_proj else nn.Linear(dim, dim)
        self.obj_ptr_tpos_proj = nn.Linear(dim, self.mem_dim) if self.proj_tpos_enc_in_obj_ptrs else nn.Identity()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the network, to be entered around its calls (see `compute_dtype`)."""
        if self.compute_dtype is None:
            return nullcontext()
        reduced = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype if reduced else None, enabled=reduced)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """There is no single pass through the network: see `SAM2VideoPredictor` and `SAM2ImagePredictor`."""
        raise NotImplementedError("use SAM2VideoPredictor for videos, SAM2ImagePredictor for images")

    # Encode

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """Encode images (B, 3, S, S), ImageNet-normalised.

        Returns:
            "backbone_fpn" and "vision_pos_enc": maps at strides 4, 8, 16 and their position encodings; the finer two
            already have the width the mask decoder adds them at. "vision_features": the coarsest map.
        """
        encoded = self.image_encoder(img_batch)
        if self.use_high_res_features_in_sam:
            fine, middle, *rest = encoded["backbone_fpn"]
            decoder = self.sam_mask_decoder
            encoded["backbone_fpn"] = [decoder.conv_s0(fine), decoder.conv_s1(middle), *rest]
        return encoded

    def encode_image(self, img_batch: Tensor) -> FrameFeatures:
        """`forward_image`, kept to the maps that the network reads."""
        encoded = self.forward_image(img_batch)
        levels = self.num_feature_levels
        return FrameFeatures(encoded["backbone_fpn"][-levels:], encoded["vision_pos_enc"][-levels:])

    def _prepare_backbone_features(
        self, backbone_out: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], list[Tensor], list[Tensor], list[tuple[int, int]]]:
        """What `forward_image` returns, as the arguments of `track_step`: tokens (HW, B, C) and map sizes."""
        maps = backbone_out["backbone_fpn"][-self.num_feature_levels :]
        positions = backbone_out["vision_pos_enc"][-self.num_feature_levels :]
        tokens, position_tokens = ([to_tokens(x) for x in group] for group in (maps, positions))
        return backbone_out, tokens, position_tokens, [(x.shape[-2], x.shape[-1]) for x in positions]

    # Read memory

    def read_memory(self, features: FrameFeatures, bank: MemoryBank, request: FrameRequest) -> Tensor:
        """Condition the frame's coarsest map (B, C, h, w) on the memory bank -> (B, C, h, w)."""
        top = features.top
        if self.num_maskmem == 0:
            return top
        if request.reads_memory:
            memory = self._gather(bank, request, top)
        elif self.directly_add_no_mem_embed:
            return top + self.no_mem_embed.view(1, -1, 1, 1)
        else:
            shape = (1, top.shape[0], self.mem_dim)
            memory = MemoryTokens(self.no_mem_embed.expand(shape), self.no_mem_pos_enc.expand(shape), 0)
        tokens = self.memory_attention(
            curr=to_tokens(top), curr_pos=to_tokens(features.positions[-1]),
            memory=memory.tokens, memory_pos=memory.positions, num_obj_ptr_tokens=memory.num_pointer_tokens,
        )  # fmt: skip
        return to_map(tokens, (top.shape[-2], top.shape[-1]))

    def _bank_rules(self, num_frames: int) -> BankRules:
        return BankRules(
            num_maskmem=self.num_maskmem,
            stride=1 if self.training else self.memory_temporal_stride_for_eval,
            max_prompted=self.max_cond_frames_in_attn,
            max_pointers=min(num_frames, self.max_obj_ptrs_in_encoder),
            signed_distance=self.use_signed_tpos_enc_to_obj_ptrs,
            pointers_from_past_only=self.only_obj_ptrs_in_the_past_for_eval and not self.training,
        )

    def _selection(self, bank: MemoryBank, request: FrameRequest) -> Selection:
        """What is remembered on a frame. `select_closest_cond_frames` is taken from here, where others replace it."""
        rules = self._bank_rules(request.num_frames)
        return select_memory(
            bank, request.frame_idx, request.reverse, request.num_frames, rules, select_closest_cond_frames
        )

    def _gather(self, bank: MemoryBank, request: FrameRequest, like: Tensor) -> MemoryTokens:
        """Memory maps and object pointers as tokens, on the device of `like`."""
        selection = self._selection(bank, request)
        tokens, positions = [], []
        for slot, output, _ in selection.maps:
            if output.maskmem_features is None or output.maskmem_pos_enc is None:
                raise RuntimeError(f"a frame that frame {request.frame_idx} remembers was not written to memory")
            # Memory may be kept elsewhere, and as bfloat16.
            tokens.append(to_tokens(output.maskmem_features.to(like.device, like.dtype, non_blocking=True)))
            place = to_tokens(output.maskmem_pos_enc[-1].to(like.device, non_blocking=True))
            positions.append(place + self.maskmem_tpos_enc[self.num_maskmem - slot - 1])
        pointers = 0
        if self.use_obj_ptrs_in_encoder and selection.pointers:
            max_pointers = self._bank_rules(request.num_frames).max_pointers
            values, places = self._pointer_tokens(selection.pointers, max_pointers, like.device)
            tokens.append(values)
            positions.append(places)
            pointers = values.shape[0]
        return MemoryTokens(torch.cat(tokens), torch.cat(positions), pointers)

    def _pointer_tokens(
        self, pointers: Sequence[Remembered], max_pointers: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Object pointers (B, C), each cut into C / M tokens of memory width -> tokens and positions (N, B, M)."""
        values = torch.stack([p.output.obj_ptr.to(device) for p in pointers])  # (n, B, C)
        batch, pieces = values.shape[1], self.hidden_dim // self.mem_dim
        if self.add_tpos_enc_to_obj_ptrs:
            distances = torch.tensor([p.distance for p in pointers], dtype=torch.float32, device=device)
            width = self.hidden_dim if self.proj_tpos_enc_in_obj_ptrs else self.mem_dim
            ages = get_1d_sine_pe(distances / max(max_pointers - 1, 1), dim=width)
            places = self.obj_ptr_tpos_proj(ages)[:, None].expand(-1, batch, -1)  # (n, B, M)
        else:
            places = values.new_zeros(len(pointers), batch, self.mem_dim)
        tokens = values.unflatten(-1, (pieces, self.mem_dim)).transpose(1, 2).flatten(0, 1)
        return tokens, places.repeat_interleave(pieces, dim=0)

    # Decode

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: Points) -> bool:
        """Whether the prompt is ambiguous enough to ask for several masks."""
        points = as_point_inputs(point_inputs)
        clicks = 0 if points is None else points.point_labels.shape[1]
        wanted = self.multimask_output_in_sam and (is_init_cond_frame or self.multimask_output_for_tracking)
        return wanted and self.multimask_min_pt_num <= clicks <= self.multimask_max_pt_num

    def decode_masks(
        self, backbone_features: Tensor, point_inputs: PointInputs | None = None, mask_inputs: Tensor | None = None,
        high_res_features: Sequence[Tensor] | None = None, multimask_output: bool = False,
    ) -> SamOutput:  # fmt: skip
        """Decode a conditioned map (B, C, h, w) under the prompts.

        Args:
            point_inputs: clicks in input pixels; none counts as one padding point.
            mask_inputs: (B, 1, any, any), shrunken to the prompt encoder's size where needed.
            multimask_output: decode several masks and choose the one with the best predicted IoU.
        """
        batch, device = backbone_features.shape[0], backbone_features.device
        if point_inputs is None:
            nowhere = torch.zeros(batch, 1, 2, device=device)
            point_inputs = PointInputs(nowhere, torch.full((batch, 1), PADDING, dtype=torch.int32, device=device))
        size = self.sam_prompt_encoder.mask_input_size
        if mask_inputs is not None and mask_inputs.shape[-2:] != size:
            mask_inputs = resize_smoothly(mask_inputs.float(), size)
        sparse, dense = self.sam_prompt_encoder(points=tuple(point_inputs), boxes=None, masks=mask_inputs)
        masks, ious, tokens, scores = self.sam_mask_decoder(
            image_embeddings=backbone_features, image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
            multimask_output=multimask_output, repeat_image=False, high_res_features=high_res_features,
        )  # fmt: skip
        if self.pred_obj_scores:
            masks = torch.where((scores > 0)[:, :, None, None], masks, NO_OBJ_SCORE)
        masks = masks.float()
        rows, best = torch.arange(batch, device=device), ious.argmax(dim=-1)
        chosen = masks[rows, best].unsqueeze(1)
        token = tokens[rows, best] if tokens.shape[1] > 1 else tokens[:, 0]
        upscaled = F.interpolate(chosen, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        return SamOutput(
            low_res_multimasks=masks, ious=ious, low_res_masks=chosen, high_res_masks=upscaled,
            best_ious=ious[rows, best].unsqueeze(1), obj_ptr=self._object_pointer(token, scores),
            object_score_logits=scores,
        )  # fmt: skip

    def _object_pointer(self, token: Tensor, object_score_logits: Tensor) -> Tensor:
        """The pointer (B, C) of an output token, or the learned one of an absent object."""
        pointer = self.obj_ptr_proj(token)
        if not self.pred_obj_scores:
            return pointer
        presence = object_score_logits.sigmoid() if self.soft_no_obj_ptr else (object_score_logits > 0).float()
        return self._mix_absent(pointer, presence)

    def _mix_absent(self, pointer: Tensor, presence: Tensor) -> Tensor:
        if self.no_obj_ptr is None:
            return pointer
        pointer = presence * pointer if self.fixed_no_obj_ptr else pointer
        return pointer + (1 - presence) * self.no_obj_ptr

    def answer_with_mask(self, features: FrameFeatures, mask: Tensor) -> SamOutput:
        """Answer a given mask (B, 1, S, S) with itself; the decoder only contributes the object pointer."""
        mask = mask.float()
        logits = mask * MASK_SCALE + MASK_BIAS
        low_res = resize_smoothly(logits, (logits.shape[-2] // 4, logits.shape[-1] // 4))
        if self.use_obj_ptrs_in_encoder:
            prompt = {
                "backbone_features": features.top, "mask_inputs": self.mask_downsample(mask),
                "high_res_features": features.high_res,
            }  # fmt: skip
            own = self.has_own_steps
            pointer = self._forward_sam_heads(**prompt)[5] if own else self.decode_masks(**prompt).obj_ptr
        else:
            pointer = logits.new_zeros(mask.shape[0], self.hidden_dim)
        presence = (mask.flatten(1) > 0).any(dim=1, keepdim=True).float()  # (B, 1)
        if self.pred_obj_scores:
            pointer = self._mix_absent(pointer, presence)
        certain = logits.new_ones(mask.shape[0], 1)
        return SamOutput(
            low_res_multimasks=low_res, ious=certain, low_res_masks=low_res, high_res_masks=logits, best_ious=certain,
            obj_ptr=pointer, object_score_logits=presence * MASK_SCALE + MASK_BIAS,
        )  # fmt: skip

    # Write memory

    def _apply_non_overlapping_constraints(self, pred_masks: Tensor) -> Tensor:
        """`keep_highest_object` under upstream's name."""
        return keep_highest_object(pred_masks)

    def write_memory(
        self, features: FrameFeatures, masks: Tensor, object_score_logits: Tensor, from_points: bool
    ) -> EncodedMemory:
        """Turn a frame and its masks, logits (B, 1, S, S), into memory maps (B, M, h, w).

        Args:
            from_points: the masks answer clicks, so that `binarize_mask_from_pts_for_mem_enc` applies.
        """
        if self.non_overlap_masks_for_mem_enc and not self.training:
            masks = self._apply_non_overlapping_constraints(masks)
        binarize = self.binarize_mask_from_pts_for_mem_enc and from_points and not self.training
        shares = (masks > 0).float() if binarize else masks.sigmoid()
        shares = shares * self.sigmoid_scale_for_mem_enc + self.sigmoid_bias_for_mem_enc
        encoded = self.memory_encoder(features.top, shares, skip_mask_sigmoid=True)
        memory, position = encoded["vision_features"], encoded["vision_pos_enc"][-1]
        if self.no_obj_embed_spatial is not None:
            absence = 1 - (object_score_logits > 0).float()  # (B, 1)
            memory = memory + (absence * self.no_obj_embed_spatial)[:, :, None, None]
        return EncodedMemory(memory, position)

    # All together

    def segment(self, features: FrameFeatures, bank: MemoryBank, request: FrameRequest) -> SamOutput:
        """Masks of B objects on one frame, from its prompts, from memory or from both."""
        if request.mask is not None and self.use_mask_input_as_output_without_sam:
            return self.answer_with_mask(features, request.mask)
        conditioned = self.read_memory(features, bank, request)
        return self.decode_masks(
            conditioned,
            point_inputs=request.points,
            mask_inputs=request.mask if request.previous_logits is None else request.previous_logits,
            high_res_features=features.high_res,
            multimask_output=self._use_multimask(not request.reads_memory, request.points),
        )

    def track(self, features: FrameFeatures, bank: MemoryBank, request: FrameRequest, remember: bool) -> FrameOutput:
        """`segment`, and the frame's own memory if it is to be remembered."""
        if self.has_own_steps:
            return self.track_by_steps(features, bank, request, remember)
        decoded = self.segment(features, bank, request)
        output = FrameOutput(
            pred_masks=decoded.low_res_masks, obj_ptr=decoded.obj_ptr, object_score_logits=decoded.object_score_logits,
            ious=decoded.best_ious, pred_masks_high_res=decoded.high_res_masks,
            point_inputs=request.points, mask_inputs=request.mask,
        )  # fmt: skip
        if remember and self.num_maskmem > 0:
            memory = self.write_memory(
                features, decoded.high_res_masks, decoded.object_score_logits, from_points=request.points is not None
            )
            output.maskmem_features, output.maskmem_pos_enc = memory.features, [memory.position]
        return output


def resize_smoothly(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 1, H, W) smoothly, without aliasing."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

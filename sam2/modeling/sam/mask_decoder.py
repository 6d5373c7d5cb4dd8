"""Mask decoder: output tokens read the image and the prompts, and turn into masks, their quality and presence.

SAM (Kirillov et al. 2023, appendix A) with SAM 2's additions (Ravi et al. 2024, appendix D): high-resolution features,
a token that says whether the object is in the frame, and the choice among masks by their stability.
Shapes: B prompts, C channels, M masks (one for a clear prompt, three for an ambiguous one), h x w the embedding's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam2.modeling.outputs import DecodedMasks
from sam2.modeling.sam2_utils import MLP, LayerNorm2d


class MaskDecoder(nn.Module):
    """Predicts masks from an image embedding and prompt embeddings.

    Args:
        num_multimask_outputs: masks for an ambiguous prompt, besides the one for a clear prompt.
        dynamic_multimask_via_stability: replace an unstable single mask by the best of the several; a mask is stable
            when its IoU between the thresholds +delta and -delta reaches `dynamic_multimask_stability_thresh`.
        pred_obj_scores, pred_obj_scores_mlp: predict whether the object is in the frame, with an MLP.
        use_multimask_token_for_obj_ptr: hand out the token of each of the several masks, not only the first.
    """

    def __init__(
        self, *, transformer_dim: int, transformer: nn.Module, num_multimask_outputs: int = 3,
        activation: type[nn.Module] = nn.GELU, iou_head_depth: int = 3, iou_head_hidden_dim: int = 256,
        use_high_res_features: bool = False, iou_prediction_use_sigmoid: bool = False,
        dynamic_multimask_via_stability: bool = False, dynamic_multimask_stability_delta: float = 0.05,
        dynamic_multimask_stability_thresh: float = 0.98, pred_obj_scores: bool = False,
        pred_obj_scores_mlp: bool = False, use_multimask_token_for_obj_ptr: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        dim = transformer_dim
        self.transformer_dim, self.transformer = dim, transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.num_mask_tokens = num_multimask_outputs + 1
        self.use_multimask_token_for_obj_ptr = use_multimask_token_for_obj_ptr
        self.dynamic_multimask_via_stability = dynamic_multimask_via_stability
        self.dynamic_multimask_stability_delta = dynamic_multimask_stability_delta
        self.dynamic_multimask_stability_thresh = dynamic_multimask_stability_thresh

        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2), LayerNorm2d(dim // 4), activation(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2), activation(),
        )  # fmt: skip
        self.use_high_res_features = use_high_res_features
        if use_high_res_features:
            self.conv_s0 = nn.Conv2d(dim, dim // 8, 1)
            self.conv_s1 = nn.Conv2d(dim, dim // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(self.num_mask_tokens))
        self.iou_prediction_head = MLP(
            dim, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth, sigmoid_output=iou_prediction_use_sigmoid
        )
        self.pred_obj_scores = pred_obj_scores
        if pred_obj_scores:
            self.obj_score_token = nn.Embedding(1, dim)
            self.pred_obj_score_head = MLP(dim, dim, 1, 3) if pred_obj_scores_mlp else nn.Linear(dim, 1)

    def forward(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor, multimask_output: bool, repeat_image: bool,
        high_res_features: Sequence[Tensor] | None = None,
    ) -> DecodedMasks:  # fmt: skip
        """Decode the masks that answer the prompts.

        Args:
            image_embeddings: (B, C, h, w), or (1, C, h, w) with `repeat_image`.
            image_pe: (1, C, h, w).
            sparse_prompt_embeddings, dense_prompt_embeddings: (B, N, C) and (B, C, h, w).
            multimask_output: answer with the several masks rather than the single one.
            high_res_features: maps (., C/8, 4h, 4w) and (., C/4, 2h, 2w).
        """
        masks, ious, tokens, object_score_logits = self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, repeat_image,
            high_res_features,
        )  # fmt: skip
        several = multimask_output and self.use_multimask_token_for_obj_ptr
        tokens = tokens[:, 1:] if several else tokens[:, :1]
        if multimask_output:
            return DecodedMasks(masks[:, 1:], ious[:, 1:], tokens, object_score_logits)
        if self.dynamic_multimask_via_stability and not self.training:
            masks, ious = self._dynamic_multimask_via_stability(masks, ious)
        return DecodedMasks(masks[:, :1], ious[:, :1], tokens, object_score_logits)

    def predict_masks(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor, repeat_image: bool, high_res_features: Sequence[Tensor] | None = None,
    ) -> DecodedMasks:  # fmt: skip
        """All masks, the single one first and then the several. Arguments as in `forward`."""
        batch = sparse_prompt_embeddings.shape[0]
        heads = [self.obj_score_token.weight] if self.pred_obj_scores else []
        heads += [self.iou_token.weight, self.mask_tokens.weight]
        tokens = torch.cat([torch.cat(heads).expand(batch, -1, -1), sparse_prompt_embeddings], dim=1)
        if not repeat_image and image_embeddings.shape[0] != batch:
            raise ValueError(f"{image_embeddings.shape[0]} images for {batch} prompts need repeat_image=True")
        image = image_embeddings + dense_prompt_embeddings  # one image broadcasts over the prompts
        tokens, pixels = self.transformer(image, image_pe, tokens)
        image = pixels.transpose(1, 2).unflatten(2, image.shape[-2:])  # (B, C, h, w)

        first_mask = len(heads) - 1
        mask_tokens = tokens[:, first_mask : first_mask + self.num_mask_tokens]
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # (B, masks, C/8)
        upscaled = self._upscale(image, high_res_features)  # (B, C/8, 4h, 4w)
        masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        ious = self.iou_prediction_head(tokens[:, first_mask - 1])
        if self.pred_obj_scores:
            object_score_logits = self.pred_obj_score_head(tokens[:, 0])  # (B, 1)
        else:
            object_score_logits = ious.new_full((batch, 1), 10.0)  # always present
        return DecodedMasks(masks, ious, mask_tokens, object_score_logits)

    def _upscale(self, image: Tensor, high_res_features: Sequence[Tensor] | None) -> Tensor:
        """(B, C, h, w) -> (B, C/8, 4h, 4w), adding the encoder's finer maps on the way."""
        if not self.use_high_res_features:
            return self.output_upscaling(image)
        if high_res_features is None:
            raise ValueError("high_res_features are needed: this decoder was built with use_high_res_features=True")
        up1, norm, act1, up2, act2 = self.output_upscaling
        fine, middle = high_res_features
        return act2(up2(act1(norm(up1(image) + middle))) + fine)

    def _get_stability_scores(self, mask_logits: Tensor) -> Tensor:
        """IoU of each mask (..., H, W) at the thresholds +delta and -delta; 1 where it is empty at both."""
        delta = self.dynamic_multimask_stability_delta
        inner = (mask_logits > delta).flatten(-2).sum(-1).float()
        outer = (mask_logits > -delta).flatten(-2).sum(-1).float()
        return torch.where(outer > 0, inner / outer, 1.0)

    def _dynamic_multimask_via_stability(
        self, all_mask_logits: Tensor, all_iou_scores: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Per prompt, the single mask where it is stable, else the one of the several with the best predicted IoU.

        Args, as `predict_masks` answers them, which exporters put together with this by themselves:
            all_mask_logits: (B, 1 + M, H, W). all_iou_scores: (B, 1 + M).

        Returns:
            (B, 1, H, W) and (B, 1).
        """
        masks, ious = all_mask_logits, all_iou_scores
        rows = torch.arange(masks.shape[0], device=masks.device)
        best = 1 + ious[:, 1:].argmax(dim=-1)
        stable = self._get_stability_scores(masks[:, 0]) >= self.dynamic_multimask_stability_thresh  # (B,)
        chosen = torch.where(stable, 0, best)
        return masks[rows, chosen].unsqueeze(1), ious[rows, chosen].unsqueeze(1)

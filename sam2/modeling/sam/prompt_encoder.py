"""Prompt encoder (SAM, Kirillov et al. 2023, appendix A): clicks and boxes as tokens, masks as a map.

Shapes: B prompts, P points, C channels, h x w the image embedding's grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam2_utils import LayerNorm2d

PADDING = -1  # label of a point that is not there; 0 negative, 1 positive, 2 and 3 a box's corners


class PromptEncoder(nn.Module):
    """Embeds clicks, boxes and masks.

    Args:
        embed_dim: C.
        image_embedding_size: (h, w). input_image_size: (H, W) in pixels, the space of the coordinates.
        mask_in_chans: hidden channels of the mask branch.
    """

    def __init__(
        self, embed_dim: int, image_embedding_size: tuple[int, int], input_image_size: tuple[int, int],
        mask_in_chans: int, activation: type[nn.Module] = nn.GELU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_dim = embed_dim
        self.fit_image_size(image_embedding_size, input_image_size)
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.num_point_embeddings = 4
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(self.num_point_embeddings))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        narrow = mask_in_chans // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, narrow, 2, stride=2), LayerNorm2d(narrow), activation(),
            nn.Conv2d(narrow, mask_in_chans, 2, stride=2), LayerNorm2d(mask_in_chans), activation(),
            nn.Conv2d(mask_in_chans, embed_dim, 1),
        )  # fmt: skip
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def fit_image_size(self, image_embedding_size: tuple[int, int], input_image_size: tuple[int, int]) -> None:
        """Prepare for images of another size, see the class."""
        self.image_embedding_size, self.input_image_size = image_embedding_size, input_image_size
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])

    def get_dense_pe(self) -> Tensor:
        """Position encoding of the image embedding's grid, (1, C, h, w)."""
        return self.pe_layer(self.image_embedding_size)[None]

    # The parts of `forward`, which exporters and encoders of other prompts call one by one.

    def _get_batch_size(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> int:  # fmt: skip
        """B of the first kind of prompt that is given, 1 without any."""
        given = [t for t in (points and points[0], boxes, masks) if t is not None]
        return len(given[0]) if given else 1  # not by next(), which torch 2.5 cannot compile

    def _get_device(self) -> torch.device:
        return self.no_mask_embed.weight.device

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """Points (B, P, 2), (x, y) of a pixel's corner, and labels (B, P) -> (B, P, C), or P + 1 with `pad`.

        Args:
            labels: -1 to 3; a point of any other is its place alone.
            pad: append a padding point.
        """
        labels = labels.long()  # bytes and booleans hold no -1
        if pad:
            points = torch.cat([points, points.new_zeros(len(points), 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), PADDING)], dim=1)
        learned: list[Any] = [self.not_a_point_embed, *self.point_embeddings]
        kinds = torch.cat([embedding.weight for embedding in learned])  # (5, C), of the labels -1 to 3
        kinds = F.pad(kinds, (0, 0, 1, 1))  # nothing for those below and above
        places = self.pe_layer.forward_with_coords(points + 0.5, self.input_image_size)
        is_point = (labels != PADDING).unsqueeze(-1)
        return places * is_point + kinds[(labels + 2).clamp(0, 6)]

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (B, 4) XYXY in input pixels -> (B, 2, C), their two corners."""
        corners = boxes.reshape(-1, 2, 2)
        labels = torch.tensor([2, 3], device=boxes.device).expand(len(corners), 2)
        return self._embed_points(corners, labels, pad=False)

    def _embed_masks(self, masks: Tensor) -> Tensor:
        """Logits (B, 1, 4h, 4w) -> (B, C, h, w)."""
        return self.mask_downscaling(masks)

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts of B objects.

        Args:
            points: coordinates (B, P, 2) as (x, y) in input pixels, and labels (B, P).
            boxes: (B, 4) XYXY in input pixels.
            masks: (B, 1, 4h, 4w) logits.

        Returns:
            Sparse (B, N, C), one token per point and box corner, and a padding point where points come without a box;
            dense (B, C, h, w).
        """
        weight = self.no_mask_embed.weight  # (1, C)
        batch = self._get_batch_size(points, boxes, masks)
        tokens = [weight.new_empty(batch, 0, self.embed_dim)]
        if points is not None:
            tokens.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            tokens.append(self._embed_boxes(boxes))
        if masks is not None:
            dense = self._embed_masks(masks)
        else:
            dense = weight[:, :, None, None].expand(batch, -1, *self.image_embedding_size)
        return torch.cat(tokens, dim=1), dense

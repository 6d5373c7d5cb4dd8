"""Memory encoder: a frame's features and its mask become one memory map (SAM 2, section 4).

Shapes: B objects, C channels, S the mask's side, h = w = S / 16.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.sam2_utils import DropPath, LayerNorm2d, get_clones


class MaskDownSampler(nn.Module):
    """Shrink a mask by `total_stride` in steps of `stride`, widening by stride**2 each, then project to `embed_dim`."""

    def __init__(
        self, embed_dim: int = 256, kernel_size: int = 4, stride: int = 4, padding: int = 0, total_stride: int = 16,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = nn.Sequential()
        channels, reached = 1, 1
        while reached < total_stride:
            wider = channels * stride**2
            shrink = nn.Conv2d(channels, wider, kernel_size, stride, padding)
            self.encoder.extend([shrink, LayerNorm2d(wider), activation()])
            channels, reached = wider, reached * stride
        if reached != total_stride:
            raise ValueError(f"total_stride must be a power of stride {stride}, got {total_stride}")
        self.encoder.append(nn.Conv2d(channels, embed_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, embed_dim, S / total_stride, S / total_stride)."""
        return self.encoder(x)


class CXBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022): depth-wise convolution, norm and a pointwise MLP, scaled and added."""

    def __init__(
        self, dim: int, kernel_size: int = 7, padding: int = 3, drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6, use_dwconv: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=padding, groups=dim if use_dwconv else 1)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init_value))) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> the same shape."""
        branch = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)  # (B, H, W, dim)
        branch = self.pwconv2(self.act(self.pwconv1(branch)))
        branch = branch if self.gamma is None else self.gamma * branch
        return x + self.drop_path(branch.permute(0, 3, 1, 2))


class Fuser(nn.Module):
    """`num_layers` copies of a block, after an optional pointwise projection of `dim` channels."""

    def __init__(
        self, layer: nn.Module, num_layers: int, dim: int | None = None, input_projection: bool = False
    ) -> None:
        super().__init__()
        if input_projection and dim is None:
            raise ValueError("input_projection needs dim")
        self.proj = nn.Conv2d(dim, dim, 1) if input_projection and dim is not None else nn.Identity()
        self.layers = get_clones(layer, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return functools.reduce(lambda fused, layer: layer(fused), self.layers, self.proj(x))


class MemoryEncoder(nn.Module):
    """Adds the shrunken mask to the projected features, fuses them and compresses the result to `out_dim` channels."""

    def __init__(
        self, out_dim: int, mask_downsampler: nn.Module, fuser: nn.Module, position_encoding: nn.Module,
        in_dim: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_dim = out_dim
        self.mask_downsampler = mask_downsampler
        self.pix_feat_proj = nn.Conv2d(in_dim, in_dim, 1)
        self.fuser = fuser
        self.position_encoding = position_encoding
        self.out_proj = nn.Identity() if out_dim == in_dim else nn.Conv2d(in_dim, out_dim, 1)

    def forward(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool = False
    ) -> dict[str, Tensor | list[Tensor]]:
        """Encode pix_feat (B, in_dim, h, w) and masks (B, 1, S, S), logits unless `skip_mask_sigmoid`.

        Returns:
            "vision_features": the memory map (B, out_dim, h, w); "vision_pos_enc": its position encoding, in a list.
        """
        shares = masks if skip_mask_sigmoid else F.sigmoid(masks)
        x = self.pix_feat_proj(pix_feat) + self.mask_downsampler(shares)
        x = self.out_proj(self.fuser(x))
        return {"vision_features": x, "vision_pos_enc": [self.position_encoding(x).to(x.dtype)]}

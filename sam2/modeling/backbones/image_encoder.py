"""Image encoder: a trunk, and a feature-pyramid neck that brings its maps to one width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.backbones.hieradet import Hiera


class ImageEncoder(nn.Module):
    """Trunk and neck; the `scalp` coarsest maps are dropped."""

    def __init__(self, trunk: Hiera, neck: FpnNeck, scalp: int = 0) -> None:
        super().__init__()
        if trunk.channel_list != neck.backbone_channel_list:
            raise ValueError(f"the neck expects trunk widths {neck.backbone_channel_list}, got {trunk.channel_list}")
        self.trunk = trunk
        self.neck = neck
        self.scalp = scalp

    def forward(self, sample: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """(B, 3, S, S) image -> maps "backbone_fpn", finest first, their encodings, and the coarsest map itself."""
        features, positions = self.neck(self.trunk(sample))
        kept = len(features) - self.scalp
        features, positions = features[:kept], positions[:kept]
        return {"vision_features": features[-1], "vision_pos_enc": positions, "backbone_fpn": features}


class FpnNeck(nn.Module):
    """Feature pyramid (Lin et al. 2017) without output convolutions.

    Args:
        position_encoding: called on each output map.
        d_model: width of the outputs.
        backbone_channel_list: widths of the trunk's maps, coarsest first.
        fpn_interp_model, fuse_type: how a coarser map is enlarged, and joined ("sum" or "avg").
        fpn_top_down_levels: output levels (0 is finest) that receive the coarser map; all by default.
    """

    def __init__(
        self, position_encoding: nn.Module, d_model: int, backbone_channel_list: Sequence[int], kernel_size: int = 1,
        stride: int = 1, padding: int = 0, fpn_interp_model: str = "bilinear", fuse_type: str = "sum",
        fpn_top_down_levels: Iterable[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f'fuse_type must be "sum" or "avg", got {fuse_type!r}')
        self.position_encoding = position_encoding
        self.d_model = d_model
        self.backbone_channel_list = list(backbone_channel_list)
        self.fpn_interp_model = fpn_interp_model
        self.fuse_type = fuse_type
        self.convs = nn.ModuleList()
        for width in self.backbone_channel_list:
            lateral = nn.Conv2d(width, d_model, kernel_size, stride, padding)
            self.convs.append(nn.Sequential())
            self.convs[-1].add_module("conv", lateral)
        levels = range(len(self.convs)) if fpn_top_down_levels is None else fpn_top_down_levels
        self.fpn_top_down_levels = list(levels)

    def _enlarge(self, x: Tensor) -> Tensor:
        align = None if self.fpn_interp_model == "nearest" else False
        return F.interpolate(x.float(), scale_factor=2.0, mode=self.fpn_interp_model, align_corners=align)

    def forward(self, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Trunk maps, finest first -> (maps of width d_model, their position encodings), finest first."""
        if len(xs) != len(self.convs):
            raise ValueError(f"the neck has {len(self.convs)} levels, got {len(xs)} maps")
        outputs: list[Tensor] = []
        for level in reversed(range(len(xs))):
            x = self.convs[len(xs) - 1 - level](xs[level])
            if outputs and level in self.fpn_top_down_levels:
                x = x + self._enlarge(outputs[-1])
                x = x / 2 if self.fuse_type == "avg" else x
            outputs.append(x)
        outputs.reverse()
        return outputs, [self.position_encoding(x).to(x.dtype) for x in outputs]

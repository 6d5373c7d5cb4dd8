"""Windows of a feature map, and the patch embedding. Shapes: B batch, H x W tokens, C channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut a (B, H, W, C) map into square windows, zero-padded at the right and the bottom where they don't fit.

    Returns:
        Windows (B * rows * columns, window_size, window_size, C) and the padded (height, width).
    """
    batch, height, width, channels = x.shape
    pad_h, pad_w = -height % window_size, -width % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    rows, columns = (height + pad_h) // window_size, (width + pad_w) // window_size
    x = x.view(batch, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(-1, window_size, window_size, channels), (height + pad_h, width + pad_w)


def window_unpartition(windows: Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """Put windows back together: the inverse of `window_partition`, cropped to the (H, W) of `hw`."""
    rows, columns = pad_hw[0] // window_size, pad_hw[1] // window_size
    x = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, *pad_hw, windows.shape[-1])
    return x[:, : hw[0], : hw[1]]


class PatchEmbed(nn.Module):
    """Overlapping patches as tokens: (B, in_chans, S, S) image -> (B, S/4, S/4, embed_dim)."""

    def __init__(
        self, kernel_size: tuple[int, int] = (7, 7), stride: tuple[int, int] = (4, 4),
        padding: tuple[int, int] = (3, 3), in_chans: int = 3, embed_dim: int = 768,
    ) -> None:  # fmt: skip
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)

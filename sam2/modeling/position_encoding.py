"""Positional encodings: sine maps, random Fourier features of clicks, rotary encoding of attention.

Every table is kept as real numbers and follows the device of what it is added to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PositionEmbeddingSine(nn.Module):
    """Two-dimensional sine encoding of a feature map's rows and columns (DETR, Carion et al. 2020, appendix A.4).

    Args:
        num_pos_feats: channels of the encoding; the first half encodes y, the second x.
        temperature: ratio of the longest to the shortest wave length.
        normalize: measure positions as a share of the map's height and width, times `scale`.
        scale: full turn of a normalised position, 2 pi by default.
        warmup_cache, image_size, strides: upstream's options for filling the cache early; tables are made when needed.
    """

    def __init__(
        self, num_pos_feats: int, temperature: int = 10000, normalize: bool = True, scale: float | None = None,
        warmup_cache: bool = True, image_size: int = 1024, strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:  # fmt: skip
        super().__init__()
        if num_pos_feats % 2:
            raise ValueError(f"num_pos_feats must be even, got {num_pos_feats}")
        if scale is not None and not normalize:
            raise ValueError("scale needs normalize=True")
        self.num_pos_feats = num_pos_feats // 2
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale
        self.cache: dict[tuple[int, int], Tensor] = {}

    def _waves(self, positions: Tensor) -> Tensor:
        """(N,) positions -> (N, num_pos_feats) alternating sines and cosines."""
        channel = torch.arange(self.num_pos_feats, dtype=torch.float32, device=positions.device)
        angles = positions[:, None] / self.temperature ** (2 * (channel // 2) / self.num_pos_feats)
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    def _table(self, height: int, width: int) -> Tensor:
        """The (2 * num_pos_feats, height, width) encoding, on the CPU."""
        y = torch.arange(1, height + 1, dtype=torch.float32)
        x = torch.arange(1, width + 1, dtype=torch.float32)
        if self.normalize:
            y = y / (height + 1e-6) * self.scale
            x = x / (width + 1e-6) * self.scale
        rows = self._waves(y).T[:, :, None].expand(-1, -1, width)
        columns = self._waves(x).T[:, None, :].expand(-1, height, -1)
        return torch.cat((rows, columns))

    @torch.no_grad()
    def encode_boxes(self, x: Tensor, y: Tensor, w: Tensor, h: Tensor) -> Tensor:
        """Encode N boxes given by centre and size, each (N,), in units of the image -> (N, 2 * num_pos_feats + 2)."""
        return torch.cat((self._waves(y * self.scale), self._waves(x * self.scale), h[:, None], w[:, None]), dim=1)

    encode = encode_boxes

    @torch.no_grad()
    def encode_points(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        """Encode clicks, each argument (B, N) with positions in units of the image -> (B, N, 2 * num_pos_feats + 1)."""
        if not x.shape == y.shape == labels.shape:
            raise ValueError(f"x, y, labels must have one shape, got {x.shape}, {y.shape}, {labels.shape}")
        waves = [self._waves(v.flatten() * self.scale).view(*v.shape, -1) for v in (y, x)]
        return torch.cat((*waves, labels[:, :, None]), dim=2)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The encoding for a map x (B, any, H, W) -> (B, num_pos_feats as given, H, W), one table seen B times."""
        size = (x.shape[-2], x.shape[-1])
        table = self.cache.get(size)
        if table is None or table.device != x.device:
            table = self.cache[size] = self._table(*size).to(x.device)
        return table.expand(x.shape[0], -1, -1, -1)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of image positions (Tancik et al. 2020), as SAM encodes its clicks."""

    positional_encoding_gaussian_matrix: Tensor  # (2, num_pos_feats)

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        super().__init__()
        spread = 1.0 if scale is None or scale <= 0.0 else scale
        self.register_buffer("positional_encoding_gaussian_matrix", spread * torch.randn(2, num_pos_feats))

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """(..., 2) positions (x, y) in [0, 1] -> (..., 2 * num_pos_feats). Exporters call it by this name."""
        angles = 2 * math.pi * ((2 * coords - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Encode the pixel centres of an (H, W) grid -> (2 * num_pos_feats, H, W)."""
        height, width = size
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self._pe_encoding(grid).permute(2, 0, 1)

    def forward_with_coords(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Encode points (B, P, 2), (x, y) in pixels of an image of (H, W) -> (B, P, 2 * num_pos_feats)."""
        height, width = image_size
        size = torch.tensor([width, height], dtype=torch.float32, device=coords_input.device)
        return self._pe_encoding(coords_input.float() / size)


def init_t_xy(end_x: int, end_y: int) -> tuple[Tensor, Tensor]:
    """Column and row of every cell of an end_y x end_x grid in reading order, each (end_x * end_y,) float32."""
    cell = torch.arange(end_x * end_y)
    return (cell % end_x).float(), (cell // end_x).float()


def compute_axial_cis(dim: int, end_x: int, end_y: int, theta: float = 10000.0) -> Tensor:
    """Rotation of every cell of a grid for axial rotary encoding (RoFormer, Su et al. 2021; RoPE-ViT, Heo et al. 2024).

    Args:
        dim: channels per head, divisible by 4; a quarter of the pairs turn with x, then a quarter with y.
        end_x, end_y: columns and rows of the grid.

    Returns:
        (end_x * end_y, dim / 2, 2) float32: cosine and sine of each pair's angle. Real numbers, so that the table
        survives `.to(dtype)` and export.
    """
    frequency = 1.0 / theta ** (torch.arange(0, dim, 4)[: dim // 4].float() / dim)
    x, y = init_t_xy(end_x, end_y)
    angles = torch.cat([torch.outer(x, frequency), torch.outer(y, frequency)], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """View a table (N, D/2, 2) so that it broadcasts over the leading dimensions of x (..., N, D/2, 2).

    Raises:
        ValueError: the table's tokens or channels are not those of x.
    """
    if freqs_cis.shape != x.shape[-3:]:
        raise ValueError(f"rotary table {tuple(freqs_cis.shape)} does not fit tokens {tuple(x.shape[-3:])}")
    return freqs_cis.view(*[1] * (x.ndim - 3), *freqs_cis.shape)


def _rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn each channel pair of x (..., N, D) by its cell's angle, in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (..., N, D/2, 2)
    # One pass over memory as complex numbers; the same sums with real ones take five times as long.
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(reshape_for_broadcast(freqs_cis.float(), pairs))
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def apply_rotary_enc(xq: Tensor, xk: Tensor, freqs_cis: Tensor, repeat_freqs_k: bool = False) -> tuple[Tensor, Tensor]:
    """Apply rotary encoding to queries (B, h, Nq, D) and keys (B, h, Nk, D).

    Args:
        freqs_cis: (Nq, D/2, 2) from `compute_axial_cis`.
        repeat_freqs_k: the keys are Nk / Nq grids in a row, each turned by the same table.
    """
    if xk.shape[-2] == 0:
        return _rotate(xq, freqs_cis), xk
    if not repeat_freqs_k:
        return _rotate(xq, freqs_cis), _rotate(xk, freqs_cis)
    grids = xk.unflatten(-2, (-1, freqs_cis.shape[0]))  # (B, h, r, Nq, D)
    return _rotate(xq, freqs_cis), _rotate(grids, freqs_cis).flatten(-3, -2)

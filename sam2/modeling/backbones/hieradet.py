"""Hiera (Ryali et al. 2023, arXiv:2306.00989): a plain hierarchical vision transformer with windowed attention.

Shapes: B batch (times windows inside a windowed block), H x W tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2.modeling.attention import attend
from sam2.modeling.backbones.utils import PatchEmbed, window_partition, window_unpartition
from sam2.modeling.sam2_utils import MLP, DropPath


def do_pool(x: Tensor, pool: nn.Module | None, norm: nn.Module | None = None) -> Tensor:
    """Pool a (B, H, W, C) map over its tokens; None leaves it as it is."""
    if pool is None:
        return x
    x = pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return x if norm is None else norm(x)


class MultiScaleAttention(nn.Module):
    """Multi-head attention over all tokens of a map; `q_pool` pools the queries and with them the output."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, q_pool: nn.Module | None = None) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads = dim, dim_out, num_heads
        self.q_pool = q_pool
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim_out), smaller where queries are pooled."""
        batch = x.shape[0]
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, H, W, dim_out) each
        q = do_pool(q, self.q_pool)
        size = q.shape[1:3]
        split = (self.num_heads, self.dim_out // self.num_heads)
        q, k, v = (t.reshape(batch, -1, *split).transpose(1, 2) for t in (q, k, v))
        x = attend(q, k, v)  # (B, heads, tokens, dim_out / heads)
        return self.proj(x.transpose(1, 2).reshape(batch, *size, self.dim_out))


class MultiScaleBlock(nn.Module):
    """A transformer block that may change width (`dim` to `dim_out`) and halve the resolution (`q_stride`).

    `window_size` 0 attends over the whole map, anything else inside windows of that side.
    """

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        norm_layer: type[nn.Module] | str = "LayerNorm", q_stride: Sequence[int] | None = None,
        act_layer: type[nn.Module] = nn.GELU, window_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        make_norm = partial(getattr(nn, norm_layer), eps=1e-6) if isinstance(norm_layer, str) else norm_layer
        self.dim, self.dim_out = dim, dim_out
        self.window_size = window_size
        self.q_stride = tuple(q_stride) if q_stride else None
        self.pool = nn.MaxPool2d(self.q_stride, self.q_stride) if self.q_stride else None
        self.norm1 = make_norm(dim)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads=num_heads, q_pool=self.pool)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = make_norm(dim_out)
        self.mlp = MLP(dim_out, int(dim_out * mlp_ratio), dim_out, num_layers=2, activation=act_layer)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)

    def _attend(self, x: Tensor, out_size: tuple[int, int]) -> Tensor:
        """Attention inside windows, or over the whole map; `out_size` is the (H, W) of the result."""
        if self.window_size == 0:
            return self.attn(x)
        windows, padded = window_partition(x, self.window_size)
        windows = self.attn(windows)
        # Pooled queries shrink each window, and the padded map with them.
        out_window = windows.shape[1]
        padded = (padded[0] * out_window // self.window_size, padded[1] * out_window // self.window_size)
        return window_unpartition(windows, out_window, padded, out_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H', W', dim_out)."""
        normed = self.norm1(x)
        shortcut = x if self.dim == self.dim_out else do_pool(self.proj(normed), self.pool)
        x = shortcut + self.drop_path(self._attend(normed, (shortcut.shape[1], shortcut.shape[2])))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BlockSpec(NamedTuple):
    """What distinguishes one block of the trunk from the others."""

    dim: int
    dim_out: int
    num_heads: int
    window_size: int
    pools: bool


class KeptMap(NamedTuple):
    """A position map (1, H, W, C), the grid it is for, and copies of the weights it was made from."""

    hw: tuple[int, int]
    learned: list[Tensor]
    positions: Tensor


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class Hiera(nn.Module):
    """The image trunk: four stages of blocks, each stage at half the resolution and twice the width of the last.

    Args:
        embed_dim, num_heads: width and heads of the first stage; `dim_mul` and `head_mul` multiply them per stage.
        stages: blocks per stage. window_spec: window side per stage. global_att_blocks: blocks without windows.
        q_pool: how many stage changes pool the tokens, by `q_stride`.
        window_pos_embed_bkg_spatial_size: size of the learned position map that is stretched over the image
            (Bolya et al. 2023, "Window attention is bugged": plus a tile per window).
        weights_path: a trunk-only state dict to start from.
        return_interm_layers: return every stage's last map, not only the last.
    """

    def __init__(
        self, embed_dim: int = 96, num_heads: int = 1, drop_path_rate: float = 0.0, q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2), stages: Sequence[int] = (2, 3, 16, 3), dim_mul: float = 2.0,
        head_mul: float = 2.0, window_pos_embed_bkg_spatial_size: Sequence[int] = (14, 14),
        window_spec: Sequence[int] = (8, 4, 14, 7), global_att_blocks: Sequence[int] | None = (12, 16, 20),
        weights_path: str | None = None, return_interm_layers: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(stages) != len(window_spec):
            raise ValueError(f"window_spec needs one size per stage, got {len(window_spec)} for {len(stages)} stages")
        if not 0 <= q_pool < len(stages):
            raise ValueError(f"q_pool must be in [0, {len(stages) - 1}], got {q_pool}")
        self.q_stride = tuple(q_stride)
        self.window_spec = tuple(window_spec)
        self.global_att_blocks = tuple(global_att_blocks or ())
        self.return_interm_layers = return_interm_layers
        self.stage_ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        self.q_pool_blocks = [end + 1 for end in self.stage_ends[:-1]][:q_pool]
        self.window_pos_embed_bkg_spatial_size = tuple(window_pos_embed_bkg_spatial_size)

        self.patch_embed = PatchEmbed(embed_dim=embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *self.window_pos_embed_bkg_spatial_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, window_spec[0], window_spec[0]))
        self._kept_pos_embed: KeptMap | None = None
        specs = self._block_specs(embed_dim, num_heads, stages, dim_mul, head_mul)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                spec.dim, spec.dim_out, spec.num_heads, window_size=spec.window_size,
                q_stride=self.q_stride if spec.pools else None, drop_path=drop_path_rate * i / max(len(specs) - 1, 1),
            )
            for i, spec in enumerate(specs)
        )  # fmt: skip
        ends = self.stage_ends[::-1] if return_interm_layers else self.stage_ends[-1:]
        self.channel_list = [specs[i].dim_out for i in ends]
        if weights_path is not None:
            from sam2.build_sam import read_state_dict

            self.load_state_dict(read_state_dict(weights_path), strict=False)

    def _block_specs(
        self, dim: int, heads: int, stages: Sequence[int], dim_mul: float, head_mul: float
    ) -> list[BlockSpec]:
        """One spec per block. The block after a stage's end widens, but still uses the window of the stage before."""
        specs: list[BlockSpec] = []
        stage = 0
        for i in range(sum(stages)):
            window = 0 if i in self.global_att_blocks else self.window_spec[stage]
            dim_out = dim
            if i - 1 in self.stage_ends:
                stage, dim_out, heads = stage + 1, int(dim * dim_mul), int(heads * head_mul)
            specs.append(BlockSpec(dim, dim_out, heads, window, i in self.q_pool_blocks))
            dim = dim_out
        return specs

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        """Position map of a (H, W) grid of tokens -> (1, H, W, C), kept until the weights or the grid change."""
        # On a GPU making it takes no time, and to compare weights is to wait for them.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.pos_embed.device.type != "cpu":
            return self._make_pos_embed(hw)
        kept, learned = self._kept_pos_embed, (self.pos_embed, self.pos_embed_window)
        if kept is None or kept.hw != hw or not all(map(_same, kept.learned, learned)):
            kept = KeptMap(hw, [p.detach().clone() for p in learned], self._make_pos_embed(hw))
            self._kept_pos_embed = kept
        return kept.positions

    def _make_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        """The stretched background plus a tile per window."""
        stretched = F.interpolate(self.pos_embed, size=hw, mode="bicubic")
        side = self.pos_embed_window.shape[-1]
        tiles = self.pos_embed_window.tile(1, 1, -(-hw[0] // side), -(-hw[1] // side))[..., : hw[0], : hw[1]]
        return (stretched + tiles).permute(0, 2, 3, 1).contiguous()

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) image -> maps (B, C_i, S/4/2**i, S/4/2**i), finest first; only the coarsest if asked so."""
        x = self.patch_embed(x)
        # The convolution puts channels before rows; every later layer is faster on tokens that lie together.
        x = x.contiguous() + self._get_pos_embed((x.shape[1], x.shape[2]))
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.stage_ends[-1] or (self.return_interm_layers and i in self.stage_ends):
                outputs.append(x.permute(0, 3, 1, 2))
        return outputs

    def get_layer_id(self, layer_name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay: 0 for the embeddings, then 1 + block."""
        depth = self.get_num_layers()
        if "rel_pos" in layer_name:
            return depth + 1
        if "pos_embed" in layer_name or "patch_embed" in layer_name:
            return 0
        if "blocks" in layer_name:
            return int(layer_name.split("blocks")[1].split(".")[1]) + 1
        return depth + 1

    def get_num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

"""Attention layers, and the two-way transformer in which prompts and image attend to each other (SAM, Kirillov et al.
2023, section 3 and appendix A).

Shapes: B batch, N tokens, C channels, h heads, D = C / h.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sam2.modeling.attention import attend
from sam2.modeling.position_encoding import apply_rotary_enc, compute_axial_cis
from sam2.modeling.sam2_utils import MLP


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last attention from the tokens to the image."""

    def __init__(
        self, depth: int, embedding_dim: int, num_heads: int, mlp_dim: int, activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.depth, self.embedding_dim = depth, embedding_dim
        self.num_heads, self.mlp_dim = num_heads, mlp_dim
        rate = attention_downsample_rate
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, activation, rate, skip_first_layer_pe=i == 0)
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """image_embedding (B, C, H, W), image_pe (B or 1, C, H, W), point_embedding (B, N, C).

        Returns:
            Tokens (B, N, C) and image (B, H * W, C) after attending to each other.
        """
        keys = image_embedding.flatten(2).transpose(1, 2)  # (B, HW, C)
        key_pe = image_pe.flatten(2).transpose(1, 2)
        queries = point_embedding
        for block in self.layers:
            queries, keys = block(queries, keys, query_pe=point_embedding, key_pe=key_pe)
        read = self.final_attn_token_to_image(q=queries + point_embedding, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + read), keys


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves, then to the image, pass an MLP; then the image attends to the tokens."""

    def __init__(
        self, embedding_dim: int, num_heads: int, mlp_dim: int = 2048, activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2, skip_first_layer_pe: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        rate = attention_downsample_rate
        self.skip_first_layer_pe = skip_first_layer_pe
        self.self_attn = Attention(embedding_dim, num_heads)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.mlp = MLP(embedding_dim, mlp_dim, embedding_dim, num_layers=2, activation=activation)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(embedding_dim) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """queries (B, N, C), keys (B, HW, C) and their position encodings -> both, updated."""
        if self.skip_first_layer_pe:
            # The first block's queries are the position encoding themselves, and are replaced rather than added to.
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + query_pe
            queries = queries + self.self_attn(placed, placed, queries)
        queries = self.norm1(queries)
        placed_keys = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, placed_keys, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(placed_keys, queries + query_pe, queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention whose inner width is `embedding_dim / downsample_rate`; keys and values may be narrower."""

    def __init__(
        self, embedding_dim: int, num_heads: int, downsample_rate: int = 1, dropout: float = 0.0,
        kv_in_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding_dim, self.num_heads, self.dropout_p = embedding_dim, num_heads, dropout
        self.internal_dim = embedding_dim // downsample_rate
        self.kv_in_dim = embedding_dim if kv_in_dim is None else kv_in_dim
        if self.internal_dim % num_heads:
            raise ValueError(f"num_heads must divide {self.internal_dim}, got {num_heads}")
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(self.kv_in_dim, self.internal_dim)
        self.v_proj = nn.Linear(self.kv_in_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)

    # Under upstream's names, for a `forward` that others put in the place of ours.

    def _separate_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, h, N, D)

    def _recombine_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (B, N, C)

    def _read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q, k, v (B, h, N, D) and project the result to (B, Nq, embedding_dim)."""
        dropout = self.dropout_p if self.training else 0.0
        return self.out_proj(self._recombine_heads(attend(q, k, v, dropout)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, Nq, embedding_dim), k and v (B, Nk, kv_in_dim) -> (B, Nq, embedding_dim)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        queries, keys, values = (self._separate_heads(x, self.num_heads) for x in projected)
        return self._read(queries, keys, values)


class RoPEAttention(Attention):
    """Attention over square grids with axial rotary encoding of queries and keys.

    Args:
        rope_theta: base of the rotation's wave lengths.
        rope_k_repeat: keys may be several grids in a row (the memory frames), each placed like the query grid.
        feat_sizes: (columns, rows) of the query grid the table is first made for; another grid makes its own.
    """

    freqs_cis: Tensor  # (grid cells, D / 2, 2)

    def __init__(
        self, *args: Any, rope_theta: float = 10000.0, rope_k_repeat: bool = False,
        feat_sizes: tuple[int, int] = (64, 64), **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.rope_theta = rope_theta
        self.rope_k_repeat = rope_k_repeat
        self.register_buffer("freqs_cis", self.compute_cis(*feat_sizes), persistent=False)

    def compute_cis(self, end_x: int, end_y: int) -> Tensor:
        """The table for a grid of `end_x` columns and `end_y` rows."""
        with torch.inference_mode(False):  # the table outlives the call, and may be needed for training later
            return compute_axial_cis(self.internal_dim // self.num_heads, end_x, end_y, self.rope_theta)

    def fit_grid(self, side: int) -> None:
        """Make the table for a square query grid; done early, a compiled forward pass finds it in place."""
        if self.freqs_cis.shape[0] != side * side:
            self.freqs_cis = self.compute_cis(side, side).to(self.freqs_cis.device)

    def _table_for(self, num_tokens: int) -> Tensor:
        if self.freqs_cis.shape[0] != num_tokens:
            side = math.isqrt(num_tokens)
            if side * side != num_tokens:
                raise ValueError(f"rotary attention needs a square grid of queries, got {num_tokens} tokens")
            self.fit_grid(side)
        return self.freqs_cis

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Like `Attention.forward`; the last `num_k_exclude_rope` keys (object pointers) have no place to encode."""
        if q.shape[1] != k.shape[1] and not self.rope_k_repeat:
            raise ValueError(f"{k.shape[1]} keys for {q.shape[1]} queries need rope_k_repeat=True")
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        queries, keys, values = (self._separate_heads(x, self.num_heads) for x in projected)
        placed = keys.shape[-2] - num_k_exclude_rope
        table = self._table_for(queries.shape[-2])
        queries, turned = apply_rotary_enc(queries, keys[..., :placed, :], table, repeat_freqs_k=self.rope_k_repeat)
        keys = turned if num_k_exclude_rope == 0 else torch.cat([turned, keys[..., placed:, :]], dim=-2)
        return self._read(queries, keys, values)

"""Memory attention: the current frame's features attend to themselves and to the memory bank (SAM 2, section 4).

Shapes: B objects, HW the current frame's tokens, N memory tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_utils import get_activation_fn, get_clones


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to memory, MLP, each with a pre-norm and a residual.

    Args:
        self_attention, cross_attention: called as (q, k, v); the second is told how many keys are object pointers.
        pos_enc_at_attn, pos_enc_at_cross_attn_queries, pos_enc_at_cross_attn_keys: where positions are added.
    """

    def __init__(
        self, activation: str, cross_attention: nn.Module, d_model: int, dim_feedforward: int, dropout: float,
        pos_enc_at_attn: bool, pos_enc_at_cross_attn_keys: bool, pos_enc_at_cross_attn_queries: bool,
        self_attention: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_model, self.dim_feedforward, self.dropout_value = d_model, dim_feedforward, dropout
        self.self_attn = self_attention
        self.cross_attn_image = cross_attention
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(4))
        self.activation = get_activation_fn(activation)
        self.pos_enc_at_attn = pos_enc_at_attn
        self.pos_enc_at_cross_attn_queries = pos_enc_at_cross_attn_queries
        self.pos_enc_at_cross_attn_keys = pos_enc_at_cross_attn_keys

    # The parts of `forward`, under upstream's names.

    def _forward_sa(self, tgt: Tensor, query_pos: Tensor | None) -> Tensor:
        """Self-attention."""
        x = self.norm1(tgt)
        placed = _add(x, query_pos, self.pos_enc_at_attn)
        return tgt + self.dropout1(self.self_attn(placed, placed, x))

    def _forward_ca(
        self, tgt: Tensor, memory: Tensor, query_pos: Tensor | None, pos: Tensor | None, num_k_exclude_rope: int = 0
    ) -> Tensor:
        """Attention to memory."""
        queries = _add(self.norm2(tgt), query_pos, self.pos_enc_at_cross_attn_queries)
        keys = _add(memory, pos, self.pos_enc_at_cross_attn_keys)
        # Plain attention has no such argument, and without pointers there is nothing to say.
        pointers = {"num_k_exclude_rope": num_k_exclude_rope} if num_k_exclude_rope else {}
        return tgt + self.dropout2(self.cross_attn_image(queries, keys, memory, **pointers))

    def forward(
        self, tgt: Tensor, memory: Tensor, pos: Tensor | None = None, query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:  # fmt: skip
        """tgt and query_pos (B, HW, C), memory and pos (B, N, mem_dim) -> (B, HW, C)."""
        tgt = self._forward_sa(tgt, query_pos)
        tgt = self._forward_ca(tgt, memory, query_pos, pos, num_k_exclude_rope)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(tgt))))
        return tgt + self.dropout3(self.linear2(hidden))


def _add(x: Tensor, position: Tensor | None, wanted: bool) -> Tensor:
    return x + position if wanted and position is not None else x


class MemoryAttention(nn.Module):
    """A stack of memory-attention layers and a final norm.

    Args:
        pos_enc_at_input: add a tenth of the position encoding to the input.
        batch_first: the layers expect (B, tokens, C); tokens always come and go as (tokens, B, C).
    """

    def __init__(
        self, d_model: int, pos_enc_at_input: bool, layer: nn.Module, num_layers: int, batch_first: bool = True
    ) -> None:
        super().__init__()
        self.d_model, self.num_layers = d_model, num_layers
        self.layers = get_clones(layer, num_layers)
        self.norm = nn.LayerNorm(d_model)
        self.pos_enc_at_input = pos_enc_at_input
        self.batch_first = batch_first

    def fit_grid(self, side: int) -> None:
        """Prepare the layers for frames of side x side tokens."""
        for module in self.modules():
            if isinstance(module, RoPEAttention):
                module.fit_grid(side)

    def forward(
        self, curr: Tensor | list[Tensor], memory: Tensor, curr_pos: Tensor | list[Tensor] | None = None,
        memory_pos: Tensor | None = None, num_obj_ptr_tokens: int = 0,
    ) -> Tensor:  # fmt: skip
        """Read memory into the current frame.

        Args:
            curr, curr_pos: (HW, B, C), or a list of one such tensor.
            memory, memory_pos: (N, B, mem_dim), the last `num_obj_ptr_tokens` of them object pointers.

        Returns:
            (HW, B, C).

        Raises:
            ValueError: several maps, or batches that differ.
        """
        x, x_pos = _single("curr", curr), _single("curr_pos", curr_pos)
        if x is None or x.shape[1] != memory.shape[1]:
            found = None if x is None else x.shape[1]
            raise ValueError(f"curr and memory must have one batch size, got {found} and {memory.shape[1]}")
        memory = memory.to(x.dtype)  # a subclass of somebody else's may pass it as it is stored, in bfloat16
        if self.pos_enc_at_input and x_pos is not None:
            x = x + 0.1 * x_pos
        if self.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
            x_pos, memory_pos = (p if p is None else p.transpose(0, 1) for p in (x_pos, memory_pos))
        for layer in self.layers:
            x = layer(x, memory, pos=memory_pos, query_pos=x_pos, num_k_exclude_rope=num_obj_ptr_tokens)
        x = self.norm(x)
        return x.transpose(0, 1) if self.batch_first else x


def _single(name: str, value: Tensor | list[Tensor] | None) -> Tensor | None:
    if value is None or isinstance(value, torch.Tensor):
        return value
    if len(value) != 1:
        raise ValueError(f"{name} must be one tensor, got a list of {len(value)}")
    return value[0]

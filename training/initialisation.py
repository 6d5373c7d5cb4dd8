"""What a run starts from: a checkpoint, and a mask decoder that learns quickly where a click or a box is."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sam2.build_sam import put_weights, read_state_dict
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base

MEMORY_PLACES = "maskmem_tpos_enc"

SHARPNESS = 1.5  # weight of a position feature in a query and in a key


def start_from(network: SAM2Base, checkpoint: str | Path) -> None:
    """Load a checkpoint, also one of a network that remembers more frames than this one.

    Raises:
        FileNotFoundError: no such file. RuntimeError: it does not fit otherwise.
    """
    weights = dict(read_state_dict(checkpoint))
    if MEMORY_PLACES in weights:
        weights[MEMORY_PLACES] = nearest_places(weights[MEMORY_PLACES], network.num_maskmem)
    put_weights(network, weights, checkpoint)


def nearest_places(places: Tensor, num_maskmem: int) -> Tensor:
    """Encodings of the places in memory (n, 1, 1, M), the most recent frame's first and the prompted frames' last: the
    last, and those of the nearest frames, `num_maskmem` in all. Fewer are left as they are."""
    if len(places) <= num_maskmem or num_maskmem == 0:
        return places
    return torch.cat([places[: num_maskmem - 1], places[-1:]])


@torch.no_grad()
def attend_by_position(network: SAM2Base, heads: int) -> None:
    """Make some heads between prompts and image attend to what lies at their own place, in place.

    The decoder adds the same Fourier features of position to prompts and to image tokens, but has to discover that
    queries and keys are to be compared by them, which takes thousands of steps. Here the last `heads` heads of each
    cross attention start with queries and keys that are position features and nothing else, those of the lowest
    frequencies. All of it is trained like the rest.

    Raises:
        ValueError: `heads` is not from 0 to the number of heads.
    """
    decoder = cast(TwoWayTransformer, network.sam_mask_decoder.transformer)
    layers = [cast(TwoWayAttentionBlock, layer) for layer in decoder.layers]
    if not 0 <= heads <= decoder.num_heads:
        raise ValueError(f"positional_heads must be from 0 to {decoder.num_heads}, got {heads}")
    waves = network.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
    slowest_first = waves.norm(dim=0).argsort()
    attentions = [a for layer in layers for a in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for attention in [*attentions, decoder.final_attn_token_to_image]:
        for i in range(heads):
            _look_at_waves(attention, attention.num_heads - 1 - i, slowest_first[i::heads], waves.shape[1])


def _look_at_waves(attention: Attention, head: int, waves: torch.Tensor, num_waves: int) -> None:
    """Let the queries and keys of a head be the sines and cosines of the first waves of a list."""
    width = attention.internal_dim // attention.num_heads
    for pair, wave in enumerate(waves[: width // 2].tolist()):
        for part in range(2):  # the encoding holds all sines, then all cosines
            row, column = head * width + 2 * pair + part, part * num_waves + wave
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[row] = 0
                projection.bias[row] = 0
                projection.weight[row, column] = SHARPNESS

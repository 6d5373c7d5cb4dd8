"""Training in less memory: activations that are computed again instead of kept (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import functools
from contextlib import nullcontext

from torch.utils.checkpoint import checkpoint

from sam2.modeling.sam2_base import SAM2Base
from training.attention import fast_attention


def recompute_trunk(network: SAM2Base) -> None:
    """Let each block of the trunk keep its input alone for the backward pass, which computes the rest again, in place.

    The trunk holds nearly all that training keeps of a large picture.
    """

    def contexts() -> tuple:
        # The backward pass runs outside of the context that the forward pass had.
        return nullcontext(), fast_attention(network.device)

    for block in network.image_encoder.trunk.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)

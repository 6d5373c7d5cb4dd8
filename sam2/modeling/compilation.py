"""Compiling parts of the network without changing what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def compile_with_cloned_outputs(module: nn.Module, *, dynamic: bool) -> None:
    """Compile a module's forward in place, keeping its state-dict names.

    CUDA graphs hand out the same memory at every call, so outputs are cloned before somebody keeps them.

    Args:
        dynamic: sizes change from call to call (the number of memories), so don't compile one program per size.
    """
    compiled = torch.compile(module.forward, mode="max-autotune", fullgraph=True, dynamic=dynamic)

    def forward(*args, **kwargs):
        return tree_map_only(Tensor, Tensor.clone, compiled(*args, **kwargs))

    module.forward = forward

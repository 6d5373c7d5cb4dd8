"""What training keeps of a frame for its backward pass, with and without `recompute`: the image encoder's share.

    python benchmarks/training_memory.py --config tiny                 # at 1024 pixels, in bfloat16; minutes on a CPU
    python benchmarks/training_memory.py --config large --image_size 512 --device cuda

Counted are the tensors that autograd holds, each memory block once, without the weights, with a GPU's choice of
kernels. The copies of the weights in bfloat16, which all frames of a step share, are told apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from training.attention import fast_attention
from training.recomputation import recompute_trunk


def kept_bytes(network: SAM2Base, frames: int, dtype: torch.dtype) -> int:
    """Bytes that autograd holds after encoding frames at the network's size."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held: dict[int, Tensor] = {}  # the tensors themselves, so that no block is given out again while it is counted

    def hold(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            held[place] = tensor
        return tensor

    size = network.image_size
    images = torch.rand(frames, 3, size, size, device=network.device)
    with ExitStack() as inside:
        inside.enter_context(saved_tensors_hooks(hold, lambda tensor: tensor))
        inside.enter_context(torch.autocast(network.device.type, dtype, enabled=dtype != torch.float32))
        inside.enter_context(
            fast_attention(torch.device("cuda"))
        )  # its kernels keep no matrix of attention, on a CPU too
        features = network.encode_image(images)
        total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del features
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What training keeps of a frame for its backward pass.")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--image_size", type=int, default=1024)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    args = parser.parse_args(argv)
    network = build_sam2(
        args.config, device=args.device, mode="train", apply_postprocessing=False,
        hydra_overrides_extra=[f"++model.image_size={args.image_size}"],
    )  # fmt: skip
    print(f"{args.config} at {args.image_size}, {args.dtype}, {args.device}, torch {torch.__version__}")
    for name in ("kept", "recompute"):
        if name == "recompute":
            recompute_trunk(network)
        one, two = (kept_bytes(network, frames, getattr(torch, args.dtype)) for frames in (1, 2))
        print(
            f"{name:10} {(two - one) / 2**20:8.0f} MB a frame, and {(2 * one - two) / 2**20:.0f} MB for all", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Command line: python -m training.mix BEFORE AFTER --output FILE mixes the weights of two checkpoints of one network.

Fine-tuned weights are better at what they were tuned on and at times worse at the rest. Part of the way between the
weights before and after, most of what was learned may be there and little of the rest be lost (WiSE-FT, Wortsman et al.
2022, arXiv:2109.01903). Whether it is so is to be measured, with the `--beside` of `benchmarks/embedded_model.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sam2.build_sam import read_state_dict
from training.checkpoints import save_weights


def mix(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights that lie between two of one network, computed in float32.

    Args:
        share: of `after`, 0 to 1.

    Raises:
        ValueError: a share out of range, or weights of two networks.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for weights in (before, after)]
    if different := sorted(shapes[0].items() ^ shapes[1].items()):
        name = different[0][0]
        found = [f"{side.get(name, 'nothing')}" for side in shapes]
        raise ValueError(f"not of one network: {name} is {found[0]} in the first and {found[1]} in the second")
    return {
        name: torch.lerp(before[name].float(), value.float(), share) if value.is_floating_point() else value
        for name, value in after.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Mix what the arguments say."""
    parser = argparse.ArgumentParser(description="Mix the weights of two checkpoints of one network.")
    parser.add_argument("before", help="checkpoint that training began from")
    parser.add_argument("after", help="checkpoint that it made")
    parser.add_argument("--share", type=float, default=0.5, help="of the second one, 0 to 1 (default: 0.5)")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    args = parser.parse_args(argv)
    try:
        before, after = read_state_dict(args.before), read_state_dict(args.after)
        half = all(value.dtype == torch.float16 for value in after.values() if value.is_floating_point())
        save_weights(args.output, mix(before, after, args.share), half=half)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()

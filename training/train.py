"""Command line: python -m training.train RECIPE --output DIR [--resume] [key=value ...]."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

from training.loop import NonFiniteLoss, Trainer, training_device
from training.recipe import Recipe, load_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Train what the arguments say."""
    parser = argparse.ArgumentParser(description="Train or fine-tune a SAM 2 model.")
    parser.add_argument("recipe", help="YAML file, e.g. configs/training/nano_cpu.yaml")
    parser.add_argument("--output", required=True, help="folder for checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on from the last state in the output folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. stages.0.steps=100"
    )
    args = parser.parse_intermixed_args(argv)

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        _train(load_recipe(args.recipe, args.overrides), args.output, args.resume)
    except (OSError, ValueError, ImportError, NonFiniteLoss) as error:
        raise SystemExit(f"error: {error}") from error


def _train(recipe: Recipe, output: str, resume: bool) -> None:
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = training_device(recipe)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: the recipe asks for {recipe.device}, and torch finds no GPU here")
        torch.cuda.set_device(device)  # whatever else this process puts on a GPU, e.g. pinned memory, goes to its own
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        Trainer(recipe, output, resume=resume).run()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

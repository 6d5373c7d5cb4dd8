#!/usr/bin/env python3
"""Track the objects of DAVIS-layout sequences and write their masks as palette PNGs.

    python run_mgfs_davis.py --demo                                     # needs no data
    python run_mgfs_davis.py --davis_root DAVIS --output masks          # the small embedded model
    python run_mgfs_davis.py --davis_root DAVIS --output masks --config large --checkpoint sam2.1_hiera_large.pt

Every object of the first frame's annotation is prompted with its mask, under its own id (semi-supervised DAVIS 2017).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEMO_LENGTH = 40  # frames


class SequenceRun(NamedTuple):
    """What tracking one sequence took."""

    name: str
    frames: int
    seconds: float


def label_maps(predictor: Any, frames: Sequence[Path], first_labels: np.ndarray) -> Iterator[np.ndarray]:
    """Track every object of the first frame's label map; yields a label map (H, W) uint8 per frame, in order."""
    from sam2.utils.davis import merge_masks

    state = predictor.init_state(frames)
    if first_labels.shape != (state.video_height, state.video_width):
        raise ValueError(
            f"{frames[0].parent.name}: the annotation's size {first_labels.shape} is not that of its frames, "
            f"{(state.video_height, state.video_width)}"
        )
    object_ids = np.unique(first_labels[first_labels > 0]).tolist()
    if not object_ids:
        raise ValueError(f"{frames[0].parent.name}: the first frame's annotation has no object")
    try:
        for obj_id in object_ids:
            predictor.add_new_mask(state, 0, obj_id, first_labels == obj_id)
        for _, obj_ids, logits in predictor.propagate_in_video(state, start_frame_idx=0, progress=False):
            yield merge_masks(obj_ids, logits)
    finally:
        state.frames.close()


def run_sequence(predictor: Any, root: Any, name: str, output: Path, progress: Any) -> SequenceRun:
    """Track one sequence and write its masks to `output/name`."""
    from sam2.utils.davis import read_label_map
    from sam2.utils.video_io import PaletteMaskWriter

    frames = root.frame_paths(name)
    first_labels = read_label_map(root.annotation_path(name, frames[0].stem))
    writer = PaletteMaskWriter(output / name)
    progress.set_description(name)
    start = time.perf_counter()
    for path, labels in zip(frames, label_maps(predictor, frames, first_labels), strict=True):
        writer.write(path.stem, labels)
        progress.update()
    return SequenceRun(name, len(frames), time.perf_counter() - start)


def run(args: argparse.Namespace) -> list[SequenceRun]:
    """Track all sequences that were asked for, and report frames, seconds and frames per second."""
    from tqdm import tqdm

    from sam2.build_sam import build_sam2_video_predictor
    from sam2.utils.davis import DavisRoot

    root = DavisRoot.open(args.davis_root)
    names = args.sequences or root.sequences(args.split)
    lengths = [len(root.frame_paths(name)) for name in names]
    predictor = build_sam2_video_predictor(args.config, args.checkpoint, device=args.device, dtype=args.dtype)
    with tqdm(total=sum(lengths), unit="frame") as progress:
        runs = [run_sequence(predictor, root, name, args.output, progress) for name in names]
    for r in runs:
        print(f"{r.name:24} {r.frames:5} frames {r.seconds:8.1f} s {r.frames / r.seconds:7.2f} frames per second")
    frames, seconds = sum(r.frames for r in runs), sum(r.seconds for r in runs)
    print(f"{'all':24} {frames:5} frames {seconds:8.1f} s {frames / seconds:7.2f} frames per second")
    print(f"masks: {args.output}")
    return runs


def demo(args: argparse.Namespace) -> None:
    """Draw a small DAVIS-layout clip, track it, and leave a picture of the masks and their score."""
    from sam2.utils.davis import read_label_map
    from sam2.utils.drawn_clips import draw_clip, write_davis_layout
    from sam2.utils.vos_metrics import score_label_maps

    clip = draw_clip(DEMO_LENGTH, height=240, width=428, num_objects=2, seed=args.seed)
    args.davis_root, args.split, args.sequences = args.output / "davis", "val", ["drawn"]
    write_davis_layout(args.davis_root, {"drawn": clip})
    args.output = args.output / "masks"
    run(args)
    predicted = [read_label_map(args.output / "drawn" / f"{t:05d}.png") for t in range(DEMO_LENGTH)]
    scores = score_label_maps("drawn", list(clip.labels), predicted).scores
    print(f"J&F against the drawn masks: {scores.mean:.3f}")
    picture = args.output.parent / "demo.png"
    save_strip(picture, clip.frames, predicted)
    print(f"picture: {picture}")


def save_strip(path: Path, frames: np.ndarray, labels: Sequence[np.ndarray], columns: int = 4) -> None:
    """Eight frames of a clip with their masks, as one picture."""
    from PIL import Image

    from sam2.utils.video_io import overlay

    chosen = np.linspace(0, len(frames) - 1, 2 * columns).round().astype(int)
    tiles = [overlay(frames[t], labels[t]) for t in chosen]
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what does not fit together is an error here, not later."""
    parser = argparse.ArgumentParser(
        description="Track the objects of DAVIS-layout sequences and write their masks as palette PNGs."
    )
    parser.add_argument("--davis_root", type=Path, help="folder with JPEGImages, Annotations and ImageSets")
    parser.add_argument("--split", default="val", help="ImageSets/2017/<split>.txt (default: val)")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these sequences")
    parser.add_argument("--config", help='model config: "tiny", "large", a YAML file ... (default: the embedded model)')
    parser.add_argument("--checkpoint", type=Path, help="weights that belong to --config")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the masks (default: outputs)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--demo", action="store_true", help="track a drawn clip: needs no data")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn clip")
    args = parser.parse_args(argv)
    if (args.davis_root is None) == (not args.demo):
        parser.error("give either --davis_root or --demo")
    if (args.config is None) != (args.checkpoint is None):
        parser.error("--config and --checkpoint belong together: give both, or neither for the embedded model")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    try:
        demo(args) if args.demo else run(args)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

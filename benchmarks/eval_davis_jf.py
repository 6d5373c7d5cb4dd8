"""Our J&F beside a plain one and, where it is installed, vos-benchmark: the same folders, in turn.

    python benchmarks/eval_davis_jf.py --gt_root DAVIS --pred runs/off
    pip install vos-benchmark scikit-image  # to have it compared as well

The plain one does, operation for operation, what DAVIS's own evaluation (davis2017-evaluation, semi-supervised) does on
every object: a boolean mask of every frame of the sequence, sums over whole frames for J, boundaries of whole frames
dilated by a disk with OpenCV for F. It is written anew here, since that code is in no package index. Everybody's time
includes reading the pictures. vos-benchmark scores every sequence that both folders have.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sam2.utils.davis import DavisRoot
from sam2.utils.vos_metrics import evaluate

Frames = dict[str, np.ndarray]
"""J and F of every object: (2, scored frames)."""


def ours(root: DavisRoot, prediction: Path, split: str, processes: int) -> Frames:
    result = evaluate(root, [prediction], split=split, processes=processes)
    return {
        f"{item.sequence}_{obj.obj_id}": np.stack([obj.region, obj.contour])
        for item in result.predictions[0]
        for obj in item.objects
    }


def plain(root: DavisRoot, prediction: Path, split: str) -> Frames:
    scores = {}
    for sequence in root.sequences(split):
        paths = root.annotation_paths(sequence)
        annotated = np.stack([np.array(Image.open(path), dtype=float) for path in paths])
        annotated[annotated == 255] = 0
        predicted = np.stack(
            [np.array(Image.open(prediction / sequence / path.name), dtype=float) for path in paths[1:-1]]
        )
        count = int(annotated[0].max())
        expected = split_objects(annotated, count)[:, 1:-1]
        found = split_objects(predicted, max(int(predicted.max()), count))
        for i in range(count):
            void = expected[i] == 255
            boundaries = [plain_contour(*pair) for pair in zip(expected[i], found[i], void, strict=True)]
            scores[f"{sequence}_{i + 1}"] = np.stack([plain_region(expected[i], found[i], void), boundaries])
    return scores


def split_objects(labels: np.ndarray, count: int) -> np.ndarray:
    """Masks (count, T, H, W) of ids 1 to count."""
    ids = np.ones((count, *labels.shape)) * np.arange(1, count + 1)[:, None, None, None]
    return ids == labels[None]


def plain_region(expected: np.ndarray, found: np.ndarray, void: np.ndarray) -> np.ndarray:
    shared = np.sum((found & expected) & ~void, axis=(1, 2))
    union = np.sum((found | expected) & ~void, axis=(1, 2))
    return np.where(union == 0, 1.0, shared / np.maximum(union, 1))


def plain_contour(expected: np.ndarray, found: np.ndarray, void: np.ndarray) -> float:
    radius = math.ceil(0.008 * np.linalg.norm(expected.shape))
    x, y = np.meshgrid(np.arange(-radius, radius + 1), np.arange(-radius, radius + 1))
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    found_line, expected_line = plain_boundary(found * ~void), plain_boundary(expected * ~void)
    found_wide, expected_wide = (cv2.dilate(line.astype(np.uint8), disk) for line in (found_line, expected_line))
    num_found, num_expected = np.sum(found_line), np.sum(expected_line)
    if num_found == 0 or num_expected == 0:
        return float(num_found == num_expected)
    precision = np.sum(found_line * expected_wide) / num_found
    recall = np.sum(expected_line * found_wide) / num_expected
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    right, below, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    line = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    line[-1] = mask[-1] ^ right[-1]
    line[:, -1] = mask[:, -1] ^ below[:, -1]
    line[-1, -1] = False
    return line


def vos_benchmark(root: DavisRoot, prediction: Path, processes: int) -> None:
    from vos_benchmark.benchmark import benchmark  # pyright: ignore[reportMissingImports]

    benchmark([str(root.annotations_dir)], [str(prediction)], strict=False, num_processes=processes, verbose=False)


def measure(contenders: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each contender per round, in turn, and what it answered last."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            answers[name] = contender()
            seconds[name].append(time.perf_counter() - start)
    return seconds, answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the J&F evaluation beside others.")
    parser.add_argument("--gt_root", type=Path, required=True)
    parser.add_argument("--pred", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    root = DavisRoot.open(args.gt_root)
    contenders: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(root, args.pred, args.split),
        "ours, 1 process": lambda: ours(root, args.pred, args.split, 1),
    }
    if args.processes > 1:
        contenders[f"ours, up to {args.processes} processes"] = lambda: ours(
            root, args.pred, args.split, args.processes
        )
    if importlib.util.find_spec("vos_benchmark"):
        contenders["vos-benchmark, 1 process"] = lambda: vos_benchmark(root, args.pred, 1)
    seconds, answers = measure(contenders, args.rounds)

    expected, found = answers["plain"], answers["ours, 1 process"]
    difference = max(float(np.abs(expected[name] - found[name]).max()) for name in expected)
    frames = sum(scores.shape[1] for scores in expected.values())
    print(f"{len(expected)} objects, {frames} scored masks, greatest difference of a frame's J or F {difference:.1e}")
    report = {}
    for name, times in seconds.items():
        ratios = [slow / fast for slow, fast in zip(seconds["plain"], times, strict=True)]
        report[name] = {"seconds": statistics.median(times), "times_as_fast": statistics.median(ratios)}
        print(f"{name:26}{statistics.median(times):8.2f} s{statistics.median(ratios):8.1f} times as fast as plain")
    if args.json:
        args.json.write_text(json.dumps({"masks": frames, "difference": difference, "contenders": report}, indent=1))


if __name__ == "__main__":
    main()

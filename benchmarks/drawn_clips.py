"""How many random clips one core draws in a minute.

    python benchmarks/drawn_clips.py
    python benchmarks/drawn_clips.py --clips 200 --frames 16 --size 512 --difficulty 1

One process with one OpenCV thread; processor time counts, so that other work on the machine hardly matters. The first
clip, which also makes the fields of noise and reads the photographs, is reported apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sam2.utils.drawn_clips import random_clip


def seconds_per_clip(count: int, num_frames: int, size: int, difficulty: float) -> np.ndarray:
    """Processor seconds of each clip, (count,)."""
    seconds = np.empty(count)
    for seed in range(count):
        start = time.process_time()
        random_clip(seed, num_frames, size, difficulty=difficulty)
        seconds[seed] = time.process_time() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100, help="how many to draw (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--difficulty", type=float, default=0.5, help="0 to 1 (default: %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    first, *later = seconds_per_clip(args.clips + 1, args.frames, args.size, args.difficulty)
    mean, slow = float(np.mean(later)), float(np.percentile(later, 95))
    print(f"first clip          {1000 * first:8.0f} ms")
    print(f"clip, mean          {1000 * mean:8.0f} ms   {1000 * mean / args.frames:.1f} ms a frame")
    print(f"clip, 95th of 100   {1000 * slow:8.0f} ms")
    print(f"clips per minute    {60 / mean:8.0f}")


if __name__ == "__main__":
    main()

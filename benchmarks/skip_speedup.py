"""What skipping gains in time and what deciding costs, at a skip rate that does not hang on chance.

    python benchmarks/skip_speedup.py --davis_root DAVIS --sequence blackswan                      # the embedded model
    python benchmarks/skip_speedup.py --davis_root DAVIS --sequence blackswan --config tiny --frames 13

The first frames of one sequence are tracked without skipping and with every strategy, in one process and in turns of a
few frames, so that a busy machine slows all of them alike. A strategy measures on every frame what it always measures,
and shows on skipped frames what it always shows; only that each second or each fourth frame is processed is settled
beforehand, whatever it finds. So weights need not be trained: without `--checkpoint`, those of a `--config` are random.
Seconds count from opening the clip to the last label map.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tradeoff import Clip, Turn, tracked_in_turns
from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SKIPPED, SkipOptions, skip_rate
from sam2.utils.change_detection import STRATEGIES, Evidence, SkipPolicy, Verdict, make_policy
from sam2.utils.davis import DavisRoot
from sam2.vos_runs import device_name, named_device

STEPS = (2, 4)
"""Every so many frames one is processed."""


class Paced:
    """A strategy that looks at every frame, and processes each `step`th whatever it sees."""

    def __init__(self, strategy: SkipPolicy, step: int) -> None:
        self.strategy, self.step = strategy, step

    def decide(self, evidence: Evidence) -> Verdict:
        return self.strategy.decide(evidence)._replace(skip=evidence.age < self.step)


class Setting(NamedTuple):
    """A strategy, and every how many frames one is processed."""

    strategy: str
    step: int

    def options(self) -> SkipOptions:
        if self.step == 1:
            return SkipOptions(threshold=0)
        policy = Paced(make_policy(self.strategy, 1.0), self.step)
        return SkipOptions(1.0, policy, warp="flow" if self.strategy == "memory_guided" else None)


OFF = Setting("off", 1)


@dataclass(frozen=True)
class Speed:
    """What a setting took: seconds of all frames; medians of a processed and of a skipped frame, in milliseconds, None
    where there is no such frame.

    speedup: seconds without skipping over seconds with it. of_ideal: its share of 1 / (1 - skip rate).
    """

    strategy: str
    step: int
    skip_rate: float
    seconds: float
    processed_ms: float | None
    skipped_ms: float | None
    speedup: float
    of_ideal: float


def compare(predictor: Any, clip: Clip, settings: Sequence[Setting], turn: int) -> list[Speed]:
    """Track a clip with all settings in turns of so many frames; the first setting is the measure of the others."""
    runs = [tracked_in_turns(predictor, clip, setting.options(), turn) for setting in settings]
    turns = list(zip(*runs, strict=True))
    off = sum(turn.seconds for turn in (row[0] for row in turns))
    return [speed(setting, own, off) for setting, own in zip(settings, zip(*turns, strict=True), strict=True)]


def speed(setting: Setting, turns: Sequence[Turn], off_seconds: float) -> Speed:
    """Sum up one run."""
    decisions = [frame.decision for turn in turns for frame in turn.frames]
    rate, seconds = skip_rate(decisions), sum(turn.seconds for turn in turns)
    # The prompted frame is encoded before the loop over frames, and would count as a fast one.
    processed = [1000 * d.seconds for d in decisions if d.action == "processed"]
    skipped = [1000 * d.seconds for d in decisions if d.action in SKIPPED]
    gain = off_seconds / seconds
    return Speed(
        *setting, rate, seconds, float(np.median(processed)) if processed else None,
        float(np.median(skipped)) if skipped else None, gain, gain * (1 - rate),
    )  # fmt: skip


def table(speeds: Sequence[Speed]) -> str:
    """One line per setting."""
    lines = [
        f"{'strategy':15}{'1 of':>5}{'skipped':>9}{'seconds':>9}{'processed':>12}{'skipped':>10}"
        f"{'speed-up':>10}{'of ideal':>10}"
    ]
    for s in speeds:
        processed, skipped = ("" if ms is None else f"{ms:.1f} ms" for ms in (s.processed_ms, s.skipped_ms))
        lines.append(
            f"{s.strategy:15}{s.step:5}{s.skip_rate:9.1%}{s.seconds:9.2f}{processed:>12}{skipped:>10}"
            f"{s.speedup:9.2f}x{s.of_ideal:10.1%}"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> list[Speed]:
    """Measure, print the table, write it."""
    cv2.setNumThreads(torch.get_num_threads())
    device = named_device(args.device)
    predictor = build_sam2_video_predictor(args.config, args.checkpoint, device=device, dtype=args.dtype)
    clip = Clip.read(DavisRoot.open(args.davis_root), args.sequence).start(args.frames)
    # The first frames of a process are slow: memory is set aside, kernels are chosen.
    list(tracked_in_turns(predictor, clip.start(3), OFF.options(), args.turn))
    settings = [OFF, *(Setting(strategy, step) for strategy in STRATEGIES for step in STEPS)]
    speeds = compare(predictor, clip, settings, args.turn)
    what = f"{args.config or 'embedded model'}, {predictor.image_size} pixels, {args.dtype}"
    where = f"{device_name(predictor.device)}, {torch.get_num_threads()} threads"
    print(f"{len(clip.frames)} frames of {clip.name}, {len(clip.obj_ids)} objects; {what}; {where}\n{table(speeds)}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(each) for each in speeds], indent=1) + "\n", encoding="utf-8")
    return speeds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time of tracking with and without skipping, in turns.")
    parser.add_argument("--davis_root", type=Path, required=True, help="folder with JPEGImages and Annotations")
    parser.add_argument("--sequence", required=True, metavar="NAME")
    parser.add_argument("--frames", type=int, default=49, help="so many of the first ones, 3 or more (default: 49)")
    parser.add_argument("--turn", type=int, default=12, help="frames that a run tracks before the next run's turn")
    parser.add_argument("--config", help='model config: "tiny", "large", a YAML file ... (default: the embedded model)')
    parser.add_argument("--checkpoint", type=Path, help="weights that belong to --config (default: random)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args(argv)
    if args.frames < 3 or args.turn < 1:
        parser.error("--frames must be at least 3 and --turn at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    try:
        run(args)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

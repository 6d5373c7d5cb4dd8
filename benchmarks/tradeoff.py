"""Frames skipped against the masks' fidelity: every strategy at many settings, on a DAVIS-layout folder.

    python benchmarks/tradeoff.py --davis_root DAVIS --json gate.json --key-frames annotation
    python benchmarks/tradeoff.py --davis_root DAVIS --json embedded.json
    python benchmarks/tradeoff.py --davis_root DAVIS --json large.json --config large --checkpoint sam2.1_hiera_large.pt

With `--key-frames model` the network tracks each sequence without skipping and with every setting. All these runs take
turns, so that a busy machine slows them alike; seconds count from opening the clip to the last label map. Fidelity is
J&F against the run without skipping, accuracy J&F against the annotation, speed-up the seconds of the run without
skipping over those of the setting.

With `--key-frames annotation` no network runs: every key frame shows its annotation, which measures the gate and the
warp alone. Accuracy is then the same as fidelity, and there is no speed-up (null): nothing is timed.

J&F leaves out the first and the last frame and is averaged over a sequence's objects. Skip rate, fidelity, accuracy and
the share of time that a setting takes are averaged over sequences; the speed-up is 1 / that share. `--json` gets a list
of points, `--picture` (default: beside it) the curves with the published points for comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import FrameDecision, RecordedMasks, SkipOptions, play_through, skip_rate
from sam2.utils.change_detection import GateFrame, KeyFrame
from sam2.utils.davis import DavisRoot, merge_masks, read_label_map
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.plots import Curve, draw_curves
from sam2.utils.plots import Point as Mark
from sam2.utils.vos_metrics import annotated_objects, score_mask
from sam2.vos_runs import ModelFiles, TrackedFrame, device_name, named_device, track_frames

KeyFrames = Literal["model", "annotation"]

PUBLISHED_INPUT_SIZE = 1024
"""Input size of Meta's models: the published thresholds count at this size."""

TURN = 40
"""Frames that a run tracks before the next run's turn; so many that what is read ahead in between hardly counts."""

ANNOTATED_LOGIT = 10.0

PUBLISHED = {
    "naive": [(0.06, 0.987), (0.18, 0.932), (0.29, 0.849)],
    "mask_aware": [(0.36, 0.901), (0.64, 0.716)],
}
"""Share of reused frames and fidelity of FrameSkipSAM's masks, on DAVIS 2017 val and against their own baseline.

Its flow (0.98, 0.224) lies so far below that a picture with it would show nothing else.
"""


class Setting(NamedTuple):
    """One way of skipping; `threshold` in the strategy's unit, `lookahead` in frames."""

    strategy: str
    threshold: float
    lookahead: int = 0

    def options(self) -> SkipOptions:
        return SkipOptions(self.threshold, self.strategy, lookahead=self.lookahead)


OFF = Setting("off", 0.0)

LOOKAHEAD = 16
"""Frames; what waits for the next key frame stays within a second of video."""

SETTINGS = [
    *(Setting("naive", t) for t in (0.05, 0.07, 0.10, 0.15, 0.20, 0.25, 0.30)),
    *(Setting("mask_aware", t) for t in (0.10, 0.15, 0.20, 0.25, 0.30, 0.40)),
    *(Setting("memory_guided", t) for t in (0.05, 0.10, 0.20, 0.30, 0.40, 0.60, 0.80, 1.00, 1.40, 2.00)),
    *(
        Setting("memory_guided", t, LOOKAHEAD)
        for t in (0.05, 0.10, 0.20, 0.30, 0.40, 0.60, 0.80, 1.00, 1.10, 1.40, 2.00)
    ),
]

QUICK_SETTINGS = [
    *(Setting("naive", t) for t in (0.05, 0.10, 0.15, 0.25)),
    *(Setting("mask_aware", t) for t in (0.10, 0.20, 0.30)),
    *(Setting("memory_guided", t) for t in (0.20, 0.40, 1.00, 1.60, 2.00)),
    *(Setting("memory_guided", t, LOOKAHEAD) for t in (0.40, 0.80, 1.10, 2.00)),
]


@dataclass(frozen=True)
class Point:
    """A setting on all sequences; rates, J&F 0 to 1, `speedup` None where nothing was timed."""

    strategy: str
    setting: float
    lookahead: int
    key_frames: KeyFrames
    skip_rate: float
    fidelity: float
    accuracy: float
    speedup: float | None


class Outcome(NamedTuple):
    """A setting on one sequence; `time_share` is its seconds over those of the run without skipping."""

    skip_rate: float
    fidelity: float
    accuracy: float
    time_share: float | None


class Clip(NamedTuple):
    """A sequence and the object ids (H, W) uint8 of every frame."""

    name: str
    frames: list[Path]
    labels: list[np.ndarray]
    obj_ids: tuple[int, ...]

    @classmethod
    def read(cls, root: DavisRoot, name: str) -> Clip:
        """Raises ValueError where a frame is not annotated, or fewer than three frames are there."""
        frames, annotations = root.frame_paths(name), root.annotation_paths(name)
        stems, annotated = [path.stem for path in frames], [path.stem for path in annotations]
        if stems != annotated or len(stems) < 3:
            raise ValueError(
                f"{name}: needs an annotation of every frame and at least 3 of both, "
                f"got {len(stems)} frames and {len(annotated)} annotations"
            )
        objects = annotated_objects([read_label_map(path) for path in annotations])
        return cls(name, frames, objects.label_maps, objects.obj_ids)

    def start(self, num_frames: int) -> Clip:
        """Its first few frames."""
        return self._replace(frames=self.frames[:num_frames], labels=self.labels[:num_frames])


def agreement(expected: np.ndarray, found: np.ndarray, obj_ids: Sequence[int]) -> float:
    """J&F of one frame, the mean over the objects; label maps (H, W)."""
    if found is expected:
        return 1.0
    scores = [score_mask(expected == obj_id, found == obj_id) for obj_id in obj_ids]
    return float(np.mean([(score.region + score.contour) / 2 for score in scores]))


# Key frames from the annotation


def sweep_annotated(clip: Clip, settings: Sequence[Setting], input_size: int) -> list[Outcome]:
    """Play one sequence through with its annotation on every key frame.

    Args:
        input_size: frames are compared by "naive" and "mask_aware" at this size, pixels.
    """

    def key_frame(t: int, frame: GateFrame) -> KeyFrame:
        masks = [np.where(clip.labels[t] == obj_id, ANNOTATED_LOGIT, -ANNOTATED_LOGIT) for obj_id in clip.obj_ids]
        known = np.ones(len(masks), np.float32)
        return KeyFrame(t, frame, np.array(masks, np.float32), known, ANNOTATED_LOGIT * known)

    decisions: list[list[FrameDecision]] = [[] for _ in settings]
    agreements: list[list[float]] = [[] for _ in settings]
    with FrameLoader(list(clip.frames), input_size) as loader:
        if (loader.height, loader.width) != clip.labels[0].shape:
            raise ValueError(f"{clip.name}: frames are {loader.width}x{loader.height}, annotations are not")
        runs = play_through(
            range(len(clip.frames)), lambda t: GateFrame(loader.frame(t), loader.pixels(t)),
            RecordedMasks(key_frame, prompted={0}), [setting.options() for setting in settings],
        )  # fmt: skip
        for labels, answers in zip(clip.labels, runs, strict=True):
            for i, (decision, carried) in enumerate(answers):
                decisions[i].append(decision)
                found = labels if carried is None else merge_masks(clip.obj_ids, carried)
                agreements[i].append(agreement(labels, found, clip.obj_ids))
    fidelities = [float(np.mean(values[1:-1])) for values in agreements]
    return [Outcome(skip_rate(d), f, f, None) for d, f in zip(decisions, fidelities, strict=True)]


def _sweep_annotated_sequence(job: tuple[DavisRoot, str, Sequence[Setting], int]) -> list[Outcome]:
    root, name, settings, input_size = job
    start = time.perf_counter()
    outcomes = sweep_annotated(Clip.read(root, name), settings, input_size)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return outcomes


def sweep_annotated_all(
    root: DavisRoot, names: Sequence[str], settings: Sequence[Setting], input_size: int, processes: int
) -> list[list[Outcome]]:
    """The outcomes of every sequence, sequences shared out over processes."""
    jobs = [(root, name, settings, input_size) for name in names]
    processes = min(processes, len(jobs))
    if processes <= 1:
        return [_sweep_annotated_sequence(job) for job in jobs]
    # Spawned, not forked: a copy of a process in which OpenCV runs threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return list(pool.map(_sweep_annotated_sequence, jobs))


# Key frames from the model


class Turn(NamedTuple):
    """Some frames of a run, and the seconds they took."""

    frames: list[TrackedFrame]
    seconds: float


def tracked_in_turns(predictor: Any, clip: Clip, options: SkipOptions, length: int | None = None) -> Iterator[Turn]:
    """Track a sequence, `length` frames each time, by default `TURN`."""
    length = length or TURN
    start = time.perf_counter()
    predictor.skipping = options  # read when the first frame is tracked, which is before this run's turn ends
    tracked = track_frames(predictor, clip.frames, clip.labels[0])
    while frames := list(itertools.islice(tracked, length)):
        yield Turn(frames, time.perf_counter() - start)
        start = time.perf_counter()


def sweep_tracked(predictor: Any, clip: Clip, settings: Sequence[Setting]) -> list[Outcome]:
    """Track one sequence without skipping and with every setting, in turns. The first outcome is that of `OFF`."""
    options = [SkipOptions(threshold=0), *(setting.options() for setting in settings)]
    obj_ids = np.unique(clip.labels[0][clip.labels[0] > 0]).tolist()
    seconds = np.zeros(len(options))
    decisions: list[list[FrameDecision]] = [[] for _ in options]
    fidelities: list[list[float]] = [[] for _ in options]
    accuracies: list[list[float]] = [[] for _ in options]
    annotations = iter(clip.labels)
    for turns in zip(*(tracked_in_turns(predictor, clip, each) for each in options), strict=True):
        seconds += [turn.seconds for turn in turns]
        for annotation, tracked in zip(
            itertools.islice(annotations, TURN), zip(*(turn.frames for turn in turns), strict=True), strict=True
        ):
            for i, (labels, decision) in enumerate(tracked):
                decisions[i].append(decision)
                fidelities[i].append(agreement(tracked[0].labels, labels, obj_ids))
                accuracies[i].append(agreement(annotation, labels, obj_ids))
    return [
        Outcome(skip_rate(d), float(np.mean(f[1:-1])), float(np.mean(a[1:-1])), float(s / seconds[0]))
        for d, f, a, s in zip(decisions, fidelities, accuracies, seconds, strict=True)
    ]


def sweep_tracked_all(
    predictor: Any, root: DavisRoot, names: Sequence[str], settings: Sequence[Setting]
) -> list[list[Outcome]]:
    """The outcomes of every sequence."""
    outcomes = []
    for name in names:
        clip = Clip.read(root, name)
        start = time.perf_counter()
        if not outcomes:
            # The first frames of a process are slow: memory is set aside, kernels are chosen.
            list(tracked_in_turns(predictor, clip.start(3), SkipOptions(threshold=0)))
        outcomes.append(sweep_tracked(predictor, clip, settings))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return outcomes


# Report


def average(settings: Sequence[Setting], outcomes: Sequence[Sequence[Outcome]], key_frames: KeyFrames) -> list[Point]:
    """The points of all settings; `outcomes` of each sequence, in the order of the settings."""
    points = []
    for setting, of_sequences in zip(settings, zip(*outcomes, strict=True), strict=True):
        rate, fidelity, accuracy = (float(np.mean([outcome[i] for outcome in of_sequences])) for i in range(3))
        shares = [outcome.time_share for outcome in of_sequences if outcome.time_share is not None]
        speedup = float(1 / np.mean(shares)) if shares else None
        points.append(Point(*setting, key_frames, rate, fidelity, accuracy, speedup))
    return points


def curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each strategy, with and without look-ahead, by ascending skip rate."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.strategy != OFF.strategy:
            name = f"{point.strategy}, look-ahead {point.lookahead}" if point.lookahead else point.strategy
            found.setdefault(name, []).append(point)
    return {name: sorted(curve, key=lambda point: point.skip_rate) for name, curve in found.items()}


def fidelity_at(curve: Sequence[Point], rate: float) -> float | None:
    """Fidelity of a curve at this skip rate, on straight lines from point to point; None beyond the last one."""
    if curve[-1].skip_rate < rate:
        return None
    rates, fidelities = zip(*((point.skip_rate, point.fidelity) for point in curve), strict=True)
    return float(np.interp(rate, (0.0, *rates), (1.0, *fidelities)))


def table(points: Sequence[Point]) -> str:
    """All points, and the fidelity of each curve at equal skip rates."""
    lines = [
        f"{'strategy':15}{'look-ahead':>10}{'setting':>9}{'skipped':>9}{'fidelity':>10}{'accuracy':>10}{'speed-up':>10}"
    ]
    for p in points:
        speedup = "" if p.speedup is None else f"{p.speedup:9.2f}x"
        lines.append(
            f"{p.strategy:15}{p.lookahead or '':>10}{p.setting:9.3g}{p.skip_rate:9.1%}"
            f"{p.fidelity:10.3f}{p.accuracy:10.3f}{speedup:>10}"
        )
    rates = (0.25, 0.50, 0.64, 0.75, 0.85)
    lines += ["", f"{'fidelity at equal skip rate':34}" + "".join(f"{rate:8.0%}" for rate in rates)]
    for name, curve in curves(points).items():
        found = [fidelity_at(curve, rate) for rate in rates]
        lines.append(f"{name:34}" + "".join(f"{'-':>8}" if f is None else f"{f:8.3f}" for f in found))
    return "\n".join(lines)


def draw(points: Sequence[Point], title: str) -> Image.Image:
    """Fidelity against skip rate with the published points; of a model also accuracy against speed-up, beside it."""
    found = curves(points)
    against_skips = [
        *(Curve(name, [Mark(100 * p.skip_rate, p.fidelity) for p in curve]) for name, curve in found.items()),
        *(Curve(f"published {name}", [Mark(100 * x, y) for x, y in known]) for name, known in PUBLISHED.items()),
    ]
    pictures = [draw_curves(against_skips, title=title, x_label="frames skipped, %", y_label="fidelity, J&F")]
    if all(point.speedup is not None for point in points):
        timed = {**found, "no frame skipped": [point for point in points if point.strategy == OFF.strategy]}
        against_speed = [
            Curve(name, [Mark(p.speedup or 0.0, p.accuracy) for p in curve]) for name, curve in timed.items() if curve
        ]
        pictures.append(
            draw_curves(against_speed, title="", x_label="speed-up, times", y_label="accuracy, J&F with the annotation")
        )
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))


def run(args: argparse.Namespace) -> list[Point]:
    """Sweep, write the points and the picture, print the table."""
    root = DavisRoot.open(args.davis_root)
    names = args.sequences or root.sequences(args.split)
    settings = QUICK_SETTINGS if args.quick else SETTINGS
    if args.key_frames == "annotation":
        size = ModelFiles.find(args.config, None).image_size if args.config else PUBLISHED_INPUT_SIZE
        outcomes = sweep_annotated_all(root, names, settings, size, args.processes)
        title = "key frames show the annotation"
    else:
        device = named_device(args.device)
        predictor = build_sam2_video_predictor(args.config, args.checkpoint, device=device, dtype=args.dtype)
        outcomes = sweep_tracked_all(predictor, root, names, settings)
        settings = [OFF, *settings]
        title = f"{args.config or 'embedded model'}, {device_name(predictor.device)}"
    points = average(settings, outcomes, args.key_frames)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n", encoding="utf-8")
    print(f"{len(names)} sequences, {title}\n{table(points)}\npoints: {args.json}")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(points, f"{len(names)} sequences, {title}").save(args.picture)
    print(f"picture: {args.picture}")
    return points


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what does not fit together is an error here, not later."""
    parser = argparse.ArgumentParser(
        description="Sweep the skip strategies over a DAVIS-layout folder: skip rate, fidelity, accuracy, speed-up."
    )
    parser.add_argument("--davis_root", type=Path, required=True, help="folder with JPEGImages and Annotations")
    parser.add_argument("--split", default="val", help="ImageSets/<2017 or other>/<split>.txt (default: val)")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these sequences")
    parser.add_argument("--key-frames", choices=("model", "annotation"), default="model", help="what key frames show")
    parser.add_argument("--config", help='model config: "tiny", "large", a YAML file ... (default: the embedded model)')
    parser.add_argument("--checkpoint", type=Path, help="weights that belong to --config")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--quick", action="store_true", help="about half of the settings")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="for --key-frames annotation")
    parser.add_argument("--json", type=Path, required=True, help="where the points go")
    parser.add_argument("--picture", type=Path, help="where the picture goes (default: beside the points)")
    args = parser.parse_args(argv)
    if args.key_frames == "model" and (args.config is None) != (args.checkpoint is None):
        parser.error("--config and --checkpoint belong together: give both, or neither for the embedded model")
    args.picture = args.picture or args.json.with_suffix(".png")
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

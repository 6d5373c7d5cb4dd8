#!/usr/bin/env python3
"""Track the objects of DAVIS-layout sequences, skipping frames that need no network, and write palette PNGs.

    python run_mgfs_davis.py --demo                                     # needs no data
    python run_mgfs_davis.py --davis_root DAVIS --output masks          # the small embedded model
    python run_mgfs_davis.py --davis_root DAVIS --output masks --config large --checkpoint sam2.1_hiera_large.pt
    python run_mgfs_davis.py --davis_root DAVIS --output sweep --strategy naive --threshold 0 0.05 0.07 0.10 0.15
    python run_mgfs_davis.py --davis_root DAVIS --output plan --config large --threshold 0.05 0.10 --plan
    torchrun --nproc_per_node 8 run_mgfs_davis.py --davis_root DAVIS --output masks --resume

Every object of the first frame's annotation is prompted with its mask, under its own id (semi-supervised DAVIS 2017).
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sam2.command_line import (
    Parser,
    Progress,
    add_model_options,
    add_skip_options,
    check_model_options,
    exit_code,
    given_skip_options,
    guard_of,
)

if TYPE_CHECKING:
    from sam2.frame_skipping import FrameDecision, SkipOptions
    from sam2.utils.davis import DavisRoot
    from sam2.utils.drawn_clips import DrawnClip
    from sam2.vos_records import Failure, Outcome, RunFolder, Summary, Work
    from sam2.vos_runs import ModelFiles

logger = logging.getLogger("run_mgfs_davis")

DEMO_LENGTH = 48  # frames
DEMO_THRESHOLDS = {"naive": (0.02, 0.03, 0.05), "memory_guided": (0.1, 0.3, 1.0)}
DEMO_CHOOSES = ("strategy", "threshold", "warp", "lookahead", "max_consecutive_skips", "plan", "resume", "sequences")

RESULTS = """
results, for one --threshold in --output, for several in --output/<strategy>_<threshold>:
  <sequence>/<frame>.png    object ids, in DAVIS's palette
  <sequence>/frames.json    a list of {"frame", "action", "change", "seconds"}; action is prompted, processed, reused or
                            warped, change is in the unit of the strategy's threshold
  <sequence>/sequence.json  the sequence's figures and settings; written last, so where it lies the sequence is finished
  summary.json              frames, processed, skip_rate, seconds, fps, settings (with the checkpoint's SHA-256),
                            versions, device, figures by sequence; seconds and fps are those of one process

stopping and resuming:
  Every file appears at once or not at all. After a kill, the same command with --resume tracks what is not finished. A
  sequence that was cut short is tracked anew from its first frame: its masks follow from the memory of all frames
  before, which is not saved, and so they equal those of a run that was never stopped. A sequence whose pictures have
  changed since is tracked anew too. Finished sequences of other settings are refused. Without --resume, results are
  replaced. A sequence that another run is writing to the same folder is an error. One that cannot be tracked, as for
  want of readable frames or of an annotation, stops no other: it is reported at the end, its failure.json says why, and
  the exit status is 1, or 2 where none could be tracked.

several processes (torchrun, on one node or many that share --output):
  The sequences are shared out by length; each process tracks its own, on the GPU of its LOCAL_RANK, and talks to no
  other. The one that finishes last reports the failures of all: torchrun stops all when one exits with a status. What
  is finished stays then, and the same command with --resume goes on. On many nodes give torchrun another --rdzv_id at
  each start: runs are told apart by it.
"""


class Case(NamedTuple):
    """One setting, and the folder of its results."""

    options: SkipOptions
    path: Path


def cases(args: argparse.Namespace, model: ModelFiles) -> list[Case]:
    """A case per threshold. What the command line does not say is as the predictor has it."""
    import dataclasses

    changes = given_skip_options(args)
    thresholds = [model.skipping.threshold] if args.threshold is None else args.threshold
    texts = [f"{t:g}" for t in thresholds]  # name the folders
    if len(set(texts)) < len(texts):
        raise ValueError(f"--threshold: each value once, got {' '.join(texts)} (to the six digits that name folders)")
    options = [dataclasses.replace(model.skipping, threshold=threshold, **changes) for threshold in thresholds]
    if len(options) == 1:
        return [Case(options[0], args.output)]
    return [Case(each, args.output / f"{each.strategy}_{each.threshold:g}") for each in options]


def run(args: argparse.Namespace, wanted: Sequence[Case] = ()) -> Outcome:
    """Track, or plan, this process's share of the sequences; returns what is there of each setting then.

    Args:
        wanted: the settings; by default those of the command line.
    """
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from sam2.utils.davis import DavisRoot
    from sam2.vos_records import RunFolder
    from sam2.vos_runs import ModelFiles, Rank, check_plannable, device_name, inputs_sha256, run_token, share_out

    rank = Rank.from_environment(os.environ)
    root = DavisRoot.open(args.davis_root)
    # The shell ends the names of folders with a slash.
    names = [name.rstrip("/") for name in args.sequences or root.sequences(args.split)]
    stems = {name: frame_stems(root, name) for name in names}
    model = ModelFiles.find(args.config, args.checkpoint, args.image_size, args.search_factor, guard_of(args))
    wanted = wanted or cases(args, model)
    if args.plan:
        check_plannable([case.options for case in wanted], model)
    device = torch.device("cpu") if args.plan else rank.device(args.device)
    make_folder = functools.partial(
        RunFolder, device=device_name(device), is_plan=args.plan, token=run_token(os.environ, rank), resume=args.resume
    )
    folders = [make_folder(path, options, model.settings(options, args.dtype, device)) for options, path in wanted]
    mine = share_out({name: len(stems[name]) for name in names}, rank.world_size)[rank.rank]
    check_apart(root, folders)
    prepare(folders, names, mine)
    own: list[Failure] = []
    todo = {}
    for name in mine:
        with noting_failure(name, own):
            inputs = inputs_sha256(root, name, is_plan=args.plan) if args.resume else ""
            if unfinished := [folder for folder in folders if not folder.is_finished(name, stems[name], inputs)]:
                todo[name] = unfinished
    if todo:
        work = planner(root, model) if args.plan else tracker(args, root, device, list(todo))
        total = sum(len(stems[name]) * len(unfinished) for name, unfinished in todo.items())
        progress = Progress(total, is_shown=rank.rank == 0)
        with progress.bar, logging_redirect_tqdm():
            for name, unfinished in todo.items():
                progress.start(name)
                with noting_failure(name, own):
                    forget_outdated(name, unfinished)
                    work(name, unfinished, progress.count)
    return sum_up(folders, names, mine, own)


def frame_stems(root: DavisRoot, name: str) -> list[str]:
    """The stems of a sequence's frames; none where its folder holds none, which shows when it is tracked.

    Raises:
        FileNotFoundError: there is no such sequence, or no frames of any.
    """
    try:
        return [path.stem for path in root.frame_paths(name)]
    except FileNotFoundError:
        if root.frames_dir is None or not root.has(name):
            raise
        return []


def sum_up(folders: Sequence[RunFolder], names: Sequence[str], mine: Sequence[str], own: Sequence[Failure]) -> Outcome:
    """Put this process's failures on record, and see what all have come to."""
    from sam2.vos_records import Outcome

    others = [name for name in dict.fromkeys(names) if name not in mine]
    found: dict[str, Failure] = {}
    for folder in folders:
        folder.write_failures([failure for failure in own if not folder.is_done(failure.name)])
        found |= {failure.name: failure for failure in folder.read_failures(others)}
    to_come = [name for name in others if name not in found and not all(folder.is_done(name) for folder in folders)]
    return Outcome([folder.summarise(names) for folder in folders], own, [*own, *found.values()], to_come)


@contextmanager
def noting_failure(name: str, failures: list[Failure]) -> Iterator[None]:
    """Note what a sequence fails by, so that it stops no other: bad frames or annotations, or memory."""
    from sam2.vos_records import Failure

    try:
        yield
    except BlockingIOError:  # two runs at once in one folder are a mistake
        raise
    except (OSError, ValueError, RuntimeError) as error:
        logger.info("%s failed", name, exc_info=True)
        failures.append(Failure.of(name, error))


def check_apart(root: DavisRoot, folders: Sequence[RunFolder]) -> None:
    """Raises ValueError where masks would replace the annotation, or lie among the frames."""
    data = {path.resolve() for path in (root.frames_dir, root.annotations_dir) if path is not None}
    for folder in folders:
        path = folder.path.resolve()
        if path in data:
            raise ValueError(f"--output: {folder.path} holds the data of --davis_root; name another folder")
        if data.intersection(path.parents):
            raise ValueError(f"--output: {folder.path} lies among the data of --davis_root; name another folder")


def prepare(folders: Sequence[RunFolder], names: Sequence[str], mine: Sequence[str]) -> None:
    """See that the results can go where they shall; unless resuming, forget what this process will do again."""
    for folder in folders:
        folder.check(names)
    for folder in folders:
        for name in () if folder.resume else mine:
            with folder.lock(name):
                folder.clear(name)
    for folder in folders:
        folder.forget_failures(mine)


def forget_outdated(name: str, unfinished: Sequence[RunFolder]) -> None:
    """Drop records of a sequence that is tracked anew: if that fails, they must not pass for its result."""
    for folder in unfinished:
        if folder.is_done(name):
            with folder.lock(name):
                folder.clear(name)


DoSequence = Callable[[str, Sequence["RunFolder"], Callable[["FrameDecision"], None]], None]


def tracker(args: argparse.Namespace, root: DavisRoot, device: Any, names: Sequence[str]) -> DoSequence:
    """Build the predictor; returns what tracks a sequence with the settings of each folder, one after the other."""
    from sam2.vos_runs import build_predictor, track_sequence, warm_up

    predictor = build_predictor(
        args.config, args.checkpoint, device, args.dtype, args.image_size, args.search_factor, guard_of(args)
    )
    for name in names if device.type != "cpu" else ():
        failures: list[Failure] = []  # which it will come to again
        with noting_failure(name, failures):
            warm_up(predictor, root, name)
        if not failures:
            break

    def track(name: str, folders: Sequence[RunFolder], on_frame: Callable[[FrameDecision], None]) -> None:
        for folder in folders:
            logger.info("Tracking %s into %s", name, folder.path)
            track_sequence(predictor, root, name, folder, on_frame)

    return track


def planner(root: DavisRoot, model: ModelFiles) -> DoSequence:
    """Returns what decides on a sequence with the settings of all folders at once."""
    from sam2.vos_runs import plan_sequence

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def plan(name: str, folders: Sequence[RunFolder], on_frame: Callable[[FrameDecision], None]) -> None:
        plan_sequence(model.image_size, root, name, folders, on_frame, threads=threads)

    return plan


def report(outcome: Outcome, *, is_plan: bool) -> None:
    """Print the figures of each setting, and what failed; of a run that other processes go on with, how far it is."""
    for summary in outcome.summaries:
        to_come = [name for name in summary.missing if name in outcome.to_come]
        if to_come:
            print(f"done here, {len(to_come)} sequences to come: {summary.folder}")
            continue
        for record in summary.records:
            print(figures(record.name, record.work, is_plan=is_plan))
        if summary.records:
            print(figures("all", summary.work, is_plan=is_plan))
        print(f"{'plan' if is_plan else 'masks'}: {summary.folder}")
    outcome.report_failures()


def figures(name: str, work: Work, *, is_plan: bool) -> str:
    """One line of the report."""
    if is_plan:
        return f"{name:24} {work.frames:5} frames {work.skip_rate:7.1%} skipped {work.expected_speedup:7.2f}x expected"
    speed = f"{work.seconds:8.1f} s {work.fps:7.2f} frames per second"
    return f"{name:24} {work.frames:5} frames {speed} {work.skip_rate:7.1%} skipped"


# The demo


class TradeOff(NamedTuple):
    """What a setting gains and costs; rates and J&F are means over the sequences.

    fidelity: J&F against the masks without skipping. accuracy: J&F against the annotation. speedup: as measured.
    """

    strategy: str
    setting: float
    lookahead: int
    key_frames: str
    skip_rate: float
    fidelity: float
    accuracy: float
    speedup: float


def demo(args: argparse.Namespace) -> None:
    """Draw a DAVIS-layout set, track it without and with skipping, and leave pictures of masks and trade-off."""
    import torch

    from sam2.frame_skipping import SkipOptions
    from sam2.utils.drawn_clips import write_davis_layout
    from sam2.utils.files import write_text
    from sam2.vos_runs import Rank

    if Rank.from_environment(os.environ).world_size > 1:
        raise ValueError("--demo is for one process, not for torchrun")
    clips = demo_clips(args.seed)
    root = write_davis_layout(args.output / "davis", clips)
    wanted = [Case(SkipOptions(threshold=0.0), args.output / "off")]
    for strategy, thresholds in DEMO_THRESHOLDS.items():
        wanted += [Case(SkipOptions(t, strategy), args.output / f"{strategy}_{t:g}") for t in thresholds]
    task = argparse.Namespace(**{**vars(args), "davis_root": root.root, "split": "val", "sequences": None})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses much where the cores are busy
    try:
        outcome = run(task, wanted)
    finally:
        torch.set_num_threads(threads)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0].text)

    print(f"{'':20}{'skipped':>10}{'J&F':>10}{'fidelity':>10}{'speed-up':>10}")
    points = []
    for case, summary in zip(wanted, outcome.summaries, strict=True):
        point = measure(root, case, summary, outcome.summaries[0])
        figures = f"{point.skip_rate:10.1%}{point.accuracy:10.3f}{point.fidelity:10.3f}{point.speedup:9.2f}x"
        print(f"{case.path.name:20}{figures}")
        points.append(point)
    write_text(args.output / "tradeoff.json", json.dumps([point._asdict() for point in points], indent=1) + "\n")
    draw_tradeoff(args.output / "tradeoff.png", points)
    name, shown = next(iter(clips)), wanted[-2].path
    save_strip(args.output / "demo.png", clips[name].frames, shown / name)
    print(f"trade-off: {args.output / 'tradeoff.png'}\nmasks of {shown.name}: {args.output / 'demo.png'}")


def demo_clips(seed: int) -> dict[str, DrawnClip]:
    """Two clips that stand still for a while: one seen by a camera at rest, one by a camera that swings."""
    from sam2.utils.drawn_clips import draw_clip

    draw = functools.partial(draw_clip, DEMO_LENGTH, 240, 428, noise=2.0)
    still = range(DEMO_LENGTH // 4, DEMO_LENGTH // 2)
    return {
        "rest": draw(num_objects=2, seed=seed, still=still),
        "swing": draw(num_objects=2, seed=seed + 1, camera_shift=1.0, still=still),
    }


def measure(root: DavisRoot, case: Case, summary: Summary, off: Summary) -> TradeOff:
    """Score a setting against the annotation and against the run without skipping."""
    from sam2.utils.vos_metrics import evaluate

    result = evaluate(root, [off.folder, case.path])
    assert result.fidelity is not None
    fidelity, accuracy = (
        float(np.mean([sequence.scores.mean for sequence in sequences]))
        for sequences in (result.fidelity, result.predictions[1])
    )
    skip_rate = float(np.mean([record.work.skip_rate for record in summary.records]))
    options, speedup = case.options, off.work.seconds / summary.work.seconds
    strategy = str(options.strategy) if options.is_on else "off"
    setting = options.threshold or 0.0
    return TradeOff(strategy, setting, options.lookahead, "model", skip_rate, fidelity, accuracy, speedup)


def draw_tradeoff(path: Path, points: Sequence[TradeOff]) -> None:
    """A curve per strategy, from the run without skipping on."""
    from sam2.utils.plots import Curve, Point, draw_curves

    off = next(point for point in points if point.strategy == "off")
    curves = []
    for strategy in dict.fromkeys(point.strategy for point in points if point is not off):
        own = [point for point in points if point.strategy == strategy]
        marks = [Point(100 * p.skip_rate, p.accuracy, f"{p.setting:g} ({p.speedup:.1f}x)") for p in own]
        curves.append(Curve(strategy, [Point(0.0, off.accuracy, "" if curves else "off"), *marks]))
    picture = draw_curves(
        curves,
        title="Frame skipping on drawn clips, small embedded model. Marked: threshold (speed-up)",
        x_label="frames skipped, %",
        y_label="J&F against the annotation",
    )
    picture.save(path)


def save_strip(path: Path, frames: np.ndarray, masks: Path, columns: int = 4) -> None:
    """Eight frames of a clip with their masks, as one picture."""
    from PIL import Image

    from sam2.utils.davis import read_label_map
    from sam2.utils.video_io import overlay

    chosen = np.linspace(0, len(frames) - 1, 2 * columns).round().astype(int)
    tiles = [overlay(frames[t], read_label_map(masks / f"{t:05d}.png")) for t in chosen]
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


# The command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what does not fit together is an error here, not later."""
    parser = Parser(
        description=__doc__,
        epilog=RESULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser)
    add = parser.add_argument_group("frame skipping (defaults are the predictor's)").add_argument
    add_skip_options(add, nargs="+", help="one or several; 0 is SAM 2 itself (default: 0.05)")
    add(
        "--plan",
        action="store_true",
        help="decide without running the network (naive only): skip rate and expected speed-up, in seconds",
    )
    args = parser.parse_args(argv)
    if (args.davis_root is None) == (not args.demo):
        parser.error("give either --davis_root or --demo")
    check_model_options(parser, args, needs_weights=not args.plan)
    own = [name for name in DEMO_CHOOSES if getattr(args, name) not in (None, False)]
    if args.demo and own:
        parser.error(f"--demo chooses its own data and settings, and takes no --{own[0].replace('_', '-')}")
    return args


def add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--davis_root", type=Path, help="folder with JPEGImages, Annotations and ImageSets")
    add("--split", default="val", help="ImageSets/<2017 or other>/<split>.txt (default: val)")
    add("--sequences", nargs="+", metavar="NAME", help="only these sequences")
    add_model_options(add, checkpoint="weights that belong to --config (--plan needs none)")
    add("--output", type=Path, default=Path("outputs"), help="folder for the results (default: outputs)")
    add("--resume", action="store_true", help="keep the sequences that are finished, if their settings are the same")
    add("--verbose", action="store_true", help="log every frame that is skipped")
    add("--demo", action="store_true", help="draw clips, track them without and with skipping: needs no data")
    add("--seed", type=int, default=0, help="of the drawn clips")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a sequence failed, 2 where nothing could be done."""
    args = parse(argv)
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_code(lambda: command(args), resumes=not args.demo)


def command(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    if args.demo:
        demo(args)
        return 0
    outcome = run(args)
    report(outcome, is_plan=args.plan)
    return 2 if outcome.status and not any(summary.records for summary in outcome.summaries) else outcome.status


if __name__ == "__main__":
    sys.exit(main())

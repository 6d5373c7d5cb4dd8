"""Track objects through videos from the command line.

    python -m sam2.track clip.mp4 --box 40,30,120,200 --output out
    python -m sam2.track clip.mp4 --box 1:0:40,30,120,200 --point 2:0:300,90 --point 2:0:310,20,0 --output out
    python -m sam2.track frames/ --mask first.png --format png coco mp4 --output out
    python -m sam2.track videos/ 'more/*.mp4' --prompts prompts.json --output out --resume
    torchrun --nproc_per_node 8 -m sam2.track videos/ --prompts prompts.json --output out --resume

A VIDEO is a video file, a folder of frames, a folder of these, or a pattern of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    import torch

    from sam2.frame_skipping import SkipOptions
    from sam2.sam2_video_predictor import SAM2VideoPredictor
    from sam2.track_prompts import Draft, Prompt
    from sam2.track_runs import Clip
    from sam2.vos_records import Outcome, Work
    from sam2.vos_runs import ModelFiles

logger = logging.getLogger(__name__)

FORMATS = ("png", "coco", "youtube_vis", "mp4", "npz", "json")

DETAILS = """
prompts, in pixels of the video; each option as often as needed:
  --box [ID:[FRAME:]]x0,y0,x1,y1     --box 40,30,120,200   --box 7:40,30,120,200   --box 7:12:40,30,120,200
  --point [ID:[FRAME:]]x,y[,LABEL]   label 1 (inside the object, as without one) or 0 (outside)
  --mask [ID:[FRAME:]]FILE           a picture whose values are object ids, or black and white for one object
  Without ID the prompt is of a new object, which gets the lowest id, from 1 on, that no prompt before it has; FRAME is
  0 where it is not given, and :FRAME:... is a new object on another frame. Prompts with the same ID and FRAME belong
  together. They count for every VIDEO; --prompts FILE.json gives each video its own:
  {"clip": [{"id": 1, "frame": 0, "box": [10, 20, 80, 90]}, {"id": 1, "points": [[4, 5]], "labels": [0]},
            {"frame": 12, "mask": "clip_12.png"}], "*": [prompts of the videos that are not named]}
  A video is named by its path (from FILE.json's folder on, or as VIDEO), else its name in --output, else its file name.

results, in --output/<video>:
  00000.png ...      png: object ids, in DAVIS's palette; 001/00000.png ... too, where objects overlap or have other ids
  coco.json          coco: COCO annotations, masks as compressed run-length codes
  youtube_vis.json   youtube_vis: YouTube-VIS annotations
  overlay.mp4        mp4: H.264, the objects drawn over the frames
  masks.npz          npz: NumPy arrays, masks as packed bits
  results.json       always: masks, boxes, scores and statuses; sam2.video_results.VideoResults.load reads it
  frames.json, sequence.json, task.json   what was done with each frame, what the video took, what was asked for
  and in --output/summary.json what all videos took

stopping and resuming:
  Every file appears at once or not at all. After a kill the same command with --resume does what is not done and comes
  to the results of a run that was never stopped. A video that was begun goes on from the last --save-every, once all
  objects were prompted. Results of other prompts or settings, or of a video that was changed since, are refused. With
  --resume another --format or --fps is written without tracking anew; without it results are replaced. A video that
  fails, as one does that another run is writing to the same folder, stops no other: it is reported at the end, and the
  exit status is 1.

several processes (torchrun, on one node or many that share --output):
  The videos are shared out by length; each process tracks its own, on the GPU of its LOCAL_RANK, and talks to no
  other. The one that finishes last reports the failures of all: torchrun stops all when one exits with a status. On
  many nodes give torchrun another --rdzv_id at each start: runs are told apart by it.
"""


def run(args: argparse.Namespace) -> Outcome:
    """Do this process's share of the videos.

    Raises:
        FileNotFoundError, ValueError, ImportError: what makes the whole run impossible.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from sam2 import track_runs
    from sam2.vos_records import Outcome, RunFolder
    from sam2.vos_runs import ModelFiles, Rank, device_name, run_token, share_out

    track_runs.check_formats(args.format)
    rank = Rank.from_environment(os.environ)
    clips = {clip.name: clip for clip in track_runs.find_clips(args.videos)}
    track_runs.check_output(args.output, args.videos, list(clips.values()))
    prompts_of = prompt_reader(args, clips.values(), warns=rank.rank == 0)
    model = ModelFiles.find(args.config, args.checkpoint, args.image_size, args.search_factor, guard_of(args))
    device = rank.device(args.device)
    options = skip_options(args, model)
    settings = {**model.settings(options, args.dtype, device), "direction": args.direction}
    token = run_token(os.environ, rank)
    folder = RunFolder(args.output, options, settings, device_name(device), token=token, resume=args.resume)
    names = list(clips)
    folder.check(names)
    lengths = {name: track_runs.declared_length(clip.path) for name, clip in clips.items()}
    mine = share_out(lengths, rank.world_size)[rank.rank]
    folder.forget_failures(mine)
    progress = Progress(sum(lengths[name] for name in mine), is_shown=rank.rank == 0)
    predictor = once(lambda: build(args, device))  # not before there is something to track
    work = track_runs.Work(
        predictor, args.format, args.fps, args.resume, args.direction, args.save_every, progress.count
    )

    def folder_of(clip: Clip) -> track_runs.ClipFolder:
        progress.start(clip.name)
        return track_runs.ClipFolder(folder, clip, prompts_of(clip))

    with progress.bar, logging_redirect_tqdm():
        own = track_runs.do_clips([clips[name] for name in mine], folder_of, work)
    folder.write_failures(own)
    failures = [*own, *folder.read_failures([name for name in names if name not in mine])]
    failed = {failure.name for failure in failures}
    others = [track_runs.ClipFolder(folder, clips[name], ()) for name in names if name not in {*mine, *failed}]
    to_come = [other.clip.name for other in others if other.missing(args.format, args.fps)]
    if not to_come:
        folder.drop_notes(names)
    return Outcome([folder.summarise(names)], own, failures, to_come)


def prompt_reader(args: argparse.Namespace, clips: Iterable[Clip], *, warns: bool) -> Callable[[Clip], list[Prompt]]:
    """Returns what knows the prompts of a video. What is wrong with those of all videos is an error at once."""
    from sam2.track_prompts import PromptFile, resolve

    if args.prompts is None:
        prompts = resolve(args.drafts)
        return lambda clip: prompts
    found = PromptFile(args.prompts).of_videos({clip.name: clip.path for clip in clips})
    for warning in found.warnings if warns else ():
        logger.warning(warning)

    def read(clip: Clip) -> list[Prompt]:
        if not found.drafts[clip.name]:
            raise ValueError(f"{args.prompts} has no prompts for it")
        return resolve(found.drafts[clip.name])

    return read


def skip_options(args: argparse.Namespace, model: ModelFiles) -> SkipOptions:
    """What the command line says about skipping; the rest is as the predictor has it."""
    changes = given_skip_options(args)
    if args.threshold is not None:
        changes["threshold"] = args.threshold
    return dataclasses.replace(model.skipping, **changes)


def build(args: argparse.Namespace, device: torch.device) -> SAM2VideoPredictor:
    """Build the predictor."""
    from sam2.vos_runs import build_predictor

    return build_predictor(
        args.config, args.checkpoint, device, args.dtype, args.image_size, args.search_factor, guard_of(args)
    )


def once(make: Callable[[], SAM2VideoPredictor]) -> Callable[[], SAM2VideoPredictor]:
    """Returns what makes the predictor when it is first asked for it; what it raised then, it raises again.

    A model that cannot be built is not built anew for each video.
    """

    @functools.cache
    def made() -> SAM2VideoPredictor | Exception:
        try:
            return make()
        except Exception as error:  # whatever it is, no video can be tracked
            return error

    def predictor() -> SAM2VideoPredictor:
        if isinstance(result := made(), Exception):
            raise result
        return result

    return predictor


def report(outcome: Outcome) -> None:
    """Print the figures of each video, and what failed."""
    (summary,) = outcome.summaries
    for record in summary.records:
        print(figures(record.name, record.work))
    if len(summary.records) > 1:
        print(figures("all", summary.work))
    print(f"results: {summary.folder}")
    if outcome.to_come:
        print(f"{len(outcome.to_come)} videos to come from other processes")
    outcome.report_failures()


def figures(name: str, work: Work) -> str:
    """One line of the report."""
    speed = f"{work.seconds:8.1f} s {work.fps:7.2f} frames per second"
    return f"{name:24} {work.frames:5} frames {speed} {work.skip_rate:7.1%} skipped"


# The command line


def draft_type(read: Callable[[str], Draft]) -> Callable[[str], Draft]:
    """A reader of prompts whose ValueErrors argparse shows as they are."""

    def checked(text: str) -> Draft:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def with_negative_positions(argv: Sequence[str]) -> list[str]:
    """Tie positions that begin with a minus, as of a box that reaches out of the frame, to their option.

    argparse would take them for an option of their own.
    """
    tied: list[str] = []
    for text in argv:
        if tied and tied[-1] in ("--box", "--point") and re.match(r"-[\d.]", text):
            tied[-1] += f"={text}"
        else:
            tied.append(text)
    return tied


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what does not fit together is an error here, not later."""
    parser = Parser(
        prog="python -m sam2.track",
        description=__doc__,
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_prompt_options(parser)
    add_result_options(parser)
    add = parser.add_argument_group("model and frame skipping (defaults are the predictor's)").add_argument
    add_model_options(add)
    add_skip_options(add, help="0 is SAM 2 itself (default: 0.05)")
    args = parser.parse_args(with_negative_positions(sys.argv[1:] if argv is None else argv))
    if bool(args.drafts) == (args.prompts is not None):
        parser.error("say what to track: with --box, --point and --mask, or with --prompts FILE.json for many videos")
    check_model_options(parser, args)
    if args.fps is not None and not 0 < args.fps < math.inf:
        parser.error(f"argument --fps: must be positive, got {args.fps:g}")
    if not args.save_every >= 0:
        parser.error(f"argument --save-every: must be a number of seconds, 0 or more, got {args.save_every:g}")
    return args


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    from sam2.track_prompts import parse_box, parse_mask, parse_point

    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder of frames, a folder of these")
    prompts = parser.add_argument_group("what to track (see below)")
    # One list for all three, so that new objects are numbered in the order they are given.
    for flag, read, metavar in (
        ("--box", parse_box, "BOX"),
        ("--point", parse_point, "POINT"),
        ("--mask", parse_mask, "MASK"),
    ):
        prompts.add_argument(flag, dest="drafts", action="append", type=draft_type(read), metavar=metavar, default=[])
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="JSON, with the prompts of each video")
    prompts.add_argument(
        "--direction", choices=("both", "forward"), default="both",
        help="both (default): each object from its first prompt to both ends of the video; its masks before that "
        "prompt are kept packed meanwhile, which makes them close to what was tracked, not equal to the bit. "
        "forward: all objects from the first prompt of any on, also before prompts of their own",
    )  # fmt: skip


def add_result_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results (see below)").add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--format", nargs="+", choices=FORMATS, default=["png"], help="exports beside results.json (default: png)")
    add("--fps", type=float, help="of an mp4 (default: the video's own, 24 for pictures)")
    add("--resume", action="store_true", help="keep what is there, if its prompts and settings are the same")
    add(
        "--save-every", type=float, default=60, metavar="SECONDS",
        help="what a kill may cost (default: 60; more where saving would take over 5 %% of the time)",
    )  # fmt: skip
    add("--verbose", action="store_true", help="log skipped frames, and where failures come from")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a video failed, 2 where nothing could be done."""
    args = parse(argv)
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_code(lambda: command(args))


def command(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    outcome = run(args)
    report(outcome)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())

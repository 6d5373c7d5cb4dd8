"""What the command lines share: how they read options, show progress and report. Importing it is quick: no torch."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sam2.frame_skipping import FrameDecision
    from sam2.track_guard import TrackGuard

DTYPES = ("float32", "bfloat16", "float16", "auto")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


Add = Callable[..., Any]
"""`add_argument` of a parser or of a group of it."""


def add_model_options(add: Add, checkpoint: str = "weights that belong to --config") -> None:
    """Which network, and where and how it computes: see `check_model_options`. `checkpoint`: help of --checkpoint."""
    add("--config", help='model config: "tiny", "large", a YAML file ... (default: the embedded model)')
    add("--checkpoint", type=Path, help=checkpoint)
    add("--device", help="cuda, mps or cpu (default: the best there is)")
    add("--dtype", choices=DTYPES, default="float32", help="auto: bfloat16 where the device computes in it")
    add("--image-size", type=int, metavar="PIXELS", help="side frames are resized to (default: the config's)")
    add(
        "--search-factor", type=float, metavar="TIMES",
        help="look for each object in a square so many times as long as it is, 1 or more (default: everywhere)",
    )  # fmt: skip
    add("--guard", action="store_true", help="leave masks out of memory that cannot be believed (TrackGuard)")


def check_model_options(parser: Parser, args: argparse.Namespace, *, needs_weights: bool = True) -> None:
    """Refuse a config without its checkpoint, unless no weights are needed, and the other way round."""
    if args.config is None and args.checkpoint is not None:
        parser.error("--checkpoint needs its --config")
    if args.config is not None and args.checkpoint is None and needs_weights:
        parser.error("--config and --checkpoint belong together: give both, or neither for the embedded model")


def add_skip_options(add: Add, **threshold: Any) -> None:
    """How frames are skipped; what is not given is as the predictor has it. `threshold`: options of --threshold."""
    add("--strategy", metavar="NAME", help="naive (default), mask_aware or memory_guided; --threshold is in its unit")
    add("--threshold", type=float, metavar="T", **threshold)
    add("--warp", choices=("auto", "flow", "none"), help="carry masks along by optical flow, or copy them (none)")
    add("--lookahead", type=int, metavar="FRAMES", help="answer skipped frames from both sides (memory_guided)")
    add("--max-consecutive-skips", type=int, metavar="FRAMES", help="then process a frame (default: no limit)")


def given_skip_options(args: argparse.Namespace) -> dict[str, Any]:
    """What of `add_skip_options` but the threshold the command line says, as fields of `SkipOptions`."""
    names = ("strategy", "lookahead", "max_consecutive_skips")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.warp is not None:
        given["warp"] = None if args.warp == "none" else args.warp
    return given


def guard_of(args: argparse.Namespace) -> TrackGuard | None:
    """The guard that `add_model_options` lets ask for."""
    from sam2.track_guard import TrackGuard

    return TrackGuard() if args.guard else None


class Progress:
    """One bar over all frames of this process, with the name of what is tracked and the skip rate so far."""

    def __init__(self, total: int, *, is_shown: bool) -> None:
        from tqdm import tqdm

        is_shown = is_shown and sys.stderr is not None  # None where it was closed, as a daemon's is
        self.bar = tqdm(total=total, unit="frame", disable=not is_shown)
        self.skipped = 0

    def start(self, name: str) -> None:
        """Go on to another video."""
        self.bar.set_description(name)

    def count(self, decision: FrameDecision) -> None:
        """Count a frame."""
        from sam2.frame_skipping import SKIPPED

        self.skipped += decision.action in SKIPPED
        self.bar.set_postfix_str(f"skipped {self.skipped / (self.bar.n + 1):.0%}", refresh=False)
        self.bar.update()


def exit_code(act: Callable[[], int], *, resumes: bool = True) -> int:
    """Run a command; what makes it impossible is one line on standard error and the exit code 2.

    resumes: whether the command takes --resume.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal or file cannot show is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return act()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped" + "; the same command with --resume goes on" * resumes, file=sys.stderr)
        return 130

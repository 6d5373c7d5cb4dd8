"""What a guard changes: objects that were hidden are found again, wrong masks are called suspect, cuts are noticed.

    python benchmarks/track_guard.py                                            # 50 drawn clips, needs no data
    python benchmarks/track_guard.py --davis_root DAVIS --picture hidden.png    # and every sequence of a folder
    python benchmarks/track_guard.py --davis_root DAVIS --search-factor 1.25    # objects are looked for in regions

Each clip is tracked four times after a mask on its first frame: as it is, and with each object hidden for some frames
in the middle, under a grey box a little larger than itself; without a guard and with `TrackGuard()`. J&F as
`eval_davis_jf.py` counts it, of the hidden ones over the frames after the box is gone.

Of all masks that were shown on the hidden clips with the guard it counts the wrong ones, which miss their object (IoU
below 0.5, or shown where nothing is), and how many of them, and of the others, the guard doubts. Cuts to be found are
those from each clip to the next one. The drawn clips are those of `embedded_model.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.embedded_model import (
    Clip,
    Drawn,
    Model,
    add_clip_options,
    check_clip_options,
    draw,
    drawn_of,
    predictor_of,
    read,
)
from sam2.command_line import Parser, check_model_options, exit_code
from sam2.results import FrameResult
from sam2.track_guard import TrackGuard
from sam2.utils.davis import DavisRoot
from sam2.utils.scene_cuts import ColourWatch, colour_distance, colour_histogram
from sam2.utils.video_io import overlay
from sam2.utils.vos_metrics import score_label_maps

GREY, MARGIN = 128, 0.1  # of the box that hides an object; how much longer it is on each side
LEAST_FRAMES = 9
PICTURE_WIDTH, PICTURE_COLUMNS = 320, 6


class Masks(NamedTuple):
    """How many masks were shown of objects, and how many of them doubted."""

    wrong: int
    doubted_wrong: int
    right: int
    doubted_right: int


@dataclass(frozen=True)
class Outcome:
    """A clip: J&F as it is, and after its objects were hidden, without and with a guard; and the masks of the last."""

    clip: str
    is_drawn: bool
    plain: float
    plain_guarded: float
    hidden: float
    hidden_guarded: float
    masks: Masks


class Changes(NamedTuple):
    """How far the colours of a clip change from frame to frame, and its first and last frame, RGB uint8."""

    within: list[float]
    first: np.ndarray
    last: np.ndarray


def hidden_frames(clip: Clip) -> range:
    """The second third of the frames, or as much of it as ten frames."""
    third = len(clip.labels) // 3
    return range(third, third + min(third, 10))


def hide(clip: Clip) -> Clip:
    """The clip with its objects hidden on `hidden_frames`."""
    frames, labels = np.stack(list(clip.pictures())), [each.copy() for each in clip.labels]
    for t in hidden_frames(clip):
        for obj_id in clip.obj_ids:
            ys, xs = np.nonzero(clip.labels[t] == obj_id)
            if len(xs):
                margin = round(MARGIN * max(np.ptp(xs), np.ptp(ys))) + 2
                rows = slice(max(ys.min() - margin, 0), ys.max() + margin + 1)
                columns = slice(max(xs.min() - margin, 0), xs.max() + margin + 1)
                frames[t, rows, columns] = GREY
                labels[t][rows, columns] = 0
    return clip._replace(frames=frames, labels=labels)


def track(predictor: Any, clip: Clip, guard: TrackGuard | None) -> list[FrameResult]:
    """All frames after a mask of each object on the first one."""
    predictor.guard = guard
    with predictor.open(clip.frames if isinstance(clip.frames, np.ndarray) else list(clip.frames)) as state:
        for obj_id in clip.obj_ids:
            predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
        return list(predictor.propagate_results(state, progress=False))


def j_and_f(clip: Clip, results: Sequence[FrameResult], first: int = 0) -> float:
    """Of the frames after `first`, the last one left out."""
    shown = [result.label_map() for result in results[first:]]
    return score_label_maps(clip.name, clip.labels[first:], shown, clip.obj_ids).scores.mean


def count_masks(clip: Clip, results: Sequence[FrameResult]) -> Masks:
    """Masks of all frames but the prompted one; empty ones are not shown."""
    wrong = right = doubted_wrong = doubted_right = 0
    for result in results[1:]:
        for each in result.objects:
            if each.area == 0:
                continue
            truth = clip.labels[result.frame] == each.obj_id
            is_right = (truth & each.mask).sum() >= 0.5 * (truth | each.mask).sum()
            is_doubted = each.status == "suspect"
            right, doubted_right = right + is_right, doubted_right + (is_right and is_doubted)
            wrong, doubted_wrong = wrong + (not is_right), doubted_wrong + (not is_right and is_doubted)
    return Masks(*map(int, (wrong, doubted_wrong, right, doubted_right)))


def measure(clip: Clip, model: Model) -> Outcome:
    """One clip in all four ways."""
    predictor, covered, start = predictor_of(model), hide(clip), hidden_frames(clip)[-1]
    guarded = track(predictor, covered, TrackGuard())
    return Outcome(
        clip.name,
        clip.difficulty is not None,
        j_and_f(clip, track(predictor, clip, None)),
        j_and_f(clip, track(predictor, clip, TrackGuard())),
        j_and_f(covered, track(predictor, covered, None), start),
        j_and_f(covered, guarded, start),
        count_masks(covered, guarded),
    )


def colour_changes(clip: Clip) -> Changes:
    """The clip's own."""
    pictures, watch = list(clip.pictures()), ColourWatch()
    changes = [watch.change(t, picture) for t, picture in enumerate(pictures)]  # None for the first frame
    return Changes([change for change in changes if change is not None], pictures[0], pictures[-1])


def measure_drawn(number: int, clips: Drawn, model: Model) -> tuple[Outcome, Changes]:
    """A held-out clip."""
    clip = draw(number, clips)
    return measure(clip, model), colour_changes(clip)


def measure_sequence(root: DavisRoot, name: str, model: Model) -> tuple[Outcome, Changes]:
    """A sequence of a folder."""
    clip = read(root, name)
    if len(clip.labels) < LEAST_FRAMES:
        raise ValueError(f"{name}: it has {len(clip.labels)} frames, {LEAST_FRAMES} are needed to hide objects on some")
    return measure(clip, model), colour_changes(clip)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line per sequence, and two for all drawn clips: means, and what the guard gains with its standard error."""
    lines = [f"{'J&F':24}{'as it is':>12}{'guarded':>12}{'hidden':>12}{'guarded':>12}"]
    for each in (each for each in outcomes if not each.is_drawn):
        lines.append(_line(each.clip, [each.plain, each.plain_guarded, each.hidden, each.hidden_guarded]))
    drawn = [(e.plain, e.plain_guarded, e.hidden, e.hidden_guarded) for e in outcomes if e.is_drawn]
    if drawn:
        figures = np.array(drawn)
        lines.append(_line(f"{len(drawn)} drawn", figures.mean(axis=0)))
    if len(drawn) > 1:
        gains = figures[:, 1::2] - figures[:, ::2]
        errors = gains.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        plain, hidden = (f"{gain:+.3f} ({error:.3f})" for gain, error in zip(gains.mean(axis=0), errors, strict=True))
        lines.append(f"{'  gain (standard error)':24}{plain:>24}{hidden:>24}")
    masks = Masks(*np.sum([each.masks for each in outcomes], axis=0).tolist())
    others = f"{masks.doubted_right} of {masks.right} others"
    return "\n".join([*lines, f"doubted: {masks.doubted_wrong} of {masks.wrong} wrong masks, {others}"])


def _line(name: str, figures: Iterable[float]) -> str:
    return f"{name:24}" + "".join(f"{figure:12.3f}" for figure in figures)


def cuts(changes: Sequence[Changes]) -> str:
    """How many cuts between the clips are found, and what else is taken for one."""
    limit, found, count = TrackGuard().cut_distance, 0, 0
    for before, after in itertools.pairwise(changes):
        distance = colour_distance(colour_histogram(before.last), colour_histogram(after.first))
        found, count = found + (distance > limit), count + 1
    within = [change for each in changes for change in each.within]
    alarms = sum(change > limit for change in within)
    return f"cuts: {found} of {count} found, {alarms} of {len(within)} other frames taken for one"


def draw_picture(clip: Clip, model: Model) -> Image.Image:
    """Frames of a clip whose objects are hidden for a while, from just before: without a guard, and with one."""
    covered, hidden = hide(clip), hidden_frames(clip)
    frames = np.linspace(hidden[0] - 2, len(clip.labels) - 1, PICTURE_COLUMNS).round().astype(int)
    rows = []
    for guard in (None, TrackGuard()):
        results, pictures = track(predictor_of(model), covered, guard), list(covered.pictures())
        tiles = [Image.fromarray(overlay(pictures[t], results[t].label_map())) for t in frames]
        size = (PICTURE_WIDTH, round(PICTURE_WIDTH * tiles[0].height / tiles[0].width))
        rows.append(np.concatenate([np.asarray(tile.resize(size, Image.Resampling.LANCZOS)) for tile in tiles], axis=1))
    return Image.fromarray(np.concatenate(rows))


def run(args: argparse.Namespace) -> list[Outcome]:
    """Measure, print, write."""
    model = Model(args.config, args.checkpoint, args.dtype, 1, args.image_size, args.search_factor)
    root = None if args.davis_root is None else DavisRoot.open(args.davis_root)
    names = [] if root is None else root.sequences(args.split)
    drawn = drawn_of(args)
    predictor_of(model)  # weights that cannot be loaded are reported before anything is measured
    jobs = [functools.partial(measure_sequence, root, name, model) for name in names if root is not None]
    jobs += [functools.partial(measure_drawn, number, drawn, model) for number in range(args.clips)]
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = [job.result() for job in [pool.submit(job) for job in jobs]]
    outcomes = [outcome for outcome, _ in done]
    print("\n".join([table(outcomes), cuts([changes for _, changes in done])]))
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n", encoding="utf-8")
    if args.picture:
        draw_picture(draw(0, drawn) if root is None else read(root, names[0]), model).save(args.picture)
    return outcomes


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_clip_options(add, LEAST_FRAMES)
    add("--config", help="model config (default: the embedded model)")
    add("--checkpoint", help="weights that belong to --config")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--image-size", type=int, metavar="PIXELS", help="side frames are resized to (default: the config's)")
    add("--search-factor", type=float, metavar="TIMES", help="looks around each object only (default: everywhere)")
    add("--processes", type=int, default=2, help="one thread each (default: 2)")
    add("--json", type=Path, help="where the figures go")
    add("--picture", type=Path, help="a clip with hidden objects, without a guard and with one")
    args = parser.parse_args(argv)
    check_clip_options(parser, args, LEAST_FRAMES)
    if args.processes < 1:
        parser.error("--processes must be 1 or more")
    check_model_options(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    return exit_code(lambda: command(args), resumes=False)


def command(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How well a small model tracks: held-out drawn clips and a DAVIS-layout folder, after a mask, a box or one click.

    python benchmarks/embedded_model.py                                          # 50 drawn clips, needs no data
    python benchmarks/embedded_model.py --davis_root DAVIS --picture masks.png   # and every sequence of a folder
    python benchmarks/embedded_model.py --davis_root DAVIS --image-size 640 --methods mask   # sees smaller things
    python benchmarks/embedded_model.py --davis_root DAVIS --search-factor 1.25              # looks around each object
    python benchmarks/embedded_model.py --davis_root DAVIS --config mine.yaml --checkpoint outputs/mine/model.pt
    python benchmarks/embedded_model.py --first 1000 --methods mask --config nano --checkpoint outputs/mine/model.pt \\
        --beside checkpoints/sam2.1_hiera_nano.pt   # are mine better? other clips than those of the tables

J&F as `eval_davis_jf.py` counts it: mean over objects, the first and the last frame left out. Objects that touch go to
the one with the higher logit. Nothing is skipped. Two ways that need no network stand beside the model: the first mask
copied to every frame, and the first mask carried from frame to frame by optical flow. A box is the mask's own, a click
the point deepest inside it.

The drawn clips have the seeds 0, 1, ..., or those from `--first` on, which training never draws, are 480p and as
difficult as training's, evenly from 0 to `--difficulty`; `--packs 1` and `--strings 1` put something on an object of
each, or thin lines. Speed is that of one object, end to end: opening, reading, tracking, label maps. `--beside`
measures other weights of the same config on the same clips, and prints the mean of the differences in J&F, clip by
clip, with its standard error: below twice that error a difference may well be chance.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sam2.build_sam import EMBEDDED, build_sam2_video_predictor
from sam2.command_line import Add, Parser, check_model_options, exit_code
from sam2.modeling.sam2_utils import sample_one_point_from_error_center
from sam2.track_guard import TrackGuard
from sam2.utils.davis import DavisRoot, merge_masks, read_label_map
from sam2.utils.drawn_clips import random_clip
from sam2.utils.optical_flow import estimate_flow, to_grey, warp_mask_forward
from sam2.utils.video_io import ImageFiles, overlay
from sam2.utils.vos_metrics import Scores, annotated_objects, score_label_maps
from training.sources import FIRST_TRAINING_SEED

PROMPTS = ("mask", "box", "click")
WITHOUT_NETWORK = {"copied": "first mask copied", "flow": "optical flow chained"}
METHODS = (*WITHOUT_NETWORK, *PROMPTS)
LEAST_FRAMES = 3  # the first and the last one are not scored
DRAWN_SIZE = (480, 854)  # height, width
FLOW_SIDE = 240  # pixels of the shorter side that flow is estimated at
PICTURE_WIDTH, PICTURE_COLUMNS = 400, 4


class Clip(NamedTuple):
    """Frames, as paths or RGB uint8 (T, H, W, 3), and each one's object ids (H, W) uint8; `difficulty` if drawn."""

    name: str
    frames: list[Path] | np.ndarray
    labels: list[np.ndarray]
    difficulty: float | None = None

    @property
    def obj_ids(self) -> list[int]:
        """The objects of the first frame."""
        return np.unique(self.labels[0][self.labels[0] > 0]).tolist()

    def pictures(self) -> Iterable[np.ndarray]:
        """The frames, RGB uint8 (H, W, 3)."""
        if isinstance(self.frames, np.ndarray):
            return self.frames
        files = ImageFiles(self.frames)
        return (files.read(t) for t in range(len(self.frames)))


@dataclass(frozen=True)
class Row:
    """A method on a clip: J, F and their mean, 0 to 1, and J by object; `beside`: of the other weights."""

    clip: str
    method: str
    j: float
    f: float
    j_and_f: float
    j_by_object: dict[int, float]
    difficulty: float | None = None
    beside: bool = False

    @property
    def column(self) -> str:
        """Where the row stands in the table."""
        return f"{self.method}, beside" if self.beside else self.method


# The methods: a clip -> label maps of all frames


def copied(clip: Clip) -> list[np.ndarray]:
    """The first frame's label map on every frame."""
    return [clip.labels[0]] * len(clip.labels)


def chained_flow(clip: Clip) -> list[np.ndarray]:
    """Each object's mask carried from frame to frame."""
    greys = [to_grey(picture, FLOW_SIDE) for picture in clip.pictures()]
    logits = np.stack([np.where(clip.labels[0] == i, 1.0, -1.0).astype(np.float32) for i in clip.obj_ids])
    shown = [clip.labels[0]]
    for before, now in zip(greys[:-1], greys[1:], strict=True):
        logits = warp_mask_forward(logits, estimate_flow(now, before))
        shown.append(merge_masks(clip.obj_ids, logits))
    return shown


def tracked(predictor: Any, prompt: str, clip: Clip) -> list[np.ndarray]:
    """What the predictor shows after one prompt per object on the first frame."""
    with predictor.open(clip.frames if isinstance(clip.frames, np.ndarray) else list(clip.frames)) as state:
        for obj_id in clip.obj_ids:
            add_prompt(predictor, state, obj_id, clip.labels[0] == obj_id, prompt)
        return [merge_masks(ids, logits) for _, ids, logits in predictor.propagate_in_video(state, progress=False)]


def add_prompt(predictor: Any, state: Any, obj_id: int, mask: np.ndarray, prompt: str) -> None:
    """Prompt an object on the first frame by its mask, bool (H, W), by its box or by one click."""
    if prompt == "mask":
        predictor.add_new_mask(state, 0, obj_id, mask)
    elif prompt == "box":
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        predictor.add_new_points_or_box(state, 0, obj_id, box=[x, y, x + width, y + height])
    else:
        points, labels = sample_one_point_from_error_center(torch.from_numpy(mask)[None, None], None)
        predictor.add_new_points_or_box(state, 0, obj_id, points=points[0], labels=labels[0])


# Measuring


def method(name: str, predictor: Any) -> Callable[[Clip], list[np.ndarray]]:
    """What answers a clip: one of `METHODS`."""
    plain = {"copied": copied, "flow": chained_flow}
    return plain[name] if name in plain else functools.partial(tracked, predictor, name)


def row_of(clip: Clip, method: str, shown: Sequence[np.ndarray]) -> Row:
    """Score a method's label maps."""
    scores = score_label_maps(clip.name, clip.labels, shown, clip.obj_ids)
    mean: Scores = scores.scores
    by_object = {each.obj_id: each.scores.region.mean for each in scores.objects}
    return Row(clip.name, method, mean.region.mean, mean.contour.mean, mean.mean, by_object, clip.difficulty)


class Model(NamedTuple):
    """Which network, and how it computes; None for the embedded one."""

    config: str | None
    checkpoint: str | None
    dtype: str
    threads: int
    image_size: int | None = None
    search_factor: float | None = None
    guard: TrackGuard | None = None


def measure(clip: Clip, model: Model, names: Sequence[str]) -> list[Row]:
    """The methods of these names on one clip."""
    predictor = predictor_of(model)
    return [row_of(clip, WITHOUT_NETWORK.get(name, name), method(name, predictor)(clip)) for name in names]


@functools.lru_cache(maxsize=2)  # the model and the other weights
def predictor_of(model: Model) -> Any:
    """The predictor of this process, without skipping."""
    torch.set_num_threads(model.threads)
    cv2.setNumThreads(model.threads)
    predictor = build_sam2_video_predictor(
        model.config, model.checkpoint, device="cpu", dtype=model.dtype, image_size=model.image_size,
        search_factor=model.search_factor, guard=model.guard,
    )  # fmt: skip
    predictor.skip_mad_threshold = 0
    return predictor


class Drawn(NamedTuple):
    """The held-out clips: how many from which seed on, of how many frames, how difficult the last one is, with what."""

    first: int
    count: int
    num_frames: int
    difficulty: float
    packs: float = 0.0
    strings: float = 0.0


def drawn_of(args: argparse.Namespace) -> Drawn:
    """The held-out clips that a command line asks for."""
    return Drawn(args.first, args.clips, args.frames, args.difficulty, args.packs, args.strings)


def draw(number: int, clips: Drawn) -> Clip:
    """Clip `number`, from 0, of the held-out ones."""
    hard, seed = clips.difficulty * number / max(clips.count - 1, 1), clips.first + number
    clip = random_clip(seed, clips.num_frames, DRAWN_SIZE, difficulty=hard, packs=clips.packs, strings=clips.strings)
    return Clip(f"drawn {seed}", clip.frames, list(clip.labels), hard)


def measure_drawn(number: int, clips: Drawn, model: Model, names: Sequence[str]) -> list[Row]:
    """The methods of these names on a held-out clip."""
    return measure(draw(number, clips), model, names)


def read(root: DavisRoot, name: str) -> Clip:
    """A sequence of a folder. Raises ValueError where its first frame shows no object."""
    labels = annotated_objects([read_label_map(path) for path in root.annotation_paths(name)]).label_maps
    clip = Clip(name, root.frame_paths(name), labels)
    if not clip.obj_ids:
        raise ValueError(f"{name}: the first frame's annotation has no object")
    return clip


def measure_sequence(root: DavisRoot, name: str, model: Model, names: Sequence[str]) -> list[Row]:
    """The methods of these names on a sequence of a folder."""
    return measure(read(root, name), model, names)


def frames_per_second(clip: Clip, model: Model, repeats: int) -> float:
    """Median speed of tracking the clip's first object alone from opening to the last label map."""
    predictor = predictor_of(model)
    obj_id = clip.obj_ids[0]
    alone = clip._replace(labels=[np.where(labels == obj_id, labels, np.uint8(0)) for labels in clip.labels])
    tracked(predictor, "mask", alone._replace(frames=alone.frames[:3], labels=alone.labels[:3]))  # kernels are chosen
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        tracked(predictor, "mask", alone)
        seconds.append(time.perf_counter() - start)
    return len(alone.frames) / float(np.median(seconds))


# Showing


def table(rows: Sequence[Row]) -> str:
    """A line per clip of a folder, then the drawn clips by difficulty, and a column per method."""
    names = list(dict.fromkeys(row.column for row in rows))
    groups = {row.clip: [r for r in rows if r.clip == row.clip] for row in rows if row.difficulty is None}
    drawn = sorted((row for row in rows if row.difficulty is not None), key=lambda row: row.difficulty or 0.0)
    if drawn:
        count = len(drawn) // len(names)
        thirds = np.array_split(np.arange(count), min(3, count))
        for part in thirds:
            own = drawn[part[0] * len(names) : (part[-1] + 1) * len(names)]
            groups[f"{len(part)} drawn, {own[0].difficulty:.2f}-{own[-1].difficulty:.2f}"] = own
        groups[f"{count} drawn"] = drawn
    lines = ["".join([f"{'J&F':24}", *(f"{name:>22}" for name in names)])]
    for group, own in groups.items():
        figures = [np.mean([row.j_and_f for row in own if row.column == name]) for name in names]
        lines.append("".join([f"{group:24}", *(f"{figure:22.3f}" for figure in figures)]))
    return "\n".join(lines)


def differences(rows: Sequence[Row]) -> list[str]:
    """How much better than the other weights: a line per prompt, for a folder's sequences and for drawn clips."""
    lines = []
    for name in dict.fromkeys(row.method for row in rows if row.beside):
        for kind in ("sequence", "drawn clip"):
            rivals = [row for row in rows if row.method == name and (row.difficulty is None) == (kind == "sequence")]
            own, other = ({row.clip: row.j_and_f for row in rivals if row.beside is which} for which in (False, True))
            if own:
                lines.append(f"{name}: {_mean_gain([own[clip] - other[clip] for clip in own], kind)}")
    return lines


def _mean_gain(gains: Sequence[float], kind: str) -> str:
    """The mean, with the standard error where several clips tell of it."""
    mean, count = f"J&F {np.mean(gains):+.3f} over the other weights", len(gains)
    if count == 1:
        return f"{mean} on 1 {kind}"
    return f"{mean} on {count} {kind}s, standard error {np.std(gains, ddof=1) / np.sqrt(count):.3f}"


def draw_picture(clips: Sequence[Clip], model: Model) -> Image.Image:
    """Frames of each clip with the masks that were found after a mask on the first frame, a row per clip."""
    rows = []
    for clip in clips:
        shown, pictures = tracked(predictor_of(model), "mask", clip), list(clip.pictures())
        tiles = []
        for t in np.linspace(0, len(shown) - 1, PICTURE_COLUMNS).round().astype(int):
            tile = Image.fromarray(overlay(pictures[t], shown[t]))
            height = round(PICTURE_WIDTH * tile.height / tile.width)
            tiles.append(np.asarray(tile.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)))
        rows.append(np.concatenate(tiles, axis=1))
    return Image.fromarray(np.concatenate(rows))


def run(args: argparse.Namespace) -> list[Row]:
    """Measure, print, write."""
    guard = TrackGuard() if args.guard else None
    model = Model(args.config, args.checkpoint, args.dtype, 1, args.image_size, args.search_factor, guard)
    root = None if args.davis_root is None else DavisRoot.open(args.davis_root)
    names = [] if root is None else root.sequences(args.split)
    drawn = drawn_of(args)
    asked = [(model, args.methods, False)]
    if args.beside is not None:
        prompts = [name for name in args.methods if name in PROMPTS]
        other = model._replace(config=args.config or EMBEDDED.config_file, checkpoint=args.beside)
        asked.append((other, prompts, True))
    for each, _, _ in asked:
        predictor_of(each)  # weights that cannot be loaded are reported before anything is measured
    on_clips = [functools.partial(measure_sequence, root, name) for name in names if root is not None]
    on_clips += [functools.partial(measure_drawn, number, drawn) for number in range(args.clips)]
    rows: list[Row] = []
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [(pool.submit(on_clip, which, how), beside) for on_clip in on_clips for which, how, beside in asked]
        for job, beside in jobs:
            rows += [replace(row, beside=beside) for row in job.result()]
    print("\n".join([table(rows), *differences(rows)]))
    alone = model._replace(threads=args.threads)
    clips = [read(root, name) for name in names] if root is not None else []
    for clip in clips or [draw(0, drawn._replace(count=1, difficulty=0.0))]:
        print(f"{clip.name}: {frames_per_second(clip, alone, args.repeats):.1f} frames/s, {args.threads} threads")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if args.picture:
        shown = clips or [draw(number, drawn._replace(count=3)) for number in range(3)]
        draw_picture(shown, alone).save(args.picture)
    return rows


def add_clip_options(add: Add, least_frames: int) -> None:
    """Which clips are measured: see `check_clip_options`."""
    add("--davis_root", type=Path, help="folder with JPEGImages and Annotations")
    add("--split", default="val", help="ImageSets/<2017 or other>/<split>.txt (default: val)")
    add("--clips", type=int, default=50, help="drawn clips (default: 50)")
    add("--first", type=int, default=0, metavar="SEED", help="of the first drawn clip (default: 0)")
    add("--frames", type=int, default=24, help=f"of a drawn clip, at least {least_frames} (default: 24)")
    add("--difficulty", type=float, default=0.9, help="of the hardest drawn clip, 0 to 1 (default: 0.9)")
    for name, what in (("packs", "another object sits"), ("strings", "thin lines hang")):
        add(f"--{name}", type=float, default=0.0, help=f"chance that {what} on an object of a drawn clip (default: 0)")


def check_clip_options(parser: Parser, args: argparse.Namespace, least_frames: int) -> None:
    """Refuse what leaves nothing to measure, or clips that training draws."""
    if args.clips < 0 or args.frames < least_frames:
        parser.error(f"--clips must be 0 or more, --frames {least_frames} or more")
    if args.clips == 0 and args.davis_root is None:
        parser.error("nothing to measure: give --davis_root or --clips")
    for name in ("difficulty", "packs", "strings"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"--{name} must be 0 to 1, got {getattr(args, name)}")
    if not 0 <= args.first <= FIRST_TRAINING_SEED - args.clips:
        parser.error(
            f"--first must leave the seeds of all clips at 0 or more, below {FIRST_TRAINING_SEED}, got {args.first}"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_clip_options(add, LEAST_FRAMES)
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="what is measured (default: everything)")
    add("--config", help="model config (default: the embedded model)")
    add("--checkpoint", help="weights that belong to --config")
    add("--beside", metavar="CHECKPOINT", help="other weights of the same config, measured on the same clips")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--image-size", type=int, metavar="PIXELS", help="side frames are resized to (default: the config's)")
    add("--search-factor", type=float, metavar="TIMES", help="looks around each object only (default: everywhere)")
    add("--guard", action="store_true", help="leaves masks out of memory that cannot be believed (TrackGuard)")
    add("--processes", type=int, default=2, help="that measure accuracy, one thread each (default: 2)")
    add("--threads", type=int, default=2, help="while speed is measured (default: 2)")
    add("--repeats", type=int, default=3, help="runs that speed is the median of (default: 3)")
    add("--json", type=Path, help="where the figures go")
    add("--picture", type=Path, help="where a picture of the masks goes")
    args = parser.parse_args(argv)
    check_clip_options(parser, args, LEAST_FRAMES)
    if min(args.processes, args.threads, args.repeats) < 1:
        parser.error("--processes, --threads and --repeats must be 1 or more")
    if args.beside is not None and not set(args.methods) & set(PROMPTS):
        parser.error(f"--beside needs one of --methods {' '.join(PROMPTS)}")
    check_model_options(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    return exit_code(lambda: command(args))


def command(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Memory, start and number of objects beside the original: one process each, the same weights and frames.

    python benchmarks/any_length.py --config nano --image_size 256     # a small model: minutes on a CPU
    python benchmarks/any_length.py --frames 100 2000 --device cuda
    python benchmarks/any_length.py --parts start objects              # some of: memory, start, objects, videos

`sam2==1.1.0` is installed from PyPI into its own folder. Clips are drawn. Memory is the peak resident size of the
process (on a GPU also the peak of its allocator), without skipping, so that every frame leaves all it can. Every figure
is of a fresh process. Times to the first mask are of one run each; for the objects the two take turns frame by frame.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NANO = "configs/sam2.1/sam2.1_hiera_nano.yaml"
SIZE = (480, 854)


# Worker: one package, one measurement


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """Resident size of this process now, without what the C library holds back for later."""
    sizes = []
    for _ in range(3):  # threads may still be ending
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        time.sleep(0.1)
    return min(sizes)


class Session:
    """A predictor of either package, and how to time it."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        from sam2.build_sam import build_sam2_video_predictor

        self.torch, self.job = torch, job
        overrides = [f"++model.image_size={job['image_size']}", "++model.fill_hole_area=0"]
        self.predictor = build_sam2_video_predictor(
            job["config"], job["checkpoint"], device=job["device"], hydra_overrides_extra=overrides
        )
        # The caller's autocast counts in both packages.
        self.precision = torch.autocast(job["device"], getattr(torch, job["dtype"]), enabled=job["dtype"] != "float32")
        if hasattr(self.predictor, "skip_mad_threshold"):
            self.predictor.skip_mad_threshold = 0

    def start(self, objects: int) -> tuple[Any, Any]:
        """Open the clip, prompt `objects` objects on the first frame, and set out: (state, iterator)."""
        state = self.predictor.init_state(self.job["frames"], **self.job.get("init", {}))
        for i in range(objects):
            box = [60 + 45 * i, 60 + 20 * i, 160 + 45 * i, 180 + 20 * i]
            self.predictor.add_new_points_or_box(state, 0, i, box=box)
        return state, self.predictor.propagate_in_video(state)

    def seconds(self, act: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        act()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.job["device"] == "cuda":
            self.torch.cuda.synchronize()


def measure_memory(session: Session) -> dict[str, Any]:
    _, answers = session.start(session.job["objects"])
    count = sum(1 for _ in answers)
    found: dict[str, Any] = {"frames": count, "peak_mb": peak_mb()}
    if session.job["device"] == "cuda":
        found["gpu_peak_mb"] = session.torch.cuda.max_memory_allocated() / 2**20
    return found


def measure_start(session: Session) -> dict[str, Any]:
    first = session.seconds(lambda: next(session.start(1)[1]))
    warm = session.seconds(lambda: next(session.start(1)[1]))
    state, answers = session.start(1)
    next(answers)
    frame = min(session.seconds(lambda: next(answers)) for _ in range(3))
    return {"to_first_mask": first, "again": warm, "one_frame": frame}


def measure_videos(session: Session) -> dict[str, Any]:
    """Resident memory after each of 20 videos (on a GPU what its allocator holds)."""
    found = []
    for _ in range(20):
        state, answers = session.start(2)
        for _ in answers:
            pass
        if hasattr(state, "close"):
            state.close()
        else:
            session.predictor.reset_state(state)
        del state, answers
        on_gpu = session.job["device"] == "cuda"
        found.append(session.torch.cuda.memory_allocated() / 2**20 if on_gpu else resident_mb())
    return {"after_mb": found}


def work(job: dict[str, Any]) -> None:
    import torch

    measure = {"memory": measure_memory, "start": measure_start, "videos": measure_videos}[job["part"]]
    session = Session(job)
    with torch.inference_mode(), session.precision:
        measured = measure(session)
    print("RESULT " + json.dumps(measured), flush=True)


# Parent


def run(path: Path, job: dict[str, Any], log: Path) -> dict[str, Any] | None:
    """One measurement in a process of its own; None if it fails, which the log tells about."""
    # One heap for all threads: what is free in the heap of another thread cannot be handed back, and would be counted.
    settings = {"MALLOC_ARENA_MAX": "1"} if job["part"] == "videos" else {}
    with log.open("a") as errors:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)],
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "PYTHONPATH": str(path), **settings},
            cwd=log.parent, text=True,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        print(f"  failed: {log.read_text()[-500:]}")
        return None
    return json.loads(lines[-1].removeprefix("RESULT "))


def time_objects(
    folder: Path, ours: tuple[Path, dict[str, Any]], theirs: tuple[Path, dict[str, Any]], objects: int, timed: int
) -> dict[str, float]:
    """Seconds per frame of both packages, which take turns frame by frame."""
    from beside_original import WITH_LOADING, Worker, compare, warm_up_frames

    clicks = [(60 + 45 * i, 100 + 20 * i) for i in range(objects)]
    warm_up = warm_up_frames(ours[1]["device"])
    extra = {"frames": draw(folder, warm_up + timed), "clicks": clicks}
    sides = {"ours": ours, "original": theirs}
    workers = {who: Worker(who, path, {**job, **extra}, folder / f"{who}.log") for who, (path, job) in sides.items()}
    result = compare(workers, warm_up + timed, warm_up)
    for worker in workers.values():
        worker.process.kill()
    found: dict[str, float] = {}
    for part in ("whole frame", WITH_LOADING):
        times = {who: result["seconds"][who][part] for who in workers}
        found |= {f"{who}, {part}": statistics.median(values) for who, values in times.items()}
        ratios = [a / b for a, b in zip(times["ours"], times["original"], strict=True)]
        found[f"ours / original, {part}"] = statistics.median(ratios)
    return {**found, "largest difference": result["difference"]}


def draw(folder: Path, count: int) -> str:
    """A folder of `count` frames: 20 drawn ones, linked over and over."""
    from PIL import Image

    from sam2.utils.drawn_clips import draw_clip

    drawn = folder / "drawn"
    if not drawn.is_dir():
        drawn.mkdir()
        clip = draw_clip(num_frames=20, height=SIZE[0], width=SIZE[1], num_objects=2, seed=0)
        for i, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(drawn / f"{i:05d}.jpg", quality=95)
    frames = folder / f"frames{count}"
    frames.mkdir(exist_ok=True)
    for i in range(count):
        there_and_back = i % 38 if i % 38 < 20 else 38 - i % 38
        link = frames / f"{i:05d}.jpg"
        if not link.exists():
            link.symlink_to(drawn / f"{there_and_back:05d}.jpg")
    return str(frames)


def draw_video(folder: Path, count: int) -> str:
    """The same frames as an MP4 file."""
    import cv2

    path = folder / f"clip{count}.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, SIZE[::-1])
    for name in sorted(Path(draw(folder, count)).iterdir()):
        picture = cv2.imread(str(name))
        assert picture is not None
        writer.write(picture)
    writer.release()
    return str(path)


class Beside:
    """Both packages, where they work, and what was measured so far."""

    def __init__(self, folder: Path, original: Path, config: str, job: dict[str, Any]) -> None:
        self.folder = folder
        self.ours = (ROOT, {**job, "config": config})
        self.theirs = (original, {**job, "config": config})
        self.found: dict[str, Any] = {}

    def measure(self, part: str, label: str, side: tuple[Path, dict[str, Any]], **extra: Any) -> None:
        """One part for one package, in a process of its own."""
        found = run(side[0], {**side[1], "part": part, **extra}, self.folder / "log.txt")
        if found is not None:
            self.report(part, label, found)

    def report(self, part: str, label: str, found: dict[str, Any]) -> None:
        self.found[f"{part} {label}"] = found
        print(f"{part:8} {label:24} {json.dumps(found)}", flush=True)


def memory(both: Beside, args: argparse.Namespace) -> None:
    for keep in ("window", "all"):
        for count in args.frames if keep == "window" else args.original_frames:
            extra = {"frames": draw(both.folder, count), "objects": 1, "init": {"keep": keep}}
            both.measure("memory", f"ours, {keep}, {count} frames", both.ours, **extra)
    for count in args.original_frames:
        frames = draw(both.folder, count)
        both.measure("memory", f"original, {count} frames", both.theirs, frames=frames, objects=1)


def start(both: Beside, args: argparse.Namespace) -> None:
    count = max(args.frames)
    both.measure("start", f"ours, MP4, {count}", both.ours, frames=draw_video(both.folder, count))
    both.measure("start", f"ours, JPEG, {count}", both.ours, frames=draw(both.folder, count))
    for few in args.original_frames:
        both.measure("start", f"original, JPEG, {few}", both.theirs, frames=draw(both.folder, few))


def objects(both: Beside, args: argparse.Namespace) -> None:
    for count in args.objects:
        both.report("objects", str(count), time_objects(both.folder, both.ours, both.theirs, count, args.timed))


def videos(both: Beside, args: argparse.Namespace) -> None:
    for label, side in (("ours", both.ours), ("original", both.theirs)):
        both.measure("videos", label, side, frames=draw(both.folder, 20))


PARTS = {"memory": memory, "start": start, "objects": objects, "videos": videos}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory, start and number of objects beside the original.")
    parser.add_argument("--config", default="configs/sam2.1/sam2.1_hiera_t.yaml")
    parser.add_argument("--image_size", type=int, default=1024)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--checkpoint", type=Path, help="weights of --config (default: random, whose masks are noise)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--frames", nargs="+", type=int, default=[100, 2000], help="lengths of the clips")
    parser.add_argument("--original_frames", nargs="*", type=int, default=[50, 100], help="lengths for the original")
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--timed", type=int, default=5, help="frames timed for each number of objects")
    parser.add_argument("--original", type=Path, default=Path(tempfile.gettempdir()) / "original_sam2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.checkpoint is not None and not args.checkpoint.is_file():
        parser.error(f"--checkpoint: no such file: {args.checkpoint}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
    import torch
    from beside_original import install_original, seeded_weights

    original = install_original(args.original)
    config = NANO if args.config == "nano" else args.config
    # The original finds configs in its own folder only, and has none of this one; ours may have changed.
    if config == NANO or not (original / "sam2" / config).is_file():
        shutil.copy(ROOT / config, original / "sam2" / config)
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "weights.pt" if args.checkpoint is None else args.checkpoint.resolve()
        if args.checkpoint is None:
            torch.save(seeded_weights(config, args.image_size, seed=0), weights)
        job = {"checkpoint": str(weights), "image_size": args.image_size, "device": args.device, "dtype": args.dtype}
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(f"{Path(config).stem} at {args.image_size}, {args.dtype}, {where}, torch {torch.__version__}", flush=True)
        both = Beside(Path(name), original.resolve(), config, job)
        for part in PARTS:
            if part in args.parts:
                PARTS[part](both, args)
    if args.json:
        args.json.write_text(json.dumps(both.found, indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        sys.exit(main())

"""Our SAM 2 beside the original: the same weights and frames, frame by frame in turn, each in a process of its own.

    python benchmarks/beside_original.py                      # tiny at 1024, float32, on the CPU
    python benchmarks/beside_original.py --dtype bfloat16
    python benchmarks/beside_original.py --frames clip/ --config configs/sam2.1/sam2.1_hiera_l.yaml --device cuda

`sam2==1.1.0` is installed from PyPI into its own folder, away from the environment. The two processes take turns, so
that a busy machine slows both alike; figures are medians over the tracked frames, ratios are medians of each frame's
ours / original. The original loads all frames when a clip is opened, ours each when its turn comes: the row "and its
loading" adds to the whole frame what opening the clip took for it. Weights are drawn from a seed: they make every path
numerically visible, and say nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ORIGINAL = "sam2==1.1.0"
PARTS = ("encode", "read memory", "decode", "write memory")
METHODS = {  # the methods that do the parts, in either package
    "ours": ("forward_image", "read_memory", "decode_masks", "write_memory"),
    "original": (
        "forward_image", "_prepare_memory_conditioned_features", "_forward_sam_heads", "_encode_new_memory",
    ),
}  # fmt: skip
WITH_LOADING = "and its loading"
"""The whole frame and what loading it took when the clip was opened. Ours loads a frame when it comes to it."""

SAMPLE_STRIDE = 6  # logits are compared at every so-manieth row and column


# Worker: one package, driven over pipes


class Stopwatch:
    """Sums the time spent in methods, by part."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.synchronize = synchronize

    def watch(self, owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.synchronize()
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.synchronize()
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def work(who: str, job: dict[str, Any]) -> None:
    """Answer one line of JSON per frame: the time of each part, and a sample of the logits."""
    from contextlib import nullcontext

    import torch

    from sam2.build_sam import build_sam2_video_predictor

    def synchronize() -> None:
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    options: dict[str, Any] = {}
    precision: Any = nullcontext()
    if job["dtype"] != "float32":
        if who == "ours":
            options["dtype"] = job["dtype"]
        else:
            precision = torch.autocast(job["device"], getattr(torch, job["dtype"]))
    overrides = [f"++model.image_size={job['image_size']}", "++model.fill_hole_area=0"]
    predictor = build_sam2_video_predictor(
        job["config"], job["checkpoint"], device=job["device"], hydra_overrides_extra=overrides, **options
    )
    if hasattr(predictor, "skip_mad_threshold"):
        predictor.skip_mad_threshold = 0
    watch = Stopwatch(synchronize)
    for name, part in zip(METHODS[who], PARTS, strict=True):
        watch.watch(predictor, name, part)
    with torch.inference_mode(), precision:
        loading = seconds_of_loading(predictor, Path(job["frames"]))
        state = predictor.init_state(job["frames"])
        for obj_id, (x, y) in enumerate(job["clicks"]):
            predictor.add_new_points_or_box(state, 0, obj_id, points=[[x, y]], labels=[1])
        answers = predictor.propagate_in_video(state)
        print(json.dumps({"ready": True, "loading": loading}), flush=True)
        for _ in sys.stdin:
            watch.seconds.clear()
            synchronize()
            start = time.perf_counter()
            answer = next(answers, None)
            synchronize()
            if answer is None:
                break
            seconds = {"whole frame": time.perf_counter() - start, **watch.seconds}
            sample = answer[2][:, 0, ::SAMPLE_STRIDE, ::SAMPLE_STRIDE].float().flatten().cpu().tolist()
            print(json.dumps({"frame": answer[0], "seconds": seconds, "sample": sample}), flush=True)


def seconds_of_loading(predictor: Any, frames: Path) -> float:
    """What one frame more costs when a clip is opened: the original reads all frames then, ours none."""
    files = sorted(frames.iterdir())
    with tempfile.TemporaryDirectory() as name:
        Path(name, files[0].name).symlink_to(files[0].resolve())
        times: dict[str, list[float]] = {name: [], str(frames): []}
        for _ in range(3):
            for path, found in times.items():
                start = time.perf_counter()
                predictor.init_state(path)
                found.append(time.perf_counter() - start)
    one, all_of_them = (statistics.median(found) for found in times.values())
    return max(all_of_them - one, 0.0) / max(len(files) - 1, 1)


# Parent


class Worker:
    """A process that tracks with one of the packages, a frame at a time."""

    def __init__(self, who: str, path: Path, job: dict[str, Any], log: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path)}
        self.who = who
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", who, json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), env=environment, cwd=log.parent,
            text=True,
        )  # fmt: skip
        ready = self._read()
        self.loading = float(ready["loading"]) if ready else 0.0  # seconds a frame, when the clip was opened

    def _read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # other lines are what a package prints of its own accord
                return json.loads(line)
        if self.process.wait() != 0:
            raise SystemExit(f"{self.who} failed:\n{self.log.read_text()[-3000:]}")
        return None

    def step(self) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("next\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()


def install_original(folder: Path) -> Path:
    """The original package alone in `folder`; its dependencies are those of this environment."""
    if not (folder / "sam2").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target",
             str(folder), ORIGINAL],
            check=True, env={**os.environ, "SAM2_BUILD_CUDA": "0"},
        )  # fmt: skip
    return folder


def seeded_weights(config: str, image_size: int, seed: int) -> dict[str, Any]:
    """Weights that depend on nothing but the seed and their names' order, with objects always present."""
    import torch

    from sam2.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor(config, device="cpu", hydra_overrides_extra=[f"++model.image_size={image_size}"])
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(".weight") and value.ndim >= 2:
            noise /= value[0].numel() ** 0.5
        elif name.endswith(".weight"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.02 if name.endswith(".bias") else 0.5
        weights[name] = noise
    weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(10.0)
    return {"model": weights}


def draw_frames(folder: Path, count: int) -> None:
    """A drawn clip as numbered JPEG files."""
    from PIL import Image

    from sam2.utils.drawn_clips import draw_clip

    clip = draw_clip(num_frames=count, height=480, width=854, num_objects=2, seed=0)
    for i, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(folder / f"{i:05d}.jpg", quality=95)


def warm_up_frames(device: str) -> int:
    """Frames that are not timed: the prompted and the first ones; on a GPU until the memory is full (7 maps, 16
    pointers), as its libraries take their time with every length of the memory that is new to them."""
    return 3 if device == "cpu" else 17


def compare(workers: dict[str, Worker], most: int, warm_up: int) -> dict[str, Any]:
    """Step both packages through the clip in turn; the one that goes first changes with every frame."""
    seconds: dict[str, dict[str, list[float]]] = {who: {} for who in workers}
    worst, frames = 0.0, 0
    for turn in range(most):
        order = list(workers.values())[:: 1 if turn % 2 else -1]
        answers = {worker.who: worker.step() for worker in order}
        ours, original = answers["ours"], answers["original"]
        if ours is None or original is None:
            break
        assert ours["frame"] == original["frame"]
        scale = max(map(abs, original["sample"]))
        worst = max(worst, max(abs(a - b) for a, b in zip(ours["sample"], original["sample"], strict=True)) / scale)
        frames += 1
        if "read memory" in original["seconds"] and turn >= warm_up:
            for who, answer in (("ours", ours), ("original", original)):
                for part, value in answer["seconds"].items():
                    seconds[who].setdefault(part, []).append(value)
                loaded = answer["seconds"]["whole frame"] + workers[who].loading
                seconds[who].setdefault(WITH_LOADING, []).append(loaded)
    return {"frames": frames, "difference": worst, "seconds": seconds}


def report(result: dict[str, Any]) -> None:
    """A row per part: medians, and the median of the frames' ratios."""
    ours, original = result["seconds"]["ours"], result["seconds"]["original"]
    print(f"{'part':20}{'ours':>10}{'original':>10}{'ours / original':>17}")
    for part in (*PARTS, "whole frame", WITH_LOADING):
        ratio = statistics.median(a / b for a, b in zip(ours[part], original[part], strict=True))
        print(f"{part:20}{statistics.median(ours[part]):9.3f}s{statistics.median(original[part]):9.3f}s{ratio:17.2f}")
    print(f"largest difference of logits / largest logit, {result['frames']} frames: {result['difference']:.1e}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our SAM 2 beside the original, part by part.")
    parser.add_argument("--config", default="configs/sam2.1/sam2.1_hiera_t.yaml")
    parser.add_argument("--image_size", type=int, default=1024)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--frames", type=Path, help="folder of numbered JPEG files (default: a drawn clip)")
    parser.add_argument("--num_frames", type=int, help="to track, warm-up included (default: 11 more than it takes)")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--original", type=Path, default=Path(tempfile.gettempdir()) / "original_sam2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    warm_up = warm_up_frames(args.device)
    num_frames = warm_up + 11 if args.num_frames is None else args.num_frames
    if num_frames < warm_up + 2:
        parser.error(f"--num_frames must be at least {warm_up + 2}, of which {warm_up} are warm-up")
    original = install_original(args.original)
    sys.path.insert(0, str(ROOT))
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(seeded_weights(args.config, args.image_size, seed=0), folder / "weights.pt")
        frames = args.frames
        if frames is None:
            frames = folder / "frames"
            frames.mkdir()
            draw_frames(frames, num_frames)
        clicks = [(210 + 37 * i, 250 + 11 * i) for i in range(args.objects)]
        job = {
            "config": args.config, "checkpoint": str(folder / "weights.pt"), "frames": str(frames.resolve()),
            "device": args.device, "dtype": args.dtype, "image_size": args.image_size, "clicks": clicks,
        }  # fmt: skip
        workers = {
            who: Worker(who, path, job, folder / f"{who}.log") for who, path in (("ours", ROOT), ("original", original))
        }
        result = compare(workers, num_frames, warm_up)
        for worker in workers.values():
            worker.process.kill()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = f"{Path(args.config).stem} at {args.image_size}, {args.dtype}, {args.objects} object(s)"
    print(f"{what}, {where}, torch {torch.__version__}")
    report(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        sys.exit(main())

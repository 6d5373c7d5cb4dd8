"""Runs over DAVIS-layout sequences: which process does what, with which model, and the work itself."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sam2 import build_sam
from sam2.build_sam import (
    EMBEDDED,
    check_image_size,
    check_search_factor,
    dtype_name,
    find_config,
    load_config,
    packaged_file,
    pick_device,
)
from sam2.frame_skipping import FrameDecision, RecordedMasks, SkipOptions, play_through
from sam2.track_guard import TrackGuard, check_guard
from sam2.utils.change_detection import GateFrame, KeyFrame
from sam2.utils.davis import DavisRoot, merge_masks, read_label_map
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.video_io import PaletteMaskWriter
from sam2.vos_records import RunFolder

SKIP_OPTIONS = {  # by the name that configs and the predictor give them
    "skip_strategy": "strategy",
    "skip_mad_threshold": "threshold",
    "skip_warp": "warp",
    "skip_lookahead": "lookahead",
    "max_consecutive_skips": "max_consecutive_skips",
}

OnFrame = Callable[[FrameDecision], None]


# Who does what


class Rank(NamedTuple):
    """One of several processes that share a run, as torchrun numbers them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Rank:
        """Read RANK, WORLD_SIZE and LOCAL_RANK; a process without them is alone.

        Raises:
            ValueError: a variable that is no number, or a rank that is not below the world size.
        """
        values = []
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
            text = environment.get(name, str(default))
            if not text.isdecimal():
                raise ValueError(f"{name} must be a whole number, got {text!r}")
            values.append(int(text))
        rank = cls(*values)
        if rank.rank >= rank.world_size:
            raise ValueError(f"RANK must be below WORLD_SIZE, got {rank.rank} and {rank.world_size}")
        return rank

    def device(self, wanted: str | None) -> torch.device:
        """The device of this rank: `wanted`, or the best there is; of several GPUs the one with its local rank."""
        device = named_device(wanted)
        if device.type != "cuda" or device.index is not None or self.world_size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK {self.local_rank} needs a GPU of its own, and there are {torch.cuda.device_count()}: "
                "start as many processes per node as it has GPUs, or name a --device for all of them"
            )
        return torch.device(device.type, self.local_rank)


def named_device(name: str | None) -> torch.device:
    """The device that a command line's --device names; the best there is for None.

    Raises:
        ValueError: torch knows no such device, or it is not there.
    """
    if name is None:
        return pick_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cuda, mps or cpu, or one of many GPUs as cuda:1, got {name!r}") from error
    gpus = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type in ("cuda", "mps") and (device.index or 0) >= gpus:
        raise ValueError(f"--device {name!r} is not there: torch finds {gpus} of the kind")
    return device


def run_token(environment: Mapping[str, str], rank: Rank) -> str:
    """What tells the records of this run from those of earlier ones; the same in all its processes.

    torchrun makes a folder for error files at each start, but one per node. Several nodes have in common what they were
    told: a rendezvous id that is used again, or none, makes runs look alike.
    """
    if rank.world_size == 1:
        return secrets.token_hex(8)
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    known = [environment.get(name, "") for name in names]
    if environment.get("GROUP_WORLD_SIZE") == "1":  # nodes
        known.append(str(Path(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def share_out(lengths: Mapping[str, int], world_size: int) -> list[list[str]]:
    """Share sequences out over ranks: longest first, each to the rank that has the fewest frames so far.

    Args:
        lengths: frames by sequence.

    Returns:
        The names of each rank, in the order it tracks them. Every rank that asks gets the same answer.
    """
    shares: list[list[str]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(lengths, key=lambda name: (-lengths[name], name)):
        lightest = loads.index(min(loads))
        shares[lightest].append(name)
        loads[lightest] += lengths[name]
    return shares


# With what


@dataclass(frozen=True)
class ModelFiles:
    """What a run must know of its model before, or without, building it.

    Attributes:
        config: the config file.
        checkpoint: the file with the weights; None where none are needed.
        image_size: the network's input size, pixels.
        skipping: the skip options that a predictor of this config starts with.
        search_factor: how large a part of the frame objects are looked for in; None for all of it.
        guard: when masks are doubted; None for never.
    """

    config: Path
    checkpoint: Path | None
    image_size: int
    skipping: SkipOptions
    search_factor: float | None = None
    guard: TrackGuard | None = None

    @classmethod
    def find(
        cls, config: str | None, checkpoint: Path | None, image_size: int | None = None,
        search_factor: float | None = None, guard: TrackGuard | None = None,
    ) -> ModelFiles:  # fmt: skip
        """Find the files; None for both is the embedded model.

        Args:
            image_size, search_factor, guard: as of `build_sam2_video_predictor`.

        Raises:
            FileNotFoundError: no such config or checkpoint.
            ValueError: `image_size` or `search_factor` is none, the config does not say its image size, or has skip
                options or a guard that make no sense.
        """
        if config is None:
            checkpoint = packaged_file("checkpoints", EMBEDDED.checkpoint)
        path = find_config(EMBEDDED.config_file if config is None else config)
        if checkpoint is not None and not checkpoint.is_file():
            raise FileNotFoundError(
                f"checkpoint: no such file: {checkpoint}; checkpoints/download_ckpts.sh downloads Meta's"
            )
        model = load_config(path).get("model") or {}
        if image_size is None and "image_size" not in model:
            raise ValueError(f"config: {path} does not say model.image_size")
        size = int(model["image_size"]) if image_size is None else check_image_size(image_size)
        skipping = SkipOptions(**{field: model[name] for name, field in SKIP_OPTIONS.items() if name in model})
        factor = check_search_factor(model.get("search_factor") if search_factor is None else search_factor)
        if guard is None:
            guard = _guard_of_config(path, model.get("guard"))
        return cls(path, checkpoint, size, skipping, factor, guard)

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """SHA-256 of the checkpoint file, in hexadecimal."""
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256()
        with self.checkpoint.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def settings(self, options: SkipOptions, dtype: str, device: torch.device) -> dict[str, Any]:
        """All that the masks of a run follow from, but for the frames; results of equal settings can be mixed."""
        return {
            "strategy": options.strategy if isinstance(options.strategy, str) else type(options.strategy).__name__,
            "threshold": options.threshold or 0.0,
            "warp": "flow" if options.warps else None,
            "lookahead": options.lookahead,
            "max_consecutive_skips": options.max_consecutive_skips,
            "config": self.config.stem,
            "image_size": self.image_size,
            # Said only where it is on: results from before there was such an option can be gone on with.
            **({} if self.search_factor is None else {"search_factor": self.search_factor}),
            **({} if self.guard is None else {"guard": asdict(self.guard)}),
            "dtype": dtype_name(dtype, device),
            "checkpoint_sha256": self.checkpoint_sha256,
        }


def _guard_of_config(path: Path, described: Any) -> TrackGuard | None:
    try:
        return check_guard(None if described is None else instantiate(described))
    except (InstantiationException, TypeError) as error:
        raise ValueError(f"config: {path} has no guard in model.guard: {error}") from error


def build_predictor(
    config: str | None, checkpoint: Path | None, device: torch.device, dtype: str, image_size: int | None = None,
    search_factor: float | None = None, guard: TrackGuard | None = None,
) -> Any:  # fmt: skip
    """The predictor of a command line's options.

    Raises:
        RuntimeError, OSError, ValueError, ImportError: whatever is wrong with the config or the weights.
    """
    try:
        return build_sam.build_sam2_video_predictor(
            config, checkpoint, device=device, dtype=dtype, image_size=image_size, search_factor=search_factor,
            guard=guard,
        )  # fmt: skip
    except InstantiationException as error:
        raise ValueError(f"config: {config} makes no predictor: {error}") from error


def device_name(device: torch.device) -> str:
    """A device as it is put on record: with the GPU's name, without its number."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return device.type


def inputs_sha256(root: DavisRoot, name: str, *, is_plan: bool = False) -> str:
    """SHA-256 of all that the masks of a sequence follow from but the settings: its frames, and what prompts it. A plan
    needs no prompt."""
    frames = root.frame_paths(name)
    prompt = [] if is_plan else [root.annotation_path(name, frames[0].stem)]
    digest = hashlib.sha256()
    for path in (*prompt, *frames):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# The work


class TrackedFrame(NamedTuple):
    """A frame's object ids (H, W) uint8, and how it came by them."""

    labels: np.ndarray
    decision: FrameDecision


def track_frames(predictor: Any, frames: Sequence[Path], first_labels: np.ndarray) -> Iterator[TrackedFrame]:
    """Track every object of the first frame's label map under its own id; yields every frame, in order.

    Pixels of 255 are an object where they are the only ones, as in black and white masks. Beside other ids they mark
    what the annotators left open, and are not tracked: no score knows such an object.

    Args:
        predictor: a `SAM2VideoPredictor`.
        frames: pictures, of one sequence.
        first_labels: object ids (H, W) uint8 of the first of them.

    Raises:
        ValueError: the label map has no object, or another size than the frames.
    """
    name = frames[0].parent.name
    state = predictor.init_state(list(frames))
    try:
        size = (state.video_height, state.video_width)
        if first_labels.shape != size:
            raise ValueError(f"{name}: the annotation's size {first_labels.shape} is not that of its frames, {size}")
        object_ids = np.unique(first_labels[first_labels > 0]).tolist()
        if len(object_ids) > 1 and object_ids[-1] == 255:
            object_ids.pop()
        if not object_ids:
            raise ValueError(f"{name}: the first frame's annotation has no object")
        for obj_id in object_ids:
            predictor.add_new_mask(state, 0, obj_id, first_labels == obj_id)
        for t, obj_ids, logits in predictor.propagate_in_video(state, start_frame_idx=0, progress=False):
            yield TrackedFrame(merge_masks(obj_ids, logits), state.decision_of[t])
    finally:
        state.frames.close()


def track_sequence(predictor: Any, root: DavisRoot, name: str, folder: RunFolder, on_frame: OnFrame) -> None:
    """Track one sequence with a folder's options, and write its masks and its record there."""
    frames = root.frame_paths(name)
    first_labels = read_label_map(root.annotation_path(name, frames[0].stem))
    predictor.skipping = folder.options
    with folder.lock(name):
        folder.clear(name)
        writer = PaletteMaskWriter(folder.path / name)
        decisions = []
        start = time.perf_counter()
        for path, tracked in zip(frames, track_frames(predictor, frames, first_labels), strict=True):
            writer.write(path.stem, tracked.labels)
            decisions.append(tracked.decision)
            on_frame(tracked.decision)
        folder.finish(name, decisions, time.perf_counter() - start, inputs_sha256(root, name))


def warm_up(predictor: Any, root: DavisRoot, name: str) -> None:
    """Track two frames, so that what a GPU does once only is not in the seconds of the sequence that comes first."""
    frames = root.frame_paths(name)[:2]
    predictor.skip_mad_threshold = 0.0
    for _ in track_frames(predictor, frames, read_label_map(root.annotation_path(name, frames[0].stem))):
        pass


def _no_masks(frame_idx: int, frame: GateFrame) -> KeyFrame:
    """A key frame without objects: enough to decide by whole frames."""
    nothing = np.zeros(0, np.float32)
    return KeyFrame(frame_idx, frame, nothing.reshape(0, 1, 1), nothing, nothing)


def planned_decisions(
    frames: Sequence[Path], image_size: int, options: Sequence[SkipOptions], *, threads: int = 1
) -> Iterator[tuple[FrameDecision, ...]]:
    """What tracking would decide on each frame of a sequence, without the network.

    The frames are read and resized once for all options.

    Args:
        image_size: the network's input size, pixels.
        options: one or more; the strategy must be "naive", the only one that looks at no masks.
        threads: how many prepare frames.

    Yields:
        One decision per options, frame by frame; the time a frame took is shared equally among them.

    Raises:
        ValueError: another strategy.
    """
    check_plannable(options)
    # With no masks there is nothing to carry along; whether it would be changes no decision.
    unwarped = [dataclasses.replace(each, warp=None) for each in options]
    ahead = 4 * threads
    with FrameLoader(list(frames), image_size, cache_size=ahead + 1, read_ahead=ahead, threads=threads) as loader:
        runs = play_through(
            range(len(loader)), lambda t: GateFrame(loader.frame(t), loader.pixels(t)),
            RecordedMasks(_no_masks, prompted={0}), unwarped,
        )  # fmt: skip
        start = time.perf_counter()
        for answers in runs:
            seconds = (time.perf_counter() - start) / len(answers)
            decisions = (answered.decision._replace(seconds=seconds) for answered in answers)
            yield tuple(
                each._replace(action="warped") if each.action == "reused" and option.warps else each
                for each, option in zip(decisions, options, strict=True)
            )
            start = time.perf_counter()


def check_plannable(options: Sequence[SkipOptions], model: ModelFiles | None = None) -> None:
    """Raises ValueError where decisions need masks, or follow from more than the options."""
    if model is not None and model.guard is not None:
        raise ValueError(
            "a plan has no masks that a guard could doubt: leave --guard out, or model.guard of the config"
        )
    for each in options:
        if each.strategy != "naive":
            raise ValueError(
                f'a plan decides without masks, which only the strategy "naive" can do, got {each.strategy!r}'
            )


def plan_sequence(
    image_size: int, root: DavisRoot, name: str, folders: Sequence[RunFolder], on_frame: OnFrame, *, threads: int
) -> None:
    """Decide on one sequence's frames with the options of each folder, and write the record there."""
    options = [folder.options for folder in folders]
    decided: list[tuple[FrameDecision, ...]] = []
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(folder.lock(name))
            folder.clear(name)
        for decisions in planned_decisions(root.frame_paths(name), image_size, options, threads=threads):
            decided.append(decisions)
            for decision in decisions:
                on_frame(decision)
        inputs = inputs_sha256(root, name, is_plan=True)
        for folder, decisions in zip(folders, zip(*decided, strict=True), strict=True):
            folder.finish(name, decisions, sum(decision.seconds for decision in decisions), inputs)

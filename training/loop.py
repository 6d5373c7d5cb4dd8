"""The training loop: from a recipe and a folder to a checkpoint, in one process or in many."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from sam2.build_sam import build_sam2, packaged_file, pick_device
from sam2.modeling.precision import resolve_dtype
from sam2.modeling.sam2_base import SAM2Base
from training.attention import fast_attention
from training.checkpoints import RESUME_FILE, load_run, save_run
from training.clips import ClipBatch, exactly
from training.initialisation import attend_by_position, start_from
from training.logs import RunLog
from training.losses import BatchResult
from training.model import ClipModel
from training.optimisation import (
    AveragedWeights,
    build_optimiser,
    frozen_parameters,
    learning_rate,
    set_learning_rate,
)
from training.recipe import Recipe, Stage, with_defaults
from training.recomputation import recompute_trunk
from training.samples import SampleDraw, read_batches
from training.sources import Wanted, shared_videos
from training.validation import held_out_clips, validate
from training.variation import varied

logger = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; checkpoints written before are kept."""


class Trainer:
    """A run: its network, its optimiser and where it stands.

    Args:
        recipe: what to do.
        folder: where checkpoints and logs go.
        resume: go on from the folder's last state instead of starting.

    Raises:
        FileNotFoundError: nothing to resume, or no such checkpoint or data folder.
        FileExistsError: the folder holds a run, and this one is not to resume it.
        ValueError: a checkpoint or saved run of another model, held-out videos without objects, or a stage that freezes
            what is not there, or everything.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, *, resume: bool = False) -> None:
        self.recipe, self.folder = recipe, Path(folder)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = training_device(recipe)
        self.dtype = resolve_dtype(recipe.precision, self.device)
        torch.manual_seed(recipe.seed)
        network = build_sam2(
            recipe.model, device=self.device, mode="train", apply_postprocessing=False,
            hydra_overrides_extra=recipe.model_overrides,
        )  # fmt: skip
        if recipe.init_from is not None and not resume:
            _start(network, recipe)
        if recipe.positional_heads and not resume:
            attend_by_position(network, recipe.positional_heads)
        if recipe.recompute:
            recompute_trunk(network)
        self.model = ClipModel(network, recipe.loss).to(self.device).train()
        self.optimiser = build_optimiser(network, recipe.optimiser)
        self.average = AveragedWeights(network, recipe.optimiser.ema)
        self.step = 0
        if resume:
            self._resume()
        elif (self.folder / RESUME_FILE).exists():
            raise FileExistsError(f"{self.folder} holds a run already: resume it (--resume) or choose another folder")
        self.parallel: nn.Module = self.model
        for number, stage in enumerate(recipe.stages):
            frozen_parameters(network, stage, number)  # a wrong name is told now, not in the middle of the run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.folder, self.step) if self.rank == 0 else None
        measures = self.rank == 0 and recipe.validation.every > 0
        if measures:
            _warn_of_shared_videos(recipe)
        self.image_size = network.image_size  # that the network is made for; a stage may train at another
        self._held_out = held_out_clips(recipe.validation, self.image_size) if measures else []
        self._reports: list[dict[str, float]] = []  # of the steps since the last row of the log

    def _resume(self) -> None:
        resumed = load_run(self.folder, self.model.network, self.optimiser, self.average)
        self.step = resumed.step
        now, saved = asdict(self.recipe), with_defaults(resumed.recipe)
        changed = [key for key in now if now[key] != saved.get(key)]
        if changed:
            logger.warning("The recipe has changed since this run was saved: %s", ", ".join(changed))
        if resumed.ranks != self.ranks:
            logger.warning(
                "This run was saved by %d processes and goes on with %d: a step takes other clips, and %s of them. "
                "Twice the `accumulate` makes up for half of the processes",
                resumed.ranks, self.ranks, "more" if self.ranks > resumed.ranks else "fewer",
            )  # fmt: skip
        logger.info("Resuming at step %d", self.step)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.recipe.stages)

    def run(self) -> Path:
        """Train to the end. Returns the folder.

        Raises:
            NonFiniteLoss: training broke down; the message names the step and the last checkpoint.
            CheckpointError: a checkpoint could not be written; the one before is untouched.
        """
        saved = time.monotonic()
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="training", unit="step", mininterval=0.5,
            disable=self.rank > 0,
        )  # fmt: skip
        if self.step == 0 and self.log is not None and self.recipe.validation.every:
            self.log.write("validation", 0, self.validate())  # what the run starts from
        first = 0
        for number, stage in enumerate(self.recipe.stages):
            begin = max(self.step - first, 0)
            for batches in self._stage_batches(number, stage, begin):
                report = self._train_step(stage, self.step - first, batches)
                self.step += 1
                bar.update()
                self._after_step(report, bar)
                if time.monotonic() - saved > 60 * self.recipe.save_minutes:
                    self._save()
                    saved = time.monotonic()
            first += stage.steps
        self._save()
        bar.close()
        if self.log is not None:
            self.log.close()
        return self.folder

    def _stage_batches(self, number: int, stage: Stage, begin: int) -> Iterator[list[ClipBatch]]:
        """The batches of each remaining step of a stage."""
        if begin >= stage.steps:
            return
        recipe = self.recipe
        self._prepare(number, stage)
        size = stage.image_size or self.image_size
        self.model.network.fit_image_size(size)
        wanted = Wanted(stage.frames, size, stage.max_objects)
        draw = SampleDraw(recipe.data, wanted, stage.difficulty, (recipe.seed, number))
        batches = read_batches(
            draw, stage, range(begin, stage.steps), workers=recipe.workers, rank=self.rank, ranks=self.ranks,
            device=self.device,
        )  # fmt: skip
        for _ in range(begin, stage.steps):
            yield list(islice(batches, stage.accumulate))

    def _prepare(self, number: int, stage: Stage) -> None:
        """Choose what the stage trains; its gradients are averaged over the processes, no others are sent."""
        frozen = frozen_parameters(self.model.network, stage, number)
        for name, parameter in self.model.network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        if self.ranks > 1:
            # Which parts of the network a step uses depends on its prompts.
            self.parallel = DistributedDataParallel(self.model, find_unused_parameters=True)

    def _train_step(self, stage: Stage, stage_step: int, batches: list[ClipBatch]) -> dict[str, float]:
        """One step of the optimiser; the numbers to report."""
        began = time.monotonic()
        rate = learning_rate(stage, stage_step)
        set_learning_rate(self.optimiser, rate)
        reports = []
        for i, batch in enumerate(batches):
            is_last = i + 1 == len(batches)
            torch.manual_seed(_batch_seed(self.recipe.seed, self.step, i * self.ranks + self.rank))
            if stage.repeat > 1:
                batch = varied(batch)
            if stage.objects is not None:
                batch = exactly(batch, stage.objects)
            with self._without_sync(not is_last):
                with self._autocast(), fast_attention(self.device):
                    result: BatchResult = self.parallel(batch, stage.prompts, lead=stage.lead).batch
                self._check_finite(result.losses.total)
                (result.losses.total / len(batches)).backward()
            reports.append(_numbers(result))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip_norm or math.inf)
        self._check_finite(norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(self.model.network, self.step)
        return {**_mean(reports), "lr": rate, "grad_norm": norm.item(), "seconds": time.monotonic() - began}

    def _without_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        if wanted and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _check_finite(self, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            path = self.folder / RESUME_FILE
            last = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
            raise NonFiniteLoss(
                f"step {self.step}: the loss or its gradient is {value.item()}; {last}. "
                "--resume with a lower lr, or with another seed, goes on from there; unchanged it would end here again"
            )

    def _after_step(self, report: dict[str, float], bar: tqdm) -> None:
        """Log and validate where it is time to."""
        if self.log is None:
            return
        self._reports.append(report)
        if self.step % self.recipe.log_every == 0 or self.step == self.total_steps:
            row = _log_row(_mean(self._reports))
            self._reports.clear()
            bar.set_postfix(loss=f"{row['total']:.3f}", iou=f"{row['tracked_iou']:.3f}")
            self.log.write("train", self.step, row)
        every = self.recipe.validation.every
        if every and (self.step % every == 0 or self.step == self.total_steps):
            self.log.write("validation", self.step, self.validate())

    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on the held-out clips, at the size that the network is made for."""
        averaged = copy.deepcopy(self.model)
        averaged.network.load_state_dict(self.average.values)
        averaged.network.fit_image_size(self.image_size)
        with self._autocast(), fast_attention(self.device):
            return validate(averaged, self._held_out)

    def _save(self) -> None:
        if self.rank == 0:
            network = self.model.network
            save_run(self.folder, self.recipe, self.step, network, self.optimiser, self.average, self.ranks)


def _numbers(result: BatchResult) -> dict[str, float]:
    """The scalars of a result by name."""
    losses, *sums = result
    values = {**losses._asdict(), **dict(zip(BatchResult._fields[1:], sums, strict=True))}
    return {name: value.item() for name, value in values.items()}


def _mean(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}


def _log_row(report: Mapping[str, float]) -> dict[str, float]:
    """What is logged of a report: mean IoUs in place of sums and counts; nan where nothing was counted."""
    row = dict(report)
    for kind in ("tracked", "prompted"):
        count = row.pop(kind)
        row[f"{kind}_iou"] = row[f"{kind}_iou"] / count if count else float("nan")
    return row


def _warn_of_shared_videos(recipe: Recipe) -> None:
    source = recipe.validation.source
    if source is not None and (shared := shared_videos(recipe.data, source)):
        logger.warning(
            "%d videos of %s are trained on and measured: J on them is no measure of new videos. "
            "Give validation.source a root or a split of its own", shared, source.root,
        )  # fmt: skip


def _batch_seed(seed: int, step: int, number: int) -> int:
    """Seed of the random choices for one batch of a step: a resumed run repeats them, whoever the batch falls to."""
    return int(np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _start(network: SAM2Base, recipe: Recipe) -> None:
    """Load the weights that a run starts from. Raises ValueError where they are of another model."""
    assert recipe.init_from is not None
    try:
        start_from(network, _checkpoint(recipe.init_from))
    except RuntimeError as error:
        raise ValueError(f"init_from: no checkpoint of model {recipe.model!r}, give both: {error}") from error


def _checkpoint(path: str) -> str | Path:
    """The checkpoint to start from: a file or address, or one that comes with the package."""
    if Path(path).is_file() or not packaged_file(path).is_file():
        return path
    return packaged_file(path)


def training_device(recipe: Recipe) -> torch.device:
    """The device of this process; torchrun gives each its own GPU unless the recipe names one."""
    try:
        device = pick_device() if recipe.device is None else torch.device(recipe.device)
    except RuntimeError as error:
        raise ValueError(f"device: {error}") from error
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))

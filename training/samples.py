"""The order of training samples: sample i is a function of the run's seed and i alone, whoever prepares it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.clips import ClipBatch, Sample, collate
from training.recipe import DataSource, Stage
from training.sources import Wanted, open_source

ATTEMPTS = 50  # draws until a clip shows an object on its first frame


class SampleDraw(Dataset):
    """Samples by number, from several sources.

    Args:
        difficulty: lowest and highest of drawn clips.
        seed: of the run and the stage.
    """

    def __init__(
        self, data: Sequence[DataSource], wanted: Wanted, difficulty: Sequence[float], seed: Sequence[int]
    ) -> None:
        self.sources = [open_source(source) for source in data]
        weights = np.array([source.weight for source in data])
        self.shares = weights / weights.sum()
        self.wanted, self.difficulty, self.seed = wanted, list(difficulty), list(seed)

    def __getitem__(self, index: int) -> Sample:
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([*self.seed, index, attempt])
            source = self.sources[rng.choice(len(self.sources), p=self.shares)]
            low, high = self.difficulty
            sample = source.draw(rng, self.wanted._replace(difficulty=rng.uniform(low, high)))
            if sample is not None:
                return sample
        raise RuntimeError(f"none of {ATTEMPTS} clips drawn for sample {index} shows an object on its first frame")


class StepBatches:
    """Which samples each step of a stage takes: of R processes, process r gets every R-th batch."""

    def __init__(self, stage: Stage, steps: range, rank: int, ranks: int) -> None:
        firsts = [
            ((step * stage.accumulate + k) * ranks + rank) * stage.clips
            for step in steps
            for k in range(stage.accumulate)
        ]
        self.batches = [range(first, first + stage.clips) for first in firsts]

    def __iter__(self) -> Iterator[range]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def open_batches(
    draw: SampleDraw, stage: Stage, steps: range, *, workers: int, rank: int, ranks: int
) -> DataLoader[ClipBatch]:
    """The batches of some steps of a stage, in order, `stage.accumulate` for each step."""
    return DataLoader(
        draw, batch_sampler=StepBatches(stage, steps, rank, ranks), collate_fn=collate,  # type: ignore[arg-type]
        num_workers=workers, worker_init_fn=_start_worker, prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _start_worker(_: int) -> None:
    """Leave the processor's cores to the other processes: one thread each."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)

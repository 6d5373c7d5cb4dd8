"""The order of training samples: sample i is a function of the run's seed and i alone, whoever prepares it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.clips import ClipBatch, Sample, collate, join
from training.recipe import DataSource, Stage
from training.sources import MIN_SHARE, Wanted, open_source

ATTEMPTS = 50  # draws until a clip shows an object on its first frame
ROUND = 8  # steps whose batches are kept until each was taken as often as it is to be
PIECE = 4  # clips that are prepared at a time, so that many processes have the first batch ready soon


class SampleDraw(Dataset):
    """Samples by number, from several sources.

    Args:
        difficulty: lowest and highest of drawn clips.
        seed: of the run and the stage.
    """

    def __init__(
        self, data: Sequence[DataSource], wanted: Wanted, difficulty: Sequence[float], seed: Sequence[int]
    ) -> None:
        self.data = list(data)
        self.sources = [open_source(source) for source in data]
        weights = np.array([source.weight for source in data])
        self.shares = weights / weights.sum()
        self.wanted, self.difficulty, self.seed = wanted, list(difficulty), list(seed)

    def __getitem__(self, index: int) -> Sample:
        chosen: int | None = None  # once for all attempts, or sources would lose the share of what is drawn in vain
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([*self.seed, index, attempt])
            pick = int(rng.choice(len(self.sources), p=self.shares))
            chosen = pick if chosen is None else chosen
            low, high = self.difficulty
            sample = self.sources[chosen].draw(rng, self.wanted._replace(difficulty=rng.uniform(low, high)))
            if sample is not None:
                return sample
        assert chosen is not None
        place = self.data[chosen].root or "drawn clips"
        raise ValueError(
            f"data.{chosen}: none of {ATTEMPTS} clips from {place} shows an object on its first frame that covers at "
            f"least {MIN_SHARE:.2%} of what is seen"
        )


def batch_order(stage: Stage, steps: range, seed: Sequence[int]) -> list[int]:
    """The number of the batch that each forward pass of some steps takes, `stage.accumulate` for each step.

    With `stage.repeat` the batches are taken up in rounds, those of `ROUND` steps: once in turn, then again in random
    orders.
    """
    size = ROUND * stage.accumulate
    order = []
    for number in range(steps.start * stage.accumulate, steps.stop * stage.accumulate):
        round_number, place = divmod(number, size * stage.repeat)
        turn, place = divmod(place, size)
        if turn:
            place = int(np.random.default_rng([*seed, round_number, turn]).permutation(size)[place])
        order.append(round_number * size + place)
    return order


def pieces_of(batch: int, stage: Stage, rank: int, ranks: int) -> list[range]:
    """The samples of a batch, some at a time: of R processes, process r gets every R-th row of `stage.clips`."""
    first = (batch * ranks + rank) * stage.clips
    end = first + stage.clips
    return [range(start, min(start + PIECE, end)) for start in range(first, end, PIECE)]


def read_batches(
    draw: SampleDraw, stage: Stage, steps: range, *, workers: int, rank: int, ranks: int, device: torch.device
) -> Iterator[ClipBatch]:
    """The batches of some steps of a stage on a device, in `batch_order`.

    Those that are taken again are kept until then, and prepared again where a run is resumed between.
    """
    order = batch_order(stage, steps, draw.seed)
    pieces = {batch: pieces_of(batch, stage, rank, ranks) for batch in dict.fromkeys(order)}
    loader = iter(
        DataLoader(
            draw, batch_sampler=[list(piece) for batch in pieces.values() for piece in batch], collate_fn=collate,
            num_workers=workers, worker_init_fn=_start_worker, prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
        )
    )  # fmt: skip
    last_turn = {batch: turn for turn, batch in enumerate(order)}
    kept: dict[int, ClipBatch] = {}
    for turn, batch in enumerate(order):
        if batch not in kept:
            kept[batch] = join([next(loader).to(device) for _ in pieces[batch]])
        yield kept.pop(batch) if turn == last_turn[batch] else kept[batch]


def _start_worker(_: int) -> None:
    """Leave the processor's cores to the other processes: one thread each."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)

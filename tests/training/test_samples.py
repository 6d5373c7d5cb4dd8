"""Which sample comes when: a function of the seed and its number, whoever prepares it."""

from __future__ import annotations

import numpy as np
import torch

from training.recipe import DataSource, Stage
from training.samples import SampleDraw, StepBatches, open_batches
from training.sources import FIRST_TRAINING_SEED, DrawnSource, Wanted

WANTED = Wanted(num_frames=2, size=64, max_objects=2)
STAGE = Stage(steps=4, frames=2, clips=2, lr=1e-3, lr_end=1e-4, accumulate=2)


def draw(seed: int = 0, data: list[DataSource] | None = None) -> SampleDraw:
    return SampleDraw(data or [DataSource(kind="drawn")], WANTED, (0.0, 1.0), (seed, 0))


def test_a_sample_follows_from_the_seed_and_its_number():
    first, again, other = draw(), draw(), draw(seed=1)
    again[4]
    assert np.array_equal(first[3].frames, again[3].frames) and np.array_equal(first[3].masks, again[3].masks)
    assert not np.array_equal(first[3].frames, first[4].frames)
    assert not np.array_equal(first[3].frames, other[3].frames)


def test_every_object_of_a_sample_can_be_prompted_on_the_first_frame():
    samples = draw()
    for i in range(8):
        sample = samples[i]
        assert sample.frames.shape == (2, 64, 64, 3) and sample.masks.shape[1:] == (2, 64, 64)
        assert 1 <= len(sample.masks) <= 2 and sample.masks[:, 0].any(axis=(1, 2)).all()


def test_the_processes_of_a_step_share_its_samples_without_overlap():
    parts = [list(StepBatches(STAGE, range(4), rank, 2)) for rank in range(2)]
    assert [list(batch) for batch in parts[0][:2]] == [[0, 1], [4, 5]]
    assert [list(batch) for batch in parts[1][:2]] == [[2, 3], [6, 7]]
    taken = sorted(i for part in parts for batch in part for i in batch)
    assert taken == list(range(4 * 2 * 2 * 2))


def test_a_stage_that_is_resumed_takes_the_samples_that_it_has_not_had():
    whole, rest = list(StepBatches(STAGE, range(4), 0, 1)), list(StepBatches(STAGE, range(3, 4), 0, 1))
    assert rest == whole[-2:]


def test_workers_prepare_the_same_batches_in_the_same_order():
    alone, helped = (
        list(open_batches(draw(), STAGE, range(2), workers=workers, rank=0, ranks=1)) for workers in (0, 2)
    )
    assert len(alone) == 4
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_objects_of_all_clips_stand_in_one_row():
    batch = next(iter(open_batches(draw(), STAGE, range(1), workers=0, rank=0, ranks=1)))
    assert batch.frames.shape == (2, 2, 3, 64, 64)
    samples = [draw()[i] for i in range(2)]
    assert batch.clip_of.tolist() == [clip for clip, sample in enumerate(samples) for _ in sample.masks]
    assert np.array_equal(batch.frames[1, 0].permute(1, 2, 0).numpy(), samples[1].frames[0])
    assert np.array_equal(batch.masks[-1].numpy(), samples[1].masks[-1])


def test_sources_are_mixed_by_weight(monkeypatch):
    data = [DataSource(kind="drawn", weight=3), DataSource(kind="drawn", weight=1)]
    samples = draw(data=data)
    taken = []
    for number, source in enumerate(samples.sources):
        monkeypatch.setattr(source, "draw", lambda rng, wanted, number=number: taken.append(number) or number)
    for i in range(400):
        samples[i]
    assert 270 <= taken.count(0) <= 330


def test_training_never_draws_the_clips_that_are_held_out(monkeypatch):
    seeds = []
    monkeypatch.setattr("training.sources.drawn_sample", lambda seed, wanted: seeds.append(seed))
    for i in range(200):
        DrawnSource().draw(np.random.default_rng(i), WANTED)
    assert min(seeds) >= FIRST_TRAINING_SEED and len(set(seeds)) == 200

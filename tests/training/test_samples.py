"""Which sample comes when: a function of the seed and its number, whoever prepares it."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam2.utils.drawn_clips import random_clip
from training.clips import ClipBatch
from training.recipe import DataSource, Stage
from training.samples import PIECE, ROUND, SampleDraw, batch_order, pieces_of, read_batches
from training.sources import FIRST_TRAINING_SEED, DrawnSource, Wanted, open_source

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


def numbers(stage: Stage, steps: range, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """The samples of each batch in the order of the batches."""
    order = batch_order(stage, steps, (0, 0))
    return [[i for piece in pieces_of(batch, stage, rank, ranks) for i in piece] for batch in order]


def batches(draw: SampleDraw, stage: Stage, steps: range, workers: int = 0) -> list[ClipBatch]:
    return list(read_batches(draw, stage, steps, workers=workers, rank=0, ranks=1, device=torch.device("cpu")))


def test_the_processes_of_a_step_share_its_samples_without_overlap():
    parts = [numbers(STAGE, range(4), rank, 2) for rank in range(2)]
    assert parts[0][:2] == [[0, 1], [4, 5]]
    assert parts[1][:2] == [[2, 3], [6, 7]]
    taken = sorted(i for part in parts for batch in part for i in batch)
    assert taken == list(range(4 * 2 * 2 * 2))


def test_a_stage_that_is_resumed_takes_the_samples_that_it_has_not_had():
    assert numbers(STAGE, range(3, 4)) == numbers(STAGE, range(4))[-2:]


def test_a_large_batch_is_prepared_in_pieces():
    stage = replace(STAGE, clips=2 * PIECE + 1)
    assert [len(piece) for piece in pieces_of(0, stage, 0, 1)] == [PIECE, PIECE, 1]
    assert numbers(stage, range(1))[1] == list(range(stage.clips, 2 * stage.clips))


REPEATED = replace(STAGE, steps=3 * ROUND, accumulate=1, repeat=3)


def test_batches_that_are_repeated_come_back_in_another_order_within_their_round():
    order = batch_order(replace(REPEATED, steps=6 * ROUND), range(6 * ROUND), (0, 0))
    turns = [order[first : first + ROUND] for first in range(0, 6 * ROUND, ROUND)]
    assert turns[0] == list(range(ROUND)) and turns[3] == list(range(ROUND, 2 * ROUND))
    assert all(sorted(turn) == turns[i // 3 * 3] for i, turn in enumerate(turns))
    assert len({tuple(turn) for turn in turns}) == 6
    assert batch_order(REPEATED, range(3 * ROUND), (1, 0)) != order[: 3 * ROUND]


def test_a_step_that_accumulates_takes_no_clip_twice():
    stage = replace(REPEATED, accumulate=2 * ROUND, repeat=2)
    order = batch_order(stage, range(2 * ROUND), (0, 0))
    steps = [order[first : first + stage.accumulate] for first in range(0, len(order), stage.accumulate)]
    assert all(len(set(step)) == stage.accumulate for step in steps)
    assert all(order.count(batch) == 2 for batch in set(order))


def test_a_batch_is_let_go_after_its_last_turn():
    taken = read_batches(draw(), REPEATED, range(2), workers=0, rank=0, ranks=1, device=torch.device("cpu"))
    first = weakref.ref(next(taken).frames)
    next(taken)
    assert first() is None


def test_a_resumed_stage_repeats_what_an_uninterrupted_one_would(monkeypatch: pytest.MonkeyPatch):
    order = batch_order(REPEATED, range(3 * ROUND), draw().seed)
    wanted = [order[turn] for turn in range(ROUND + 3, 3 * ROUND)]
    drawn: list[int] = []
    get = SampleDraw.__getitem__
    monkeypatch.setattr(SampleDraw, "__getitem__", lambda self, i: drawn.append(i) or get(self, i))
    found = batches(draw(), replace(REPEATED, clips=1), range(ROUND + 3, 3 * ROUND))
    samples = [get(draw(), i) for i in range(ROUND)]
    assert len(found) == len(wanted)
    for batch, number in zip(found, wanted, strict=True):
        assert np.array_equal(batch.masks.numpy(), samples[number].masks)
    assert sorted(drawn) == list(range(ROUND)), "each clip is prepared once"


def test_workers_prepare_the_same_batches_in_the_same_order():
    stage = replace(STAGE, clips=PIECE + 1)
    alone, helped = (batches(draw(), stage, range(2), workers) for workers in (0, 2))
    assert len(alone) == 4
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_objects_of_all_clips_stand_in_one_row():
    count = PIECE + 2  # more than are prepared at a time
    batch = batches(draw(), replace(STAGE, clips=count), range(1))[0]
    assert batch.frames.shape == (count, 2, 3, 64, 64)
    samples = [draw()[i] for i in range(count)]
    assert batch.clip_of.tolist() == [clip for clip, sample in enumerate(samples) for _ in sample.masks]
    assert np.array_equal(batch.frames[-1, 0].permute(1, 2, 0).numpy(), samples[-1].frames[0])
    assert np.array_equal(batch.masks[-1].numpy(), samples[-1].masks[-1])


def test_sources_are_mixed_by_weight(monkeypatch):
    data = [DataSource(kind="drawn", weight=3), DataSource(kind="drawn", weight=1)]
    samples = draw(data=data)
    taken = []
    for number, source in enumerate(samples.sources):
        monkeypatch.setattr(source, "draw", lambda rng, wanted, number=number: taken.append(number) or number)
    for i in range(400):
        samples[i]
    assert 270 <= taken.count(0) <= 330


def test_a_source_keeps_its_share_where_many_of_its_clips_show_nothing(monkeypatch):
    samples = draw(data=[DataSource(kind="drawn", weight=3), DataSource(kind="drawn", weight=1)])
    for number, source in enumerate(samples.sources):
        often = 0.2 if number == 0 else 1.0
        monkeypatch.setattr(source, "draw", lambda rng, wanted, n=number, p=often: (n,) if rng.random() < p else None)
    assert 270 <= sum(samples[i] == (0,) for i in range(400)) <= 330


def test_a_folder_without_objects_to_prompt_is_named(monkeypatch):
    samples = draw(data=[DataSource(kind="drawn"), DataSource(kind="drawn", root="empty/folder", weight=1e6)])
    monkeypatch.setattr(samples.sources[1], "draw", lambda rng, wanted: None)
    with pytest.raises(
        ValueError,
        match=r"data\.1: none of 50 clips from empty/folder shows an object .* at least 0.05% of what is seen",
    ):
        samples[0]


def test_drawn_clips_without_photographs_are_pointed_out(monkeypatch, caplog):
    DrawnSource()
    assert not caplog.text
    monkeypatch.setattr("training.sources.has_photographs", lambda: False)
    DrawnSource()
    assert "scikit-image is not installed" in caplog.text


def test_drawn_clips_may_be_seen_in_search_regions():
    whole, near = draw(), draw(data=[DataSource(kind="drawn", search_factor=1.25)])
    shares = [np.mean([draws[i].masks[:, 0].mean() for i in range(8)]) for draws in (whole, near)]
    assert shares[1] > 2 * shares[0]
    for i in range(8):
        assert near[i].frames.shape == (2, 64, 64, 3) and near[i].masks.shape == (1, 2, 64, 64)


def draw_squares(monkeypatch, *sides: int) -> list[int]:
    """Clips show squares of these sides, each of a brightness of its own, from now on. Returns a list of the seeds."""
    seeds: list[int] = []
    labels = np.zeros((2, 480, 854), np.uint8)
    for i, side in enumerate(sides):
        labels[:, 50 : 50 + side, 200 * i + 50 : 200 * i + 50 + side] = i + 1
    clip = SimpleNamespace(frames=np.repeat(60 * labels[..., None], 3, axis=3), labels=labels)
    monkeypatch.setattr("training.sources.random_clip", lambda seed, *args, **options: seeds.append(seed) or clip)
    return seeds


def test_search_regions_show_any_object_of_a_drawn_clip_from_a_seed_that_is_not_held_out(monkeypatch):
    seeds = draw_squares(monkeypatch, 40, 40, 40)
    samples = [DrawnSource(1.25).draw(np.random.default_rng(i), WANTED) for i in range(30)]
    assert {int(sample.frames[0, 32, 32, 0]) for sample in samples if sample is not None} == {60, 120, 180}
    assert min(seeds) >= FIRST_TRAINING_SEED and len(set(seeds)) == 30


@pytest.mark.parametrize("factor", [None, 1.25])
def test_a_source_draws_packs_and_strings_at_its_chances(monkeypatch, factor):
    asked = []

    def watched(*args, **options):
        asked.append((options["packs"], options["strings"]))
        return random_clip(*args, **options)

    monkeypatch.setattr("training.sources.random_clip", watched)
    for chances in ({"packs": 0.75, "strings": 0.25}, {}):
        open_source(DataSource("drawn", search_factor=factor, **chances)).draw(np.random.default_rng(0), WANTED)
    assert asked == [(0.75, 0.25), (0.0, 0.0)]


def test_objects_that_are_too_small_even_in_a_search_region_are_not_asked_for(monkeypatch):
    draw_squares(monkeypatch, 1)  # of 120 x 120 pixels, the smallest region
    assert DrawnSource(1.25).draw(np.random.default_rng(0), WANTED._replace(size=128)) is None
    draw_squares(monkeypatch, 6)
    assert DrawnSource(1.25).draw(np.random.default_rng(0), WANTED._replace(size=128)) is not None


def test_training_never_draws_the_clips_that_are_held_out(monkeypatch):
    seeds = []
    monkeypatch.setattr(
        "training.sources.random_clip", lambda seed, *args, **options: seeds.append(seed) or random_clip(0, 1, 64)
    )
    for i in range(200):
        DrawnSource().draw(np.random.default_rng(i), WANTED)
    assert min(seeds) >= FIRST_TRAINING_SEED and len(set(seeds)) == 200

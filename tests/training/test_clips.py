"""Batches of clips."""

from __future__ import annotations

import pytest
import torch
from conftest import square_sample

from training.clips import ClipBatch, collate, exactly, join
from training.variation import varied


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_batch_has_as_many_objects_as_asked_for(count: int, batch: ClipBatch):
    torch.manual_seed(0)
    found = exactly(batch, count)
    assert len(found.masks) == len(found.clip_of) == count and torch.equal(found.frames, batch.frames)
    rows = [next(i for i in range(3) if torch.equal(mask, batch.masks[i])) for mask in found.masks]
    assert found.clip_of.tolist() == batch.clip_of[rows].tolist()
    assert max(rows.count(i) for i in range(3)) - min(rows.count(i) for i in range(3)) <= 1


def test_which_objects_are_seen_in_search_regions_is_known_of_every_batch(batch: ClipBatch):
    near = collate([square_sample(8, 3)._replace(near=True)])
    both = join([near, batch, near])
    assert both.near.tolist() == [True, False, False, True]
    assert both.near_objects.tolist() == [True, False, False, False, True]
    torch.manual_seed(0)
    for changed in (varied(both), exactly(both, 5), both.to(torch.device("cpu"))):
        assert changed.near_objects.tolist() == [int(clip) in (0, 3) for clip in changed.clip_of]


def test_search_regions_are_mirrored_at_most():
    near = collate([square_sample(8 + 2 * i, 3)._replace(near=True) for i in range(8)])
    torch.manual_seed(0)
    changed = varied(near)
    kinds = []
    for found, given in zip(changed.masks, near.masks, strict=True):
        kinds.append(torch.equal(found, given))
        assert torch.equal(found, given if kinds[-1] else given.flip(-1))
    assert set(kinds) == {True, False}
    assert torch.equal(varied(near._replace(near=~near.near)).masks[0], near.masks[0]) is False

"""Batches of clips."""

from __future__ import annotations

import pytest
import torch

from training.clips import ClipBatch, exactly


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_batch_has_as_many_objects_as_asked_for(count: int, batch: ClipBatch):
    torch.manual_seed(0)
    found = exactly(batch, count)
    assert len(found.masks) == len(found.clip_of) == count and torch.equal(found.frames, batch.frames)
    rows = [next(i for i in range(3) if torch.equal(mask, batch.masks[i])) for mask in found.masks]
    assert found.clip_of.tolist() == batch.clip_of[rows].tolist()
    assert max(rows.count(i) for i in range(3)) - min(rows.count(i) for i in range(3)) <= 1

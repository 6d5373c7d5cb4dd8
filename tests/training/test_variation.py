"""Clips that are trained on again look different, and their masks fit them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import variation
from training.clips import Sample, collate
from training.sources import MIN_SHARE
from training.variation import varied

SIZE = 64
OBJECT, GROUND = (230, 20, 20), (20, 20, 90)


def clip(*lefts: list[int]) -> Sample:
    """Red squares of 16 pixels on blue, each with its left side at `lefts` frame by frame; out of sight where < 0."""
    frames = np.full((len(lefts[0]), SIZE, SIZE, 3), GROUND, np.uint8)
    masks = np.zeros((len(lefts), len(lefts[0]), SIZE, SIZE), bool)
    for i, way in enumerate(lefts):
        for t, left in enumerate(way):
            if left >= 0:
                masks[i, t, 12 + 20 * i : 28 + 20 * i, left : left + 16] = True
                frames[t][masks[i, t]] = OBJECT
    return Sample(frames, masks)


def plain(monkeypatch: pytest.MonkeyPatch, **parts: object) -> None:
    """Leave out recolouring, and put others in the place of random parts."""
    monkeypatch.setattr(variation, "_recoloured", lambda frames: frames)
    for name, part in parts.items():
        monkeypatch.setattr(variation, name, part)


def views(*rows: list[float]) -> object:
    """Views of the clips: (horizontal factor, horizontal place, vertical factor, vertical place) each."""
    return lambda count: torch.tensor([[[r[0], 0, r[1]], [0, r[2], r[3]]] for r in rows])


def test_masks_stay_on_their_objects(monkeypatch: pytest.MonkeyPatch):
    plain(monkeypatch)
    batch = collate([clip([20, 24, 28], [8, 8, 8]), clip([30, 30, 30])])
    shapes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        found = varied(batch)
        assert found.frames.shape == batch.frames.shape and found.frames.dtype == torch.uint8
        is_red = found.frames[:, :, 0] > (OBJECT[0] + GROUND[0]) / 2
        for n in range(2):
            covered = found.masks[found.clip_of == n].any(dim=0)
            assert (covered ^ is_red[n]).float().mean() < 0.01
        shapes.add(tuple(found.masks.flatten(1).sum(1).tolist()))
    assert len(shapes) > 8, "crops differ"


def test_a_mirrored_crop_shows_what_it_should(monkeypatch: pytest.MonkeyPatch):
    plain(monkeypatch, _random_views=views([-1.0, 0.0, 1.0, 0.0]), _turned_round=lambda batch: batch)
    batch = collate([clip([20, 24])])
    found = varied(batch)
    assert torch.equal(found.masks, batch.masks.flip(3)) and torch.equal(found.frames, batch.frames.flip(4))
    plain(monkeypatch, _random_views=views([0.5, -0.5, 1.0, 0.0]))  # the left half
    left = varied(batch)
    assert abs(left.masks[0, 0].sum().item() - 2 * 12 * 16) < 20, "of the square 12 columns are in it, twice as wide"


def test_an_object_that_a_crop_leaves_out_is_left_out_and_a_clip_never_loses_all(monkeypatch: pytest.MonkeyPatch):
    half = views([0.5, -0.5, 1.0, 0.0], [0.5, -0.5, 1.0, 0.0])
    plain(monkeypatch, _random_views=half, _turned_round=lambda batch: batch)
    batch = collate([clip([44, 44], [4, 4]), clip([44, 20])])
    found = varied(batch)
    assert found.clip_of.tolist() == [0, 1]
    assert torch.equal(found.masks[1], batch.masks[2]), "the second clip is whole"
    assert found.masks[:, 0].float().mean(dim=(1, 2)).min() >= MIN_SHARE


def test_time_turns_round_only_where_all_objects_are_seen_at_the_end(monkeypatch: pytest.MonkeyPatch):
    same = views(*[[1.0, 0.0, 1.0, 0.0]] * 2)
    plain(monkeypatch, _random_views=same)
    batch = collate([clip([4, 24, 44]), clip([20, 24, 28], [8, 8, -1])])
    turned = 0
    for seed in range(16):
        torch.manual_seed(seed)
        found = varied(batch)
        assert torch.equal(found.masks[1:], batch.masks[1:]) and torch.equal(found.frames[1], batch.frames[1])
        if torch.equal(found.masks[0], batch.masks[0].flip(0)):
            turned += 1
            assert torch.equal(found.frames[0], batch.frames[0].flip(0))
        else:
            assert torch.equal(found.masks[0], batch.masks[0])
    assert 3 <= turned <= 13


def test_all_frames_of_a_clip_have_the_same_colours():
    batch = collate([clip([20] * 3), clip([20] * 3)])
    torch.manual_seed(1)
    found = variation._recoloured(batch.frames.float())
    assert torch.equal(found[:, 0], found[:, 1]) and not torch.equal(found[0], found[1])


def test_the_same_seed_varies_alike():
    batch = collate([clip([20, 24])])
    torch.manual_seed(3)
    first = varied(batch)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, varied(batch), strict=True))


def test_random_crops_stay_inside_the_picture_and_half_are_mirrored():
    torch.manual_seed(0)
    drawn = variation._random_views(400)
    sides, middles = drawn[:, (0, 1), (0, 1)], drawn[:, :, 2]
    assert ((sides.abs() + middles.abs()) <= 1 + 1e-6).all() and sides.abs().min() >= variation.SMALLEST_CROP
    assert 150 <= (sides[:, 0] < 0).sum() <= 250 and (sides[:, 1] > 0).all()
    assert 80 <= (sides.abs() == 1).all(dim=1).sum() <= 200

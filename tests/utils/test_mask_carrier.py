"""Carrying masks along: how well each way holds what it is made for, how far to trust it, and blending."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from textures import rgb, scene, texture

from sam2.utils.mask_carrier import CarrierTrust, MaskCarrier, SmallFrame, blend_logits, mask_distance


def as_logits(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 10.0, -10.0).astype(np.float32)[None]


@pytest.mark.parametrize("way", [MaskCarrier.DENSE, MaskCarrier.AFFINE])
@pytest.mark.parametrize("size", [(120, 160), (64, 64)])
def test_both_ways_carry_a_moving_disc(way, size):
    frame, mask = scene(0)
    logits = cv2.resize(as_logits(mask)[0], size[::-1], interpolation=cv2.INTER_AREA)[None]
    carrier = MaskCarrier(SmallFrame.of(frame), logits)
    for shift in (3, 6, 9):
        frame, mask = scene(shift)
        carrier.follow(SmallFrame.of(frame))
    carried = cv2.resize(carrier.carried([way])[0], (160, 120), interpolation=cv2.INTER_LINEAR) > 0
    assert mask_distance(carried, mask) < 0.06
    assert carrier.disagreement[0] < 0.06
    assert carrier.deviations(as_logits(mask))[way, 0] < 0.06


def test_a_missing_object_is_looked_for_in_the_whole_picture():
    quiet = rgb(np.full((120, 160), 100, np.uint8))
    carrier = MaskCarrier(SmallFrame.of(quiet), np.full((1, 120, 160), -10.0, np.float32))
    carrier.follow(SmallFrame.of(quiet))
    assert carrier.novelty == 0
    appeared = quiet.copy()
    appeared[10:40, 110:140] = rgb(texture(30, 30))
    carrier.follow(SmallFrame.of(appeared))
    assert carrier.novelty > 20


def test_distance_of_masks_is_one_minus_their_overlap():
    first, second = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert mask_distance(first, second) == pytest.approx(2 / 3)
    assert mask_distance(first & second & False, first & False) == 0


def test_trust_turns_to_the_way_that_erred_less_and_predicts_its_error():
    trust = CarrierTrust(1)
    assert trust.ways.tolist() == [MaskCarrier.AFFINE]
    assert trust.predict(np.array([0.2]))[0] == pytest.approx(0.7 * 0.203)
    for _ in range(20):
        trust.learn(np.array([0.197]), np.array([[0.097], [0.297]]))
    assert trust.ways.tolist() == [MaskCarrier.DENSE]
    assert trust.predict(np.array([0.197]))[0] == pytest.approx(0.1, rel=1e-4)


def test_an_object_that_vanished_teaches_nothing_about_carrying():
    trust = CarrierTrust(2)
    trust.learn(np.array([0.0, 0.1]), np.array([[1.0, 0.1], [1.0, 0.1]]))
    predicted = trust.predict(np.array([0.1, 0.1]))
    assert predicted[0] == pytest.approx(0.7 * 0.103)
    assert predicted[1] > predicted[0]


@pytest.mark.parametrize("share_after, edge", [(0.2, 20), (0.5, 30), (0.8, 30)])
def test_blended_masks_are_those_of_the_nearer_side_and_both_half_way(share_after, edge):
    before, after = np.full((2, 1, 40, 60), -10.0, np.float32)
    before[:, :, :20], after[:, :, :30] = 10, 10
    blended = blend_logits(before, after, share_after)
    assert blended.dtype == np.float32 and abs(blended).max() <= 10
    np.testing.assert_array_equal(blended[0] > 0, np.arange(60) + np.zeros((40, 1)) < edge)


def test_two_sightings_of_a_rope_that_do_not_touch_are_both_kept():
    before, after = np.full((2, 1, 40, 60), -10.0, np.float32)
    before[:, :, 20:23], after[:, :, 30:33] = 10, 10
    blended = blend_logits(before, after, 0.5)
    assert np.flatnonzero(blended[0, 20] > 0).tolist() == [20, 21, 22, 30, 31, 32]


def test_novelty_is_only_measured_while_an_object_is_missing():
    frame, mask = scene(0)
    carrier = MaskCarrier(SmallFrame.of(frame), as_logits(mask))
    carrier.follow(SmallFrame.of(rgb(texture(120, 160, 5))))
    assert carrier.novelty == 0


def test_a_gate_without_objects_has_nothing_to_carry():
    carrier = MaskCarrier(SmallFrame.of(scene(0)[0]), np.zeros((0, 64, 64), np.float32))
    carrier.follow(SmallFrame.of(scene(3)[0]))
    assert carrier.carried([]).shape == (0, 64, 64)
    assert carrier.disagreement.shape == carrier.likeness.shape == (0,)


@pytest.mark.parametrize("side", [32, 33, 40, 48, 64])
def test_small_pictures_can_be_carried_too(side):
    pictures = [SmallFrame.of(rgb(texture(side, side + 9, seed))) for seed in (0, 1)]
    carrier = MaskCarrier(pictures[0], as_logits(np.arange(side + 9) + np.zeros((side, 1)) < 10))
    carrier.follow(pictures[1])
    assert np.isfinite(carrier.carried([MaskCarrier.DENSE])).all()

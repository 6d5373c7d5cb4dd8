"""Carrying masks along: direction, kinds of input, and how well each way holds what it is made for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from sam2.utils.optical_flow import (
    AffineTrack,
    CarrierTrust,
    MaskCarrier,
    SmallFrame,
    blend_logits,
    build_pyramid,
    compose_flow,
    estimate_flow,
    mask_distance,
    to_grey,
    warp_mask_forward,
)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 (height, width)."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return ((smooth - smooth.min()) * 255 / np.ptp(smooth)).astype(np.uint8)


def constant_flow(height: int, width: int, x: float, y: float) -> np.ndarray:
    return np.broadcast_to(np.array([x, y], np.float32), (height, width, 2)).copy()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def scene(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured disc, `shift` pixels to the right, over another texture; RGB (120, 160, 3) and its mask."""
    y, x = np.mgrid[:120, :160]
    mask = (x - 60 - shift) ** 2 + (y - 60) ** 2 <= 25**2
    return rgb(np.where(mask, np.roll(texture(120, 160, 1), shift, axis=1), texture(120, 160, 2) // 3)), mask


def as_logits(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 10.0, -10.0).astype(np.float32)[None]


def test_flow_points_from_the_current_frame_back_to_its_key_frame():
    key = texture(96, 128)
    flow = estimate_flow(np.roll(key, 3, axis=1), key)
    assert np.median(flow[20:-20, 20:-20, 0]) == pytest.approx(-3, abs=0.1)
    assert np.median(flow[20:-20, 20:-20, 1]) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    "current, key, message",
    [
        (np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), "current must be grey uint8"),
        (np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.float32), "key must be grey uint8"),
        (np.zeros((40, 40), np.uint8), np.zeros((40, 50), np.uint8), "of one size"),
    ],
)
def test_flow_refuses_frames_that_do_not_match(current, key, message):
    with pytest.raises(ValueError, match=message):
        estimate_flow(current, key)


def test_frames_too_small_for_flow_stand_still():
    assert not estimate_flow(texture(16, 16), texture(16, 16, 1)).any()


def test_chained_flow_is_looked_up_where_the_first_step_leads():
    onward = np.zeros((4, 6, 2), np.float32)
    onward[1, 4] = (0, 2)
    composed = compose_flow(constant_flow(4, 6, 1, 0), onward)
    assert composed[1, 3].tolist() == [1, 2]
    assert composed[1, 4].tolist() == [1, 0]


def test_a_mask_moves_forward_with_its_object():
    mask = np.zeros((8, 10), bool)
    mask[2:4, 1:3] = True
    moved = warp_mask_forward(mask, constant_flow(8, 10, -4, -3))
    expected = np.zeros((8, 10), bool)
    expected[5:7, 5:7] = True
    assert moved.dtype == bool
    np.testing.assert_array_equal(moved, expected)


def test_logits_are_interpolated_between_pixels():
    logits = np.array([[0.0, 4.0, 8.0]], np.float32)
    assert warp_mask_forward(logits, constant_flow(1, 3, -0.25, 0)).tolist() == [[0.0, 3.0, 7.0]]


def test_flow_of_another_size_is_scaled_to_the_mask():
    mask = np.zeros((3, 8, 16), np.uint8)
    mask[:, :, 2] = 1
    moved = warp_mask_forward(mask, constant_flow(4, 8, -2, 0))
    assert moved.shape == mask.shape and moved.dtype == np.uint8
    assert np.flatnonzero(moved[1, 3]).tolist() == [6]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_tensors_come_back_as_tensors_of_their_type(dtype):
    mask = torch.zeros(1, 6, 6).to(dtype)
    mask[:, 2, 2] = 1
    moved = warp_mask_forward(mask, torch.from_numpy(constant_flow(6, 6, -1, 0)))
    assert moved.dtype == dtype and moved.shape == mask.shape
    assert moved.float().nonzero().tolist() == [[0, 2, 3]]


@pytest.mark.parametrize(
    "mask, flow, message",
    [
        (np.zeros((4, 4)), np.zeros((4, 4)), r"flow must be \(h, w, 2\), got \(4, 4\)"),
        (np.zeros(4), np.zeros((4, 4, 2)), r"mask must be \(..., H, W\), got \(4,\)"),
    ],
)
def test_warping_refuses_shapes_that_mean_nothing(mask, flow, message):
    with pytest.raises(ValueError, match=message):
        warp_mask_forward(mask, flow)


def test_frames_are_reduced_but_never_enlarged():
    assert to_grey(np.zeros((480, 854, 3), np.uint8), 240).shape == (240, 427)
    assert to_grey(np.zeros((100, 50, 3), np.uint8), 240).shape == (100, 50)


def test_a_thin_object_is_tracked_by_its_own_pixels_over_another_motion():
    """A rope of two pixels moves right over a background that moves left and fills more of its mask."""
    background, y = texture(120, 160) // 3, np.arange(120)
    pictures, columns = [], []
    for t in range(4):
        picture = np.roll(background, -2 * t, axis=1)
        column = 60 + y // 4 + 2 * t
        picture[y, column], picture[y, column + 1] = 250, 250
        pictures.append(build_pyramid(picture))
        columns.append(column)
    mask = np.zeros((120, 160), bool)
    for aside in range(-3, 5):
        mask[y, columns[0] + aside] = True
    track = AffineTrack(pictures[0], mask)
    track.follow(pictures[1])
    track.follow(pictures[2])
    matrix = track.follow(pictures[3])
    # Along itself a straight rope may slide unseen; across, its middle must lie on the rope of the last frame.
    x, y_of_middle = matrix @ [columns[0][60], 60, 1]
    assert x == pytest.approx(60 + y_of_middle / 4 + 6, abs=0.5)
    assert track.likeness > 0.5  # around the rope the background has changed


def test_an_object_that_is_gone_does_not_look_like_itself():
    with_disc, mask = scene(0)
    empty = rgb(texture(120, 160, 2) // 3)
    track = AffineTrack(build_pyramid(with_disc[..., 0]), mask)
    track.follow(build_pyramid(with_disc[..., 0]))
    assert track.likeness == pytest.approx(1.0)
    track.follow(build_pyramid(empty[..., 0]))
    assert track.likeness < 0.4


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


def test_blended_edges_lie_between_nearer_to_the_surer_side():
    before, after = np.full((2, 1, 40, 60), -10.0, np.float32)
    before[:, :, :20], after[:, :, :30] = 10, 10
    surely_before = blend_logits(before, after, np.array([0.1]), np.array([0.4]))
    np.testing.assert_array_equal(surely_before > 0, before > 0)
    surely_after = blend_logits(before, after, np.array([0.4]), np.array([0.1]))
    np.testing.assert_array_equal(surely_after > 0, after > 0)


def test_two_sightings_of_a_rope_that_do_not_touch_are_both_kept():
    before, after = np.full((2, 1, 40, 60), -10.0, np.float32)
    before[:, :, 20:23], after[:, :, 30:33] = 10, 10
    blended = blend_logits(before, after, np.array([0.2]), np.array([0.2]))
    assert np.flatnonzero(blended[0, 20] > 0).tolist() == [20, 21, 22, 30, 31, 32]

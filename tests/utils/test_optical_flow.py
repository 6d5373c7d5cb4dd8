"""Flow and warping: direction, kinds of input, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from textures import texture

from sam2.utils.optical_flow import compose_flow, estimate_flow, to_grey, warp_mask_forward


def constant_flow(height: int, width: int, x: float, y: float) -> np.ndarray:
    return np.broadcast_to(np.array([x, y], np.float32), (height, width, 2)).copy()


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


def test_a_window_of_a_chain_equals_the_chain_there():
    rng = np.random.default_rng(0)
    step, onward = rng.normal(0, 2, (2, 20, 30, 2)).astype(np.float32)
    window = (slice(4, 12), slice(6, 25))
    np.testing.assert_array_equal(compose_flow(step[window], onward, window), compose_flow(step, onward)[window])

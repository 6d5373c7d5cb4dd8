"""What the pixels of an object alone tell of its motion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from textures import rgb, scene, texture

from sam2.utils.affine_track import AffineTrack, build_pyramid


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


def test_an_affine_motion_is_found():
    """The disc moves by (5, 3) and grows by 4 % about its middle."""
    picture = texture(120, 160, 1)
    mask = np.hypot(*(np.mgrid[:120, :160] - np.array([60, 70])[:, None, None])) < 30
    wanted = np.array([[1.04, 0, 5 - 0.04 * 70], [0, 1.04, 3 - 0.04 * 60]])
    moved = cv2.warpAffine(picture, wanted, (160, 120), borderMode=cv2.BORDER_REPLICATE)
    found = AffineTrack(build_pyramid(picture), mask).follow(build_pyramid(moved))
    assert abs(found - wanted)[:, :2].max() < 0.005
    assert abs((found - wanted) @ [70, 60, 1]).max() < 0.1, "pixels, in the middle"


def test_an_object_without_pixels_stays():
    track = AffineTrack(build_pyramid(texture(40, 40)), np.zeros((40, 40), bool))
    assert track.follow(build_pyramid(texture(40, 40, 1))).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert track.likeness == 1.0

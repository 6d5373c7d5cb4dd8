"""Views: frames and masks are changed alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam2.utils.frame_loader import FrameLoader
from sam2.utils.video_io import open_source
from training.views import View, random_view

BLOB = np.zeros((60, 90), bool)
BLOB[20:44, 30:70] = True
PICTURE = np.where(BLOB[..., None], 230, 20).astype(np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize("size", [32, 72, 160])  # smaller, smaller in one direction, larger
def test_the_plain_view_is_what_a_predictor_sees(size: int):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    assert np.array_equal(View().frame(noise, size), FrameLoader(open_source(noise[None]), size).pixels(0))
    rough = noise[..., 0] > 128
    prompt = torch.from_numpy(rough).float()[None, None]
    prompt = F.interpolate(prompt, (size, size), mode="bilinear", align_corners=False, antialias=True)
    assert np.array_equal(View().mask(rough, size), prompt[0, 0].numpy() >= 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_stays_on_its_object(seed: int):
    view = random_view(np.random.default_rng(seed))._replace(gain=(1.0, 1.0, 1.0), contrast=1.0, saturation=1.0)
    seen, mask = view.frame(PICTURE, 64)[..., 0] >= 125, view.mask(BLOB, 64)
    assert mask.any() and (seen & mask).sum() / (seen | mask).sum() > 0.97


def test_a_mirrored_view_swaps_left_and_right():
    left = np.zeros((40, 40), bool)
    left[:, :10] = True
    assert np.array_equal(View(mirrored=True).mask(left, 40), left[:, ::-1])


def test_a_crop_enlarges_its_part():
    view = View(left=0.5, top=0.0, width=0.5, height=1.0)
    right = np.zeros((40, 40), bool)
    right[:, 20:] = True
    assert view.mask(right, 40).all()


def test_without_saturation_a_frame_is_grey():
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    grey = View(saturation=0.0).frame(colours, 20)
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 1], grey[..., 2])

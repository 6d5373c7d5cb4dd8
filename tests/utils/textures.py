"""Textured pictures and moving discs, for tests of motion."""

from __future__ import annotations

import cv2
import numpy as np


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 (height, width)."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return ((smooth - smooth.min()) * 255 / np.ptp(smooth)).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def scene(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured disc, `shift` pixels to the right, over another texture; RGB (120, 160, 3) and its mask."""
    y, x = np.mgrid[:120, :160]
    mask = (x - 60 - shift) ** 2 + (y - 60) ** 2 <= 25**2
    return rgb(np.where(mask, np.roll(texture(120, 160, 1), shift, axis=1), texture(120, 160, 2) // 3)), mask

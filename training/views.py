"""How clips of any size become the network's input, with random variation that is the same in all their frames."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch

from sam2.utils.frame_loader import resize_frame
from sam2.utils.prompts import resize_mask

SMALLEST_CROP = 0.6  # of each side
LARGEST_TURN = 12.0  # degrees
LIGHT, TINT = (0.75, 1.25), (0.92, 1.08)  # factors on all colours together and on each
CONTRAST, SATURATION, GREY_SHARE = (0.75, 1.25), (0.6, 1.3), 0.05


class View(NamedTuple):
    """A crop of the picture, turned and mirrored, with changed light and colours."""

    left: float = 0.0  # shares of the picture's width and height
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0
    turn: float = 0.0  # degrees
    mirrored: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of red, green and blue
    contrast: float = 1.0
    saturation: float = 1.0

    def frame(self, picture: np.ndarray, size: int) -> np.ndarray:
        """A picture RGB uint8 (H, W, 3) -> (size, size, 3), resized as the predictor does it."""
        placed = self._place(resize_frame(self._crop(picture), size))
        if self == View():
            return placed
        values = placed.astype(np.float32)
        grey = values.mean(axis=2, keepdims=True)
        values = (grey + self.saturation * (values - grey)) * np.asarray(self.gain, np.float32)
        middle = values.mean()
        return np.clip(np.rint(middle + self.contrast * (values - middle)), 0, 255).astype(np.uint8)

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A bool mask (H, W) -> (size, size), resized as the predictor does it with mask prompts."""
        cropped = torch.from_numpy(self._crop(mask)).float()[None, None]
        return self._place(resize_mask(cropped, (size, size))[0, 0].numpy()) >= 0.5

    def _crop(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        left, top = int(self.left * width), int(self.top * height)
        right, bottom = left + max(int(self.width * width), 1), top + max(int(self.height * height), 1)
        return np.ascontiguousarray(picture[top:bottom, left:right])

    def _place(self, picture: np.ndarray) -> np.ndarray:
        if self.mirrored:
            picture = np.ascontiguousarray(picture[:, ::-1])
        if not self.turn:
            return picture
        size = picture.shape[0]
        matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), self.turn, 1.0)
        return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def random_view(rng: np.random.Generator) -> View:
    """Draw a view."""
    width, height = rng.uniform(SMALLEST_CROP, 1.0, 2)
    light = rng.uniform(*LIGHT)
    gains = [float(light * rng.uniform(*TINT)) for _ in range(3)]
    return View(
        left=rng.uniform(0, 1 - width), top=rng.uniform(0, 1 - height), width=width, height=height,
        turn=rng.uniform(-LARGEST_TURN, LARGEST_TURN) if rng.random() < 0.3 else 0.0, mirrored=bool(rng.random() < 0.5),
        gain=(gains[0], gains[1], gains[2]), contrast=rng.uniform(*CONTRAST),
        saturation=0.0 if rng.random() < GREY_SHARE else rng.uniform(*SATURATION),
    )  # fmt: skip

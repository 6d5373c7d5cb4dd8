"""Where a video cuts to another scene: its colours change all at once, whatever moves within it.

Histograms of neighbouring frames, the oldest way to find cuts (Nagasaka and Tanaka 1991) and a steady one: motion of
the camera or of objects keeps most colours. They are smooth, so that like colours count as nearly the same and a change
of light by a little is none.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

SAMPLED_SIDE = 90  # pixels of the shorter side that are looked at, or up to twice as many: colours need no more
BINS = (32, 64, 64)  # of L*, a* and b* in 8 bits
SPREADS = (2.0, 1.5, 1.5)  # standard deviations that they are smoothed by, in bins


def colour_histogram(frame: np.ndarray) -> np.ndarray:
    """How much of a frame has each colour, smoothed; `BINS` float32 with sum 1.

    Args:
        frame: (H, W, 3) uint8 RGB.
    """
    step = max(1, min(frame.shape[:2]) // SAMPLED_SIDE)
    colours = cv2.cvtColor(np.ascontiguousarray(frame[::step, ::step]), cv2.COLOR_RGB2LAB)
    shares = cv2.calcHist([colours], [0, 1, 2], None, list(BINS), 3 * [0, 256])
    shares /= shares.sum()
    for axis, spread in enumerate(SPREADS):
        shares = _smoothed(shares, axis, spread)
    return shares


def _smoothed(shares: np.ndarray, axis: int, spread: float) -> np.ndarray:
    """Along one axis; nothing is lost at its ends."""
    rows = np.moveaxis(shares, axis, 0)
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * spread) + 1, spread)
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    smooth = cv2.sepFilter2D(flat, -1, np.ones(1), kernel, borderType=cv2.BORDER_REFLECT)
    return np.moveaxis(smooth.reshape(rows.shape), 0, axis)


def colour_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The share of a frame, 0 to 1, whose colours the other one lacks; of two `colour_histogram`."""
    return float(np.abs(one - other).sum() / 2)


class ColourWatch:
    """Tells of each frame how far its colours are from those of the frame before.

    Args:
        reverse: the frames come in the reverse of their order.
    """

    def __init__(self, reverse: bool = False) -> None:
        self._step = -1 if reverse else 1
        self._frame_idx: int | None = None  # the one that was asked for last, and its answer
        self._histogram = np.empty(0)
        self._change: float | None = None

    def change(self, frame_idx: int, frame: np.ndarray) -> float | None:
        """The `colour_distance` between a frame and the one before, if that was asked for last; None where another was.

        Asked for again, a frame gets the answer that it got.

        Args:
            frame: (H, W, 3) uint8 RGB.
        """
        if frame_idx != self._frame_idx:
            histogram = colour_histogram(frame)
            follows = self._frame_idx is not None and frame_idx == self._frame_idx + self._step
            self._change = colour_distance(self._histogram, histogram) if follows else None
            self._frame_idx, self._histogram = frame_idx, histogram
        return self._change

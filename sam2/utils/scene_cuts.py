"""Where a video cuts to another scene: its colours change all at once, whatever moves within it.

Histograms of neighbouring frames, the oldest way to find cuts (Nagasaka and Tanaka 1991) and a steady one: motion of
the camera or of objects keeps most colours, and a change of light keeps their hue.
"""

from __future__ import annotations

import cv2
import numpy as np

SAMPLED_SIDE = 90  # pixels of the shorter side that are looked at: colours need no more
BINS, RANGES = [8, 4, 8], [0, 180, 0, 256, 0, 256]  # of hue, saturation and value, as OpenCV has them


def colour_histogram(frame: np.ndarray) -> np.ndarray:
    """Shares of a frame's pixels by colour, (256,) float32 with sum 1.

    Args:
        frame: (H, W, 3) uint8 RGB.
    """
    step = max(1, min(frame.shape[:2]) // SAMPLED_SIDE)
    colours = cv2.cvtColor(np.ascontiguousarray(frame[::step, ::step]), cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([colours], [0, 1, 2], None, BINS, RANGES)
    return counts.flatten() / counts.sum()


def colour_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The share of pixels, 0 to 1, whose colours the other frame lacks; of two `colour_histogram`."""
    return float(np.abs(one - other).sum() / 2)


class ColourWatch:
    """Tells of each frame how far its colours are from those of the frame before."""

    def __init__(self) -> None:
        self._frame_idx: int | None = None  # the one that was asked for last, and its answer
        self._histogram = np.empty(0)
        self._change = 0.0

    def change(self, frame_idx: int, frame: np.ndarray) -> float:
        """The `colour_distance` between a frame and its neighbour, if that was asked for last; 0 where another was.

        Asked for again, a frame gets the answer that it got.

        Args:
            frame: (H, W, 3) uint8 RGB.
        """
        if frame_idx != self._frame_idx:
            histogram = colour_histogram(frame)
            follows = self._frame_idx is not None and abs(frame_idx - self._frame_idx) == 1
            self._change = colour_distance(self._histogram, histogram) if follows else 0.0
            self._frame_idx, self._histogram = frame_idx, histogram
        return self._change

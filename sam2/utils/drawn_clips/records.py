"""What a drawn clip is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DrawnClip(NamedTuple):
    """A clip and its annotation.

    frames: RGB uint8 (T, H, W, 3).
    labels: uint8 (T, H, W), ids 1 to the number of objects, 0 where there is none.
    """

    frames: np.ndarray
    labels: np.ndarray

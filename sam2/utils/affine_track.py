"""One object's own motion, from the pixels of its mask alone.

An object that is thinner than a patch takes its background's flow; `AffineTrack` holds it (Baker and Matthews,
"Lucas-Kanade 20 Years On", IJCV 2004, inverse compositional, with robust weights). P tracked pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

MIN_TRACKED_PIXELS = 30
"""Fewer pixels of a mask than this hold no motion of their own."""

_LEVELS = 3
_RIM = 1  # pixels around the mask that are tracked too: an object's edge, on which a thin or plain one is seen best
_NOISE = 8.0  # grey levels; a difference of this size says nothing about what is seen
_SETTLED = 0.03  # pixels; an update below this ends a level


def build_pyramid(grey: np.ndarray) -> list[np.ndarray]:
    """Levels of a grey frame (h, w) for `AffineTrack`, float32, each half of the one before."""
    levels = [cv2.GaussianBlur(grey.astype(np.float32), (3, 3), 0.8)]
    while len(levels) < _LEVELS:
        levels.append(cv2.pyrDown(levels[-1]))
    return levels


class _Samples(NamedTuple):
    """The key frame at the tracked pixels, one pyramid level.

    values: (P,). jacobian: how they change with each parameter of the motion, float64 (P, 4) of a similarity or (P, 6)
    of an affine map.
    """

    values: np.ndarray
    jacobian: np.ndarray


class AffineTrack:
    """One object's own motion since its key frame, from the pixels of its mask alone.

    Coarse to fine, a similarity first and an affine map at full size, each frame from where the last one ended. Pixels
    that do not move along, as the background within a rope's mask, come to count little.

    Args:
        pyramid: of the key frame.
        mask: of the object in the key frame, boolean (h, w) at the size of the pyramid's first level.
        num_points: how many pixels of the mask are looked at, about.
    """

    def __init__(self, pyramid: Sequence[np.ndarray], mask: np.ndarray, *, num_points: int = 600) -> None:
        rows, columns = _pixels_of(mask)
        self.likeness = 1.0
        """How like the key frame's the pixels are at which the object is now: 1 the same, about 0 something else."""
        self._can_move = np.count_nonzero(mask) >= MIN_TRACKED_PIXELS
        self._is_empty = len(rows) == 0
        self._pose = np.eye(3)  # in coordinates of about unit size, which keep the normal equations well conditioned
        if self._is_empty:
            return
        stride = max(1, len(rows) // num_points)
        at = np.stack([columns[::stride], rows[::stride]]).astype(np.float32)  # (2, P)
        self._centre = at.mean(axis=1)
        self._scale = max(20.0, float(np.sqrt(at.var(axis=1).sum())))
        unit = (at - self._centre[:, None]) / self._scale
        self._points = np.concatenate([unit, np.ones_like(unit[:1])])  # (3, P)
        self._samples = [self._look_at(pyramid, level) for level in range(_LEVELS)]

    def follow(self, pyramid: Sequence[np.ndarray], *, iterations: int = 6) -> np.ndarray:
        """Move on to the next frame. Returns the affine map (2, 3) from pixels of the key frame to this one's."""
        if self._is_empty:
            return np.eye(3)[:2]
        if self._can_move:
            for level in reversed(range(_LEVELS)):
                self._refine(pyramid[level], level, iterations)
        self.likeness = self._compare(pyramid[0])
        x, y = self._centre
        to_unit = np.array([[1, 0, -x], [0, 1, -y], [0, 0, self._scale]]) / self._scale
        return (np.linalg.inv(to_unit) @ self._pose @ to_unit)[:2]

    def _look_at(self, pyramid: Sequence[np.ndarray], level: int) -> _Samples:
        picture, share = pyramid[level], 0.5**level
        x, y = self._positions(level)
        gx = (_sample(picture, x + 0.5, y) - _sample(picture, x - 0.5, y)) * share
        gy = (_sample(picture, x, y + 0.5) - _sample(picture, x, y - 0.5)) * share
        u, v, _ = self._points
        columns = (gx * u + gy * v, gy * u - gx * v, gx, gy) if level else (gx * u, gx * v, gx, gy * u, gy * v, gy)
        return _Samples(_sample(picture, x, y), np.stack(columns, axis=1).astype(np.float64))

    def _positions(self, level: int) -> np.ndarray:
        """Where the tracked pixels are now, float32 (2, P) as (x, y), in pixels of a level."""
        matrix = self._scale * self._pose[:2]
        matrix[:, 2] += self._centre
        # pyrDown keeps even pixels, so that 0 stays 0.
        return (0.5**level * matrix).astype(np.float32) @ self._points

    def _compare(self, picture: np.ndarray) -> float:
        key, now = self._samples[0].values, _sample(picture, *self._positions(0))
        return 1.0 - float(np.mean((now - key) ** 2) / (now.var() + key.var() + _NOISE**2))

    def _refine(self, picture: np.ndarray, level: int, iterations: int) -> None:
        """Gauss-Newton steps at one level, reweighted by the residual (Cauchy): what was covered counts little."""
        values, jacobian = self._samples[level]
        height, width = picture.shape
        for _ in range(iterations):
            x, y = self._positions(level)
            inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
            if np.count_nonzero(inside) < MIN_TRACKED_PIXELS // 2:
                return
            residual = _sample(picture, x, y) - values
            residual -= _median(residual[inside])  # a change of light is no motion
            tolerance = 1.5 * _median(np.abs(residual[inside])) + 1.0
            weighted = jacobian * (inside / (1 + (residual / tolerance) ** 2))[:, None]
            normal = weighted.T @ jacobian
            # Damping: along an edge that shows no slope the pixels say nothing, and the map stays.
            normal += np.eye(len(normal)) * (1e-3 * np.trace(normal) / len(normal) + 1e-6)
            step = np.linalg.solve(normal, weighted.T @ residual) / self._scale
            self._pose = self._pose @ np.linalg.inv(_affine_step(step))
            if np.abs(step).max() * self._scale < _SETTLED:
                return


def _pixels_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a mask's pixels and of its rim."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    top, left = max(0, top - _RIM), max(0, left - _RIM)
    box = mask[top : top + height + 2 * _RIM, left : left + width + 2 * _RIM].view(np.uint8)
    if not box.any():
        return np.zeros(0, int), np.zeros(0, int)
    rows, columns = np.nonzero(cv2.dilate(box, np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8)))
    return rows + top, columns + left


def _median(values: np.ndarray) -> np.floating:
    """The middle one of some values, of two the larger: a fifth of the time of numpy's."""
    middle = len(values) // 2
    return np.partition(values, middle)[middle]


def _affine_step(step: np.ndarray) -> np.ndarray:
    """Parameters of a similarity (4,) or an affine map (6,), as a change of the identity (3, 3)."""
    if len(step) == 6:
        return np.eye(3) + np.vstack([step.reshape(2, 3), np.zeros(3)])
    grow, turn, x, y = step
    return np.array([[1 + grow, -turn, x], [turn, 1 + grow, y], [0, 0, 1]])


def _sample(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values (P,) of a picture between its pixels."""
    return cv2.remap(picture, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]

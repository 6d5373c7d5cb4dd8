"""How a frame moved since its key frame, and masks carried along.

Flow is dense, one vector per pixel, and points from the current frame back to the key frame: the mask of the current
frame at x is the key frame's at x + flow(x) (backward warping, so nothing tears). Fields come from DIS (Kroeger et
al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016). An object that is thinner than a patch takes its
background's flow; `AffineTrack` follows the pixels of its mask alone (Baker and Matthews, "Lucas-Kanade 20 Years On",
IJCV 2004, inverse compositional, with robust weights).

Grey frames uint8 (h, w), flow float32 (h, w, 2) in pixels of its own grid as (x, y), masks (..., H, W) of any size that
covers the same picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch

FLOW_SHORT_SIDE = 240
"""Frames are reduced to this many pixels on their shorter side before dense flow: half of 480p."""

TRACK_SHORT_SIDE = 480
"""Thin parts are only seen at this size; `AffineTrack` works here."""

MIN_TRACKED_PIXELS = 30
"""Fewer pixels of a mask than this hold no motion of their own."""

_LEVELS = 3  # of the pyramid that AffineTrack works on
_MIN_FLOW_SIDE = 32  # DIS cannot work on less: its coarsest level would be smaller than a patch
_MARGIN = 32  # pixels of the flow grid around the objects: as far as one may move between two frames
_BLOCK = 12  # pixels of the flow grid: about the smallest object that is worth a look
_NOISE = 8.0  # grey levels; a difference of this size says nothing about what is seen
_SETTLED = 0.03  # pixels; an update below this ends a level

VOTES_NEEDED = 0.4
"""Share of the votes that makes a pixel part of a mask when two carried masks are blended."""

VOTING_REACH = 1 / 480
"""Standard deviation of a vote's neighbourhood, as a share of the picture's shorter side."""

BLENDED_LOGIT = 10.0

MaskT = TypeVar("MaskT", np.ndarray, torch.Tensor)


def to_grey(frame: np.ndarray, short_side: int) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> grey uint8, reduced to `short_side` pixels on the shorter side (never enlarged)."""
    height, width = frame.shape[:2]
    scale = min(1.0, short_side / min(height, width))
    if scale < 1.0:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def estimate_flow(current: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Dense flow from `current` to `key`, both grey uint8 (h, w) -> float32 (h, w, 2).

    Raises:
        ValueError: the frames are not grey uint8 of one size.
    """
    for name, frame in (("current", current), ("key", key)):
        if frame.ndim != 2 or frame.dtype != np.uint8:
            raise ValueError(f"{name} must be grey uint8 (h, w), got {frame.dtype} {frame.shape}")
    if current.shape != key.shape:
        raise ValueError(f"current and key must be of one size, got {current.shape} and {key.shape}")
    if min(current.shape) < _MIN_FLOW_SIDE:
        return np.zeros((*current.shape, 2), np.float32)
    no_guess = np.empty(0, np.float32)
    pair = np.ascontiguousarray(current), np.ascontiguousarray(key)
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*pair, no_guess)


def compose_flow(step: np.ndarray, onward: np.ndarray) -> np.ndarray:
    """Flow a -> b, then b -> c, (h, w, 2) each: flow a -> c. Short steps survive more motion than a long one."""
    reached = _grid(*step.shape[:2]) + step
    return step + _look_up(onward, reached)


def warp_mask_forward(mask: MaskT, flow: np.ndarray | torch.Tensor) -> MaskT:
    """Carry the key frame's masks or mask logits forward to the current frame.

    Args:
        mask: of the key frame, (..., H, W), array or tensor. Boolean and integer masks (0 and 1) are cut at one half,
            floating ones (logits) are interpolated.
        flow: from the current frame to the key frame, (h, w, 2) in pixels of its own grid; resized to the mask.

    Returns:
        The same kind, type, device and shape as `mask`. What comes from outside the picture repeats its edge.

    Raises:
        ValueError: the shape of `flow` or `mask`.
    """
    if isinstance(mask, torch.Tensor):
        carried = warp_mask_forward(mask.detach().float().cpu().numpy(), flow)
        return torch.from_numpy(carried if mask.is_floating_point() else carried > 0.5).to(mask)
    field = flow.detach().cpu().numpy() if isinstance(flow, torch.Tensor) else np.asarray(flow)
    if field.ndim != 3 or field.shape[2] != 2:
        raise ValueError(f"flow must be (h, w, 2), got {field.shape}")
    if mask.ndim < 2:
        raise ValueError(f"mask must be (..., H, W), got {mask.shape}")
    reached = _grid(*mask.shape[-2:]) + _resize_flow(field.astype(np.float32, copy=False), *mask.shape[-2:])
    planes = mask.reshape(-1, *mask.shape[-2:]).astype(np.float32, copy=False)
    stacked = np.array([_look_up(plane, reached) for plane in planes], np.float32).reshape(mask.shape)
    return (stacked if mask.dtype.kind == "f" else stacked > 0.5).astype(mask.dtype)


def build_pyramid(grey: np.ndarray) -> list[np.ndarray]:
    """Levels of a grey frame for `AffineTrack`, float32, each half of the one before."""
    levels = [cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.8)]
    while len(levels) < _LEVELS:
        levels.append(cv2.pyrDown(levels[-1]))
    return levels


class SmallFrame(NamedTuple):
    """A frame as the carriers see it: grey at `FLOW_SHORT_SIDE`, and `build_pyramid` of it at `TRACK_SHORT_SIDE`."""

    grey: np.ndarray
    pyramid: list[np.ndarray]

    @classmethod
    def of(cls, frame: np.ndarray) -> SmallFrame:
        """From RGB uint8 (H, W, 3)."""
        return cls(to_grey(frame, FLOW_SHORT_SIDE), build_pyramid(to_grey(frame, TRACK_SHORT_SIDE)))


class MaskCarrier:
    """Carries the masks of one key frame to the frames next to it, one after the other, in two independent ways.

    `DENSE` by flow, chained from frame to frame: it bends with a walking person and loses what is thin. `AFFINE` by
    each object's own pixels: it holds ropes and rigid things and does not bend. Where both agree they are rarely wrong,
    and how far they disagree says how wrong either may be. N objects; logits (N, H, W) of any size that covers the
    picture.
    """

    DENSE, AFFINE = 0, 1

    def __init__(self, frame: SmallFrame, logits: np.ndarray) -> None:
        self._logits = np.ascontiguousarray(logits, np.float32)
        self._last = frame.grey
        self._flow = np.zeros((*frame.grey.shape, 2), np.float32)
        self._track_size = frame.pyramid[0].shape
        # Cut off, so that the mean over a pixel of the small grid asks where the edge is, not how sure its inside is.
        clipped = np.clip(self._logits, -1.0, 1.0)
        small = [_resize(plane, *frame.grey.shape) for plane in clipped]
        self._small = np.array(small, np.float32).reshape(len(logits), *frame.grey.shape)
        self._tracks = [AffineTrack(frame.pyramid, _resize(plane, *self._track_size) > 0) for plane in clipped]
        self._maps = [np.eye(3)[:2] for _ in self._tracks]
        self._carried = np.stack([self._small > 0] * 2)  # (2, N, h, w)
        self.novelty = 0.0
        """Largest mean grey difference, 0 to 255, of any block of the last frame from what the one before explains.

        The whole picture's while an object is missing, else that of the objects' surroundings.
        """

    @property
    def disagreement(self) -> np.ndarray:
        """1 - IoU of the masks that the two ways carried to the last frame, (N,)."""
        return np.array([mask_distance(dense, affine) for dense, affine in zip(*self._carried, strict=True)])

    @property
    def likeness(self) -> np.ndarray:
        """How like the key frame's each object's pixels still are, (N,): 1 the same, about 0 something else."""
        return np.array([track.likeness for track in self._tracks])

    def follow(self, frame: SmallFrame) -> None:
        """Go on to the next frame."""
        window = self._surroundings()
        step = np.zeros_like(self._flow)
        step[window] = estimate_flow(frame.grey[window], self._last[window])
        self.novelty = _novelty(frame.grey[window], self._last[window], step[window])
        self._flow, self._last = compose_flow(step, self._flow), frame.grey
        self._maps = [track.follow(frame.pyramid) for track in self._tracks]
        dense = warp_mask_forward(self._small, self._flow) > 0
        affine = [self._move(plane, i) > 0 for i, plane in enumerate(self._small)]
        self._carried = np.stack([dense, np.array(affine, bool).reshape(dense.shape)])

    def _surroundings(self) -> tuple[slice, slice]:
        """Rows and columns around all objects; the whole picture while one is missing, for it may return anywhere."""
        height, width = self._last.shape
        if not self._carried[self.DENSE].any(axis=(1, 2)).all():
            return slice(0, height), slice(0, width)
        left, top, columns, rows = cv2.boundingRect(np.asarray(self._carried.any(axis=(0, 1)), np.uint8))
        return (
            slice(max(0, top - _MARGIN), min(height, top + rows + _MARGIN)),
            slice(max(0, left - _MARGIN), min(width, left + columns + _MARGIN)),
        )

    def deviations(self, logits: np.ndarray) -> np.ndarray:
        """1 - IoU of the carried masks with the network's in the last frame, its logits (N, H, W) -> (2, N)."""
        height, width = self._small.shape[1:]
        found = [_resize(np.clip(plane, -1.0, 1.0), height, width) > 0 for plane in logits.astype(np.float32)]
        return np.array([[mask_distance(a, b) for a, b in zip(way, found, strict=True)] for way in self._carried])

    def carried(self, ways: Sequence[int] | np.ndarray) -> np.ndarray:
        """The key frame's logits (N, H, W) carried to the last frame, each object in its way (`DENSE` or `AFFINE`)."""
        carried = np.empty_like(self._logits)
        is_dense = np.asarray(ways) == self.DENSE
        if is_dense.any():
            carried[is_dense] = warp_mask_forward(self._logits[is_dense], self._flow)
        for i in np.flatnonzero(~is_dense).tolist():
            carried[i] = self._move(self._logits[i], i)
        return carried

    def _move(self, plane: np.ndarray, index: int) -> np.ndarray:
        """A plane of any size moved by an object's affine map."""
        height, width = plane.shape
        scale_x, scale_y = width / self._track_size[1], height / self._track_size[0]
        # Pixel centres lie at half: x in one grid is (x + 0.5) * scale - 0.5 in the other.
        resize = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5], [0, 0, 1]])
        matrix = resize @ np.vstack([self._maps[index], [0, 0, 1]]) @ np.linalg.inv(resize)
        return cv2.warpAffine(
            plane, matrix[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


class CarrierTrust:
    """How far each object's carried masks were from what the network then said, and so what to expect of them.

    The two ways of a `MaskCarrier` err in proportion to their disagreement; the proportion is each object's own. Every
    key frame shows it anew, and the running mean of its logarithm moves half of the way.
    """

    PRIOR = 0.7  # of the disagreement is the error of a way, before any is seen
    FLOOR = 0.003  # 1 - IoU that a mask moves by without any motion
    PACE = 0.5

    def __init__(self, num_objects: int) -> None:
        self._log_ratio = np.full((2, num_objects), math.log(self.PRIOR))

    @property
    def ways(self) -> np.ndarray:
        """The better way of each object, (N,); its own pixels' before any error is seen."""
        return np.where(self._log_ratio[MaskCarrier.DENSE] < self._log_ratio[MaskCarrier.AFFINE], 0, 1)

    def predict(self, disagreement: np.ndarray) -> np.ndarray:
        """Disagreement (N,) -> expected 1 - IoU of the better way, (N,)."""
        return np.minimum(np.exp(self._log_ratio.min(axis=0)) * (disagreement + self.FLOOR), 1.0)

    def learn(self, disagreement: np.ndarray, deviations: np.ndarray) -> None:
        """Take in what a key frame shows: disagreement (N,), and 1 - IoU of both ways with its masks, (2, N).

        An object of which nothing was found where it was expected is none that was carried badly: it came or went.
        """
        seen = np.log((deviations + self.FLOOR) / (disagreement + self.FLOOR))
        was_carried = deviations.min(axis=0) < 1.0
        self._log_ratio += self.PACE * np.where(was_carried, seen - self._log_ratio, 0.0)


def blend_logits(
    before: np.ndarray, after: np.ndarray, losses_before: np.ndarray, losses_after: np.ndarray
) -> np.ndarray:
    """Masks carried here from the key frames on both sides, blended.

    Each pixel and its neighbours vote, the two sides weighted by the inverse square of their predicted losses: an edge
    comes to lie between the two carried ones. Fewer than half of the votes are enough, so that two sightings of a rope
    which do not touch are both kept.

    Args:
        before, after: mask logits (N, h, w).
        losses_before, losses_after: predicted 1 - IoU of each, (N,).

    Returns:
        float32 (N, h, w), above 0 inside, from -`BLENDED_LOGIT` to `BLENDED_LOGIT`.
    """
    weights = losses_after**2 / np.maximum(losses_before**2 + losses_after**2, 1e-12)
    sigma = max(0.5, VOTING_REACH * min(before.shape[1:]))
    planes = [
        cv2.GaussianBlur(np.where(first > 0, weight, 0) + np.where(second > 0, 1 - weight, 0), (0, 0), sigma)
        for first, second, weight in zip(before, after, weights, strict=True)
    ]
    votes = np.array(planes, np.float32).reshape(before.shape)
    return np.clip((votes - VOTES_NEEDED) / VOTES_NEEDED, -1.0, 1.0) * np.float32(BLENDED_LOGIT)


def mask_distance(first: np.ndarray, second: np.ndarray) -> float:
    """1 - IoU of two boolean masks, 0 to 1; two empty ones are equal."""
    union = np.count_nonzero(first | second)
    return 1.0 - np.count_nonzero(first & second) / union if union else 0.0


class _Samples(NamedTuple):
    """The key frame at the tracked pixels, one pyramid level: (P,) each; slopes per pixel of the first level."""

    values: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray


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
        # One pixel more all around takes in the object's edge, on which a thin or plain object is seen best.
        rows, columns = np.nonzero(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)))
        self.likeness = 1.0
        """How like the key frame's the pixels are at which the object is now: 1 the same, about 0 something else."""
        self._can_move = np.count_nonzero(mask) >= MIN_TRACKED_PIXELS
        self._is_empty = len(rows) == 0
        self._pose = np.eye(3)  # in coordinates of about unit size, which keep the normal equations well conditioned
        if self._is_empty:
            return
        stride = max(1, len(rows) // num_points)
        self._x, self._y = columns[::stride].astype(np.float32), rows[::stride].astype(np.float32)
        self._centre = float(self._x.mean()), float(self._y.mean())
        self._scale = max(20.0, float(np.sqrt(self._x.var() + self._y.var())))
        self._u = (self._x - self._centre[0]) / self._scale
        self._v = (self._y - self._centre[1]) / self._scale
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
        x, y = _at_level(self._x, level), _at_level(self._y, level)
        values = _sample(picture, x, y)
        slope_x = (_sample(picture, x + 0.5, y) - _sample(picture, x - 0.5, y)) * share
        slope_y = (_sample(picture, x, y + 0.5) - _sample(picture, x, y - 0.5)) * share
        return _Samples(values, slope_x, slope_y)

    def _positions(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tracked pixels are now, (P,) each, in pixels of a level."""
        at_centre = np.stack([self._u, self._v, np.ones_like(self._u)])
        x, y = (self._centre[axis] + self._scale * self._pose[axis] @ at_centre for axis in (0, 1))
        return _at_level(x, level), _at_level(y, level)

    def _compare(self, picture: np.ndarray) -> float:
        key, now = self._samples[0].values, _sample(picture, *self._positions(0))
        return 1.0 - float(np.mean((now - key) ** 2) / (now.var() + key.var() + _NOISE**2))

    def _refine(self, picture: np.ndarray, level: int, iterations: int) -> None:
        """Gauss-Newton steps at one level, reweighted by the residual (Cauchy): what was covered counts little."""
        samples, u, v = self._samples[level], self._u, self._v
        gx, gy = samples.slope_x, samples.slope_y
        is_affine = level == 0
        columns = (gx * u, gx * v, gx, gy * u, gy * v, gy) if is_affine else (gx * u + gy * v, gy * u - gx * v, gx, gy)
        jacobian = np.stack(columns, axis=1).astype(np.float64)  # (P, 6) or (P, 4)
        height, width = picture.shape
        for _ in range(iterations):
            x, y = self._positions(level)
            inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
            if np.count_nonzero(inside) < MIN_TRACKED_PIXELS // 2:
                return
            residual = _sample(picture, x, y) - samples.values
            residual -= np.median(residual[inside])  # a change of light is no motion
            tolerance = 1.5 * np.median(np.abs(residual[inside])) + 1.0
            weighted = jacobian * (inside / (1 + (residual / tolerance) ** 2))[:, None]
            normal = weighted.T @ jacobian
            # Damping: along an edge that shows no slope the pixels say nothing, and the map stays.
            normal += np.eye(len(normal)) * (1e-3 * np.trace(normal) / len(normal) + 1e-6)
            step = np.linalg.solve(normal, weighted.T @ residual) / self._scale
            self._pose = self._pose @ np.linalg.inv(_affine_step(step))
            if np.abs(step).max() * self._scale < _SETTLED:
                return


def _affine_step(step: np.ndarray) -> np.ndarray:
    """Parameters of a similarity (4,) or an affine map (6,), as a change of the identity (3, 3)."""
    if len(step) == 6:
        return np.eye(3) + np.vstack([step.reshape(2, 3), np.zeros(3)])
    grow, turn, x, y = step
    return np.array([[1 + grow, -turn, x], [turn, 1 + grow, y], [0, 0, 1]])


def _at_level(coordinate: np.ndarray, level: int) -> np.ndarray:
    """Pixel positions of the first pyramid level at another one; pyrDown keeps even pixels, so that 0 stays 0."""
    return (coordinate * 0.5**level).astype(np.float32)


def _sample(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values (P,) of a picture between its pixels."""
    return cv2.remap(picture, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]


@functools.lru_cache(maxsize=8)
def _grid(height: int, width: int) -> np.ndarray:
    """Pixel positions (height, width, 2) as (x, y), float32; read-only."""
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
    grid.setflags(write=False)
    return grid


def _look_up(picture: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Values of a picture between its pixels, at positions (h, w, 2) as (x, y); outside, those of its edge."""
    x, y = cv2.split(positions)
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _resize(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float plane on another grid, averaged where it becomes smaller."""
    shrinks = height * width < plane.shape[0] * plane.shape[1]
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _novelty(current: np.ndarray, previous: np.ndarray, step: np.ndarray) -> float:
    explained = _look_up(previous, _grid(*step.shape[:2]) + step)
    height, width = current.shape
    size = max(1, width // _BLOCK), max(1, height // _BLOCK)
    return float(cv2.resize(cv2.absdiff(current, explained), size, interpolation=cv2.INTER_AREA).max())


def _resize_flow(flow: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flow on another grid, its vectors in that grid's pixels."""
    if flow.shape[:2] == (height, width):
        return flow
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    return cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * scale

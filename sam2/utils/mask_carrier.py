"""Masks of a key frame carried to the frames next to it, in two ways, and how far they can be trusted.

N objects; h, w of the flow grid; logits (N, H, W) of any size that covers the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.affine_track import AffineTrack, build_pyramid
from sam2.utils.optical_flow import (
    NOTHING,
    Window,
    compose_flow,
    estimate_flow,
    look_up,
    pixel_grid,
    reduce_picture,
    to_grey,
    warp_mask_forward,
)

FLOW_SHORT_SIDE = 240
"""Frames are reduced to this many pixels on their shorter side before dense flow: half of 480p."""

TRACK_SHORT_SIDE = 480
"""Thin parts are only seen at this size; `AffineTrack` works here."""

VOTES_NEEDED = 0.4
"""Share of the votes that makes a pixel part of a mask when two carried masks are blended."""

VOTING_REACH = 1 / 480
"""Standard deviation of a vote's neighbourhood, as a share of the picture's shorter side."""

BLENDED_LOGIT = 10.0

_MARGIN = 32  # pixels of the flow grid around the objects: as far as one may move between two frames
_BLOCK = 12  # pixels of the flow grid: about the smallest object that is worth a look
_HALF = 127  # of a cover, uint8: more is inside


class SmallFrame(NamedTuple):
    """A frame as the carriers see it: grey at `FLOW_SHORT_SIDE`, and `build_pyramid` of it at `TRACK_SHORT_SIDE`."""

    grey: np.ndarray
    pyramid: list[np.ndarray]

    @classmethod
    def of(cls, frame: np.ndarray) -> SmallFrame:
        """From RGB uint8 (H, W, 3)."""
        fine = to_grey(frame, TRACK_SHORT_SIDE)
        return cls(reduce_picture(fine, FLOW_SHORT_SIDE), build_pyramid(fine))


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
        covers = [_cover(plane) for plane in self._logits]
        self._small = [_resize(cover, *frame.grey.shape) for cover in covers]
        self._tracks = [AffineTrack(frame.pyramid, _resize(cover, *self._track_size) > _HALF) for cover in covers]
        self._maps = [np.eye(3)[:2] for _ in self._tracks]
        self._carried = np.array([self._small, self._small]).reshape(2, len(logits), *frame.grey.shape) > _HALF
        self._is_looking = not self._carried[self.DENSE].any(axis=(1, 2)).all()
        self.novelty = 0.0
        """Largest mean grey difference, 0 to 255, of any block of the last frame from what the one before explains.

        Measured while the key frame lacks an object, which may return anywhere; else 0.
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
        step = estimate_flow(frame.grey[window], self._last[window])
        if self._is_looking:
            self.novelty = _novelty(frame.grey, self._last, step)
        self._flow[window] = compose_flow(step, self._flow, window)
        self._last = frame.grey
        self._maps = [track.follow(frame.pyramid) for track in self._tracks]
        self._carried = np.zeros_like(self._carried)
        reached = pixel_grid(*self._last.shape)[window] + self._flow[window]
        whole, share = cv2.convertMaps(reached, NOTHING, cv2.CV_16SC2)  # fixed point: twice as fast
        for i, plane in enumerate(self._small):
            dense = cv2.remap(plane, whole, share, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            self._carried[self.DENSE, i][window] = dense > _HALF
            self._carried[self.AFFINE, i][window] = self._move(plane, i, window) > _HALF

    def _surroundings(self) -> Window:
        """Rows and columns around all objects; the whole picture while one is missing, for it may return anywhere."""
        height, width = self._last.shape
        if self._is_looking or not self._carried[self.DENSE].any(axis=(1, 2)).all():
            return slice(0, height), slice(0, width)
        left, top, columns, rows = cv2.boundingRect(np.asarray(self._carried.any(axis=(0, 1)), np.uint8))
        return (
            slice(max(0, top - _MARGIN), min(height, top + rows + _MARGIN)),
            slice(max(0, left - _MARGIN), min(width, left + columns + _MARGIN)),
        )

    def deviations(self, logits: np.ndarray) -> np.ndarray:
        """1 - IoU of the carried masks with the network's in the last frame, its logits (N, H, W) -> (2, N)."""
        height, width = self._last.shape
        found = [_resize(_cover(plane), height, width) > _HALF for plane in logits]
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

    def _move(self, plane: np.ndarray, index: int, window: Window | None = None) -> np.ndarray:
        """A plane of any size moved by an object's affine map; only a window of it where one is given."""
        height, width = plane.shape
        rows, columns = window or (slice(0, height), slice(0, width))
        scale_x, scale_y = width / self._track_size[1], height / self._track_size[0]
        # Pixel centres lie at half: x in one grid is (x + 0.5) * scale - 0.5 in the other.
        resize = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5], [0, 0, 1]])
        matrix = resize @ np.vstack([self._maps[index], [0, 0, 1]]) @ np.linalg.inv(resize)
        matrix[:2, 2] -= columns.start, rows.start
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return cv2.warpAffine(plane, matrix[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class CarrierTrust:
    """How far each object's carried masks were from what the network then said, and so what to expect of them.

    The two ways of a `MaskCarrier` err in proportion to their disagreement; the proportion is each object's own. Every
    key frame shows it anew, and the running mean of its logarithm moves half of the way.
    """

    PRIOR = 0.7  # of the disagreement is the error of a way, before any is seen
    FLOOR = 0.003  # 1 - IoU that a mask moves by without any motion
    PACE = 0.5

    def __init__(self, num_objects: int) -> None:
        self.log_ratio = np.full((2, num_objects), math.log(self.PRIOR))
        """Logarithm of each way's error over the disagreement: all that is learnt, (2, N)."""

    @property
    def ways(self) -> np.ndarray:
        """The better way of each object, (N,); its own pixels' before any error is seen."""
        return np.where(self.log_ratio[MaskCarrier.DENSE] < self.log_ratio[MaskCarrier.AFFINE], 0, 1)

    def predict(self, disagreement: np.ndarray) -> np.ndarray:
        """Disagreement (N,) -> expected 1 - IoU of the better way, (N,)."""
        return np.minimum(np.exp(self.log_ratio.min(axis=0)) * (disagreement + self.FLOOR), 1.0)

    def learn(self, disagreement: np.ndarray, deviations: np.ndarray) -> None:
        """Take in what a key frame shows: disagreement (N,), and 1 - IoU of both ways with its masks, (2, N).

        An object of which nothing was found where it was expected is none that was carried badly: it came or went.
        """
        seen = np.log((deviations + self.FLOOR) / (disagreement + self.FLOOR))
        was_carried = deviations.min(axis=0) < 1.0
        self.log_ratio += self.PACE * np.where(was_carried, seen - self.log_ratio, 0.0)


def blend_logits(before: np.ndarray, after: np.ndarray, share_after: float) -> np.ndarray:
    """Masks carried here from the key frames on both sides, blended.

    Each pixel and its neighbours vote: an edge comes to lie between the two carried ones. Fewer than half of the votes
    are enough, so that two sightings of a rope which do not touch are both kept, half-way between the key frames.

    Args:
        before, after: mask logits (N, H, W).
        share_after: of the votes, 0 to 1: how far this frame is from the key frame before to the one after.

    Returns:
        float32 (N, H, W), above 0 inside, from -`BLENDED_LOGIT` to `BLENDED_LOGIT`.
    """
    sigma = max(0.5, VOTING_REACH * min(before.shape[1:]))
    votes = np.float32(1 - share_after) * (before > 0) + np.float32(share_after) * (after > 0)
    planes = [cv2.GaussianBlur(plane, (0, 0), sigma) for plane in votes]
    blended = (np.array(planes, np.float32).reshape(before.shape) - VOTES_NEEDED) / VOTES_NEEDED
    return np.clip(blended, -1.0, 1.0) * np.float32(BLENDED_LOGIT)


def mask_distance(first: np.ndarray, second: np.ndarray) -> float:
    """1 - IoU of two boolean masks, 0 to 1; two empty ones are equal."""
    union = np.count_nonzero(first | second)
    return 1.0 - np.count_nonzero(first & second) / union if union else 0.0


def _cover(logits: np.ndarray) -> np.ndarray:
    """A plane of mask logits as a cover, uint8 (H, W), above `_HALF` inside.

    Cut off at 1, so that the mean over a pixel of a smaller grid asks where the edge is, not how sure its inside is.
    """
    return (np.clip(logits, -1.0, 1.0) * 127.5 + 127.5).astype(np.uint8)


def _resize(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """A plane on another grid, averaged where it becomes smaller."""
    shrinks = height * width < plane.shape[0] * plane.shape[1]
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _novelty(current: np.ndarray, previous: np.ndarray, step: np.ndarray) -> float:
    explained = look_up(previous, pixel_grid(*step.shape[:2]) + step)
    height, width = current.shape
    size = max(1, width // _BLOCK), max(1, height // _BLOCK)
    return float(cv2.resize(cv2.absdiff(current, explained), size, interpolation=cv2.INTER_AREA).max())

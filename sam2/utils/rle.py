"""Masks as run-length codes, the way COCO's tools read and write them.

A mask is read column by column; its runs of pixels outside and inside take turns, the first one outside (and empty
where the mask begins inside). Each run, from the fourth on as the difference to the one two before, is written in
groups of 5 bits, lowest first, as the characters from "0" on; bit 6 says that more groups of this number follow, and
bit 5 of its last group is the sign (the format of the COCO API, Lin et al., "Microsoft COCO", 2014).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_FIRST = ord("0")
_MORE = 32  # bit 6
_GROUPS = 13  # of 5 bits hold any int64


class Rle(NamedTuple):
    """A mask (height, width) as the characters of its run-length code: some hundred bytes for an object in a video."""

    height: int
    width: int
    counts: bytes

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(read_runs(self.counts)[1::2].sum())

    def to_coco(self) -> dict[str, Any]:
        """The `segmentation` of a COCO annotation, ready for JSON: {"size": [height, width], "counts": str}."""
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}

    @classmethod
    def from_coco(cls, code: Mapping[str, Any]) -> Rle:
        """Read a COCO segmentation; `counts` may be a string, bytes, or the list of runs that is not compressed.

        Raises:
            ValueError: there is no such code in it.
        """
        try:
            (height, width), counts = code["size"], code["counts"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"code must be {{'size': [height, width], 'counts': ...}}, got {code!r}") from error
        if isinstance(counts, str):
            counts = counts.encode("ascii", errors="replace")
        return cls(int(height), int(width), counts if isinstance(counts, bytes) else write_runs(np.asarray(counts)))


def encode_mask(mask: np.ndarray) -> Rle:
    """The run-length code of a mask (H, W) of booleans, or of integers of which 0 is outside.

    Raises:
        ValueError: not (H, W).
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), got shape {mask.shape}")
    height, width = mask.shape
    inside = mask if mask.dtype == bool else mask != 0
    occupied = np.flatnonzero(inside.any(axis=0))
    if occupied.size == 0:
        return Rle(height, width, write_runs(np.array([height * width])))
    first, last = occupied[0], occupied[-1] + 1
    # Only columns that the object touches are turned, which costs more than all the rest.
    pixels = np.ascontiguousarray(inside[:, first:last].T).reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    borders = changes + first * height
    starts = [0, first * height] if pixels[0] else [0]
    ends = [last * height, height * width] if pixels[-1] else [height * width]
    runs = np.diff(np.concatenate([starts, borders, ends]))
    # A last run of nothing is not written, unlike a first one.
    return Rle(height, width, write_runs(runs[:-1] if runs[-1] == 0 else runs))


def decode_mask(code: Rle) -> np.ndarray:
    """The mask of a run-length code, (H, W) bool.

    Raises:
        ValueError: the code is damaged, or is not that of a mask of this size.
    """
    runs = read_runs(code.counts)
    if (runs < 0).any() or runs.sum() != code.height * code.width:
        raise ValueError(
            f"counts must be runs that add up to {code.height} x {code.width} pixels, got {len(runs)} "
            f"that add up to {runs.sum()}"
        )
    borders = np.cumsum(runs)
    pixels = np.zeros(code.width * code.height, np.uint8)
    for start, end in zip(borders[:-1:2].tolist(), borders[1::2].tolist(), strict=True):
        pixels[start:end] = 1
    return np.ascontiguousarray(pixels.reshape(code.width, code.height).T).view(bool)


def write_runs(runs: np.ndarray) -> bytes:
    """The characters of runs (K,) integers."""
    numbers = np.array(runs, np.int64)
    numbers[3:] -= np.asarray(runs, np.int64)[1:-2]
    groups = np.arange(_GROUPS)
    shifted = numbers[:, None] >> (5 * groups)  # (K, groups)
    # A group is the last one where what is left is the sign that its own bit 5 tells.
    is_last = (shifted >> 5) == -((shifted >> 4) & 1)
    length = is_last.argmax(axis=1)[:, None]
    characters = (shifted & 31) + np.where(groups < length, _MORE, 0) + _FIRST
    return characters[groups <= length].astype(np.uint8).tobytes()


def read_runs(counts: bytes) -> np.ndarray:
    """The runs (K,) int64 of characters.

    Raises:
        ValueError: a character that does not belong there, or an end in the midst of a number.
    """
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST
    if characters.size == 0:
        return np.zeros(0, np.int64)
    is_last = characters < _MORE
    if characters.min() < 0 or characters.max() >= 2 * _MORE or not is_last[-1]:
        raise ValueError(f"counts are no run-length code: {counts[:40]!r}")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _GROUPS:
        raise ValueError(f"counts are no run-length code: a number of {lengths.max()} characters")
    place = np.arange(characters.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((characters & 31) << (5 * place), starts)
    is_negative = (characters[ends] & 16) > 0
    runs = values - np.where(is_negative, np.int64(1) << (5 * np.minimum(lengths, _GROUPS - 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs

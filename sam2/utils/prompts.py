"""Prompts as users give them, checked and turned into tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

POINT_LABELS = (-1, 0, 1, 2, 3)  # padding, negative, positive, top-left and bottom-right corner of a box


def as_float_tensor(name: str, value: Any) -> Tensor:
    """An array, nested list or tensor of numbers, with its gradient, as float32. Raises TypeError for anything else."""
    if isinstance(value, Tensor):
        return value.to(torch.float32)
    try:
        # Converted by numpy, so that a float64 array never becomes a float64 tensor.
        return torch.from_numpy(np.array(value, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers, got {type(value).__name__}: {value!r}") from error


def _check_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got {value.tolist()}")


def read_points(points: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Check the clicks on one object.

    Args:
        points: (P, 2) or (1, P, 2) numbers, (x, y).
        labels: (P,) or (1, P): 1 positive, 0 negative; 2 and 3 the corners of a box, -1 padding.

    Returns:
        (1, P, 2) float32 and (1, P) int32.

    Raises:
        ValueError: only one of them was given, shapes that don't match, a number that is not finite, another label.
    """
    if (points is None) != (labels is None):
        given, missing = ("points", "labels") if labels is None else ("labels", "points")
        raise ValueError(f"{given} were given without {missing}: give both")
    if points is None:
        return torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int32)
    coords, marks = as_float_tensor("points", points), as_float_tensor("labels", labels)
    found = (tuple(coords.shape), tuple(marks.shape))
    coords = coords[None] if coords.ndim == 2 else coords
    marks = marks[None] if marks.ndim == 1 else marks
    if coords.ndim != 3 or coords.shape[0] != 1 or coords.shape[2] != 2:
        raise ValueError(f"points must be (P, 2), got {found[0]}")
    if marks.shape != coords.shape[:2]:
        raise ValueError(f"labels must be ({coords.shape[1]},), one for each of the points {found[0]}, got {found[1]}")
    _check_finite("points", coords)
    unknown = sorted(set(marks.flatten().tolist()) - set(POINT_LABELS))
    if unknown:
        raise ValueError(f"labels must be 1 (positive) or 0 (negative), got {unknown}")
    return coords, marks.to(torch.int32)


def read_box(box: Any, height: float, width: float) -> Tensor:
    """Check a box, four numbers (x_min, y_min, x_max, y_max) in the units of `height` and `width` -> (1, 2, 2) float32.

    Raises:
        ValueError: not four numbers, not finite, or wholly outside the frame.
    """
    corners = as_float_tensor("box", box)
    if corners.numel() != 4:
        raise ValueError(f"box must be 4 numbers (x_min, y_min, x_max, y_max), got shape {tuple(corners.shape)}")
    _check_finite("box", corners)
    corners = corners.reshape(1, 2, 2)
    (low_x, low_y), (high_x, high_y) = corners[0].amin(0).tolist(), corners[0].amax(0).tolist()
    if high_x < 0 or high_y < 0 or low_x > width or low_y > height:
        raise ValueError(
            f"box must touch the frame of width {width} and height {height}, got {corners.flatten().tolist()}"
        )
    return corners


def read_mask(mask: Any, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Check an object's mask -> (1, 1, H, W) float32.

    Args:
        mask: (H, W). An array is the object where it is not 0, and so is a tensor of booleans or integers; a tensor of
            floats holds shares of the pixels, 0 to 1, half of which makes the object.
        sizes: the (H, W) that are accepted.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    if isinstance(mask, Tensor):
        values = (mask.detach() if mask.is_floating_point() else mask != 0).to(torch.float32)
    else:
        array = np.asarray(mask)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("mask must be finite, got NaN or infinity")
        values = torch.from_numpy(array.astype(bool)).to(torch.float32)
    if tuple(values.shape) not in sizes:
        wanted = " or ".join(str(size) for size in dict.fromkeys(sizes))
        raise ValueError(f"mask must be one object's (height, width) mask {wanted}, got shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError("mask must be finite, got NaN or infinity")
    return values[None, None]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of `read_mask` at the network's size -> (1, 1, h, w), 0 or 1."""
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size, mode="bilinear", align_corners=False, antialias=True)
    return (mask >= 0.5).float()

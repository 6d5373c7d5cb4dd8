"""Connected components of binary masks, the same on every device.

Shapes: N masks of height H and width W, kept as (N, 1, H, W). Pixels that touch by a side or a corner belong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor


class Components(NamedTuple):
    """Which component each pixel belongs to, and how large that component is."""

    labels: Tensor
    """(N, 1, H, W) int32: 0 on the background, elsewhere a number that the pixels of one component share."""
    areas: Tensor
    """(N, 1, H, W) int32: 0 on the background, elsewhere the pixel count of the pixel's own component."""


def label_components(mask: Tensor) -> Components:
    """Label the 8-connected components of each mask.

    The numbers given to components differ between devices; which pixels share a number, and the areas, do not.

    Args:
        mask: (N, 1, H, W), bool or uint8, foreground where it is not zero; on any device.

    Returns:
        `Components` on the device of `mask`.

    Raises:
        ValueError: `mask` is not (N, 1, H, W).
        TypeError: `mask` is neither bool nor uint8.
    """
    _check(mask)
    if (kernel := _kernel_for(mask)) is not None:
        return Components(*kernel.get_connected_componnets(mask.to(torch.uint8)))
    labels, areas = np.zeros((2, *mask.shape), np.int32)
    for i, found in enumerate(_found_by_opencv(mask)):
        labels[i, 0] = found.labels
        areas[i, 0] = found.area_of_label.take(found.labels)
    return Components(torch.from_numpy(labels).to(mask.device), torch.from_numpy(areas).to(mask.device))


def small_components(mask: Tensor, max_area: float) -> Tensor:
    """Mark the pixels of all components of at most `max_area` pixels.

    Holes of a mask are the small components of its complement, specks those of the mask itself.

    Args:
        mask: (N, 1, H, W), bool or uint8, foreground where it is not zero.
        max_area: pixels; components of exactly this size count as small.

    Returns:
        (N, 1, H, W) bool on the device of `mask`.

    Raises:
        ValueError, TypeError: as `label_components`.
    """
    _check(mask)
    if _kernel_for(mask) is not None:
        areas = label_components(mask).areas
        return (areas > 0) & (areas <= max_area)
    small = np.zeros(mask.shape, bool)
    for i, found in enumerate(_found_by_opencv(mask)):
        is_small = (found.area_of_label > 0) & (found.area_of_label <= max_area)
        small[i, 0] = is_small.take(found.labels)
    return torch.from_numpy(small).to(mask.device)


def _check(mask: Tensor) -> None:
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask must be (N, 1, H, W), got {tuple(mask.shape)}")
    if mask.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"mask must be bool or uint8, got {mask.dtype}; threshold it first")


def _kernel_for(mask: Tensor) -> ModuleType | None:
    return _compiled_kernel() if mask.is_cuda else None


@cache
def _compiled_kernel() -> ModuleType | None:
    """The extension, or None where it was not built."""
    try:
        from sam2 import _C  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return None
    return _C


class _Found(NamedTuple):
    labels: np.ndarray  # (H, W) int32, 0 on the background
    area_of_label: np.ndarray  # (labels,) int32, 0 for the background


def _found_by_opencv(mask: Tensor) -> Iterator[_Found]:
    """The components of each of the N masks."""
    if mask.numel() == 0:  # OpenCV refuses empty images
        return
    for image in mask.squeeze(1).cpu().contiguous().numpy().view(np.uint8):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=8, ltype=cv2.CV_32S)
        area_of_label = stats[:, cv2.CC_STAT_AREA]
        area_of_label[0] = 0
        yield _Found(labels, area_of_label)

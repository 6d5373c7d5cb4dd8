"""Dense motion from frame to frame, and masks carried along.

Flow points from the current frame back to the key frame: the mask of the current frame at x is the key frame's at
x + flow(x) (backward warping, so nothing tears). Fields come from DIS (Kroeger et al., "Fast Optical Flow using Dense
Inverse Search", ECCV 2016).

Grey frames uint8 (h, w), flow float32 (h, w, 2) in pixels of its own grid as (x, y), masks (..., H, W) of any size that
covers the same picture.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

_MIN_FLOW_SIDE = 32  # DIS cannot work on less: its coarsest level would be smaller than a patch
_FINEST_SCALE = 1  # half of the grid; a quarter is faster still, and loses what moves fast

NOTHING: Any = None
"""An argument that OpenCV takes as left out; its type hints ask for an array."""

MaskT = TypeVar("MaskT", np.ndarray, torch.Tensor)
Window = tuple[slice, slice]
"""Rows and columns of a picture."""


def to_grey(frame: np.ndarray, short_side: int) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> grey uint8, reduced to `short_side` pixels on the shorter side (never enlarged)."""
    return cv2.cvtColor(reduce_picture(frame, short_side), cv2.COLOR_RGB2GRAY)


def reduce_picture(picture: np.ndarray, short_side: int) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3), averaged down to `short_side` pixels on the shorter side (never enlarged)."""
    height, width = picture.shape[:2]
    scale = min(1.0, short_side / min(height, width))
    if scale == 1.0:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


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
    pair = np.ascontiguousarray(current), np.ascontiguousarray(key)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    search.setFinestScale(_FINEST_SCALE)
    return search.calc(*pair, NOTHING)


def compose_flow(step: np.ndarray, onward: np.ndarray, window: Window | None = None) -> np.ndarray:
    """Flow a -> b, then b -> c: flow a -> c. Short steps survive more motion than a long one.

    Args:
        step: (h, w, 2), of the whole picture or of a window of it. onward: (H, W, 2), of the whole picture.
        window: rows and columns of the picture that `step` covers; None for all.

    Returns:
        (h, w, 2), like `step`.
    """
    grid = pixel_grid(*onward.shape[:2])
    return step + look_up(onward, (grid if window is None else grid[window]) + step)


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
    reached = pixel_grid(*mask.shape[-2:]) + _resize_flow(field.astype(np.float32, copy=False), *mask.shape[-2:])
    planes = mask.reshape(-1, *mask.shape[-2:]).astype(np.float32, copy=False)
    stacked = np.array([look_up(plane, reached) for plane in planes], np.float32).reshape(mask.shape)
    return (stacked if mask.dtype.kind == "f" else stacked > 0.5).astype(mask.dtype)


@functools.lru_cache(maxsize=8)
def pixel_grid(height: int, width: int) -> np.ndarray:
    """Pixel positions (height, width, 2) as (x, y), float32; read-only."""
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
    grid.setflags(write=False)
    return grid


def look_up(picture: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Values of a picture between its pixels, at positions (h, w, 2) as (x, y); outside, those of its edge."""
    return cv2.remap(picture, positions, NOTHING, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _resize_flow(flow: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flow on another grid, its vectors in that grid's pixels."""
    if flow.shape[:2] == (height, width):
        return flow
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    return cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * scale

"""The parts of automatic mask generation that need no network: grids, crops, boxes, run lengths, filters.

Shapes: N masks, H and W rows and columns of the image, P points. Boxes are (x_min, y_min, x_max, y_max) in pixels and
include their last row and column, unless said otherwise.
A run-length code ("RLE") is `{"size": [H, W], "counts": [...]}`: lengths of the runs of a mask read column by column,
background first.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2.utils.connected_components import label_components

_COLUMN_TYPES = (list, np.ndarray, Tensor)


class MaskData:
    """A table of masks: columns of equal length (lists, arrays or tensors), by name."""

    def __init__(self, **kwargs: Any) -> None:
        self._stats: dict[str, Any] = {}
        for name, column in kwargs.items():
            self[name] = column

    def __setitem__(self, key: str, item: Any) -> None:
        if not isinstance(item, _COLUMN_TYPES):
            raise TypeError(f"column {key!r} must be a list, an array or a tensor, got {type(item).__name__}")
        self._stats[key] = item

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def items(self) -> ItemsView[str, Any]:
        """The columns and their names."""
        return self._stats.items()

    def filter(self, keep: Tensor) -> None:
        """Keep some rows, in place. keep: bool of the table's length, or the indices of rows in their new order."""
        rows = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        for name, column in self._stats.items():
            self._stats[name] = _take(column, rows)

    def cat(self, new_stats: MaskData) -> None:
        """Append another table's rows, in place; columns that are not here yet are taken over."""
        for name, column in new_stats.items():
            if name not in self._stats:
                self._stats[name] = deepcopy(column)
            elif isinstance(column, Tensor):
                self._stats[name] = torch.cat([self._stats[name], column])
            elif isinstance(column, np.ndarray):
                self._stats[name] = np.concatenate([self._stats[name], column])
            else:
                self._stats[name] = self._stats[name] + deepcopy(column)

    def to_numpy(self) -> None:
        """Turn the tensors among the columns into float32 arrays, in place."""
        for name, column in self._stats.items():
            if isinstance(column, Tensor):
                self._stats[name] = column.detach().float().cpu().numpy()


def _take(column: Any, rows: Tensor) -> Any:
    if isinstance(column, Tensor):
        return column[rows.to(column.device)]
    if isinstance(column, np.ndarray):
        return column[rows.cpu().numpy()]
    return [column[row] for row in rows.tolist()]


# Points and crops


def build_point_grid(n_per_side: int) -> np.ndarray:
    """Centres of the n x n cells of a unit square: (n * n, 2) as (x, y), x running fastest.

    Raises:
        ValueError: `n_per_side` is below 1.
    """
    if n_per_side < 1:
        raise ValueError(f"a grid needs at least one point per side, got {n_per_side}")
    centres = (np.arange(n_per_side) + 0.5) / n_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[np.ndarray]:
    """A grid for the whole image and one for each crop layer, each `scale_per_layer` times coarser than the last."""
    return [build_point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The crops of an image: itself, then 2 x 2, 4 x 4, ... overlapping ones.

    Args:
        im_size: (H, W).
        n_layers: layers of crops besides the whole image.
        overlap_ratio: overlap of the first layer's crops, as a share of the image's shorter side; halved by layer.

    Returns:
        boxes (x_min, y_min, x_max, y_max), the last row and column excluded, column by column within a layer; and the
        layer of each, 0 for the whole image.
    """
    height, width = im_size[:2]
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        columns, rows = (_crop_spans(length, per_side, overlap) for length in (width, height))
        boxes += [[x0, y0, x1, y1] for (x0, x1), (y0, y1) in product(columns, rows)]
        layers += [layer] * per_side**2
    return boxes, layers


def _crop_spans(length: int, n: int, overlap: int) -> list[tuple[int, int]]:
    """Cut [0, length) into n spans of equal size that share `overlap` with the next; the last may end early."""
    size = -(-(length + overlap * (n - 1)) // n)  # rounded up
    return [(start, min(start + size, length)) for start in ((size - overlap) * i for i in range(n))]


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Walk through sequences of equal length together, `batch_size` entries at a time.

    Raises:
        ValueError: no sequence, or sequences of different lengths.
    """
    lengths = {len(arg) for arg in args}
    if len(lengths) != 1:
        raise ValueError(f"need sequences of one length, got lengths {[len(arg) for arg in args]}")
    for start in range(0, lengths.pop(), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


# Back from a crop to the image


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: Sequence[int]) -> Tensor:
    """Boxes (..., 4) of a crop, in the coordinates of the image."""
    x, y = crop_box[:2]
    return boxes + torch.tensor([x, y, x, y], device=boxes.device)


def uncrop_points(points: Tensor, crop_box: Sequence[int]) -> Tensor:
    """Points (..., 2) of a crop, in the coordinates of the image."""
    return points + torch.tensor(crop_box[:2], device=points.device)


def uncrop_masks(masks: Tensor, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Tensor:
    """Masks (N, h, w) of a crop, put into the image: (N, H, W), 0 outside the crop."""
    left, top, right, bottom = crop_box
    if (left, top, right, bottom) == (0, 0, orig_w, orig_h):
        return masks
    return F.pad(masks, (left, orig_w - right, top, orig_h - bottom))


def is_box_near_crop_edge(
    boxes: Tensor, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0
) -> Tensor:
    """Which boxes end at their crop's border, so that the mask is probably cut; the image's own border cuts nothing.

    Args:
        boxes: (N, 4) in the coordinates of the crop.
        crop_box, orig_box: of the crop and of the whole image.
        atol: how near counts as touching, pixels.

    Returns:
        (N,) bool.
    """
    sides = uncrop_boxes_xyxy(boxes, crop_box).float()
    near_crop, near_image = (
        (sides - torch.tensor(box, dtype=torch.float32, device=boxes.device)).abs() <= atol
        for box in (crop_box, orig_box)
    )
    return (near_crop & ~near_image).any(dim=1)


# Boxes and scores of masks


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """Boxes around masks (..., H, W) bool: int64 (..., 4), all zero for an empty mask."""
    if 0 in masks.shape:
        return torch.zeros(*masks.shape[:-2], 4, dtype=torch.int64, device=masks.device)
    (x_min, x_max), (y_min, y_max) = (_extent(masks.any(dim=dim)) for dim in (-2, -1))
    return torch.stack([x_min, y_min, x_max, y_max], dim=-1)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true position along the last axis; 0 and 0 where there is none."""
    marks = occupied.to(torch.uint8)  # argmax finds the first of equal values
    last = marks.shape[-1] - 1 - marks.flip(-1).argmax(dim=-1)
    return marks.argmax(dim=-1), last * occupied.any(dim=-1)


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """One box (x_min, y_min, x_max, y_max), an array, tensor or list, as (x, y, width, height) of the same kind."""
    box = deepcopy(box_xyxy)
    for low, high in ((0, 2), (1, 3)):
        box[high] = box_xyxy[high] - box_xyxy[low]
    return box


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """How little masks depend on the threshold: their IoU at the threshold plus and minus an offset.

    Args:
        masks: (..., H, W) logits.

    Returns:
        (...) float32, 0 to 1; NaN for a mask that is empty at both.
    """
    # One mask lies inside the other: their intersection and union are the areas.
    inner, outer = (
        (masks > threshold).flatten(-2).sum(dim=-1, dtype=torch.int32)
        for threshold in (mask_threshold + threshold_offset, mask_threshold - threshold_offset)
    )
    return inner / outer


def remove_small_regions(mask: np.ndarray, area_thresh: float, mode: str) -> tuple[np.ndarray, bool]:
    """Fill the small holes of a mask, or remove its small islands.

    Args:
        mask: (H, W) bool.
        area_thresh: regions of less than so many pixels are small.
        mode: "holes" or "islands". The largest island stays, however small it is.

    Returns:
        (mask, whether it was changed).

    Raises:
        ValueError: another `mode`.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode must be 'holes' or 'islands', got {mode!r}")
    regions = ~mask if mode == "holes" else mask
    labels, areas = (x[0, 0].numpy() for x in label_components(torch.from_numpy(regions.astype(bool))[None, None]))
    small = (areas > 0) & (areas < area_thresh)
    if not small.any():
        return mask, False
    if mode == "holes":
        return mask | small, True
    if not (kept := mask & ~small).any():
        kept = labels == labels.flat[areas.argmax()]
    return kept, True


# Run-length codes


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """Run-length codes of masks (N, H, W) bool."""
    n, height, width = tensor.shape
    columns = tensor.transpose(1, 2).flatten(1)  # (N, W H)
    mask_idx, position = (columns[:, 1:] != columns[:, :-1]).nonzero(as_tuple=True)
    changes_per_mask = torch.bincount(mask_idx, minlength=n).tolist()
    starts_inside = columns[:, :1].flatten().tolist()
    codes = []
    for changes, inside in zip((position + 1).cpu().split(changes_per_mask), starts_inside, strict=True):
        borders = np.concatenate([[0], changes.numpy(), [height * width]])
        codes.append({"size": [height, width], "counts": [0] * inside + np.diff(borders).tolist()})
    return codes


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """The mask of a run-length code, (H, W) bool.

    Raises:
        ValueError: the runs don't add up to H x W pixels.
    """
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    if counts.sum() != height * width:
        raise ValueError(f"rle counts must add up to {height} x {width} pixels, got {counts.sum()}")
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, counts).reshape(width, height).T


def area_from_rle(rle: dict[str, Any]) -> int:
    """Pixels inside the mask of a run-length code."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """A run-length code as COCO's tools write it: `counts` is a string, ready for JSON.

    Each count, from the fourth on as the difference to the one two before, is written in groups of 5 bits, lowest
    first, as the characters from "0" on; bit 6 says that more groups follow, and the last group's bit 5 is the sign.
    """
    counts = uncompressed_rle["counts"]
    deltas = [count - (counts[i - 2] if i > 2 else 0) for i, count in enumerate(counts)]
    text = "".join(_five_bit_groups(int(delta)) for delta in deltas)
    return {"size": list(uncompressed_rle["size"]), "counts": text}


def _five_bit_groups(value: int) -> str:
    text = ""
    while True:
        group, value = value & 31, value >> 5
        if value == (-1 if group & 16 else 0):  # what is left is only the sign, which this group's bit 5 tells
            return text + chr(48 + group)
        text += chr(48 + (group | 32))

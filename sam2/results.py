"""What tracking says of each object on each frame: mask, box, area, scores and how it came by them.

N objects; H, W rows and columns of the video. Ids are the caller's; `objects` are in the order of every answer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam2.frame_skipping import FrameDecision
from sam2.utils.change_detection import Action

Status = Literal["prompted", "tracked", "reused", "warped", "occluded", "suspect"]
"""How an object came by its mask: the user's prompt on this frame, the network, or the last key frame's mask, copied or
carried along. "occluded": it is not to be seen, whatever was done with the frame. "suspect": it has a mask that the
predictor's guard does not believe, and that memory does not read (`TrackGuard`)."""

_STATUS: Mapping[Action, Status] = {
    "prompted": "prompted",
    "processed": "tracked",
    "reused": "reused",
    "warped": "warped",
}


class Box(NamedTuple):
    """Pixels x0 <= x < x1 and y0 <= y < y1, so that `frame[y0:y1, x0:x1]` is what lies in it."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """One object on one frame.

    Attributes:
        obj_id: the caller's id.
        mask: (H, W) bool.
        box: around the mask, ends not included; None where the mask is empty.
        area: pixels of the mask.
        object_score: how sure the network is that the object is in the frame, 0 to 1.
        predicted_iou: how well the network thinks the mask fits, about 0 to 1.
        status: see `Status`. The scores of a skipped frame are those of its key frame.
    """

    obj_id: Hashable
    mask: np.ndarray
    box: Box | None
    area: int
    object_score: float
    predicted_iou: float
    status: Status


@dataclass(frozen=True, eq=False)
class FrameResult(Mapping[Hashable, ObjectResult]):
    """The objects of one frame, by id: `result[7].mask`, `7 in result`, `for obj_id in result`.

    An object that was not looked for on the frame is not among them.

    Attributes:
        objects: the same in order.
        owner: (H, W) integers: which of `objects` a pixel shows, counted from 1, 0 for none. Where masks overlap it is
            the object with the highest logit, and the first of equals.
        decision: what was done with the frame, and why.
        scene_cut: whether another scene begins with the frame, in the order the frames were tracked, if the predictor's
            guard looked for it.
    """

    objects: tuple[ObjectResult, ...]
    owner: np.ndarray
    decision: FrameDecision
    scene_cut: bool = False

    @property
    def frame(self) -> int:
        """Index of the frame, from 0."""
        return self.decision.frame

    @property
    def obj_ids(self) -> list[Hashable]:
        """The objects' ids, in order."""
        return [each.obj_id for each in self.objects]

    @property
    def height(self) -> int:
        """H."""
        return self.owner.shape[0]

    @property
    def width(self) -> int:
        """W."""
        return self.owner.shape[1]

    @property
    def has_overlaps(self) -> bool:
        """Whether a pixel belongs to several masks, so that a label map cannot hold them all."""
        return sum(each.area for each in self.objects) > int(np.count_nonzero(self.owner))

    def label_map(self) -> np.ndarray:
        """The objects' ids as one picture (H, W) uint8, 0 the background; equal to `merge_masks` of the logits.

        Raises:
            ValueError: an id that is no integer from 1 to 255.
        """
        ids = self.obj_ids
        if not all(fits_label_map(obj_id) for obj_id in ids):
            raise ValueError(f"a label map holds ids from 1 to 255, and these are {ids}")
        return np.array([0, *ids], np.uint8)[self.owner]

    def __getitem__(self, obj_id: Hashable) -> ObjectResult:
        for each in self.objects:
            if each.obj_id == obj_id:
                return each
        raise KeyError(f"obj_id {obj_id!r} is not on frame {self.frame}; its objects are {self.obj_ids}")

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.obj_ids)

    def __len__(self) -> int:
        return len(self.objects)


def whole_number(obj_id: Hashable) -> int | None:
    """An id as an int, where it is an integer; None for any other."""
    if isinstance(obj_id, int | np.integer) and not isinstance(obj_id, bool):
        return int(obj_id)
    return None


def fits_label_map(obj_id: Hashable) -> bool:
    """Whether an id can be a pixel value beside the background's 0: an integer from 1 to 255."""
    number = whole_number(obj_id)
    return number is not None and 1 <= number <= 255


def frame_result(
    decision: FrameDecision,
    obj_ids: Sequence[Hashable],
    mask_logits: Tensor,
    object_score_logits: Tensor | np.ndarray | Sequence[float],
    predicted_ious: Tensor | np.ndarray | Sequence[float],
    *,
    statuses: Sequence[Status | None] | None = None,
    scene_cut: bool = False,
) -> FrameResult:
    """Make a frame's result of what the network answered. All objects are measured at once and copied at once.

    Args:
        decision: what was done with the frame.
        obj_ids: N ids.
        mask_logits: (N, 1, H, W), above 0 inside an object, as `propagate_in_video` yields them; on any device.
        object_score_logits: N numbers of any shape, above 0 where the object is in the frame; on a skipped frame those
            of its key frame.
        predicted_ious: N numbers of any shape.
        statuses: how each object came by its mask; None for one that has no result on this frame and is left out. By
            default what was done with the frame holds for all of them.
        scene_cut: as of `FrameResult`.

    Raises:
        ValueError: not one mask, score, predicted IoU and status per object.
    """
    n = len(obj_ids)
    shape = tuple(mask_logits.shape)
    if len(shape) != 4 or shape[:2] != (n, 1):
        raise ValueError(f"mask_logits must be ({n}, 1, H, W), one per object, got {shape}")
    scores = []
    for name, values in (("object_score_logits", object_score_logits), ("predicted_ious", predicted_ious)):
        each = torch.as_tensor(values, dtype=torch.float32, device=mask_logits.device)
        if each.numel() != n:
            raise ValueError(f"{name} must be {n} numbers, one per object, got shape {tuple(each.shape)}")
        scores.append(each.reshape(n))
    given: Sequence[Status | None] = statuses if statuses is not None else [_STATUS[decision.action] for _ in obj_ids]
    if len(given) != n:
        raise ValueError(f"statuses must be {n}, one per object, got {len(given)}")
    numbers = torch.stack(scores, dim=1)  # (N, 2)
    shown: list[Status] = [status for status in given if status is not None]
    rows = [row for row, status in enumerate(given) if status is not None]
    if len(rows) < n:
        mask_logits, numbers = mask_logits[rows], numbers[rows]
    measured = _measure(mask_logits[:, 0], numbers)
    objects = []
    for i, (row, status) in enumerate(zip(rows, shown, strict=True)):
        x0, y0, x1, y1, area = measured.extents[i].tolist()
        logit, iou = measured.scores[i].tolist()
        is_hidden = area == 0 or logit <= 0
        objects.append(
            ObjectResult(
                obj_ids[row], measured.masks[i], Box(x0, y0, x1, y1) if area else None, area, _sigmoid(logit), iou,
                "occluded" if is_hidden else status,
            )
        )  # fmt: skip
    return FrameResult(tuple(objects), measured.owner, decision, scene_cut)


class _Measured(NamedTuple):
    """Masks and what was measured on them, on the host."""

    masks: np.ndarray  # (N, H, W) bool
    owner: np.ndarray  # (H, W) uint8, or int16 for more than 255 objects
    extents: np.ndarray  # (N, 5) int32: x0, y0, x1, y1, area
    scores: np.ndarray  # (N, 2) float32: object score logit, predicted IoU


def _measure(logits: Tensor, scores: Tensor) -> _Measured:
    """Measure masks (N, H, W) where they are, and copy all there is to know of them to the host in one piece."""
    masks = logits > 0
    marks = masks.view(torch.uint8)  # ten times as fast to reduce on the CPU as booleans
    in_rows = marks.sum(dim=2, dtype=torch.int32)  # (N, H)
    (x0, x1), (y0, y1) = _span(marks.amax(dim=1)), _span(in_rows > 0)
    area = in_rows.sum(dim=1, dtype=torch.int32)
    extents = torch.stack([x0, y0, x1, y1, area], dim=1)  # (N, 5)
    parts = [extents, scores, _owner(logits), masks]  # the widest numbers first: each part is aligned
    raw = torch.cat([part.contiguous().view(torch.uint8).flatten() for part in parts]).cpu().numpy()
    arrays = []
    for part in parts:
        size = part.numel() * part.element_size()
        dtype = str(part.dtype).removeprefix("torch.")
        arrays.append(raw[:size].view(dtype).reshape(part.shape))
        raw = raw[size:]
    return _Measured(masks=arrays[3], owner=arrays[2], extents=arrays[0], scores=arrays[1])


def _owner(logits: Tensor) -> Tensor:
    """Which of N objects has each pixel, counted from 1 (H, W); 0 where no logit is above 0."""
    n, height, width = logits.shape
    dtype = torch.uint8 if n <= 255 else torch.int16
    if n == 0:
        return torch.zeros(height, width, dtype=dtype, device=logits.device)
    if n == 1:
        return (logits[0] > 0).to(dtype)
    best, index = logits.max(dim=0)  # the first of equals
    return index.to(dtype).add_(1).mul_(best > 0)


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First true position along the last axis and one past the last, int32 (N,); 0 and 0 where there is none."""
    length = occupied.shape[-1]
    places = torch.arange(1, length + 1, dtype=torch.int32, device=occupied.device)
    end = (places * occupied).amax(dim=-1)
    start = length - ((length + 1 - places) * occupied).amax(dim=-1)
    return torch.where(end > 0, start, 0).to(torch.int32), end.to(torch.int32)


def _sigmoid(logit: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * logit))  # overflows for no logit

"""Named records that cross the boundaries between the network's parts.

Shapes: B objects, C channels, M masks, S the network's input size, h = w = S / 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sam2.modeling.search_region import Region


class DecodedMasks(NamedTuple):
    """What the mask decoder answers for B prompts."""

    masks: Tensor  # (B, M, 4h, 4w) logits
    ious: Tensor  # (B, M) predicted IoU
    tokens: Tensor  # (B, 1 or M, C) output tokens of the masks
    object_score_logits: Tensor  # (B, 1), above 0 where the object is in the frame


class SamOutput(NamedTuple):
    """The masks of one frame, all candidates and the one that was chosen."""

    low_res_multimasks: Tensor  # (B, M, 4h, 4w) logits
    ious: Tensor  # (B, M) predicted IoU
    low_res_masks: Tensor  # (B, 1, 4h, 4w), the candidate with the best predicted IoU
    high_res_masks: Tensor  # (B, 1, S, S), the same at the network's input size
    best_ious: Tensor  # (B, 1) its predicted IoU
    obj_ptr: Tensor  # (B, C)
    object_score_logits: Tensor  # (B, 1)


class FrameFeatures(NamedTuple):
    """The encoder's maps of one frame, finest (stride 4) first."""

    maps: list[Tensor]  # (B, C_i, H_i, W_i); all but the last go straight to the mask decoder
    positions: list[Tensor]  # (B, C, H_i, W_i) position encodings

    @property
    def top(self) -> Tensor:
        """The coarsest map (B, C, h, w), the one that reads memory."""
        return self.maps[-1]

    @property
    def high_res(self) -> list[Tensor] | None:
        """The finer maps for the mask decoder; None for a decoder without them."""
        return self.maps[:-1] or None


class PointInputs(NamedTuple):
    """Clicks and box corners on one frame."""

    point_coords: Tensor  # (B, P, 2) (x, y) in pixels of the network's input
    point_labels: Tensor  # (B, P) int32: 1 positive, 0 negative, 2 and 3 a box's corners


def as_point_inputs(points: Mapping[str, Tensor] | PointInputs | None) -> PointInputs | None:
    """Clicks, also from upstream's dict "point_coords", "point_labels"."""
    if isinstance(points, Mapping):
        return PointInputs(points["point_coords"], points["point_labels"])
    return points


class FrameRequest(NamedTuple):
    """What is asked of one frame."""

    frame_idx: int
    num_frames: int
    reverse: bool = False  # time runs backwards
    reads_memory: bool = True  # False on the frame an object is first prompted on: there is nothing to remember yet
    points: PointInputs | None = None
    mask: Tensor | None = None  # (B, 1, S, S), 0 or 1
    previous_logits: Tensor | None = None  # (B, 1, 4h, 4w), or S x S in regions: the answer that the points refine


class ReadsAsDict(Mapping[str, Any]):
    """A record that is read like upstream's dicts as well: `output["obj_ptr"]`, `"obj_ptr" in output`, `.items()`."""

    __slots__ = ()
    names: ClassVar[tuple[str, ...]]  # the keys; all others of the record's attributes are not upstream's

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


STORED_NAMES = ("maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr", "object_score_logits", "ious")


class CompactOutput(ReadsAsDict):
    """What stays of one object's output on a frame without memory: its scores are numbers, its masks the subclass's."""

    __slots__ = ()
    names = STORED_NAMES
    object_score: float  # logit, above 0 where the object is in the frame
    predicted_iou: float

    maskmem_features = None
    maskmem_pos_enc = None

    def __setitem__(self, name: str, value: Any) -> None:
        """Takes what is so already: loops that bound memory set that of old frames to None."""
        if not (value is None and name in self.names and getattr(self, name) is None):
            raise TypeError(
                f"{name!r} of a frame that was packed or skipped cannot be set: delete the frame, or open the video "
                'with init_state(keep="all")'
            )

    @property
    def object_score_logits(self) -> Tensor:
        """(1, 1)."""
        return torch.full((1, 1), self.object_score)

    @property
    def ious(self) -> Tensor:
        """(1, 1) predicted IoU."""
        return torch.full((1, 1), self.predicted_iou)


@dataclass(slots=True)
class FrameOutput(ReadsAsDict):
    """What is kept of a tracked frame: its masks, and its memory for later frames."""

    names: ClassVar[tuple[str, ...]] = (*STORED_NAMES, "pred_masks_high_res", "point_inputs", "mask_inputs")
    pred_masks: Tensor  # (B, 1, 4h, 4w) logits
    obj_ptr: Tensor  # (B, C)
    object_score_logits: Tensor  # (B, 1)
    ious: Tensor | None = None  # (B, 1) predicted IoU of the chosen mask
    pred_masks_high_res: Tensor | None = None  # (B, 1, S, S) logits
    maskmem_features: Tensor | None = None  # (B, mem_dim, h, w); None until the frame is written to memory
    maskmem_pos_enc: list[Tensor] | None = None  # one (B, mem_dim, h, w)
    point_inputs: PointInputs | None = None
    mask_inputs: Tensor | None = None  # (B, 1, S, S)
    region: Region | None = None  # the part of the frame that the network saw; None for all of it
    given: Tensor | None = None  # (B, 1, S, S) bool: a mask prompt that is remembered as it is, until then

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.names:
            raise KeyError(name)
        setattr(self, name, value)
        if name in ("pred_masks", "maskmem_features"):  # who sets them (not: edits them in place) wants them remembered
            self.given = None


class EncodedMemory(NamedTuple):
    """One frame's memory map and its position encoding, both (B, mem_dim, h, w)."""

    features: Tensor
    position: Tensor


class MemoryTokens(NamedTuple):
    """Memory as memory attention reads it: maps first, object pointers last."""

    tokens: Tensor  # (N, B, mem_dim)
    positions: Tensor  # (N, B, mem_dim)
    num_pointer_tokens: int

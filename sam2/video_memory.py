"""What a session keeps of frames that memory attention no longer reaches: packed masks and object pointers.

h, w: rows and columns of the mask logits that a session keeps (`VideoState.mask_side`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam2.modeling.outputs import CompactOutput, FrameOutput
from sam2.modeling.search_region import Region

LEVELS_PER_UNIT = 6  # of asinh(2 logit): fine at the edge of a mask, coarse away from it
LARGEST_LEVEL = 21  # stands for all logits beyond 7.6, which are far from the edge: only their side is kept
FAR_LOGIT = 10.0  # what they come back as; memory takes it for certain
BLOCK_BYTES, BLOCK_ROWS = 2**18, 256  # of a `Shelf`


class PackedMask(NamedTuple):
    """Low-res mask logits, rounded and compressed: 2 to 11 KB for an object of 256 x 256, soft edges taking more.

    Logits from -7.6 to 7.6 come back to within 9 %, or 0.09 near 0, the others as -10 and 10.
    """

    data: bytes | memoryview
    height: int
    width: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled with bytes of its own."""
        return PackedMask, (bytes(self.data), self.height, self.width)


def pack_masks(logits: Tensor) -> list[PackedMask]:
    """Pack mask logits (B, 1, h, w), from any device with a single copy."""
    levels = ((2 * logits.float()).asinh() * LEVELS_PER_UNIT).round().clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    # A pixel on the edge keeps its side: above 0 is inside.
    levels = torch.where((logits > 0) & (levels == 0), torch.ones_like(levels), levels)
    planes = levels[:, 0].to(torch.int8).cpu().numpy()  # (B, h, w)
    steps = np.diff(planes, axis=1, prepend=np.int8(0))  # smooth from row to row: compresses by a quarter more
    return [PackedMask(zlib.compress(each.tobytes(), level=1), *each.shape) for each in steps]


def unpack_mask(packed: PackedMask) -> Tensor:
    """Mask logits (1, 1, h, w), float32 on the CPU."""
    steps = np.frombuffer(zlib.decompress(packed.data), np.int8).reshape(packed.height, packed.width)
    levels = torch.from_numpy(steps.cumsum(axis=0, dtype=np.int8)).float()
    far = levels.sign() * FAR_LOGIT
    return torch.where(levels.abs() >= LARGEST_LEVEL, far, (levels / LEVELS_PER_UNIT).sinh() / 2)[None, None]


class PointerRow(NamedTuple):
    """One object pointer among many: a tensor of its own would be one more small piece, see `Shelf`."""

    block: Tensor  # (rows, C)
    row: int

    @property
    def tensor(self) -> Tensor:
        """The pointer (1, C), without copying."""
        return self.block[self.row : self.row + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled without the others."""
        return PointerRow, (self.tensor.clone(), 0)


class Shelf:
    """Room for what is kept of an object for long, in a few large blocks. A block goes with the last thing in it.

    Thousands of small pieces, each allocated between the network's large temporaries, would split the memory that
    those free: at 1024 pixels the process would grow by a fifth over 2,000 frames.
    """

    def __init__(self) -> None:
        self._bytes = memoryview(bytearray())  # the free end of the newest block
        self._next: PointerRow | None = None  # the first free row of the newest block

    def __deepcopy__(self, memo: dict[int, Any]) -> Shelf:
        """An empty one: what lies here is copied with what refers to it."""
        return Shelf()

    def keep_mask(self, packed: PackedMask) -> PackedMask:
        """The same mask, on the shelf."""
        size = len(packed.data)
        if size > len(self._bytes):
            self._bytes = memoryview(bytearray(max(size, BLOCK_BYTES)))
        kept, self._bytes = self._bytes[:size], self._bytes[size:]
        kept[:] = packed.data
        return packed._replace(data=kept.toreadonly())

    def keep_pointer(self, pointer: Tensor) -> PointerRow:
        """A copy of a pointer (1, C), on its device."""
        place = self._next
        if place is None or place.row == BLOCK_ROWS or place.tensor.dtype != pointer.dtype:
            with torch.inference_mode(False):  # a block made in inference mode could not be written outside
                place = PointerRow(pointer.new_empty(BLOCK_ROWS, pointer.shape[1]), 0)
        place.tensor.copy_(pointer)
        self._next = PointerRow(place.block, place.row + 1)
        return place


@dataclass(frozen=True, slots=True)
class FadedOutput(CompactOutput):
    """A tracked frame whose memory map is gone. Its object pointer is the exact one.

    Reads like a `FrameOutput` that was not written to memory.
    """

    packed: PackedMask
    pointer: PointerRow
    object_score: float
    predicted_iou: float
    region: Region | None = None

    @classmethod
    def of(cls, outputs: Sequence[FrameOutput], shelves: Sequence[Shelf]) -> list[FadedOutput]:
        """What is kept of outputs of one object each, on the shelf of each."""
        packed = pack_masks(torch.cat([output.pred_masks for output in outputs]))
        scores = torch.stack([_scores(output) for output in outputs]).tolist()
        return [
            cls(shelf.keep_mask(mask), shelf.keep_pointer(output.obj_ptr), score, iou, output.region)
            for shelf, mask, output, (score, iou) in zip(shelves, packed, outputs, scores, strict=True)
        ]

    @property
    def obj_ptr(self) -> Tensor:
        """(1, C)."""
        return self.pointer.tensor

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits (1, 1, h, w), float32 on the CPU: see `PackedMask`."""
        return unpack_mask(self.packed)


def _scores(output: FrameOutput) -> Tensor:
    """Object score and predicted IoU, float32 (2,)."""
    score = output.object_score_logits.float()
    return torch.cat([score, torch.ones_like(score) if output.ious is None else output.ious.float()]).flatten()

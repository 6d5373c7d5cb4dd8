"""Samples, a clip and the objects to track through it each, and batches of samples.

N clips, T frames of S x S pixels, B objects of all clips of a batch together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """A clip, and the masks of the objects that are to be tracked through it.

    frames: RGB uint8 (T, S, S, 3). masks: bool (O, T, S, S), none of them empty on the first frame. near: the frames
    show the search region of the one object, which is prompted by its mask: other prompts find the region first.
    """

    frames: np.ndarray
    masks: np.ndarray
    near: bool = False


class ClipBatch(NamedTuple):
    """Clips of one length, and the objects of all of them in one row.

    frames: uint8 (N, T, 3, S, S). masks: bool (B, T, S, S). clip_of: int64 (B,), the clip each object is in. near: bool
    (N,), the clips that show search regions.
    """

    frames: Tensor
    masks: Tensor
    clip_of: Tensor
    near: Tensor

    @property
    def near_objects(self) -> Tensor:
        """The objects that are seen in search regions, bool (B,)."""
        return self.near[self.clip_of]

    def to(self, device: torch.device) -> ClipBatch:
        """The same on another device."""
        return ClipBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(samples: Sequence[Sample]) -> ClipBatch:
    """Samples of one length as a batch."""
    frames = torch.from_numpy(np.stack([s.frames for s in samples])).permute(0, 1, 4, 2, 3).contiguous()
    masks = torch.from_numpy(np.concatenate([s.masks for s in samples]))
    counts = torch.tensor([len(s.masks) for s in samples])
    near = torch.tensor([s.near for s in samples])
    return ClipBatch(frames, masks, torch.arange(len(samples)).repeat_interleave(counts), near)


def join(batches: Sequence[ClipBatch]) -> ClipBatch:
    """Several batches of clips of one length as one."""
    if len(batches) == 1:
        return batches[0]
    firsts = np.cumsum([0, *(len(batch.frames) for batch in batches[:-1])]).tolist()
    return ClipBatch(
        torch.cat([batch.frames for batch in batches]),
        torch.cat([batch.masks for batch in batches]),
        torch.cat([batch.clip_of + first for batch, first in zip(batches, firsts, strict=True)]),
        torch.cat([batch.near for batch in batches]),
    )


def exactly(batch: ClipBatch, count: int) -> ClipBatch:
    """A batch of `count` objects, drawn with torch's global generator: some are left out, or taken more than once.

    On a GPU cuDNN plans its kernels anew for every size that they meet. With the number of objects changing from step
    to step, planning took longer than the step itself (H100, torch 2.11).
    """
    there = len(batch.masks)
    turns = [torch.randperm(there) for _ in range(-(-count // there))]
    rows = torch.cat(turns)[:count].to(batch.masks.device)
    return batch._replace(masks=batch.masks[rows], clip_of=batch.clip_of[rows])

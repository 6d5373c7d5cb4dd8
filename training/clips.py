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

    frames: RGB uint8 (T, S, S, 3). masks: bool (O, T, S, S), none of them empty on the first frame.
    """

    frames: np.ndarray
    masks: np.ndarray


class ClipBatch(NamedTuple):
    """Clips of one length, and the objects of all of them in one row.

    frames: uint8 (N, T, 3, S, S). masks: bool (B, T, S, S). clip_of: int64 (B,), the clip each object is in.
    """

    frames: Tensor
    masks: Tensor
    clip_of: Tensor

    def to(self, device: torch.device) -> ClipBatch:
        """The same on another device."""
        return ClipBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(samples: Sequence[Sample]) -> ClipBatch:
    """Samples of one length as a batch."""
    frames = torch.from_numpy(np.stack([s.frames for s in samples])).permute(0, 1, 4, 2, 3).contiguous()
    masks = torch.from_numpy(np.concatenate([s.masks for s in samples]))
    counts = torch.tensor([len(s.masks) for s in samples])
    return ClipBatch(frames, masks, torch.arange(len(samples)).repeat_interleave(counts))

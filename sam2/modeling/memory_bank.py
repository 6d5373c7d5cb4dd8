"""Which frames the current one remembers: pure functions of frame numbers, and the two stores they look into.

A *prompted* frame is one the user gave a click, box or mask on (upstream: conditioning frame), a *propagated* frame one
that was tracked (upstream: non-conditioning frame). SAM 2, section 4, "Memory bank".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sam2.modeling.frame_spans import FrameSpans
from sam2.modeling.sam2_utils import select_closest_cond_frames


class MemoryFrame(Protocol):
    """What memory attention reads of a frame; a `FrameOutput` is one."""

    @property
    def obj_ptr(self) -> Tensor:
        """(B, C)."""
        ...

    @property
    def maskmem_features(self) -> Tensor | None:
        """(B, mem_dim, h, w); None if the frame was not written to memory, or its map was dropped."""
        ...

    @property
    def maskmem_pos_enc(self) -> list[Tensor] | None:
        """One (B, mem_dim, h, w)."""
        ...


class StoredFrame(NamedTuple):
    """A `MemoryFrame` from a caller's own dict."""

    obj_ptr: Tensor
    maskmem_features: Tensor | None
    maskmem_pos_enc: list[Tensor] | None


def as_memory_frame(output: MemoryFrame | dict[str, Any]) -> MemoryFrame:
    """An output of a frame, also from a dict of upstream's keys."""
    return StoredFrame(*(output[name] for name in StoredFrame._fields)) if isinstance(output, dict) else output


class MemoryBank(NamedTuple):
    """The frames of one object that may be remembered, by frame index; each a `MemoryFrame` or a dict of its keys."""

    prompted: Mapping[int, Any]
    propagated: Mapping[int, Any]
    doubted: FrameSpans = FrameSpans()  # propagated frames that must not be remembered

    @property
    def believed(self) -> Mapping[int, Any]:
        """The propagated frames without the doubted ones."""
        if not self.doubted:
            return self.propagated
        return {t: output for t, output in self.propagated.items() if t not in self.doubted}


class Remembered(NamedTuple):
    """One remembered frame and how far back it counts."""

    distance: int
    output: MemoryFrame
    frame_idx: int


class Selection(NamedTuple):
    """The frames whose maps, and those whose object pointers, the current frame attends to, in memory order."""

    maps: list[Remembered]  # distance: 0 for a prompted frame, else 1 (oldest slot) to num_maskmem - 1 (newest)
    pointers: list[Remembered]  # distance in frames, signed for prompted frames where the model was trained so

    @property
    def layout(self) -> tuple[tuple[int, ...], ...]:
        """Frame indices and distances. Objects of equal layout can be read and decoded in one batch."""
        return tuple((each.frame_idx, each.distance) for group in self for each in group) + ((len(self.maps),),)


def memory_frames(frame_idx: int, num_maskmem: int, stride: int, reverse: bool) -> list[tuple[int, int]]:
    """Frames whose maps fill the memory slots, oldest first, as (slot, frame index); some may not exist.

    The newest slot holds the frame just before the current one (after it, in reverse), the others every `stride`-th
    frame before that, on multiples of `stride`.
    """
    step = -1 if reverse else 1
    frames = []
    for slot in range(1, num_maskmem):
        back = num_maskmem - slot
        if back == 1:
            frames.append((slot, frame_idx - step))
        else:
            # Mirrored in time, "the last multiple before" becomes "the first multiple after".
            anchor = (step * frame_idx - 2) // stride * stride
            frames.append((slot, step * (anchor - (back - 2) * stride)))
    return frames


def pointer_frames(frame_idx: int, num_frames: int, max_pointers: int, reverse: bool) -> list[tuple[int, int]]:
    """Frames besides the prompted ones whose object pointers are read, nearest first, as (distance, frame index)."""
    step = -1 if reverse else 1
    nearby = [(distance, frame_idx - step * distance) for distance in range(1, max_pointers)]
    return [(distance, t) for distance, t in nearby if 0 <= t < num_frames]


def memory_reach(num_maskmem: int, stride: int) -> int:
    """How many frames away from the tracked one `memory_frames` looks at most, on either side."""
    return max(1, (num_maskmem - 1) * stride)


class BankRules(NamedTuple):
    """How a model reads its memory bank; the fields are the options of `SAM2Base` of the same meaning."""

    num_maskmem: int
    stride: int
    max_prompted: int
    max_pointers: int
    signed_distance: bool
    pointers_from_past_only: bool


def select_memory(
    bank: MemoryBank,
    frame_idx: int,
    reverse: bool,
    num_frames: int,
    rules: BankRules,
    closest: Callable[..., tuple[dict[int, Any], dict[int, Any]]] = select_closest_cond_frames,
) -> Selection:
    """Choose what the frame `frame_idx` remembers. Of propagated frames it is what it would be if the doubted ones had
    never been, distances included; prompted frames keep their true distance.

    Args:
        closest: which prompted frames are read, see `select_closest_cond_frames`.

    Raises:
        RuntimeError: the object was never prompted.
    """
    if not bank.prompted:
        raise RuntimeError(f"frame {frame_idx} has no prompted frame to track from: add points, a box or a mask first")
    chosen, others = closest(frame_idx, bank.prompted, rules.max_prompted)
    prompted = {t: as_memory_frame(output) for t, output in chosen.items()}

    def tracked(t: int) -> MemoryFrame | None:
        found = bank.propagated.get(t, others.get(t))
        output = None if found is None else as_memory_frame(found)
        # A session read under upstream's names shows skipped frames too, which are not to be remembered.
        return None if output is None or output.obj_ptr is None else output

    maps = [Remembered(0, output, t) for t, output in prompted.items()]
    for slot, nominal in memory_frames(frame_idx, rules.num_maskmem, rules.stride, reverse):
        t = bank.doubted.passing(frame_idx, abs(frame_idx - nominal), reverse)
        if (output := tracked(t)) is not None:
            maps.append(Remembered(slot, output, t))

    step = -1 if reverse else 1
    pointers = []
    for t, output in prompted.items():
        elapsed = step * (frame_idx - t)
        if elapsed >= 0 or not rules.pointers_from_past_only:
            pointers.append(Remembered(elapsed if rules.signed_distance else abs(elapsed), output, t))
    for distance, _ in pointer_frames(frame_idx, num_frames, rules.max_pointers, reverse):
        t = bank.doubted.passing(frame_idx, distance, reverse)
        if (output := tracked(t)) is not None:
            pointers.append(Remembered(distance, output, t))
    return Selection(maps, pointers)

"""What a video session knows: its frames, its objects, their prompts and results. Data and invariants, no network.

Words: an output is *prompted* (the user gave a prompt on that frame; upstream: conditioning) or *propagated* (tracked;
upstream: non-conditioning), and *pending* until the next propagation writes it to memory.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import operator
from collections import ChainMap
from collections.abc import Hashable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from sam2.frame_skipping import FrameDecision, SkipOptions, decision_table
from sam2.modeling.frame_spans import FrameSpans
from sam2.modeling.memory_bank import MemoryBank
from sam2.modeling.outputs import CompactOutput, FrameFeatures, FrameOutput, PointInputs
from sam2.modeling.search_region import Region, Size
from sam2.state_views import NOT_WRITABLE, UPSTREAM_NAMES
from sam2.utils.change_detection import Action, GateFrame
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.skip_gate import GateMemo
from sam2.video_memory import FadedOutput, PackedMask, Shelf, pack_masks, unpack_mask

ObjectId = Hashable

FEW = 32  # frames skipped in a row: within so many a look at each is quicker than one at all that are known

Keep = Literal["window", "all"]
Corrections = Literal["tracked", "sticky"]


@dataclass(frozen=True, slots=True)
class CarriedMask(CompactOutput):
    """One object's masks on a skipped frame. Reads like a `FrameOutput` without a pointer, and without memory."""

    masks: Tensor | PackedMask  # low-res logits (1, 1, h, w)
    object_score: float  # of the key frame they come from
    predicted_iou: float  # likewise
    action: Action  # "reused" or "warped"
    region: Region | None = None  # of the key frame

    obj_ptr = None

    @property
    def facts(self) -> tuple[float, float, Action, Region | None]:
        """All that is known beside the masks."""
        return self.object_score, self.predicted_iou, self.action, self.region

    @property
    def logits(self) -> Tensor:
        """(1, 1, h, w)."""
        return unpack_mask(self.masks) if isinstance(self.masks, PackedMask) else self.masks

    @property
    def pred_masks(self) -> Tensor:
        """`logits`."""
        return self.logits


@dataclass
class ObjectTrack:
    """One object: its prompts and its results, by frame index.

    What is known of a frame is in one of `prompted`, `propagated`, `carried`, `faded` and `faded_carried` at most, the
    pending outputs aside.
    """

    points: dict[int, PointInputs] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)  # (1, 1, S, S), 0 or 1
    prompted: dict[int, FrameOutput] = field(default_factory=dict)
    propagated: dict[int, FrameOutput] = field(default_factory=dict)
    pending_prompted: dict[int, FrameOutput] = field(default_factory=dict)
    pending_propagated: dict[int, FrameOutput] = field(default_factory=dict)
    carried: dict[int, CarriedMask] = field(default_factory=dict)  # of skipped frames: shown, never remembered
    faded: dict[int, FadedOutput] = field(default_factory=dict)  # propagated, and out of memory's reach since
    faded_carried: dict[int, CarriedMask] = field(default_factory=dict)  # carried long ago, and packed
    tracked: dict[int, bool] = field(default_factory=dict)  # frames propagation passed, and whether in reverse
    doubted: FrameSpans = field(default_factory=FrameSpans)  # frames whose masks are shown, and not believed
    shelf: Shelf = field(default_factory=Shelf, init=False)  # where what has faded is kept

    @property
    def bank(self) -> MemoryBank:
        """What the object remembers."""
        propagated = ChainMap(self.propagated, self.faded)  # type: ignore[arg-type]
        return MemoryBank(self.prompted, propagated, self.doubted)

    @property
    def has_pending(self) -> bool:
        """Whether prompts wait for the next propagation."""
        return bool(self.pending_prompted or self.pending_propagated)

    @property
    def has_prompts(self) -> bool:
        """Whether there is a prompted frame to track from."""
        return bool(self.prompted or self.pending_prompted)

    def prompt_frames(self) -> list[int]:
        """Frames with a prompt, in order."""
        return sorted({*self.points, *self.masks})

    def latest_output(self, frame_idx: int, prompted: bool = False) -> FrameOutput | FadedOutput | None:
        """The newest output on a frame: the pending one of the given kind, else the committed one."""
        # parity: a pending output of the other kind is not looked at.
        pending = self.pending_prompted if prompted else self.pending_propagated
        for store in (pending, self.prompted, self.propagated, self.faded):
            if frame_idx in store:
                return store[frame_idx]
        return None

    def latest_masks(self, frame_idx: int, prompted: bool = False) -> Tensor | None:
        """The newest low-res mask logits (1, 1, h, w) on a frame, those of a skipped frame included."""
        output = self.latest_output(frame_idx, prompted)
        if output is not None:
            return output.pred_masks
        carried = self.carried.get(frame_idx) or self.faded_carried.get(frame_idx)
        return None if carried is None else carried.logits

    def last_known(self, frame_idx: int, reverse: bool) -> int | None:
        """The nearest frame before this one, or after it in reverse, on which the object has a mask."""
        stores = (self.prompted, self.propagated, self.carried, self.faded, self.faded_carried)
        neighbour = frame_idx + 1 if reverse else frame_idx - 1
        if any(neighbour in store for store in stores):
            return neighbour
        return _nearest((t for store in stores for t in store), frame_idx, reverse)

    def last_believed(self, frame_idx: int, reverse: bool) -> int | None:
        """The nearest frame before this one, or after it in reverse, that was prompted or processed and not doubted."""
        stores = (self.prompted, self.propagated, self.faded)
        here = frame_idx
        for _ in range(FEW):
            here = self.doubted.passing(here, 1, reverse)
            if any(here in store for store in stores):
                return here
        return _nearest((t for store in stores for t in store if t not in self.doubted), frame_idx, reverse)

    def region(self, frame_idx: int) -> Region | None:
        """Where the object was looked for on a frame; None for all of it, or where nothing is known of it."""
        output = self.latest_output(frame_idx)
        carried = self.carried.get(frame_idx) or self.faded_carried.get(frame_idx)
        known = output or carried
        return None if known is None else known.region

    def carry(self, frame_idx: int, carried: CarriedMask, doubted: bool = False) -> None:
        """Take masks of a key frame for a skipped one: they are shown, and memory never reads them.

        Args:
            doubted: those of the key frame are.
        """
        for store in (self.propagated, self.faded, self.faded_carried):
            store.pop(frame_idx, None)
        self.carried[frame_idx] = carried
        self._note_doubt(frame_idx, doubted)

    def commit_frame(self, frame_idx: int, output: FrameOutput, prompted: bool, doubted: bool = False) -> None:
        """Let memory read an output from now on, unless it is doubted."""
        (self.prompted if prompted else self.propagated)[frame_idx] = output
        self._note_doubt(frame_idx, doubted)
        for store in (self.carried, self.faded, self.faded_carried):
            store.pop(frame_idx, None)
        if prompted:
            self.propagated.pop(frame_idx, None)

    def spread_doubt(self, key: int, end: int) -> None:
        """Doubt the frames between a key frame that is doubted and another one: they will show its masks."""
        if key in self.doubted:
            for t in range(min(key, end) + 1, max(key, end)):
                self.doubted.add(t)

    def _note_doubt(self, frame_idx: int, doubted: bool) -> None:
        (self.doubted.add if doubted else self.doubted.discard)(frame_idx)

    def forget_out_of_reach(self, frame_idx: int, reach: int) -> None:
        """Drop all that is known of frames more than `reach` before this one, what the prompted ones remember aside,
        and what the next mask is compared with. Doubted frames in between do not count, and are dropped as if they did.
        """
        oldest, oldest_believed = frame_idx - reach, self.doubted.passing(frame_idx, reach, reverse=False)
        last = self.last_believed(frame_idx + 1, reverse=False)
        stores: list[dict[int, Any]] = [
            self.points, self.masks, self.propagated, self.carried, self.faded, self.faded_carried, self.tracked,
        ]  # fmt: skip
        for store in stores:
            is_output = store is self.propagated or store is self.faded
            for t in [t for t in store if t < oldest_believed or (t < oldest and t in self.doubted)]:
                if not (is_output and t == last):
                    del store[t]
        self.doubted.discard_before(oldest_believed)

    def forget_prompts(self, frame_idx: int) -> None:
        """Take back a frame's prompts; what they answered stays as a propagated output."""
        for store in (self.points, self.masks, self.pending_prompted, self.pending_propagated):
            store.pop(frame_idx, None)
        output = self.prompted.pop(frame_idx, None)
        if output is not None:
            self.propagated[frame_idx] = output
            # The next prompt here is a first look again, as if the frame had not been tracked.
            self.tracked.pop(frame_idx, None)
        if not self.has_prompts:
            self.tracked.clear()  # and so is one on any other frame

    def forget_propagated(self, around: int, reach: int) -> None:
        """Drop the propagated outputs up to `reach` frames from `around`, which itself is kept."""
        for store in (self.propagated, self.faded):
            for t in [t for t in store if t != around and abs(t - around) <= reach]:
                del store[t]
                self.doubted.discard(t)


def _nearest(frames: Iterable[int], frame_idx: int, reverse: bool) -> int | None:
    """The nearest one before a frame, or after it in reverse."""
    if reverse:
        return min((t for t in frames if t > frame_idx), default=None)
    return max((t for t in frames if t < frame_idx), default=None)


def fade(tracks: Sequence[ObjectTrack], position: int, reach: int) -> None:
    """Pack what is more than `reach` frames from `position` and from every prompt; only masks and pointers stay.

    Around an object's prompts everything stays, because tracking starts there, in either direction. From `position`
    doubted frames do not count.
    """
    outputs: list[tuple[ObjectTrack, int]] = []
    carried: list[tuple[ObjectTrack, int]] = []
    for track in tracks:
        anchors = sorted({position, *track.prompted, *track.pending_prompted})
        first, last = (track.doubted.passing(position, reach, reverse) for reverse in (False, True))
        outputs += [
            (track, t)
            for t in track.propagated
            if _distance(t, anchors) > reach and (t in track.doubted or not first <= t <= last)
        ]
        carried += [(track, t) for t in track.carried if _distance(t, anchors) > reach]
    if outputs:
        shelves = [track.shelf for track, _ in outputs]
        faded = FadedOutput.of([track.propagated.pop(t) for track, t in outputs], shelves)
        for (track, t), output in zip(outputs, faded, strict=True):
            track.faded[t] = output
    if carried:
        masks = [track.carried.pop(t) for track, t in carried]
        packed = pack_masks(torch.cat([each.logits for each in masks]))
        for (track, t), before, after in zip(carried, masks, packed, strict=True):
            track.faded_carried[t] = dataclasses.replace(before, masks=track.shelf.keep_mask(after))


def _distance(frame_idx: int, anchors: list[int]) -> int:
    """How far a frame is from the nearest of some sorted frames."""
    place = bisect.bisect(anchors, frame_idx)
    return min(abs(frame_idx - anchor) for anchor in anchors[max(place - 1, 0) : place + 1])


class PausedRun(NamedTuple):
    """Where a propagation with skipping came to, so that the next one can go on there as if it were the same."""

    last: int  # the frame it yielded last
    reverse: bool
    obj_ids: list[ObjectId]  # that were tracked
    options: SkipOptions
    memo: GateMemo


@dataclass(eq=False)
class VideoState(MutableMapping[str, Any]):
    """A video session: the frames, and the objects in the order they were added, which is their order in every answer.

    Reads like upstream's `inference_state` dict too: `state["video_height"]`, `state["obj_ids"]` and its other names.
    Frames can be deleted from what it shows of an object, and names that upstream does not have are the user's to set.
    """

    frames: FrameLoader
    device: torch.device
    storage_device: torch.device
    offload_video_to_cpu: bool = False
    offload_state_to_cpu: bool = False
    keep: Keep = "window"  # "window" packs what memory no longer reaches
    corrections: Corrections = "tracked"  # "sticky": a corrected frame counts as prompted from then on
    objects: dict[ObjectId, ObjectTrack] = field(default_factory=dict)
    search_factor: float | None = None  # objects are looked for in regions so many times as long; None: everywhere
    features: dict[int, FrameFeatures] = field(default_factory=dict)  # of the frame that was encoded last, by index
    cuts: dict[tuple[int, Region], FrameFeatures] = field(default_factory=dict)  # of the region that was encoded last
    memory_position: Tensor | None = None  # (1, mem_dim, h, w) position encoding that all memory maps share
    decision_of: dict[int, FrameDecision] = field(default_factory=dict)  # the last one on each frame
    scene_cuts: list[int] = field(default_factory=list)  # first frames of scenes, in order, as far as a guard looked
    paused: PausedRun | None = None
    edits: int = 0  # how often prompts or objects changed
    is_closed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)  # what the user keeps here under names of their own

    @property
    def decisions(self) -> list[FrameDecision]:
        """What propagation did with each frame, the last time it passed, in the order it was decided."""
        return list(self.decision_of.values())

    def decision_table(self) -> str:
        """`decisions` as a table in plain text."""
        return decision_table(self.decision_of.values())

    def record(self, decision: FrameDecision) -> None:
        """Put a decision on record, in place of an earlier one on the same frame."""
        self.decision_of.pop(decision.frame, None)
        self.decision_of[decision.frame] = decision

    def __eq__(self, other: object) -> bool:  # a mapping would compare all of its tensors
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def note_edit(self) -> None:
        """Count a change of prompts or objects: the next frame becomes a key frame, in a running loop too."""
        self.edits += 1
        self.paused = None

    @property
    def num_frames(self) -> int:
        """Length of the video; what a video file declares, until its end was reached."""
        return len(self.frames)

    @property
    def is_live(self) -> bool:
        """Whether the frames are a stream's, of which only the newest is there."""
        return getattr(self.frames.source, "is_live", False)

    @property
    def video_height(self) -> int:
        """Height of a frame, in pixels."""
        return self.frames.height

    @property
    def video_width(self) -> int:
        """Width of a frame, in pixels."""
        return self.frames.width

    @property
    def obj_ids(self) -> list[ObjectId]:
        """The objects' ids, in the order of every answer; a fresh list at every call."""
        return list(self.objects)

    @property
    def frame_size(self) -> Size:
        """Of a frame, in pixels."""
        return Size(self.video_height, self.video_width)

    @property
    def mask_side(self) -> int:
        """h and w of the masks that are kept, which cover the whole frame: S / 4, or S where regions of it are seen
        larger than that."""
        side = self.frames.image_size
        return side // 4 if self.search_factor is None else side

    def note_scene(self, first: int, is_cut: bool) -> None:
        """Put on record whether a scene begins with a frame, in order of time."""
        place = bisect.bisect_left(self.scene_cuts, first)
        is_known = self.scene_cuts[place : place + 1] == [first]
        if is_cut and not is_known:
            self.scene_cuts.insert(place, first)
        elif is_known and not is_cut:
            del self.scene_cuts[place]

    def has_cut(self, one: int, other: int) -> bool:
        """Whether a scene begins between two frames, or with the later one."""
        first, last = sorted((one, other))
        place = bisect.bisect_right(self.scene_cuts, first)
        return place < len(self.scene_cuts) and self.scene_cuts[place] <= last

    def gate_frame(self, frame_idx: int) -> GateFrame:
        """A frame as the skip gate sees it: 8-bit, at its own size and at the network's."""
        frames = self.frames
        return GateFrame(frames.frame(frame_idx), frames.pixels(frame_idx), small=frames.extra(frame_idx))

    def track(self, obj_id: ObjectId) -> ObjectTrack:
        """The track of a known object. Raises ValueError for another id."""
        if obj_id not in self.objects:
            raise ValueError(f"obj_id {obj_id!r} is not in this session; its objects are {self.obj_ids}")
        return self.objects[obj_id]

    def close(self) -> None:
        """Free the frames, the memory and the results; whoever uses the session afterwards gets a ValueError."""
        self.is_closed = True
        self.frames.close()
        self.objects.clear()
        self.decision_of.clear()
        self.features.clear()
        self.cuts.clear()
        self.memory_position = self.paused = None

    def check_open(self) -> None:
        """Raises ValueError if the session was closed."""
        if self.is_closed:
            raise ValueError("this session is closed: open the video again with init_state")

    def check_frame(self, name: str, frame_idx: int, or_later: bool = False) -> int:
        """The frame index as an int. Raises ValueError where the video has no such frame, or is closed.

        Args:
            or_later: it may also be after the last frame.
        """
        self.check_open()
        try:
            index = operator.index(frame_idx)
        except TypeError:
            index = -1
        if isinstance(frame_idx, bool) or index < 0 or not (or_later or self.frames.has(index)):
            raise ValueError(f"{name} must be a frame in [0, {self.num_frames - 1}], got {frame_idx!r}")
        return index

    def __getitem__(self, name: str) -> Any:
        if name in UPSTREAM_NAMES:
            return UPSTREAM_NAMES[name](self)
        if name not in self.notes:
            raise KeyError(f"{name!r} is not part of the session state; it has {', '.join(self)}")
        return self.notes[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "cached_features":
            self.features.clear()
            self.cuts.clear()
            self[name].update(value)
        elif name in UPSTREAM_NAMES:
            raise TypeError(f"{name!r}: {NOT_WRITABLE}")
        else:
            self.notes[name] = value

    def __delitem__(self, name: str) -> None:
        if name in UPSTREAM_NAMES:
            raise TypeError(f"{name!r}: {NOT_WRITABLE}")
        del self.notes[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*UPSTREAM_NAMES, *self.notes))

    def __len__(self) -> int:
        return len(UPSTREAM_NAMES) + len(self.notes)

    def __copy__(self) -> VideoState:
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoState:
        """A session that goes its own way from here on. Both read the same frames: closing one closes them for both."""
        # Not written to once they are made: the encoder's maps, and where a run came to.
        for shared in (self.frames, self.paused, *self.features.values(), *self.cuts.values()):
            memo[id(shared)] = shared
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return VideoState(**copy.deepcopy(fields, memo))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled, as its video may be anything: use predictor.save(state, path)")

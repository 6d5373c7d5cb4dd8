"""The network at work on the objects of a session: prompts answered, frames tracked, memory written and made again.

Shapes: B objects in one batch, N objects of the session, S the network's input size, h, w of low-res masks.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2.modeling.memory_bank import MemoryBank, MemoryFrame, Selection, memory_reach
from sam2.modeling.outputs import FrameFeatures, FrameOutput, FrameRequest, PointInputs
from sam2.modeling.sam2_base import MASK_BIAS, MASK_SCALE, SAM2Base, resize_smoothly
from sam2.modeling.search_region import (
    BOX_FACTOR,
    Box,
    Region,
    box_of_box_prompt,
    box_of_mask,
    box_of_points,
    logits_in_frame,
    logits_in_region,
    mask_in_region,
    next_region,
    points_in_region,
    region_around,
)
from sam2.track_guard import Look, TrackGuard, check_guard, shapes_of
from sam2.utils.misc import fill_holes_in_mask_scores
from sam2.utils.prompts import resize_mask
from sam2.video_state import ObjectTrack, VideoState, fade

logger = logging.getLogger(__name__)

LEAST_SHOWN = 0.5  # IoU with the answer below which a given mask itself is remembered, in whole frames
HALF_COVERED = 1e-3  # logit of a pixel of which half is the object: it is, as in what is remembered
OBJECTS_AT_ONCE = 16  # more gain nothing on a large GPU, and each takes some 100 MB of it at 1024 x 1024


class VideoTracker(SAM2Base):
    """The network over a session's objects. It keeps nothing between calls: what is known is in the `VideoState`.

    Args:
        fill_hole_area: fill holes of up to so many low-res pixels in the masks that are shown; 0 fills none.
        clear_non_cond_mem_around_input: after a prompt, forget what was tracked within reach of memory around it.
        max_batch_objects: so many objects at most are read, decoded and written at once; None chooses.
        guard: when masks are not believed; None believes all.
        **kwargs: options of `SAM2Base`.

    Raises:
        ValueError: `max_batch_objects` is not a whole number of 1 or more. TypeError: `guard` is no `TrackGuard`.
    """

    def __init__(
        self,
        *,
        fill_hole_area: int,
        clear_non_cond_mem_around_input: bool,
        max_batch_objects: int | None,
        guard: TrackGuard | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_batch_objects is not None and (isinstance(max_batch_objects, bool) or max_batch_objects < 1):
            raise ValueError(f"max_batch_objects must be 1 or more, or None, got {max_batch_objects!r}")
        self.fill_hole_area = fill_hole_area
        self.clear_non_cond_mem_around_input = clear_non_cond_mem_around_input
        self.max_batch_objects = max_batch_objects
        self.guard = guard

    @property
    def guard(self) -> TrackGuard | None:
        """When masks are not believed; None believes all, as SAM 2 does."""
        return self._guard

    @guard.setter
    def guard(self, value: TrackGuard | None) -> None:
        self._guard = check_guard(value)

    @property
    def reach(self) -> int:
        """Frames as far as this from the current one, in either direction, may have their memory maps read."""
        return memory_reach(self.num_maskmem, self.memory_temporal_stride_for_eval)

    # Prompts

    def _answer_prompt(
        self, state: VideoState, track: ObjectTrack, frame_idx: int, prompt: PointInputs | Tensor, prompted: bool
    ) -> FrameOutput:
        """Segment one object on one frame under its prompt, and keep the answer until it is written to memory.

        Args:
            prompt: points in pixels of the network's input, or a mask of `read_mask`, of the whole frame.
            prompted: the answer makes this a prompted frame, rather than a better propagated one.
        """
        points = prompt if isinstance(prompt, PointInputs) else None
        previous = track.latest_masks(frame_idx, prompted) if points is not None else None
        if previous is not None and (frame_idx in track.faded or frame_idx in track.faded_carried):
            logger.warning(
                "the click refines frame %d, whose masks were packed: the answer is close to the one of "
                'init_state(..., keep="all"), but not equal to it',
                frame_idx,
            )
        request = FrameRequest(
            frame_idx, state.num_frames,
            reverse=track.tracked.get(frame_idx, False),
            reads_memory=frame_idx in track.tracked,
            points=points,
            mask=None if isinstance(prompt, PointInputs) else prompt,
            # Unbounded logits would drown the clicks that refine them.
            previous_logits=None if previous is None else previous.to(state.device).clamp(-32.0, 32.0),
        )  # fmt: skip
        if request.reads_memory and (points is not None or not self.use_mask_input_as_output_without_sam):
            self._select(state, track, request)
        output = self._answer_in_region(state, track, request)
        state.note_edit()
        # Prompts wait here, so that a frame is written to memory once, however many prompts refine it.
        (track.pending_prompted if prompted else track.pending_propagated)[frame_idx] = output
        return output

    def _answer_in_region(self, state: VideoState, track: ObjectTrack, request: FrameRequest) -> FrameOutput:
        """Segment one object under its prompt; with search regions, in the one that its place asks for.

        Args:
            request: in terms of the whole frame.
        """
        factor, frame = state.search_factor, state.frame_size
        if factor is None:
            return self._answer(state, track, request, None)
        place = self._place(state, request)
        region = self._first_look(state, request, factor) if place is None else region_around(place, frame, factor)
        output = self._answer(state, track, request, region)
        if place is not None or request.points is None:
            return output
        # It is remembered as it looks in its own region, as the frames that are tracked will be. That is no place to
        # answer a click in: close up, it finds a part of the object for all of it.
        masks = resize_masks(output.pred_masks.to(state.device), frame) > 0
        place = box_of_mask(masks, frame)
        if place is None:
            return output
        region = region_around(place, frame, factor)
        found = request._replace(points=None, previous_logits=None, mask=masks.float())
        near = self._track_object(state, track, self._seen(state, found, region), region, remember=False)
        return dataclasses.replace(output, obj_ptr=near.obj_ptr, region=near.region)

    def _answer(
        self, state: VideoState, track: ObjectTrack, request: FrameRequest, region: Region | None
    ) -> FrameOutput:
        """Segment one object under its prompt.

        Args:
            request: in terms of the whole frame.
            region: what the network sees; None for the whole frame.
        """
        seen = self._seen(state, request, region)
        output = self._track_object(state, track, seen, region, remember=False)
        plain = self.use_mask_input_as_output_without_sam and not self.has_own_steps
        if request.mask is None or seen.mask is None or not plain:
            return output
        given = seen.mask >= 0.5
        if region is not None:
            # SAM 2 has no answers in regions to be equal to: a given mask is remembered as it is, and shown so.
            output.given = given
            output.pred_masks = shown_as_given(request.mask, state.mask_side).to(output.pred_masks)
        elif is_lost(given, self._shown_to_memory(state, output) > 0):
            output.given = given
        return output

    def _first_look(self, state: VideoState, request: FrameRequest, factor: float) -> Region:
        """Where to look for an object whose place is unknown: around a box, else everywhere."""
        points, frame = request.points, state.frame_size
        box = None if points is None else box_of_box_prompt(points, frame, self.image_size)
        if points is None or box is None:
            return Region.whole(frame)
        return region_around(box.joined(box_of_points(points, frame, self.image_size)), frame, max(factor, BOX_FACTOR))

    def _place(self, state: VideoState, request: FrameRequest) -> Box | None:
        """Where an object is by its mask, or by the answer on a tracked frame that the points refine; else None."""
        if request.mask is not None:
            return box_of_mask(request.mask >= 0.5, state.frame_size)
        previous, points = request.previous_logits, request.points
        if not request.reads_memory or previous is None or points is None:
            return None
        before = box_of_mask(previous > 0, state.frame_size)
        return None if before is None else before.joined(box_of_points(points, state.frame_size, self.image_size))

    def _seen(self, state: VideoState, request: FrameRequest, region: Region | None) -> FrameRequest:
        """A request in terms of the whole frame as the network gets it, which sees the region, or all of it."""
        side, frame = self.image_size, state.frame_size
        mask, points, previous = request.mask, request.points, request.previous_logits
        if region is not None:
            if region != Region.whole(frame):
                mask = None if mask is None else mask_in_region(mask, region, frame)
                points = None if points is None else points_in_region(points, region, frame, side)
            # At the network's size: the decoder shrinks it without losing lines, as sampling it here would.
            previous = None if previous is None else logits_in_region(previous, region, frame, side)
        mask = None if mask is None else resize_mask(mask, (side, side))
        return request._replace(mask=mask, points=points, previous_logits=previous)

    def _commit_prompts(self, state: VideoState, track: ObjectTrack) -> None:
        """Write an object's pending outputs to memory."""
        if track.has_pending:
            state.note_edit()  # they may have been put there by hand, under upstream's keys
        for prompted in (False, True):
            pending = track.pending_prompted if prompted else track.pending_propagated
            for frame_idx in list(pending):
                self._write_prompted_memory(state, frame_idx, pending[frame_idx])
                track.commit_frame(frame_idx, pending.pop(frame_idx), prompted)
                self._forget_around_prompt(track, frame_idx)
        for frame_idx in track.prompted:
            track.propagated.pop(frame_idx, None)

    def _write_prompted_memory(self, state: VideoState, frame_idx: int, output: FrameOutput) -> None:
        # parity: mask prompts enter memory as clicks do, as they are shown, but for those that `_answer` sets apart.
        self._write_shown_memory(state, frame_idx, output, from_points=True)

    def _write_shown_memory(self, state: VideoState, frame_idx: int, output: FrameOutput, from_points: bool) -> None:
        """Write the memory of a frame whose low-res masks are known."""
        masks = self._shown_to_memory(state, output)
        if output.given is not None:
            masks = output.given.to(masks) * MASK_SCALE + MASK_BIAS
        with self.autocast():
            features = self._features(state, frame_idx, output.region)
            write = self.write_by_steps if self.has_own_steps else self.write_memory
            memory = write(features, masks, output.object_score_logits, from_points=from_points)
        _keep_memory(state, [output], memory.features, memory.position)
        output.given = None

    def _shown_to_memory(self, state: VideoState, output: FrameOutput) -> Tensor:
        """What was found, as logits (B, 1, S, S) over the part of the frame that the network saw."""
        side, masks = self.image_size, output.pred_masks.to(state.device)
        if output.region is not None:
            masks = logits_in_region(masks, output.region, state.frame_size, side)
        return resize_masks(masks, (side, side))

    def _forget_around_prompt(self, track: ObjectTrack, frame_idx: int) -> None:
        if self.clear_non_cond_mem_around_input:
            track.forget_propagated(frame_idx, self.memory_temporal_stride_for_eval * self.num_maskmem)

    # Tracking

    def _track_frame(
        self, state: VideoState, tracks: Sequence[ObjectTrack], frame_idx: int, reverse: bool,
        since: int | None = None, new_scene: bool = False,
    ) -> list[FrameOutput]:  # fmt: skip
        """Each object's output on a frame: the prompt's answer where there is one, else tracked.

        The session has none of it until `_commit_frame`: with look-ahead, edits may come before the frame is shown.

        Args:
            since: the last frame of this run that the session knows; None where that is the one before. What it knows
                of frames in between is from an earlier run.
            new_scene: objects may be anywhere on it.
        """
        request = FrameRequest(frame_idx, state.num_frames, reverse=reverse)
        found: dict[int, FrameOutput] = {}
        for batch in self._batches(state, [track for track in tracks if frame_idx not in track.prompted], request):
            found |= zip(map(id, batch), self._track_batch(state, batch, request, since, new_scene), strict=True)
        return [track.prompted.get(frame_idx) or found[id(track)] for track in tracks]

    def _commit_frame(
        self, state: VideoState, tracks: Sequence[ObjectTrack], outputs: Sequence[FrameOutput],
        doubts: Sequence[str | None], frame_idx: int, reverse: bool,
    ) -> None:  # fmt: skip
        """Let memory read what `_track_frame` found, and forget what is out of its reach from here.

        Args:
            doubts: of `_doubts`.
        """
        for track, output, doubt in zip(tracks, outputs, doubts, strict=True):
            if frame_idx in track.prompted:
                self._forget_around_prompt(track, frame_idx)
            else:
                track.commit_frame(frame_idx, output, prompted=False, doubted=doubt is not None)
            track.tracked[frame_idx] = reverse
        if state.keep == "window":
            fade(tracks, frame_idx, self.reach)

    def _doubts(
        self, state: VideoState, tracks: Sequence[ObjectTrack], outputs: Sequence[FrameOutput], frame_idx: int,
        reverse: bool, since: int | None,
    ) -> list[str | None]:  # fmt: skip
        """Why each object's mask on a frame is not believed; None where it is, or was prompted.

        It is compared with the last one of the network's that was believed: what was carried to skipped frames since is
        no evidence of its own.

        Args:
            since: as of `_track_frame`.
        """
        if self.guard is None or not tracks:
            return [None] * len(tracks)
        frame, doubts = state.frame_size, list[str | None]()
        shapes = shapes_of(torch.cat([output.pred_masks for output in outputs]) > 0, frame)
        numbers = torch.cat([_scores(output) for output in outputs]).cpu()
        for track, shape, (score, iou) in zip(tracks, shapes, numbers.tolist(), strict=True):
            if frame_idx in track.prompted:
                doubts.append(None)
                continue
            after = frame_idx if since is None else since + (-1 if reverse else 1)
            last = track.last_believed(after, reverse)
            masks = None if last is None or state.has_cut(last, frame_idx) else track.latest_masks(last)
            before = None if masks is None else shapes_of(masks > 0, frame)[0]
            gap = 1 if last is None else abs(frame_idx - last)
            doubts.append(self.guard.doubt(Look(shape, score, iou), before, gap, frame))
        return doubts

    def _batches(
        self, state: VideoState, tracks: Sequence[ObjectTrack], request: FrameRequest
    ) -> Iterable[list[ObjectTrack]]:
        """Objects of equal memory layout, in groups of at most `max_batch_objects`; all their memory is there."""
        by_layout: dict[Any, list[ObjectTrack]] = {}
        for track in tracks:
            by_layout.setdefault(self._select(state, track, request).layout, []).append(track)
        size = self._batch_size(state)
        return [group[i : i + size] for group in by_layout.values() for i in range(0, len(group), size)]

    def _batch_size(self, state: VideoState) -> int:
        if self.non_overlap_masks_for_mem_enc:
            return 1  # objects of one batch would push each other out of memory, as upstream's never do
        if state.search_factor is not None:
            return 1  # each has a region of its own
        if self.has_own_steps:
            return 1  # as upstream's, which find all that an object remembers, and may keep something of it
        if self.max_batch_objects is None:
            # On a CPU a batch saves next to nothing, and one by one an object's masks are the same bit for bit
            # whatever the others are.
            return 1 if state.device.type == "cpu" else OBJECTS_AT_ONCE
        return self.max_batch_objects

    def _select(self, state: VideoState, track: ObjectTrack, request: FrameRequest) -> Selection:
        """What an object remembers on a frame. Maps that were dropped are made again first, which the log says."""
        if self.num_maskmem == 0:
            return Selection([], [])
        selection = self._selection(track.bank, request)
        dropped = [each.frame_idx for each in selection.maps if each.frame_idx in track.faded]
        if not dropped:
            return selection
        logger.warning(
            "frame %d remembers frames %s, whose memory was dropped and is made again from their packed masks: the "
            'answer is close to the one of init_state(..., keep="all"), but not equal to it',
            request.frame_idx, ", ".join(map(str, sorted(dropped))),
        )  # fmt: skip
        for t in dropped:
            faded = track.faded[t]
            output = FrameOutput(
                faded.pred_masks.to(state.storage_device), faded.obj_ptr,
                faded.object_score_logits.to(state.device), ious=faded.ious.to(state.device), region=faded.region,
            )  # fmt: skip
            self._write_shown_memory(state, t, output, from_points=False)
            del track.faded[t]
            track.propagated[t] = output
        return self._selection(track.bank, request)

    def _track_batch(
        self, state: VideoState, tracks: Sequence[ObjectTrack], request: FrameRequest, since: int | None,
        new_scene: bool,
    ) -> list[FrameOutput]:  # fmt: skip
        """Track objects of equal memory layout on one frame."""
        if len(tracks) == 1:
            region = self._region_to_search(state, tracks[0], request, since)
            if region is not None and new_scene:
                region = Region.whole(state.frame_size)
            return [self._track_object(state, tracks[0], request, region, remember=True)]
        selections = [self._selection(track.bank, request) for track in tracks]
        bank = join_banks(selections, state.memory_position)._replace(doubted=tracks[0].doubted)
        with self.autocast():
            features = repeat_features(self._features(state, request.frame_idx), len(tracks))
            output = self.track(features, bank, request, remember=True)
        return self._keep(state, output)

    def _region_to_search(
        self, state: VideoState, track: ObjectTrack, request: FrameRequest, since: int | None
    ) -> Region | None:
        """Where to look for an object that is tracked to a frame; None, for everywhere, where that is not asked."""
        if state.search_factor is None:
            return None
        frame, last = state.frame_size, since
        if last is None or track.latest_masks(last) is None:
            last = track.last_known(request.frame_idx, request.reverse)
        masks = None if last is None else track.latest_masks(last)
        if last is None or masks is None:
            return Region.whole(frame)
        looked = track.region(last) or Region.whole(frame)
        found = None if last in track.doubted else box_of_mask(masks > 0, frame)
        return next_region(looked, found, frame, state.search_factor, gap=abs(request.frame_idx - last))

    def _track_object(
        self, state: VideoState, track: ObjectTrack, request: FrameRequest, region: Region | None, remember: bool
    ) -> FrameOutput:
        """Run the network for one object on one frame; what is returned is all that the session keeps of it.

        Args:
            request: its prompts are the region's.
            region: what the network sees; None for the whole frame.
        """
        with self.autocast():
            features = self._features(state, request.frame_idx, region)
            output = self.track(features, track.bank, request, remember)
        return self._keep(state, output, region)[0]

    def _keep(self, state: VideoState, output: FrameOutput, region: Region | None = None) -> list[FrameOutput]:
        """What the session keeps of a batch's outputs, object by object."""
        masks = output.pred_masks
        if self.fill_hole_area > 0:
            masks = fill_holes_in_mask_scores(masks, self.fill_hole_area)
        if state.search_factor is not None:
            seen = region or Region.whole(state.frame_size)
            masks = logits_in_frame(masks, seen, state.frame_size, state.mask_side)
        assert output.ious is not None
        # A copy to the CPU must have arrived before it is read there: never non_blocking.
        kept = [
            FrameOutput(*values, region=region)
            for values in zip(
                _apart(masks.to(state.storage_device)), _apart(output.obj_ptr),
                _apart(output.object_score_logits), _apart(output.ious), strict=True,
            )
        ]  # fmt: skip
        if output.maskmem_features is not None and output.maskmem_pos_enc is not None:
            _keep_memory(state, kept, output.maskmem_features, output.maskmem_pos_enc[-1])
        return kept

    def _features(self, state: VideoState, frame_idx: int, region: Region | None = None) -> FrameFeatures:
        """The encoder's maps of a frame, or of a region of it; the last ones are kept, for all objects and repeated
        prompts."""
        if region is not None and region != Region.whole(state.frame_size):
            return self._cut_features(state, frame_idx, region)
        if frame_idx not in state.features:
            state.features.clear()  # free the old maps before making new ones
            image = state.frames[frame_idx].to(state.device, torch.float32)
            state.features[frame_idx] = self.encode_image(image[None])
        return state.features[frame_idx]

    def _cut_features(self, state: VideoState, frame_idx: int, region: Region) -> FrameFeatures:
        cut = (frame_idx, region)
        if cut not in state.cuts:
            state.cuts.clear()
            image = state.frames.cut(frame_idx, region.rows, region.columns).to(state.device, torch.float32)
            state.cuts[cut] = self.encode_image(image[None])
        return state.cuts[cut]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (B, 1, h, w) at another size."""
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)


def is_lost(given: Tensor, shown: Tensor) -> bool:
    """Whether a mask prompt is shown too badly by its own answer, both bool (B, 1, S, S), to be remembered by that.

    SAM 2 remembers a given mask as its answer shows it, at a quarter of the network's input size, where lines vanish:
    the object is lost before it was looked for. All others are remembered so, for SAM 2's masks.
    """
    return bool((given & shown).sum() < LEAST_SHOWN * (given | shown).sum())


def shown_as_given(mask: Tensor, side: int) -> Tensor:
    """A given mask (1, 1, any, any) as logits (1, 1, side, side) that keep, enlarged again, its outline."""
    share = resize_smoothly(mask.float(), (side, side)).clamp(0, 1)
    return share * MASK_SCALE + (MASK_BIAS + HALF_COVERED)


class JoinedFrame(NamedTuple):
    """One frame as a batch of objects remembers it (`MemoryFrame`)."""

    obj_ptr: Tensor  # (B, C)
    maskmem_features: Tensor | None  # (B, mem_dim, h, w)
    maskmem_pos_enc: list[Tensor] | None  # one (B, mem_dim, h, w)


def join_banks(selections: Sequence[Selection], position: Tensor | None) -> MemoryBank:
    """What objects of equal layout remember, as one bank of a batch.

    Args:
        position: (1, mem_dim, h, w) position encoding that all maps share.
    """
    frames: dict[int, JoinedFrame] = {}
    for maps in zip(*(selection.maps for selection in selections), strict=True):
        frames[maps[0].frame_idx] = _join([each.output for each in maps], position)
    for pointers in zip(*(selection.pointers for selection in selections), strict=True):
        frames.setdefault(pointers[0].frame_idx, _join([each.output for each in pointers], None))
    prompted = {each.frame_idx for each in selections[0].maps if each.distance == 0}
    return MemoryBank(
        {t: frame for t, frame in frames.items() if t in prompted},
        {t: frame for t, frame in frames.items() if t not in prompted},
    )


def _join(outputs: Sequence[MemoryFrame], position: Tensor | None) -> JoinedFrame:
    """One frame's pointers, and its maps if they are read and so have a position."""
    pointers = torch.cat([output.obj_ptr for output in outputs])
    maps = [output.maskmem_features for output in outputs if output.maskmem_features is not None]
    if position is None or not maps:
        return JoinedFrame(pointers, None, None)
    return JoinedFrame(pointers, torch.cat(maps), [position.expand(len(maps), -1, -1, -1)])


def _keep_memory(state: VideoState, outputs: Sequence[FrameOutput], features: Tensor, position: Tensor) -> None:
    """Put memory maps (B, mem_dim, h, w) into the outputs of their objects, as they are stored."""
    # bfloat16 halves the memory bank, and is how Meta's models were evaluated.
    stored = features.to(state.storage_device, torch.bfloat16)
    if state.memory_position is None:
        state.memory_position = position[:1].clone()
    for output, each in zip(outputs, _apart(stored), strict=True):
        output.maskmem_features = each
        output.maskmem_pos_enc = [state.memory_position]  # the same for all frames and objects


def _scores(output: FrameOutput) -> Tensor:
    """How sure the network is that an object is there, and how well it thinks the mask fits, 0 to 1; (1, 2)."""
    presence = output.object_score_logits.float().sigmoid()
    return torch.cat([presence, torch.ones_like(presence) if output.ious is None else output.ious.float()], dim=1)


def _apart(batch: Tensor) -> list[Tensor]:
    """(B, ...) -> B of (1, ...), each in memory of its own, so that one kept object does not keep the others."""
    return [batch] if len(batch) == 1 else [each.clone() for each in batch.split(1)]


def repeat_features(features: FrameFeatures, count: int) -> FrameFeatures:
    """One frame's maps (1, C, h, w) as those of a batch, without copying them."""
    return FrameFeatures(*([x.expand(count, -1, -1, -1) for x in group] for group in features))

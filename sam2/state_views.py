"""A session under the keys of upstream's `inference_state`. What is read, deleted or set here is the session itself;
dicts that cannot be written to say so. Lists, such as `obj_ids`, are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NoReturn

from sam2.modeling.outputs import FrameFeatures, FrameOutput, PointInputs

if TYPE_CHECKING:
    from sam2.video_state import ObjectTrack, VideoState

NOT_WRITABLE = (
    "this part of the session cannot be set from outside: new frames come in by predictor.stream(), memory is bounded "
    'by init_state(keep="window") or by deleting frames from ["non_cond_frame_outputs"], objects come and go by '
    "add_new_points_or_box, add_new_mask, remove_object and reset_state, and state.close() frees everything"
)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(NOT_WRITABLE)


class Shown(dict[Any, Any]):
    """A dict made for reading: whatever was written to it would be lost, and is refused. Its copies are plain dicts."""

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class FrameView(MutableMapping[int, Any]):
    """What is known by frame index, in the order of frames. Deleting a frame forgets it. Its copies are plain dicts.

    Args:
        stores: where it lies; a frame is in one of them at most.
        read: from a frame index and what is stored to what is shown.
        write: takes a frame index and what is given for it.
        changed: called with a frame's index after it was written or deleted.
    """

    def __init__(
        self,
        *stores: MutableMapping[int, Any],
        read: Callable[[int, Any], Any] = lambda _, stored: stored,
        write: Callable[[int, Any], None],
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._stores, self._read, self._write, self._changed = stores, read, write, changed

    def __getitem__(self, frame_idx: int) -> Any:
        return self._read(frame_idx, self._store_of(frame_idx)[frame_idx])

    def __setitem__(self, frame_idx: int, value: Any) -> None:
        self._write(frame_idx, value)
        self._changed(frame_idx)

    def __delitem__(self, frame_idx: int) -> None:
        del self._store_of(frame_idx)[frame_idx]
        self._changed(frame_idx)

    def __contains__(self, frame_idx: object) -> bool:
        return any(frame_idx in store for store in self._stores)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(t for store in self._stores for t in store))

    def __len__(self) -> int:
        return sum(map(len, self._stores))

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def _store_of(self, frame_idx: int) -> MutableMapping[int, Any]:
        for store in self._stores:
            if frame_idx in store:
                return store
        raise KeyError(frame_idx)


def _per_object(state: VideoState, read: Callable[[ObjectTrack], Any]) -> Shown:
    return Shown({index: read(track) for index, track in enumerate(state.objects.values())})


def _points(track: ObjectTrack) -> FrameView:
    def write(frame_idx: int, value: Mapping[str, Any]) -> None:
        track.points[frame_idx] = PointInputs(value["point_coords"], value["point_labels"])

    return FrameView(track.points, read=lambda _, points: Shown(points._asdict()), write=write)


def _tracked(track: ObjectTrack) -> FrameView:
    def write(frame_idx: int, value: Mapping[str, Any]) -> None:
        track.tracked[frame_idx] = bool(value["reverse"])

    return FrameView(track.tracked, read=lambda _, reverse: Shown(reverse=reverse), write=write)


def _outputs(state: VideoState, track: ObjectTrack) -> Shown:
    def write(frame_idx: int, value: Mapping[str, Any], prompted: bool) -> None:
        output = _as_output(value)
        if state.memory_position is None and output.maskmem_pos_enc:
            state.memory_position = output.maskmem_pos_enc[-1][:1]
        track.commit_frame(frame_idx, output, prompted)

    return Shown(
        cond_frame_outputs=FrameView(
            track.prompted, write=lambda t, value: write(t, value, True), changed=lambda _: state.note_edit()
        ),
        non_cond_frame_outputs=FrameView(
            track.propagated, track.faded, track.carried, track.faded_carried,
            write=lambda t, value: write(t, value, False), changed=track.doubted.discard,
        ),
    )  # fmt: skip


def _pending(track: ObjectTrack) -> Shown:
    def view(store: dict[int, FrameOutput]) -> FrameView:
        return FrameView(store, write=lambda t, value: store.__setitem__(t, _as_output(value)))

    return Shown(cond_frame_outputs=view(track.pending_prompted), non_cond_frame_outputs=view(track.pending_propagated))


def _as_output(value: Mapping[str, Any]) -> FrameOutput:
    """An output of one frame, also from a dict of upstream's keys."""
    return value if isinstance(value, FrameOutput) else FrameOutput(**value)


def _cached_features(state: VideoState) -> FrameView:
    """Frame index -> (image (1, 3, S, S), None where a stream has it no longer, what `forward_image` made of it)."""

    def read(frame_idx: int, features: FrameFeatures) -> tuple[Any, dict[str, Any]]:
        image = state.frames[frame_idx].to(state.device)[None] if state.frames.has(frame_idx) else None
        maps, positions = list(features.maps), list(features.positions)
        return image, Shown(vision_features=features.top, vision_pos_enc=positions, backbone_fpn=maps)

    def write(frame_idx: int, value: tuple[Any, Mapping[str, Any]]) -> None:
        encoded = value[1]
        state.features[frame_idx] = FrameFeatures([*encoded["backbone_fpn"]], [*encoded["vision_pos_enc"]])

    return FrameView(state.features, read=read, write=write)


def _constants(state: VideoState) -> Shown:
    return Shown({} if state.memory_position is None else {"maskmem_pos_enc": [state.memory_position]})


UPSTREAM_NAMES: dict[str, Callable[[VideoState], Any]] = {
    "images": lambda s: s.frames,
    "num_frames": lambda s: s.num_frames,
    "offload_video_to_cpu": lambda s: s.offload_video_to_cpu,
    "offload_state_to_cpu": lambda s: s.offload_state_to_cpu,
    "video_height": lambda s: s.video_height,
    "video_width": lambda s: s.video_width,
    "device": lambda s: s.device,
    "storage_device": lambda s: s.storage_device,
    "obj_ids": lambda s: s.obj_ids,
    "obj_id_to_idx": lambda s: Shown({obj_id: i for i, obj_id in enumerate(s.objects)}),
    "obj_idx_to_id": lambda s: Shown(enumerate(s.objects)),
    "point_inputs_per_obj": lambda s: _per_object(s, _points),
    "mask_inputs_per_obj": lambda s: _per_object(s, lambda track: track.masks),
    "output_dict_per_obj": lambda s: _per_object(s, lambda track: _outputs(s, track)),
    "temp_output_dict_per_obj": lambda s: _per_object(s, _pending),
    "frames_tracked_per_obj": lambda s: _per_object(s, _tracked),
    "cached_features": _cached_features,
    "constants": _constants,
}

"""A session in one file: stop here, go on elsewhere. Tensors and plain values only, so that loading runs no code."""

from __future__ import annotations

import logging
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from sam2.frame_skipping import FrameDecision, SkipOptions
from sam2.modeling.frame_spans import FrameSpans
from sam2.modeling.outputs import FrameOutput, PointInputs
from sam2.modeling.search_region import Region
from sam2.utils.change_detection import Search
from sam2.utils.files import replacing
from sam2.utils.skip_gate import GateMemo
from sam2.utils.video_io import StrPath
from sam2.video_memory import FadedOutput, PackedMask, PointerRow, pack_masks
from sam2.video_state import CarriedMask, ObjectId, ObjectTrack, PausedRun, VideoState

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

logger = logging.getLogger(__name__)

FORMAT, VERSION = "sam2 video session", 4
READABLE = (2, 3, 4)  # 2 is from before there were search regions, 3 from before masks could be doubted
THUMBNAIL = 16  # pixels a side of what is kept of some frames, to know the video again
SAME_PICTURE = 3.0  # grey levels of 255 that two decoders may differ by on the mean of a thumbnail


def save_state(predictor: SAM2VideoPredictor, state: VideoState, path: StrPath) -> None:
    """Write all that a session knows, except the video itself, to a file: see `SAM2VideoPredictor.save`."""
    state.check_open()
    if state.is_live:
        raise ValueError("a stream cannot be saved: its frames cannot be given again")
    content = {
        "format": FORMAT, "version": VERSION, "model": _model(predictor), "video": _video(state), "keep": state.keep,
        "corrections": state.corrections, "search_factor": state.search_factor,
        "memory_position": _on_cpu(state.memory_position),
        "decisions": [(d.frame, d.action, float(d.change), d.reason, float(d.seconds)) for d in state.decisions],
        "scene_cuts": list(state.scene_cuts),
        "objects": [(_plain_id(obj_id), _track(track)) for obj_id, track in state.objects.items()],
        "paused": None if state.paused is None else _paused(state.paused),
    }  # fmt: skip
    with replacing(Path(path)) as partial:
        torch.save(content, partial)


def load_state(predictor: SAM2VideoPredictor, path: StrPath, video: Any, **options: Any) -> VideoState:
    """Open a video with the session that was saved to a file: see `SAM2VideoPredictor.load`."""
    content = _read(Path(path))
    if content["model"] != (found := _model(predictor)):
        raise ValueError(f"{path} was saved with another model: {content['model']}, this one is {found}")
    state = predictor.init_state(video, keep=content["keep"], corrections=content["corrections"], **options)
    try:
        _check_video(state, content["video"], path)
        state.search_factor = content.get("search_factor")
        if content["memory_position"] is not None:
            state.memory_position = content["memory_position"].to(state.device)
        for obj_id, stored in content["objects"]:
            state.objects[obj_id] = _restore_track(state, stored)
        for decision in content["decisions"]:
            state.record(FrameDecision(*decision))
        state.scene_cuts = list(content.get("scene_cuts", ()))
        if content["paused"] is not None:
            state.paused = _restore_paused(content["paused"])
    except BaseException:
        state.close()
        raise
    return state


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no saved session, or is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no saved session")
    if content["version"] not in READABLE:
        raise ValueError(f"{path} is a saved session of version {content['version']}, expected {VERSION}")
    return content


# Model and video


def _model(predictor: SAM2VideoPredictor) -> dict[str, int]:
    """What a session's memory only makes sense with: sizes, and a checksum of the small weights."""
    checksum = 0
    for _, weight in sorted(predictor.state_dict().items()):
        if weight.numel() <= 1024:
            checksum = zlib.crc32(weight.detach().float().cpu().numpy().tobytes(), checksum)
    return {
        "image_size": predictor.image_size, "hidden_dim": predictor.hidden_dim, "mem_dim": predictor.mem_dim,
        "num_maskmem": predictor.num_maskmem, "weights": checksum,
    }  # fmt: skip


def _video(state: VideoState) -> dict[str, Any]:
    known = {t for track in state.objects.values() for t in (*track.prompted, *track.prompt_frames())}
    last = list(state.decision_of)[-1:]
    frames = sorted({0, *sorted(known)[:1], *sorted(known)[-1:], *last})
    return {
        "num_frames": state.frames.declared_length, "height": state.video_height, "width": state.video_width,
        "thumbnails": {t: torch.from_numpy(_thumbnail(state, t)) for t in frames},
    }  # fmt: skip


def _thumbnail(state: VideoState, frame_idx: int) -> np.ndarray:
    grey = cv2.cvtColor(state.frames.frame(frame_idx), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)


def _check_video(state: VideoState, saved: Mapping[str, Any], path: StrPath) -> None:
    found = (state.frames.declared_length, state.video_height, state.video_width)
    expected = (saved["num_frames"], saved["height"], saved["width"])
    if found != expected:
        raise ValueError(
            f"{path} is of another video: of {expected[0]} frames of {expected[2]}x{expected[1]}, "
            f"this one has {found[0]} of {found[2]}x{found[1]}"
        )
    for frame_idx, thumbnail in saved["thumbnails"].items():
        difference = np.abs(thumbnail.numpy().astype(int) - _thumbnail(state, frame_idx)).mean()
        if difference > SAME_PICTURE:
            raise ValueError(f"{path} is of another video: frame {frame_idx} shows another picture in this one")


# Objects


def _plain_id(obj_id: ObjectId) -> Any:
    parts = obj_id if isinstance(obj_id, tuple) else (obj_id,)
    # As Python's own: NumPy's would need code to be loaded again.
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in parts)
    if not all(isinstance(part, int | float | str) for part in plain):
        raise TypeError(f"obj_id {obj_id!r} cannot be saved: use numbers, strings or tuples of them")
    return plain if isinstance(obj_id, tuple) else plain[0]


def _on_cpu(value: Tensor | None) -> Tensor | None:
    """A tensor of its own: torch would save all that a part of a larger one is a part of."""
    return None if value is None else value.detach().cpu().clone()


def _track(track: ObjectTrack) -> dict[str, Any]:
    return {
        "points": {t: (_on_cpu(p.point_coords), _on_cpu(p.point_labels)) for t, p in track.points.items()},
        "masks": {t: mask.bool().cpu() for t, mask in track.masks.items()},
        **{name: {t: _output(out) for t, out in getattr(track, name).items()} for name in _OUTPUTS},
        "faded": _pack_faded(track.faded),
        "carried": {t: (_on_cpu(c.logits), *_facts(c)) for t, c in track.carried.items()},
        "faded_carried": _pack_carried(track.faded_carried),
        "tracked": dict(track.tracked),
        "doubted": track.doubted.spans,
    }


_OUTPUTS = ("prompted", "propagated", "pending_prompted", "pending_propagated")


def _restore_track(state: VideoState, stored: Mapping[str, Any]) -> ObjectTrack:
    device, storage = state.device, state.storage_device
    return ObjectTrack(
        points={t: PointInputs(*(x.to(device) for x in points)) for t, points in stored["points"].items()},
        masks={t: mask.to(device).float() for t, mask in stored["masks"].items()},
        **{name: {t: _restore_output(state, out) for t, out in stored[name].items()} for name in _OUTPUTS},
        faded=_unpack_faded(stored["faded"], device),
        carried={t: _carried(masks.to(storage), rest) for t, (masks, *rest) in stored["carried"].items()},
        faded_carried=_unpack_carried(stored["faded_carried"]),
        tracked=dict(stored["tracked"]),
        doubted=FrameSpans(stored.get("doubted", ())),
    )


def _plain_region(region: Region | None) -> tuple[int, ...] | None:
    return None if region is None else tuple(region)


def _region(stored: Sequence[int] | None = None) -> Region | None:
    return None if stored is None else Region(*stored)


def _facts(carried: CarriedMask) -> tuple[Any, ...]:
    score, iou, action, region = carried.facts
    return score, iou, action, _plain_region(region)


def _carried(masks: Tensor | PackedMask, stored: Sequence[Any]) -> CarriedMask:
    score, iou, action, *region = stored
    return CarriedMask(masks, score, iou, action, _region(*region))


def _output(output: FrameOutput) -> dict[str, Any]:
    names = ("pred_masks", "obj_ptr", "object_score_logits", "ious", "maskmem_features", "given")
    return {name: _on_cpu(getattr(output, name)) for name in names} | {"region": _plain_region(output.region)}


def _restore_output(state: VideoState, stored: Mapping[str, Any]) -> FrameOutput:
    def at(name: str, device: torch.device) -> Any:
        value = stored.get(name)  # files of earlier versions have no "given"
        return None if value is None else value.to(device)

    memory = at("maskmem_features", state.storage_device)
    return FrameOutput(
        at("pred_masks", state.storage_device), at("obj_ptr", state.device), at("object_score_logits", state.device),
        ious=at("ious", state.device), maskmem_features=memory,
        maskmem_pos_enc=None if memory is None or state.memory_position is None else [state.memory_position],
        region=_region(stored.get("region")), given=at("given", state.device),
    )  # fmt: skip


# Packed masks: thousands of small things, written as a few large ones


def _join_packed(packed: list[PackedMask]) -> dict[str, Any]:
    joined = np.frombuffer(b"".join(each.data for each in packed), np.uint8).copy()
    return {"data": torch.from_numpy(joined), "sizes": [(len(p.data), p.height, p.width) for p in packed]}


def _split_packed(stored: Mapping[str, Any]) -> list[PackedMask]:
    data, packed, start = memoryview(stored["data"].numpy().tobytes()), [], 0
    for length, height, width in stored["sizes"]:
        packed.append(PackedMask(data[start : start + length], height, width))
        start += length
    return packed


def _pack_faded(faded: Mapping[int, FadedOutput]) -> dict[str, Any] | None:
    if not faded:
        return None
    outputs = list(faded.values())
    return {
        "frames": list(faded), "packed": _join_packed([output.packed for output in outputs]),
        "pointers": torch.cat([output.obj_ptr for output in outputs]).cpu(),
        "scores": [(output.object_score, output.predicted_iou) for output in outputs],
        "regions": [_plain_region(output.region) for output in outputs],
    }  # fmt: skip


def _unpack_faded(stored: Mapping[str, Any] | None, device: torch.device) -> dict[int, FadedOutput]:
    if stored is None:
        return {}
    pointers = stored["pointers"].to(device)
    regions = stored.get("regions") or [None] * len(stored["frames"])
    rows = zip(stored["frames"], _split_packed(stored["packed"]), stored["scores"], regions, strict=True)
    return {
        t: FadedOutput(packed, PointerRow(pointers, i), score, iou, _region(region))
        for i, (t, packed, (score, iou), region) in enumerate(rows)
    }


def _pack_carried(carried: Mapping[int, CarriedMask]) -> dict[str, Any]:
    packed = [c.masks if isinstance(c.masks, PackedMask) else pack_masks(c.masks)[0] for c in carried.values()]
    frames = [(t, *_facts(c)) for t, c in carried.items()]
    return {"frames": frames, "packed": _join_packed(packed)}


def _unpack_carried(stored: Mapping[str, Any]) -> dict[int, CarriedMask]:
    rows = zip(stored["frames"], _split_packed(stored["packed"]), strict=True)
    return {t: _carried(packed, rest) for (t, *rest), packed in rows}


# The gate of a run that was interrupted


def _paused(paused: PausedRun) -> dict[str, Any] | None:
    memo = paused.memo
    if not isinstance(paused.options.strategy, str):
        logger.warning("skip_strategy is an object of yours, which cannot be saved: go on with a key frame")
        return None
    return {
        "last": paused.last, "reverse": paused.reverse, "options": _plain_options(paused.options),
        "obj_ids": [_plain_id(obj_id) for obj_id in paused.obj_ids],
        "frame_idx": memo.frame_idx, "search": [memo.search.fruitless, float(memo.search.novelty)],
        **{name: torch.from_numpy(np.array(getattr(memo, name))) for name in _ARRAYS},
    }  # fmt: skip


_ARRAYS = ("logits", "predicted_ious", "object_scores", "log_ratio")


def _plain_options(options: SkipOptions) -> dict[str, Any]:
    """The options as Python's own numbers: NumPy's would need code to be loaded again."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(options).items()}


def _restore_paused(stored: Mapping[str, Any]) -> PausedRun:
    memo = GateMemo(
        frame_idx=stored["frame_idx"], search=Search(*stored["search"]),
        **{name: stored[name].numpy() for name in _ARRAYS},
    )  # fmt: skip
    options = SkipOptions(**stored["options"])
    return PausedRun(stored["last"], stored["reverse"], list(stored["obj_ids"]), options, memo)

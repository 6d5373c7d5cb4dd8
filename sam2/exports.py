"""Results of a clip as files that other tools read: pictures, annotations, video, arrays.

T frames with results, N objects, H, W rows and columns of the video. Every file appears at once or not at all.
"""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sam2 import __version__
from sam2.results import ObjectResult, fits_label_map, whole_number
from sam2.utils.davis import label_maps, write_label_map
from sam2.utils.files import replacing, write_text
from sam2.utils.labelled_frames import DrawnObject, draw_objects
from sam2.utils.rle import decode_mask
from sam2.utils.video_io import FrameSource, PaletteMaskWriter, StrPath, Video, VideoFile, VideoWriter, open_source
from sam2.utils.video_writer import require_h264
from sam2.video_results import StoredObject, VideoResults, plain_id

DEFAULT_FPS = 24.0  # of a video made of pictures, as DAVIS has them

_CATEGORY = {"id": 1, "name": "object", "supercategory": ""}


class _Task(NamedTuple):
    """What a writer may need besides the results."""

    results: VideoResults
    path: Path
    video: Video | None
    fps: float | None


def export(
    results: VideoResults, path: StrPath, format: str, *, video: Video | None = None, fps: float | None = None
) -> Path:
    """Write results in one of `FORMATS`: see `VideoResults.save`."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if not results.stored:
        raise ValueError(f"there are no results of {results.name} yet: nothing to save")
    if format == "mp4" and video is None:
        raise ValueError('format "mp4" draws over the frames: give them as video')
    FORMATS[format](_Task(results, Path(path), video, fps))
    return Path(path)


def object_numbers(results: VideoResults) -> dict[Hashable, int]:
    """A number for each object: its id where that is a whole number of 0 or more, else one that is free."""
    known = {obj_id: whole_number(obj_id) for obj_id in results.obj_ids}
    free = itertools.count(max((n for n in known.values() if n is not None), default=0) + 1)
    return {obj_id: next(free) if n is None or n < 0 else n for obj_id, n in known.items()}


# Pictures


def _write_png(task: _Task) -> None:
    """Label maps, where ids fit; and a folder of masks per object, where label maps cannot hold all."""
    results = task.results
    numbers = object_numbers(results)
    all_fit = all(fits_label_map(obj_id) for obj_id in numbers)
    is_flat = all_fit and not results.has_overlaps
    folders = [task.path] if all_fit else []
    if not is_flat:
        folders += [task.path / _folder_name(*each) for each in numbers.items()]
    stems = [Path(results.frame_name(t)).stem for t in results]
    _check_no_others(task.path, {folder / f"{stem}.png" for folder in folders for stem in stems})
    writer = PaletteMaskWriter(task.path)
    for t, stem in zip(results, stems, strict=True):
        if all_fit:
            writer.write(stem, results[t].label_map())
        if is_flat:
            continue
        masks = {each.obj_id: decode_mask(each.mask) for each in results.stored[t].objects}
        for obj_id, number in numbers.items():
            mask = masks.get(obj_id, np.zeros((results.height, results.width), bool))
            write_label_map(task.path / _folder_name(obj_id, number) / f"{stem}.png", mask)


def _check_no_others(folder: Path, written: set[Path]) -> None:
    """Raises ValueError where masks of other frames or objects would be left among the new ones.

    They are not removed: an earlier part of the clip or an annotation looks like what an earlier save left.
    """
    for path in label_maps(folder):
        if path not in written:
            raise ValueError(
                f"path: {folder} holds masks of frames or objects that are not in these results, "
                f"{path.relative_to(folder)} for one; remove them, or name another folder"
            )


def _folder_name(obj_id: Hashable, number: int) -> str:
    """Three digits or more, as SA-V names them; with the name, where the id is one."""
    if whole_number(obj_id) == number:
        return f"{number:03d}"
    return f"{number:03d}_" + re.sub(r"[^\w.-]+", "_", str(obj_id))


# Annotations


def _file_name(results: VideoResults, frame: int) -> str:
    return f"{results.name}/{results.frame_name(frame)}"


def _segmentation(each: StoredObject) -> dict[str, Any]:
    """What COCO and YouTube-VIS say alike of a mask."""
    assert each.box is not None
    x0, y0, x1, y1 = each.box
    return {"segmentation": each.mask.to_coco(), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": each.area}


def _write_coco(task: _Task) -> None:
    """An image per frame with results, an annotation per mask that is not empty."""
    results = task.results
    numbers = object_numbers(results)
    images = [
        {
            "id": t,
            "file_name": _file_name(results, t),
            "height": results.height,
            "width": results.width,
            "frame": t,
        }
        for t in results
    ]
    annotations = []
    for t in results:
        for each in results.stored[t].objects:
            if each.box is None:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's evaluation takes 0 for no annotation
                    "image_id": t,
                    "category_id": _CATEGORY["id"],
                    **_segmentation(each),
                    "iscrowd": 0,
                    "track_id": numbers[each.obj_id],
                    "object_id": plain_id(each.obj_id),
                    "object_score": round(each.object_score, 6),
                    "predicted_iou": round(each.predicted_iou, 6),
                    "status": each.status,
                }
            )
    content = {"info": _info(results), "images": images, "annotations": annotations, "categories": [_CATEGORY]}
    write_text(task.path, json.dumps(content) + "\n")


def _write_youtube_vis(task: _Task) -> None:
    """An annotation per object, with a segmentation, box and area for every frame of the clip, or null."""
    results = task.results
    length = results.num_frames
    annotations = []
    for obj_id in results.obj_ids:
        track = results.track(obj_id)
        shown = {t: _segmentation(each) for t, each in track.items() if each.box is not None}
        annotations.append(
            {
                "id": len(annotations) + 1,
                "video_id": 1,
                "category_id": _CATEGORY["id"],
                "object_id": plain_id(obj_id),
                "height": results.height,
                "width": results.width,
                "length": length,
                "iscrowd": 0,
                "segmentations": [shown[t]["segmentation"] if t in shown else None for t in range(length)],
                "bboxes": [shown[t]["bbox"] if t in shown else None for t in range(length)],
                "areas": [shown[t]["area"] if t in shown else None for t in range(length)],
                "object_scores": [round(track[t].object_score, 6) if t in track else None for t in range(length)],
                "statuses": [track[t].status if t in track else None for t in range(length)],
            }
        )
    video = {
        "id": 1,
        "name": results.name,
        "height": results.height,
        "width": results.width,
        "length": length,
        "file_names": [_file_name(results, t) for t in range(length)],
    }
    content = {"info": _info(results), "videos": [video], "annotations": annotations, "categories": [_CATEGORY]}
    write_text(task.path, json.dumps(content) + "\n")


def _info(results: VideoResults) -> dict[str, Any]:
    return {"description": f"masks of {results.name}", "version": __version__}


# Video


def _write_mp4(task: _Task) -> None:
    """All frames of the video, each at its time, with the objects drawn over those that have results."""
    require_h264()  # the writer would make do with a codec that browsers do not play
    assert task.video is not None
    numbers = object_numbers(task.results)
    source = open_source(task.video)
    try:
        _check_apart(task.path, source)
        _check_size(task.results, source)
        time_of = _times(source, task.fps)
        fps = frame_rate(source) if task.fps is None else task.fps
        VideoWriter(task.path, fps)  # refuses a bad name or rate; there is no file before the first frame
        with replacing(task.path) as partial, VideoWriter(partial, fps) as writer:
            length = 0
            for t in _frame_indices(source):
                writer.write(_labelled_frame(task.results, numbers, t, source.read(t)), time_of(t))
                length = t + 1
            _check_length(task.results, source, length)
    finally:
        if not isinstance(task.video, FrameSource):
            source.close()


def _check_apart(path: Path, source: FrameSource) -> None:
    """Raises ValueError where the overlay would replace the video."""
    if isinstance(source, VideoFile) and path.exists() and path.samefile(source.path):
        raise ValueError(f"path: {path} is the video itself, which the overlay would replace; name another file")


def _check_size(results: VideoResults, source: FrameSource) -> None:
    """Raises ValueError where the frames are not of the results' size."""
    if (source.height, source.width) != (results.height, results.width):
        raise ValueError(
            f"video: {source.name} is {source.width}x{source.height}, the results of {results.name} are "
            f"{results.width}x{results.height}; give the video that was tracked"
        )


def _check_length(results: VideoResults, source: FrameSource, length: int) -> None:
    """Raises ValueError where there are results of frames that the video does not have."""
    if (last := max(results.stored)) >= length:
        raise ValueError(
            f"video: {source.name} has {length} frames, the results of {results.name} go to frame {last}, so there are "
            f"{last + 1} at least; give the video that was tracked"
        )


def _times(source: FrameSource, fps: float | None) -> Callable[[int], float | None]:
    """When a frame that was read is shown, in seconds; None for evenly, at the frame rate."""
    return getattr(source, "time", _untimed) if fps is None else _untimed


def _untimed(frame: int) -> None:
    return None


def _frame_indices(source: FrameSource) -> Iterator[int]:
    """All frames of a source, the length of which may be an estimate until its end was reached."""
    has: Callable[[int], bool] = getattr(source, "has", lambda t: t < len(source))
    return itertools.takewhile(has, itertools.count())


def _labelled_frame(
    results: VideoResults, numbers: Mapping[Hashable, int], frame: int, picture: np.ndarray
) -> np.ndarray:
    if frame not in results.stored:
        return picture
    result = results[frame]
    drawn = [DrawnObject(_name_of(each), numbers[each.obj_id], each.mask) for each in result.objects]
    return draw_objects(picture, drawn, result.owner)


def _name_of(each: ObjectResult) -> str:
    return str(each.obj_id) + ("?" if each.status == "suspect" else "")


def frame_rate(source: FrameSource) -> float:
    """Frames per second of a video file; `DEFAULT_FPS` for anything else."""
    return getattr(source, "rate", None) or DEFAULT_FPS


# Arrays


def _write_npz(task: _Task) -> None:
    """frames (T,), obj_ids (N,), all as text where one is, size (2,) H and W; boxes (T, N, 4), areas, object_scores,
    predicted_ious and statuses (T, N), the latter "" where an object has no result; masks (T, N, H, ceil(W / 8)), one
    bit per pixel: `np.unpackbits(masks, axis=-1, count=W)`."""
    results = task.results
    ids = results.obj_ids
    frames = list(results)
    plain_ids = [plain_id(obj_id) for obj_id in ids]
    if len({str(each) for each in plain_ids}) < len(ids):
        raise ValueError(
            f'obj_ids must differ as text too for "npz", where numbers beside names become text, got {plain_ids}'
        )
    shape = (len(frames), len(ids))
    boxes, areas = np.zeros((*shape, 4), np.int32), np.zeros(shape, np.int32)
    scores, ious = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    statuses = np.zeros(shape, "<U8")
    place = {obj_id: i for i, obj_id in enumerate(ids)}
    for k, t in enumerate(frames):
        for each in results.stored[t].objects:
            at = k, place[each.obj_id]
            boxes[at], areas[at] = each.box or (0, 0, 0, 0), each.area
            scores[at], ious[at], statuses[at] = each.object_score, each.predicted_iou, each.status
    arrays = {
        "frames": np.array(frames, np.int32),
        "obj_ids": np.array(plain_ids),
        "size": np.array([results.height, results.width], np.int32),
        "boxes": boxes,
        "areas": areas,
        "object_scores": scores,
        "predicted_ious": ious,
        "statuses": statuses,
    }
    with replacing(task.path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("masks.npy", "w", force_zip64=True) as file:
            _stream_masks(file, results, place)


def _stream_masks(file: IO[bytes], results: VideoResults, place: dict[Hashable, int]) -> None:
    """The masks as one array, a frame at a time: the whole array may not fit into memory."""
    row = (results.height, -(-results.width // 8))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(results), len(place), *row)}
    np.lib.format.write_array_header_2_0(file, header)
    for t in results:
        packed = np.zeros((len(place), *row), np.uint8)
        for each in results.stored[t].objects:
            packed[place[each.obj_id]] = np.packbits(decode_mask(each.mask), axis=-1)
        file.write(packed.tobytes())


# All of it


def _write_json(task: _Task) -> None:
    write_text(task.path, task.results.to_json())


FORMATS: dict[str, Callable[[_Task], None]] = {
    "png": _write_png,
    "coco": _write_coco,
    "youtube_vis": _write_youtube_vis,
    "mp4": _write_mp4,
    "npz": _write_npz,
    "json": _write_json,
}
"""The writers by the name of their format."""

"""The results of a whole clip, kept as run-length codes: some hundred bytes per object and frame, whatever its size.

H, W rows and columns of the video.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2.frame_skipping import FrameDecision
from sam2.results import Box, FrameResult, ObjectResult, Status, whole_number
from sam2.utils.rle import Rle, decode_mask, encode_mask
from sam2.utils.video_io import StrPath, Video

_JSON_KIND = "sam2 results 1"


class StoredObject(NamedTuple):
    """An `ObjectResult` with its mask as a run-length code.

    front: what of the mask shows where others lie over it; None where all of it does.
    """

    obj_id: Hashable
    mask: Rle
    front: Rle | None
    box: Box | None
    area: int
    object_score: float
    predicted_iou: float
    status: Status


class StoredFrame(NamedTuple):
    """A `FrameResult` with its masks as run-length codes."""

    decision: FrameDecision
    objects: tuple[StoredObject, ...]
    scene_cut: bool = False


class VideoResults(Mapping[int, FrameResult]):
    """The results of a clip, by frame index.

    Frames come in any order, and those that come again replace the earlier ones. `results[12]` is decoded when it is
    asked for; `stored` has the run-length codes.

        results = VideoResults.collect(predictor.propagate_results(state), name="clip")
        results.save("masks/clip", "png")
        results.save("clip.json", "coco")
        results.save("clip.mp4", "mp4", video="clip_as_it_was.mp4")

    Attributes:
        name: of the clip, as exports call it.
        num_frames: length of the clip.
        about: whatever else should be kept with the results; plain JSON.
        stored: the frames by index, in the order they came.
    """

    def __init__(
        self,
        *,
        name: StrPath = "video",
        num_frames: int | None = None,
        frame_names: Sequence[StrPath] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Results of a clip of which nothing is known yet.

        Args:
            name: of the clip.
            num_frames: length of the clip; by default it ends with the last frame that has results.
            frame_names: the files of its frames, e.g. "00000.jpg", or their paths, of which the last part is taken; by
                default they are numbered from 0.
            about: plain JSON.

        Raises:
            ValueError: not one different stem for each frame.
        """
        num_frames = None if num_frames is None else operator.index(num_frames)
        names = None if frame_names is None else [Path(each).name for each in frame_names]
        if names is not None and num_frames is not None and len(names) != num_frames:
            raise ValueError(f"frame_names must be {num_frames}, one per frame, got {len(names)}")
        if names is not None and len({Path(each).stem for each in names}) < len(names):
            raise ValueError("frame_names must differ before their endings: masks are named like their frames")
        self.name = str(name)
        self.about = dict(about or {})
        self.stored: dict[int, StoredFrame] = {}
        self._num_frames = num_frames if names is None else len(names)
        self._frame_names = names
        self._size: tuple[int, int] | None = None

    @classmethod
    def collect(cls, results: Iterable[FrameResult], **options: Any) -> VideoResults:
        """Keep all results of a propagation. `options` are those of the class."""
        collected = cls(**options)
        for result in results:
            collected.add(result)
        return collected

    def add(self, result: FrameResult) -> None:
        """Keep a frame's results, in place of earlier ones.

        Raises:
            ValueError: a frame of another size, or past the end of the clip.
        """
        size = (result.height, result.width)
        if self._size not in (None, size):
            raise ValueError(f"result must be of {self._size} (H, W) as the others are, got {size}")
        if self._num_frames is not None and not 0 <= result.frame < self._num_frames:
            raise ValueError(f"result must be of a frame in [0, {self._num_frames - 1}], got {result.frame}")
        self._size = size
        self.stored[result.frame] = _store(result)

    @property
    def height(self) -> int:
        """H. Raises ValueError before there is a result."""
        return self._known_size()[0]

    @property
    def width(self) -> int:
        """W. Raises ValueError before there is a result."""
        return self._known_size()[1]

    @property
    def num_frames(self) -> int:
        """Length of the clip."""
        return max(self.stored, default=-1) + 1 if self._num_frames is None else self._num_frames

    @property
    def obj_ids(self) -> list[Hashable]:
        """All objects, in the order of their first frames."""
        return list(dict.fromkeys(each.obj_id for t in sorted(self.stored) for each in self.stored[t].objects))

    @property
    def decisions(self) -> list[FrameDecision]:
        """What was done with each frame, in the order of the frames."""
        return [self.stored[t].decision for t in sorted(self.stored)]

    @property
    def has_overlaps(self) -> bool:
        """Whether masks overlap on any frame."""
        return any(each.front is not None for frame in self.stored.values() for each in frame.objects)

    def frame_name(self, frame: int) -> str:
        """The file name of a frame."""
        return f"{frame:05d}.jpg" if self._frame_names is None else self._frame_names[frame]

    def track(self, obj_id: Hashable) -> dict[int, StoredObject]:
        """One object through the clip, by frame.

        Raises:
            KeyError: no such object.
        """
        found = {t: each for t in sorted(self.stored) for each in self.stored[t].objects if each.obj_id == obj_id}
        if not found:
            raise KeyError(f"obj_id {obj_id!r} is not in these results; their objects are {self.obj_ids}")
        return found

    def save(self, path: StrPath, format: str, *, video: Video | None = None, fps: float | None = None) -> Path:
        """Write the results; a file appears at once or not at all.

        Args:
            path: of the file, which is replaced, or for "png" of the folder: masks of the same frames are replaced, and
                it may hold no others, so that nothing of an earlier save is taken for a result of this one.
            format: "png": palette PNGs of object ids, and a folder of masks per object where one picture cannot hold
                them; "coco": COCO annotations; "youtube_vis": YouTube-VIS annotations; "mp4": the video with the
                objects drawn over it; "npz": NumPy arrays, masks as packed bits; "json": all of it, for `load`.
            video: the frames to draw over, for "mp4": whatever `init_state` takes.
            fps: of an "mp4"; by default its frames have the times of the video file's, and other sources 24 a second.

        Returns:
            The path.

        Raises:
            ValueError: an unknown format, no results yet, no video where one is needed, one of another size or with
                fewer frames, the video itself as path, a folder with masks of other frames or objects, or ids that the
                format cannot tell apart.
            ImportError: the format needs a package that is not installed, or H.264 where PyAV was built without.
        """
        from sam2.exports import export

        return export(self, path, format, video=video, fps=fps)

    @classmethod
    def load(cls, path: StrPath) -> VideoResults:
        """Read what `save` wrote in the format "json".

        Raises:
            FileNotFoundError: no such file. ValueError: the file is not of this format.
        """
        try:
            return cls._from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'path: {path} does not hold results as the format "json" has them ({error})') from error

    def to_json(self) -> str:
        """What the format "json" holds: a frame per line.

        Raises:
            ValueError: an id that is neither an integer nor a string.
        """
        head = {
            "kind": _JSON_KIND,
            "name": self.name,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "frame_names": self._frame_names,
            "about": self.about,
        }
        lines = ",\n".join(json.dumps(_frame_to_json(self.stored[t])) for t in self)
        return json.dumps(head)[:-1] + f', "frames": [\n{lines}\n]}}\n'

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> VideoResults:
        if content["kind"] != _JSON_KIND:
            raise ValueError(f"kind {content['kind']!r}")
        results = cls(
            name=content["name"],
            num_frames=content["num_frames"],
            frame_names=content["frame_names"],
            about=content["about"],
        )
        results._size = content["height"], content["width"]
        for line in content["frames"]:
            frame = _frame_from_json(line, results._size)
            results.stored[frame.decision.frame] = frame
        return results

    def __getitem__(self, frame: int) -> FrameResult:
        if frame not in self.stored:
            raise KeyError(f"frame {frame!r} has no results; there are {len(self.stored)} of {self.num_frames} frames")
        return _restore(self.stored[frame], self._known_size())

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.stored))

    def __len__(self) -> int:
        return len(self.stored)

    def _known_size(self) -> tuple[int, int]:
        if self._size is None:
            raise ValueError(f"there are no results of {self.name} yet")
        return self._size


def _store(result: FrameResult) -> StoredFrame:
    shown = None
    if result.has_overlaps:
        shown = np.bincount(result.owner.reshape(-1), minlength=len(result.objects) + 1)[1:]  # pixels of each object
    stored = []
    for i, each in enumerate(result.objects):
        is_covered = shown is not None and shown[i] < each.area
        front = encode_mask(result.owner == i + 1) if is_covered else None
        stored.append(
            StoredObject(
                each.obj_id, encode_mask(each.mask), front, each.box, each.area,
                each.object_score, each.predicted_iou, each.status,
            )
        )  # fmt: skip
    return StoredFrame(result.decision, tuple(stored), result.scene_cut)


def _restore(frame: StoredFrame, size: tuple[int, int]) -> FrameResult:
    owner = np.zeros(size, np.uint8 if len(frame.objects) <= 255 else np.int16)
    objects = []
    for i, each in enumerate(frame.objects):
        mask = decode_mask(each.mask)
        owner[mask if each.front is None else decode_mask(each.front)] = i + 1
        objects.append(
            ObjectResult(
                each.obj_id, mask, each.box, each.area, each.object_score, each.predicted_iou, each.status
            )
        )  # fmt: skip
    return FrameResult(tuple(objects), owner, frame.decision, frame.scene_cut)


def plain_id(obj_id: Hashable) -> int | str:
    """An id as JSON has it. Raises ValueError where JSON has no such thing."""
    plain = obj_id if isinstance(obj_id, str) else whole_number(obj_id)
    if plain is None:
        raise ValueError(f"obj_id must be an integer or a string to be saved, got {obj_id!r}")
    return plain


def _frame_to_json(frame: StoredFrame) -> dict[str, Any]:
    objects = [
        {
            "id": plain_id(each.obj_id),
            "status": each.status,
            "object_score": each.object_score,
            "predicted_iou": each.predicted_iou,
            "area": each.area,
            "box": each.box,
            "mask": each.mask.counts.decode("ascii"),
            **({} if each.front is None else {"front": each.front.counts.decode("ascii")}),
        }
        for each in frame.objects
    ]
    return {**frame.decision._asdict(), **({"scene_cut": True} if frame.scene_cut else {}), "objects": objects}


def _frame_from_json(line: Mapping[str, Any], size: tuple[int, int]) -> StoredFrame:
    decision = FrameDecision(**{name: line[name] for name in FrameDecision._fields})
    objects = [
        StoredObject(
            obj_id=each["id"],
            mask=Rle(*size, each["mask"].encode("ascii")),
            front=Rle(*size, each["front"].encode("ascii")) if "front" in each else None,
            box=None if each["box"] is None else Box(*each["box"]),
            area=each["area"],
            object_score=each["object_score"],
            predicted_iou=each["predicted_iou"],
            status=each["status"],
        )
        for each in line["objects"]
    ]
    return StoredFrame(decision, tuple(objects), line.get("scene_cut", False))

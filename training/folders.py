"""Annotated videos on disk: folders in DAVIS layout (YouTube-VOS and MOSE have it too) and in SA-V layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sam2.utils.davis import DavisRoot, list_pictures, read_label_map
from sam2.utils.video_file import VideoFile
from sam2.utils.video_io import ImageFiles

SAV_FRAME_STEP = 4  # SA-V annotates every 4th frame: 6 of 24 a second
SAV_FRAMES, SAV_MASKS = "JPEGImages_24fps", "Annotations_6fps"
VOID = 255  # label of pixels that belong to nothing, or that nobody was sure about
LOOKED_AT = 20  # label maps that tell what kind of annotation a folder has


class AnnotatedVideo(Protocol):
    """The annotated frames of a video, and masks by object."""

    path: Path  # of the video itself, a file or a folder of frames

    def __len__(self) -> int: ...

    def frame(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3) of the annotated frame `index`."""
        ...

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """The objects that are visible on it: id -> bool (H, W)."""
        ...

    def close(self) -> None:
        """Let go of what reading has opened, until it is read again."""
        ...


class LabelledPictures:
    """Pictures with one label map each."""

    def __init__(self, frames: Sequence[Path], labels: Sequence[Path]) -> None:
        self.path, self.frames, self.labels = frames[0].parent, frames, labels

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> np.ndarray:
        """See `AnnotatedVideo`."""
        return ImageFiles([self.frames[index]]).read(0)

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """See `AnnotatedVideo`. 255, "void" in some data sets, is no object."""
        labels = read_label_map(self.labels[index])
        return {int(i): labels == i for i in np.unique(labels) if 0 < i < VOID}

    def close(self) -> None:
        """See `AnnotatedVideo`. Nothing stays open."""


class MaskedPictures:
    """Pictures with one folder of masks per object, as SA-V's val and test sets have them."""

    def __init__(self, frames: dict[str, Path], objects: Sequence[Path]) -> None:
        self.masks_of = [{path.stem: path for path in list_pictures(folder, (".png",))} for folder in objects]
        stems = sorted(set().union(*self.masks_of) & frames.keys())
        self.stems, self.frames = stems, [frames[stem] for stem in stems]
        self.path = next(iter(frames.values())).parent

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> np.ndarray:
        """See `AnnotatedVideo`."""
        return ImageFiles([self.frames[index]]).read(0)

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """See `AnnotatedVideo`. A missing file is an object that is not there."""
        paths = {i: of.get(self.stems[index]) for i, of in enumerate(self.masks_of)}
        masks = {i: read_label_map(path) > 0 for i, path in paths.items() if path is not None}
        return {i: mask for i, mask in masks.items() if mask.any()}

    def close(self) -> None:
        """See `AnnotatedVideo`. Nothing stays open."""


class MaskletVideo:
    """A video file with run-length masks in JSON files, as SA-V's training set has them."""

    def __init__(self, video: Path, annotations: Sequence[Path]) -> None:
        self.path, self.annotations = video, annotations

    @functools.cached_property
    def _masklets(self) -> list[list[Any]]:
        """Run-length masks by frame, of all annotation files together; None for an object that is not there."""
        parts = []
        for path in self.annotations:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not isinstance(content.get("masklet"), list):
                raise ValueError(f"{path}: no SA-V annotation, it has no list called `masklet`")
            parts.append(content["masklet"])
        length = min(map(len, parts))
        return [[rle for part in parts for rle in part[t]] for t in range(length)]

    @functools.cached_property
    def _frames(self) -> VideoFile:
        return VideoFile(self.path)

    def __len__(self) -> int:
        return min(len(self._masklets), -(-len(self._frames) // SAV_FRAME_STEP))

    def frame(self, index: int) -> np.ndarray:
        """See `AnnotatedVideo`."""
        return self._frames.read(SAV_FRAME_STEP * index)

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """See `AnnotatedVideo`."""
        decoded = {i: _decode(rle) for i, rle in enumerate(self._masklets[index]) if rle is not None}
        return {i: mask for i, mask in decoded.items() if mask.any()}

    def close(self) -> None:
        """See `AnnotatedVideo`. SA-V has 50,000 videos, too many to keep open."""
        self.__dict__.pop("_masklets", None)
        if (frames := self.__dict__.pop("_frames", None)) is not None:
            frames.close()


def _decode(rle: Any) -> np.ndarray:
    """A COCO run-length mask as bool (H, W)."""
    return _run_length_masks().decode(rle).astype(bool)


def _run_length_masks() -> Any:
    """The module `pycocotools.mask`. Raises ImportError that says how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('reading SA-V annotations needs the extra: pip install "sam2[training]"') from error
    return mask


def open_davis(root: str | Path, split: str | None) -> list[AnnotatedVideo]:
    """The annotated sequences of a DAVIS-layout folder, single pictures among them.

    Sequences of which one frame of several is annotated are left out, as there is nothing to track.

    Raises:
        FileNotFoundError: no such folder, frames or annotations in it.
        ValueError: no such split, or annotations that mark objects by 255 alone.
    """
    davis = DavisRoot.open(root)
    for name, folder in (("JPEGImages", davis.frames_dir), ("Annotations", davis.annotations_dir)):
        if folder is None:
            raise FileNotFoundError(f"root: {root} is no DAVIS-layout folder to train on: it has no {name}")
    videos: list[LabelledPictures] = []
    for name in davis.sequences(split):
        frames = {path.stem: path for path in davis.frame_paths(name)}
        labels = [path for path in davis.annotation_paths(name) if path.stem in frames]
        if len(labels) > 1 or len(labels) == len(frames) == 1:
            videos.append(LabelledPictures([frames[path.stem] for path in labels], labels))
    if not videos:
        raise FileNotFoundError(
            f"root: no sequence of {root} has two annotated frames, or a single picture and its annotation"
        )
    labels = [path for video in videos for path in video.labels]
    _refuse_binary(labels[:: -(-len(labels) // LOOKED_AT)], root)
    return list(videos)


def _refuse_binary(labels: Sequence[Path], root: str | Path) -> None:
    """Say so where masks are white on black: 255 would count as void, and no object would ever be found."""
    found = set().union(*(np.unique(read_label_map(path)).tolist() for path in labels))
    if VOID in found and found <= {0, VOID}:
        raise ValueError(
            f"root: the annotations of {root} hold no label but {VOID}, which stands for void: "
            "write the pixels of objects as 1, 2, ..., e.g. `mask // 255` for a single one"
        )


def open_sav(root: str | Path) -> list[AnnotatedVideo]:
    """The videos of a folder in SA-V's layout: that of the training set, or that of the val and test sets.

    Raises:
        FileNotFoundError: no such folder, or neither layout in it. ImportError: pycocotools is needed and missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root: no such folder: {root}")
    videos: list[AnnotatedVideo] = []
    for path in sorted(root.rglob("*.mp4")):
        notes = [path.with_name(f"{path.stem}_{kind}.json") for kind in ("manual", "auto")]
        if found := [note for note in notes if note.is_file()]:
            videos.append(MaskletVideo(path, found))
    if videos:
        _run_length_masks()  # what is missing is told before anything is trained
    if (root / SAV_FRAMES).is_dir() and (root / SAV_MASKS).is_dir():
        for folder in sorted((root / SAV_MASKS).iterdir()):
            frames = {
                path.stem: path for path in list_pictures(root / SAV_FRAMES / folder.name, (".jpg", ".jpeg", ".png"))
            }
            objects = sorted(path for path in folder.iterdir() if path.is_dir())
            if objects and frames:
                videos.append(MaskedPictures(frames, objects))
    if not videos:
        raise FileNotFoundError(
            f"root: {root} is no SA-V folder: expected *.mp4 files with *_manual.json or *_auto.json beside them, "
            f"or the folders {SAV_FRAMES} and {SAV_MASKS}"
        )
    return videos

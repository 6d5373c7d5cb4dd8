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


class AnnotatedVideo(Protocol):
    """The annotated frames of a video, and masks by object."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3) of the annotated frame `index`."""
        ...

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """The objects that are visible on it: id -> bool (H, W)."""
        ...


class LabelledPictures:
    """Pictures with one label map each."""

    def __init__(self, frames: Sequence[Path], labels: Sequence[Path]) -> None:
        self.frames, self.labels = frames, labels

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> np.ndarray:
        """See `AnnotatedVideo`."""
        return ImageFiles([self.frames[index]]).read(0)

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """See `AnnotatedVideo`. 255, "void" in some data sets, is no object."""
        labels = read_label_map(self.labels[index])
        return {int(i): labels == i for i in np.unique(labels) if 0 < i < 255}


class MaskedPictures:
    """Pictures with one folder of masks per object, as SA-V's val and test sets have them."""

    def __init__(self, frames: dict[str, Path], objects: Sequence[Path]) -> None:
        self.masks_of = [{path.stem: path for path in list_pictures(folder, (".png",))} for folder in objects]
        stems = sorted(set().union(*self.masks_of) & frames.keys())
        self.stems, self.frames = stems, [frames[stem] for stem in stems]

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


class MaskletVideo:
    """A video file with run-length masks in JSON files, as SA-V's training set has them."""

    def __init__(self, video: Path, annotations: Sequence[Path]) -> None:
        self.video, self.annotations = video, annotations

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
        return VideoFile(self.video)

    def __len__(self) -> int:
        return min(len(self._masklets), -(-len(self._frames) // SAV_FRAME_STEP))

    def frame(self, index: int) -> np.ndarray:
        """See `AnnotatedVideo`."""
        return self._frames.read(SAV_FRAME_STEP * index)

    def masks(self, index: int) -> dict[int, np.ndarray]:
        """See `AnnotatedVideo`."""
        decoded = {i: _decode(rle) for i, rle in enumerate(self._masklets[index]) if rle is not None}
        return {i: mask for i, mask in decoded.items() if mask.any()}


def _decode(rle: Any) -> np.ndarray:
    """A COCO run-length mask as bool (H, W)."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('reading SA-V annotations needs the extra: pip install "sam2[export]"') from error
    return mask.decode(rle).astype(bool)


def open_davis(root: str | Path, split: str | None) -> list[AnnotatedVideo]:
    """The annotated sequences of a DAVIS-layout folder.

    Raises:
        FileNotFoundError: no such folder, frames or annotations in it. ValueError: no such split.
    """
    davis = DavisRoot.open(root)
    for name, folder in (("JPEGImages", davis.frames_dir), ("Annotations", davis.annotations_dir)):
        if folder is None:
            raise FileNotFoundError(f"root: {root} is no DAVIS-layout folder to train on: it has no {name}")
    videos: list[AnnotatedVideo] = []
    for name in davis.sequences(split):
        frames = {path.stem: path for path in davis.frame_paths(name)}
        labels = [path for path in davis.annotation_paths(name) if path.stem in frames]
        if len(labels) > 1:
            videos.append(LabelledPictures([frames[path.stem] for path in labels], labels))
    if not videos:
        raise FileNotFoundError(f"root: no sequence of {root} has two annotated frames")
    return videos


def open_sav(root: str | Path) -> list[AnnotatedVideo]:
    """The videos of a folder in SA-V's layout: that of the training set, or that of the val and test sets.

    Raises:
        FileNotFoundError: no such folder, or neither layout in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root: no such folder: {root}")
    videos: list[AnnotatedVideo] = []
    for path in sorted(root.rglob("*.mp4")):
        notes = [path.with_name(f"{path.stem}_{kind}.json") for kind in ("manual", "auto")]
        if found := [note for note in notes if note.is_file()]:
            videos.append(MaskletVideo(path, found))
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

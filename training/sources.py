"""Where samples come from: drawn clips, and annotated videos in folders. A sample follows from one random generator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sam2.utils.drawn_clips import DrawnClip, has_photographs, random_clip
from training.clips import Sample
from training.folders import AnnotatedVideo, open_davis, open_sav
from training.recipe import DataSource
from training.regions import follow_in_regions
from training.views import View, random_view

logger = logging.getLogger(__name__)

FIRST_TRAINING_SEED = 2**32
"""Drawn clips of seeds below are never trained on: they are for validation, tests and demonstrations."""

DRAWN_FRAME = (480, 854)  # height, width of drawn clips that are seen in regions

MIN_SHARE = 1 / 2000
"""Share of the first frame, or of its search region, that an object shows if it is to be prompted there."""


class Wanted(NamedTuple):
    """What a sample should be like."""

    num_frames: int
    size: int  # pixels of each side
    max_objects: int
    difficulty: float = 0.5  # of drawn clips, 0 to 1


class SampleSource(Protocol):
    """An endless source of samples."""

    def draw(self, rng: np.random.Generator, wanted: Wanted) -> Sample | None:
        """A random sample; None where no object can be prompted on the clip's first frame."""
        ...


class DrawnSource:
    """Drawn clips, each from a seed of its own.

    Args:
        search_factor: of the regions that one object of each clip is seen in; None for all objects in the whole frame.
        packs, strings: chances that another object or thin lines are on a labelled one, see `random_clip`.
    """

    def __init__(self, search_factor: float | None = None, *, packs: float = 0.0, strings: float = 0.0) -> None:
        self.search_factor, self.packs, self.strings = search_factor, packs, strings
        if not has_photographs():
            logger.warning(
                "scikit-image is not installed: clips are drawn without its photographs, and a seed draws other clips "
                'than with them (pip install "sam2[training]")'
            )

    def draw(self, rng: np.random.Generator, wanted: Wanted) -> Sample | None:
        """See `SampleSource`."""
        seed = int(rng.integers(FIRST_TRAINING_SEED, 2**63))
        clip = random_clip(
            seed,
            wanted.num_frames,
            wanted.size if self.search_factor is None else DRAWN_FRAME,
            difficulty=wanted.difficulty,
            max_objects=wanted.max_objects,
            packs=self.packs,
            strings=self.strings,
        )
        if self.search_factor is None:
            return _whole(clip)
        chosen = rng.integers(1, clip.labels[0].max() + 1)
        return _promptable(
            follow_in_regions(list(clip.frames), clip.labels == chosen, self.search_factor, wanted.size, View(), rng)
        )


def drawn_sample(seed: int, wanted: Wanted) -> Sample:
    """The drawn clip of a seed, all of whose objects are to be seen on its first frame."""
    return _whole(
        random_clip(seed, wanted.num_frames, wanted.size, difficulty=wanted.difficulty, max_objects=wanted.max_objects)
    )


def _whole(clip: DrawnClip) -> Sample:
    """A drawn clip with all of its objects."""
    ids = np.arange(1, clip.labels.max() + 1, dtype=np.uint8)
    return Sample(clip.frames, clip.labels[None] == ids[:, None, None, None])


class FolderSource:
    """Clips cut from annotated videos, at a random speed and in either direction of time.

    Args:
        augment: vary them; otherwise the sample is the beginning of the video, unchanged.
        max_stride: at most every n-th annotated frame is taken.
        search_factor: of the regions that one object of each clip is seen in; None for several in the whole frame.
    """

    def __init__(
        self, videos: Sequence[AnnotatedVideo], *, augment: bool, max_stride: int, search_factor: float | None = None
    ) -> None:
        self.videos, self.augment, self.max_stride, self.search_factor = videos, augment, max_stride, search_factor

    def draw(self, rng: np.random.Generator, wanted: Wanted) -> Sample | None:
        """See `SampleSource`."""
        with closing(self.videos[int(rng.integers(len(self.videos)))]) as video:
            indices, view = clip_frames(len(video), wanted.num_frames, 0, 1), View()
            if self.augment:
                stride = int(rng.integers(1, self.max_stride + 1))
                room = len(video) - (wanted.num_frames - 1) * stride
                indices = clip_frames(len(video), wanted.num_frames, int(rng.integers(max(room, 1))), stride)
                indices, view = indices[::-1] if rng.random() < 0.5 else indices, random_view(rng)
            if self.search_factor is not None:
                return follow_sample(video, indices, view, wanted.size, self.search_factor, rng)
            return cut_sample(video, indices, view, wanted, rng)


def beginning(video: AnnotatedVideo, wanted: Wanted, rng: np.random.Generator) -> Sample | None:
    """The first frames of a video, whole and unchanged, and some of the objects on the first one."""
    return cut_sample(video, clip_frames(len(video), wanted.num_frames, 0, 1), View(), wanted, rng)


def beginnings(videos: Sequence[AnnotatedVideo], count: int, wanted: Wanted) -> list[Sample]:
    """The beginnings of at most `count` videos, always the same ones, each once; they may be fewer.

    Videos without an object on the first frame are passed over.
    """
    samples: list[Sample] = []
    for number in np.random.default_rng(0).permutation(len(videos)).tolist():
        with closing(videos[number]) as video:
            sample = beginning(video, wanted, np.random.default_rng(number))
        if sample is not None:
            samples.append(sample)
        if len(samples) == count:
            break
    return samples


def clip_frames(length: int, num_frames: int, first: int, stride: int) -> list[int]:
    """Frames of a clip: every `stride`-th from `first`, turning round at the ends of a video of `length` frames."""
    period = max(2 * (length - 1), 1)
    places = [(first + stride * i) % period for i in range(num_frames)]
    return [min(place, period - place) if length > 1 else 0 for place in places]


def cut_sample(
    video: AnnotatedVideo, indices: Sequence[int], view: View, wanted: Wanted, rng: np.random.Generator
) -> Sample | None:
    """The frames `indices` of a video through a view, and some of the objects that are visible on the first of them."""
    first = {i: view.mask(mask, wanted.size) for i, mask in video.masks(indices[0]).items()}
    visible = [i for i, mask in first.items() if mask.mean() >= MIN_SHARE]
    if not visible:
        return None
    chosen = [int(i) for i in rng.permutation(visible)[: wanted.max_objects]]
    masks = np.zeros((len(chosen), len(indices), wanted.size, wanted.size), bool)
    for t, index in enumerate(indices):
        found = video.masks(index)
        for row, i in enumerate(chosen):
            if i in found:
                masks[row, t] = view.mask(found[i], wanted.size)
    frames = np.stack([view.frame(video.frame(index), wanted.size) for index in indices])
    return Sample(frames, masks)


def follow_sample(
    video: AnnotatedVideo, indices: Sequence[int], view: View, size: int, factor: float, rng: np.random.Generator
) -> Sample | None:
    """The frames `indices` of a video as an object that is visible on the first of them is followed through them."""
    first = video.masks(indices[0])
    visible = [i for i, mask in first.items() if mask.any()]
    if not visible:
        return None
    chosen = visible[int(rng.integers(len(visible)))]
    nothing = np.zeros_like(first[chosen])
    masks = np.stack([first[chosen], *(video.masks(index).get(chosen, nothing) for index in indices[1:])])
    pictures = [video.frame(index) for index in indices]
    try:
        sample = follow_in_regions(pictures, masks, factor, size, view, rng)
    except ValueError as error:
        raise ValueError(f"{video.path}: {error}") from error
    return _promptable(sample)


def _promptable(sample: Sample) -> Sample | None:
    """A sample of one object, unless it is too small to be prompted on the first frame."""
    return sample if sample.masks[0, 0].mean() >= MIN_SHARE else None


def open_source(source: DataSource) -> SampleSource:
    """Open one source of a recipe. Raises FileNotFoundError or ValueError naming what was expected in its folder."""
    if source.kind == "drawn":
        return DrawnSource(source.search_factor, packs=source.packs, strings=source.strings)
    return FolderSource(
        open_videos(source), augment=source.augment, max_stride=source.max_stride, search_factor=source.search_factor
    )


def open_videos(source: DataSource) -> list[AnnotatedVideo]:
    """The videos of a folder, "davis" or "sav". Raises as `open_source`."""
    assert source.root is not None
    return open_davis(source.root, source.split) if source.kind == "davis" else open_sav(source.root)


def shared_videos(data: Sequence[DataSource], held_out: DataSource) -> int:
    """How many of the videos that measure are trained on as well."""

    def paths(source: DataSource) -> set[Path]:
        return {video.path.resolve() for video in open_videos(source)}

    folders = [source for source in data if source.root is not None]
    return len(paths(held_out) & set().union(*map(paths, folders)))

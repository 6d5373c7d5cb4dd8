"""J&F of the DAVIS 2017 protocol for semi-supervised video object segmentation.

Region similarity J is the overlap of two masks, contour accuracy F the F-measure of their boundaries; both are averaged
over the frames of an object with its first and last frame left out, then over the objects (Perazzi et al., "A Benchmark
Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4; Pont-Tuset et al., "The 2017
DAVIS Challenge on Video Object Segmentation", section 3).

T frames, N objects, label maps uint8 (H, W) of object ids, masks boolean (H, W).
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.davis import DAVIS_PALETTE, DavisRoot, list_pictures, read_label_map

BOUNDARY_TOLERANCE = 0.008
"""How far two boundaries may lie apart to match, as a share of the picture's diagonal."""

FRAMES_PER_PROCESS = 300
"""Below this many frames each, another process costs more than it saves."""

_WHITE = 255


class Statistics(NamedTuple):
    """What DAVIS reports of a per-frame measure, each -1 to 1 or 0 to 1.

    mean: over the frames.
    recall: share of frames above 0.5.
    decay: mean over the first quarter of the frames minus mean over the last.
    """

    mean: float
    recall: float
    decay: float


class Scores(NamedTuple):
    """Region similarity J and contour accuracy F."""

    region: Statistics
    contour: Statistics

    @property
    def mean(self) -> float:
        """J&F: the mean of the two means."""
        return (self.region.mean + self.contour.mean) / 2


@dataclass(frozen=True)
class ObjectScores:
    """One object of one sequence.

    obj_id: its id in the annotation.
    region, contour: J and F of every scored frame, (T - 2,) float64, 0 to 1.
    is_predicted: whether the prediction shows it in any scored frame.
    """

    obj_id: int
    region: np.ndarray
    contour: np.ndarray
    is_predicted: bool = True

    @property
    def scores(self) -> Scores:
        return Scores(frame_statistics(self.region), frame_statistics(self.contour))


@dataclass(frozen=True)
class SequenceScores:
    """All objects of one sequence, by ascending id."""

    sequence: str
    objects: tuple[ObjectScores, ...]

    @property
    def scores(self) -> Scores:
        """The mean over the objects."""
        return mean_scores(item.scores for item in self.objects)


class MaskScore(NamedTuple):
    """J and F of one object in one frame, 0 to 1, and whether the prediction shows it there."""

    region: float
    contour: float
    is_predicted: bool


class AnnotatedObjects(NamedTuple):
    """The objects of an annotated sequence: their ids, ascending, and its label maps with these ids and 0 only."""

    obj_ids: tuple[int, ...]
    label_maps: list[np.ndarray]


@dataclass(frozen=True)
class SequenceFiles:
    """The pictures of one sequence.

    annotations: all annotated frames, in order.
    predictions: per prediction folder, one picture per scored frame (all but the first and last annotated one).
    """

    sequence: str
    annotations: tuple[Path, ...]
    predictions: tuple[tuple[Path, ...], ...]


class Evaluation(NamedTuple):
    """Prediction folders, scored.

    predictions: per prediction folder, its sequences, against the annotation.
    fidelity: of two folders, the second against the first in the annotation's place; None where there is one folder.
    """

    predictions: tuple[tuple[SequenceScores, ...], ...]
    fidelity: tuple[SequenceScores, ...] | None


def overall_scores(sequences: Iterable[SequenceScores]) -> Scores:
    """The mean over all objects of all sequences: what DAVIS calls global."""
    return mean_scores(item.scores for sequence in sequences for item in sequence.objects)


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """The mean of every figure."""
    figures = np.array(list(scores))
    if not figures.size:
        raise ValueError("scores: nothing to average")
    region, contour = figures.mean(axis=0)
    return Scores(Statistics(*map(float, region)), Statistics(*map(float, contour)))


def frame_statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of per-frame values (T,).

    For the decay the frames are cut into four bins at rounded positions; neighbouring bins share the frame at the cut.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("values must hold at least one frame")
    cuts = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[cuts[0] : cuts[1] + 1], values[cuts[3] : cuts[4] + 1]
    return Statistics(float(np.mean(values)), float(np.mean(values > 0.5)), float(np.mean(first) - np.mean(last)))


def region_similarity(annotation: np.ndarray, prediction: np.ndarray) -> float:
    """J: intersection over union of two masks, 0 to 1; 1 where both are empty."""
    union = np.count_nonzero(annotation | prediction)
    return np.count_nonzero(annotation & prediction) / union if union else 1.0


def contour_accuracy(annotation: np.ndarray, prediction: np.ndarray, radius: int | None = None) -> float:
    """F: harmonic mean of the precision and recall of the predicted boundary, 0 to 1.

    A boundary pixel counts as matched when the other boundary has a pixel at most `radius` away. Two empty boundaries
    agree fully; against one empty boundary the other scores 0. A mask that covers the whole picture has no boundary.

    Args:
        annotation, prediction: masks of one shape.
        radius: pixels; None takes `boundary_radius` of the masks' shape.
    """
    if radius is None:
        radius = boundary_radius(annotation.shape)
    expected, predicted = mask_boundary(annotation), mask_boundary(prediction)
    num_expected, num_predicted = np.count_nonzero(expected), np.count_nonzero(predicted)
    if not num_expected or not num_predicted:
        return float(num_expected == num_predicted)
    precision = np.count_nonzero(predicted & _widened(expected, radius)) / num_predicted
    recall = np.count_nonzero(expected & _widened(predicted, radius)) / num_expected
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_radius(shape: tuple[int, ...]) -> int:
    """How far boundaries may lie apart to match in a picture of this (H, W), in pixels: 8 for 480p."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(shape[0], shape[1]))


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels of a mask, boolean (H, W).

    A pixel is on the boundary when its neighbour to the right, below, or diagonally below to the right differs from it;
    what lies outside the picture counts as equal to the picture's edge.
    """
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 0, 1, 0, 1, cv2.BORDER_REPLICATE).view(np.bool_)
    here = padded[:-1, :-1]
    return (here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])


def _widened(boundary: np.ndarray, radius: int) -> np.ndarray:
    return cv2.dilate(boundary.view(np.uint8), _disk(radius)).view(np.bool_)


@functools.lru_cache(maxsize=8)
def _disk(radius: int) -> np.ndarray:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)


def score_mask(annotation: np.ndarray, prediction: np.ndarray) -> MaskScore:
    """J and F of two masks, computed only where they are.

    One pixel of margin around their common box shows the boundary where the box ends; the rest of the picture changes
    nothing. Boundaries match at the radius of the whole picture.
    """
    left, top, width, height = cv2.boundingRect((annotation | prediction).view(np.uint8))
    if not width:
        return MaskScore(1.0, 1.0, False)
    box = (slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1))
    annotated, predicted = annotation[box], prediction[box]
    return MaskScore(
        region_similarity(annotated, predicted),
        contour_accuracy(annotated, predicted, boundary_radius(annotation.shape)),
        bool(predicted.any()),
    )


def score_label_maps(
    sequence: str,
    annotations: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    obj_ids: Sequence[int] | None = None,
) -> SequenceScores:
    """Score one sequence that is in memory; its first and last frame are left out.

    Every object counts in every scored frame: before it appears, a frame is right if the prediction does not show it.

    Args:
        sequence: its name.
        annotations, predictions: T label maps each, of one shape.
        obj_ids: the objects to score; None takes all ids in the annotations.

    Raises:
        ValueError: fewer than three frames, not one prediction per annotation, shapes that differ, no objects, or ids
            in a prediction that the annotations lack.
    """
    if len(predictions) != len(annotations) or len(annotations) < 3:
        raise ValueError(
            f"predictions: {sequence} needs one per annotation and at least 3 of both, "
            f"got {len(predictions)} and {len(annotations)} annotations"
        )
    annotated = annotated_objects(annotations)
    ids = annotated.obj_ids if obj_ids is None else tuple(sorted(obj_ids))
    frames = []
    for i in range(1, len(annotations) - 1):
        shown = matched_objects(predictions[i], ids, annotations[i].shape, f"{sequence}, frame {i}")
        frames.append(_score_frame(annotated.label_maps[i], shown, ids))
    return _sequence_scores(sequence, ids, frames)


def annotated_objects(label_maps: Sequence[np.ndarray]) -> AnnotatedObjects:
    """Find the objects of a sequence and settle what 255 means in its annotation.

    Where 255 is the only id, the annotation is black and white and shows one object, which gets id 1. Beside other ids
    it marks what the annotators left open, and counts as background, as DAVIS's evaluation counts it.

    Raises:
        ValueError: no objects.
    """
    ids: set[int] = set()
    for labels in label_maps:
        ids.update(_other_ids(labels, ids))
    if ids == {_WHITE}:
        return AnnotatedObjects((1,), [(labels == _WHITE).astype(np.uint8) for labels in label_maps])
    if _WHITE in ids:
        label_maps = [np.where(labels == _WHITE, np.uint8(0), labels) for labels in label_maps]
    if not ids:
        raise ValueError("annotations: no object in any frame")
    return AnnotatedObjects(tuple(sorted(ids - {_WHITE})), list(label_maps))


def matched_objects(
    prediction: np.ndarray, obj_ids: Sequence[int], shape: tuple[int, ...], name: str | os.PathLike[str]
) -> np.ndarray:
    """A predicted label map, checked against the annotation it will be scored with.

    A black and white prediction (0/255) of a single object is given that object's id.

    Args:
        prediction: the label map.
        obj_ids: all ids of the sequence's annotation.
        shape: (H, W) of the annotation.
        name: what error messages call the prediction.

    Raises:
        ValueError: another shape, or ids that the annotation lacks.
    """
    if prediction.shape != shape:
        raise ValueError(f"{name}: is {_size(prediction.shape)}, its annotation {_size(shape)}; sizes must be equal")
    others = _other_ids(prediction, obj_ids)
    if not others:
        return prediction
    if others == {_WHITE} and not np.isin(prediction, obj_ids).any():
        if len(obj_ids) == 1:
            return np.where(prediction == _WHITE, np.uint8(obj_ids[0]), np.uint8(0))
        raise ValueError(
            f"{name}: a black and white mask (0 and 255) cannot tell {len(obj_ids)} objects apart; save their ids"
        )
    raise ValueError(f"{name}: {_explain_ids(others, obj_ids)}")


def evaluate(
    gt_root: str | os.PathLike[str] | DavisRoot,
    predictions: Sequence[str | os.PathLike[str]],
    *,
    split: str | None = "val",
    processes: int = 1,
) -> Evaluation:
    """Score one or two folders of predicted label maps against a DAVIS-layout root.

    Predictions are `<folder>/<sequence>/<frame>.png`. Those for frames that are not annotated, and for the first and
    last annotated frame, are left alone.

    Args:
        gt_root: folder with `Annotations/<resolution>/<sequence>/<frame>.png`.
        predictions: one folder, or two to know the fidelity of the second to the first as well.
        split: which sequences; None takes all of them, and so does every split of a root without split files.
        processes: at most this many, sequences shared out over them. More than one needs an importable `__main__`.

    Raises:
        FileNotFoundError: a folder, a sequence or a frame that is to be scored is missing.
        ValueError: anything else that would be scored wrongly: see `matched_objects` and `read_label_map`.
    """
    if len(predictions) not in (1, 2):
        raise ValueError(f"predictions must be one or two folders, got {len(predictions)}")
    root = gt_root if isinstance(gt_root, DavisRoot) else DavisRoot.open(gt_root)
    folders = [Path(folder) for folder in predictions]
    jobs = [sequence_files(root, folders, sequence) for sequence in root.sequences(split)]
    scores = _score_all(jobs, processes)
    columns = tuple(zip(*scores, strict=True))
    return Evaluation(columns[: len(folders)], columns[2] if len(folders) == 2 else None)


def sequence_files(root: DavisRoot, predictions: Sequence[Path], sequence: str) -> SequenceFiles:
    """The pictures that scoring one sequence reads.

    Raises:
        FileNotFoundError: a prediction folder, its folder for this sequence, or a frame in it is missing.
        ValueError: fewer than three annotated frames.
    """
    annotations = root.annotation_paths(sequence)
    if len(annotations) < 3:
        raise ValueError(f"{annotations[0].parent}: {len(annotations)} annotated, the first and last are not scored")
    stems = [path.stem for path in annotations[1:-1]]
    return SequenceFiles(
        sequence, tuple(annotations), tuple(_prediction_files(folder, sequence, stems) for folder in predictions)
    )


def score_files(files: SequenceFiles) -> tuple[SequenceScores, ...]:
    """Score one sequence from its files: each prediction and, where there are two, the second against the first."""
    annotated = annotated_objects([read_label_map(path) for path in files.annotations])
    ids = annotated.obj_ids
    rows: list[list[list[MaskScore]]] = []
    for annotation, paths in zip(annotated.label_maps[1:-1], zip(*files.predictions, strict=True), strict=True):
        shown = [matched_objects(read_label_map(path), ids, annotation.shape, path) for path in paths]
        pairs = [(annotation, labels) for labels in shown]
        if len(shown) == 2:
            pairs.append((shown[0], shown[1]))
        rows.append([_score_frame(expected, labels, ids) for expected, labels in pairs])
    return tuple(_sequence_scores(files.sequence, ids, frames) for frames in zip(*rows, strict=True))


def _score_all(jobs: Sequence[SequenceFiles], processes: int) -> list[tuple[SequenceScores, ...]]:
    num_frames = sum(len(job.annotations) for job in jobs)
    processes = min(processes, len(jobs), math.ceil(num_frames / FRAMES_PER_PROCESS))
    if processes <= 1:
        return [score_files(job) for job in jobs]
    # Longest first, so that no process starts a long sequence when the others are done.
    order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].annotations))
    # Spawned, not forked: a copy of a process in which OpenCV or torch runs threads can hang.
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        scores = dict(zip(order, pool.map(score_files, [jobs[i] for i in order]), strict=True))
    return [scores[i] for i in range(len(jobs))]


def _score_frame(annotation: np.ndarray, prediction: np.ndarray, obj_ids: Sequence[int]) -> list[MaskScore]:
    return [score_mask(annotation == obj_id, prediction == obj_id) for obj_id in obj_ids]


def _sequence_scores(sequence: str, obj_ids: Sequence[int], frames: Sequence[Sequence[MaskScore]]) -> SequenceScores:
    """Turn the scores of each frame's objects into the scores of each object's frames."""
    objects = []
    for obj_id, scores in zip(obj_ids, zip(*frames, strict=True), strict=True):
        region, contour = (np.array([getattr(score, name) for score in scores]) for name in ("region", "contour"))
        objects.append(ObjectScores(obj_id, region, contour, any(score.is_predicted for score in scores)))
    return SequenceScores(sequence, tuple(objects))


def _other_ids(labels: np.ndarray, obj_ids: Collection[int]) -> set[int]:
    """Ids in a label map besides the background and these."""
    # Counting the few known ids is ten times faster than finding all values.
    if sum(np.count_nonzero(labels == obj_id) for obj_id in (0, *obj_ids)) == labels.size:
        return set()
    return {int(value) for value in np.unique(labels)} - {0, *obj_ids}


def _explain_ids(others: set[int], obj_ids: Sequence[int]) -> str:
    """Say what is probably wrong with a prediction that holds ids which its annotation lacks."""
    text = f"holds object ids {_listed(others)}, its annotation has {_listed(obj_ids)}"
    colours = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)[list(obj_ids)]
    grey_levels = colours @ np.array([0.299, 0.587, 0.114])
    if all(np.abs(grey_levels - other).min() <= 1 for other in others):
        return f"{text}: they are the grey levels of DAVIS's colours, a coloured mask was turned grey; save the ids"
    return text


def _prediction_files(folder: Path, sequence: str, stems: Sequence[str]) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of predictions: {folder}")
    found = {path.stem: path for path in list_pictures(folder / sequence, (".png",))}
    missing = [stem for stem in stems if stem not in found]
    if not found:
        raise FileNotFoundError(f"{folder / sequence}: no predictions (PNG) of sequence {sequence}")
    if missing:
        raise FileNotFoundError(
            f"{folder / sequence}: {len(missing)} of {len(stems)} scored frames missing, the first {missing[0]}.png; "
            f"there are {len(found)}, from {min(found)}.png to {max(found)}.png"
        )
    return tuple(found[stem] for stem in stems)


def _listed(ids: Iterable[int], most: int = 8) -> str:
    ordered = [str(obj_id) for obj_id in sorted(ids)]
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in reversed(shape))

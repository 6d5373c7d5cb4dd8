"""The threshold that keeps a wanted fidelity on a user's own clip, and the speed-up that it brings.

The network tracks a slice of the clip once without skipping. Every threshold is then played through with those masks in
the network's place, which costs little, and the most promising one is run in earnest.

N objects; h, w rows and columns of low-res mask logits, H, W of the video.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sam2.frame_skipping import FrameDecision, RecordedMasks, SkipOptions, play_through, skip_rate
from sam2.modeling.frame_spans import FrameSpans
from sam2.modeling.outputs import FrameOutput
from sam2.modeling.sam2_base import keep_highest_object
from sam2.utils.change_detection import GateFrame, KeyFrame, check_count, check_threshold
from sam2.utils.vos_metrics import score_mask
from sam2.video_propagation import key_frame_of
from sam2.video_state import ObjectTrack, VideoState

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

DEFAULT_THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.6)
"""Steps of about 1.4: from hardly any frame skipped to nearly all, for every strategy."""

OFF = SkipOptions(threshold=0)
"""Every frame is processed."""


class CalibrationPoint(NamedTuple):
    """What one threshold does, played through with the masks of the run without skipping.

    threshold: in the unit of the strategy. fidelity: mean J&F, 0 to 1. skip_rate: share of frames, 0 to 1.
    """

    threshold: float
    fidelity: float
    skip_rate: float


class Calibration(NamedTuple):
    """The threshold to set, and what it did to the slice when the network ran with it.

    threshold: for `predictor.skip_mad_threshold`; 0 where no threshold keeps the wanted fidelity.
    fidelity: mean J&F against the same model without skipping, over objects and frames, 0 to 1.
    skip_rate: share of the slice's frames that the network did not see, 0 to 1.
    speedup: seconds without skipping / seconds with it, from the first frame to the last; below 1 where deciding takes
        longer than what it spares.
    points: what every threshold promised, by ascending threshold.
    """

    threshold: float
    fidelity: float
    skip_rate: float
    speedup: float
    points: tuple[CalibrationPoint, ...]


def calibrate(
    predictor: SAM2VideoPredictor,
    state: VideoState,
    fidelity: float = 0.95,
    num_frames: int = 50,
    start_frame_idx: int | None = None,
    thresholds: Sequence[float] | None = None,
) -> Calibration:
    """Find the threshold that skips most frames of a slice of this clip and keeps a wanted fidelity.

    With the predictor's strategy, warp, look-ahead and limit of consecutive skips, and the prompts given so far. Costs
    one run through the slice without skipping and one or a few with it. Changes nothing: neither the session nor the
    predictor. `predictor.skip_mad_threshold = calibration.threshold` is yours to do.

    Args:
        state: the session, prompted.
        fidelity: the least mean J&F against the same model without skipping, above 0 to 1; the slice's first and last
            frame are left out of it, as DAVIS does.
        num_frames: length of the slice; what is longer than the clip ends with it.
        start_frame_idx: where the slice begins; by default at the earliest prompted frame.
        thresholds: what to try, in the unit of the strategy (`SkipOptions`); by default `DEFAULT_THRESHOLDS`.

    Raises:
        ValueError: an argument is out of range, the slice is shorter than three frames, or the strategy is an object of
            your own, which has no threshold to find.
        RuntimeError: there is no object or no prompt to track.
    """
    if not 0 < fidelity <= 1:
        raise ValueError(f"fidelity must be above 0 and at most 1, got {fidelity!r}")
    candidates = _options(predictor.skipping, DEFAULT_THRESHOLDS if thresholds is None else thresholds)
    start = None if start_frame_idx is None else state.check_frame("start_frame_idx", start_frame_idx)
    reference = _private_copy(state)
    predictor.propagate_in_video_preflight(reference)
    order = _slice(reference, start, check_count(num_frames, "num_frames"))

    # The first frames of a process are slow: memory is set aside, kernels are chosen.
    _run(predictor, _private_copy(state), order[:2], OFF)
    seconds = _run(predictor, reference, order, OFF)
    points = _simulate(predictor, reference, order, candidates)
    promising = sorted(
        (point.threshold for point in points if point.fidelity >= fidelity and point.skip_rate > 0), reverse=True
    )
    by_threshold = {each.threshold: each for each in candidates}
    for threshold in promising:
        session = _private_copy(state)
        taken = _run(predictor, session, order, by_threshold[threshold])
        reached = _mean_fidelity(predictor, reference, session, order)
        if reached >= fidelity:
            return Calibration(threshold, reached, skip_rate(session.decisions), seconds / taken, points)
    return Calibration(0.0, 1.0, 0.0, 1.0, points)


def _options(skipping: SkipOptions, thresholds: Sequence[float]) -> list[SkipOptions]:
    """The predictor's options with each threshold, by ascending threshold."""
    if not isinstance(skipping.strategy, str):
        raise ValueError(f"skip_strategy: {skipping.strategy!r} is an object of yours and has no threshold to find")
    distinct = sorted({check_threshold(threshold, "thresholds") for threshold in thresholds} - {0.0})
    if not distinct:
        raise ValueError("thresholds must hold at least one above 0")
    return [dataclasses.replace(skipping, threshold=threshold) for threshold in distinct]


def _slice(state: VideoState, start: int | None, num_frames: int) -> range:
    if start is None:
        start = min(t for track in state.objects.values() for t in track.prompted)
    end = start + num_frames
    # The length of a video file is an estimate until its end was reached.
    order = range(start, end if state.frames.has(end - 1) else min(end, state.num_frames))
    if len(order) < 3:
        raise ValueError(
            f"num_frames: the slice needs at least 3 frames, got {len(order)} from frame {start} "
            f"of {state.num_frames} (num_frames={num_frames})"
        )
    return order


def _private_copy(state: VideoState) -> VideoState:
    """A session that goes its own way from here; it shares the video and the tensors, which nobody writes into.

    It keeps all it finds, for the slice is played through with it.
    """
    tracks = {obj_id: _copy_track(track) for obj_id, track in state.objects.items()}
    own = {"objects": tracks, "features": {}, "decision_of": {}, "scene_cuts": list(state.scene_cuts)}
    return dataclasses.replace(state, **own, paused=None, keep="all")


def _copy_track(track: ObjectTrack) -> ObjectTrack:
    stores = {name: store for name, store in vars(track).items() if isinstance(store, dict)}
    return dataclasses.replace(
        track,
        doubted=FrameSpans(track.doubted.spans),
        **{name: {t: _copy_entry(entry) for t, entry in store.items()} for name, store in stores.items()},
    )


def _copy_entry(entry: object) -> object:
    """Outputs are completed when they are written to memory; everything else stays as it is."""
    return copy.copy(entry) if isinstance(entry, FrameOutput) else entry


def _run(predictor: SAM2VideoPredictor, session: VideoState, order: range, options: SkipOptions) -> float:
    """Track the slice; returns seconds."""
    # The same weights under other options; the caller's predictor is not touched.
    twin = copy.copy(predictor)
    twin.skipping = options
    start = time.perf_counter()
    answers = twin.propagate_in_video(session, order[0], len(order) - 1, progress=False)
    for _, _, logits in answers:
        (logits > 0).cpu()  # who looks at a frame waits for it
    return time.perf_counter() - start


def _simulate(
    predictor: SAM2VideoPredictor, reference: VideoState, order: range, candidates: Sequence[SkipOptions]
) -> tuple[CalibrationPoint, ...]:
    """What each option would do if the network always answered as it did in the reference run."""
    prompted = {t for track in reference.objects.values() for t in track.prompted}
    source = RecordedMasks(functools.partial(_recorded_key_frame, reference), prompted)
    decisions: list[list[FrameDecision]] = [[] for _ in candidates]
    agreements: list[list[float]] = [[] for _ in candidates]
    for t, answers in zip(order, play_through(order, reference.gate_frame, source, candidates), strict=True):
        expected = _shown(predictor, reference, _low_res(reference, t))
        for i, (decision, carried) in enumerate(answers):
            decisions[i].append(decision)
            agreement = 1.0
            if carried is not None:
                found = _shown(predictor, reference, torch.from_numpy(carried)[:, None])
                agreement = _agreement(expected, found)
            agreements[i].append(agreement)
    return tuple(
        CalibrationPoint(check_threshold(each.threshold), float(np.mean(values[1:-1])), skip_rate(decided))
        for each, values, decided in zip(candidates, agreements, decisions, strict=True)
    )


def _recorded_key_frame(state: VideoState, frame_idx: int, frame: GateFrame) -> KeyFrame:
    outputs = [track.prompted.get(frame_idx) or track.propagated[frame_idx] for track in state.objects.values()]
    return key_frame_of(outputs, frame_idx, frame)


def _low_res(state: VideoState, frame_idx: int) -> torch.Tensor:
    """Mask logits (N, 1, h, w) of a frame that was tracked or skipped."""
    masks = [track.latest_masks(frame_idx, prompted=False) for track in state.objects.values()]
    return torch.cat([mask for mask in masks if mask is not None])


def _shown(predictor: SAM2VideoPredictor, state: VideoState, logits: torch.Tensor) -> np.ndarray:
    """Masks as the predictor shows them: low-res logits (N, 1, h, w) -> boolean (N, H, W)."""
    size = (state.video_height, state.video_width)
    masks = F.interpolate(logits.to(state.device), size, mode="bilinear", align_corners=False)
    masks = keep_highest_object(masks) if predictor.non_overlap_masks else masks
    return (masks[:, 0] > 0).cpu().numpy()


def _mean_fidelity(
    predictor: SAM2VideoPredictor, reference: VideoState, session: VideoState, order: Sequence[int]
) -> float:
    """Fidelity of a session to the reference, over objects and frames."""
    pairs = [[_shown(predictor, each, _low_res(each, t)) for each in (reference, session)] for t in order[1:-1]]
    return float(np.mean([_agreement(*pair) for pair in pairs]))


def _agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean J&F of the objects in one frame, masks (N, H, W)."""
    scores = [score_mask(*pair) for pair in zip(expected, found, strict=True)]
    return float(np.mean([(score.region + score.contour) / 2 for score in scores]))

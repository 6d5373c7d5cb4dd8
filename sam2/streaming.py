"""Tracking frame by frame as the frames come: from a camera, a decoder of your own, any iterator."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from sam2.frame_skipping import FrameDecision
from sam2.results import FrameResult, frame_result
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.scene_cuts import ColourWatch
from sam2.utils.video_io import as_rgb
from sam2.video_propagation import FrameAnswer, Scope, TrackingRun, known_answer, nothing_done
from sam2.video_state import Corrections, ObjectId, VideoState

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

Color = Literal["rgb", "bgr"]


class LiveFrames(Sequence[int]):
    """The newest frame of a stream as a `FrameSource`, and the numbers of its frames as they come."""

    name = "the stream"
    is_live = True

    def __init__(self) -> None:
        self.frame_idx = -1
        self.height = self.width = 0
        self._frame = np.empty((0, 0, 3), np.uint8)

    def push(self, frame: np.ndarray) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB. Raises ValueError where it is not of the first one's size."""
        height, width = frame.shape[:2]
        if self.frame_idx >= 0 and (height, width) != (self.height, self.width):
            raise ValueError(f"frame {self.frame_idx + 1} is {width}x{height}, expected {self.width}x{self.height}")
        self.height, self.width, self._frame = height, width, frame
        self.frame_idx += 1

    def has(self, index: int) -> bool:
        """Whether the frame is the newest one, the only one that is there."""
        return index == self.frame_idx >= 0

    def read(self, index: int) -> np.ndarray:
        """The newest frame. Raises IndexError for any other."""
        if not self.has(index):
            raise IndexError(f"{self.name} is at frame {self.frame_idx}, frame {index} is not there")
        return self._frame

    def close(self) -> None:
        """Forget the frame."""
        self._frame = np.empty((0, 0, 3), np.uint8)

    def __len__(self) -> int:
        return sys.maxsize  # no end is known

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.frame_idx

    def __getitem__(self, index: Any) -> Any:
        raise IndexError("nobody knows which frames of a stream are yet to come")


class Prompt(NamedTuple):
    """A prompt that waits for the next frame."""

    obj_id: ObjectId
    points: Any
    labels: Any
    box: Any
    mask: Any


class VideoStream:
    """A live session: frames go in one at a time, results come out at once, and memory does not grow.

    On the same frames and prompts the masks are those of `propagate_in_video`, with the same gate, if the clip has 16
    frames or more (a shorter one is answered by its length, which a stream does not know). Frames are numbered from 0.
    Only what memory attention can still reach is kept, and of each prompted frame what it remembers: of all of them,
    as SAM 2 reads them all, or of the last `max_cond_frames_in_attn` if the model has such a limit.

    Attributes:
        state: the session. Its `decisions` are those of the last frames.
    """

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        *,
        color: Color | None,
        corrections: Corrections,
        offload_state_to_cpu: bool,
    ) -> None:
        if color not in ("rgb", "bgr", None):
            raise ValueError(f'color must be "rgb", "bgr" or None, got {color!r}')
        self.predictor = predictor
        self._check_options()
        self._color = color
        self._frames = LiveFrames()
        device = predictor.device
        loader = FrameLoader(self._frames, predictor.image_size, device, cache_size=1, read_ahead=0)
        self.state = VideoState(
            loader, device=device, storage_device=torch.device("cpu") if offload_state_to_cpu else device,
            offload_state_to_cpu=offload_state_to_cpu, keep="window", corrections=corrections,
            search_factor=predictor.search_factor,
        )  # fmt: skip
        self._waiting: list[Prompt] = []
        self._answers: Iterator[FrameAnswer] | None = None
        self._options = predictor.skipping
        self._colours = ColourWatch()

    @property
    def frame_idx(self) -> int:
        """Number of the frame that was stepped last; -1 before the first."""
        return self._frames.frame_idx

    @property
    def obj_ids(self) -> list[ObjectId]:
        """The objects' ids, in the order of every result."""
        return self.state.obj_ids

    def prompt(
        self, obj_id: ObjectId, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None, *,
        on: Literal["last", "next"] = "last",
    ) -> FrameResult | None:  # fmt: skip
        """Point at an object, new or known, with clicks, a box or both, or a mask.

        It is about the frame that was stepped last, which is the one the user has seen, and counts from the next frame
        on. Before the first frame, or with `on="next"` (what a detector found on a frame that is about to be stepped),
        it waits for the next one.

        Args:
            points, labels, box: as of `add_new_points_or_box`, in pixels. mask: as of `add_new_mask`.

        Returns:
            The last frame's result with this prompt; None where it waits.

        Raises:
            ValueError, TypeError: bad input; of a prompt that waits, when its frame comes.
        """
        self.state.check_open()
        if on not in ("last", "next"):
            raise ValueError(f'on must be "last" or "next", got {on!r}')
        if mask is not None and not (points is None and labels is None and box is None):
            raise ValueError("give a mask, or points and a box, in one prompt")
        prompt = Prompt(obj_id, points, labels, box, mask)
        if on == "next" or self.frame_idx < 0:
            self._waiting.append(prompt)
            return None
        self._apply(prompt)
        return self._current_result()

    @torch.inference_mode()
    def step(self, frame: Any) -> FrameResult:
        """Track all objects on the next frame.

        Args:
            frame: an array or tensor (H, W, 3) or (3, H, W), uint8, or float from 0 to 1, its colours in the order that
                `stream(color=...)` names; or a PIL image. All frames are of one size.

        Raises:
            ValueError, TypeError: no such frame, or a prompt that waited for it is bad (which drops the waiting ones).
        """
        self.state.check_open()
        self._check_options()
        picture = self._read(frame)
        if self._waiting or self.state.search_factor is not None:
            self._commit_last()
        self._frames.push(picture)
        waiting, self._waiting = self._waiting, []
        for prompt in waiting:
            self._apply(prompt)
        if not any(track.has_prompts for track in self.state.objects.values()):
            return self._nothing()
        answer = self._next_answer()
        self._forget_old()
        return self.predictor._result(self.state, answer)

    def remove(self, obj_id: ObjectId) -> None:
        """Stop tracking an object. Raises RuntimeError for an unknown one."""
        self.predictor.remove_object(self.state, obj_id, strict=True, need_output=False)

    def close(self) -> None:
        """Free all memory; whoever uses the stream afterwards gets a ValueError."""
        self._answers = None
        self.state.close()

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_options(self) -> None:
        if self.predictor.skipping.lookahead:
            raise ValueError("skip_lookahead needs frames that are yet to come: set it to 0 for a stream")

    def _read(self, frame: Any) -> np.ndarray:
        """The frame as (H, W, 3) uint8 RGB, in memory of its own: cameras write into the same buffer again."""
        label = f"frame {self.frame_idx + 1}"
        if isinstance(frame, Image.Image):
            return as_rgb(frame, label)
        if not isinstance(frame, np.ndarray | torch.Tensor):
            raise TypeError(f"{label} must be an array, a tensor or a PIL image, got {type(frame).__name__}")
        if self._color is None:
            raise ValueError(
                'say in which order the colours of an array are: stream(color="bgr") for OpenCV, "rgb" for most others'
            )
        if frame.ndim != 3 or 3 not in (frame.shape[0], frame.shape[2]):
            raise ValueError(f"{label} must be (H, W, 3) or (3, H, W), got {tuple(frame.shape)}")
        picture = as_rgb(frame, label)
        return (picture if self._color == "rgb" else picture[..., ::-1]).copy()

    def _commit_last(self) -> None:
        """Write prompts on the last frame to memory while that frame is there: those on the next one replace it, and
        regions of it are encoded anew."""
        for track in self.state.objects.values():
            self.predictor._commit_prompts(self.state, track)

    def _apply(self, prompt: Prompt) -> None:
        if prompt.mask is not None:
            self.predictor.add_new_mask(self.state, self.frame_idx, prompt.obj_id, prompt.mask)
        else:
            self.predictor.add_new_points_or_box(
                self.state, self.frame_idx, prompt.obj_id, prompt.points, prompt.labels, box=prompt.box
            )

    def _next_answer(self) -> FrameAnswer:
        if self._answers is None or self._options != self.predictor.skipping:
            self._options = self.predictor.skipping
            self.state.paused = None  # the frames of before are gone
            run = TrackingRun(self.predictor, self.state, reverse=False, scope=Scope(), colours=self._colours)
            self._answers = run.frames(self._frames, self._options)
        try:
            return next(self._answers)
        except BaseException:
            self._answers = None  # after a failure the next frame starts anew, as a key frame
            raise

    def _forget_old(self) -> None:
        """Drop what neither the next frame nor a correction of this one reads."""
        predictor = self.predictor
        reach = max(predictor.reach, predictor.max_obj_ptrs_in_encoder)
        oldest = self.frame_idx - reach
        limit = predictor.max_cond_frames_in_attn
        for track in self.state.objects.values():
            track.forget_out_of_reach(self.frame_idx, reach)
            if limit > 0:
                for t in [t for t in sorted(track.prompted)[:-limit] if t < oldest]:
                    del track.prompted[t]
        del self.state.scene_cuts[:-1]  # what was before the last scene is never compared with what comes
        for t in [t for t in self.state.decision_of if t < oldest]:
            del self.state.decision_of[t]

    def _nothing(self) -> FrameResult:
        decision = nothing_done(self.frame_idx)
        return frame_result(decision, [], torch.empty(0, 1, self._frames.height, self._frames.width), [], [])

    @torch.inference_mode()
    def _current_result(self) -> FrameResult:
        """All objects on the last frame, as they are after a prompt."""
        state, t = self.state, self.frame_idx
        known = state.decision_of.get(t) or FrameDecision(t, "prompted", 0.0, "prompt", 0.0)
        answer = known_answer(state, known)
        return self.predictor._result(state, answer)

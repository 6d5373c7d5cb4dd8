"""The gate: gathers the evidence of each frame, lets a policy decide, and carries masks to the frames that are skipped.

N objects; h, w of their mask logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sam2.utils.change_detection import (
    Decision,
    Evidence,
    GateFrame,
    KeyFrame,
    Motion,
    Search,
    SkipPolicy,
    check_count,
    is_missing,
)
from sam2.utils.mask_carrier import CarrierTrust, MaskCarrier, blend_logits


class GateMemo(NamedTuple):
    """What a gate must know of the past to go on in another session; plain numbers and arrays.

    frame_idx, logits, predicted_ious, object_scores: of the last key frame, as in `KeyFrame`. log_ratio: of
    `CarrierTrust`. search: as in `Evidence`.
    """

    frame_idx: int
    logits: np.ndarray
    predicted_ious: np.ndarray
    object_scores: np.ndarray
    log_ratio: np.ndarray
    search: Search


class SkipGate:
    """Decides frame by frame and carries masks; the predictor tells it which frames the network saw.

    For each frame, in the direction of tracking: `decide`, then `remember` with what the network said, or `answer` for
    the masks of a skipped frame. With look-ahead the answers of skipped frames wait for the next key frame: `remember`
    returns them, and `flush` those left over at the end of the clip. After a prompt, a removal, a reset or a change of
    direction: `forget`, and the next frame becomes a key frame.

    Args:
        policy: one of `make_policy`, or your own.
        warp: carry the key frame's masks along rather than copy them.
        lookahead: answer skipped frames from both sides (carries them along, whatever `warp`).
        max_consecutive_skips: process a frame after so many skipped ones; None for no limit.

    Raises:
        ValueError: `max_consecutive_skips` is negative or not a whole number.
    """

    def __init__(
        self,
        policy: SkipPolicy,
        *,
        warp: bool = False,
        lookahead: bool = False,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self.policy = policy
        self.warp = warp or lookahead
        self.lookahead = lookahead
        self.limit = max_consecutive_skips
        if max_consecutive_skips is not None:
            check_count(max_consecutive_skips, "max_consecutive_skips")
        self.forget()

    def forget(self) -> None:
        """The next frame becomes a key frame, and nothing learnt about the objects holds any longer."""
        self._key: KeyFrame | None = None
        self._trust = CarrierTrust(0)
        self._search = Search()
        self._start_run()

    def decide(self, frame_idx: int, frame: GateFrame) -> Decision:
        """What to do with the next frame in the direction of tracking."""
        if self._key is None:
            return Decision("processed", 0.0, "no key frame yet")
        self._frame, self._motion = frame, None
        age = abs(frame_idx - self._key.frame_idx)
        if self.limit is not None and age > self.limit:
            return Decision("processed", 0.0, f"limit of {self.limit} consecutive skips")
        verdict = self.policy.decide(
            Evidence(frame_idx, age, frame, self._key, self._past, self._measure_motion, self._search)
        )
        if not verdict.skip:
            return Decision("processed", verdict.change, verdict.reason)
        if self.warp:
            self._measure_motion()
        if self._motion is not None:
            self._past.append(self._motion)
        if self.lookahead:
            self._waiting.append(_Skipped(frame, self.answer()))
        return Decision("warped" if self.warp else "reused", verdict.change, verdict.reason)

    def answer(self) -> np.ndarray:
        """Mask logits (N, h, w) of the frame that was last decided to be skipped, from its key frame.

        Raises:
            RuntimeError: no frame was skipped since the last key frame.
        """
        if self._key is None or self._frame is None:
            raise RuntimeError("no frame was skipped since the last key frame")
        if not self.warp or self._carrier is None:
            return self._key.logits
        return self._carrier.carried(self._trust.ways)

    def remember(self, key: KeyFrame, new_scene: bool = False) -> list[np.ndarray]:
        """Take in a frame that the network saw, learn from it how well masks were carried, and start a run from it.

        A frame that was decided to be skipped and is given here nevertheless, as a prompted one is, was not skipped.

        Args:
            new_scene: a cut lies before it: it tells nothing of the frames before, nor they of it.

        Returns:
            With look-ahead, mask logits (N, h, w) of each frame skipped since the key frame before, oldest first.
        """
        if self._waiting and self._waiting[-1].frame is key.frame:
            self._waiting.pop()
        is_continued = self._key is not None and len(key.logits) == len(self._key.logits) and not new_scene
        if not is_continued:
            self._trust = CarrierTrust(len(key.logits))
        elif self._carrier is not None:
            if self._frame is not key.frame:
                self._frame, self._motion = key.frame, None
            self._measure_motion()
            self._trust.learn(self._carrier.disagreement, self._carrier.deviations(key.logits))
        self._search = self._searched(key) if is_continued else Search()
        answers = self._blend_back(key) if is_continued else self.flush()
        self._key = key
        self._start_run()
        return answers

    def flush(self) -> list[np.ndarray]:
        """With look-ahead, the answers still waiting, from their key frame alone: the clip ends here."""
        waiting, self._waiting, self._num_answered = self._waiting[self._num_answered :], [], 0
        return [skipped.logits for skipped in waiting]

    def memo(self) -> GateMemo | None:
        """What it takes to go on elsewhere; None before the first key frame."""
        if self._key is None:
            return None
        key = self._key
        return GateMemo(
            key.frame_idx, key.logits, key.predicted_ious, key.object_scores, self._trust.log_ratio.copy(), self._search
        )

    def resume(self, memo: GateMemo, key: GateFrame, since: Iterable[tuple[int, GateFrame]] = ()) -> None:
        """Go on from a memo, and decide from then on as the gate that gave it.

        Args:
            key: the memo's key frame.
            since: index and picture of each frame skipped after it, oldest first; all of them were answered.
        """
        self.forget()
        self._key = KeyFrame(memo.frame_idx, key, memo.logits, memo.predicted_ious, memo.object_scores)
        self._trust.log_ratio = memo.log_ratio.copy()
        self._search = memo.search
        for frame_idx, frame in since:
            self.decide(frame_idx, frame)
        self._num_answered = len(self._waiting)

    def _searched(self, key: KeyFrame) -> Search:
        """What is known of the search for missing objects once this key frame is."""
        assert self._key is not None
        missing = is_missing(key.logits)
        if not missing.any() or (missing != is_missing(self._key.logits)).any():
            return Search()
        novelty = 0.0 if self._motion is None else self._motion.novelty
        return Search(self._search.fruitless + 1, max(self._search.novelty, novelty))

    def _blend_back(self, key: KeyFrame) -> list[np.ndarray]:
        if not self._waiting:
            return []
        carrier = MaskCarrier(key.frame.small, key.logits)
        blended = []
        for i, skipped in reversed(list(enumerate(self._waiting, 1))):
            carrier.follow(skipped.frame.small)
            after = carrier.carried(self._trust.ways)
            both = blend_logits(skipped.logits, after, share_after=i / (len(self._waiting) + 1))
            if key.believed is not None:
                both = np.where(key.believed[:, None, None], both, skipped.logits)
            blended.append(both)
        return blended[::-1][self._num_answered :]

    def _start_run(self) -> None:
        self._carrier: MaskCarrier | None = None
        self._past: list[Motion] = []
        self._waiting: list[_Skipped] = []
        self._num_answered = 0  # the first of those that wait, where another gate went on from them
        self._frame: GateFrame | None = None
        self._motion: Motion | None = None

    def _measure_motion(self) -> Motion:
        """Carry the masks to the frame at hand, once, and say what that tells."""
        assert self._key is not None and self._frame is not None
        if self._motion is None:
            if self._carrier is None:
                self._carrier = MaskCarrier(self._key.frame.small, self._key.logits)
            self._carrier.follow(self._frame.small)
            losses = self._trust.predict(self._carrier.disagreement) * _doubt(self._key.predicted_ious)
            self._motion = Motion(losses, self._carrier.likeness, self._carrier.novelty)
        return self._motion


class _Skipped(NamedTuple):
    """A frame that waits for the next key frame, and its masks from the one before."""

    frame: GateFrame
    logits: np.ndarray


def _doubt(predicted_ious: np.ndarray) -> np.ndarray:
    """A mask that the decoder was unsure of counts up to twice: it deserves an earlier second look."""
    return 2.0 - np.clip(predicted_ious, 0.0, 1.0)

"""A set of frame numbers that come in long runs: its size is that of the runs, not of the frames."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator


class FrameSpans:
    """Frame numbers as runs of neighbours, first and last of each."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Take runs as `spans` gives them: in order, with a frame between them at least."""
        pairs = list(spans)
        self._firsts, self._lasts = [first for first, _ in pairs], [last for _, last in pairs]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last frame of each run, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def __contains__(self, frame_idx: int) -> bool:
        return self._run_of(frame_idx) is not None

    def __iter__(self) -> Iterator[int]:
        return (t for first, last in self.spans for t in range(first, last + 1))

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def add(self, frame_idx: int) -> None:
        """Add a frame, joining the runs that it touches."""
        after = bisect.bisect_right(self._firsts, frame_idx)  # the first run that starts later
        before = after - 1
        if before >= 0 and frame_idx <= self._lasts[before]:
            return
        touches_before = before >= 0 and self._lasts[before] == frame_idx - 1
        touches_after = after < len(self._firsts) and self._firsts[after] == frame_idx + 1
        if touches_before and touches_after:
            self._lasts[before] = self._lasts[after]
            del self._firsts[after], self._lasts[after]
        elif touches_before:
            self._lasts[before] = frame_idx
        elif touches_after:
            self._firsts[after] = frame_idx
        else:
            self._firsts.insert(after, frame_idx)
            self._lasts.insert(after, frame_idx)

    def discard(self, frame_idx: int) -> None:
        """Take a frame out, if it is there."""
        run = self._run_of(frame_idx)
        if run is None:
            return
        left = (self._firsts[run], frame_idx - 1)
        right = (frame_idx + 1, self._lasts[run])
        rest = [(first, last) for first, last in (left, right) if first <= last]
        self._firsts[run : run + 1] = [first for first, _ in rest]
        self._lasts[run : run + 1] = [last for _, last in rest]

    def discard_before(self, frame_idx: int) -> None:
        """Take out all earlier frames."""
        run = bisect.bisect_left(self._lasts, frame_idx)  # the first run that ends here or later
        del self._firsts[:run], self._lasts[:run]
        if self._firsts:
            self._firsts[0] = max(self._firsts[0], frame_idx)

    def passing(self, frame_idx: int, distance: int, reverse: bool) -> int:
        """The frame so many frames before this one (after it, in reverse), those of the set not counted."""
        step = -1 if reverse else 1
        here = frame_idx
        for near, far in self._runs_from(frame_idx, reverse):
            free = max(step * (here - near) - 1, 0)  # frames between, none of them in the set
            if free >= distance:
                break
            distance -= free
            here = far
        return here - step * distance

    def _runs_from(self, frame_idx: int, reverse: bool) -> Iterator[tuple[int, int]]:
        """The ends of each run on one side of a frame, the nearer one first."""
        if reverse:
            for i in range(bisect.bisect_right(self._lasts, frame_idx), len(self._lasts)):
                yield self._firsts[i], self._lasts[i]
        else:
            for i in range(bisect.bisect_left(self._firsts, frame_idx) - 1, -1, -1):
                yield self._lasts[i], self._firsts[i]

    def _run_of(self, frame_idx: int) -> int | None:
        run = bisect.bisect_right(self._firsts, frame_idx) - 1
        return run if run >= 0 and frame_idx <= self._lasts[run] else None

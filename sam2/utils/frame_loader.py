"""Frames prepared for the network: decoded, resized and normalised when they are asked for, or a little earlier.

Shapes: H, W a frame's native rows and columns; S the network's input size.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD
from sam2.utils.video_io import FrameSource, Video, open_source

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 64 * 2**20


class PreparedFrame(NamedTuple):
    """One frame before it becomes a float image."""

    frame: np.ndarray  # (H, W, 3) uint8 RGB, as the source gave it
    pixels: np.ndarray | None  # (S, S, 3) uint8 RGB; None where `FrameLoader.resizes` is off
    extra: Any  # what `FrameLoader.also` made of it


def _takes_every_core(device: torch.device | str) -> bool:
    """Whether the network leaves no core to a reading thread, which would cost more than it gains: torch's threads
    wait for the slowest of them."""
    return torch.device(device).type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1)


class FrameLoader:
    """The frames of a clip as the network wants them, by index, whatever the length of the clip.

    `loader[i]` is a fresh float32 tensor (3, S, S), ImageNet-normalised; `loader.pixels(i)` the same frame before
    normalisation and `loader.frame(i)` at its native size. A frame is decoded and resized once for all three while it
    is among the `cache_size` last ones used. Only 8-bit frames are kept, never floats.

    Background threads prepare the next `read_ahead` frames in the direction of reading: after a step of one frame
    forward or backward they go on in this direction, after a jump they wait for the next step. They end with
    `close()`, or when the loader is forgotten. A frame that they cannot read is an error only for who asks for it.
    Any number of threads may use a loader. Arrays that it hands out are shared: don't change them.
    """

    def __init__(
        self,
        video: Video,
        image_size: int,
        device: torch.device | str = "cpu",
        *,
        offload_video_to_cpu: bool = False,
        cache_size: int | None = None,
        read_ahead: int | None = None,
        threads: int = 1,
        mean: Sequence[float] | Tensor = IMAGE_MEAN,
        std: Sequence[float] | Tensor = IMAGE_STD,
    ) -> None:
        """Open a clip.

        Args:
            video: anything that `open_source` takes. A `FrameSource` stays the caller's to close.
            image_size: S, in pixels.
            device: where the tensors go.
            offload_video_to_cpu: leave the tensors on the CPU.
            cache_size: prepared frames kept, each 3 (H W + S S) bytes; None for some more than are read ahead.
            read_ahead: frames prepared in advance, below `cache_size`; 0 starts no thread. None for 8, or as many as
                64 MB hold, but at least 2; and for 0 where the network itself takes every core.
            threads: how many prepare frames at once. One keeps up with about 50 frames per second at S = 1024;
                more (with a longer `read_ahead`) help a network that is faster than that.
            mean, std: per channel, in units of the pixel range.

        Raises:
            ValueError: a size is out of range, or the video cannot be used (see `open_source`).
        """
        for name, value, least in (
            ("image_size", image_size, 1),
            ("cache_size", cache_size, 1),
            ("read_ahead", read_ahead, 0),
            ("threads", threads, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self._owns_source = not isinstance(video, FrameSource)
        self.source = open_source(video)
        self.declared_length = len(self.source)  # the same whenever this video is opened
        self.image_size = image_size
        self.device = torch.device("cpu") if offload_video_to_cpu else torch.device(device)
        self._mean = _per_channel(mean, self.device)
        self._std = _per_channel(std, self.device)
        self._range = torch.full((1, 1, 1), 255.0, device=self.device)
        if read_ahead is None and _takes_every_core(device):
            read_ahead = 0
        elif read_ahead is None:
            read_ahead = min(max(READ_AHEAD_BYTES // (3 * (self.height * self.width + image_size**2)), 2), 8)
        if cache_size is None:
            cache_size = read_ahead + 4
        self._frames = _PreparedFrames(self.source, image_size, cache_size, min(read_ahead, cache_size - 1), threads)
        weakref.finalize(self, self._frames.stop)

    @property
    def height(self) -> int:
        """H, native rows."""
        return self.source.height

    @property
    def width(self) -> int:
        """W, native columns."""
        return self.source.width

    def __len__(self) -> int:
        return len(self.source)

    def has(self, index: int) -> bool:
        """Whether there is such a frame, 0 or later. `len` may be what a video file declares; this is certain."""
        if index < 0:
            return False
        exact = getattr(self.source, "has", None)
        return index < len(self) if exact is None else exact(index)

    @property
    def shape(self) -> torch.Size:
        """(T, 3, S, S), of the tensor that this can be read as; T is `len`."""
        return torch.Size((len(self), 3, self.image_size, self.image_size))

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def __getitem__(self, index: SupportsIndex | slice) -> Tensor:
        """The normalised frame, float32 (3, S, S), or of a slice all its frames at once, (n, 3, S, S).

        Negative indices count from the end.
        """
        if isinstance(index, slice):
            frames = [self[i] for i in range(*index.indices(len(self)))]
            return torch.stack(frames) if frames else torch.empty(0, *self.shape[1:], device=self.device)
        return self._normalised(self.pixels(index))

    def cut(self, index: SupportsIndex, rows: slice, columns: slice) -> Tensor:
        """A part of the frame, cut out at its native size, as `loader[i]` is the whole: float32 (3, S, S)."""
        return self._normalised(resize_frame(self.frame(index)[rows, columns], self.image_size))

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        """(S, S, 3) uint8 -> float32 (3, S, S)."""
        moved = torch.from_numpy(pixels).to(self.device)  # as bytes, a quarter of the floats
        image = moved.permute(2, 0, 1).contiguous().float()  # reordered as bytes too: three times faster
        # Divided by a tensor, not a number: CUDA multiplies by the reciprocal of a number, which rounds otherwise.
        return image.div_(self._range).sub_(self._mean).div_(self._std)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in itertools.takewhile(self.has, itertools.count()))

    def pixels(self, index: SupportsIndex) -> np.ndarray:
        """The resized frame, (S, S, 3) uint8 RGB."""
        prepared = self._frames.get(self._checked(index))
        return resize_frame(prepared.frame, self.image_size) if prepared.pixels is None else prepared.pixels

    def frame(self, index: SupportsIndex) -> np.ndarray:
        """The frame at its native size, (H, W, 3) uint8 RGB."""
        return self._frames.get(self._checked(index)).frame

    @property
    def resizes(self) -> bool:
        """Whether every frame is resized ahead of its use, which takes time for nothing where only parts are used."""
        return self._frames.resizes

    @resizes.setter
    def resizes(self, value: bool) -> None:
        self._frames.resizes = value

    @property
    def also(self) -> Callable[[np.ndarray], Any] | None:
        """What else to make of every frame at its native size, ahead of its use: see `extra`. None for nothing."""
        return self._frames.also

    @also.setter
    def also(self, make: Callable[[np.ndarray], Any] | None) -> None:
        self._frames.also = make

    def extra(self, index: SupportsIndex) -> Any:
        """What `also` makes of the frame; None if it is None."""
        prepared, make = self._frames.get(self._checked(index)), self.also
        return prepared.extra if make is None or prepared.extra is not None else make(prepared.frame)

    def close(self) -> None:
        """Stop reading ahead, forget the frames, and close the source if it was opened here."""
        self._frames.close()
        if self._owns_source:
            self.source.close()

    def __enter__(self) -> FrameLoader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _checked(self, index: SupportsIndex) -> int:
        position = operator.index(index)
        if not self.has(position + len(self) if position < 0 else position):
            raise IndexError(f"{self.source.name} has frames 0 to {len(self) - 1}, got {position}")
        return position + len(self) if position < 0 else position


class _PreparedFrames:
    """The cache behind a `FrameLoader` and the threads that fill it.

    The threads refer to this object and not to the loader, so that a loader nobody uses can be collected.
    """

    def __init__(self, source: FrameSource, image_size: int, capacity: int, read_ahead: int, threads: int) -> None:
        self._source = source
        self._image_size = image_size
        self._capacity = capacity
        self._read_ahead = read_ahead
        self._thread_count = threads if read_ahead else 0
        self.also: Callable[[np.ndarray], Any] | None = None
        self.resizes = True
        self._threads: list[threading.Thread] = []  # started with the first step
        # One reader at a time, and frames are chosen while holding it: sources see them in the order of reading.
        self._reading = threading.Lock()
        # Guards everything below. Taken after `_reading`, never before it.
        self._changed = threading.Condition()
        self._ready: OrderedDict[int, PreparedFrame] = OrderedDict()  # least recently used first
        self._in_flight: set[int] = set()
        self._failed: set[int] = set()
        self._last = -1  # the frame last asked for; the first one is a step forward from here
        self._step = 0  # direction of reading: 1, -1, or 0 after a jump
        self._closed = False

    def get(self, index: int) -> PreparedFrame:
        while True:
            with self._changed:
                self._follow(index)
                self._changed.wait_for(lambda: self._closed or index not in self._in_flight)
                if self._closed:
                    raise ValueError(f"the frames of {self._source.name} are closed")
                if index in self._ready:
                    self._ready.move_to_end(index)
                    return self._ready[index]
            prepared = self._prepare(lambda: None if index in self._ready or index in self._in_flight else index)
            if prepared is not None:
                return prepared

    def stop(self) -> None:
        """Let the threads end, without waiting for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()
        with self._reading, self._changed:
            self._ready.clear()

    def _follow(self, index: int) -> None:
        step = index - self._last
        if step == 0:
            return
        self._last = index
        self._step = step if abs(step) == 1 else 0
        if self._step and not self._threads and not self._closed:
            self._threads = [
                threading.Thread(target=self._work, name="sam2-read-ahead", daemon=True)
                for _ in range(self._thread_count)
            ]
            for thread in self._threads:
                thread.start()
        self._changed.notify_all()

    def _next_wanted(self) -> int | None:
        """The nearest frame ahead that nobody has or makes; none before the frame that is asked for, or past damage."""
        if not self._step or (self._last not in self._ready and self._last not in self._in_flight):
            return None
        for distance in range(1, self._read_ahead + 1):
            index = self._last + distance * self._step
            if not 0 <= index < len(self._source) or index in self._failed:
                return None
            if index not in self._ready and index not in self._in_flight:
                return index
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next_wanted() is not None)
                if self._closed:
                    return
            try:
                self._prepare(self._next_wanted)
            except Exception:
                logger.debug("a frame of %s cannot be read ahead", self._source.name, exc_info=True)

    def _prepare(self, choose: Callable[[], int | None]) -> PreparedFrame | None:
        """Read, resize and keep the frame that `choose` names once it is our turn; None if it names none."""
        with self._reading:
            with self._changed:
                index = None if self._closed else choose()
                if index is None:
                    return None
                self._in_flight.add(index)
            try:
                frame = self._source.read(index)
            except BaseException:
                self._settle(index, None)
                raise
        prepared = None
        try:
            extra = None if self.also is None else self.also(frame)
            pixels = resize_frame(frame, self._image_size) if self.resizes else None
            prepared = PreparedFrame(frame, pixels, extra)
        finally:
            self._settle(index, prepared)
        return prepared

    def _settle(self, index: int, prepared: PreparedFrame | None) -> None:
        with self._changed:
            self._in_flight.discard(index)
            if prepared is None:
                self._failed.add(index)
            elif not self._closed:
                self._failed.discard(index)
                self._ready[index] = prepared
                while len(self._ready) > self._capacity:
                    self._ready.popitem(last=False)
            self._changed.notify_all()


def resize_frame(frame: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8, PIL's bicubic filter, which widens when it shrinks."""
    return np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))


def _per_channel(values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).to(device).reshape(3, 1, 1)

"""Decoders that step forward through one video file: OpenCV and PyAV behind the same few methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from sam2.utils.files import is_utf8

_ATTEMPTS_AFTER_END = 32  # OpenCV reports damage and the end alike, but goes on after damage


class DecodeFailure(Exception):
    """A decoder cannot go on. `position` is the frame it could not give, None if it could not open the file."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        super().__init__(reason)
        self.position = position


class Decoder(Protocol):
    """Steps forward through a file; `image` and `timestamp` belong to the frame last stepped to."""

    title: str

    def __init__(self, path: Path) -> None: ...

    @property
    def declared(self) -> int:
        """How many frames the container speaks of: often exact, sometimes an estimate, 0 if unknown."""
        ...

    @property
    def timestamp(self) -> float | None:
        """Presentation time in the decoder's own unit."""
        ...

    @property
    def tick(self) -> float:
        """That unit in seconds."""
        ...

    @property
    def rate(self) -> float:
        """Frames per second that the container speaks of: of uneven times anything up to a thousand, 0 if unknown."""
        ...

    def advance(self) -> bool:
        """Step to the next frame without converting it. False at the end; raises `DecodeFailure` on damage."""
        ...

    def image(self) -> np.ndarray:
        """The current frame, (H, W, 3) uint8 RGB."""
        ...

    def seek(self, timestamp: float) -> None:
        """Go to the neighbourhood of a timestamp; the next `advance` shows where that is."""
        ...

    def close(self) -> None: ...


class OpenCvDecoder:
    title = "OpenCV"

    def __init__(self, path: Path) -> None:
        import cv2

        self._cv2 = cv2
        if not is_utf8(path):
            raise DecodeFailure("cannot open names that are not UTF-8")  # it would end the process
        # By name, because otherwise OpenCV takes some names for patterns of picture files.
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise DecodeFailure("cannot open it")

    @property
    def declared(self) -> int:
        return max(0, int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)))

    @property
    def timestamp(self) -> float | None:
        return self._capture.get(self._cv2.CAP_PROP_POS_MSEC)

    @property
    def tick(self) -> float:
        return 1e-3

    @property
    def rate(self) -> float:
        return self._capture.get(self._cv2.CAP_PROP_FPS)

    def advance(self) -> bool:
        if self._capture.grab():
            return True
        if any(self._capture.grab() for _ in range(_ATTEMPTS_AFTER_END)):
            raise DecodeFailure("damaged data")
        return False

    def image(self) -> np.ndarray:
        decoded, bgr = self._capture.retrieve()
        if not decoded:
            raise DecodeFailure("a frame without a picture")
        return self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB)

    def seek(self, timestamp: float) -> None:
        self._capture.set(self._cv2.CAP_PROP_POS_MSEC, timestamp)

    def close(self) -> None:
        self._capture.release()


class PyAvDecoder:
    title = "PyAV"

    def __init__(self, path: Path) -> None:
        try:
            import av
            import av.error
        except ImportError as error:
            raise DecodeFailure("is not installed; pip install 'sam2[video]' adds it") from error
        self._failure = av.error.FFmpegError
        try:
            self._container = av.open(str(path))
        except self._failure as error:
            raise DecodeFailure(f"cannot open it ({error.strerror})") from error
        if not self._container.streams.video:
            self._container.close()
            raise DecodeFailure("finds no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._frames: Iterator[av.VideoFrame] = self._container.decode(self._stream)
        self._frame: av.VideoFrame | None = None

    @property
    def declared(self) -> int:
        return self._stream.frames

    @property
    def timestamp(self) -> float | None:
        return None if self._frame is None else self._frame.pts

    @property
    def tick(self) -> float:
        return float(self._stream.time_base or 0)

    @property
    def rate(self) -> float:
        return float(self._stream.average_rate or 0)

    def advance(self) -> bool:
        try:
            self._frame = next(self._frames, None)
        except self._failure as error:
            raise DecodeFailure(f"damaged data ({error.strerror})") from error
        return self._frame is not None

    def image(self) -> np.ndarray:
        assert self._frame is not None
        picture = self._frame.to_ndarray(format="rgb24")
        quarter_turns = round(getattr(self._frame, "rotation", 0) / 90)  # what OpenCV does by itself
        return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture

    def seek(self, timestamp: float) -> None:
        try:
            self._container.seek(int(timestamp), stream=self._stream)
        except self._failure as error:
            raise DecodeFailure(f"cannot seek ({error.strerror})") from error
        self._frames = self._container.decode(self._stream)

    def close(self) -> None:
        self._container.close()

"""Frames to a video file, each at its time."""

from __future__ import annotations

import logging
import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from sam2.utils.files import is_utf8

logger = logging.getLogger(__name__)

_TICKS = 1000  # of the clock of a file, from frame to frame at its frame rate


def require_h264() -> None:
    """See that H.264 can be written.

    Raises:
        ImportError: PyAV is not installed, or without the encoder; the message says what to install.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('H.264 needs PyAV: pip install "sam2[video]"') from error
    try:
        av.Codec("libx264", "w")
    except ValueError as error:
        raise ImportError(
            "H.264 needs the encoder libx264, which this build of PyAV is without; the wheels have it: "
            "pip install --force-reinstall --only-binary av av"
        ) from error


def next_tick(last: int | None, tick: int | None) -> int:
    """When a frame is shown, in ticks: at its own time; without one, or if that has passed, a frame after `last`."""
    if last is None:
        return tick or 0
    return last + _TICKS if tick is None or tick <= last else tick


class _H264Encoder:
    """H.264 in 4:2:0, which browsers play, by PyAV. ImportError where that is not there. In AVI times are even."""

    def __init__(self, path: Path, fps: Fraction, height: int, width: int) -> None:
        require_h264()
        import av

        self._av = av
        self._container = av.open(str(path.absolute()), "w")  # no part of a name is taken for a protocol
        self._is_avi = path.suffix.lower() == ".avi"  # no times, but a place for every tick of its clock, used or not
        options = {"crf": "18", "bf": "0"} if self._is_avi else {"crf": "18"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._time_base = self._stream.codec_context.time_base = 1 / (fps * (1 if self._is_avi else _TICKS))
        self._count = 0

    def write(self, frame: np.ndarray, tick: int) -> None:
        picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = self._count if self._is_avi else tick, self._time_base
        self._count += 1
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _Mpeg4Encoder:
    """MPEG-4 Part 2 by OpenCV, whose packages cannot write H.264. Players know it, browsers don't. Times are even."""

    def __init__(self, path: Path, fps: Fraction, height: int, width: int) -> None:
        import cv2

        if not is_utf8(path):
            raise OSError(f"OpenCV cannot write to {path!a}, which is not UTF-8; pip install 'sam2[video]' writes it")
        self._cv2 = cv2
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), float(fps), (width, height))
        if not self._writer.isOpened():
            raise OSError(f"OpenCV cannot write a video to {path}")

    def write(self, frame: np.ndarray, tick: int) -> None:
        self._writer.write(self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


class VideoWriter:
    """Writes RGB frames to a video file: H.264 by PyAV (`pip install 'sam2[video]'`).

    Where that is not there, or built without libx264, it is MPEG-4 Part 2, which browsers do not play, and a warning
    says so; `require_h264` makes an error of it.

    Use it in a `with` block; the frames so far are playable also when the block ends in an error. Codecs want even
    sizes: an odd frame gets its last row or column twice.
    """

    SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi")

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        """Write to `path` at `fps` frames per second. The file and its folder are made with the first frame.

        Raises:
            ValueError: `fps` is not positive, or the name's ending is not one of `SUFFIXES`.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be positive, got {fps}")
        self.path = Path(path)
        if self.path.suffix.lower() not in self.SUFFIXES:
            raise ValueError(f"path must end in one of {', '.join(self.SUFFIXES)}, got {self.path}")
        self._fps = Fraction(float(fps)).limit_denominator(int(min(1e6, 1e6 / fps)) or 1)  # ticks are 32-bit fractions
        self._shape: tuple[int, ...] | None = None
        self._encoder: _H264Encoder | _Mpeg4Encoder | None = None
        self._last: int | None = None
        self._closed = False

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.
            time: seconds at which it is shown, to a thousandth of the time from frame to frame; None, or one that is
                not after the last frame's, for 1 / fps after it. MPEG-4 and AVI keep to `fps`.

        Raises:
            ValueError: not such a frame, or not of the first one's size, or the file is finished.
        """
        if self._closed:
            raise ValueError(f"{self.path} is finished: the writer was closed")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
        if self._shape is not None and frame.shape != self._shape:
            raise ValueError(f"frame must be {self._shape} as the first one, got {frame.shape}")
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        if self._encoder is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._encoder = self._open_encoder(even.shape[0], even.shape[1])
            self._shape = frame.shape
        self._last = next_tick(self._last, None if time is None else round(time * self._fps * _TICKS))
        self._encoder.write(even, self._last)

    def close(self) -> None:
        """Finish the file. Without a frame there is none."""
        encoder, self._encoder = self._encoder, None
        self._closed = True
        if encoder is not None:
            encoder.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_encoder(self, height: int, width: int) -> _H264Encoder | _Mpeg4Encoder:
        try:
            return _H264Encoder(self.path, self._fps, height, width)
        except ImportError as error:
            logger.warning("%s becomes MPEG-4 Part 2, which browsers do not play: %s", self.path.name, error)
            return _Mpeg4Encoder(self.path, self._fps, height, width)

"""Exact, bounded random access to the frames of one video file, by OpenCV or, where that fails, by PyAV.

Video codecs decode forward from key frames only. Two things make reading in any order exact and cheap here: every
frame's timestamp is known, so that a seek is checked rather than trusted, and reading backward decodes a block of
frames at once and serves it from its end.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2.utils.containers import count_packets, counts_its_frames, promised_bytes
from sam2.utils.decoders import DecodeFailure, Decoder, OpenCvDecoder, PyAvDecoder

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".gif", ".y4m", ".h264", ".h265", ".hevc"),
)

_FAR = 64  # frames; skipping fewer than this is not worth a seek
# Where a video is refreshed piecemeal instead of by key frames, the first frames after a seek may be wrong, and a seek
# may lead past its aim. So seeks aim this many frames early (the second if the first leads too far), and the frames
# that follow them at once are not used.
_SEEK_MARGINS = (16, 80)
_SETTLING = 8
_SHORTEST_BLOCK, _LONGEST_BLOCK = 8, 256  # frames decoded at once when reading backward
_FRAMES_AT_OPENING = 32  # counted at once: SAM 2 answers a clip of fewer than 16 frames by its exact length


class FrameReadError(ValueError):
    """A frame, or the file that holds it, is damaged, cut short or of another size. The message names both."""


class _Scan(NamedTuple):
    """What reading a file once tells, from end to end or only its first frames."""

    decoder: type[Decoder]
    timestamps: list[float | None]
    tick: float
    declared: int
    rate: float
    height: int
    width: int
    is_complete: bool


class VideoFile:
    """The frames of a video file, in any order.

    Opening decodes the first 32 frames and no more, so that a long video opens in the time of a short one. Until
    reading has come to the end, `len` is the number of frames that MP4 and AVI files have on record, or of the packets
    of others, which is seldom another; then it is the number of frames there really are. `has` is certain about a
    frame at any time, `count` about all of them; both step through the file as far as needed, 1 to 2 ms per frame of
    480p. Damage shows when it is reached. (The packets of other containers than MP4 and AVI are read at opening, 0.1 to
    0.4 s per 10,000 frames if the disk keeps up. Without PyAV, all frames are decoded.)

    Reading forward decodes each frame once. Reading backward decodes blocks of up to `block_bytes` of frames, and at
    least 8 frames: each block costs a seek to the key frame before it. Seeks are checked by timestamp; where a file
    has no usable timestamps, decoding starts again from the first frame. All may be called from several threads.

    Attributes:
        name: what messages call it.
        path: of the file, absolute.
        height, width: H and W.
        rate: frames per second, see `frame_rate`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, name: str | None = None, block_bytes: int = 128 * 2**20
    ) -> None:
        """Open and look at the first frames.

        Raises:
            FrameReadError: neither OpenCV nor PyAV can read it, it is cut short, or damaged from the start.
        """
        # Absolute, so that no part of a name is taken for a protocol.
        self.path = Path(path).resolve()
        self.name = self.path.name if name is None else name
        scan = _look_at(self.path, self.name)
        self.height, self.width = scan.height, scan.width
        self._adopt(scan)
        frame_bytes = 3 * scan.height * scan.width
        self._block_length = min(max(block_bytes // frame_bytes, _SHORTEST_BLOCK), _LONGEST_BLOCK)
        self._block: dict[int, np.ndarray] = {}
        self._decoder: Decoder | None = None
        self._position = -1  # of the decoder; -1 is before the first frame
        self._last = -1  # the frame last asked for
        self._closed = False
        self._lock = threading.Lock()
        self._remove_file: weakref.finalize | None = None

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> VideoFile:
        """Open a video held in memory; it lies in a temporary file until the source is closed or forgotten."""
        handle, path = tempfile.mkstemp(prefix="sam2-video-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            video = cls(path, name="video bytes")
        except BaseException:
            os.unlink(path)
            raise
        video._remove_file = weakref.finalize(video, Path(path).unlink, missing_ok=True)
        return video

    def __len__(self) -> int:
        known = len(self._timestamps)
        return known if self._is_complete else max(known, self._declared)

    def has(self, index: int) -> bool:
        """Whether there is a frame `index`.

        Raises:
            FrameReadError: the file is damaged before it.
            ValueError: the source is closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.name} is closed")
            return index >= 0 and self._reaches(index)

    def count(self) -> int:
        """How many frames there are; steps to the end of the file if reading has not yet come there.

        Raises: as `has`.
        """
        while self.has(len(self._timestamps)):
            pass
        return len(self._timestamps)

    def time(self, index: int) -> float | None:
        """Seconds from the first frame to frame `index`, one that was reached; None where the file does not tell."""
        with self._lock:
            first, timestamp = self._timestamps[0], self._timestamps[index]
        return None if first is None or timestamp is None else (timestamp - first) * self._tick

    def read(self, index: int) -> np.ndarray:
        """Decode a frame as (H, W, 3) uint8 RGB.

        Raises:
            IndexError: no such frame.
            FrameReadError: the frame cannot be decoded or has another size.
            ValueError: the source is closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.name} is closed")
            if index < 0 or not self._reaches(index):
                raise IndexError(f"{self.name} has frames 0 to {len(self) - 1}, got {index}")
            if index not in self._block:
                walks_backward = 0 < self._last - index <= self._block_length
                first = max(0, index - self._block_length + 1) if walks_backward else index
                self._block.clear()
                self._decode_block(first, index)
            self._last = index
            frame = self._block[index]
            if len(self._block) == 1:
                self._block.clear()
            return frame

    def close(self) -> None:
        """Release the decoder and the file. Reading afterwards is an error."""
        with self._lock:
            self._closed = True
            self._block.clear()
            if self._decoder is not None:
                self._decoder.close()
                self._decoder = None
        if self._remove_file is not None:
            self._remove_file()

    def _decode_block(self, first: int, last: int) -> None:
        for index in range(first, last + 1):
            try:
                decoder = self._move_to(index)
                frame = decoder.image()
            except DecodeFailure as failure:
                self._forget_decoder()
                raise FrameReadError(
                    f"frame {index} of {self.name} cannot be decoded: {failure}; expected {len(self)} frames of "
                    f"{self.width}x{self.height}"
                ) from failure
            if frame.shape[:2] != (self.height, self.width):
                raise FrameReadError(
                    f"frame {index} of {self.name} is {frame.shape[1]}x{frame.shape[0]}, "
                    f"expected {self.width}x{self.height} as the first one"
                )
            self._block[index] = frame

    def _adopt(self, scan: _Scan) -> None:
        self._decoder_type = scan.decoder
        self._declared = scan.declared
        self._is_complete = scan.is_complete
        self._timestamps = scan.timestamps
        self._tick = scan.tick
        self.rate = frame_rate(scan.timestamps, scan.tick, scan.rate)
        self._positions = _positions_by_timestamp(scan.timestamps)

    def _reaches(self, index: int) -> bool:
        """Whether there is a frame `index`; steps on into the file until that is known."""
        while index >= len(self._timestamps) and not self._is_complete:
            known = len(self._timestamps)
            try:
                decoder = self._opened() if self._position == known - 1 else self._move_to(known - 1)
                if decoder.advance():
                    self._position = known
                    self._note(decoder.timestamp)
                    continue
                is_short = known < self._declared
            except DecodeFailure:
                is_short = True
            if not is_short:
                self._is_complete = True
                continue
            # Perhaps the other decoder can go on. If none can, and it is no end but damage, this is an error.
            scan = _scan_with_the_best_decoder(self.path, self.name)
            self._forget_decoder()
            self._adopt(scan)
        return index < len(self._timestamps)

    def _note(self, timestamp: float | None) -> None:
        """Take down the timestamp of the next frame that was not known before."""
        before = self._timestamps[-1]
        if timestamp is None or before is None or timestamp <= before:
            self._positions = {}
        elif self._positions:
            self._positions[timestamp] = len(self._timestamps)
        self._timestamps.append(timestamp)

    def _move_to(self, index: int) -> Decoder:
        """A decoder whose current frame is `index`, one that is known."""
        if not 0 <= index - self._position <= _FAR and not self._seek(index):
            self._forget_decoder()
        decoder = self._advance_to(index)
        if decoder.timestamp != self._timestamps[index]:
            self._forget_decoder()
            decoder = self._advance_to(index)
        return decoder

    def _advance_to(self, index: int) -> Decoder:
        decoder = self._opened()
        while self._position < index:
            if not decoder.advance():
                raise DecodeFailure("the file has become shorter since it was opened")
            self._position += 1
        return decoder

    def _seek(self, index: int) -> bool:
        """Try to put the decoder some frames before `index`, its position known from the timestamp found there."""
        return any(self._land(index - margin, index - _SETTLING) for margin in _SEEK_MARGINS)

    def _land(self, aim: int, latest: int) -> bool:
        """Seek to `aim`; False where that is unknown or leads after `latest`."""
        timestamp = self._timestamps[aim] if self._positions and aim >= 0 else None
        if timestamp is None:
            return False
        decoder = self._opened()
        try:
            decoder.seek(timestamp)
            if not decoder.advance() or decoder.timestamp is None:
                return False
        except DecodeFailure:
            logger.debug("seeking in %s failed", self.name, exc_info=True)
            return False
        self._position = self._positions.get(decoder.timestamp, -1)
        return 0 <= self._position <= latest

    def _opened(self) -> Decoder:
        if self._decoder is None:
            self._decoder = self._decoder_type(self.path)
            self._position = -1
        return self._decoder

    def _forget_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        self._position = -1


def _look_at(path: Path, name: str) -> _Scan:
    """The first frames, by OpenCV if it can read them; all frames where something makes that necessary."""
    try:
        scan = _scan(OpenCvDecoder, path, _FRAMES_AT_OPENING)
    except DecodeFailure:
        return _scan_with_the_best_decoder(path, name)
    promised = promised_bytes(path)
    is_cut = promised is not None and promised > path.stat().st_size
    declared = scan.declared if scan.is_complete or counts_its_frames(path) else count_packets(path)
    is_short = scan.is_complete and len(scan.timestamps) < declared
    if is_cut or is_short or not declared:
        return _scan_with_the_best_decoder(path, name)
    return scan._replace(declared=declared)


def _scan_with_the_best_decoder(path: Path, name: str) -> _Scan:
    """OpenCV's answer, unless PyAV gives more frames; PyAV is asked when OpenCV fails or finds fewer than declared."""
    best: _Scan | None = None
    failures: list[str] = []
    damage: DecodeFailure | None = None
    for decoder in (OpenCvDecoder, PyAvDecoder):
        try:
            scan = _scan(decoder, path)
        except DecodeFailure as failure:
            failures.append(f"{decoder.title} {failure}")
            damage = failure if failure.position else damage
            continue
        damage = None
        if best is None or len(scan.timestamps) > len(best.timestamps):
            best = scan
        if len(scan.timestamps) >= scan.declared:
            break
    promised, size = promised_bytes(path), path.stat().st_size
    if promised is not None and promised > size:
        found = f"{len(best.timestamps)} frames can be decoded" if best is not None else "no frame can be decoded"
        if best is not None and best.declared > len(best.timestamps):
            found += f" and frame {len(best.timestamps)} is missing, expected {best.declared}"
        raise FrameReadError(f"{name} is truncated: it has {size:,} of {promised:,} bytes; {found}")
    if damage is not None:
        raise FrameReadError(f"frame {damage.position} of {name} cannot be decoded ({'; '.join(failures)})") from damage
    if best is None:
        raise FrameReadError(f"{name} cannot be read as a video, or is cut short ({'; '.join(failures)})")
    if len(best.timestamps) < best.declared:
        count, declared = len(best.timestamps), best.declared
        logger.warning("%s speaks of %d frames, %d can be decoded and are used", name, declared, count)
    return best


def _scan(decoder_type: type[Decoder], path: Path, most: int | None = None) -> _Scan:
    """Step through a file, to its end or through `most` frames."""
    decoder = decoder_type(path)
    timestamps: list[float | None] = []
    try:
        if not decoder.advance():
            raise DecodeFailure("finds no frame in it")
        height, width = decoder.image().shape[:2]
        timestamps.append(decoder.timestamp)
        while most is None or len(timestamps) < most:
            if not decoder.advance():
                break
            timestamps.append(decoder.timestamp)
        is_complete = most is None or len(timestamps) < most
        return _Scan(
            decoder_type, timestamps, decoder.tick, decoder.declared, decoder.rate, height, width, is_complete
        )  # fmt: skip
    except DecodeFailure as failure:
        raise DecodeFailure(str(failure), len(timestamps)) from failure
    finally:
        decoder.close()


def frame_rate(timestamps: Sequence[float | None], tick: float, declared: float) -> float | None:
    """Frames per second; None where nothing tells.

    Args:
        timestamps: of the first frames.
        tick: their unit in seconds. It may be coarse.
        declared: what the container says. Of uneven times it may be the finest, so it counts where these agree within
            1 %, and where there are none.
    """
    declared = declared if 1 <= declared <= 1000 else 0
    first, last = timestamps[0], timestamps[-1]
    if first is None or last is None or last <= first or tick <= 0:
        return declared or None
    measured = (len(timestamps) - 1) / ((last - first) * tick)
    return declared if abs(declared / measured - 1) < 0.01 else measured


def estimated_length(path: Path) -> int:
    """How many frames a video file has, about, for little more than opening it; 0 where that cannot be told.

    MP4 and AVI have the number on record. Of others the duration is divided by the time from frame to frame at the
    beginning; what is on record there belongs to the finest of uneven times. Fewer than 33 frames are counted.
    """
    try:
        decoder = OpenCvDecoder(path)
    except DecodeFailure:
        return 0
    timestamps = []
    try:
        if counts_its_frames(path):
            return decoder.declared
        while len(timestamps) <= _FRAMES_AT_OPENING and decoder.advance():
            timestamps.append(decoder.timestamp)
        if len(timestamps) > _FRAMES_AT_OPENING and decoder.rate > 0:
            duration = decoder.declared / decoder.rate  # what OpenCV multiplied
            rate = frame_rate(timestamps, decoder.tick, decoder.rate) or decoder.rate
            return max(len(timestamps), round(duration * rate))
    except DecodeFailure:
        logger.debug("looking at %s failed", path, exc_info=True)
    finally:
        decoder.close()
    return len(timestamps)


def _positions_by_timestamp(timestamps: list[float | None]) -> dict[float, int]:
    """Frame index by timestamp; empty where timestamps are missing or do not grow, and so identify no frame."""
    known = [timestamp for timestamp in timestamps if timestamp is not None]
    grows = all(before < after for before, after in zip(known, known[1:], strict=False))
    if len(known) < len(timestamps) or not grows:
        return {}
    return {timestamp: index for index, timestamp in enumerate(known)}

"""What a video file says of itself before anything is decoded: its length in bytes and its number of frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that a file may begin with


def promised_bytes(path: str | os.PathLike[str]) -> int | None:
    """The length in bytes that a container says its file has; None where the format does not tell.

    Knows MP4 / MOV (ISO 14496-12 boxes), AVI (RIFF) and Matroska / WebM (EBML). A file shorter than this is cut short.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
        if head[4:8] in _MP4_BOXES:
            offset = 0
            while offset < size:
                file.seek(offset)
                box = file.read(16)
                length, kind = int.from_bytes(box[:4], "big"), box[4:8]
                if length == 1:
                    length = int.from_bytes(box[8:16], "big")
                if length < 8:  # 0 says "to the end of the file"
                    return None
                offset += length
                if offset > size and kind not in (b"mdat", b"moov", b"moof"):
                    return None  # some cameras append data that are no boxes
            return offset
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        return None if length in (0, 0xFFFFFFFF) else length  # unfinished; some writers count the 8 bytes before too
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_bytes(head)
    return None


def _matroska_bytes(head: bytes) -> int | None:
    """End of the segment that follows the EBML header; None if its length was left open, as in a live recording."""
    header = _element_length(head, 4)
    if header is None:
        return None
    start = header.start + header.length
    segment = _element_length(head, start + 4)
    if head[start : start + 4] != b"\x18\x53\x80\x67" or segment is None:
        return None
    return segment.start + segment.length


class _Element(NamedTuple):
    start: int  # of the payload
    length: int


def _element_length(head: bytes, offset: int) -> _Element | None:
    """An EBML length: the leading zero bits of its first byte tell how many bytes follow; all ones means unknown."""
    if offset >= len(head) or head[offset] == 0:
        return None
    width = 9 - head[offset].bit_length()
    mask = (1 << 7 * width) - 1
    value = int.from_bytes(head[offset : offset + width], "big") & mask
    return None if value == mask or offset + width > len(head) else _Element(offset + width, value)


def counts_its_frames(path: Path) -> bool:
    """Whether the container has the number of frames on record: MP4 / MOV and AVI do, others have a duration only."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] in _MP4_BOXES or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def count_packets(path: Path) -> int:
    """Frames of a file by its packets, without decoding (0.01 ms each); 0 where that cannot be told."""
    try:
        import av
        import av.error
    except ImportError:
        return 0
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except (av.error.FFmpegError, IndexError):
        return 0

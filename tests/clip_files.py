"""Small clips for the tests of sources and writers, every frame different from every other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def drawn_clip(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB: a drifting ramp, and a red square that moves."""
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8)
    frames = []
    for index in range(count):
        frame = np.stack([np.roll(ramp, index, 0), np.roll(ramp, 2 * index, 1), ramp], axis=-1)
        frame[8:16, index % (width - 8) : index % (width - 8) + 8] = (255, 0, index % 256)
        frames.append(frame)
    return frames


def write_lossless(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """FFV1 in RGB, by OpenCV: every frame comes back bit for bit."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_encoded(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str,
    options: dict[str, str] | None = None,
    *,
    steps: Sequence[int] = (1,),
    ticks: int = 25,
    index_first: bool = False,
) -> Path:
    """4:2:0 video by PyAV; `steps` repeats as the time from frame to frame, in 1/`ticks` s."""
    import av

    container_options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=ticks, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], "yuv420p"
        time = 0
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, time = time, time + steps[index % len(steps)]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path

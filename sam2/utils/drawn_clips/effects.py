"""Effects: what light, lens, sensor and codec do to a picture, RGB float32 (H, W, 3), 0 to 255."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sam2.utils.drawn_clips.motion import smooth_walk
from sam2.utils.drawn_clips.textures import draw_field


@dataclass(frozen=True)
class Lens:
    """What happens to each picture on its way to a frame.

    gains: (T, 3), light and its colour. offsets: (T,), haze, in grey levels.
    veil: (H, W, 1) or None, vignette and steady shade, a factor. clouds: (H, W), 0 to 1, shade that drifts by
    `drift` pixels a frame, `cloud_depth` deep.
    softness: (T,), standard deviation of the defocus, pixels. shrink: pictures pass through this smaller size.
    noise: standard deviation in grey levels. quality: of JPEG, None for none.
    """

    gains: np.ndarray
    offsets: np.ndarray
    veil: np.ndarray | None = None
    clouds: np.ndarray | None = None
    cloud_depth: float = 0.0
    drift: float = 0.0
    softness: np.ndarray | None = None
    shrink: float = 1.0
    noise: float = 0.0
    quality: int | None = None


def clear_lens(num_frames: int, noise: float = 0.0) -> Lens:
    """A lens that leaves pictures as they are, save for the sensor's noise."""
    return Lens(np.ones((num_frames, 3)), np.zeros(num_frames), noise=noise)


def draw_lens(clock: np.ndarray, size: tuple[int, int], difficulty: float, rng: np.random.Generator) -> Lens:
    """A lens for a picture of this size (height, width); the more difficult, the worse."""
    height, width = size
    side = min(size)
    lively = difficulty * rng.choice([0.0, 0.3, 1.0], p=[0.4, 0.4, 0.2])
    light = np.exp(0.5 * np.tanh(smooth_walk(clock, 0.06 * lively, rng, 0.9)) + rng.normal(0, 0.06))
    cast = np.stack([0.15 * np.tanh(smooth_walk(clock, 0.02 * lively, rng, 0.9)) for _ in range(3)], axis=1)
    gains = light[:, None] * np.exp(cast + rng.normal(0, 0.04, 3))
    offsets = np.full(len(clock), rng.choice([0.0, rng.uniform(0, 40) * difficulty], p=[0.7, 0.3]))
    softness = np.full(len(clock), rng.choice([0.0, 0.4, 0.7, 1.2], p=[0.45, 0.25, 0.2, 0.1]))
    if rng.uniform() < 0.15 * difficulty:
        softness = softness + side / 256 * np.abs(np.tanh(smooth_walk(clock, 0.3, rng))) * 1.5
    veil = _vignette(height, width, rng) if rng.uniform() < 0.3 else None
    clouds = None
    if rng.uniform() < 0.25 * difficulty:
        clouds = draw_field(height, 2 * width, rng, side / 100)
        clouds = np.clip((clouds - 0.5) * rng.uniform(1.5, 6) + 0.5, 0, 1).astype(np.float32)
    return Lens(
        gains,
        offsets,
        veil,
        clouds,
        rng.uniform(0.1, 0.5),
        rng.uniform(-0.02, 0.02) * side,
        softness if softness.any() else None,
        rng.choice([1.0, rng.uniform(0.45, 0.9)], p=[0.7, 0.3]),
        rng.choice([0.0, rng.uniform(1, 4), rng.uniform(4, 12) * difficulty], p=[0.3, 0.5, 0.2]),
        int(rng.uniform(25, 95)) if rng.uniform() < 0.6 else None,
    )


def develop(
    picture: np.ndarray, lens: Lens, frame: int, time: float, grain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A picture -> the frame, uint8 (H, W, 3). The picture is overwritten.

    Args:
        time: of the frame, for what drifts.
        grain: the sensor's noise, see `draw_grain`; `rng` chooses the part of it that this frame has.
    """
    height, width = picture.shape[:2]
    picture *= lens.gains[frame].astype(np.float32)
    if lens.offsets[frame] > 0:
        picture += np.float32(lens.offsets[frame]) - picture * np.float32(lens.offsets[frame] / 255)
    if lens.veil is not None:
        picture *= lens.veil
    if lens.clouds is not None:
        start = width - int(abs(abs(lens.drift * time) % (2 * width) - width))  # to and fro
        picture *= 1 - np.float32(lens.cloud_depth) * lens.clouds[:, start : start + width, None]
    if lens.softness is not None and lens.softness[frame] > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), float(lens.softness[frame]))
    if lens.shrink < 1:
        small = (max(int(width * lens.shrink), 8), max(int(height * lens.shrink), 8))
        picture = cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height))
    if lens.noise > 0:
        y, x = rng.integers(0, _GRAIN_MARGIN, 2)
        picture += grain[y : y + height, x : x + width] * np.float32(lens.noise)
    frame_bytes = cv2.convertScaleAbs(np.maximum(picture, 0))
    if lens.quality is None:
        return frame_bytes
    _, packed = cv2.imencode(".jpg", frame_bytes[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, lens.quality])
    unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    assert unpacked is not None
    return cv2.cvtColor(unpacked, cv2.COLOR_BGR2RGB)


_GRAIN_MARGIN = 64  # pixels by which a plane of noise is larger than the picture, so that each frame has another part


def draw_grain(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise for pictures of this size, standard normal: float32 (H + margin, W + margin, 3)."""
    height, width = size
    return rng.standard_normal((height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3), dtype=np.float32)


def _vignette(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return (1 - rng.uniform(0.1, 0.35) * (x * x + y * y))[..., None].astype(np.float32)

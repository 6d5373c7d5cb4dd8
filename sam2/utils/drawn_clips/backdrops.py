"""Backdrops: what lies behind everything, larger than the picture so that the camera may move.

A backdrop is RGBA uint8 (h, w, 4); its fourth channel says how much each place ripples, as water and leaves do.
"""

from __future__ import annotations

import cv2
import numpy as np

from sam2.utils.drawn_clips.textures import TILE, cut_photo, draw_colour, draw_field, draw_tile, spread, to_bytes

KINDS = {"photo": 0.24, "texture": 0.16, "patches": 0.16, "landscape": 0.18, "water": 0.14, "room": 0.08, "plain": 0.04}
"""Kinds of backdrop and how often they are drawn; photographs only where scikit-image is installed."""


def draw_backdrop(height: int, width: int, rng: np.random.Generator, *, photos: bool = True) -> np.ndarray:
    """A backdrop of this size: RGBA uint8 (height, width, 4).

    Args:
        photos: whether photographs, or parts of them, may be in it.
    """
    kinds = [kind for kind in KINDS if photos or kind != "photo"]
    shares = np.array([KINDS[kind] for kind in kinds])
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    ripples = np.zeros((height, width), np.uint8)
    if kind == "photo":
        colour = cut_photo(height, width, rng)
        if colour is None:
            colour = _patches(height, width, rng, photos)
    elif kind == "texture":
        colour = _texture(height, width, rng, photos)
        ripples[:] = rng.choice([0, 0, 255])
    elif kind == "patches":
        colour = _patches(height, width, rng, photos)
    elif kind == "landscape":
        colour = _landscape(height, width, rng, photos)
    elif kind == "water":
        colour, ripples = _water(height, width, rng, photos)
    elif kind == "room":
        colour = _room(height, width, rng, photos)
    else:
        colour = to_bytes(_gradient(height, width, rng))
    if rng.uniform() < 0.3:
        colour = cv2.GaussianBlur(colour, (0, 0), rng.uniform(0.4, 0.012 * min(height, width)))
    return np.dstack([colour, ripples])


def _zoom(height: int, rng: np.random.Generator) -> float:
    return height / 400 * np.exp(rng.uniform(np.log(0.7), np.log(4.0)))


def _texture(height: int, width: int, rng: np.random.Generator, photos: bool) -> np.ndarray:
    return spread(draw_tile(rng, side=2 * TILE, photo_share=0.25 * photos), height, width, rng, _zoom(height, rng))


def _gradient(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Between two colours, mostly from top to bottom: float32 (height, width, 3)."""
    top = draw_colour(rng)
    bottom = top + rng.normal(0, 40, 3)
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None] + rng.normal(0, 0.3) * np.linspace(
        -0.5, 0.5, width, dtype=np.float32
    )
    return (top + np.clip(slope, 0, 1)[..., None] * (bottom - top)).astype(np.float32)


def _mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """share (h, w) of the second of two uint8 pictures."""
    blend = share[..., None].astype(np.float32)
    return to_bytes(first + blend * (second.astype(np.float32) - first))


def _patches(height: int, width: int, rng: np.random.Generator, photos: bool) -> np.ndarray:
    """Regions of different textures with sharp or soft borders."""
    picture = _texture(height, width, rng, photos)
    for _ in range(rng.integers(1, 4)):
        where = draw_field(height, width, rng, height / 384 * rng.uniform(0.8, 3))
        sharpness = np.exp(rng.uniform(np.log(2), np.log(60)))
        share = np.clip((where - rng.uniform(0.35, 0.75)) * sharpness + 0.5, 0, 1)
        picture = _mixed(picture, _texture(height, width, rng, photos), share)
    return picture


def _landscape(height: int, width: int, rng: np.random.Generator, photos: bool) -> np.ndarray:
    """Sky, one or two rows of hills, trees or houses, and ground that comes nearer towards the bottom."""
    picture = np.clip(_gradient(height, width, rng), 0, 255)
    if rng.uniform() < 0.7:
        clouds = draw_field(height, width, rng, height / 384 * rng.uniform(1, 3))
        picture += rng.uniform(10, 80) * (clouds[..., None] - 0.5)
    picture = to_bytes(picture)
    horizon = rng.uniform(0.2, 0.75) * height
    rows = np.arange(height, dtype=np.float32)[:, None]
    for _ in range(rng.integers(0, 3)):
        rough = draw_field(1, width, rng, height / 384 * rng.uniform(0.3, 3))
        skyline = horizon - height * rng.uniform(0.02, 0.3) * rough
        picture = _mixed(picture, _texture(height, width, rng, photos), np.clip(rows - skyline, 0, 1))
    ground = _floor(height, width, horizon, rng, photos)
    return _mixed(picture, ground, np.clip(rows - horizon + 0 * ground[..., 0], 0, 1))


def _floor(height: int, width: int, horizon: float, rng: np.random.Generator, photos: bool) -> np.ndarray:
    """A plane with a texture, seen from above it: the part below the row `horizon` counts."""
    tile = draw_tile(rng, side=2 * TILE, photo_share=0.25 * photos)
    depth = height * rng.uniform(0.05, 0.5)
    size = tile.shape[0] * 1.0
    near, far = rng.uniform(0.5, 2) * size * width / height, rng.uniform(2, 6) * size
    source = np.array([[-far / 2, 0], [far / 2, 0], [near / 2, far], [-near / 2, far]], np.float32) + 2 * size
    target = np.array(
        [[0, horizon - depth * 0.02], [width, horizon - depth * 0.02], [width, height], [0, height]], np.float32
    )
    matrix = cv2.getPerspectiveTransform(target, source)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    floor = cv2.warpPerspective(tile, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    rows = np.arange(height, dtype=np.float32)[:, None] + np.zeros((1, width), np.float32)
    haze = np.exp(-(rows - horizon) / max(depth * 0.5, 1)) * rng.uniform(0.2, 0.8)
    mean = np.zeros_like(floor) + to_bytes(tile.reshape(-1, 3).mean(0))
    return _mixed(floor, mean, np.clip(haze, 0, 1))


def _water(height: int, width: int, rng: np.random.Generator, photos: bool) -> tuple[np.ndarray, np.ndarray]:
    """Water up to a shore that it mirrors, if there is one in sight; and where it ripples."""
    base = draw_colour(rng)
    waves = draw_field(height, width, rng, height / 384 * rng.uniform(0.5, 2.5), "water")
    horizon = rng.uniform(-0.3, 0.5) * height
    rows = np.arange(height, dtype=np.float32)[:, None]
    away = np.clip((rows - horizon) / height, 0.02, None)
    light = rng.normal(0, 60) * (away - 0.5) + rng.uniform(15, 90) * (waves - 0.5) * np.clip(2 * away + 0.2, 0, 1)
    water = np.clip(base + light[..., None], 0, 255)
    if horizon > 8:
        shore = _patches(height, width, rng, photos) if rng.uniform() < 0.7 else _texture(height, width, rng, photos)
        top = int(horizon)
        picture = shore.copy()
        mirror = np.flipud(shore[:top])[: height - top].astype(np.float32)
        share = rng.uniform(0.1, 0.7) * np.linspace(1, 0.3, len(mirror), dtype=np.float32)[:, None, None]
        water[top : top + len(mirror)] += share * (mirror - water[top : top + len(mirror)])
        picture[top:] = to_bytes(water[top:])
    else:
        picture, top = to_bytes(water), 0
    ripples = np.zeros((height, width), np.uint8)
    ripples[top:] = to_bytes(255 * np.clip(away[top:] * 2 + 0.2, 0, 1))
    return picture, ripples


def _room(height: int, width: int, rng: np.random.Generator, photos: bool) -> np.ndarray:
    """A wall with pictures or windows, and a floor."""
    wall = np.clip(_gradient(height, width, rng), 0, 255)
    if rng.uniform() < 0.6:
        wall = 0.5 * wall + 0.5 * _texture(height, width, rng, photos)
    wall = to_bytes(wall)
    for _ in range(rng.integers(0, 6)):
        w, h = (rng.uniform(0.06, 0.3, 2) * [width, height]).astype(int)
        x, y = int(rng.uniform(0, width - w)), int(rng.uniform(0, height - h))
        inside = cut_photo(h, w, rng) if rng.uniform() < 0.4 * photos else None
        wall[y : y + h, x : x + w] = _texture(h, w, rng, photos) if inside is None else inside
        cv2.rectangle(wall, (x, y), (x + w, y + h), draw_colour(rng).tolist(), int(rng.integers(1, 4)))
    horizon = rng.uniform(0.45, 0.85) * height
    floor = _floor(height, width, horizon, rng, photos)
    rows = np.arange(height, dtype=np.float32)[:, None] + np.zeros((1, width), np.float32)
    return _mixed(wall, floor, np.clip(rows - horizon, 0, 1))

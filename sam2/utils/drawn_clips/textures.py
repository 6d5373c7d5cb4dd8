"""Textures: tiles of colour, made of noise with the statistics of natural pictures, of patterns or of photographs.

A tile is RGB uint8 (side, side, 3) and goes on for ever, mirrored at its edges. A field is one grey plane that a
tile is coloured from, uint8 (`_FIELD`, `_FIELD`).
"""

from __future__ import annotations

import colorsys
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

TILE = 192
"""Side of a tile that is large enough for most things, in pixels."""

_FIELD = 384  # side of a field, in pixels: tiles are cut from it at any place, turn and zoom

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "ihc.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Photographs of scikit-image's `data` that its docstrings call public domain, CC0 or without known copyright."""


def draw_tile(
    rng: np.random.Generator, *, side: int = TILE, photo_share: float = 0.0, near: np.ndarray | None = None
) -> np.ndarray:
    """Draw a tile.

    Args:
        side: of the tile, in pixels.
        photo_share: how often it is cut from a photograph, where there are any.
        near: a colour, RGB (3,), that the tile keeps close to, so that it hardly stands out; None for any colour.
    """
    photo = rng.uniform() < photo_share
    tile = cut_photo(side, side, rng) if photo else None
    if tile is None:
        tile = _draw_field_tile(rng, side, near)
    elif near is not None:
        tile = _towards(tile, near, rng.uniform(0.4, 0.9))
    return tile


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Grey levels of any kind -> uint8, rounded and clipped."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour as things have it, mostly muted: RGB float32 (3,), 0 to 255."""
    hue = rng.choice([rng.uniform(0.02, 0.14), rng.uniform(0.15, 0.42), rng.uniform(0.5, 0.68), rng.uniform(0, 1)])
    saturation = rng.beta(1.2, 2.4)
    value = rng.beta(1.6, 1.5) * 0.92 + 0.05
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def cut_photo(height: int, width: int, rng: np.random.Generator) -> np.ndarray | None:
    """A part of a photograph, turned, flipped, in other colours and sharp or less so: RGB uint8 (height, width, 3).

    None where scikit-image is not installed.
    """
    photos = _photos()
    if not photos:
        return None
    photo = photos[rng.integers(len(photos))]
    side = min(photo.shape[:2])
    scale = side / max(height, width) * np.exp(rng.uniform(np.log(0.25), np.log(1.0)))
    turn = rng.choice([0, 1, 2, 3], p=[0.7, 0.1, 0.1, 0.1]) * np.pi / 2 + rng.normal(0, 0.1)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear[:, 0] *= rng.choice([-1, 1])
    reach = np.abs(linear) @ [width / 2, height / 2]
    room = np.maximum(np.array(photo.shape[1::-1]) / 2 - reach, 0)
    centre = np.array(photo.shape[1::-1]) / 2 + room * rng.uniform(-1, 1, 2)
    matrix = np.column_stack([linear, centre - linear @ [width / 2, height / 2]])
    if scale > 1.5:
        photo = cv2.GaussianBlur(photo, (0, 0), 0.4 * scale)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(photo, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    grey = bool(np.ptp(cut[::16, ::16].astype(int), axis=2).max() < 8)
    if grey and rng.uniform() < 0.7:
        return cv2.applyColorMap(cut, _ramp(rng, None))
    return _recoloured(cut, rng)


def spread(tile: np.ndarray, height: int, width: int, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """Cover a picture with a tile, at a random turn and place: RGB uint8 (height, width, 3).

    Args:
        zoom: picture pixels per tile pixel.
    """
    matrix = _random_view(rng, zoom, rng.uniform(0, 2 * np.pi) if rng.uniform() < 0.3 else 0.0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def draw_field(height: int, width: int, rng: np.random.Generator, zoom: float, kind: str = "clouds") -> np.ndarray:
    """A grey plane to blend or bend by: float32 (height, width), 0 to 1; `zoom` picture pixels per field pixel."""
    fields = _fields()[kind]
    matrix = _random_view(rng, zoom, 0.0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    chosen = fields[rng.integers(len(fields))]
    plane = cv2.warpAffine(chosen, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return plane.astype(np.float32) / 255


def _random_view(rng: np.random.Generator, zoom: float, turn: float) -> np.ndarray:
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    return np.array([[cos, -sin, rng.uniform(0, _FIELD)], [sin, cos, rng.uniform(0, _FIELD)]])


def _draw_field_tile(rng: np.random.Generator, side: int, near: np.ndarray | None) -> np.ndarray:
    """A tile coloured from one field, or from two, each where a third says so."""
    tile = _coloured(rng, side, near)
    if rng.uniform() < 0.3:
        other = _coloured(rng, side, near)
        where = draw_field(side, side, rng, np.exp(rng.uniform(-0.5, 1.2)), "clouds")
        blend = np.clip((where - rng.uniform(0.35, 0.65)) * rng.choice([4, 30]) + 0.5, 0, 1)[..., None]
        tile = to_bytes(tile + blend * (other.astype(np.float32) - tile))
    return tile


def _coloured(rng: np.random.Generator, side: int, near: np.ndarray | None) -> np.ndarray:
    kind = rng.choice(list(_FIELD_SHARES), p=list(_FIELD_SHARES.values()))
    fields = _fields()[str(kind)]
    chosen = fields[rng.integers(len(fields))]
    matrix = _random_view(rng, np.exp(rng.uniform(-0.7, 0.7)), rng.uniform(0, 2 * np.pi))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    plane = cv2.warpAffine(chosen, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return cv2.applyColorMap(plane, _ramp(rng, near))


def _ramp(rng: np.random.Generator, near: np.ndarray | None) -> np.ndarray:
    """Which colour each grey level gets: uint8 (256, 1, 3), through a few colours that suit one another."""
    stops = int(rng.integers(2, 6))
    base = draw_colour(rng) if near is None else np.asarray(near, np.float32)
    contrast = np.exp(rng.uniform(np.log(12), np.log(110))) if near is None else rng.uniform(6, 40)
    light = np.linspace(-1, 1, stops) if rng.uniform() < 0.6 else rng.uniform(-1, 1, stops)
    tint = rng.normal(0, 0.25, (stops, 3))
    colours = base + contrast * (light[:, None] + tint)
    if near is None and rng.uniform() < 0.2:
        colours[rng.integers(stops)] = draw_colour(rng)
    levels = np.linspace(0, 255, 256)
    places = np.linspace(0, 255, stops)
    ramp = np.stack([np.interp(levels, places, colours[:, channel]) for channel in range(3)], axis=1)
    return to_bytes(ramp)[:, None]


def _recoloured(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, contrast and cast, sometimes other hues."""
    if rng.uniform() < 0.4:
        picture = picture[..., rng.permutation(3)]
    mean = float(picture.mean())
    gain = np.exp(rng.normal(0, 0.25)) * np.exp(rng.normal(0, 0.1, 3))
    levels = np.arange(256)[:, None]
    table = (levels - mean) * gain * 0.95 + mean + rng.normal(0, 20)
    return cv2.LUT(np.ascontiguousarray(picture), to_bytes(table)[:, None])


def _towards(tile: np.ndarray, colour: np.ndarray, share: float) -> np.ndarray:
    mean = tile.reshape(-1, 3).mean(0)
    return to_bytes(tile * (1 - 0.5 * share) + (colour - mean * (1 - 0.5 * share)) * share)


def has_photographs() -> bool:
    """Whether random clips show photographs: those of scikit-image, if it is installed. Without, seeds draw others."""
    return bool(_photos())


@lru_cache(maxsize=1)
def _photos() -> tuple[np.ndarray, ...]:
    """The photographs that ship with scikit-image, none when it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return ()
    found = []
    for name in PHOTOS:
        picture = cv2.imread(str(Path(spec.origin).parent / "data" / name), cv2.IMREAD_COLOR)
        if picture is None:
            continue
        shrink = 640 / max(picture.shape)
        if shrink < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        found.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return tuple(found)


# Fields


@lru_cache(maxsize=1)
def _fields() -> dict[str, tuple[np.ndarray, ...]]:
    """All fields by kind; they are the same in every process, whatever the seed of a clip."""
    rng = np.random.default_rng(20)
    makers: dict[str, list[Callable[[], np.ndarray]]] = {
        "clouds": [lambda p=p: _pink(rng, p) for p in (1.2, 1.5, 1.8, 2.2)],
        "pink": [lambda p=p: _pink(rng, p) for p in (0.7, 0.9, 1.0, 1.1)],
        "water": [lambda s=s: _pink(rng, 1.2, stretch=s) for s in (3, 5, 8)],
        "fibres": [lambda s=s: _pink(rng, 0.9, stretch=s) for s in (12, 25)],
        "veins": [lambda p=p: 1 - np.abs(2 * _pink(rng, p) - 1) for p in (1.2, 1.6)],
        "leaves": [lambda k=k: _dead_leaves(rng, k) for k in ("ellipse", "box", "ellipse", "mixed")],
        "cells": [lambda n=n: _cells(rng, n) for n in (60, 250, 700)],
        "strokes": [lambda n=n: _strokes(rng, n) for n in (6, 14, 30)],
        "pattern": [lambda k=k: _pattern(rng, k) for k in ("stripes", "checks", "dots", "bricks", "zigzag", "rings")],
        "flat": [lambda: _pink(rng, 2.6)],
    }
    return {kind: tuple(to_bytes(255 * _unit(make())) for make in made) for kind, made in makers.items()}


_FIELD_SHARES = {
    "clouds": 0.14, "pink": 0.16, "water": 0.07, "fibres": 0.07, "veins": 0.05, "leaves": 0.19, "cells": 0.08,
    "strokes": 0.07, "pattern": 0.1, "flat": 0.07,
}  # fmt: skip


def _unit(plane: np.ndarray) -> np.ndarray:
    """The plane scaled to 0 to 1, its rarest 1 % at either end cut off."""
    low, high = np.percentile(plane, [0.5, 99.5])
    return np.clip((plane - low) / max(high - low, 1e-6), 0, 1)


def _pink(rng: np.random.Generator, power: float, stretch: float = 1.0) -> np.ndarray:
    """Noise whose amplitude falls with frequency to this power, features `stretch` times as wide as high; 0 to 1."""
    fy = np.fft.fftfreq(_FIELD)[:, None]
    fx = np.fft.rfftfreq(_FIELD)[None] * stretch
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(_FIELD, _FIELD))) / frequency**power
    return _unit(np.fft.irfft2(spectrum, (_FIELD, _FIELD)))


def _dead_leaves(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Shapes of every size that cover one another, the small ones more often: edges as in natural pictures."""
    plane = np.full((_FIELD, _FIELD), 128, np.uint8)
    for _ in range(3500):
        radius = min(3.0 / np.sqrt(rng.uniform(1e-4, 1)), 110.0)
        x, y = rng.uniform(0, _FIELD, 2)
        axes = radius * np.array([1, rng.uniform(0.3, 1)])
        grey = int(rng.uniform(0, 255))
        turn = rng.uniform(0, 180)
        if kind == "box" or (kind == "mixed" and rng.uniform() < 0.5):
            corners = cv2.boxPoints(((x, y), tuple(2 * axes), turn if kind == "mixed" else 0.0))
            cv2.fillPoly(plane, [(corners * 16).astype(np.int32)], grey, cv2.LINE_AA, 4)
        else:
            cv2.ellipse(plane, ((x, y), tuple(2 * axes), turn), grey, -1, cv2.LINE_AA)
    return plane + 60 * _pink(rng, 1.0)


def _cells(rng: np.random.Generator, count: int) -> np.ndarray:
    """Pebbles: cells round random points, each of its own grey and darker at its rim."""
    seeds = np.full((_FIELD, _FIELD), 255, np.uint8)
    seeds[rng.integers(0, _FIELD, count), rng.integers(0, _FIELD, count)] = 0
    distance, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    grey = rng.uniform(0.4, 1, owner.max() + 1)[owner]
    rim = np.exp(-((distance / (0.62 * _FIELD / np.sqrt(count))) ** 2))
    return cv2.GaussianBlur((grey * (0.4 + 0.6 * rim)).astype(np.float32), (0, 0), 0.8) + 0.12 * _pink(rng, 0.9)


def _strokes(rng: np.random.Generator, length: float) -> np.ndarray:
    """Grass or fur: short strokes that follow one direction, more or less."""
    plane = np.full((_FIELD, _FIELD), 90, np.uint8)
    bend = _pink(rng, 1.8)
    for _ in range(int(60000 / length)):
        x, y = rng.uniform(0, _FIELD, 2)
        angle = -np.pi / 2 + 2.0 * (bend[int(y), int(x)] - 0.5) + rng.normal(0, 0.2)
        tip = (x + length * np.cos(angle), y + length * np.sin(angle))
        ends = [tuple(int(16 * value) for value in point) for point in ((x, y), tip)]
        cv2.line(plane, ends[0], ends[1], int(rng.uniform(20, 255)), 1, cv2.LINE_AA, 4)
    return plane.astype(np.float32)


def _pattern(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A regular pattern, bent a little."""
    axis = np.arange(_FIELD, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    x = x + 14 * (_pink(rng, 2.0) - 0.5)
    y = y + 14 * (_pink(rng, 2.0) - 0.5)
    step = 2 * np.pi / 24
    if kind == "stripes":
        plane = np.sin(step * x) * 3
    elif kind == "checks":
        plane = np.sign(np.sin(step * x)) * np.sign(np.sin(step * y))
    elif kind == "dots":
        plane = 4 * (np.sin(step * x) * np.sin(step * y) - 0.4)
    elif kind == "bricks":
        row = np.floor(y / 16)
        plane = np.minimum(np.abs((x + 16 * (row % 2)) % 32 - 16) - 1.5, np.abs(y % 16 - 8) - 1.5)
    elif kind == "zigzag":
        plane = 3 * np.sin(step * (y + np.abs(x % 48 - 24)))
    else:
        plane = 3 * np.sin(step * np.hypot(x % 128 - 64, y % 128 - 64))
    return np.clip(plane, -1, 1) + 0.5 * _pink(rng, 1.0)

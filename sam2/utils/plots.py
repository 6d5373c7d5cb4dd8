"""Curves as a picture, drawn with PIL alone: enough to see a trade-off where matplotlib is not installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (90, 90, 90))
"""Told apart by most eyes (Okabe and Ito, "Color Universal Design", 2008); used again from the first one on."""

_INK = (40, 40, 40)
_FAINT = (226, 226, 226)
_SCALE = 3  # drawn this much larger, then reduced: smooth lines and letters


class Point(NamedTuple):
    """A measurement, and what is written beside it."""

    x: float
    y: float
    label: str = ""


class Curve(NamedTuple):
    """Points in the order they are joined, under a name in the legend."""

    name: str
    points: Sequence[Point]


class _Frame(NamedTuple):
    """Where the axes lie, in pixels, and the values at their ends."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def draw_curves(
    curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, width: int = 900, height: int = 560
) -> Image.Image:
    """Draw curves over common axes, with markers, the points' labels and a legend.

    Args:
        width, height: of the picture, pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: no point at all, or one that is not finite.
    """
    values = np.array([(p.x, p.y) for curve in curves for p in curve.points], np.float32).reshape(-1, 2)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"curves must have at least one point, all finite, got {len(values)}: {values.tolist()}")
    canvas = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
    draw = ImageDraw.Draw(canvas)
    frame = _Frame(
        78 * _SCALE, 56 * _SCALE, (width - 28) * _SCALE, (height - 62) * _SCALE,
        x_range=_with_room(values[:, 0]), y_range=_with_room(values[:, 1]),
    )  # fmt: skip
    _draw_axes(canvas, draw, frame, x_label, y_label)
    draw.text((frame.left, 18 * _SCALE), title, fill=_INK, font=_font(17))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(curves))]
    lines = [[frame.place(p.x, p.y) for p in curve.points] for curve in curves]
    for places, colour in zip(lines, colours, strict=True):
        draw.line(places, fill=colour, width=2 * _SCALE, joint="curve")
    for i, (curve, colour) in enumerate(zip(curves, colours, strict=True)):  # markers and labels lie over all lines
        for point in curve.points:
            _draw_marker(draw, frame, point, colour, is_labelled_above=i % 2 == 1)
    _draw_legend(draw, frame, [curve.name for curve in curves], colours, lines)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def _draw_axes(canvas: Image.Image, draw: ImageDraw.ImageDraw, frame: _Frame, x_label: str, y_label: str) -> None:
    font = _font(13)
    x_ticks, y_ticks = _ticks(*frame.x_range), _ticks(*frame.y_range)
    for x, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        across = frame.place(x, frame.y_range[0])[0]
        draw.line([(across, frame.top), (across, frame.bottom)], fill=_FAINT, width=_SCALE)
        _write(draw, (across, frame.bottom + 14 * _SCALE), text, font)
    for y, text in zip(y_ticks, _tick_texts(y_ticks), strict=True):
        down = frame.place(frame.x_range[0], y)[1]
        draw.line([(frame.left, down), (frame.right, down)], fill=_FAINT, width=_SCALE)
        _write(draw, (frame.left - 8 * _SCALE - _text_width(draw, text, font) / 2, down), text, font)
    draw.line([(frame.left, frame.top), (frame.left, frame.bottom), (frame.right, frame.bottom)], _INK, _SCALE)
    _write(draw, ((frame.left + frame.right) / 2, frame.bottom + 42 * _SCALE), x_label, _font(14))
    aside = Image.new("RGB", (canvas.height, 28 * _SCALE), "white")
    middle = canvas.height - (frame.top + frame.bottom) / 2
    _write(ImageDraw.Draw(aside), (middle, 14 * _SCALE), y_label, _font(14))
    canvas.paste(aside.rotate(90, expand=True), (0, 0))


def _draw_marker(
    draw: ImageDraw.ImageDraw, frame: _Frame, point: Point, colour: tuple[int, int, int], *, is_labelled_above: bool
) -> None:
    x, y = frame.place(point.x, point.y)
    radius = 4.5 * _SCALE
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="white", width=_SCALE)
    font = _font(12)
    # Up to the right or down to the left: a curve that falls passes through neither.
    side = 1 if is_labelled_above else -1
    half = _text_width(draw, point.label, font) / 2
    middle = min(max(x + side * half, frame.left + half), frame.right - half)
    _write(draw, (middle, y - side * 13 * _SCALE), point.label, font, colour, halo=2 * _SCALE)


def _draw_legend(
    draw: ImageDraw.ImageDraw, frame: _Frame, names: Sequence[str], colours: Sequence[tuple[int, int, int]],
    lines: Sequence[Sequence[tuple[float, float]]],
) -> None:  # fmt: skip
    """Names in the corner, or at the side, that the lines pass least."""
    font, line = _font(13), 22 * _SCALE
    width = max(_text_width(draw, name, font) for name in names) + 44 * _SCALE
    left, top = _free_place(frame, lines, width, line * len(names) + 8 * _SCALE)
    box = [left, top, left + width, top + line * len(names) + 8 * _SCALE]
    draw.rounded_rectangle(box, 5 * _SCALE, fill="white", outline=_FAINT, width=_SCALE)
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        middle = top + 4 * _SCALE + (i + 0.5) * line
        draw.line([(left + 10 * _SCALE, middle), (left + 28 * _SCALE, middle)], fill=colour, width=2 * _SCALE)
        text_middle = left + 36 * _SCALE + _text_width(draw, name, font) / 2
        _write(draw, (text_middle, middle), name, font)


def _free_place(
    frame: _Frame, lines: Sequence[Sequence[tuple[float, float]]], width: float, height: float
) -> tuple[float, float]:
    """Where a box begins (left, top): in the lower left corner, unless lines pass another, or a place between, less."""
    shares = np.linspace(0, 1, 50)[:, None]
    ways = [
        np.asarray(a) + shares * (np.asarray(b) - np.asarray(a))
        for places in lines for a, b in zip(places[:-1], places[1:], strict=True)
    ]  # fmt: skip
    passed = np.concatenate([np.asarray(places, float).reshape(-1, 2) for places in lines] + ways)
    margin = 12 * _SCALE
    sides = (frame.left + margin, frame.right - margin - width)
    lowest, *between, highest = np.linspace(frame.bottom - margin - height, frame.top + margin, 13).tolist()
    places = [(left, top) for tops in ((lowest, highest), between) for left in sides for top in tops]
    reach = 8 * _SCALE  # of a marker

    def covered(place: tuple[float, float]) -> int:
        low, high = np.subtract(place, reach), np.add(place, (width + reach, height + reach))
        return int(((passed >= low) & (passed <= high)).all(axis=1).sum())

    return min(places, key=covered)


def _with_room(values: np.ndarray) -> tuple[float, float]:
    """The range of values, with some room at both ends."""
    low, high = float(values.min()), float(values.max())
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round values within `low` to `high`, evenly spaced; at least two, at most `most`."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (m * magnitude) <= most - 1)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """All ticks with as many decimals as the step needs."""
    step = ticks[1] - ticks[0]
    decimals = next(d for d in range(13) if abs(step * 10**d - round(step * 10**d)) < 1e-6)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own letters; in one small size before Pillow 10.1."""
    try:
        return ImageFont.load_default(size * _SCALE)
    except TypeError:
        return ImageFont.load_default()


def _text_width(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    return right - left


def _write(
    draw: ImageDraw.ImageDraw, middle: tuple[float, float], text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont, colour: tuple[int, int, int] = _INK,
    halo: int = 0,
) -> None:  # fmt: skip
    """Write one line of text around a point, with a white rim of `halo` pixels."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    corner = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
    draw.text(corner, text, fill=colour, font=font, stroke_width=halo, stroke_fill="white")

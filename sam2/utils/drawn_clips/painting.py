"""Painting: actors over a picture, with their cover, and the label map that follows from it.

A picture is RGB float32 (H, W, 3), 0 to 255. A patch is a part of one: colour times cover, and cover, float32
(h, w, 4), 0 to 255. Matrices (2, 3) map to picture pixels (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.drawn_clips.motion import Track
from sam2.utils.drawn_clips.shapes import Figure, chain, place, scale_of

_SUBPIXEL_BITS = 4
_FLAT_AREA = 40  # pixels of a part's bounding box below which its texture is one colour
_HALF = 127.5  # cover, of 255, from which on a pixel is the object's


class Bend(NamedTuple):
    """A smooth displacement that changes with time: two fields (G, G, 2) in local units, over -1.5 to 1.5."""

    sine: np.ndarray
    cosine: np.ndarray
    rate: float

    def at(self, time: float) -> np.ndarray:
        return (np.sin(self.rate * time) * self.sine + np.cos(self.rate * time) * self.cosine).astype(np.float32)

    @property
    def reach(self) -> float:
        """The most that it displaces, in local units."""
        return float(np.abs(self.sine).max() + np.abs(self.cosine).max())


@dataclass(frozen=True)
class Look:
    """What an actor looks like.

    tiles: one per material, RGBA uint8 (side, side, 4), opaque, mirrored beyond their edges.
    grain: tile pixels per local unit.
    relief: how much its rim is lit from one side and dark on the other, 0 to 1; from direction `light`, radians.
    opacity: 0 to 1; below 0.5 it hides no label.
    blur: standard deviation of its defocus, pixels.
    shadow: share of light that its shadow takes; `drop` how far it falls, in picture pixels.
    reflection: opacity of its mirror image below it, 0 for none.
    """

    tiles: tuple[np.ndarray, ...]
    grain: float
    relief: float = 0.0
    light: float = 0.0
    opacity: float = 1.0
    blur: float = 0.0
    shadow: float = 0.0
    drop: tuple[float, float] = (0.0, 0.0)
    reflection: float = 0.0


@dataclass(frozen=True)
class Actor:
    """A figure with its look and its way.

    obj_id: the label of its pixels; 0 for one that carries none.
    bend: how it deforms.
    smear: share of its motion to the next frame that blurs it.
    present: (T,), in which frames it is there at all; None for all.
    """

    figure: Figure
    look: Look
    track: Track
    obj_id: int = 0
    bend: Bend | None = None
    smear: float = 0.0
    present: np.ndarray | None = None


class Patch(NamedTuple):
    """What is painted: upper left corner (x, y) in the picture, and colour with cover (h, w, 4)."""

    x: int
    y: int
    paint: np.ndarray


class Stroke(NamedTuple):
    """How far an actor moves within one exposure, in pixels (x, y)."""

    x: float
    y: float


def opaque(tile: np.ndarray) -> np.ndarray:
    """RGB tile -> RGBA."""
    return cv2.cvtColor(tile, cv2.COLOR_RGB2RGBA)


def draw_patch(
    actor: Actor, matrix: np.ndarray, pace: float, size: tuple[int, int], stroke: Stroke | None = None
) -> Patch | None:
    """Draw the part of an actor that is in a picture of this size (height, width), None where nothing is.

    Args:
        matrix: from its local coordinates to picture pixels.
        pace: of its limbs, also the time of its bend.
        stroke: its motion while the picture is taken; None for none.
    """
    stroke = stroke or Stroke(0.0, 0.0)
    placements = [chain(matrix, own) for own in actor.figure.placements(pace)]
    outlines = [
        [place(placement, contour) for contour in part.contours]
        for part, placement in zip(actor.figure.parts, placements, strict=True)
    ]
    points = np.concatenate([outline for part in outlines for outline in part])
    scale = scale_of(matrix)
    bend_reach = actor.bend.reach * scale if actor.bend else 0.0
    pad = int(2 + bend_reach + 2.5 * actor.look.blur + (abs(stroke.x) + abs(stroke.y)) / 2)
    box = _clip_box(points.min(0) - pad, points.max(0) + pad, size, pad)
    if box is None:
        return None
    left, top, right, bottom = box
    paint = np.zeros((bottom - top, right - left, 4), np.float32)
    origin = np.array([left, top])
    for i in actor.figure.painting_order:
        tile = actor.look.tiles[actor.figure.parts[i].material % len(actor.look.tiles)]
        shifted = placements[i].copy()
        shifted[:, 2] -= origin
        anchor = tile.shape[0] * (0.5 + np.array([0.618, 0.755]) * i)  # parts of one material differ
        _paint_part(paint, [outline - origin for outline in outlines[i]], shifted, tile, actor.look.grain, anchor)
    if actor.look.relief > 0:
        _shade(paint, actor.look.relief, actor.look.light, scale)
    if actor.bend is not None:
        local = matrix.copy()
        local[:, 2] -= origin
        paint = _bent(paint, actor.bend.at(pace), local)
    if actor.look.blur > 0.3:
        paint = cv2.GaussianBlur(paint, (0, 0), actor.look.blur)
    if np.hypot(*stroke) > 1.5:
        paint = cv2.filter2D(paint, -1, _stroke_kernel(stroke), borderType=cv2.BORDER_CONSTANT)
    if actor.look.opacity < 1:
        paint *= np.float32(actor.look.opacity)
    return Patch(left, top, paint)


def lay_colour(picture: np.ndarray, patch: Patch) -> None:
    """Paint a patch over a picture, in place."""
    region, paint = _overlap(picture, patch)
    region *= 1 - paint[..., 3:] * np.float32(1 / 255)
    region += paint[..., :3]


def lay_label(labels: np.ndarray, patch: Patch, obj_id: int) -> int:
    """Label the pixels of a label map (H, W) that a patch covers at least half of, in place -> how many they are."""
    region, paint = _overlap(labels, patch)
    covered = paint[..., 3] >= _HALF
    region[covered] = obj_id
    return int(np.count_nonzero(covered))


def _overlap(picture: np.ndarray, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Views of the part of a picture, or label map, that is under a patch, and of that part of the patch."""
    height, width = picture.shape[:2]
    x, y = patch.x, patch.y
    left, top = max(x, 0), max(y, 0)
    right = max(min(x + patch.paint.shape[1], width), left)
    bottom = max(min(y + patch.paint.shape[0], height), top)
    return picture[top:bottom, left:right], patch.paint[top - y : bottom - y, left - x : right - x]


def cast_shadow(picture: np.ndarray, patch: Patch, look: Look) -> None:
    """Darken a picture where an actor's soft shadow falls, in place."""
    soft = 0.25 * float(np.hypot(*look.drop)) + 1.0
    pad = int(2 * soft)
    cover = cv2.copyMakeBorder(patch.paint[..., 3], pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    cover = cv2.GaussianBlur(cover, (0, 0), soft)
    fallen = Patch(int(patch.x - pad + look.drop[0]), int(patch.y - pad + look.drop[1]), cover[..., None])
    region, shade = _overlap(picture, fallen)
    region *= 1 - shade * np.float32(look.shadow / 255)


def mirrored(patch: Patch, foot: float, opacity: float, ripple: np.ndarray | None) -> Patch:
    """The reflection of a patch in the water that begins at row `foot`.

    Args:
        ripple: how far each row is displaced sideways, in pixels, (rows of the picture,).
    """
    paint = np.flipud(patch.paint) * np.float32(opacity)
    paint = np.ascontiguousarray(cv2.blur(paint, (1, 3)))
    y = int(round(2 * foot - patch.y - paint.shape[0]))
    fade = np.linspace(1.0, 0.5, paint.shape[0], dtype=np.float32)[:, None, None]
    paint *= fade
    if ripple is not None:
        rows = np.clip(np.arange(y, y + paint.shape[0]), 0, len(ripple) - 1)
        columns = np.arange(paint.shape[1], dtype=np.float32)[None] + ripple[rows][:, None].astype(np.float32)
        lines = np.repeat(np.arange(paint.shape[0], dtype=np.float32)[:, None], paint.shape[1], axis=1)
        paint = cv2.remap(paint, columns, lines, cv2.INTER_LINEAR)
    return Patch(patch.x, y, paint)


def _clip_box(low: np.ndarray, high: np.ndarray, size: tuple[int, int], pad: int) -> tuple[int, int, int, int] | None:
    height, width = size
    left, top = max(int(np.floor(low[0])), -pad), max(int(np.floor(low[1])), -pad)
    right, bottom = min(int(np.ceil(high[0])) + 1, width + pad), min(int(np.ceil(high[1])) + 1, height + pad)
    if right <= max(left, 0) or bottom <= max(top, 0) or left >= width or top >= height:
        return None
    return left, top, right, bottom


def _paint_part(
    paint: np.ndarray,
    outlines: list[np.ndarray],
    matrix: np.ndarray,
    tile: np.ndarray,
    grain: float,
    anchor: np.ndarray,
) -> None:
    """Fill one part's outlines with its texture, of which the pixel `anchor` (x, y) is at its joint, in place."""
    points = np.concatenate(outlines)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    left, top = max(low[0], 0), max(low[1], 0)
    right, bottom = min(high[0], paint.shape[1]), min(high[1], paint.shape[0])
    if right <= left or bottom <= top:
        return
    cover = np.zeros((bottom - top, right - left), np.uint8)
    factor = 2**_SUBPIXEL_BITS
    fixed = [np.rint((outline - (left, top)) * factor).astype(np.int32) for outline in outlines]
    cv2.fillPoly(cover, fixed, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    region = paint[top:bottom, left:right]
    if cover.size < _FLAT_AREA:
        texture = tile[tile.shape[0] // 2, tile.shape[0] // 2].astype(np.float32)
    else:
        to_region = np.column_stack([matrix[:, :2] / grain, matrix[:, 2] - (left, top)])
        to_region[:, 2] -= to_region[:, :2] @ anchor
        texture = cv2.warpAffine(tile, to_region, cover.shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
    region += cover[..., None] * np.float32(1 / 255) * (texture - region)


def _shade(paint: np.ndarray, relief: float, light: float, scale: float) -> None:
    """Light one side of a patch and darken the other, as if it were round, in place."""
    height, width = paint.shape[:2]
    shrink = max(1, int(min(height, width) / 24))
    small = (max(width // shrink, 2), max(height // shrink, 2))
    cover = cv2.resize(paint[..., 3], small, interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(cover, (0, 0), max(0.22 * scale / shrink, 0.6))
    step = cv2.Sobel(soft, cv2.CV_32F, 1, 0) * np.cos(light) + cv2.Sobel(soft, cv2.CV_32F, 0, 1) * np.sin(light)
    step *= 0.2 * scale / shrink / 255
    factor = 1 + relief * np.clip(cv2.resize(step, (width, height)), -0.7, 0.6)
    paint[..., :3] *= factor[..., None]
    np.minimum(paint[..., :3], paint[..., 3:], out=paint[..., :3])


def _bent(paint: np.ndarray, displacement: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Displace a patch by a field over the actor's local coordinates, which `matrix` maps to the patch."""
    height, width = paint.shape[:2]
    cells = displacement.shape[0] - 1
    to_local = np.column_stack([np.eye(2) * 3 / cells, [-1.5, -1.5]])
    grid = displacement @ matrix[:, :2].T.astype(np.float32)
    flow = cv2.warpAffine(grid, chain(matrix, to_local), (width, height), borderMode=cv2.BORDER_REPLICATE)
    flow[..., 0] += np.arange(width, dtype=np.float32)[None]
    flow[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(paint, flow, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]


def _stroke_kernel(stroke: Stroke) -> np.ndarray:
    """A line as long as the stroke, summing to 1: float32."""
    reach = int(np.ceil(max(abs(stroke.x), abs(stroke.y)) / 2)) + 1
    kernel = np.zeros((2 * reach + 1,) * 2, np.uint8)
    factor = 16
    ends = [
        (int((reach + sign * stroke.x / 2) * factor), int((reach + sign * stroke.y / 2) * factor)) for sign in (-1, 1)
    ]
    cv2.line(kernel, ends[0], ends[1], 255, 1, cv2.LINE_AA, 4)
    return kernel.astype(np.float32) / kernel.sum()

"""Shapes: closed contours, and figures made of them that hang on joints.

Local coordinates are (x, y) with y down; a figure fills about -1 to 1. Angles are in radians, clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

_ROUND = np.linspace(0, 2 * np.pi, 40, endpoint=False)


@dataclass(frozen=True)
class Part:
    """One stiff part of a figure.

    contours: closed, each (K, 2), around the part's own joint; what an even number of them surrounds is a hole.
    joint: where it hangs, (x, y) in its parent's coordinates.
    angle, swing, phase: its turn is angle + swing * sin(pace + phase), where the pace grows with time.
    spin: turns by this much of the pace besides, as wheels do.
    parent: index of the part that it hangs on, one of those before it; -1 for the figure.
    depth: parts of less depth cover those of more.
    material: which of the figure's textures it has.
    """

    contours: tuple[np.ndarray, ...]
    joint: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    swing: float = 0.0
    phase: float = 0.0
    spin: float = 0.0
    parent: int = -1
    depth: float = 0.0
    material: int = 0


@dataclass(frozen=True)
class Figure:
    """Parts, parents before children. upright: it stands on something, and turns little."""

    parts: tuple[Part, ...]
    upright: bool = False

    @property
    def num_materials(self) -> int:
        return 1 + max(part.material for part in self.parts)

    @property
    def painting_order(self) -> list[int]:
        """Indices of the parts, the deepest first."""
        return sorted(range(len(self.parts)), key=lambda i: -self.parts[i].depth)

    def placements(self, pace: float) -> list[np.ndarray]:
        """Where each part is at this pace: matrices (2, 3) from its coordinates to the figure's."""
        matrices: list[np.ndarray] = []
        for part in self.parts:
            turn = part.angle + part.swing * np.sin(pace + part.phase) + part.spin * pace
            cos, sin = np.cos(turn), np.sin(turn)
            own = np.array([[cos, -sin, part.joint[0]], [sin, cos, part.joint[1]]])
            matrices.append(own if part.parent < 0 else chain(matrices[part.parent], own))
        return matrices

    def extent(self) -> tuple[float, float]:
        """Its area and its largest distance from the origin at pace 0, in local units."""
        resolution, reach = 32.0, 3.0
        canvas = np.zeros((int(2 * reach * resolution),) * 2, np.uint8)
        furthest = 0.0
        for part, matrix in zip(self.parts, self.placements(0.0), strict=True):
            outlines = [place(matrix, contour) for contour in part.contours]
            furthest = max(furthest, *(float(np.hypot(*outline.T).max()) for outline in outlines))
            own = np.zeros_like(canvas)
            cv2.fillPoly(own, [((outline + reach) * resolution).astype(np.int32) for outline in outlines], 1)
            canvas |= own
        return float(canvas.sum()) / resolution**2, furthest


def chain(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The affine map (2, 3) that applies `inner`, then `outer`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def place(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (K, 2) moved by an affine map (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def scale_of(matrix: np.ndarray) -> float:
    """How many units a local unit becomes under an affine map (2, 3), on average of both directions."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


# Contours


def ellipse(width: float, height: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Half axes and centre -> (K, 2)."""
    return np.stack([x + width * np.cos(_ROUND), y + height * np.sin(_ROUND)], axis=1)


def capsule(length: float, start: float, end: float) -> np.ndarray:
    """A limb from the joint along +x, `start` and `end` its half widths -> (K, 2)."""
    back = np.linspace(np.pi / 2, 1.5 * np.pi, 8)
    front = np.linspace(-np.pi / 2, np.pi / 2, 8)
    ends = [
        np.stack([start * np.cos(back), start * np.sin(back)], axis=1),
        np.stack([length + end * np.cos(front), end * np.sin(front)], axis=1),
    ]
    return np.concatenate(ends)


def wavy(contour: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The contour with its radius changed by a few random waves, up to `amount` of itself."""
    angles = np.linspace(0, 2 * np.pi, len(contour), endpoint=False)
    waves = sum(rng.uniform(-1, 1) / k * np.cos(k * angles + rng.uniform(0, 6.3)) for k in range(2, 8))
    return contour * (1 + amount * np.asarray(waves))[:, None]


def polygon(corners: int, rng: np.random.Generator, roundness: float = 0.0) -> np.ndarray:
    """A polygon of uneven corners, -1 to 1, cut back to be round if wanted."""
    steps = rng.uniform(0.4, 1.0, corners)
    angles = 2 * np.pi * np.cumsum(steps) / steps.sum()
    contour = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1.0, (corners, 1))
    if roundness > 0:
        contour = rounded(contour, roundness)
    return contour


def rounded(contour: np.ndarray, share: float = 0.25) -> np.ndarray:
    """Cut the corners of a closed contour (K, 2), and the corners that leaves."""
    for cut in (share, 0.3, 0.3):
        following = np.roll(contour, -1, axis=0)
        pieces = [contour + cut * (following - contour), following + cut * (contour - following)]
        contour = np.stack(pieces, axis=1).reshape(-1, 2)
    return contour


def ribbon(points: np.ndarray, half_widths: np.ndarray | float) -> np.ndarray:
    """A band along a line of points (K, 2) -> its outline (2K, 2)."""
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.broadcast_to(half_widths, len(points))[:, None]
    return np.concatenate([points + across, (points - across)[::-1]])


def scaled(figure: Figure, factor: float, offset: tuple[float, float]) -> Figure:
    """The figure at another size and place."""
    parts = []
    for part in figure.parts:
        x, y = (factor * part.joint[0], factor * part.joint[1])
        joint = (x + offset[0], y + offset[1]) if part.parent < 0 else (x, y)
        parts.append(replace(part, contours=tuple(factor * contour for contour in part.contours), joint=joint))
    return replace(figure, parts=tuple(parts))


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (K, 2) turned about the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def roughened(figure: Figure, amount: float, rng: np.random.Generator) -> Figure:
    """The figure with uneven outlines, as fur, leaves and cloth have them; `amount` in local units."""
    return replace(figure, parts=tuple(_roughened_part(part, amount, rng) for part in figure.parts))


def _roughened_part(part: Part, amount: float, rng: np.random.Generator) -> Part:
    contours = []
    for contour in part.contours:
        closed = np.concatenate([contour, contour[:1]])
        way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
        count = int(np.clip(way[-1] / 0.05, 8, 96))
        places = np.linspace(0, way[-1], count, endpoint=False)
        points = np.stack([np.interp(places, way, closed[:, axis]) for axis in range(2)], axis=1)
        noise = rng.normal(0, 1, (count, 2))
        coarse = noise + np.roll(noise, 1, axis=0) + np.roll(noise, 2, axis=0) + rng.normal(0, 0.5, (count, 2))
        thinnest = 0.15 * float(np.ptp(contour, axis=0).min())  # thin limbs stay in one piece
        contours.append(points + 0.5 * min(amount, thinnest) * coarse)
    return replace(part, contours=tuple(contours))


def with_used_materials(figure: Figure) -> Figure:
    """The figure with its materials numbered without gaps."""
    used = sorted({part.material for part in figure.parts})
    return replace(figure, parts=tuple(replace(part, material=used.index(part.material)) for part in figure.parts))

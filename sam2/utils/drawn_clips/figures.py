"""Figures: the things that are drawn, from blobs to beasts, people and vehicles; each from a random generator.

Local coordinates as in `shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.drawn_clips.shapes import (
    Figure,
    Part,
    capsule,
    ellipse,
    polygon,
    ribbon,
    rounded,
    scaled,
    turned,
    wavy,
    with_used_materials,
)

# Single shapes


def draw_blob(rng: np.random.Generator) -> Figure:
    return Figure((Part((wavy(ellipse(1, rng.uniform(0.35, 1)), rng.uniform(0.05, 0.5), rng),)),))


def draw_polygon(rng: np.random.Generator) -> Figure:
    roundness = rng.choice([0.0, rng.uniform(0.05, 0.3)])
    contour = polygon(int(rng.integers(3, 9)), rng, roundness) * [1, rng.uniform(0.4, 1)]
    return Figure((Part((contour,)),))


def draw_box(rng: np.random.Generator) -> Figure:
    """A box seen from a corner: two or three faces of their own colours."""
    w, h, slant = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.9), rng.uniform(0.15, 0.4)
    front = np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    side = np.array([[w, -h], [w + slant, -h - slant], [w + slant, h - slant], [w, h]])
    top = np.array([[-w, -h], [w, -h], [w + slant, -h - slant], [-w + slant, -h - slant]])
    return Figure((Part((front,)), Part((side,), material=1), Part((top,), material=2)), upright=True)


def draw_ring(rng: np.random.Generator) -> Figure:
    outer = ellipse(1, rng.uniform(0.6, 1))
    if rng.uniform() < 0.4:
        outer = polygon(int(rng.integers(3, 7)), rng, 0.1)
    return Figure(
        (
            Part(
                (outer, outer * rng.uniform(0.45, 0.85)),
            ),
        )
    )


@lru_cache(maxsize=64)
def _letter(symbol: str, font: int) -> tuple[np.ndarray, ...]:
    canvas = np.zeros((160, 160), np.uint8)
    cv2.putText(canvas, symbol, (20, 130), font, 4.0, 255, 18)
    contours, _ = cv2.findContours(canvas, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return tuple((contour[:, 0].astype(float) - (75, 80)) / 70 for contour in contours if len(contour) > 2)


def draw_letter(rng: np.random.Generator) -> Figure:
    symbols = "ABCDEFGHJKLMNPQRSTUVWXYZ023456789"
    fonts = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
    contours = _letter(symbols[rng.integers(len(symbols))], fonts[rng.integers(2)])
    return Figure((Part(contours or (ellipse(1, 1),)),))


def draw_rope(rng: np.random.Generator) -> Figure:
    """A thin line: a pole, a rope, a branch with twigs."""
    x = np.linspace(-1, 1, 24)
    y = sum(rng.normal(0, 0.25) / k * np.sin(k * 1.6 * x + rng.uniform(0, 6)) for k in (1, 2, 3))
    width = rng.uniform(0.012, 0.05)
    line = np.stack([x, np.asarray(y) * rng.choice([0.0, 1.0])], axis=1)
    parts = [Part((ribbon(line, width),))]
    for _ in range(int(rng.integers(1, 6)) if rng.uniform() < 0.35 else 0):
        root = line[rng.integers(4, 20)]
        length = rng.uniform(0.15, 0.6)
        twig = capsule(length, width * 0.8, width * 0.4)
        parts.append(Part((twig,), (root[0], root[1]), rng.uniform(0, 6.3), 0.15, rng.uniform(0, 6), parent=0))
    return Figure(tuple(parts))


def draw_strings(half_width: float, rng: np.random.Generator) -> Figure:
    """Lines of one width from the origin, some 1 long: a leash, a bundle of cords, a fan of them, a tangle, a web."""
    count = int(rng.choice([1, int(rng.integers(2, 5)), int(rng.integers(5, 15))], p=[0.35, 0.3, 0.35]))
    opening = rng.choice([0.0, rng.uniform(0.1, 1.5), 2 * np.pi], p=[0.2, 0.65, 0.15])
    slack = rng.uniform(0, 0.35)
    along = np.linspace(0, 1, 20)
    swing, parts = rng.choice([0.0, rng.uniform(0.02, 0.2)]), []
    for i in range(count):
        sag = rng.normal(0, slack) * np.sin(np.pi * along) + rng.normal(0, 0.3 * slack) * np.sin(2 * np.pi * along)
        line = np.stack([rng.uniform(0.75, 1.25) * along, sag], axis=1)
        root = rng.normal(0, 0.05 if count > 1 else 0.0, 2)
        turn = opening * (i / max(count - (opening < 6), 1) - 0.5) + rng.normal(0, 0.05)
        thread = Part((ribbon(line, half_width),), (root[0], root[1]), turn, swing, rng.uniform(0, 6.3))
        parts.append(replace(thread, material=int(rng.uniform() < 0.2)))
    if count > 2 and opening > 0 and rng.uniform() < 0.4:  # a line across the others
        angles = opening * np.linspace(-0.5, 0.5, 20)
        rung = rng.uniform(0.4, 1.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        parts.append(Part((ribbon(rung, half_width),)))
    return with_used_materials(Figure(tuple(parts)))


# Composed figures


def draw_compound(rng: np.random.Generator) -> Figure:
    """Two to six shapes of different colours that hang together, as many things do."""
    parts = [Part((_simple_contour(rng) * rng.uniform(0.5, 0.8),))]
    for i in range(rng.integers(1, 6)):
        parent = parts[0].contours[0]
        spot = parent[rng.integers(len(parent))] * rng.uniform(0.2, 1.0)
        contour = _simple_contour(rng) * rng.uniform(0.12, 0.5)
        parts.append(
            Part(
                (contour,),
                (spot[0], spot[1]),
                rng.uniform(0, 6.3),
                rng.choice([0.0, rng.uniform(0, 0.5)]),
                rng.uniform(0, 6.3),
                parent=0,
                depth=rng.uniform(-1, 1),
                material=int(rng.integers(0, min(i + 2, 4))),
            )
        )
    return with_used_materials(Figure(tuple(parts)))


def _simple_contour(rng: np.random.Generator) -> np.ndarray:
    kind = rng.integers(4)
    if kind == 0:
        return ellipse(1, rng.uniform(0.3, 1))
    if kind == 1:
        return wavy(ellipse(1, rng.uniform(0.4, 1)), rng.uniform(0.1, 0.4), rng)
    if kind == 2:
        return polygon(int(rng.integers(3, 7)), rng, 0.15)
    return rounded(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.2, 0.9)], 0.1)


def draw_crawler(rng: np.random.Generator) -> Figure:
    """A body with many thin limbs."""
    body = wavy(ellipse(0.55, rng.uniform(0.3, 0.55)), rng.uniform(0, 0.3), rng)
    width = rng.uniform(0.02, 0.09)
    parts = []
    for direction in rng.uniform(0, 6.3) + np.linspace(0, 2 * np.pi, rng.integers(3, 9), endpoint=False):
        joint = (0.35 * np.cos(direction), 0.25 * np.sin(direction))
        upper = Part(
            (capsule(rng.uniform(0.35, 0.6), width, 0.8 * width),),
            joint,
            direction,
            rng.uniform(0.1, 0.4),
            rng.uniform(0, 6.3),
            depth=1,
            material=1,
        )
        length = rng.uniform(0.3, 0.5)
        lower = Part(
            (capsule(length, 0.8 * width, 0.4 * width),),
            (upper.contours[0][:, 0].max() - width, 0.0),
            rng.uniform(-0.8, 0.8),
            rng.uniform(0.1, 0.4),
            rng.uniform(0, 6.3),
            parent=len(parts),
            depth=1,
            material=1,
        )
        parts += [upper, lower]
    return Figure((*parts, Part((body,))))


def draw_person(rng: np.random.Generator) -> Figure:
    """Head, hair or hat, trunk, arms and legs of two limbs each, about 2 high; seen from the side or the front."""
    stride, wave = rng.uniform(0.05, 0.7), rng.uniform(0.05, 0.8)
    broad, limb = rng.uniform(0.14, 0.26), rng.uniform(0.055, 0.1)
    trunk = np.array([[-broad, -0.42], [broad, -0.42], [0.85 * broad, 0.15], [-0.85 * broad, 0.15]])
    parts = [Part((rounded(trunk),))]
    for side, depth in ((-1, 0.5), (1, -0.5)):
        spread = rng.uniform(-0.1, 0.25)
        thigh = Part(
            (capsule(0.42, 1.25 * limb, limb),),
            joint=(0.5 * side * broad, 0.12),
            angle=np.pi / 2 - side * 0.4 * spread,
            swing=stride,
            phase=side * np.pi / 2,
            depth=0.3 * depth,
            material=1,
        )
        shin = capsule(0.44, limb, 0.7 * limb)
        parts += _limb(thigh, 0.42, shin, rng.uniform(0, 0.5), len(parts), 1)
        foot = Part((capsule(0.12, 0.05, 0.04),), (0.44, 0.0), -np.pi / 2, parent=len(parts) - 1)
        parts.append(replace(foot, depth=0.3 * depth, material=4))
        upper_arm = Part(
            (capsule(0.3, 0.9 * limb, 0.72 * limb),),
            joint=(0.8 * side * broad, -0.36),
            angle=np.pi / 2 - side * spread * rng.uniform(0.5, 8),
            swing=wave,
            phase=-side * np.pi / 2,
            depth=depth,
            material=2,
        )
        forearm = capsule(0.28, 0.72 * limb, 0.5 * limb)
        parts += _limb(upper_arm, 0.3, forearm, -rng.uniform(0, 1.2), len(parts), 3)
    parts.append(Part((capsule(0.12, 0.06, 0.06),), (0.0, -0.42), -np.pi / 2, parent=0, depth=0.1, material=3))
    parts.append(Part((ellipse(0.13, 0.165),), (0.0, -0.66), 0.0, 0.1, 1.0, parent=0, depth=-0.1, material=3))
    if rng.uniform() < 0.85:
        parts.append(Part((_cap(rng),), (0.0, -0.02), parent=len(parts) - 1, depth=-0.2, material=5))
    if rng.uniform() < 0.25:  # a bag or what the hand holds
        bag = rounded(np.array([[-0.16, -0.2], [0.16, -0.2], [0.18, 0.2], [-0.18, 0.2]]))
        side, depth = rng.choice([-1.0, 1.0], 2)
        parts.append(Part((bag,), (side * broad, -0.15), parent=0, depth=depth, material=5))
    return with_used_materials(Figure(tuple(parts), upright=True))


def _limb(upper: Part, length: float, lower: np.ndarray, bend: float, index: int, material: int) -> list[Part]:
    """Two parts of a limb: the first, `length` long, will be part number `index`; the second follows its swing late."""
    joint = Part((lower,), (length, 0.0), bend, 0.6 * upper.swing, upper.phase + 0.9, parent=index)
    return [replace(upper, parent=0), replace(joint, depth=upper.depth, material=material)]


def _cap(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(np.pi * 0.95, 2.05 * np.pi, 16)
    cap = np.stack([0.15 * np.cos(angles), 0.19 * np.sin(angles)], axis=1)
    if rng.uniform() < 0.4:
        cap = np.concatenate([cap, [[rng.uniform(0.15, 0.3), 0.0]]])
    return cap


def draw_quadruped(rng: np.random.Generator) -> Figure:
    """A beast from the side: trunk, neck, head, ears, tail and four legs."""
    thick = rng.uniform(0.2, 0.4)
    leg_length, leg_width = rng.uniform(0.25, 0.5), rng.uniform(0.035, 0.09)
    trunk = wavy(ellipse(0.68, thick), rng.uniform(0, 0.15), rng)
    parts = [Part((trunk,))]
    stride = rng.uniform(0.05, 0.7)
    for i, (x, depth) in enumerate(((-0.5, 0.5), (0.45, 0.5), (-0.42, -0.2), (0.53, -0.2))):
        bend = rng.uniform(0.0, 0.6) * (1 if x < 0 else -0.3)
        phase = (0.0, np.pi, np.pi, 0.0)[i]
        upper = capsule(leg_length, 1.5 * leg_width, leg_width)
        lower = capsule(leg_length, leg_width, 0.7 * leg_width)
        own = 0 if depth < 0 or rng.uniform() < 0.7 else 1
        parts.append(Part((upper,), (x, 0.55 * thick), np.pi / 2 - bend, stride, phase, 0, 0, depth, own))
        parts.append(Part((lower,), (leg_length, 0.0), bend, 0.5 * stride, phase + 1, 0, len(parts) - 1, depth, 1))
    lift, neck_length = rng.uniform(-0.2, 1.2), rng.uniform(0.2, 0.7)
    neck = capsule(neck_length, 0.7 * thick, rng.uniform(0.1, 0.18))
    parts.append(Part((neck,), (0.5, -0.3 * thick), -lift, 0.12, rng.uniform(0, 6), parent=0, depth=0.1))
    head = capsule(rng.uniform(0.15, 0.35), rng.uniform(0.13, 0.2), rng.uniform(0.06, 0.12))
    parts.append(Part((head,), (neck_length, 0.0), lift * 0.8 + 0.3, 0.15, 2.0, parent=len(parts) - 1, material=2))
    ear = capsule(rng.uniform(0.08, 0.25), 0.06, 0.02)
    parts.append(Part((ear,), (-0.02, -0.1), -2.0, 0.2, 1.0, parent=len(parts) - 1, material=1))
    tail = capsule(rng.uniform(0.2, 0.6), rng.uniform(0.03, 0.07), 0.025)
    parts.append(
        Part((tail,), (-0.64, -0.3 * thick), np.pi - rng.uniform(-0.9, 0.6), 0.5, 0.0, parent=0, depth=0.4, material=1)
    )
    return with_used_materials(Figure(tuple(parts), upright=True))


def draw_bird(rng: np.random.Generator) -> Figure:
    """A bird that swims, stands or flies: body, curved neck, head, beak, wing, tail, perhaps legs."""
    thick = rng.uniform(0.28, 0.5)
    body = np.concatenate([ellipse(0.7, thick)[:20] * [1, 0.7], ellipse(0.7, thick)[20:]])
    parts = [Part((wavy(body, 0.06, rng),), depth=0.0)]
    wing = wavy(ellipse(rng.uniform(0.35, 0.55), 0.55 * thick), 0.15, rng)
    flaps = rng.choice([0.05, rng.uniform(0.3, 1.0)])
    parts.append(Part((wing,), (-0.12, -0.25 * thick), 0.1, 0.2 * flaps, parent=0, depth=-0.3, material=1))
    tail = np.array([[0, -0.12], [-0.35, -0.2], [-0.4, 0.02], [0, 0.1]])
    parts.append(Part((tail,), (-0.6, -0.1 * thick), rng.uniform(-0.2, 0.5), 0.1, parent=0, depth=0.2, material=1))
    segments = int(rng.integers(2, 7))
    length, width = rng.uniform(0.1, 0.24), rng.uniform(0.05, 0.12)
    lift = rng.uniform(0.2, 0.7)
    joint, angle, parent = (0.55, -0.5 * thick), -lift, 0
    for i in range(segments):
        taper = width * (1.5 - 0.5 * i / segments)
        parts.append(
            Part((capsule(length, taper, taper * 0.95),), joint, angle, 0.06, 0.5 * i, parent=parent, depth=0.1)
        )
        joint, parent = (length, 0.0), len(parts) - 1
        angle = -(1.7 - lift) / segments if i < segments - 2 else rng.uniform(0.2, 0.6)
    head = ellipse(1.7 * width, 1.35 * width, width)
    parts.append(
        Part(
            (head,),
            joint,
            rng.uniform(0.2, 0.9),
            0.15,
            1.0,
            parent=parent,
            depth=-0.1,
            material=int(rng.choice([0, 2])),
        )
    )
    beak = np.array([[0, -0.5 * width], [rng.uniform(1.2, 3) * width, 0.1 * width], [0, 0.5 * width]])
    parts.append(Part((beak,), (2.3 * width, 0.0), 0.1, parent=len(parts) - 1, depth=-0.2, material=3))
    if rng.uniform() < 0.4:
        for x, phase in ((-0.05, 0.0), (0.12, np.pi)):
            leg = capsule(rng.uniform(0.35, 0.7), 0.03, 0.02)
            parts.append(Part((leg,), (x, 0.6 * thick), np.pi / 2, 0.3, phase, parent=0, depth=0.5, material=3))
    return with_used_materials(Figure(tuple(parts), upright=True))


def draw_fish(rng: np.random.Generator) -> Figure:
    body = ellipse(0.7, rng.uniform(0.2, 0.45))
    tail = np.array([[0.1, 0], [-0.35, -0.3], [-0.25, 0], [-0.35, 0.3]])
    fin = np.array([[-0.2, 0], [0.2, 0], [-0.15, -0.3]])
    parts = [
        Part((tail,), (-0.65, 0), 0, 0.5, 0, depth=0.1, material=1),
        Part((body,)),
        Part((fin,), (0.0, -0.25), 0, 0.1, 1, depth=0.1, material=1),
        Part((ellipse(0.06, 0.06),), (0.45, -0.08), depth=-0.1, material=2),
    ]
    return Figure(tuple(parts))


def draw_vehicle(rng: np.random.Generator) -> Figure:
    """A car, van, lorry or boat-like body on wheels, with windows of their own colour."""
    height, cabin = rng.uniform(0.18, 0.35), rng.uniform(0.15, 0.45)
    left, right = rng.uniform(-0.9, -0.2), rng.uniform(0.2, 0.8)
    body = rounded(np.array([[-1, -height], [1, -height * rng.uniform(0.3, 1)], [1, height], [-1, height]]), 0.08)
    slope = rng.uniform(0.0, 0.25)
    top = -height - cabin
    roof = np.array([[left, -0.9 * height], [left + slope, top], [right - slope, top], [right, -0.9 * height]])
    window = roof * [0.85, 0.8] + [0.02 * (left + right), -0.1 * height]
    parts = [Part((body,)), Part((roof,), parent=0, depth=0.2), Part((window,), parent=0, depth=-0.1, material=1)]
    radius = rng.uniform(0.14, 0.26)
    for x in rng.choice([[-0.6, 0.6], [-0.65, 0.62], [-0.7, 0.7]]):
        parts.append(Part((ellipse(radius, radius),), (x, height), parent=0, depth=-0.3, material=2))
        spokes = tuple(turned(capsule(0.8 * radius, 0.05, 0.03), k * 2 * np.pi / 3) for k in range(3))
        parts.append(Part(spokes, (0, 0), 0, 0, 0, 1.0, len(parts) - 1, -0.4, 3))
    return Figure(tuple(parts), upright=True)


def draw_cycle(rng: np.random.Generator) -> Figure:
    """Two thin wheels and a frame of thin tubes."""
    radius, tyre = rng.uniform(0.35, 0.45), rng.uniform(0.03, 0.09)
    wheel = (ellipse(radius, radius), ellipse(radius - tyre, radius - tyre))
    parts = []
    for x in (-0.58, 0.58):
        parts.append(Part(wheel, (x, 0.3), 0, 0, 0, 1.0, depth=0.1))
        parts.append(Part((ribbon(np.array([[-radius, 0], [radius, 0]]), 0.012),), (0, 0), parent=len(parts) - 1))
    tube = rng.uniform(0.025, 0.06)
    nodes = np.array(
        [[-0.58, 0.3], [-0.1, 0.35], [-0.25, -0.2], [0.4, -0.2], [0.58, 0.3], [0.36, -0.35], [-0.28, -0.35]]
    )
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 1), (0, 2), (3, 4), (3, 5), (2, 6)):
        parts.append(Part((ribbon(nodes[[a, b]], tube),), material=1))
    parts.append(Part((capsule(0.22, 0.05, 0.03),), (-0.38, -0.37), material=2))
    parts.append(Part((capsule(0.15, 0.04, 0.03),), (0.3, -0.37), material=2))
    return Figure(tuple(parts), upright=True)


def draw_plant(rng: np.random.Generator) -> Figure:
    """A stem with leaves or a tree: a swaying crown of blobs."""
    parts = [Part((capsule(1.6, rng.uniform(0.03, 0.12), 0.03),), (0, 1.0), -np.pi / 2, 0.06)]
    for _ in range(rng.integers(3, 12)):
        along = rng.uniform(0.5, 1.6)
        leaf = wavy(ellipse(rng.uniform(0.15, 0.5), rng.uniform(0.1, 0.35)), 0.3, rng)
        offset = rng.normal(0, 0.25)
        material = int(rng.integers(1, 3))
        parts.append(
            Part(
                (leaf,), (along, offset), rng.uniform(0, 6), 0.1, rng.uniform(0, 6), 0, 0, rng.uniform(-1, 1), material
            )
        )
    return with_used_materials(Figure(tuple(parts), upright=True))


def draw_fence(rng: np.random.Generator) -> Figure:
    """Bars side by side, with gaps one sees through."""
    count, width = int(rng.integers(2, 7)), rng.uniform(0.03, 0.12)
    places = np.linspace(-1, 1, count)
    bars = [
        Part((np.array([[x - width, -1.2], [x + width, -1.2], [x + width, 1.2], [x - width, 1.2]]),)) for x in places
    ]
    for y in rng.uniform(-0.9, 0.9, rng.integers(0, 3)):
        rail = np.array([[-1.2, y - width], [1.2, y - width], [1.2, y + width], [-1.2, y + width]])
        bars.append(Part((rail,), depth=0.1))
    return Figure(tuple(bars), upright=True)


class Canopy(NamedTuple):
    """What hangs on lines, as three figures that move as one."""

    sail: Figure
    lines: Figure
    load: Figure


def draw_canopy(rng: np.random.Generator) -> Canopy:
    """A sail, its thin lines and its load."""
    bend, span = rng.uniform(0.2, 0.7), rng.uniform(0.7, 1.0)
    x = np.linspace(-span, span, 20)
    arc = np.stack([x, -1.0 + bend * (x / span) ** 2], axis=1)
    thick = rng.uniform(0.06, 0.2) * (1.1 - 0.6 * (x / span) ** 2)
    cells = []
    for i, (start, end) in enumerate(((0, 8), (6, 14), (12, 20))):
        cells.append(Part((ribbon(arc[start:end], thick[start:end]),), material=i % 2))
    foot = np.array([rng.uniform(-0.15, 0.15), rng.uniform(0.5, 1.0)])
    count = int(rng.integers(2, 9))
    tips = arc[np.linspace(0, 19, count).astype(int)]
    width = rng.uniform(0.006, 0.014)
    lines = [Part((ribbon(np.stack([tip, foot]), width),)) for tip in tips]
    load = draw_person(rng) if rng.uniform() < 0.6 else draw_compound(rng)
    shrink = rng.uniform(0.18, 0.35)
    load = replace(scaled(load, shrink, (foot[0], foot[1] + 0.4 * shrink)), upright=True)
    return Canopy(Figure(tuple(cells), upright=True), Figure(tuple(lines), upright=True), load)


_MAKERS: dict[Callable[[np.random.Generator], Figure], float] = {
    draw_blob: 1.0,
    draw_polygon: 0.5,
    draw_box: 0.5,
    draw_ring: 0.4,
    draw_letter: 0.4,
    draw_rope: 0.4,
    draw_compound: 1.6,
    draw_crawler: 0.6,
    draw_person: 2.0,
    draw_quadruped: 1.6,
    draw_bird: 1.4,
    draw_fish: 0.5,
    draw_vehicle: 1.2,
    draw_cycle: 0.6,
    draw_plant: 0.4,
}


def draw_figure(
    rng: np.random.Generator, makers: Sequence[Callable[[np.random.Generator], Figure]] | None = None
) -> Figure:
    """Any figure, or any of those named."""
    chosen = list(makers or _MAKERS)
    shares = np.array([_MAKERS.get(maker, 1.0) for maker in chosen])
    return chosen[rng.choice(len(chosen), p=shares / shares.sum())](rng)

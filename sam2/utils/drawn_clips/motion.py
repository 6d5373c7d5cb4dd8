"""Motion: where things and the camera are in each frame, as affine maps.

T frames; positions are (x, y) in world pixels, y down; times in frames. All tables have one row per frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Track(NamedTuple):
    """The way of one thing, or of several that move as one.

    matrices: (T, 2, 3), from local coordinates to world pixels.
    pace: (T,), radians, how far its limbs have swung.
    parallax: how much it follows the camera's shift: 1 in the plane the world is measured in, less behind it.
    """

    matrices: np.ndarray
    pace: np.ndarray
    parallax: float = 1.0


def draw_clock(num_frames: int, still_share: float, rng: np.random.Generator) -> np.ndarray:
    """Time as it passes in each frame (T,), from 0: by 1 a frame, but for still spells."""
    steps = np.ones(num_frames)
    if rng.uniform() < still_share and num_frames > 2:
        start = int(rng.integers(1, num_frames))
        steps[start : start + int(rng.integers(1, max(2, num_frames // 2) + 1))] = 0
    steps[0] = 0
    return np.cumsum(steps)


def smooth_walk(clock: np.ndarray, step: float, rng: np.random.Generator, persistence: float = 0.85) -> np.ndarray:
    """A value (T,) that wanders from 0, about `step` per frame, with momentum."""
    count = int(clock[-1]) + 2
    noise = rng.normal(0, 1, count)
    speed = np.empty(count)
    current = rng.normal(0, 1)
    for i in range(count):
        current = persistence * current + np.sqrt(1 - persistence**2) * noise[i]
        speed[i] = current
    path = np.concatenate([[0.0], np.cumsum(step * speed)])
    return np.interp(clock, np.arange(count + 1), path)


def draw_path(
    clock: np.ndarray, start: np.ndarray, speed: float, world: np.ndarray, wild: float, rng: np.random.Generator
) -> np.ndarray:
    """A way (T, 2) from `start`: straight, bending, speeding up, darting off, or out of the world and back.

    Args:
        speed: typical speed, pixels per frame.
        world: width and height, pixels.
        wild: 0 to 1, how often it does more than go smoothly.
    """
    centre = world / 2
    heading = rng.uniform(0, 2 * np.pi)
    towards = np.arctan2(*(centre - start)[::-1])
    if rng.uniform() < 0.5:
        heading = towards + rng.normal(0, 0.8)
    velocity = speed * np.array([np.cos(heading), rng.uniform(0.3, 1) * np.sin(heading)])
    along = clock.copy()
    kind = rng.uniform()
    if kind < 0.15 * wild:  # speeds up or brakes
        span = rng.uniform(4, 12)
        along = along * (0.2 + along / span) if rng.uniform() < 0.5 else span * np.tanh(along / span)
    elif kind < 0.27 * wild:  # darts off
        begin, length = rng.uniform(0, max(clock[-1], 1)), rng.uniform(1, 4)
        along = along + np.clip((clock - begin) / length, 0, 1) * rng.uniform(2, 8)
    path = start + along[:, None] * velocity
    bend = speed * rng.uniform(0, 0.8)
    path = path + np.stack([smooth_walk(clock, bend, rng), 0.7 * smooth_walk(clock, bend, rng)], axis=1)
    if rng.uniform() < 0.25:  # hops or bobs
        path[:, 1] -= rng.uniform(0.3, 2) * speed * np.abs(np.sin(clock * rng.uniform(0.3, 1.5)))
    path = _kept_in(path, world, rng.uniform(-0.05, 0.15))
    if rng.uniform() < 0.16 * wild:
        path = path + _excursion(clock, path, world, rng)
    return path


def _excursion(clock: np.ndarray, path: np.ndarray, world: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leaves the world at its nearest side and comes back."""
    length = rng.uniform(6, 18)
    begin = rng.uniform(0.5, max(clock[-1] - 2, 1))
    there = np.clip((clock - begin) / length, 0, 1)
    side = 1 if path[0, 0] > world[0] / 2 else -1
    return np.stack([side * world[0] * rng.uniform(0.5, 1.0) * np.sin(np.pi * there) ** 2, 0 * there], axis=1)


def _kept_in(path: np.ndarray, world: np.ndarray, margin: float) -> np.ndarray:
    """The path thrown back where it goes far beyond an edge, so that it is mostly in sight in long clips."""
    if len(path) <= 12:
        return path
    low, room = margin * world, (1 - 2 * margin) * world
    phase = (path - low) % (2 * room)
    folded = np.where(phase > room, 2 * room - phase, phase) + low
    return folded + (path[0] - folded[0]) * np.exp(-np.arange(len(path)) / 4)[:, None]


class Camera(NamedTuple):
    """How the world is looked at: it is zoomed and turned about its centre, then shifted.

    linear (T, 2, 2), shift (T, 2) and centre (2,), in world pixels.
    """

    linear: np.ndarray
    shift: np.ndarray
    centre: np.ndarray

    def view(self, frame: int, parallax: float) -> np.ndarray:
        """From world pixels to picture pixels before any squeeze, (2, 3), for things of this parallax."""
        linear = self.linear[frame]
        return np.column_stack([linear, self.centre + parallax * self.shift[frame] - linear @ self.centre])


def draw_camera(clock: np.ndarray, world: np.ndarray, amount: float, rng: np.random.Generator) -> Camera:
    """A camera that pans, zooms, turns and shakes; in the first frame it shows the world as it is.

    Args:
        amount: 0 for a camera that stands still, 1 for a lively one.
    """
    side = world.min()
    speed = side * amount * np.exp(rng.uniform(np.log(0.0005), np.log(0.015)))
    heading = rng.uniform(0, 2 * np.pi)
    pan = clock[:, None] * speed * np.array([np.cos(heading), 0.4 * np.sin(heading)])
    pan = pan + np.stack([smooth_walk(clock, 0.5 * speed, rng), smooth_walk(clock, 0.3 * speed, rng)], axis=1)
    if rng.uniform() < 0.4:
        shake = side * amount * rng.uniform(0, 0.008)
        pan = pan + np.stack([smooth_walk(clock, shake, rng, 0.0) for _ in range(2)], axis=1)
    reach = 0.35 * world
    zoom = np.exp(0.5 * np.tanh(2 * smooth_walk(clock, amount * rng.choice([0.0, 0.003, 0.015]), rng, 0.95)))
    roll = 0.35 * np.tanh(3 * smooth_walk(clock, amount * rng.choice([0.0, 0.002, 0.008]), rng, 0.95))
    return Camera(rotation(roll) * zoom[:, None, None], reach * np.tanh(pan / reach), world / 2)


def rotation(turn: np.ndarray | float) -> np.ndarray:
    """Radians, clockwise as y points down, any shape -> the same shape and (2, 2)."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)


def draw_attitude(
    clock: np.ndarray, radius: float, liveliness: float, upright: bool, rng: np.random.Generator
) -> np.ndarray:
    """How a thing turns, grows, tilts and foreshortens: linear maps (T, 2, 2) from local units to pixels.

    Args:
        radius: pixels per local unit in the first frame.
        liveliness: 0 for a thing that hardly changes, 1 for up to threefold scale and quick turns.
    """
    size = radius * np.exp(1.1 * np.tanh(smooth_walk(clock, liveliness * rng.choice([0.003, 0.015, 0.05]), rng, 0.95)))
    if upright:
        turn = rng.normal(0, 0.12) + 0.5 * np.tanh(smooth_walk(clock, liveliness * rng.choice([0.005, 0.04]), rng))
    else:
        turn = rng.uniform(0, 2 * np.pi) + smooth_walk(clock, liveliness * rng.choice([0.005, 0.03, 0.15]), rng, 0.95)
    yaw = rng.uniform(-0.5, 0.5) + smooth_walk(clock, liveliness * rng.choice([0.0, 0.02, 0.1]), rng, 0.95)
    width = np.maximum(np.abs(np.cos(yaw)), 0.3)
    shear = 0.3 * np.tanh(smooth_walk(clock, liveliness * 0.02, rng))
    flip = rng.choice([-1.0, 1.0])
    shape = np.stack([np.stack([flip * width, shear], -1), np.stack([0 * width, np.ones_like(width)], -1)], -2)
    return rotation(turn) @ shape * size[:, None, None]

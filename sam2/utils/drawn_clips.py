"""Drawn clips: textured shapes that move over a textured background, with exact label maps.

For demonstrations and tests, where no data set is at hand. Everything follows from the seed.

T frames of H x W pixels; positions are (x, y) in pixels; time is counted in frames in which something moves.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from sam2.utils.davis import DEFAULT_RESOLUTION, DEFAULT_YEAR, DavisRoot, write_label_map

SPEEDS = {"still": 0.0, "slow": 0.004, "smooth": 0.012, "fast": 0.04}
"""Top speed of an object for each `motion`, as a share of the picture's shorter side per frame."""

DASH_FRAMES = 3
"""How many frames a dash across the picture takes."""

MAX_OBJECTS = 20

_TEXTURE_SIZE = 160  # pixels
_TEXTURE_REACH = 1.8  # object radii from the centre that a texture covers
_SUBPIXEL_BITS = 4
_SHADOW = 0.25  # share of light that an object's shadow takes away
_CAMERA_REACH = 0.12  # how far the camera swings, as a share of the picture's shorter side


class DrawnClip(NamedTuple):
    """A clip and its annotation.

    frames: RGB uint8 (T, H, W, 3).
    labels: uint8 (T, H, W), ids 1 to the number of objects, 0 where there is none.
    """

    frames: np.ndarray
    labels: np.ndarray


class Event(NamedTuple):
    """What happens to one object at one frame, however still the rest is.

    "appear": it is not there before this frame. "vanish": it is not there from this frame on. "dash": within
    `DASH_FRAMES` frames, of which this is the first, it crosses to the other side of the picture.
    """

    frame: int
    obj_id: int
    kind: Literal["appear", "vanish", "dash"]


class _Pose(NamedTuple):
    """Where an object is: centre and radius in pixels, its turn and the phase of its limbs in radians."""

    x: float
    y: float
    radius: float
    angle: float
    swing: float


class _Limb(NamedTuple):
    """A thin part that tapers to its tip: lengths in object radii, angles in radians."""

    direction: float
    length: float
    half_width: float
    reach: float


@dataclass(frozen=True)
class _Shape:
    """A body, contour (K, 2) in object radii, and thin limbs."""

    body: np.ndarray
    limbs: tuple[_Limb, ...]

    def contours(self, swing: float) -> list[np.ndarray]:
        """Closed contours (K, 2), in object radii, whose union is the shape."""
        parts = [self.body]
        for i, limb in enumerate(self.limbs):
            angle = limb.direction + limb.reach * np.sin(swing + 2.1 * i)
            along = np.array([np.cos(angle), np.sin(angle)])
            across = limb.half_width * np.array([-along[1], along[0]])
            outline = [(0.4, 1.0), (0.97, 0.65), (1.0, 0.35), (1.0, -0.35), (0.97, -0.65), (0.4, -1.0)]
            parts.append(np.array([out * limb.length * along + aside * across for out, aside in outline]))
        return parts


@dataclass(frozen=True)
class _Actor:
    """One object: what it looks like, and its way, which swings around `centre` by `amplitude`.

    texture: RGB float32 (_TEXTURE_SIZE, _TEXTURE_SIZE, 3), 0 to 255.
    centre, amplitude, rates, phases: (x, y) in pixels, pixels, radians per frame and radians.
    """

    shape: _Shape
    texture: np.ndarray
    radius: float
    centre: np.ndarray
    amplitude: np.ndarray
    rates: np.ndarray
    phases: np.ndarray

    def pose(self, time: float) -> _Pose:
        x, y = self.centre + self.amplitude * np.sin(self.rates * time + self.phases)
        turn = self.rates[0] * time + self.phases[1]
        return _Pose(x, y, self.radius * (1 + 0.08 * np.sin(0.8 * turn)), 0.6 * np.sin(turn), 3.0 * turn)


def draw_clip(
    num_frames: int,
    height: int,
    width: int,
    num_objects: int,
    seed: int,
    *,
    motion: Literal["still", "slow", "smooth", "fast"] = "smooth",
    camera_shift: float = 0.0,
    still: Collection[int] = (),
    events: Sequence[Event] = (),
    noise: float = 0.0,
) -> DrawnClip:
    """Draw a clip of textured shapes.

    Objects move on smooth closed ways, turn, change size a little, swing their limbs and hide one another in a fixed
    order of depth. A pixel carries the id of the nearest object that covers at least half of it.

    Args:
        num_frames, height, width: of the clip, in frames and pixels; at least 32 pixels each way.
        num_objects: 1 to `MAX_OBJECTS`.
        seed: the same seed and arguments draw the same clip.
        motion: how fast the objects move, see `SPEEDS`.
        camera_shift: top speed of the camera, pixels per frame.
        still: frames in which nothing has moved since the frame before, e.g. range(8, 16).
        events: what happens to single objects, also in still frames.
        noise: standard deviation of each frame's own noise, in grey levels of 255.

    Raises:
        ValueError: an argument out of range, or an event of a frame or an object that the clip does not have.
    """
    _check_arguments(num_frames, height, width, num_objects, motion, events)
    seeds = np.random.SeedSequence(seed).spawn(2 + num_objects)
    scene, grain, *streams = (np.random.default_rng(part) for part in seeds)
    clock = np.cumsum([t > 0 and t not in still for t in range(num_frames)])
    camera = _camera_path(clock, camera_shift, min(height, width), scene)  # (T, 2)
    margin = int(_CAMERA_REACH * min(height, width)) + 2
    background = _draw_background(height + 2 * margin, width + 2 * margin, scene)
    actors = _cast(height, width, SPEEDS[motion], scene, streams)
    back_to_front = scene.permutation(num_objects)

    frames = np.empty((num_frames, height, width, 3), np.uint8)
    labels = np.zeros((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        picture = _look_at(background, camera[t] + margin, height, width)
        for i in back_to_front:
            pose = _pose_at(actors[i], int(i) + 1, clock, t, width, events)
            if pose is None:
                continue
            pose = pose._replace(x=pose.x - camera[t, 0], y=pose.y - camera[t, 1])
            cover = _cover(actors[i].shape, pose, height, width)
            _paint(picture, actors[i].texture, pose, cover)
            labels[t][cover >= 0.5] = i + 1
        if noise:
            picture += grain.normal(0.0, noise, picture.shape).astype(np.float32)
        frames[t] = np.clip(np.rint(picture), 0, 255)
    return DrawnClip(frames, labels)


def write_davis_layout(
    root: str | os.PathLike[str], clips: Mapping[str, DrawnClip], *, split: str = "val", quality: int = 95
) -> DavisRoot:
    """Write clips as a DAVIS-layout data set: JPEG frames, palette PNG annotations and one split that lists them all.

    Args:
        root: folder, made if missing.
        clips: by sequence name.
        split: name of the split.
        quality: of the JPEGs, 1 to 100.
    """
    root = Path(root)
    for name, clip in clips.items():
        frames = root / "JPEGImages" / DEFAULT_RESOLUTION / name
        frames.mkdir(parents=True, exist_ok=True)
        for t, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            Image.fromarray(frame).save(frames / f"{t:05d}.jpg", quality=quality)
            write_label_map(root / "Annotations" / DEFAULT_RESOLUTION / name / f"{t:05d}.png", labels)
    listing = root / "ImageSets" / DEFAULT_YEAR / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in clips), encoding="utf-8")
    return DavisRoot.open(root)


def _check_arguments(
    num_frames: int, height: int, width: int, num_objects: int, motion: str, events: Sequence[Event]
) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if min(height, width) < 32:
        raise ValueError(f"height and width must be at least 32, got {height} and {width}")
    if not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"num_objects must be 1 to {MAX_OBJECTS}, got {num_objects}")
    if motion not in SPEEDS:
        raise ValueError(f"motion must be one of {', '.join(SPEEDS)}, got {motion!r}")
    for event in events:
        if not 0 <= event.frame < num_frames or not 1 <= event.obj_id <= num_objects:
            raise ValueError(f"events: {event} is not of frames 0 to {num_frames - 1} and objects 1 to {num_objects}")
        if event.kind not in ("appear", "vanish", "dash"):
            raise ValueError(f"events: kind must be appear, vanish or dash, got {event.kind!r}")


def _camera_path(clock: np.ndarray, speed: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """Offset of the camera (T, 2), in pixels; it swings to and fro, at most at this speed."""
    reach = _CAMERA_REACH * side
    direction = rng.uniform(0, 2 * np.pi)
    along = reach * np.sin(speed / reach * clock)
    return along[:, None] * np.array([np.cos(direction), 0.4 * np.sin(direction)])


def _pose_at(
    actor: _Actor, obj_id: int, clock: np.ndarray, frame: int, width: int, events: Sequence[Event]
) -> _Pose | None:
    """Where an object is in one frame, its events played; None when it is not there."""
    pose = actor.pose(float(clock[frame]))
    for event in events:
        if event.obj_id != obj_id:
            continue
        if (event.kind == "appear" and frame < event.frame) or (event.kind == "vanish" and frame >= event.frame):
            return None
        if event.kind == "dash" and frame >= event.frame:
            start = actor.pose(float(clock[event.frame])).x
            goal = 0.25 * width if start > width / 2 else 0.75 * width
            progress = min((frame - event.frame + 1) / DASH_FRAMES, 1.0)
            pose = pose._replace(x=pose.x + (goal - start) * progress)
    return pose


def _cast(
    height: int, width: int, speed: float, scene: np.random.Generator, streams: Sequence[np.random.Generator]
) -> list[_Actor]:
    """One actor per random stream, well apart at the start and of different hues."""
    side = min(height, width)
    first_hue = scene.uniform()
    actors: list[_Actor] = []
    for i, rng in enumerate(streams):
        radius = side * rng.uniform(0.11, 0.17) * (1.0 if len(streams) <= 4 else 2.0 / np.sqrt(len(streams)))
        hue = (first_hue + 0.618034 * i) % 1.0
        shape, texture = _draw_shape(rng), _draw_texture(hue, rng)
        ways = [_draw_way(height, width, radius, speed, rng) for _ in range(30)]
        taken = [(actor.pose(0.0), actor.radius) for actor in actors]

        def clearance(way: tuple[np.ndarray, ...], radius: float = radius, taken: list = taken) -> float:
            start = way[0] + way[1] * np.sin(way[3])
            gaps = [np.hypot(start[0] - p.x, start[1] - p.y) / (radius + r) for p, r in taken]
            return min(gaps, default=0.0)

        actors.append(_Actor(shape, texture, radius, *max(ways, key=clearance)))
    return actors


def _draw_way(
    height: int, width: int, radius: float, speed: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre, amplitude, rates and phases (x, y each) of a way inside the picture, with this top speed."""
    size = np.array([width, height])
    room = np.maximum(size / 2 - radius, 1.0)  # from the middle to where the object touches the edge
    amplitude = room * rng.uniform(0.25, 0.75, 2)
    centre = size / 2 + (room - amplitude) * rng.uniform(-1, 1, 2)
    rates = speed * min(height, width) / amplitude * rng.uniform(0.5, 1.0, 2)
    return centre, amplitude, rates, rng.uniform(0, 2 * np.pi, 2)


def _draw_shape(rng: np.random.Generator) -> _Shape:
    """An ellipse, a polygon or a wavy blob, perhaps with limbs."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    kind = rng.choice(["ellipse", "polygon", "blob"])
    if kind == "ellipse":
        body = np.stack([np.cos(angles), rng.uniform(0.5, 0.9) * np.sin(angles)], axis=1)
    elif kind == "polygon":
        corners = np.linspace(0, 2 * np.pi, rng.integers(3, 7), endpoint=False) + rng.uniform(0, 2 * np.pi)
        body = _rounded(np.stack([np.cos(corners), np.sin(corners)], axis=1))
    else:
        waves = np.sum(
            [rng.uniform(-0.14, 0.14) * np.cos(k * angles + rng.uniform(0, 6)) for k in (2, 3, 4, 5)], axis=0
        )
        body = (0.85 + waves)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    limbs = []
    if rng.uniform() < 0.6:
        for direction in rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, rng.integers(2, 6), endpoint=False):
            limbs.append(_Limb(direction, rng.uniform(1.25, 1.6), rng.uniform(0.09, 0.15), rng.uniform(0.1, 0.35)))
    return _Shape(body, tuple(limbs))


def _rounded(contour: np.ndarray) -> np.ndarray:
    """Cut the corners of a closed contour (K, 2), and the corners that leaves."""
    for share in (0.12, 0.3, 0.3):
        following = np.roll(contour, -1, axis=0)
        cuts = [contour + share * (following - contour), following + share * (contour - following)]
        contour = np.stack(cuts, axis=1).reshape(-1, 2)
    return contour


def _draw_texture(hue: float, rng: np.random.Generator) -> np.ndarray:
    """Stripes, spots or clouds of two related colours, shaded towards the rim; float32 (S, S, 3)."""
    size = _TEXTURE_SIZE
    clouds = _smooth_noise(size, size, size // 3, rng)
    axis = np.linspace(-_TEXTURE_REACH, _TEXTURE_REACH, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    kind = rng.choice(["stripes", "spots", "clouds"])
    if kind == "stripes":
        turn = rng.uniform(0, np.pi)
        pattern = np.sin(rng.uniform(5, 9) * (x * np.cos(turn) + y * np.sin(turn)) + 3 * clouds)
    elif kind == "spots":
        spacing = rng.uniform(5, 8)
        pattern = 1.6 * np.sin(spacing * x + 2 * clouds) * np.sin(spacing * y - 2 * clouds)
    else:
        pattern = 5 * (_smooth_noise(size, size, size // 6, rng) - 0.5)
    blend = 1 / (1 + np.exp(-4 * pattern))[..., None]
    light = _colour(hue, rng.uniform(0.35, 0.7), rng.uniform(0.85, 1.0))
    dark = _colour(hue + rng.uniform(-0.09, 0.09), rng.uniform(0.6, 0.95), rng.uniform(0.45, 0.65))
    fine = _smooth_noise(size, size, 6, rng)[..., None] - 0.5
    shade = np.clip(1.08 - 0.3 * (x**2 + y**2) - 0.12 * (x + y), 0.45, 1.25)[..., None]
    return ((light * blend + dark * (1 - blend) + 24 * fine) * shade).astype(np.float32)


def _draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A muted landscape of clouds and pebbles, float32 (height, width, 3)."""
    side = min(height, width)
    hue = rng.uniform()
    top, bottom = (_colour(hue + shift, rng.uniform(0.12, 0.3), value) for shift, value in ((0.0, 0.78), (0.1, 0.5)))
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    blend = np.clip(slope + 1.1 * (_smooth_noise(height, width, side // 2, rng) - 0.5), 0, 1)[..., None]
    picture = top * (1 - blend) + bottom * blend
    for _ in range(14):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        axes = (int(side * rng.uniform(0.02, 0.07)), int(side * rng.uniform(0.015, 0.05)))
        pebble = np.zeros((height, width), np.uint8)
        cv2.ellipse(pebble, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        cover = cv2.GaussianBlur(pebble, (0, 0), 1.0)[..., None] / np.float32(255)
        picture += cover * rng.uniform(-28, 28)
    detail = _smooth_noise(height, width, side // 8, rng) + 0.7 * _smooth_noise(height, width, max(side // 40, 2), rng)
    return (picture + 52 * (detail[..., None] - 0.85)).astype(np.float32)


def _smooth_noise(height: int, width: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Three octaves of noise whose coarsest features are `cell` pixels wide, float32 (height, width), 0 to 1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        step = max(cell / 2**octave, 1.0)
        grid = rng.uniform(-1, 1, (int(height / step) + 3, int(width / step) + 3)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.min()) / (total.max() - total.min())


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB float32 (3,), 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def _look_at(background: np.ndarray, corner: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of the background whose upper left corner is at (x, y), between pixels too; a new array (H, W, 3)."""
    shift = np.array([[1.0, 0.0, corner[0]], [0.0, 1.0, corner[1]]])
    return cv2.warpAffine(background, shift, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _cover(shape: _Shape, pose: _Pose, height: int, width: int) -> np.ndarray:
    """How much of each pixel the shape covers, float32 (H, W), 0 to 1."""
    turn = np.array([[np.cos(pose.angle), np.sin(pose.angle)], [-np.sin(pose.angle), np.cos(pose.angle)]])
    canvas = np.zeros((height, width), np.uint8)
    for contour in shape.contours(pose.swing):
        points = pose.radius * contour @ turn + (pose.x, pose.y)
        fixed = np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas / np.float32(255)


def _paint(picture: np.ndarray, texture: np.ndarray, pose: _Pose, cover: np.ndarray) -> None:
    """Paint a textured object and its soft shadow over the picture, in place."""
    height, width = cover.shape
    offset = 0.14 * pose.radius
    drop = np.array([[1, 0, offset], [0, 1, offset]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, drop, (width, height)), (0, 0), 0.5 * offset + 0.5)
    picture *= 1 - _SHADOW * shadow[..., None]

    scale = pose.radius * 2 * _TEXTURE_REACH / _TEXTURE_SIZE  # picture pixels per texture pixel
    cos, sin = scale * np.cos(pose.angle), scale * np.sin(pose.angle)
    middle = (_TEXTURE_SIZE - 1) / 2
    matrix = np.array(
        [
            [cos, -sin, pose.x - cos * middle + sin * middle],
            [sin, cos, pose.y - sin * middle - cos * middle],
        ]
    )
    surface = cv2.warpAffine(texture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    picture += cover[..., None] * (surface - picture)

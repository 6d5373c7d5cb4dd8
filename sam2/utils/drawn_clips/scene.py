"""A scene: a backdrop, actors from back to front, a camera and a lens, and how one picture of it is painted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.drawn_clips.effects import Lens, develop, draw_grain
from sam2.utils.drawn_clips.motion import Camera
from sam2.utils.drawn_clips.painting import (
    Actor,
    Patch,
    Stroke,
    cast_shadow,
    draw_patch,
    lay_colour,
    lay_label,
    mirrored,
)
from sam2.utils.drawn_clips.records import DrawnClip
from sam2.utils.drawn_clips.shapes import chain

_LONGEST_STROKE = 24.0  # pixels that motion blurs at most


@dataclass(frozen=True)
class Water:
    """How what ripples does so: `field` float32 (h, w, 2), -1 to 1, at least as large as the picture; pixels."""

    field: np.ndarray
    amplitude: float
    speed: float


@dataclass(frozen=True)
class Scene:
    """Everything that is in sight.

    size: (height, width) of the picture, pixels. squeeze: from world pixels to the picture's, (x, y).
    clock: (T,). backdrop: RGBA uint8, centred on the world; its parallax as an actor's.
    actors: the farthest first.
    """

    size: tuple[int, int]
    squeeze: np.ndarray
    clock: np.ndarray
    camera: Camera
    backdrop: np.ndarray
    backdrop_parallax: float
    actors: tuple[Actor, ...]
    lens: Lens
    water: Water | None = None

    def matrix(self, actor: Actor, frame: int) -> np.ndarray:
        """From an actor's local coordinates to picture pixels, (2, 3)."""
        seen = self.camera.view(frame, actor.track.parallax)
        return self.squeeze[:, None] * chain(seen, actor.track.matrices[frame])

    def moment_before(self, frame: int) -> int:
        """The last frame of an earlier time; of a later one if there is none, so that first frames smear too."""
        earlier = np.flatnonzero(self.clock < self.clock[frame])
        later = np.flatnonzero(self.clock > self.clock[frame])
        return int(earlier[-1]) if len(earlier) else int(later[0]) if len(later) else frame


def render(scene: Scene, rng: np.random.Generator) -> DrawnClip:
    """Paint all frames of a scene; `rng` gives the sensor's noise."""
    height, width = scene.size
    frames = np.empty((len(scene.clock), height, width, 3), np.uint8)
    labels = np.zeros((len(scene.clock), height, width), np.uint8)
    grain = draw_grain(scene.size, rng) if scene.lens.noise > 0 else np.empty(0)
    for t in range(len(scene.clock)):
        picture = paint_frame(scene, t, labels[t])
        frames[t] = develop(picture, scene.lens, t, float(scene.clock[t]), grain, rng)
    return DrawnClip(frames, labels)


def paint_frame(scene: Scene, frame: int, labels: np.ndarray) -> np.ndarray:
    """Paint one frame as it is before the lens, RGB float32 (H, W, 3), and its label map in place."""
    picture = _paint_backdrop(scene, frame)
    for actor in scene.actors:
        patch = patch_of(scene, actor, frame)
        if patch is None:
            continue
        if actor.look.shadow > 0:
            cast_shadow(picture, patch, actor.look)
        if actor.look.reflection > 0:
            _lay_reflection(scene, picture, actor, patch, frame)
        lay_colour(picture, patch)
        lay_label(labels, patch, actor.obj_id)
    return picture


class Sighting(NamedTuple):
    """Of one frame: pixels that each id has, and would have if nothing were in front of it."""

    seen: Counter[int]
    whole: Counter[int]


def sight(scene: Scene, frame: int) -> Sighting:
    """What is seen of the labelled actors in one frame, without painting it."""
    labels = np.zeros(scene.size, np.uint8)
    whole: Counter[int] = Counter()
    for actor in scene.actors:
        patch = patch_of(scene, actor, frame)
        if patch is not None:
            whole[actor.obj_id] += lay_label(labels, patch, actor.obj_id)
    ids, counts = np.unique(labels, return_counts=True)
    return Sighting(Counter(dict(zip(ids.tolist(), counts.tolist(), strict=True))), whole)


def patch_of(scene: Scene, actor: Actor, frame: int) -> Patch | None:
    """What one actor shows in one frame, smeared by its motion; None where it is not in sight."""
    if actor.present is not None and not actor.present[frame]:
        return None
    matrix = scene.matrix(actor, frame)
    stroke = Stroke(0, 0)
    if actor.smear > 0:
        shift = actor.smear * (matrix[:, 2] - scene.matrix(actor, scene.moment_before(frame))[:, 2])
        stroke = Stroke(*np.clip(shift, -_LONGEST_STROKE, _LONGEST_STROKE))
    return draw_patch(actor, matrix, float(actor.track.pace[frame]), scene.size, stroke)


def _paint_backdrop(scene: Scene, frame: int) -> np.ndarray:
    height, width = scene.size
    view = scene.camera.view(frame, scene.backdrop_parallax)
    seen = scene.squeeze[:, None] * chain(view, np.column_stack([np.diag(1 / scene.squeeze), [0, 0]]))
    margin = (np.array(scene.backdrop.shape[1::-1]) - (width, height)) / 2
    seen[:, 2] -= seen[:, :2] @ margin
    whole = cv2.warpAffine(scene.backdrop, seen, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if scene.water is not None and whole[..., 3].any():
        shift = scene.water.speed * float(scene.clock[frame])
        field = _drifted(scene.water.field, shift, height, width)
        flow = field * (whole[..., 3:].astype(np.float32) * np.float32(scene.water.amplitude / 255))
        flow[..., 0] += np.arange(width, dtype=np.float32)
        flow[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        whole = cv2.remap(whole, flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore
    return whole[..., :3].astype(np.float32)


def _drifted(field: np.ndarray, shift: float, height: int, width: int) -> np.ndarray:
    """The part of a field that has drifted by `shift` pixels, one of its channels forwards and one backwards."""
    forwards = np.array([[1.0, 0.0, shift], [0.0, 1.0, 0.3 * shift]])
    return cv2.warpAffine(
        field,
        forwards,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _lay_reflection(scene: Scene, picture: np.ndarray, actor: Actor, patch: Patch, frame: int) -> None:
    """Paint an actor's mirror image below it; it has no label."""
    rows = np.flatnonzero(patch.paint[..., 3].max(axis=1) > 127)
    if len(rows) == 0:
        return
    foot = patch.y + float(rows[-1])
    time = float(scene.clock[frame])
    lines = np.arange(scene.size[0])
    ripple = 1.5 * np.sin(0.7 * lines + 0.9 * time) + np.sin(0.31 * lines - 0.5 * time)
    lay_colour(picture, mirrored(patch, foot - 1, actor.look.reflection, scene.size[0] / 256 * ripple))

"""Staged clips: so many objects that stand out, and what happens to them as it is asked for."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sam2.utils.drawn_clips import figures
from sam2.utils.drawn_clips.backdrops import draw_backdrop
from sam2.utils.drawn_clips.effects import clear_lens
from sam2.utils.drawn_clips.motion import Camera, Track, rotation
from sam2.utils.drawn_clips.painting import Actor, Look, opaque
from sam2.utils.drawn_clips.records import DrawnClip
from sam2.utils.drawn_clips.scene import Scene, render
from sam2.utils.drawn_clips.shapes import Figure
from sam2.utils.drawn_clips.textures import TILE, draw_tile, to_bytes

SPEEDS = {"still": 0.0, "slow": 0.004, "smooth": 0.012, "fast": 0.04}
"""Top speed of an object for each `motion`, as a share of the picture's shorter side per frame."""

DASH_FRAMES = 3
"""How many frames a dash across the picture takes."""

MAX_OBJECTS = 20

_CAMERA_REACH = 0.12  # how far the camera swings, as a share of the picture's shorter side
_MUTED = 0.55  # contrast that the backdrop keeps, so that the objects stand out
_FIGURES = (
    figures.draw_blob,
    figures.draw_box,
    figures.draw_compound,
    figures.draw_crawler,
    figures.draw_person,
    figures.draw_quadruped,
    figures.draw_bird,
    figures.draw_fish,
    figures.draw_vehicle,
)


class Event(NamedTuple):
    """What happens to one object at one frame, however still the rest is.

    "appear": it is not there before this frame. "vanish": it is not there from this frame on. "dash": within
    `DASH_FRAMES` frames, of which this is the first, it crosses to the other side of the picture.
    """

    frame: int
    obj_id: int
    kind: Literal["appear", "vanish", "dash"]


class _Way(NamedTuple):
    """A smooth closed way that swings around a centre; (x, y) each, in pixels, radians per frame and radians."""

    centre: np.ndarray
    amplitude: np.ndarray
    rates: np.ndarray
    phases: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """(2,)."""
        return self.centre + self.amplitude * np.sin(self.phases)

    def positions(self, clock: np.ndarray) -> np.ndarray:
        """(T, 2)."""
        return self.centre + self.amplitude * np.sin(self.rates * clock[:, None] + self.phases)

    def turns(self, clock: np.ndarray) -> np.ndarray:
        """How far round it is, radians (T,)."""
        return self.rates[0] * clock + self.phases[1]


class _Role(NamedTuple):
    """One object before its events: its figure, look, size in pixels per local unit, reach in pixels, and way."""

    figure: Figure
    look: Look
    scale: float
    reach: float
    way: _Way


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
    """Draw a clip of objects that stand out from what is behind them, for demonstrations and tests.

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
    stage, grain, *streams = (np.random.default_rng(part) for part in seeds)
    clock = np.cumsum([float(t > 0 and t not in still) for t in range(num_frames)])
    side = min(height, width)
    margin = int(_CAMERA_REACH * side) + 2
    backdrop = draw_backdrop(height + 2 * margin, width + 2 * margin, stage, photos=False)
    mean = backdrop[..., :3].mean(axis=(0, 1))
    backdrop[..., :3] = to_bytes(mean + _MUTED * (backdrop[..., :3] - mean))
    roles = _cast(height, width, SPEEDS[motion], stage, streams)
    actors = [_play(role, i + 1, clock, width, events) for i, role in enumerate(roles)]
    scene = Scene(
        size=(height, width),
        squeeze=np.ones(2),
        clock=clock,
        camera=_draw_camera(clock, camera_shift, height, width, stage),
        backdrop=backdrop,
        backdrop_parallax=1.0,
        actors=tuple(actors[i] for i in stage.permutation(num_objects)),
        lens=clear_lens(num_frames, noise),
    )
    return render(scene, grain)


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


def _draw_camera(clock: np.ndarray, speed: float, height: int, width: int, rng: np.random.Generator) -> Camera:
    """A camera that swings to and fro, at most at this speed in pixels per frame."""
    reach = _CAMERA_REACH * min(height, width)
    direction = rng.uniform(0, 2 * np.pi)
    along = reach * np.sin(speed / reach * clock)
    shift = along[:, None] * np.array([np.cos(direction), 0.4 * np.sin(direction)])
    return Camera(np.repeat(np.eye(2)[None], len(clock), axis=0), shift, np.array([width / 2, height / 2]))


def _play(role: _Role, obj_id: int, clock: np.ndarray, width: int, events: Sequence[Event]) -> Actor:
    """The actor of a role, its events played."""
    positions, turns = role.way.positions(clock), role.way.turns(clock)
    present = np.ones(len(clock), bool)
    for event in events:
        if event.obj_id != obj_id:
            continue
        if event.kind == "appear":
            present[: event.frame] = False
        elif event.kind == "vanish":
            present[event.frame :] = False
        else:
            start = positions[event.frame, 0]
            goal = 0.25 * width if start > width / 2 else 0.75 * width
            progress = np.clip((np.arange(len(clock)) - event.frame + 1) / DASH_FRAMES, 0, 1)
            positions[:, 0] += (goal - start) * progress
    lean = 0.2 if role.figure.upright else 0.6
    scales = role.scale * (1 + 0.08 * np.sin(0.8 * turns))
    linear = rotation(lean * np.sin(turns)) * scales[:, None, None]
    track = Track(np.concatenate([linear, positions[..., None]], axis=2), 3.0 * turns)
    return Actor(role.figure, role.look, track, obj_id, present=present)


def _cast(
    height: int, width: int, speed: float, stage: np.random.Generator, streams: Sequence[np.random.Generator]
) -> list[_Role]:
    """One role per random stream, well apart at the start and of different hues."""
    side = min(height, width)
    first_hue = stage.uniform()
    roles: list[_Role] = []
    for i, rng in enumerate(streams):
        reach = side * rng.uniform(0.13, 0.19) * (1.0 if len(streams) <= 4 else 2.0 / np.sqrt(len(streams)))
        figure = figures.draw_figure(rng, _FIGURES)
        area, extent = figure.extent()
        scale = min(1.4 * reach / np.sqrt(area), 1.8 * reach / extent)  # alike in area, no wiry giants
        look = _draw_look(figure, (first_hue + 0.618034 * i) % 1.0, scale, rng)
        ways = [_draw_way(height, width, reach, speed, rng) for _ in range(30)]

        gaps = [_clearance(way, reach, roles) for way in ways]
        roles.append(_Role(figure, look, scale, reach, ways[int(np.argmax(gaps))]))
    return roles


def _clearance(way: _Way, reach: float, roles: Sequence[_Role]) -> float:
    """How far from its nearest neighbour a way begins, 1 where they touch."""
    gaps = [np.hypot(*(way.start - role.way.start)) / (reach + role.reach) for role in roles]
    return min(gaps, default=0.0)


def _draw_way(height: int, width: int, reach: float, speed: float, rng: np.random.Generator) -> _Way:
    """A way inside the picture, with this top speed as a share of the shorter side."""
    size = np.array([width, height])
    room = np.maximum(size / 2 - reach, 1.0)  # from the middle to where the object touches the edge
    amplitude = room * rng.uniform(0.25, 0.75, 2)
    centre = size / 2 + (room - amplitude) * rng.uniform(-1, 1, 2)
    rates = speed * min(height, width) / amplitude * rng.uniform(0.5, 1.0, 2)
    return _Way(centre, amplitude, rates, rng.uniform(0, 2 * np.pi, 2))


def _draw_look(figure: Figure, hue: float, scale: float, rng: np.random.Generator) -> Look:
    """Textures around strong colours of one hue, light from the upper left and a shadow."""
    side = int(np.clip(3 * scale, 32, TILE))
    tiles = []
    for _ in range(figure.num_materials):
        strong = colorsys.hsv_to_rgb((hue + rng.uniform(-0.06, 0.06)) % 1, rng.uniform(0.6, 0.95), rng.uniform(0.55, 1))
        tiles.append(opaque(draw_tile(rng, side=side, near=255 * np.array(strong, np.float32))))
    drop = 0.14 * scale
    return Look(tuple(tiles), grain=max(scale, 6.0), relief=0.5, light=0.8, shadow=0.25, drop=(drop, drop))

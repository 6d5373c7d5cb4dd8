"""Casting: who is in a random clip, how it looks and where it goes.

Everything is drawn from the stage's random generator; shares are of the picture, sizes and speeds in world pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sam2.utils.drawn_clips import figures
from sam2.utils.drawn_clips.motion import Track, draw_attitude, draw_path, rotation
from sam2.utils.drawn_clips.painting import Actor, Bend, Look, opaque
from sam2.utils.drawn_clips.shapes import Figure, Part, chain, ellipse, roughened, scale_of
from sam2.utils.drawn_clips.textures import TILE, draw_tile, to_bytes

_FATTER = 0.6  # pixels that painting adds to a line on each side


@dataclass(frozen=True)
class Stage:
    """What all actors of a clip share: time, world size (x, y) in pixels, backdrop and how hard it all is."""

    clock: np.ndarray
    world: np.ndarray
    squeeze: np.ndarray
    backdrop: np.ndarray
    difficulty: float
    light: float
    follows: float  # parallax of what the camera follows
    wet: bool
    rng: np.random.Generator
    packs: float = 0.0  # chance that another object sits on a labelled actor
    strings: float = 0.0  # chance that thin lines hang on a labelled actor, or are somewhere by themselves

    @property
    def side(self) -> float:
        return float(self.world.min())

    def colour_at(self, point: np.ndarray) -> np.ndarray:
        """Mean colour of the backdrop around a world point (x, y): RGB (3,)."""
        height, width = self.backdrop.shape[:2]
        x, y = np.array([width, height]) / 2 + (point - self.world / 2) * self.squeeze
        x, y = int(np.clip(x, 8, width - 8)), int(np.clip(y, 8, height - 8))
        return self.backdrop[y - 8 : y + 8, x - 8 : x + 8, :3].reshape(-1, 3).mean(0)


def draw_cast(stage: Stage, max_objects: int) -> list[Actor]:
    """Actors from back to front; those to be labelled have ids of 1 to `max_objects`, several one id at times."""
    rng, difficulty = stage.rng, stage.difficulty
    labelled = _leads(stage, max_objects)
    others = [_extra(stage, labelled) for _ in range(rng.poisson(1.5 * difficulty))]
    if rng.uniform() < 0.15 * difficulty:  # one of a crowd
        others += [_look_alike(stage, labelled[0], share=0.7) for _ in range(rng.integers(2, 7))]
    actors = labelled + others
    if len(labelled) <= 2 or rng.uniform() < 0.8:
        order = rng.permutation(len(actors)) if rng.uniform() < 0.6 else np.arange(len(actors))[::-1]
        actors = [actors[i] for i in order]
    actors = _with_worn(stage, actors, max_objects)
    if rng.uniform() < 0.15 + 0.45 * difficulty:
        target = labelled[rng.integers(len(labelled))]
        actors += [_crosser(stage, target) for _ in range(rng.integers(1, 3))]
    if rng.uniform() < 0.25 * difficulty:
        actors += [_foreground(stage) for _ in range(rng.integers(1, 4))]
    return actors


def _leads(stage: Stage, max_objects: int) -> list[Actor]:
    """The actors that are to be labelled, and what belongs to them."""
    rng = stage.rng
    shares = np.exp(-np.arange(max_objects) * (1.1 - 0.6 * stage.difficulty))
    count = 1 + int(rng.choice(max_objects, p=shares / shares.sum()))
    labelled: list[Actor] = []
    used = 0
    while used < count:
        troupe = _troupe(stage, labelled)
        if rng.uniform() < 0.2:  # all of them are one object
            labelled += [replace(actor, obj_id=used + 1) for actor in troupe]
            used += 1
        else:
            room = count if rng.uniform() < 0.4 else max_objects
            ids = [used + i + 1 if used + i < room else 0 for i in range(len(troupe))]
            labelled += [replace(actor, obj_id=obj_id) for actor, obj_id in zip(troupe, ids, strict=True)]
            used = max(ids)
    return labelled


def draw_plain(stage: Stage) -> Actor:
    """A still disc in the middle of the world, number 1."""
    disc = Figure((Part((ellipse(1, 0.8),)),))
    return replace(draw_actor(stage, disc, share=0.06, start=stage.world / 2, speed=0.0), obj_id=1)


def _troupe(stage: Stage, so_far: list[Actor]) -> list[Actor]:
    """One actor, or a few that move as one and touch: a rider and what it rides, a load on lines under a sail."""
    rng = stage.rng
    kind = rng.uniform()
    if kind < 0.1:
        sail, lines, load = figures.draw_canopy(rng)
        first = draw_actor(stage, sail, share=float(np.exp(rng.uniform(np.log(0.01), np.log(0.08)))))
        rest = [replace(first, figure=figure, look=_look(stage, figure, first)) for figure in (lines, load)]
        return [first, rest[1], rest[0]] if rng.uniform() < 0.7 else [rest[0], first, rest[1]]
    if kind < 0.25:
        mount = figures.draw_figure(
            rng, (figures.draw_vehicle, figures.draw_cycle, figures.draw_quadruped, figures.draw_compound)
        )
        first = draw_actor(stage, mount)
        return [first, _rider(stage, first)]
    if so_far and kind < 0.25 + 0.3 * (0.3 + stage.difficulty):
        return [_look_alike(stage, so_far[rng.integers(len(so_far))])]
    near = so_far[rng.integers(len(so_far))] if so_far and rng.uniform() < 0.25 else None
    start = None
    if near is not None:  # side by side, so that they touch
        start = near.track.matrices[0, :, 2] + near.track.matrices[0, :, :2] @ rng.normal(0, 0.7, 2)
    return [draw_actor(stage, figures.draw_figure(rng), start=start)]


def draw_actor(
    stage: Stage,
    figure: Figure,
    *,
    share: float | None = None,
    start: np.ndarray | None = None,
    speed: float | None = None,
) -> Actor:
    """An actor of a random size, way and look.

    Args:
        share: of the picture that it covers; None for any, 1 % to 40 %, the small ones as often as the large.
        start: world pixels; None for anywhere.
        speed: world pixels per frame; None for any.
    """
    rng, difficulty = stage.rng, stage.difficulty
    if share is None:
        share = float(np.exp(rng.uniform(np.log(0.02 - 0.012 * difficulty), np.log(0.4))))
        share = share if rng.uniform() < 0.75 else share**0.5 * 0.1  # many things are small
    if rng.uniform() < 0.3:
        figure = roughened(figure, rng.uniform(0.01, 0.04), rng)
    area, extent = figure.extent()
    radius = float(np.sqrt(share * stage.world.prod() / max(area, 0.02)))
    radius = min(radius, rng.uniform(0.45, 0.65) * stage.world.max() / extent)
    if start is None:
        start = stage.world * rng.uniform(0.14, 0.86, 2)
    if speed is None:
        top = np.log(0.008 + 0.035 * difficulty)
        speed = stage.side * float(np.exp(rng.uniform(np.log(0.0007), top))) * float(rng.uniform() > 0.12)
        if rng.uniform() > 0.25 * difficulty:  # what is small mostly also moves less
            speed = min(speed, 0.25 * radius)
    path = draw_path(stage.clock, start, speed, stage.world, 0.2 + 0.8 * difficulty, rng)
    attitude = draw_attitude(stage.clock, radius, 0.2 + 0.8 * difficulty, figure.upright, rng)
    rate = rng.choice([0.0, rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.9) * (0.3 + difficulty)], p=[0.2, 0.55, 0.25])
    pace = rng.uniform(0, 6.3) + rate * stage.clock
    track = Track(np.concatenate([attitude, path[..., None]], axis=2), pace, stage.follows)
    actor = Actor(figure, Look((), 1.0), track, bend=_draw_bend(stage) if rng.uniform() < 0.35 else None)
    actor = replace(actor, smear=float(rng.choice([0.0, rng.uniform(0.2, 0.8)], p=[0.6, 0.4])))
    return replace(actor, look=_look(stage, figure, actor))


def _look(stage: Stage, figure: Figure, actor: Actor) -> Look:
    """Textures of a figure, in colours near the backdrop's if it is to be hard to see."""
    rng = stage.rng
    hidden = rng.uniform() < 0.05 + 0.25 * stage.difficulty
    place = actor.track.matrices[0, :, 2]
    photo_share = rng.choice([0.0, 0.15, 1.0], p=[0.5, 0.35, 0.15])
    radius = scale_of(actor.track.matrices[0])
    side = int(np.clip(3 * radius, 32, TILE))  # the little that a small thing shows
    tiles = []
    for _ in range(figure.num_materials):
        near = stage.colour_at(place) + rng.normal(0, 18, 3) if hidden else None
        tiles.append(opaque(draw_tile(rng, side=side, photo_share=photo_share, near=near)))
    if len(tiles) > 1 and rng.uniform() < 0.25:  # all of one kind, as most animals are
        tiles = [tiles[0]] * len(tiles)
    upright = figure.upright
    mirrored = stage.wet and upright and rng.uniform() < 0.7
    shadow = 0.0 if mirrored else float(rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    reach = radius * rng.uniform(0.03, 0.3)
    return Look(
        tuple(tiles),
        grain=max(radius, 6.0) * rng.uniform(0.5, 1.4),
        relief=float(rng.choice([0.0, rng.uniform(0.2, 0.9)], p=[0.3, 0.7])),
        light=stage.light,
        blur=float(rng.choice([0.0, rng.uniform(0.3, 1.2)], p=[0.75, 0.25])),
        shadow=shadow,
        drop=(-reach * float(np.cos(stage.light)), reach * abs(float(np.sin(stage.light)))),
        reflection=float(rng.uniform(0.25, 0.85)) if mirrored else 0.0,
    )


def _draw_bend(stage: Stage) -> Bend:
    """A smooth displacement, up to a third of the figure's radius."""
    rng = stage.rng
    fields = rng.normal(0, 1, (2, 5, 5, 2)) * rng.uniform(0.02, 0.05 + 0.1 * stage.difficulty)
    fields = np.stack([cv2.GaussianBlur(field, (3, 3), 0) for field in fields]).astype(np.float32)
    return Bend(fields[0], fields[1], rng.uniform(0.3, 1.0))


def _rider(stage: Stage, mount: Actor) -> Actor:
    """Someone on a mount, who goes where it goes."""
    rng = stage.rng
    rider = figures.draw_person(rng) if rng.uniform() < 0.8 else figures.draw_compound(rng)
    scale = rng.uniform(0.35, 0.9)
    seat = np.array([[scale, 0, rng.uniform(-0.4, 0.2)], [0, scale, -0.25 - 0.55 * scale]])
    return _on(stage, mount, rider, [seat] * len(stage.clock), 0.5 * mount.track.pace)


def _on(stage: Stage, holder: Actor, figure: Figure, seats: Sequence[np.ndarray], pace: np.ndarray) -> Actor:
    """A figure that goes where its holder goes; `seats`, (2, 3) each frame, lead into the holder's coordinates."""
    matrices = np.stack([chain(matrix, seat) for matrix, seat in zip(holder.track.matrices, seats, strict=True)])
    track = holder.track._replace(matrices=matrices, pace=pace)
    actor = replace(holder, figure=figure, track=track, bend=None)
    look = _look(stage, figure, actor)
    return replace(actor, look=replace(look, reflection=0.0))


def _with_worn(stage: Stage, actors: Sequence[Actor], max_objects: int) -> list[Actor]:
    """The actors, and what sits or hangs on labelled ones right before them, or at times behind.

    It is an object as well while there are fewer than `max_objects`; a pack may be part of its wearer's instead.
    """
    rng, used = stage.rng, max(actor.obj_id for actor in actors)
    all_of_them: list[Actor] = []
    for actor in actors:
        layers = [actor]
        for chance, make in ((stage.packs, _pack), (stage.strings, _strings)):
            if actor.obj_id == 0 or chance == 0 or rng.uniform() >= chance:
                continue
            layers = [replace(one, bend=None) for one in layers]  # what bends would slide away under what it wears
            worn = replace(make(stage, layers[0]), obj_id=0)
            if make is _pack and rng.uniform() < 0.15:
                worn = replace(worn, obj_id=actor.obj_id)
            elif used < max_objects:
                used += 1
                worn = replace(worn, obj_id=used)
            layers = [*layers, worn] if rng.uniform() < 0.85 else [worn, *layers]
        all_of_them += layers
    return all_of_them


def _pack(stage: Stage, wearer: Actor) -> Actor:
    """Something on a part of another actor, which goes where the part goes: a rucksack, a patch, what a hand holds."""
    rng = stage.rng
    pack = figures.draw_figure(rng)
    parts = wearer.figure.parts
    areas = np.array([cv2.contourArea(part.contours[0].astype(np.float32)) for part in parts]) + 1e-4
    place = int(rng.choice(len(parts), p=areas / areas.sum()))
    (own_area, own_reach), (area, reach) = wearer.figure.extent(), pack.extent()
    size = min(np.sqrt(rng.uniform(0.1, 0.8) * own_area / max(area, 0.02)), rng.uniform(0.4, 1.2) * own_reach / reach)
    seat = np.column_stack([size * rotation(rng.uniform(0, 2 * np.pi)), parts[place].contours[0].mean(0)])
    seats = [chain(wearer.figure.placements(pace)[place], seat) for pace in wearer.track.pace]
    return _on(stage, wearer, pack, seats, rng.choice([0.0, 0.3]) * wearer.track.pace)


def _strings(stage: Stage, holder: Actor) -> Actor:
    """Lines as thin as a pixel or a few: on a holder whom they follow, or somewhere by themselves."""
    rng = stage.rng
    half_width = max(stage.side * rng.uniform(0.0013, 0.0055) - _FATTER, 0.1)
    if rng.uniform() < 0.35:
        disc = Figure((Part((ellipse(1, 1),)),))  # as large as they are; they would not bear being roughened
        share = np.pi * (stage.side * rng.uniform(0.15, 0.6)) ** 2 / stage.world.prod()
        alone = draw_actor(stage, disc, share=float(share))
        strings = figures.draw_strings(half_width / scale_of(alone.track.matrices[0]), rng)
        return replace(alone, figure=strings, look=_look(stage, strings, alone))
    size = rng.uniform(0.8, 3.0)
    seat = np.column_stack([size * rotation(rng.uniform(0, 2 * np.pi)), rng.normal(0, 0.3, 2)])
    strings = figures.draw_strings(half_width / size / scale_of(holder.track.matrices[0]), rng)
    actor = _on(stage, holder, strings, [seat] * len(stage.clock), holder.track.pace)
    return replace(actor, bend=_draw_bend(stage) if rng.uniform() < 0.5 else None)


def _look_alike(stage: Stage, model: Actor, *, share: float = 1.0) -> Actor:
    """The same figure elsewhere, or another, in the same or nearly the same colours.

    Args:
        share: of the model's area that it has, more or less.
    """
    rng = stage.rng
    figure = model.figure if rng.uniform() < 0.7 else figures.draw_figure(rng)
    area = figure.extent()[0] * scale_of(model.track.matrices[0]) ** 2 / stage.world.prod()
    actor = draw_actor(stage, figure, share=share * float(np.clip(area, 0.004, 0.3)) * rng.uniform(0.7, 1.4))
    gain = np.exp(rng.normal(0, rng.choice([0.02, 0.15]), 3))
    tiles = tuple(to_bytes(tile * [*gain, 1.0]) for tile in model.look.tiles)
    return replace(actor, look=replace(actor.look, tiles=tiles, relief=model.look.relief))


def _extra(stage: Stage, labelled: list[Actor]) -> Actor:
    """Something without a label: a mover, often one that looks like a labelled one, or scenery at another depth."""
    rng = stage.rng
    kind = rng.uniform()
    if kind < 0.4:
        return _look_alike(stage, labelled[rng.integers(len(labelled))])
    share = float(np.exp(rng.uniform(np.log(0.003), np.log(0.15))))
    if kind < 0.75:
        return draw_actor(stage, figures.draw_figure(rng), share=share)
    actor = draw_actor(stage, figures.draw_figure(rng), share=share, speed=0.0)
    return replace(actor, track=actor.track._replace(parallax=rng.uniform(0.5, 1.4)))


def _crosser(stage: Stage, target: Actor) -> Actor:
    """Something that passes in front of a target, or that the target passes behind; after the first frame."""
    rng = stage.rng
    last = len(stage.clock) - 1
    when = int(rng.integers(min(2, last), last + 1)) if last else 0
    reach = scale_of(target.track.matrices[when])
    makers = (figures.draw_fence, figures.draw_plant, figures.draw_rope, figures.draw_blob, figures.draw_box)
    figure = figures.draw_figure(rng, makers) if rng.uniform() < 0.6 else figures.draw_figure(rng)
    share = float(np.clip((reach * rng.uniform(0.6, 2.0)) ** 2 * 2 / stage.world.prod(), 0.005, 0.3))
    actor = draw_actor(stage, figure, share=share, speed=0.0)
    own = scale_of(actor.track.matrices[0]) * actor.figure.extent()[1]
    pace = (reach + own) / max(when, 3) * rng.uniform(0.7, 1.5) * rng.choice([0.0, 1.0], p=[0.25, 0.75])
    heading = rng.choice([0, np.pi]) + rng.normal(0, 0.5)
    velocity = pace * np.array([np.cos(heading), np.sin(heading)])
    meeting = target.track.matrices[when, :, 2] + rng.normal(0, 0.3 * reach, 2)
    matrices = actor.track.matrices.copy()
    matrices[..., 2] = meeting + (stage.clock - stage.clock[when])[:, None] * velocity
    return replace(actor, track=actor.track._replace(matrices=matrices), obj_id=0)


def _foreground(stage: Stage) -> Actor:
    """Something near the camera, out of focus and quicker to pass as the camera moves."""
    rng = stage.rng
    makers = (figures.draw_fence, figures.draw_plant, figures.draw_rope, figures.draw_blob)
    edge = stage.world * np.where(rng.uniform(size=2) < 0.5, rng.uniform(-0.05, 0.2, 2), rng.uniform(0.8, 1.05, 2))
    actor = draw_actor(stage, figures.draw_figure(rng, makers), share=rng.uniform(0.03, 0.2), start=edge, speed=0.0)
    look = replace(actor.look, blur=float(rng.uniform(0.5, 3.0)) * stage.side / 256, shadow=0.0, reflection=0.0)
    return replace(actor, look=look, track=actor.track._replace(parallax=rng.uniform(1.0, 2.0)))

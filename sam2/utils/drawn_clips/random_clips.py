"""Random clips to train and test with: everything about them follows from a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sam2.utils.drawn_clips.backdrops import draw_backdrop
from sam2.utils.drawn_clips.casting import Stage, draw_actor, draw_cast, draw_plain
from sam2.utils.drawn_clips.effects import clear_lens, draw_lens
from sam2.utils.drawn_clips.figures import draw_figure
from sam2.utils.drawn_clips.motion import Camera, draw_camera, draw_clock
from sam2.utils.drawn_clips.painting import lay_colour, lay_label
from sam2.utils.drawn_clips.records import DrawnClip
from sam2.utils.drawn_clips.scene import Scene, Water, patch_of, render, sight
from sam2.utils.drawn_clips.textures import draw_field, to_bytes

MIN_VISIBLE = 60 / 256**2
"""Share of the picture that each labelled object shows in the first frame, at least."""

_SEEN_SHARE = 0.35  # of a labelled object that nothing hides in the first frame
_ATTEMPTS = 12  # casts that may fail to show an object before a plain one is put in front


def random_clip(
    seed: int,
    num_frames: int,
    size: int | tuple[int, int],
    *,
    difficulty: float = 0.5,
    max_objects: int = 3,
    packs: float = 0.0,
    strings: float = 0.0,
) -> DrawnClip:
    """Draw a clip of one to `max_objects` labelled objects among others that carry no label.

    Every id, 1 to n, shows at least `MIN_VISIBLE` of the picture in the first frame; what is not seen there carries no
    label at all. Later an object may be hidden or out of sight, and be back. A pixel has the id of the nearest thing
    that covers at least half of it.

    Args:
        seed: the same seed and arguments draw the same clip, where scikit-image, whose photographs are used if it is
            installed, is the same.
        num_frames: at least 1.
        size: side of a square picture, or (height, width), pixels, at least 64. The world is up to 16:9 wide and
            squeezed to the picture.
        difficulty: 0 for one or two slow objects that stand out, 1 for everything.
        max_objects: 1 to 255.
        packs: chance, 0 to 1, that another thing sits on a labelled actor and goes with it, as a rucksack on its
            wearer; mostly it is an object of its own.
        strings: chance, 0 to 1, that a labelled actor has thin lines on it, or that there are some by themselves; they
            are an object of their own.

    Raises:
        ValueError: an argument out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if min(height, width) < 64:
        raise ValueError(f"size must be at least 64 pixels each way, got {height} x {width}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be 0 to 1, got {difficulty}")
    if not 1 <= max_objects <= 255:
        raise ValueError(f"max_objects must be 1 to 255, got {max_objects}")
    for name, chance in (("packs", packs), ("strings", strings)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{name} must be 0 to 1, got {chance}")
    rng = np.random.default_rng(seed)
    scene = draw_scene(num_frames, (height, width), difficulty, max_objects, rng, packs=packs, strings=strings)
    return render(scene, rng)


def draw_scene(
    num_frames: int,
    size: tuple[int, int],
    difficulty: float,
    max_objects: int,
    rng: np.random.Generator,
    *,
    packs: float = 0.0,
    strings: float = 0.0,
) -> Scene:
    height, width = size
    clock = draw_clock(num_frames, 0.15, rng)
    aspect = rng.uniform(width / height, max(width / height, 16 / 9))
    world = np.array([aspect * height, height], float)
    squeeze = np.array([width / world[0], 1.0])
    moving = rng.uniform() < 0.3 + 0.5 * difficulty
    camera = draw_camera(clock, world, (0.3 + 0.7 * difficulty) * float(moving), rng)
    backdrop = draw_backdrop(int(1.5 * height), int(1.5 * width), rng)
    wet = bool(backdrop[..., 3].any())
    stage = Stage(
        clock=clock,
        world=world,
        squeeze=squeeze,
        backdrop=backdrop,
        difficulty=difficulty,
        light=rng.uniform(0, 2 * np.pi),
        follows=rng.choice([1.0, rng.uniform(0, 0.3)]),
        wet=wet,
        rng=rng,
        packs=packs,
        strings=strings,
    )
    _strew(stage)
    water = None
    if wet:
        field = np.dstack([draw_field(height, width, rng, height / 300, "water") for _ in range(2)]) * 2 - 1
        water = Water(field.astype(np.float32), height / 256 * rng.uniform(1, 7), height / 256 * rng.uniform(0.3, 3))
    lens = draw_lens(clock, size, difficulty, rng)
    scene = Scene(size, squeeze, clock, camera, backdrop, 1.0, (), lens, water)
    return _with_cast(scene, stage, max_objects)


def _with_cast(scene: Scene, stage: Stage, max_objects: int) -> Scene:
    """The scene with actors, of which each labelled one is seen in the first frame."""
    wanted = int(np.ceil(scene.size[0] * scene.size[1] * MIN_VISIBLE))
    for attempt in range(_ATTEMPTS):
        actors = draw_cast(stage, max_objects)
        if attempt == _ATTEMPTS - 1:
            actors = [*(replace(actor, obj_id=0) for actor in actors), draw_plain(stage)]
        cast = replace(scene, actors=tuple(actors))
        first = sight(cast, 0)
        ids = {actor.obj_id for actor in actors} - {0}
        seen = [i for i in sorted(ids) if first.seen[i] >= max(wanted, _SEEN_SHARE * first.whole[i])]
        if seen:
            order = stage.rng.permutation(len(seen)) + 1
            new_id = dict(zip(seen, order.tolist(), strict=True))
            return replace(cast, actors=tuple(replace(actor, obj_id=new_id.get(actor.obj_id, 0)) for actor in actors))
    raise AssertionError("a plain object in front of all others is always seen")


def _strew(stage: Stage) -> None:
    """Paint still things that carry no label onto the backdrop: clutter of the objects' own kinds."""
    rng = stage.rng
    most = int(rng.choice([0, 5, 30], p=[0.35, 0.4, 0.25]) * (0.3 + stage.difficulty))
    count = int(rng.integers(0, most + 1))
    if count == 0:
        return
    height, width = stage.backdrop.shape[:2]
    plane = replace(stage, world=np.array([width, height]) / stage.squeeze, clock=stage.clock[:1])
    still = Camera(np.eye(2)[None], np.zeros((1, 2)), plane.world / 2)
    picture = stage.backdrop[..., :3].astype(np.float32)
    covered = np.zeros((height, width), np.uint8)
    scene = Scene((height, width), stage.squeeze, plane.clock, still, stage.backdrop, 1.0, (), clear_lens(1))
    for _ in range(count):
        share = float(np.exp(rng.uniform(np.log(0.0003), np.log(0.02))))
        actor = draw_actor(plane, draw_figure(rng), share=share, speed=0.0)
        patch = patch_of(scene, replace(actor, smear=0.0), 0)
        if patch is not None:
            lay_colour(picture, patch)
            lay_label(covered, patch, 1)
    stage.backdrop[..., :3] = to_bytes(picture)
    stage.backdrop[..., 3][covered == 1] = 0

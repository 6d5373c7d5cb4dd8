from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sam2.utils.drawn_clips import MIN_VISIBLE, DrawnClip, casting, random_clip, textures
from sam2.utils.drawn_clips.effects import clear_lens
from sam2.utils.drawn_clips.motion import Track, draw_clock
from sam2.utils.drawn_clips.painting import draw_patch
from sam2.utils.drawn_clips.random_clips import draw_scene
from sam2.utils.drawn_clips.scene import render
from sam2.utils.drawn_clips.shapes import Figure, chain, scale_of

SEEDS = range(24)


@pytest.fixture(scope="module")
def clips() -> list[DrawnClip]:
    return [random_clip(seed, 8, 64, difficulty=1.0) for seed in SEEDS]


def areas(clip: DrawnClip) -> np.ndarray:
    """Pixels of each id in each frame, (T, ids)."""
    return np.stack([np.bincount(labels.ravel(), minlength=clip.labels.max() + 1)[1:] for labels in clip.labels])


def stage(num_frames: int, difficulty: float = 1.0, seed: int = 0) -> casting.Stage:
    return casting.Stage(
        clock=np.arange(num_frames, dtype=float),
        world=np.array([256.0, 256.0]),
        squeeze=np.ones(2),
        backdrop=np.full((384, 384, 4), 100, np.uint8),
        difficulty=difficulty,
        light=0.5,
        follows=1.0,
        wet=False,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("size, shape", [(64, (64, 64)), ((64, 96), (64, 96)), ((96, 64), (96, 64))])
def test_a_clip_is_rgb_frames_with_one_label_map_each(size, shape):
    clip = random_clip(0, 3, size)
    assert (clip.frames.shape, clip.frames.dtype) == ((3, *shape, 3), np.uint8)
    assert (clip.labels.shape, clip.labels.dtype) == ((3, *shape), np.uint8)


def test_the_seed_decides_everything(clips):
    again = random_clip(SEEDS[5], 8, 64, difficulty=1.0)
    np.testing.assert_array_equal(again.frames, clips[5].frames)
    np.testing.assert_array_equal(again.labels, clips[5].labels)
    assert not np.array_equal(clips[5].frames, clips[6].frames)


def test_a_clip_does_not_depend_on_those_drawn_before():
    later = [random_clip(seed, 2, 64) for seed in (1, 2)][1]
    np.testing.assert_array_equal(random_clip(2, 2, 64).frames, later.frames)


def test_every_object_is_seen_in_the_first_frame_and_none_comes_later(clips):
    for clip in clips:
        assert 1 <= clip.labels.max() <= 3
        assert (areas(clip)[0] >= MIN_VISIBLE * 64 * 64).all()


def test_there_are_at_most_as_many_objects_as_wanted():
    assert {int(random_clip(seed, 1, 64, max_objects=1).labels.max()) for seed in range(8)} == {1}
    assert max(int(random_clip(seed, 1, 96, max_objects=6).labels.max()) for seed in range(16)) > 3


def test_a_plain_object_is_shown_when_no_other_can_be_seen(monkeypatch):
    nobody = casting.draw_cast

    def unseen(stage, max_objects):
        return [replace(actor, present=np.zeros(2, bool)) for actor in nobody(stage, max_objects)]

    monkeypatch.setattr("sam2.utils.drawn_clips.random_clips.draw_cast", unseen)
    clip = random_clip(0, 2, 64)
    assert set(np.unique(clip.labels[0])) == {0, 1}
    assert 0.01 < np.mean(clip.labels[0] == 1) < 0.12


def test_objects_are_small_and_large():
    shares = np.concatenate([areas(random_clip(seed, 1, 96, difficulty=0.8))[0] / 96**2 for seed in range(40)])
    assert shares.min() < 0.012 and shares.max() > 0.15
    assert 0.01 < np.median(shares) < 0.1


def test_objects_are_hidden_or_leave_and_some_come_back(clips):
    gone = [column == 0 for clip in clips for column in areas(clip).T]
    assert sum(column.any() for column in gone) >= 3
    assert any((np.diff(column.astype(int)) == -1).any() for column in gone)


def test_some_objects_touch(clips):
    touching = 0
    for clip in clips:
        left, right = clip.labels[0, :, :-1], clip.labels[0, :, 1:]
        touching += bool(np.any((left != right) & (left > 0) & (right > 0)))
    assert touching >= 3


def test_easy_clips_are_calmer_than_difficult_ones():
    change = {
        difficulty: np.mean(
            [np.mean(np.diff(random_clip(seed, 2, 64, difficulty=difficulty).labels > 0, axis=0)) for seed in range(20)]
        )
        for difficulty in (0.0, 1.0)
    }
    assert change[0.0] < 0.6 * change[1.0]


def test_nothing_moves_while_time_stands_still():
    rng = np.random.default_rng(3)
    scene = draw_scene(4, (64, 64), 1.0, 3, rng)
    clock = np.array([0.0, 1.0, 1.0, 2.0])
    table = clock.astype(int)
    actors = []
    for actor in scene.actors:
        matrices = actor.track.matrices[table]
        matrices[:, 0, 2] += 6 * clock  # fast enough to be smeared
        actors.append(replace(actor, smear=0.7, track=Track(matrices, actor.track.pace[table])))
    camera = scene.camera._replace(linear=scene.camera.linear[table], shift=scene.camera.shift[table])
    held = replace(scene, clock=clock, camera=camera, actors=tuple(actors), lens=clear_lens(4))
    frames, labels = render(held, rng)
    np.testing.assert_array_equal(frames[1], frames[2])
    np.testing.assert_array_equal(labels[1], labels[2])
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[2], frames[3])


def test_some_clips_have_still_spells(monkeypatch):
    spells = []

    def watched(*args):
        spells.append(clock := draw_clock(*args))
        return clock

    monkeypatch.setattr("sam2.utils.drawn_clips.random_clips.draw_clock", watched)
    for seed in range(12):
        random_clip(seed, 4, 64)
    assert 1 <= sum(bool((np.diff(clock) == 0).any()) for clock in spells) <= 8


def test_a_crosser_meets_its_target_and_is_away_from_it_in_the_first_frame():
    away = 0
    for seed in range(12):
        scene = stage(8, seed=seed)
        target = casting.draw_actor(scene, casting.figures.draw_blob(scene.rng), share=0.05, speed=0.0)
        crosser = casting._crosser(scene, target)
        gaps = np.hypot(*(crosser.track.matrices[..., 2] - target.track.matrices[..., 2]).T)
        assert gaps.min() < 1.5 * scale_of(target.track.matrices[0])
        assert gaps[2:].min() == gaps.min() and crosser.obj_id == 0
        away += gaps[0] > scale_of(target.track.matrices[0])
    assert away >= 6


def test_a_look_alike_has_its_models_colours():
    scene = stage(4)
    model = casting.draw_actor(scene, casting.figures.draw_person(scene.rng))
    means = np.array([tile[..., :3].mean() for tile in model.look.tiles])
    for _ in range(6):
        twin = casting._look_alike(scene, model)
        assert twin.obj_id == 0
        np.testing.assert_allclose([tile[..., :3].mean() for tile in twin.look.tiles], means, rtol=0.5)
        assert not np.allclose(twin.track.matrices[0], model.track.matrices[0])


def test_a_rider_goes_where_its_mount_goes():
    scene = stage(6, seed=4)
    mount = casting.draw_actor(scene, casting.figures.draw_vehicle(scene.rng), speed=5.0)
    rider = casting._rider(scene, mount)
    inverse = np.linalg.inv(mount.track.matrices[:, :, :2])
    seat = np.einsum("tij,tj->ti", inverse, rider.track.matrices[..., 2] - mount.track.matrices[..., 2])
    np.testing.assert_allclose(seat, np.broadcast_to(seat[0], seat.shape), atol=1e-9)


def seats(outer: list[np.ndarray], inner: np.ndarray) -> np.ndarray:
    """Where something is, (T, 2, 3), in the coordinates of something else."""
    pairs = zip(outer, inner, strict=True)
    return np.stack([np.linalg.solve(o[:, :2], np.column_stack([i[:, :2], i[:, 2] - o[:, 2]])) for o, i in pairs])


def test_a_pack_goes_where_the_part_goes_that_it_sits_on():
    scene = stage(6, seed=4)
    wearer = casting.draw_actor(scene, casting.figures.draw_person(scene.rng), speed=5.0)
    wearer = replace(wearer, track=wearer.track._replace(pace=np.linspace(0, 4, 6)))
    placements = [wearer.figure.placements(pace) for pace in wearer.track.pace]
    worn = []
    for _ in range(60):
        pack = casting._pack(scene, wearer)
        still = []  # the parts in whose own coordinates it neither moves nor turns
        for number in range(len(wearer.figure.parts)):
            limbs = [chain(m, own[number]) for m, own in zip(wearer.track.matrices, placements, strict=True)]
            if np.ptp(seats(limbs, pack.track.matrices), axis=0).max() < 1e-6:
                still.append(number)
        assert still
        worn.append(still[0])
    assert len(set(worn)) >= 4 and worn.count(0) == max(worn.count(part) for part in worn)  # the trunk is the largest


def test_a_pack_is_smaller_than_its_wearer():
    scene = stage(6, seed=4)
    for maker in (casting.figures.draw_rope, casting.figures.draw_blob):
        wearer = casting.draw_actor(scene, maker(scene.rng), share=0.1)
        for _ in range(20):
            pack = casting._pack(scene, wearer)
            (area, reach), (own_area, own_reach) = pack.figure.extent(), wearer.figure.extent()
            size = scale_of(pack.track.matrices[0]) / scale_of(wearer.track.matrices[0])
            assert size**2 * area < 0.81 * own_area and size * reach < 1.21 * own_reach


def test_strings_are_as_thin_as_a_few_pixels_and_long():
    scene = replace(stage(2, seed=3), world=np.array([480.0, 480.0]))
    holder = casting.draw_actor(scene, casting.figures.draw_person(scene.rng), share=0.1, start=scene.world / 2)
    widths, lengths, counts = [], [], []
    for _ in range(60):
        strings = casting._strings(scene, holder)
        counts.append(len(strings.figure.parts))
        line = strings.figure.parts[0]
        matrix = strings.track.matrices[0] @ np.diag([1.0, 1.0, 0.0])
        matrix[:, 2] = 1000
        lone = replace(
            strings, figure=Figure((replace(line, material=0),)), bend=None, look=replace(strings.look, blur=0)
        )
        patch = draw_patch(lone, matrix, 0.0, (2000, 2000))
        lengths.append(cv2.arcLength((scale_of(matrix) * line.contours[0]).astype(np.float32), True) / 2)
        widths.append((patch.paint[..., 3] >= 127.5).sum() / lengths[-1])
    assert 1 < min(widths) and max(widths) < 7 and 2 < np.median(widths) < 4
    assert np.median(lengths) > 60 and min(counts) == 1 and max(counts) > 5


def test_strings_follow_what_holds_them_or_are_by_themselves():
    scene = stage(6, seed=4)
    holder = casting.draw_actor(scene, casting.figures.draw_blob(scene.rng), speed=5.0)
    held = 0
    for _ in range(60):
        strings = casting._strings(scene, holder)
        held += np.ptp(seats(list(holder.track.matrices), strings.track.matrices), axis=0).max() < 1e-6
    assert 25 <= held <= 53  # of 60, at a chance of 0.65


def test_packs_and_strings_are_objects_right_before_or_behind_their_holders_who_do_not_bend(monkeypatch):
    monkeypatch.setattr(casting, "_strings", lambda scene, holder: replace(holder, smear=3.0))
    monkeypatch.setattr(casting, "_pack", lambda scene, holder: replace(holder, smear=2.0))
    before = own = part = 0
    for seed in range(40):
        scene = stage(2, difficulty=0.5, seed=seed)
        actors = [casting.draw_actor(scene, casting.figures.draw_blob(scene.rng)) for _ in range(3)]
        bent = casting._draw_bend(scene)
        actors = [replace(actor, bend=bent, smear=0.0, obj_id=i) for i, actor in enumerate(actors)]
        plain, first, second = [a.track for a in actors]
        dressed = casting._with_worn(replace(scene, packs=1.0, strings=1.0), actors, 4)
        assert dressed[0].track is plain and dressed[0].bend is bent  # it has no label, and wears nothing
        assert [a.track is first for a in dressed[1:4]] == [True] * 3 and len(dressed) == 7
        for layers in (dressed[1:4], dressed[4:]):
            (holder,) = [a for a in layers if a.smear == 0]
            (pack,) = [a for a in layers if a.smear == 2]
            assert holder.bend is None and holder.obj_id in (1, 2)
            before += layers.index(pack) > layers.index(holder)
            part += pack.obj_id == holder.obj_id
            own += pack.obj_id > 2
        ids = [a.obj_id for a in dressed if a.smear == 3] + [a.obj_id for a in dressed if a.smear == 2 and a.obj_id > 2]
        assert sorted(set(ids) - {0}) == [3, 4] and sum(i > 0 for i in ids) == 2  # at most so many objects
    assert before > 50 and part > 3 and own > 30


def test_packs_and_strings_come_only_when_they_are_asked_for():
    def objects(**chances: float) -> int:
        return sum(int(random_clip(seed, 1, 96, max_objects=6, **chances).labels.max()) for seed in range(16))

    few = objects()
    assert objects(packs=1.0) > few + 4 and objects(strings=1.0) > few + 4


def test_without_photographs_clips_are_drawn_from_noise_alone(monkeypatch):
    monkeypatch.setattr(textures, "_photos", lambda: ())
    clip = random_clip(0, 1, 64)
    assert clip.labels.any() and clip.frames.std() > 5


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, 0, 64), {}, "num_frames must be at least 1, got 0"),
        ((0, 1, 32), {}, "size must be at least 64 pixels each way, got 32 x 32"),
        ((0, 1, (64, 32)), {}, "size must be at least 64 pixels each way, got 64 x 32"),
        ((0, 1, 64), {"difficulty": 1.5}, "difficulty must be 0 to 1, got 1.5"),
        ((0, 1, 64), {"max_objects": 0}, "max_objects must be 1 to 255, got 0"),
        ((0, 1, 64), {"packs": 1.5}, "packs must be 0 to 1, got 1.5"),
        ((0, 1, 64), {"strings": -0.1}, "strings must be 0 to 1, got -0.1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        random_clip(*arguments, **options)

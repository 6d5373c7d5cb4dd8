from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sam2.utils.drawn_clips import MIN_VISIBLE, DrawnClip, casting, random_clip, textures
from sam2.utils.drawn_clips.effects import clear_lens
from sam2.utils.drawn_clips.motion import Track, draw_clock
from sam2.utils.drawn_clips.random_clips import draw_scene
from sam2.utils.drawn_clips.scene import render
from sam2.utils.drawn_clips.shapes import chain, scale_of

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


def test_a_pack_goes_where_the_part_goes_that_it_sits_on():
    scene = stage(6, seed=4)
    wearer = casting.draw_actor(scene, casting.figures.draw_person(scene.rng), speed=5.0)
    wearer = replace(wearer, track=wearer.track._replace(pace=np.linspace(0, 4, 6)))
    placements = [wearer.figure.placements(pace) for pace in wearer.track.pace]
    wide = scale_of(wearer.track.matrices[0])
    worn = []
    for _ in range(30):
        pack = casting._pack(scene, wearer)
        area = pack.figure.extent()[0] * scale_of(pack.track.matrices[0]) ** 2
        assert 0.09 < area / (wearer.figure.extent()[0] * wide**2) < 0.81
        still = []  # the parts in whose own coordinates it does not move
        for number in range(len(wearer.figure.parts)):
            seats = []
            for whole, own, held in zip(wearer.track.matrices, placements, pack.track.matrices, strict=True):
                limb = chain(whole, own[number])
                seats.append(np.linalg.solve(limb[:, :2], held[:, 2] - limb[:, 2]))
            if np.ptp(seats, axis=0).max() < 1e-6:
                still.append(number)
        assert still
        worn.append(still[0])
    assert len(set(worn)) >= 4 and worn.count(0) >= 5  # mostly the trunk, the largest


def test_strings_are_as_thin_as_a_few_pixels_and_long():
    scene = stage(2, seed=3)
    holder = casting.draw_actor(scene, casting.figures.draw_person(scene.rng), share=0.1)
    widths, lengths, counts, held = [], [], [], 0
    for _ in range(40):
        strings = casting._strings(scene, holder)
        scale = scale_of(strings.track.matrices[0])
        for part in strings.figure.parts:
            outline = scale * part.contours[0].astype(np.float32)
            lengths.append(cv2.arcLength(outline, True) / 2)
            widths.append(cv2.contourArea(outline) / lengths[-1])
        counts.append(len(strings.figure.parts))
        held += strings.track.pace is holder.track.pace
    assert 0.6 < min(widths) and max(widths) < 2.7  # of 256 pixels
    assert np.median(lengths) > 25 and min(counts) == 1 and max(counts) > 5 and 20 <= held < 35


def test_strings_follow_what_holds_them():
    scene = stage(6, seed=4)
    holder = casting.draw_actor(scene, casting.figures.draw_blob(scene.rng), speed=5.0)
    on = [s for s in (casting._strings(scene, holder) for _ in range(12)) if s.track.pace is holder.track.pace]
    assert on
    for strings in on:
        for t in (0, 3, 5):
            outer, inner = holder.track.matrices[t], strings.track.matrices[t]
            seat = np.linalg.solve(outer[:, :2], np.column_stack([inner[:, :2], inner[:, 2] - outer[:, 2]]))
            if t == 0:
                first = seat
            np.testing.assert_allclose(seat, first, atol=1e-9)


@pytest.mark.parametrize("name", ["packs", "strings"])
def test_packs_and_strings_are_labelled_beside_what_has_them_and_come_only_when_asked_for(monkeypatch, name):
    drawn = []
    original = {"packs": casting._pack, "strings": casting._strings}[name]

    def watched(scene, holder):
        drawn.append(original(scene, holder))
        return drawn[-1]

    monkeypatch.setattr(casting, original.__name__, watched)
    for seed in range(12):
        random_clip(seed, 1, 64)
    assert not drawn
    labelled = 0
    for seed in range(12):
        scene = stage(2, difficulty=0.5, seed=seed)
        drawn.clear()
        actors = casting.draw_cast(replace(scene, **{name: 1.0}), 3)
        assert drawn
        labelled += sum(any(one.figure is a.figure and a.obj_id > 0 for a in actors) for one in drawn)
        assert max(a.obj_id for a in actors) <= 3
    assert labelled >= 10


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

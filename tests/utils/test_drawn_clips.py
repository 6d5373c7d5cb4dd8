from __future__ import annotations

import numpy as np
import pytest

from sam2.utils.davis import read_label_map
from sam2.utils.drawn_clips import DASH_FRAMES, Event, draw_clip, write_davis_layout


def changed(clip_frames: np.ndarray, t: int) -> bool:
    return not np.array_equal(clip_frames[t], clip_frames[t - 1])


def centre_x(labels: np.ndarray) -> float:
    return float(np.nonzero(labels)[1].mean())


def test_a_clip_is_rgb_frames_with_one_label_map_each():
    clip = draw_clip(3, 48, 64, 2, seed=0)
    assert (clip.frames.shape, clip.frames.dtype) == ((3, 48, 64, 3), np.uint8)
    assert (clip.labels.shape, clip.labels.dtype) == ((3, 48, 64), np.uint8)
    assert set(np.unique(clip.labels)) == {0, 1, 2}


def test_the_seed_decides_everything():
    first, again, other = (draw_clip(4, 64, 64, 2, seed, noise=2.0) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("seed", range(8))
def test_every_object_is_in_the_first_frame(seed):
    clip = draw_clip(1, 128, 128, 4, seed)
    areas = np.bincount(clip.labels[0].ravel(), minlength=5)[1:]
    assert (areas > 100).all()


def test_the_labels_are_where_the_object_is_drawn():
    # What changes when an object vanishes is the object, save the shadow, which only darkens, and half-covered pixels.
    clip = draw_clip(2, 128, 128, 1, 5, motion="still", events=[Event(1, 1, "vanish")])
    assert not clip.labels[1].any()
    change = np.abs(clip.frames[0].astype(int) - clip.frames[1]).max(axis=-1)
    brighter = (clip.frames[0].astype(int) - clip.frames[1]).max(axis=-1) > 12
    inside = clip.labels[0] == 1
    assert np.mean(change[inside] > 3) > 0.97
    assert np.mean(inside[brighter]) > 0.95


@pytest.mark.parametrize("motion", ["slow", "smooth", "fast"])
def test_objects_move_in_every_frame(motion):
    clip = draw_clip(6, 96, 96, 1, 1, motion=motion)
    assert all(changed(clip.frames, t) for t in range(1, 6))


def test_faster_motion_goes_further():
    ways = []
    for motion in ("slow", "smooth", "fast"):
        x = [centre_x(labels) for labels in draw_clip(4, 128, 128, 1, 2, motion=motion).labels]
        ways.append(abs(x[-1] - x[0]))
    assert ways[0] < ways[1] < ways[2]


def test_nothing_moves_in_still_frames_and_motion_goes_on_after_them():
    clip = draw_clip(8, 64, 64, 2, 0, camera_shift=2.0, still=range(3, 6))
    assert [changed(clip.frames, t) for t in range(1, 8)] == [True, True, False, False, False, True, True]
    without = draw_clip(5, 64, 64, 2, 0, camera_shift=2.0)
    np.testing.assert_array_equal(clip.frames[6:], without.frames[3:])


def test_without_motion_camera_or_events_all_frames_are_one_picture():
    clip = draw_clip(4, 64, 64, 2, 0, motion="still")
    assert not any(changed(clip.frames, t) for t in range(1, 4))


def test_noise_changes_still_frames_and_no_label():
    clip = draw_clip(2, 64, 64, 1, 0, motion="still", noise=3.0)
    difference = clip.frames[1].astype(float) - clip.frames[0]
    assert np.std(difference) == pytest.approx(3.0 * np.sqrt(2), rel=0.05)
    np.testing.assert_array_equal(clip.labels[0], clip.labels[1])


def test_the_camera_shifts_background_and_objects_alike():
    clip = draw_clip(2, 128, 128, 1, 0, camera_shift=4.0, motion="slow")
    without = draw_clip(2, 128, 128, 1, 0, motion="slow")
    np.testing.assert_array_equal(clip.labels[0], without.labels[0])
    shift = centre_x(clip.labels[1]) - centre_x(without.labels[1])
    corner = clip.frames[:, :24, :24].astype(int)
    assert abs(shift) > 1
    rolled = np.roll(corner[0], round(shift), axis=1)[:, 6:-6]
    assert np.abs(rolled - corner[1][:, 6:-6]).mean() < np.abs(corner[0] - corner[1])[:, 6:-6].mean()


def test_an_object_appears_and_another_vanishes_in_a_still_scene():
    clip = draw_clip(6, 96, 96, 2, 4, motion="still", events=[Event(2, 1, "appear"), Event(4, 2, "vanish")])
    assert [set(np.unique(labels)) - {0} for labels in clip.labels] == [{2}, {2}, {1, 2}, {1, 2}, {1}, {1}]
    assert [changed(clip.frames, t) for t in range(1, 6)] == [False, True, False, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_a_dash_crosses_the_picture_in_a_still_scene(seed):
    clip = draw_clip(8, 96, 128, 1, seed, motion="still", events=[Event(2, 1, "dash")])
    assert [changed(clip.frames, t) for t in range(1, 8)] == [2 <= t < 2 + DASH_FRAMES for t in range(1, 8)]
    start, end = centre_x(clip.labels[1]), centre_x(clip.labels[-1])
    assert (start < 64) != (end < 64) and abs(end - start) > 0.2 * 128


def test_objects_hide_one_another():
    revealed = []
    for obj_id in range(1, 21):
        before, after = draw_clip(2, 64, 64, 20, 0, motion="still", events=[Event(1, obj_id, "vanish")]).labels
        others = before != obj_id
        np.testing.assert_array_equal(before[others], after[others])
        revealed.append(bool(after[~others].any()))
    assert any(revealed) and not all(revealed)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, 64, 64, 1, 0), {}, "num_frames must be at least 1, got 0"),
        ((1, 64, 16, 1, 0), {}, "height and width must be at least 32, got 64 and 16"),
        ((1, 64, 64, 21, 0), {}, "num_objects must be 1 to 20, got 21"),
        ((1, 64, 64, 1, 0), {"motion": "quick"}, "motion must be one of still, slow, smooth, fast, got 'quick'"),
        ((4, 64, 64, 1, 0), {"events": [Event(4, 1, "dash")]}, "events: .* is not of frames 0 to 3 and objects 1 to 1"),
        ((4, 64, 64, 1, 0), {"events": [Event(3, 2, "dash")]}, "events: .* is not of frames 0 to 3 and objects 1 to 1"),
        (
            (4, 64, 64, 1, 0),
            {"events": [Event._make((3, 1, "jump"))]},
            "kind must be appear, vanish or dash, got 'jump'",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        draw_clip(*arguments, **options)


def test_the_davis_layout_holds_what_was_drawn(tmp_path):
    clips = {"one": draw_clip(3, 64, 96, 2, 0), "two": draw_clip(2, 48, 48, 1, 1)}
    root = write_davis_layout(tmp_path / "drawn", clips)
    assert root.sequences("val") == ["one", "two"]
    for name, clip in clips.items():
        maps = [read_label_map(path) for path in root.annotation_paths(name)]
        np.testing.assert_array_equal(maps, clip.labels)
        assert len(root.frame_paths(name)) == len(clip.frames)

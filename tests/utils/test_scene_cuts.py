"""Where a video cuts to another scene."""

import cv2
import numpy as np
import pytest

from sam2.utils.davis import DavisRoot
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.scene_cuts import ColourWatch, colour_distance, colour_histogram


def plain(*colour, size=(64, 96)):
    return np.full((*size, 3), colour, np.uint8)


def test_the_distance_is_the_share_of_pixels_with_other_colours():
    red, half = plain(200, 20, 20), plain(200, 20, 20)
    half[:, 48:] = (20, 20, 200)
    histograms = [colour_histogram(each) for each in (red, half, plain(20, 200, 20))]
    assert histograms[0].shape == (32, 64, 64)
    assert [h.sum() for h in histograms] == pytest.approx([1, 1, 1], abs=1e-4)
    assert colour_distance(histograms[0], histograms[0]) == 0
    assert colour_distance(histograms[0], histograms[1]) == pytest.approx(0.5, abs=1e-3)
    assert colour_distance(histograms[0], histograms[2]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("colour", [(127, 127, 127), (127, 120, 110), (120, 120, 120), (0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("step", [(1, 1, 1), (0, 1, 0), (3, 3, 3), (-2, 0, 2)])
def test_a_change_of_light_by_a_little_is_none_on_flat_backgrounds_either(colour, step):
    other = np.clip(np.add(colour, step), 0, 255)
    assert colour_distance(colour_histogram(plain(*colour)), colour_histogram(plain(*other))) < 0.35


def test_where_colours_are_makes_no_difference():
    frame = np.random.default_rng(0).integers(0, 255, (270, 360, 3)).astype(np.uint8)
    assert colour_distance(colour_histogram(frame), colour_histogram(frame[::-1, ::-1])) < 0.1
    assert colour_distance(colour_histogram(frame), colour_histogram(cv2.flip(frame, 0))) < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (89, 4), (1080, 1920)])
def test_frames_of_all_sizes(shape):
    assert colour_histogram(np.zeros((*shape, 3), np.uint8)).sum() == pytest.approx(1)


def test_only_neighbours_are_compared():
    watch, red, blue = ColourWatch(), plain(200, 20, 20), plain(20, 20, 200)
    assert watch.change(5, red) is None  # nothing was there before
    assert watch.change(6, blue) == pytest.approx(1, abs=1e-3)
    assert watch.change(6, red) == pytest.approx(1, abs=1e-3)  # the answer that it got
    assert watch.change(5, red) is None  # again, after an edit
    assert watch.change(9, blue) is None  # somewhere else
    assert watch.change(10, blue) == 0
    back = ColourWatch(reverse=True)
    assert back.change(6, blue) is None
    assert back.change(5, red) == pytest.approx(1, abs=1e-3)
    assert back.change(6, blue) is None


def test_motion_and_light_of_drawn_clips_are_no_cuts():
    clips = [draw_clip(12, 96, 128, num_objects=2, seed=seed) for seed in range(8)]
    watch = ColourWatch()
    joined = [frame for clip in clips for frame in clip.frames]
    changes = [watch.change(t, frame) or 0 for t, frame in enumerate(joined)]
    starts = {12 * k for k in range(1, 8)}
    assert max(change for t, change in enumerate(changes) if t not in starts) < 0.3
    assert min(changes[t] for t in starts) > 0.4


def test_real_clips_one_after_the_other(shared):
    root = DavisRoot.open(shared / "davis_mini")
    clips = [[cv2.imread(str(path))[..., ::-1] for path in root.frame_paths(name)] for name in root.sequences("val")]
    watch = ColourWatch()
    changes = [watch.change(t, frame) or 0 for t, frame in enumerate(frame for clip in clips for frame in clip)]
    start = len(clips[0])
    assert changes[start] > 0.7
    assert max(changes[:start] + changes[start + 1 :]) < 0.1

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sam2.utils.drawn_clips.backdrops import draw_backdrop
from sam2.utils.drawn_clips.effects import Lens, clear_lens, develop, draw_grain
from sam2.utils.drawn_clips.figures import draw_canopy, draw_figure
from sam2.utils.drawn_clips.motion import Camera, Track, draw_camera, draw_clock, draw_path, rotation
from sam2.utils.drawn_clips.painting import Actor, Bend, Look, Patch, draw_patch, lay_colour, lay_label, mirrored
from sam2.utils.drawn_clips.scene import Scene, paint_frame, patch_of, sight
from sam2.utils.drawn_clips.shapes import Figure, Part, capsule, chain, ellipse, place, roughened, scaled
from sam2.utils.drawn_clips.textures import TILE, draw_tile

SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def look(grey: int, **options) -> Look:
    tile = np.full((8, 8, 4), grey, np.uint8)
    tile[..., 3] = 255
    return Look((tile,), grain=8.0, **options)


def square(x: float, y: float, half: float, grey: int, obj_id: int, num_frames: int = 1, **options) -> Actor:
    matrix = np.array([[half, 0.0, x], [0.0, half, y]])
    track = Track(np.repeat(matrix[None], num_frames, axis=0), np.zeros(num_frames))
    return Actor(Figure((Part((SQUARE,)),)), look(grey, **options), track, obj_id)


def scene(*actors: Actor, num_frames: int = 1, size: int = 32) -> Scene:
    backdrop = np.zeros((size, size, 4), np.uint8)
    camera = Camera(np.repeat(np.eye(2)[None], num_frames, axis=0), np.zeros((num_frames, 2)), np.full(2, size / 2))
    clock = np.arange(num_frames, dtype=float)
    return Scene((size, size), np.ones(2), clock, camera, backdrop, 1.0, actors, clear_lens(num_frames))


def paint(*actors: Actor) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((32, 32), np.uint8)
    return paint_frame(scene(*actors), 0, labels)[..., 0], labels


def test_a_pixel_has_the_id_of_the_nearest_object_and_its_colour():
    picture, labels = paint(square(12, 16, 6, 100, 1), square(20, 16, 6, 200, 2))
    assert labels[16, 8] == 1 and labels[16, 16] == labels[16, 24] == 2 and labels[2, 2] == 0
    assert [picture[16, x] for x in (8, 16, 24)] == pytest.approx([100, 200, 200])
    assert picture[2, 2] == 0


def test_a_label_is_where_at_least_half_of_the_pixel_is_covered():
    picture, labels = paint(square(16.3, 15.6, 6.4, 200, 1))
    np.testing.assert_array_equal(labels == 1, picture >= 100)
    assert np.any((picture > 0) & (picture < 200))


def test_what_has_no_id_takes_away_the_labels_behind_it():
    _, labels = paint(square(16, 16, 8, 100, 1), square(16, 16, 4, 200, 0))
    assert labels[16, 16] == 0 and labels[16, 9] == 1


def test_what_one_sees_through_takes_no_labels():
    picture, labels = paint(square(16, 16, 8, 100, 1), square(16, 16, 4, 200, 0, opacity=0.4))
    assert labels[16, 16] == 1
    assert picture[16, 16] == pytest.approx(0.6 * 100 + 0.4 * 200, abs=0.5)


def test_a_shadow_darkens_and_has_no_label():
    ground = square(16, 16, 16, 100, 0)
    picture, labels = paint(ground, square(10, 10, 4, 200, 1, shadow=0.5, drop=(8.0, 8.0)))
    assert picture[18, 18] < 80 and labels[18, 18] == 0
    assert picture[10, 10] == pytest.approx(200)


def test_a_reflection_lies_below_its_object_and_has_no_label():
    picture, labels = paint(square(16, 10, 5, 200, 1, reflection=0.5))
    assert 30 < picture[18, 16] < 110 and not labels[17:].any()
    assert picture[28, 16] == 0


def test_a_reflection_is_upside_down():
    colours = np.full((4, 3, 4), 255, np.float32)
    colours[..., 0] = np.arange(4)[:, None] * 50
    below = mirrored(Patch(5, 10, colours), 14, 1.0, None)
    assert (below.x, below.y) == (5, 14)
    assert below.paint[0, 1, 0] > below.paint[2, 1, 0]


def test_what_is_not_present_is_not_painted():
    actor = square(16, 16, 6, 200, 1, num_frames=2)
    there = scene(replace(actor, present=np.array([True, False])), num_frames=2)
    assert sight(there, 0).seen[1] > 100 and sight(there, 1).seen[1] == 0


def test_sight_counts_what_is_seen_and_what_would_be():
    first = sight(scene(square(16, 16, 8, 100, 1), square(16, 16, 4, 200, 2)), 0)
    assert first.whole[1] > first.seen[1] > 0
    assert first.seen[1] + first.seen[2] == first.whole[1]


def test_a_moving_thing_is_smeared_along_its_way():
    matrices = np.repeat(np.array([[[4.0, 0, 12], [0, 4.0, 16]]]), 2, axis=0)
    matrices[1, 0, 2] = 22
    actor = replace(square(0, 0, 1, 200, 1), track=Track(matrices, np.zeros(2)), smear=0.8)
    blurred = patch_of(scene(actor, num_frames=2), actor, 1)
    sharp = patch_of(scene(actor, num_frames=2), replace(actor, smear=0.0), 1)
    assert blurred is not None and sharp is not None
    rows, columns = (np.ptp(np.nonzero(blurred.paint[..., 3] > 20), axis=1) + 1).tolist()
    assert columns > rows + 4
    assert blurred.paint[..., 3].sum() == pytest.approx(sharp.paint[..., 3].sum(), rel=0.02)


def test_outside_the_picture_there_is_nothing_to_paint():
    assert draw_patch(square(0, 0, 1, 9, 1), np.array([[4.0, 0, -9], [0, 4.0, 16]]), 0.0, (32, 32)) is None


def test_a_part_of_a_thing_is_painted_at_the_edge_as_it_is_inside():
    actor, matrix = square(0, 0, 1, 200, 1), np.array([[6.0, 0, 30.4], [0, 6.0, 16.2]])
    small, large = np.zeros((32, 32, 3), np.float32), np.zeros((32, 64, 3), np.float32)
    for picture in (small, large):
        patch = draw_patch(actor, matrix, 0.0, picture.shape[:2])
        assert patch is not None
        lay_colour(picture, patch)
    np.testing.assert_array_equal(small, large[:, :32])


def test_a_bend_displaces_picture_and_label_alike():
    fields = np.zeros((5, 5, 2), np.float32)
    fields[..., 0] = 0.5  # of the radius, to the left: what is seen at a point comes from its right
    straight, bent = square(16, 16, 6, 200, 1), square(16, 16, 6, 200, 1)
    bent = replace(bent, bend=Bend(np.zeros_like(fields), fields, 1.0))
    _, before = paint(straight)
    picture, after = paint(bent)
    np.testing.assert_array_equal(np.roll(before, -3, axis=1), after)
    np.testing.assert_array_equal(after == 1, picture >= 100)


def test_labels_laid_are_counted_inside_the_picture_only():
    labels = np.zeros((8, 8), np.uint8)
    patch = Patch(-2, 5, np.full((6, 6, 4), 255, np.float32))
    assert lay_label(labels, patch, 7) == 4 * 3 == np.count_nonzero(labels == 7)


# Shapes and figures


def test_a_part_hangs_on_its_parents_joint_and_turns_with_it():
    quarter = np.pi / 2
    parent = Part((SQUARE,), joint=(1.0, 0.0), angle=quarter)
    child = Part((SQUARE,), joint=(2.0, 0.0), parent=0)
    placements = Figure((parent, child)).placements(0.0)
    np.testing.assert_allclose(place(placements[1], np.array([[0.0, 0.0], [1.0, 0.0]])), [[1, 2], [1, 3]], atol=1e-12)


def test_limbs_swing_with_the_pace_and_wheels_spin():
    swinging = Figure((Part((SQUARE,), swing=0.3), Part((SQUARE,), spin=1.0)))
    limb, wheel = swinging.placements(np.pi / 2)
    assert np.arctan2(limb[1, 0], limb[0, 0]) == pytest.approx(0.3)
    assert np.arctan2(wheel[1, 0], wheel[0, 0]) == pytest.approx(np.pi / 2)


def test_the_extent_of_a_disc_is_known():
    area, furthest = Figure((Part((ellipse(1, 1),)),)).extent()
    assert area == pytest.approx(np.pi, rel=0.04) and furthest == pytest.approx(1)


def test_a_hole_is_no_part_of_a_ring():
    area, _ = Figure((Part((ellipse(1, 1), ellipse(0.5, 0.5))),)).extent()
    assert area == pytest.approx(0.75 * np.pi, rel=0.06)


def test_a_scaled_figure_keeps_its_joints():
    figure = Figure((Part((SQUARE,), joint=(1.0, 0.0)), Part((capsule(1, 0.1, 0.1),), joint=(1.0, 1.0), parent=0)))
    small = scaled(figure, 0.5, (3.0, 4.0))
    tip = place(figure.placements(0.0)[1], np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(place(small.placements(0.0)[1], np.array([[0.5, 0.0]])), 0.5 * tip + (3, 4))


def test_rough_outlines_keep_about_the_area():
    disc = Figure((Part((ellipse(1, 1),)),))
    rough = roughened(disc, 0.04, np.random.default_rng(0))
    assert rough.extent()[0] == pytest.approx(disc.extent()[0], rel=0.1)
    assert not np.allclose(rough.parts[0].contours[0][:10], disc.parts[0].contours[0][:10])


@pytest.mark.parametrize("seed", range(40))
def test_figures_fill_about_one_unit_and_number_their_materials_without_gaps(seed):
    rng = np.random.default_rng(seed)
    for figure in (draw_figure(rng), *draw_canopy(rng)):
        area, furthest = figure.extent()
        assert area > 0.005 and 0.2 < furthest < 3
        assert {part.material for part in figure.parts} <= set(range(figure.num_materials))
        assert all(part.parent < i for i, part in enumerate(figure.parts))


# Motion


def test_time_goes_on_by_one_but_for_still_spells():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(draw_clock(5, 0.0, rng), np.arange(5))
    steps = np.diff(draw_clock(9, 1.0, rng))
    assert set(steps) == {0.0, 1.0}


def test_the_camera_shows_the_world_as_it_is_in_the_first_frame():
    world = np.array([100.0, 60.0])
    camera = draw_camera(np.arange(6.0), world, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(camera.view(0, 1.0), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert not np.allclose(camera.view(5, 1.0), camera.view(0, 1.0))


def test_what_is_nearer_is_shifted_more_by_the_camera():
    camera = Camera(np.eye(2)[None], np.array([[4.0, -2.0]]), np.zeros(2))
    np.testing.assert_allclose(camera.view(0, 0.5)[:, 2], [2, -1])
    np.testing.assert_allclose(camera.view(0, 2.0)[:, 2], [8, -4])


def test_ways_begin_at_their_start_and_some_leave_and_come_back():
    world, clock = np.array([200.0, 100.0]), np.arange(24.0)
    returned = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        path = draw_path(clock, world / 2, 1.0, world, 1.0, rng)
        np.testing.assert_allclose(path[0], world / 2, atol=3)
        outside = (path[:, 0] < 0) | (path[:, 0] > world[0])
        returned += bool(outside.any() and not outside[-1])
    assert returned >= 3


def test_in_long_clips_things_stay_about_the_world():
    world = np.array([200.0, 100.0])
    for seed in range(10):
        path = draw_path(np.arange(300.0), world / 2, 4.0, world, 0.0, np.random.default_rng(seed))
        assert np.mean((path > -0.2 * world) & (path < 1.2 * world)) > 0.99


def test_a_rotation_is_clockwise_where_y_points_down():
    np.testing.assert_allclose(rotation(np.array([np.pi / 2]))[0] @ [1, 0], [0, 1], atol=1e-12)


def test_maps_are_chained_from_the_inside():
    double, shift = np.array([[2.0, 0, 0], [0, 2.0, 0]]), np.array([[1.0, 0, 3], [0, 1.0, 0]])
    np.testing.assert_allclose(place(chain(double, shift), np.array([[1.0, 1.0]])), [[8, 2]])


# Textures, backdrops and effects


def test_a_tile_near_a_colour_is_near_it():
    for seed in range(6):
        tile = draw_tile(np.random.default_rng(seed), near=np.array([200.0, 60.0, 30.0]))
        assert tile.shape == (TILE, TILE, 3)
        assert np.abs(tile.reshape(-1, 3).mean(0) - (200, 60, 30)).max() < 50


@pytest.mark.parametrize("seed", range(12))
def test_backdrops_have_the_size_wanted(seed):
    backdrop = draw_backdrop(70, 90, np.random.default_rng(seed), photos=seed % 2 == 0)
    assert (backdrop.shape, backdrop.dtype) == ((70, 90, 4), np.uint8)


def test_a_clear_lens_leaves_a_picture_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.float32)
    shown = develop(picture.copy(), clear_lens(1), 0, 0.0, np.empty(0), np.random.default_rng(0))
    np.testing.assert_array_equal(shown, picture)


def test_noise_is_as_strong_as_wanted_and_differs_from_frame_to_frame():
    rng, grey = np.random.default_rng(0), np.full((64, 64, 3), 128, np.float32)
    grain = draw_grain((64, 64), rng)
    first, second = (develop(grey.copy(), clear_lens(2, 5.0), t, t, grain, rng).astype(float) for t in range(2))
    assert first.std() == pytest.approx(5, rel=0.05)
    assert (first - second).std() == pytest.approx(5 * np.sqrt(2), rel=0.05)


def test_light_haze_and_jpeg_change_a_frame():
    grey = np.full((16, 16, 3), 100, np.float32)
    lens = Lens(gains=np.array([[1.5, 1.0, 0.5]]), offsets=np.array([51.0]))
    shown = develop(grey.copy(), lens, 0, 0.0, np.empty(0), np.random.default_rng(0))
    assert shown[0, 0].tolist() == [171, 131, 91]
    packed = develop(grey.copy(), replace(lens, quality=30), 0, 0.0, np.empty(0), np.random.default_rng(0))
    assert np.abs(packed[0, 0].astype(int) - (171, 131, 91)).max() < 12

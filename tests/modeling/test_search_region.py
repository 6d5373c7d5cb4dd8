"""Search regions: where they lie, how they change, what goes into them and comes back."""

import pytest
import torch

from sam2.modeling.outputs import PointInputs
from sam2.modeling.search_region import (
    Box,
    Region,
    Size,
    box_of_mask,
    box_of_points,
    logits_in_frame,
    logits_in_region,
    mask_in_region,
    next_region,
    points_in_region,
    region_around,
)

FRAME = Size(480, 854)


def centre(region):
    return region.left + region.width / 2, region.top + region.height / 2


# Where to look


def test_a_region_is_a_square_around_the_object_so_many_times_its_longer_side():
    region = region_around(Box(400, 200, 500, 280), FRAME, 2.0)
    assert region == Region(350, 140, 200, 200)


def test_a_region_is_never_smaller_than_a_quarter_of_the_frame():
    assert region_around(Box(400, 200, 404, 202), FRAME, 2.0) == Region(342, 141, 120, 120)


@pytest.mark.parametrize("box", [Box(0, 0, 90, 90), Box(764, 390, 854, 480), Box(0, 390, 40, 480)])
def test_a_region_at_the_edge_keeps_its_size_and_stays_inside(box):
    region = region_around(box, FRAME, 2.0)
    assert (region.width, region.height) == (180, 180)
    assert 0 <= region.left <= 854 - 180 and 0 <= region.top <= 480 - 180
    assert region.left <= box.left and box.right <= region.left + 180


def test_a_region_larger_than_the_frame_is_cut_to_it():
    assert region_around(Box(100, 0, 600, 470), FRAME, 1.2) == Region(50, 0, 600, 480)
    assert region_around(Box(0, 0, 850, 470), FRAME, 1.2) == Region.whole(FRAME)


def test_the_region_follows_the_object_and_keeps_its_size_while_that_is_about_right():
    last = Region(350, 140, 200, 200)
    region = next_region(last, Box(430, 220, 540, 300), FRAME, 2.0)
    assert (region.width, region.height) == (200, 200)
    assert centre(region) == (485, 260)


def test_the_size_changes_slowly_but_covers_the_object_at_once():
    last = Region(350, 140, 200, 200)
    shrinking = next_region(last, Box(440, 230, 480, 270), FRAME, 2.0)
    assert shrinking.width == round(200 * (120 / 200) ** 0.3)
    growing = next_region(last, Box(400, 200, 700, 280), FRAME, 2.0)
    assert growing.width == round(1.15 * 300)


def test_an_object_that_fills_its_region_can_grow_whatever_the_factor():
    region = region_around(Box(350, 140, 550, 340), FRAME, 1.0)
    assert region == Region(335, 125, 230, 230)
    for width in (230, 264, 304):
        box = Box(region.left, region.top, region.left + region.width, region.top + region.height)
        assert box.longer_side == width
        region = next_region(region, box, FRAME, 1.0)


def test_a_region_without_the_object_grows_to_the_whole_frame():
    region, widths = Region(100, 100, 150, 150), []
    for _ in range(20):
        region = next_region(region, None, FRAME, 2.0)
        widths.append(region.width)
    assert widths[0] == round(150 * 1.15) and widths == sorted(widths)
    assert region == Region.whole(FRAME)


def test_the_region_is_the_larger_the_longer_ago_the_object_was_seen():
    last, box = Region(350, 140, 200, 200), Box(400, 200, 500, 280)
    widths = [next_region(last, box, FRAME, 2.0, gap=gap).width for gap in (1, 2, 4)]
    assert widths == [200, round(200 * 1.05), round(200 * 1.05**3)]
    assert next_region(last, None, FRAME, 2.0, gap=3).width == round(200 * 1.15**3)
    for found in (box, None):
        assert next_region(last, found, FRAME, 2.0, gap=1_000_000) == Region.whole(FRAME)


@pytest.mark.parametrize(("factor", "is_kept"), [(1.5, False), (1.85, True), (2.15, True), (2.35, True), (2.5, False)])
def test_a_size_is_about_right_within_a_fifth(factor, is_kept):
    region = next_region(Region(350, 140, 200, 200), Box(400, 190, 500, 290), FRAME, factor)
    assert (region.width == 200) is is_kept


def test_regions_have_the_size_of_their_longer_side_and_a_pixel_at_least():
    assert next_region(Region(0, 0, 480, 600), None, Size(854, 480), 2.0).height == round(600 * 1.15)
    assert next_region(Region(27, 0, 800, 480), Box(400, 200, 500, 280), FRAME, 10.0).width == 800
    assert region_around(Box(0, 0, 0.1, 0.1), Size(2, 2), 1.0)[2:] == (1, 1)


# Into the region and back


def test_the_box_around_two_boxes():
    assert Box(5, 6, 7, 8).joined(Box(1, 2, 9, 10)) == (1, 2, 9, 10)
    assert Box(1, 2, 9, 10).joined(Box(5, 6, 7, 8)) == (1, 2, 9, 10)
    assert Box(5, 6, 7, 8).joined(None) == (5, 6, 7, 8)


def test_the_box_of_a_mask_is_in_pixels_of_the_frame():
    mask = torch.zeros(1, 1, 48, 61, dtype=torch.bool)
    assert box_of_mask(mask, FRAME) is None
    mask[0, 0, 10:20, 30:33] = True
    assert box_of_mask(mask, FRAME) == pytest.approx((30 * 14, 100, 33 * 14, 200))


def test_points_are_moved_into_the_region_and_far_ones_beside_the_object_left_out():
    coords = torch.tensor([[[64.0, 32.0], [40.0, 64.0], [100.0, 10.0], [5.0, 100.0]]])
    points = PointInputs(coords, torch.tensor([[1, 0, 1, 0]], dtype=torch.int32))
    frame, region = Size(128, 256), Region(64, 32, 96, 64)
    assert box_of_points(points, frame, side=128) == (128, 10, 200, 32)
    moved = points_in_region(points, region, frame, side=128)
    wanted = torch.tensor([[[64 / 96, 0.0], [16 / 96, 32 / 64], [136 / 96, -22 / 64]]]) * 128
    torch.testing.assert_close(moved.point_coords[:, :3], wanted)
    assert moved.point_labels.tolist() == [[1, 0, 1, -1]]
    assert box_of_points(PointInputs(coords, torch.zeros(1, 4, dtype=torch.int32)), frame, side=128) is None


def test_points_beside_the_object_are_left_out_on_all_sides_of_the_region():
    coords = torch.tensor([[[5.0, 64], [64, 5], [127, 64], [64, 127], [64, 64]]])
    points = PointInputs(coords, torch.zeros(1, 5, dtype=torch.int32))
    moved = points_in_region(points, Region(32, 32, 64, 64), Size(128, 128), side=128)
    assert moved.point_labels.tolist() == [[-1, -1, -1, -1, 0]]


def test_a_small_mask_is_enlarged_smoothly():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:16, 8:16] = 1
    cut = mask_in_region(mask, Region(16, 16, 64, 64), Size(128, 128))
    assert ((cut > 0) & (cut < 1)).any()


def test_logits_at_the_edge_of_the_frame_are_as_inside():
    cut = logits_in_region(torch.full((1, 1, 8, 8), 5.0), Region(0, 0, 40, 40), Size(128, 128), side=64)
    assert (cut == 5).all()


@pytest.mark.parametrize("size", [(128, 256), (64, 64)])
def test_a_mask_prompt_is_cut_in_the_frames_own_pixels(size):
    frame, region = Size(128, 256), Region(64, 32, 96, 64)
    height, width = size
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1  # (32..64, 64..128) of the frame
    cut = mask_in_region(mask, region, frame) >= 0.5
    wanted = torch.zeros(64, 96, dtype=torch.bool)
    wanted[:32, :64] = True
    assert (cut[0, 0] != wanted).sum() <= 4  # corners of an enlarged mask are round


def smooth_logits(frame, side):
    """A soft disc of the frame, as logits at side x side."""
    y = (torch.arange(side) + 0.5) / side * frame.height
    x = (torch.arange(side) + 0.5) / side * frame.width
    return soft_disc(x, y)[None, None]


def soft_disc(x, y):
    return 8 * torch.exp(-(((x[None] - 110) / 30) ** 2) - ((y[:, None] - 60) / 30) ** 2) - 4


def test_logits_are_cut_out_of_the_frame_where_the_region_is():
    frame, region = Size(128, 256), Region(64, 16, 96, 80)
    cut = logits_in_region(smooth_logits(frame, 128), region, frame, side=64)
    y = region.top + (torch.arange(64) + 0.5) / 64 * region.height
    x = region.left + (torch.arange(64) + 0.5) / 64 * region.width
    assert (cut[0, 0] - soft_disc(x, y)).abs().max() < 0.1


def test_logits_of_a_region_are_put_back_where_it_is_and_nothing_is_claimed_around_it():
    frame, region = Size(128, 256), Region(64, 16, 96, 80)
    whole = smooth_logits(frame, 128)
    placed = logits_in_frame(logits_in_region(whole, region, frame, side=64), region, frame, side=128)
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[16:96, 32:80] = True
    assert (placed - whole)[0, 0][inside].abs().max() < 0.1
    assert (placed[0, 0][~inside] == -10).all()


def test_the_whole_frame_as_a_region_is_the_frame_itself():
    frame = Size(128, 256)
    logits = smooth_logits(frame, 64)
    for move in (logits_in_region, logits_in_frame):
        torch.testing.assert_close(move(logits, Region.whole(frame), frame, side=64), logits, rtol=0, atol=1e-4)

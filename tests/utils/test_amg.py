"""Grids, crops, boxes and run-length codes: hand-computed answers, and COCO's own tools where they are installed."""

import numpy as np
import pytest
import torch

from sam2.utils import amg
from sam2.utils.amg import MaskData

L_SHAPE = torch.tensor([[0, 1, 1], [0, 1, 0]], dtype=torch.bool)  # column by column: 00 11 10


def random_masks(n: int, height: int, width: int, density: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, height, width, generator=generator) < density


# Points and crops


def test_grid_points_are_the_centres_of_equal_cells_with_x_running_fastest():
    assert amg.build_point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_each_crop_layer_has_a_coarser_grid():
    assert [len(grid) for grid in amg.build_all_layer_point_grids(8, n_layers=2, scale_per_layer=2)] == [64, 16, 4]


def test_a_grid_without_points_is_refused():
    with pytest.raises(ValueError, match="at least one point per side, got 0"):
        amg.build_all_layer_point_grids(2, n_layers=2, scale_per_layer=2)


def test_crops_overlap_by_a_share_of_the_shorter_side_and_stay_in_the_image():
    boxes, layers = amg.generate_crop_boxes((100, 201), n_layers=1, overlap_ratio=0.1)
    assert boxes == [[0, 0, 201, 100], [0, 0, 106, 55], [0, 45, 106, 100], [96, 0, 201, 55], [96, 45, 201, 100]]
    assert layers == [0, 1, 1, 1, 1]


def test_the_second_layer_has_sixteen_crops_with_half_the_overlap():
    boxes, layers = amg.generate_crop_boxes((100, 100), n_layers=2, overlap_ratio=0.2)
    assert layers == [0] + [1] * 4 + [2] * 16
    assert boxes[5:7] == [[0, 0, 33, 33], [0, 23, 33, 56]]


def test_batches_walk_through_all_columns_together():
    assert list(amg.batch_iterator(2, [1, 2, 3], "abc")) == [[[1, 2], "ab"], [[3], "c"]]
    assert list(amg.batch_iterator(2, [])) == []


@pytest.mark.parametrize("columns", [(), ([1], [1, 2])])
def test_columns_of_different_lengths_make_no_batches(columns):
    with pytest.raises(ValueError, match="one length"):
        list(amg.batch_iterator(2, *columns))


# Back from a crop to the image


def test_boxes_points_and_masks_move_by_the_corner_of_their_crop():
    crop = [3, 2, 5, 4]
    assert amg.uncrop_boxes_xyxy(torch.tensor([[0, 0, 1, 1]]), crop).tolist() == [[3, 2, 4, 3]]
    assert amg.uncrop_boxes_xyxy(torch.zeros(2, 3, 4), crop).shape == (2, 3, 4)
    assert amg.uncrop_points(torch.tensor([[0.5, 1.0]]), crop).tolist() == [[3.5, 3.0]]
    placed = amg.uncrop_masks(torch.ones(1, 2, 2, dtype=torch.bool), crop, orig_h=5, orig_w=6)
    assert placed.shape == (1, 5, 6) and placed.dtype == torch.bool
    assert placed.nonzero()[:, 1:].tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]


def test_only_borders_that_the_crop_adds_cut_a_box():
    crop, image = [0, 0, 100, 100], [0, 0, 200, 100]
    boxes = torch.tensor([[0, 0, 50, 99], [30, 30, 79, 60], [30, 30, 80, 60], [30, 30, 99, 60]])
    assert amg.is_box_near_crop_edge(boxes, crop, image).tolist() == [False, False, True, True]
    shifted = amg.is_box_near_crop_edge(torch.tensor([[19, 40, 60, 60], [40, 40, 99, 60]]), [100, 0, 200, 100], image)
    assert shifted.tolist() == [True, False]


# Boxes and scores of masks


def test_a_box_includes_the_last_row_and_column_and_is_zero_for_an_empty_mask():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    boxes = amg.batched_mask_to_box(masks)
    assert boxes.tolist() == [[3, 2, 7, 4], [0, 0, 0, 0]] and boxes.dtype == torch.int64


def test_boxes_keep_the_leading_axes():
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    masks[1, 2, 1, 1] = True
    assert amg.batched_mask_to_box(masks).shape == (2, 3, 4)
    assert (
        amg.batched_mask_to_box(masks)[1, 2].tolist() == amg.batched_mask_to_box(masks[1, 2]).tolist() == [1, 1, 1, 1]
    )
    assert amg.batched_mask_to_box(masks[:0]).shape == (0, 3, 4)
    assert amg.batched_mask_to_box(masks[:, 0, :0]).tolist() == [[0, 0, 0, 0]] * 2


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_box_with_a_size_is_a_new_box_of_the_same_kind(kind):
    corners = kind([1.0, 2.0, 5.0, 9.0])
    box = amg.box_xyxy_to_xywh(corners)
    assert type(box) is type(corners) and list(box) == [1, 2, 4, 7]
    assert list(corners) == [1, 2, 5, 9]


def test_stability_is_the_iou_of_the_mask_at_two_thresholds():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[9.0, 9.0], [9.0, 9.0]], [[-9.0, -9.0], [-9.0, -9.0]]])
    stability = amg.calculate_stability_score(logits, mask_threshold=1.5, threshold_offset=1.0)
    assert stability[:2].tolist() == pytest.approx([1 / 3, 1.0])
    assert stability[2].isnan() and stability.dtype == torch.float32


def frame_with_hole() -> np.ndarray:
    mask = np.zeros((12, 12), bool)
    mask[1:8, 1:8] = True
    mask[3, 3:6] = False  # a hole of 3 pixels
    mask[10, 9:11] = True  # an island of 2 pixels
    return mask


def test_small_holes_are_filled_below_the_area_only():
    filled, changed = amg.remove_small_regions(frame_with_hole(), area_thresh=4, mode="holes")
    assert changed and filled.sum() == 49 + 2
    same, changed = amg.remove_small_regions(frame_with_hole(), area_thresh=3, mode="holes")
    assert not changed and np.array_equal(same, frame_with_hole())


def test_small_islands_are_removed_below_the_area_only():
    kept, changed = amg.remove_small_regions(frame_with_hole(), area_thresh=3, mode="islands")
    assert changed and kept.sum() == 46 and not kept[10].any()
    assert not amg.remove_small_regions(frame_with_hole(), area_thresh=2, mode="islands")[1]


def test_the_largest_island_stays_however_small():
    kept, changed = amg.remove_small_regions(frame_with_hole(), area_thresh=1000, mode="islands")
    assert changed and kept.sum() == 46


def test_of_equally_large_small_islands_one_stays():
    mask = np.zeros((5, 5), bool)
    mask[0, 0] = mask[4, 4] = True
    kept, changed = amg.remove_small_regions(mask, area_thresh=9, mode="islands")
    assert changed and kept.sum() == 1


def test_an_unknown_kind_of_region_is_refused():
    with pytest.raises(ValueError, match="'holes' or 'islands', got 'bays'"):
        amg.remove_small_regions(frame_with_hole(), 3, "bays")


# Run-length codes


def test_run_lengths_go_column_by_column_and_start_with_background():
    codes = amg.mask_to_rle_pytorch(torch.stack([L_SHAPE, ~L_SHAPE, L_SHAPE & False, L_SHAPE | True]))
    assert [code["counts"] for code in codes] == [[2, 3, 1], [0, 2, 3, 1], [6], [0, 6]]
    assert all(code["size"] == [2, 3] for code in codes)
    assert all(type(count) is int for code in codes for count in code["counts"])


def test_no_masks_have_no_codes():
    assert amg.mask_to_rle_pytorch(torch.zeros(0, 4, 5, dtype=torch.bool)) == []


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_a_mask_comes_back_from_its_code_with_its_area(density):
    masks = random_masks(3, 17, 23, density)
    for mask, code in zip(masks, amg.mask_to_rle_pytorch(masks), strict=True):
        assert np.array_equal(amg.rle_to_mask(code), mask.numpy())
        assert amg.area_from_rle(code) == int(mask.sum())


def test_a_code_that_does_not_fill_its_mask_is_refused():
    with pytest.raises(ValueError, match="2 x 3 pixels, got 5"):
        amg.rle_to_mask({"size": [2, 3], "counts": [2, 3]})


def test_coco_codes_are_strings_of_five_bit_groups():
    # 2, 3, 1 as they are; then 40 - 3 = 37 = 5 + 1 * 32, low group first, marked by bit 6 as not the last.
    code = amg.coco_encode_rle({"size": [2, 23], "counts": [2, 3, 1, 40]})
    assert code == {"size": [2, 23], "counts": "231" + chr(48 + 32 + 5) + chr(48 + 1)}


@pytest.mark.parametrize("delta, text", [(-1, "O"), (-16, "@"), (-17, "_O"), (15, "?"), (16, "`0"), (0, "0")])
def test_the_last_group_carries_the_sign(delta, text):
    counts = [0, 100, 50, 100 + delta]
    assert amg.coco_encode_rle({"size": [1, sum(counts)], "counts": counts})["counts"].endswith(text)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_coco_codes_equal_those_of_cocos_own_tools(density):
    coco = pytest.importorskip("pycocotools.mask")
    masks = random_masks(3, 211, 197, density)
    masks[0, 20:150, 40:160] = True
    for mask, code in zip(masks, amg.mask_to_rle_pytorch(masks), strict=True):
        expected = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert amg.coco_encode_rle(code) == {"size": expected["size"], "counts": expected["counts"].decode()}


# The table of masks


def table() -> MaskData:
    return MaskData(tensor=torch.tensor([1, 2, 3]), array=np.array([4, 5, 6]), rows=["a", "b", "c"])


def columns(data: MaskData) -> dict[str, list]:
    return {name: list(column) if isinstance(column, list) else column.tolist() for name, column in data.items()}


def test_rows_are_kept_by_mask_or_by_index_in_every_column():
    data = table()
    data.filter(torch.tensor([True, False, True]))
    assert columns(data) == {"tensor": [1, 3], "array": [4, 6], "rows": ["a", "c"]}
    data = table()
    data.filter(torch.tensor([2, 0]))
    assert columns(data) == {"tensor": [3, 1], "array": [6, 4], "rows": ["c", "a"]}


def test_tables_are_appended_column_by_column():
    data = MaskData()
    data.cat(table())
    data.cat(table())
    assert columns(data) == {"tensor": [1, 2, 3] * 2, "array": [4, 5, 6] * 2, "rows": ["a", "b", "c"] * 2}


def test_an_appended_table_stays_apart():
    data, more = MaskData(), table()
    data.cat(more)
    data["rows"].append("d")
    data["tensor"][0] = data["array"][0] = 9
    assert columns(more) == columns(table())


def test_columns_can_be_set_read_and_deleted_and_tensors_become_float_arrays():
    data = table()
    data["more"] = [7, 8, 9]
    del data["rows"]
    assert data["more"] == [7, 8, 9] and [name for name, _ in data.items()] == ["tensor", "array", "more"]
    data.to_numpy()
    assert isinstance(data["tensor"], np.ndarray) and data["tensor"].dtype == np.float32


def test_a_column_is_a_list_an_array_or_a_tensor():
    with pytest.raises(TypeError, match="'name' must be a list, an array or a tensor, got str"):
        MaskData(name="value")

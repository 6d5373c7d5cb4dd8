"""The mask generator: recorded answers of the original, and the small model for everything else."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.build_sam import build_sam2, packaged_file
from sam2.utils.amg import (
    MaskData,
    area_from_rle,
    coco_encode_rle,
    generate_crop_boxes,
    mask_to_rle_pytorch,
    rle_to_mask,
)

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # of the recorded answers, which were made on a CPU
HEIGHT, WIDTH = 48, 64
KEEP_ALL: dict[str, Any] = {
    "points_per_side": 2,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


# The original's answers


@pytest.fixture(scope="module")
def tiny(golden_device):
    return build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device=golden_device)


@pytest.mark.parametrize("number", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_masks_are_the_recorded_ones(number, tiny, shared, recipe, golden_device):
    tolerance = TOLERANCE[golden_device]
    recorded = json.loads((shared / "golden" / "automatic_masks.json").read_text())
    case = recorded["cases"][number]
    shapes = {name: tuple(value.shape) for name, value in tiny.state_dict().items()}
    tiny.load_state_dict(recipe.state_dict(shapes, case["seed"]))
    truck = Image.open(shared / "clips" / "truck.jpg").convert("RGB").resize(recorded["image_size"])
    found = SAM2AutomaticMaskGenerator(tiny, **case["settings"]).generate(np.array(truck))
    assert len(found) == len(case["masks"])
    for record, expected in zip(found, case["masks"], strict=True):
        assert area_from_rle(record["segmentation"]) == record["area"]
        assert record["area"] == pytest.approx(expected["area"], rel=tolerance)
        for exact in ("point_coords", "crop_box"):
            assert record[exact] == expected[exact]
        if golden_device == "cpu":  # elsewhere a pixel at a logit of 0 may fall to the other side
            assert record["bbox"] == expected["bbox"]
        for close in ("predicted_iou", "stability_score"):
            assert record[close] == pytest.approx(expected[close], rel=tolerance)


# The small model


@pytest.fixture(scope="module")
def model():
    return build_sam2(device="cpu", hydra_overrides_extra=["++model.image_size=256"])


class Drawn:
    """Stands for the network: answers every point with the next of some low-res logits."""

    def __init__(self, generator: SAM2AutomaticMaskGenerator, *logits: torch.Tensor, ious: list[float] | None = None):
        self.answers = list(zip(logits, ious or [0.9] * len(logits), strict=True))
        self.image_sizes: list[tuple[int, int]] = []
        self.prompts: list[tuple[Any, ...]] = []
        generator.predictor.decode = self.decode  # type: ignore[method-assign]
        generator.predictor.set_image = lambda image: self.image_sizes.append(image.shape[:2])  # type: ignore[method-assign]

    def decode(self, point_coords, point_labels, boxes=None, mask_input=None, multimask_output=True):
        self.prompts.append((point_coords, point_labels, mask_input, multimask_output))
        logits, ious = zip(*(self.answers[i % len(self.answers)] for i in range(len(point_coords))), strict=True)
        return torch.stack(logits)[:, None], torch.tensor(ious)[:, None]


def box_logits(y: slice, x: slice, inside: float = 8.0) -> torch.Tensor:
    """Low-res logits (64, 64) of a rectangle, in pixels of the low-res mask."""
    logits = torch.full((64, 64), -8.0)
    logits[y, x] = inside
    return logits


LEFT, RIGHT = box_logits(slice(8, 40), slice(4, 24)), box_logits(slice(8, 40), slice(40, 60))


def generator_of(
    model, *logits: torch.Tensor, ious: list[float] | None = None, **options
) -> SAM2AutomaticMaskGenerator:
    generator = SAM2AutomaticMaskGenerator(model, **{"points_per_side": 2, **options})
    Drawn(generator, *logits, ious=ious)
    return generator


def test_a_record_describes_its_mask(model):
    records = generator_of(model, LEFT, RIGHT, **KEEP_ALL).generate(picture())
    assert records
    for record in records:
        mask = record["segmentation"]
        assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == bool
        assert record["area"] == mask.sum() > 0
        y, x = mask.nonzero()
        assert record["bbox"] == [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
        assert record["point_coords"][0] in [[16, 12], [48, 12], [16, 36], [48, 36]]
        assert record["crop_box"] == [0, 0, WIDTH, HEIGHT]
        assert type(record["predicted_iou"]) is type(record["stability_score"]) is float


def test_the_same_mask_comes_in_three_forms(model):
    binary, plain, coco = (
        generator_of(model, LEFT, RIGHT, output_mode=mode).generate(picture())
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    assert len(binary) == len(plain) == len(coco) == 2
    for as_array, as_list, as_text in zip(binary, plain, coco, strict=True):
        assert np.array_equal(rle_to_mask(as_list["segmentation"]), as_array["segmentation"])
        assert as_text["segmentation"] == coco_encode_rle(as_list["segmentation"])
        json.dumps([as_list, as_text])


def test_duplicates_leave_the_mask_with_the_best_predicted_iou(model):
    shifted = box_logits(slice(8, 40), slice(5, 25))
    found = generator_of(model, LEFT, shifted, RIGHT, LEFT, ious=[0.81, 0.9, 0.85, 0.82]).generate(picture())
    assert [round(record["predicted_iou"], 2) for record in found] == [0.9, 0.85]


def test_masks_below_a_threshold_are_dropped(model):
    vague = box_logits(slice(8, 40), slice(40, 60), inside=0.5)
    keep: dict[str, Any] = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.5}
    assert len(generator_of(model, LEFT, vague, **keep).generate(picture())) == 1
    assert (
        len(generator_of(model, LEFT, vague, pred_iou_thresh=0.8, stability_score_thresh=0.0).generate(picture())) == 2
    )
    assert len(generator_of(model, LEFT, RIGHT, ious=[0.9, 0.8], **keep).generate(picture())) == 1


def test_a_higher_mask_threshold_gives_smaller_masks(model):
    image = np.zeros((2 * 64, 2 * 64, 3), np.uint8)  # so that the border of the mask has logits of +4 and -4
    low, high = (generator_of(model, LEFT, mask_threshold=t).generate(image)[0]["area"] for t in (0.0, 6.0))
    assert (low, high) == (64 * 40, 62 * 38)


@pytest.mark.parametrize("crop_n_layers", [0, 1])
@pytest.mark.parametrize("drop", [{"pred_iou_thresh": 0.99}, {"pred_iou_thresh": 0.0, "stability_score_thresh": 1.1}])
def test_an_image_in_which_no_mask_survives_has_none(model, drop, crop_n_layers):
    for use_m2m in (False, True):
        generator = generator_of(model, LEFT, crop_n_layers=crop_n_layers, use_m2m=use_m2m, **drop)
        assert generator.generate(picture()) == []


def test_small_regions_go_without_a_warning(model, recwarn):
    spotted = LEFT.clone()
    spotted[20:22, 10:12] = -8.0
    spotted[60, 60] = 8.0
    as_it_is, cleaned = (
        generator_of(model, spotted, min_mask_region_area=area).generate(picture())[0] for area in (0, 4)
    )
    expected = generator_of(model, LEFT).generate(picture())[0]
    assert cleaned["bbox"] == expected["bbox"] != as_it_is["bbox"]
    assert cleaned["segmentation"][15, 8] and not as_it_is["segmentation"][15, 10]
    assert not recwarn.list


def test_crops_see_their_part_of_the_image_and_return_to_its_coordinates(model):
    generator = SAM2AutomaticMaskGenerator(model, points_per_side=2, crop_n_layers=1, crop_overlap_ratio=0.25)
    drawn = Drawn(generator, box_logits(slice(24, 40), slice(24, 40)))  # in the middle of each crop
    found = generator.generate(np.zeros((200, 300, 3), np.uint8))
    assert drawn.image_sizes == [(200, 300)] + [(125, 175)] * 4
    crops = [record["crop_box"] for record in found]
    assert crops == [[0, 0, 175, 125], [0, 75, 175, 125], [125, 0, 175, 125], [125, 75, 175, 125], [0, 0, 300, 200]]
    for record, (x, y, width, height) in zip(found, crops, strict=True):
        left, top, box_width, box_height = record["bbox"]
        assert abs(left + box_width / 2 - (x + width / 2)) <= 1 and abs(top + box_height / 2 - (y + height / 2)) <= 1
        assert record["segmentation"].shape == (200, 300) and record["segmentation"].sum() == record["area"]
        assert record["segmentation"][int(y + height / 2), int(x + width / 2)]
        point_x, point_y = record["point_coords"][0]
        assert (point_x - x, point_y - y) == (width / 4, height / 4)


def test_of_the_same_mask_in_two_crops_the_one_of_the_smaller_crop_stays(model):
    everything = box_logits(slice(0, 64), slice(0, 64))
    settings = {"crop_n_layers": 1, "crop_overlap_ratio": 1.0, "crop_nms_thresh": 0.5}
    found = generator_of(model, everything, **settings).generate(picture())
    assert len(found) == 1 and found[0]["crop_box"] != [0, 0, WIDTH, HEIGHT]


def test_masks_cut_by_a_crop_are_left_to_the_whole_image(model):
    to_the_border = box_logits(slice(0, 64), slice(0, 64))
    image = np.zeros((200, 300, 3), np.uint8)
    found = generator_of(model, to_the_border, crop_n_layers=1).generate(image)
    assert [record["crop_box"] for record in found] == [[0, 0, 300, 200]]


def test_an_image_of_a_few_pixels_has_no_empty_crops(model):
    generator = SAM2AutomaticMaskGenerator(model, points_per_side=4, crop_n_layers=2)
    drawn = Drawn(generator, LEFT)
    generator.generate(np.zeros((3, 3, 3), np.uint8))
    assert drawn.image_sizes.count((1, 1)) == 9 and all(0 not in size for size in drawn.image_sizes)


def test_own_points_are_used_in_batches_and_layer_by_layer(model):
    grids = [np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]), np.array([[0.5, 0.25]])]
    generator = SAM2AutomaticMaskGenerator(
        model, points_per_side=None, point_grids=grids, points_per_batch=2, crop_n_layers=1
    )
    drawn = Drawn(generator, LEFT)
    generator.generate(picture())
    prompted = [(coords / 256).squeeze(1).tolist() for coords, *_ in drawn.prompts]
    assert prompted == [[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0]]] + [[[0.5, 0.25]]] * 4
    assert all(bool((labels == 1).all()) for _, labels, *_ in drawn.prompts)


@pytest.mark.parametrize("multimask_output, per_point", [(True, 3), (False, 1)])
def test_each_point_is_answered_by_three_masks_or_by_one(model, multimask_output, per_point):
    generator = SAM2AutomaticMaskGenerator(model, multimask_output=multimask_output, **KEEP_ALL)
    generator.predictor.set_image(picture())
    table = generator._process_batch(
        np.array([[9, 9], [30, 20]]), (HEIGHT, WIDTH), [0, 0, WIDTH, HEIGHT], (HEIGHT, WIDTH), normalize=True
    )
    assert table["points"].tolist() == [[9, 9]] * per_point + [[30, 20]] * per_point


class OwnLoop(SAM2AutomaticMaskGenerator):
    """A subclass as they are written for upstream: a loop of its own over crops, a step of its own per batch."""

    def _generate_masks(self, image):
        self.steps: list[tuple[Any, ...]] = []
        boxes, layers = generate_crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        data = MaskData()
        for crop_box, layer_idx in zip(boxes, layers, strict=True):
            data.cat(self._process_crop(image, crop_box, layer_idx, image.shape[:2]))
        data.to_numpy()
        return data

    def _process_batch(self, points, im_size, crop_box, orig_size, normalize=False):
        self.steps.append((im_size, crop_box, orig_size, normalize))
        shares = points / np.array(im_size)[::-1]
        return super()._process_batch(shares, im_size, crop_box, orig_size)


def test_a_subclass_written_for_upstream_finds_the_same_masks(model):
    settings = {**KEEP_ALL, "crop_n_layers": 1, "crop_nms_thresh": 1.0}
    own = OwnLoop(model, **settings)
    found = own.generate(picture())
    assert own.steps[0] == ((HEIGHT, WIDTH), [0, 0, WIDTH, HEIGHT], (HEIGHT, WIDTH), True) and len(own.steps) == 5
    everything = SAM2AutomaticMaskGenerator(model, **settings).generate(picture())
    assert sorted(record["area"] for record in found) == sorted(record["area"] for record in everything)


def test_its_helpers_are_here_as_well_and_can_be_replaced(model, monkeypatch):
    from sam2 import automatic_mask_generator as module

    assert module.MaskData is MaskData and module.generate_crop_boxes is generate_crop_boxes
    monkeypatch.setattr(module, "calculate_stability_score", lambda masks, threshold, offset: torch.ones(len(masks)))
    vague = box_logits(slice(8, 40), slice(40, 60), inside=0.5)  # not stable by itself
    assert [r["stability_score"] for r in generator_of(model, LEFT, vague).generate(picture())] == [1.0, 1.0]


def test_refinement_prompts_each_point_again_with_its_own_clamped_mask(model):
    generator = SAM2AutomaticMaskGenerator(model, points_per_side=2, points_per_batch=3, use_m2m=True)
    drawn = Drawn(generator, LEFT * 100, RIGHT)
    generator.generate(picture())
    (first, _, no_mask, _), (again, labels, masks, multimask) = drawn.prompts[:2]
    assert no_mask is None and multimask is False
    assert torch.equal(again, first) and labels.tolist() == [[1]] * 3
    assert torch.equal(masks, torch.stack([LEFT * 100, RIGHT, LEFT * 100])[:, None].clamp(-32, 32))


def test_refined_masks_come_at_the_images_size(model):
    generator = SAM2AutomaticMaskGenerator(model, points_per_side=2)
    generator.predictor.set_image(picture())
    points, labels = torch.tensor([[64.0, 64.0], [128.0, 64.0], [10.0, 99.0]]), torch.ones(3, dtype=torch.int32)
    low_res_masks = torch.stack([LEFT, RIGHT, LEFT])
    masks, ious = generator.refine_with_m2m(points, labels, low_res_masks, points_per_batch=2)
    assert masks.shape == (3, 1, HEIGHT, WIDTH) and ious.shape == (3, 1)
    one = generator.predictor._predict(points[1:2, None], labels[1:2, None], None, RIGHT[None, None], False, True)
    assert torch.allclose(masks[1:2], one.masks, atol=1e-4)


def test_cleaning_at_the_images_size_drops_what_became_a_duplicate():
    masks = torch.zeros(3, 30, 30, dtype=torch.bool)
    masks[0, 2:12, 2:12] = True
    masks[0, 25, 25] = True  # an island: without it this is mask 1
    masks[1, 2:12, 2:12] = True
    masks[2, 15:28, 15:28] = True
    masks[2, 20, 20] = False  # a hole
    masks[2, 0, 29] = True  # an island
    boxes = torch.tensor([[2, 2, 25, 25], [2, 2, 11, 11], [15, 0, 29, 27]])
    data = MaskData(rles=mask_to_rle_pytorch(masks), boxes=boxes, points=torch.arange(3))
    cleaned = SAM2AutomaticMaskGenerator.postprocess_small_regions(data, min_area=3, nms_thresh=0.7)
    assert cleaned is data
    assert data["points"].tolist() == [1, 2], "the unchanged one of the duplicates stays, first"
    assert data["boxes"].tolist() == [[2, 2, 11, 11], [15, 15, 27, 27]]
    assert [area_from_rle(rle) for rle in data["rles"]] == [100, 169]


def test_cleaning_nothing_is_nothing():
    data = MaskData(rles=[], boxes=torch.zeros(0, 4))
    assert SAM2AutomaticMaskGenerator.postprocess_small_regions(data, 3, 0.7)["rles"] == []


# Errors


@pytest.mark.parametrize("options, words", [
    ({"points_per_side": None}, "exactly one of points_per_side and point_grids"),
    ({"point_grids": [np.zeros((1, 2))]}, "exactly one of points_per_side and point_grids"),
    ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "must hold 2 grids.* got 1"),
    ({"points_per_side": None, "point_grids": [np.zeros((4, 3))]}, r"point_grids\[0\].* got shape \(4, 3\)"),
    ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, r"point_grids\[0\].* got shape \(0, 2\)"),
    ({"points_per_side": 0}, "at least one point per side"),
    ({"points_per_batch": 0}, "points_per_batch must be at least 1, got 0"),
    ({"output_mode": "png"}, "output_mode must be one of binary_mask, uncompressed_rle, coco_rle, got 'png'"),
])  # fmt: skip
def test_an_option_out_of_its_range_is_named(model, options, words):
    with pytest.raises(ValueError, match=words):
        SAM2AutomaticMaskGenerator(model, **options)


@pytest.mark.parametrize("image", [picture().astype(np.float32), picture()[..., 0], "photo.jpg"])
def test_a_bad_image_is_named_and_the_generator_stays_usable(model, image):
    generator = generator_of(model, LEFT)
    with pytest.raises((TypeError, ValueError), match="image must be"):
        generator.generate(image)
    assert len(generator.generate(picture())) == 1


def test_a_pil_image_is_the_same_image(model):
    generator = SAM2AutomaticMaskGenerator(model, output_mode="coco_rle", **KEEP_ALL)
    found = generator.generate(Image.fromarray(picture()))
    assert len(found) > 0
    # The stability of an empty mask is nan, as upstream's: not equal to itself.
    np.testing.assert_equal(found, generator.generate(picture()))


# Building


def test_keywords_of_from_pretrained_go_where_they_belong():
    generator = SAM2AutomaticMaskGenerator.from_pretrained(
        str(packaged_file("checkpoints", "sam2.1_hiera_nano.pt")), device="cpu", points_per_side=3, dtype="bfloat16"
    )
    assert len(generator.point_grids[0]) == 9
    assert generator.predictor.model.compute_dtype == torch.bfloat16


def test_unknown_keywords_are_refused(model):
    with pytest.raises(TypeError, match="unknown keyword points; its options are points_per_side"):
        SAM2AutomaticMaskGenerator(model, points=3)
    with pytest.raises(TypeError, match="points"):
        SAM2AutomaticMaskGenerator.from_pretrained(str(packaged_file("checkpoints", "sam2.1_hiera_nano.pt")), points=3)

"""The image predictor: recorded answers of the original, and the small model for everything else."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.build_sam import build_sam2, packaged_file
from sam2.sam2_image_predictor import SAM2ImagePredictor, join_boxes_and_points

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # of the recorded answers, which were made on a CPU
HEIGHT, WIDTH = 60, 80
CLICK: dict[str, Any] = {"point_coords": np.array([[30.0, 20.0]]), "point_labels": np.array([1])}
BOX = np.array([10.0, 5.0, 50.0, 40.0])


def assert_close(found, expected, tolerance: float = TOLERANCE["cpu"]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """A bright ellipse on a dark, noisy ground."""
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.4) / 0.25) ** 2 + ((y / height - 0.4) / 0.3) ** 2 < 1
    ground = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    return (ground + 180 * inside[..., None]).astype(np.uint8)


# The original's answers


@pytest.fixture(scope="module")
def original(shared, recipe, golden_device):
    """The recipe's model with the truck and its quarter set, and what the original answered."""
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device=golden_device)
    model.load_state_dict(recipe.state_dict({k: tuple(v.shape) for k, v in model.state_dict().items()}, 0))
    truck = np.array(Image.open(shared / "clips" / "truck.jpg").convert("RGB"))
    with np.load(shared / "golden" / "image_predictor.npz") as recorded:
        records = dict(recorded)
    return SAM2ImagePredictor(model), truck, records


def test_points_boxes_and_masks_give_the_recorded_answers(original, shared, golden_device):
    predictor, truck, recorded = original
    tolerance = TOLERANCE[golden_device]
    predictor.set_image(truck)
    for name, case in json.loads((shared / "golden" / "image_predictor_cases.json").read_text()).items():
        masks, ious, low_res_masks = predictor.predict(**case, return_logits=True)
        assert_close(masks[..., ::25, ::25], recorded[f"{name}_masks"], tolerance)
        assert_close(ious, recorded[f"{name}_iou"], tolerance)
        assert_close(low_res_masks[..., ::4, ::4], recorded[f"{name}_low"], tolerance)
        if name == "point_multi":
            first_look = low_res_masks[:1]
    _, ious, low_res_masks = predictor.predict([[900.0, 600.0]], [1], mask_input=first_look, multimask_output=False)
    assert_close(ious, recorded["mask_input_iou"], tolerance)
    assert_close(low_res_masks[..., ::4, ::4], recorded["mask_input_low"], tolerance)


def test_a_batch_of_images_of_two_sizes_gives_the_recorded_answers(original, golden_device):
    predictor, truck, recorded = original
    predictor.set_image_batch([truck, truck[:600, :900]])
    _, _, low_res_masks = predictor.predict_batch(
        [[[540.0, 360.0]], [[180.0, 120.0]]], [[1], [1]], multimask_output=False
    )
    for i in range(2):
        assert_close(low_res_masks[i][..., ::4, ::4], recorded[f"batch{i}_low"], TOLERANCE[golden_device])


# The small model


@pytest.fixture(scope="module")
def model():
    return build_sam2(device="cpu", hydra_overrides_extra=["++model.image_size=256"])


@pytest.fixture
def predictor(model):
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(picture())
    return predictor


def test_an_answer_is_float32_at_the_images_size_with_low_res_logits(predictor):
    masks, ious, low_res_masks = predictor.predict(**CLICK)
    assert masks.shape == (3, HEIGHT, WIDTH) and ious.shape == (3,) and low_res_masks.shape == (3, 64, 64)
    assert masks.dtype == ious.dtype == low_res_masks.dtype == np.float32
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert predictor.predict(**CLICK, multimask_output=False)[0].shape == (1, HEIGHT, WIDTH)


def test_masks_are_the_logits_above_the_threshold(model):
    predictor = SAM2ImagePredictor(model, mask_threshold=1.5)
    predictor.set_image(picture())
    logits = predictor.predict(**CLICK, return_logits=True)[0]
    masks = predictor.predict(**CLICK)[0]
    assert np.array_equal(masks, logits > 1.5)
    assert not np.array_equal(masks, logits > 0), "no logit lies between the thresholds"


def test_low_res_logits_stay_within_32(predictor, monkeypatch):
    decode = predictor.decode
    monkeypatch.setattr(predictor, "decode", lambda *args: [100 * x for x in decode(*args)])
    logits, _, low_res_masks = predictor.predict(**CLICK, return_logits=True)
    assert np.abs(low_res_masks).max() == 32 and np.abs(logits).max() > 32


def test_shares_of_the_image_are_the_same_prompt_as_pixels(predictor):
    size = np.array([WIDTH, HEIGHT])
    pixels = predictor.predict(**CLICK, box=BOX)[2]
    shares = predictor.predict(
        CLICK["point_coords"] / size, CLICK["point_labels"], BOX / np.tile(size, 2), normalize_coords=False
    )[2]
    assert_close(shares, pixels, 1e-5)


def test_objects_prompted_together_answer_as_if_alone(predictor):
    points, labels = np.array([[[30.0, 20.0], [5.0, 5.0]], [[60.0, 50.0], [1.0, 2.0]]]), np.array([[1, 0], [1, 1]])
    boxes = np.stack([BOX, BOX + 8])
    together = predictor.predict(points, labels, boxes, return_logits=True)
    assert [x.shape for x in together] == [(2, 3, HEIGHT, WIDTH), (2, 3), (2, 3, 64, 64)]
    for i in range(2):
        alone = predictor.predict(points[i], labels[i], boxes[i], return_logits=True)
        for found, expected in zip(together, alone, strict=True):
            assert_close(found[i], expected)


@pytest.mark.parametrize("box", [BOX[None], BOX.reshape(2, 2), BOX.tolist(), torch.tensor(BOX)])
def test_a_box_may_be_given_in_any_of_upstreams_forms(predictor, box):
    assert np.array_equal(predictor.predict(box=box)[2], predictor.predict(box=BOX)[2])


def test_a_box_is_two_labelled_points_in_front_of_the_clicks():
    boxes, points = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[5.0, 6.0]]])
    joined = join_boxes_and_points(boxes, points, torch.tensor([[1]]))
    assert joined is not None
    assert joined[0].tolist() == [[[1, 2], [3, 4], [5, 6]]] and joined[1].tolist() == [[2, 3, 1]]
    assert join_boxes_and_points(None, None, None) is None


def test_an_earlier_mask_changes_the_answer_and_stands_alone_or_for_each_object(predictor):
    low_res_masks = predictor.predict(**CLICK, multimask_output=False)[2]
    again = predictor.predict(**CLICK, mask_input=low_res_masks)[2]
    assert not np.allclose(again, predictor.predict(**CLICK)[2])
    assert predictor.predict(mask_input=low_res_masks)[2].shape == (3, 64, 64)
    each = np.stack([low_res_masks, -low_res_masks])
    assert predictor.predict(mask_input=each)[2].shape == (2, 3, 64, 64)
    pair = predictor.predict(box=[BOX, BOX], mask_input=low_res_masks)[2]
    assert_close(pair[1], predictor.predict(box=BOX, mask_input=low_res_masks)[2])


def test_no_prompt_and_no_points_are_prompts_too(predictor):
    assert predictor.predict()[0].shape == (3, HEIGHT, WIDTH)
    assert predictor.predict(np.zeros((0, 2)), np.zeros(0))[0].shape == (3, HEIGHT, WIDTH)


def test_holes_and_specks_are_cleaned_in_the_low_res_masks(model, monkeypatch):
    predictor = SAM2ImagePredictor(model, max_hole_area=4, max_sprinkle_area=4)
    predictor.set_image(picture(64, 64))
    logits = torch.full((1, 1, 64, 64), -5.0)
    logits[..., 10:40, 10:40] = 5.0
    logits[..., 20:22, 20:22] = -5.0
    logits[..., 50, 50] = 5.0
    monkeypatch.setattr(predictor, "decode", lambda *args: (logits, torch.ones(1, 1)))
    masks, _, low_res_masks = predictor.predict(**CLICK)
    assert masks.sum() == 30 * 30
    assert np.array_equal(low_res_masks, logits[0].numpy()), "the low-res logits stay as the network gave them"


def test_a_pil_image_is_the_same_image(predictor):
    expected = predictor.predict(**CLICK)[2]
    predictor.set_image(Image.fromarray(picture()))
    assert np.array_equal(predictor.predict(**CLICK)[2], expected)


@pytest.mark.parametrize("size", [96, 224, 512])
def test_any_input_size_divisible_by_32_works(size):
    torch.manual_seed(0)
    model = build_sam2("nano", device="cpu", hydra_overrides_extra=[f"++model.image_size={size}"])
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(picture())
    assert predictor.get_image_embedding().shape == (1, 128, size // 16, size // 16)
    masks, _, low_res_masks = predictor.predict(**CLICK)
    assert masks.shape == (3, HEIGHT, WIDTH) and low_res_masks.shape == (3, size // 4, size // 4)
    assert predictor.predict(**CLICK, mask_input=low_res_masks[:1])[0].shape == (3, HEIGHT, WIDTH)


def test_bfloat16_answers_are_float32_and_near_those_of_float32(predictor):
    expected = predictor.predict(**CLICK, return_logits=True)
    reduced = SAM2ImagePredictor(
        build_sam2(device="cpu", dtype="bfloat16", hydra_overrides_extra=["++model.image_size=256"])
    )
    reduced.set_image(picture())
    for found, wanted in zip(reduced.predict(**CLICK, return_logits=True), expected, strict=True):
        assert found.dtype == np.float32
        assert_close(found, wanted, 0.1)


def test_encoder_and_decoder_both_calculate_in_the_models_own_dtype(predictor):
    reduced = SAM2ImagePredictor(
        build_sam2(device="cpu", dtype="bfloat16", hydra_overrides_extra=["++model.image_size=256"])
    )
    reduced.set_image(picture())
    assert not torch.equal(reduced.get_image_embedding().float(), predictor.get_image_embedding())
    reduced._features = predictor._features
    assert not np.array_equal(reduced.predict(**CLICK)[2], predictor.predict(**CLICK)[2])


# Batches of images


def test_images_of_a_batch_answer_as_if_alone(model, predictor):
    images = [picture(), picture(33, 47, seed=1)]
    batch = SAM2ImagePredictor(model)
    batch.set_image_batch(images)
    assert batch.get_image_embedding().shape[0] == 2
    points, labels, boxes = [CLICK["point_coords"], None], [CLICK["point_labels"], None], [None, [3, 4, 20, 30]]
    answers = batch.predict_batch(points, labels, boxes, return_logits=True)
    prompts = [CLICK, {"box": [3, 4, 20, 30]}]
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        predictor.set_image(image)
        for found, expected in zip(answers, predictor.predict(**prompt, return_logits=True), strict=True):
            assert_close(found[i], expected)


def test_masks_of_a_batch_refine_each_image(model):
    batch = SAM2ImagePredictor(model)
    batch.set_image_batch([picture(), picture(seed=1)])
    low_res_masks = batch.predict_batch([CLICK["point_coords"]] * 2, [[1]] * 2, multimask_output=False)[2]
    assert low_res_masks[0].shape == (1, 64, 64)
    refined = batch.predict_batch(mask_input_batch=low_res_masks, multimask_output=False)[2]
    assert not np.allclose(refined[0], refined[1])


def test_predict_on_a_batch_answers_for_its_last_image(model):
    batch = SAM2ImagePredictor(model)
    batch.set_image_batch([picture(), picture(33, 47)])
    assert batch.predict(box=[3, 4, 20, 30])[0].shape == (3, 33, 47)


@pytest.mark.parametrize("images, error, words", [
    (picture(), TypeError, "image_list must be a list of images, got ndarray"),
    ([], ValueError, "at least one image"),
    ([picture(), "b.jpg"], TypeError, r"image_list\[1\] must be a numpy array or a PIL image, got str"),
    ([picture()[..., 0]], ValueError, r"image_list\[0\] must be RGB"),
    ([Image.fromarray(np.full((9, 9), 300, np.uint16))], ValueError, r"image_list\[0\] has the mode I;16, not 8 bits"),
])  # fmt: skip
def test_what_is_no_batch_of_images_is_refused(predictor, images, error, words):
    with pytest.raises(error, match=words):
        predictor.set_image_batch(images)
    assert predictor.predict(**CLICK)[0].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("prompts, words", [
    ({"box_batch": [BOX]}, "box_batch must have one entry for each of the 2 images, got 1"),
    ({"mask_input_batch": [None] * 3}, "mask_input_batch must have one entry for each of the 2 images, got 3"),
    ({"box_batch": [BOX, [1, 2, 3]]}, "prompts of image 1: box must be 4 numbers"),
    ({"point_coords_batch": [CLICK["point_coords"], None]}, "prompts of image 0: .*point_labels is missing"),
])  # fmt: skip
def test_bad_prompts_for_a_batch_name_the_image_and_leave_it_set(model, prompts, words):
    batch = SAM2ImagePredictor(model)
    batch.set_image_batch([picture(), picture()])
    with pytest.raises(ValueError, match=words):
        batch.predict_batch(**prompts)
    assert len(batch.predict_batch()[0]) == 2


# Errors


@pytest.mark.parametrize(
    "image", [picture().astype(np.float32), picture()[..., 0], np.zeros((3, 8, 8), np.uint8), "a.jpg", None]
)
def test_a_bad_image_is_refused_and_the_image_before_stays(predictor, image):
    expected = predictor.predict(**CLICK)[2]
    with pytest.raises((TypeError, ValueError), match="image must be"):
        predictor.set_image(image)
    assert np.array_equal(predictor.predict(**CLICK)[2], expected)


def test_nothing_answers_before_an_image_is_set_or_after_a_reset(model):
    predictor = SAM2ImagePredictor(model)
    for _ in range(2):
        for call in (predictor.predict, predictor.predict_batch, predictor.get_image_embedding):
            with pytest.raises(RuntimeError, match="no image is set"):
                call()
        predictor.set_image(picture())
        assert predictor.get_image_embedding().shape == (1, 128, 16, 16)
        predictor.reset_predictor()


def test_predict_batch_is_for_batches(predictor):
    with pytest.raises(RuntimeError, match="set_image_batch"):
        predictor.predict_batch()


@pytest.mark.parametrize("prompts, words", [
    ({"point_coords": [[1, 2]]}, "point_labels is missing"),
    ({"point_labels": [1]}, "point_coords is missing"),
    ({"point_coords": [1, 2], "point_labels": [1]}, r"point_coords must be \(P, 2\) or \(B, P, 2\), got \(2,\)"),
    ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, r"point_coords must be .* got \(1, 3\)"),
    ({"point_coords": [[1, 2], [3, 4]], "point_labels": [1]}, r"point_labels must be \(2,\).* got \(1,\)"),
    ({"point_coords": [[[1, 2]]], "point_labels": [1]}, r"point_labels must be \(1, 1\).* got \(1,\)"),
    ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "point_coords must be finite"),
    ({"point_coords": [[1, 2]], "point_labels": [7]}, r"point_labels must be 1 .* got \[7.0\]"),
    ({"point_coords": [["a", "b"]], "point_labels": [1]}, "point_coords must be numbers"),
    ({"box": [1, 2, 3]}, r"box must be 4 numbers .* got \(3,\)"),
    ({"box": np.zeros((0, 4))}, r"box must be 4 numbers .* got \(0, 4\)"),
    ({"box": 5.0}, r"box must be 4 numbers .* got \(\)"),
    ({"box": [1, 2, np.inf, 3]}, "box must be finite"),
    ({"box": [WIDTH + 1, 0, WIDTH + 9, 9]}, r"box must touch the image of width 80 and height 60, got \[\[81"),
    ({"box": [0, HEIGHT + 1, 10, HEIGHT + 9]}, r"box must touch the image .* got \[\[0.0, 61.0"),
    ({"box": [BOX, [3, -9, 8, -1]]}, r"box must touch the image .* got \[\[3.0, -9.0, 8.0, -1.0\]\]"),
    ({"box": [1.5, 0, 2, 1], "normalize_coords": False}, "box must touch the image of width 1 and height 1"),
    ({"box": [BOX, BOX], **CLICK}, "same number of objects, got point_coords for 1, box for 2"),
    ({"box": [BOX, BOX], "mask_input": np.zeros((3, 1, 64, 64))}, "got box for 2, mask_input for 3"),
    ({"mask_input": np.zeros((1, 256, 256))}, r"mask_input must be \(1, 64, 64\) .* got \(1, 256, 256\)"),
    ({"mask_input": np.zeros((64, 64))}, r"mask_input must be .* got \(64, 64\)"),
    ({"mask_input": np.zeros((3, 64, 64))}, r"mask_input must be .* got \(3, 64, 64\)"),
    ({"mask_input": np.full((1, 64, 64), np.nan)}, "mask_input must be finite"),
])  # fmt: skip
def test_a_bad_prompt_is_named_and_the_image_stays_set(predictor, prompts, words):
    with pytest.raises((ValueError, TypeError), match=words):
        predictor.predict(**prompts)
    assert predictor.predict(**CLICK)[0].shape == (3, HEIGHT, WIDTH)


def test_a_box_that_reaches_over_the_border_is_taken(predictor):
    assert predictor.predict(box=[-20, -20, 10, 10])[0].shape == (3, HEIGHT, WIDTH)


# Building


def test_keywords_of_from_pretrained_go_where_they_belong():
    checkpoint = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")
    predictor = SAM2ImagePredictor.from_pretrained(
        str(checkpoint), device="cpu", mask_threshold=0.5, max_hole_area=3, max_sprinkle_area=4, dtype="bfloat16"
    )
    assert predictor.mask_threshold == 0.5 and predictor.device == torch.device("cpu")
    assert predictor.model.compute_dtype == torch.bfloat16
    assert (predictor._transforms.max_hole_area, predictor._transforms.max_sprinkle_area) == (3, 4)


def test_unknown_keywords_are_refused(model):
    with pytest.raises(TypeError, match="unknown keyword max_hole; its options are mask_threshold, max_hole_area"):
        SAM2ImagePredictor(model, max_hole=3)
    with pytest.raises(TypeError, match="max_hole"):
        SAM2ImagePredictor.from_pretrained(str(packaged_file("checkpoints", "sam2.1_hiera_nano.pt")), max_hole=3)


# What fine-tuning scripts, labelling tools and exporters read and set


def test_embeddings_that_were_kept_answer_in_another_predictor_as_where_they_were_made(predictor, model):
    features = predictor._features
    assert list(features.keys()) == ["image_embed", "high_res_feats"]
    sizes = [tuple(level.shape[-2:]) for level in (*features["high_res_feats"], features["image_embed"])]
    assert predictor._bb_feat_sizes == sizes == [(64, 64), (32, 32), (16, 16)]

    other = SAM2ImagePredictor(model)
    assert not other._is_image_set and other._orig_hw is None
    other._features = {name: copy.deepcopy(value) for name, value in features.items()}
    with pytest.raises(RuntimeError, match="no image is set"):
        other.predict(**CLICK)
    other._is_image_set = True
    with pytest.raises(RuntimeError, match="set _orig_hw"):
        other.predict(**CLICK)
    other._orig_hw = [(HEIGHT, WIDTH)]
    for found, wanted in zip(other.predict(**CLICK), predictor.predict(**CLICK), strict=True):
        assert np.array_equal(found, wanted)

    other.reset_predictor()
    assert (other._is_image_set, other._is_batch, other._features, other._orig_hw) == (False, False, None, None)


def test_features_and_prompts_read_as_upstreams_do_and_carry_gradients_to_the_decoder(predictor):
    mask_input, coords, labels, boxes = predictor._prep_prompts(
        **CLICK, box=None, mask_logits=None, normalize_coords=True
    )
    assert mask_input is None and boxes is None
    assert coords.shape == (1, 1, 2) and labels.shape == (1, 1)
    features, model = predictor._features, predictor.model
    sparse, dense = model.sam_prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    low_res_masks = model.sam_mask_decoder(
        image_embeddings=features["image_embed"][-1].unsqueeze(0),
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=[level[-1].unsqueeze(0) for level in features["high_res_feats"]],
    )[0]
    masks = predictor._transforms.postprocess_masks(low_res_masks, predictor._orig_hw[-1])
    assert masks.shape == (1, 3, HEIGHT, WIDTH) and masks.requires_grad


@pytest.mark.parametrize("normalize_coords", [True, False])
def test_prompts_that_are_learned_keep_their_gradient(predictor, normalize_coords):
    given = {
        "point_coords": torch.tensor([[[0.3, 0.2]]]),
        "box": torch.tensor([[0.1, 0.1, 0.5, 0.5]]),
        "mask_logits": torch.zeros(1, 1, 64, 64),
    }
    for tensor in given.values():
        tensor.requires_grad_()
    prompts = predictor._prep_prompts(point_labels=[[1]], normalize_coords=normalize_coords, **given)
    encoder = predictor.model.sam_prompt_encoder
    sparse, dense = encoder((prompts.point_coords, prompts.point_labels), None, prompts.mask_input)
    (sparse.square().sum() + dense.square().sum() + prompts.boxes.sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in given.values())
    masks, _, _ = predictor.predict(given["point_coords"], [[1]], given["box"], given["mask_logits"])
    assert masks.shape == (3, HEIGHT, WIDTH)

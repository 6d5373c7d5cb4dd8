"""Images in, masks out: against torchvision, hand-computed coordinates, and drawn logits with holes and specks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as reference

from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD, SAM2Transforms, as_rgb_array


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(40, 56), (300, 200), (64, 64)])
def test_an_image_is_resized_and_normalised_as_by_torchvision(height, width):
    image = noise(height, width)
    expected: Any = reference.Compose(
        [reference.ToTensor(), reference.Resize((64, 64)), reference.Normalize(list(IMAGE_MEAN), list(IMAGE_STD))]
    )(image)
    assert torch.equal(SAM2Transforms(64, 0.0)(image), expected)


def test_the_steps_can_be_taken_one_by_one_and_replaced():
    image, transforms = noise(40, 56), SAM2Transforms(32, 0.0)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    assert torch.equal(transforms.to_tensor(image), pixels)
    batch = torch.stack([pixels, pixels / 2]).requires_grad_()
    prepared = transforms.transforms(batch)
    assert torch.equal(prepared[0], transforms(image)) and prepared.shape == (2, 3, 32, 32)
    prepared.sum().backward()
    assert batch.grad is not None
    assert (transforms.mean, transforms.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transforms.transforms = torch.nn.Identity()
    assert torch.equal(transforms.forward_batch([image])[0], pixels)


def test_a_white_image_becomes_its_distance_from_the_mean_in_deviations():
    prepared = SAM2Transforms(32, 0.0)(np.full((5, 7, 3), 255, np.uint8))
    assert prepared.shape == (3, 32, 32) and prepared.dtype == torch.float32
    assert prepared[:, 0, 0].tolist() == pytest.approx(
        [(1 - m) / s for m, s in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
    )


def test_images_of_different_sizes_make_a_batch_in_their_order():
    transforms, first, second = SAM2Transforms(32, 0.0), noise(8, 9), noise(20, 10)
    batch = transforms.forward_batch([first, second])
    assert torch.equal(batch, torch.stack([transforms(first), transforms(second)]))


def test_a_read_only_or_flipped_array_and_a_pil_image_are_taken():
    image, transforms = noise(8, 9), SAM2Transforms(32, 0.0)
    frozen = image.copy()
    frozen.setflags(write=False)
    assert torch.equal(transforms(frozen), transforms(image))
    assert torch.equal(transforms(image[:, ::-1]), transforms(image[:, ::-1].copy()))
    assert torch.equal(transforms(Image.fromarray(image)), transforms(image))


def test_pil_images_of_any_mode_become_rgb():
    grey = Image.fromarray(noise(4, 5)[..., 0])
    assert np.array_equal(as_rgb_array(grey), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    assert as_rgb_array(Image.new("RGBA", (5, 4))).shape == (4, 5, 3)


@pytest.mark.parametrize(
    "image, error, words",
    [
        ("photo.jpg", TypeError, "numpy array or a PIL image, got str"),
        (np.full((4, 5, 3), 7, np.float32), ValueError, "uint8 from 0 to 255, or floats from 0 to 1"),
        (np.zeros((4, 5, 3), np.int64), TypeError, "uint8.*int64"),
        (np.zeros((4, 5), np.uint8), ValueError, r"\(height, width, 3\), got \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"got \(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"got \(0, 5, 3\)"),
    ],
)
def test_what_is_no_rgb_image_is_refused_by_name(image, error, words):
    with pytest.raises(error, match=f"picture.*{words}"):
        as_rgb_array(image, "picture")


def test_pixels_and_shares_become_pixels_of_the_networks_input():
    transforms = SAM2Transforms(64, 0.0)
    pixels = torch.tensor([[10.0, 5.0], [40.0, 20.0]])
    assert transforms.transform_coords(pixels, True, (20, 40)).tolist() == [[16.0, 16.0], [64.0, 64.0]]
    assert transforms.transform_coords(torch.tensor([0.25, 0.5])).tolist() == [16.0, 32.0]
    assert pixels.tolist() == [[10.0, 5.0], [40.0, 20.0]], "the caller's tensor was changed"


def test_boxes_become_two_corners_each():
    boxes = SAM2Transforms(64, 0.0).transform_boxes(
        torch.tensor([[0.0, 0.0, 40.0, 20.0], [10, 5, 20, 10]]), True, (20, 40)
    )
    assert boxes.tolist() == [[[0, 0], [64, 64]], [[16, 16], [32, 32]]]


def test_normalising_needs_the_size_of_the_image():
    with pytest.raises(ValueError, match="orig_hw"):
        SAM2Transforms(64, 0.0).transform_coords(torch.zeros(1, 2), normalize=True)


def square_with_hole_and_speck() -> torch.Tensor:
    """Logits (1, 1, 16, 16): a 9 x 9 square of +3 with a hole of 2 pixels, a speck of 3 pixels, -3 elsewhere."""
    logits = torch.full((1, 1, 16, 16), -3.0)
    logits[..., :9, :9] = 3.0
    logits[..., 4, 4:6] = -3.0
    logits[..., 12, 12:15] = 3.0
    return logits


@pytest.mark.parametrize(
    "hole_area, speck_area, hole, speck",
    [(0, 0, -3, 3), (1, 2, -3, 3), (2, 0, 10, 3), (0, 3, -3, -10), (2, 3, 10, -10)],
)
def test_holes_are_filled_and_specks_removed_up_to_their_area(hole_area, speck_area, hole, speck):
    logits = square_with_hole_and_speck()
    cleaned = SAM2Transforms(64, 0.0, hole_area, speck_area).postprocess_masks(logits, (16, 16))
    expected = logits.clone()
    expected[..., 4, 4:6] = hole
    expected[..., 12, 12:15] = speck
    assert torch.equal(cleaned, expected)


def test_clean_up_is_around_the_mask_threshold():
    logits = square_with_hole_and_speck() + 5.0  # 8 inside, 2 outside
    cleaned = SAM2Transforms(64, 5.0, 2, 3).postprocess_masks(logits, (16, 16))
    assert cleaned[0, 0, 4, 4] == 15.0 and cleaned[0, 0, 12, 12] == -5.0
    untouched = SAM2Transforms(64, 0.0, 2, 3).postprocess_masks(logits, (16, 16))
    assert torch.equal(untouched, logits), "all of it lies above 0: neither holes nor specks"


def test_a_ring_counts_by_its_own_pixels_even_when_its_hole_is_filled():
    logits = torch.full((1, 1, 8, 8), -3.0)
    logits[..., 2:5, 2:5] = 3.0
    logits[..., 3, 3] = -3.0
    cleaned = SAM2Transforms(64, 0.0, max_hole_area=1, max_sprinkle_area=8).postprocess_masks(logits, (8, 8))[0, 0]
    assert cleaned[3, 3] == 10.0 and cleaned[2, 2] == -10.0


def test_masks_come_back_at_the_images_size_as_float32():
    masks = torch.tensor([[0.0, 4.0], [8.0, 12.0]], dtype=torch.bfloat16).expand(2, 3, 2, 2)
    resized = SAM2Transforms(64, 0.0).postprocess_masks(masks, (2, 4))
    assert resized.shape == (2, 3, 2, 4) and resized.dtype == torch.float32
    assert resized[1, 2].tolist() == [[0, 1, 3, 4], [8, 9, 11, 12]]


def test_the_cleaned_input_is_left_as_it_was():
    logits = square_with_hole_and_speck()
    SAM2Transforms(64, 0.0, 5, 5).postprocess_masks(logits, (16, 16))
    assert torch.equal(logits, square_with_hole_and_speck())


def test_floats_from_0_to_1_are_the_same_image_as_uint8():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    prepare = SAM2Transforms(resolution=32, mask_threshold=0.0)
    torch.testing.assert_close(prepare(pixels / 255), prepare(pixels), rtol=0, atol=1e-5)

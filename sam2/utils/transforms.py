"""From images to the network's input, and from its low-res logits back to masks of the image's size.

Shapes: B images, C masks per prompt, H and W rows and columns of an image, S the network's input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sam2.utils.connected_components import small_components
from sam2.utils.pictures import rgb_pixels

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, in units of the pixel range
IMAGE_STD = (0.229, 0.224, 0.225)

CLEANED_MARGIN = 10.0  # how far from the threshold the logit of a filled hole or a removed speck is put

RGBImage = np.ndarray | Image.Image


def as_rgb_array(image: Any, name: str = "image") -> np.ndarray:
    """Check an image and return its pixels, (H, W, 3) RGB, uint8 or float32.

    Args:
        image: an array of uint8, or of floats from 0 to 1, or a PIL image of 8 bits, which is taken as it is stored:
            EXIF turns nothing.
        name: the argument that an error is about.

    Raises:
        TypeError: neither an array nor a PIL image, or an array of other numbers.
        ValueError: another shape, no pixels, floats outside 0 to 1, or a PIL image of 16 bits, integers or floats.
    """
    if isinstance(image, Image.Image):
        image = rgb_pixels(image, name)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} must be a numpy array or a PIL image, got {type(image).__name__}")
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
        if not (image.size and image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"{name} must be uint8 from 0 to 255, or floats from 0 to 1; got floats outside 0 to 1")
    elif image.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 from 0 to 255, or floats from 0 to 1, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name} must be RGB of shape (height, width, 3), got {image.shape}")
    return image


class SAM2Transforms(nn.Module):
    """What happens to an image before the network and to its masks after it.

    Args:
        resolution: S, pixels.
        mask_threshold: logit above which a pixel belongs to a mask.
        max_hole_area: fill holes of up to so many low-res pixels; 0 fills none.
        max_sprinkle_area: remove specks of up to so many low-res pixels; 0 removes none.
    """

    def __init__(
        self, resolution: int, mask_threshold: float, max_hole_area: float = 0.0, max_sprinkle_area: float = 0.0
    ) -> None:
        from torchvision.transforms import Normalize, Resize, ToTensor  # slow to import, and videos do without

        super().__init__()
        self.resolution = resolution
        self.mask_threshold = mask_threshold
        self.max_hole_area, self.max_sprinkle_area = max_hole_area, max_sprinkle_area
        self.mean, self.std = list(IMAGE_MEAN), list(IMAGE_STD)
        # The two steps of `forward`, for images that are tensors already, or that need a gradient. The filter's
        # rounding differs between ranges of pixels, so that they are brought to 0 to 1 before they are resized.
        self.to_tensor = ToTensor()
        self.transforms: nn.Module = nn.Sequential(Resize((resolution, resolution)), Normalize(self.mean, self.std))

    def forward(self, x: RGBImage) -> Tensor:
        """An RGB image, (H, W, 3) uint8, floats from 0 to 1, or PIL, as the network's input.

        Returns:
            (3, S, S) float32: resized with antialiasing, then ImageNet-normalised.

        Raises:
            TypeError, ValueError: as `as_rgb_array`.
        """
        return self.transforms(self.to_tensor(np.array(as_rgb_array(x))))

    def forward_batch(self, img_list: Sequence[RGBImage]) -> Tensor:
        """Images of any sizes, prepared and stacked: (B, 3, S, S)."""
        return torch.stack([self(image) for image in img_list])

    def transform_coords(
        self, coords: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None
    ) -> Tensor:
        """Points (..., 2) as (x, y), in pixels of the network's input.

        Args:
            coords: in pixels of the image with `normalize`, else as shares of its width and height, 0 to 1.
            orig_hw: the image's (H, W); needed with `normalize`.

        Raises:
            ValueError: `normalize` without `orig_hw`.
        """
        if normalize:
            if orig_hw is None:
                raise ValueError("orig_hw, the image's (height, width), is needed with normalize=True")
            height, width = orig_hw
            coords = coords / torch.tensor([width, height], device=coords.device)
        return coords * self.resolution

    def transform_boxes(self, boxes: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None) -> Tensor:
        """Boxes (B, 4) as (x_min, y_min, x_max, y_max) -> their corners (B, 2, 2), as `transform_coords`."""
        return self.transform_coords(boxes.reshape(-1, 2, 2), normalize, orig_hw)

    def postprocess_masks(self, masks: Tensor, orig_hw: tuple[int, int]) -> Tensor:
        """Clean low-res logits (B, C, h, w) and resize them to the image, (B, C, H, W) float32."""
        cleaned = self._clean(masks.float())
        return F.interpolate(cleaned, tuple(orig_hw), mode="bilinear", align_corners=False)

    def _clean(self, masks: Tensor) -> Tensor:
        """Fill small holes and remove small specks of float logits (B, C, h, w)."""
        # parity: specks are those of the masks as they came, so a small ring is removed but its filled hole stays.
        foreground = (masks > self.mask_threshold).flatten(0, 1).unsqueeze(1)  # (B C, 1, h, w)
        if self.max_hole_area > 0:
            holes = small_components(~foreground, self.max_hole_area).view_as(masks)
            masks = masks.masked_fill(holes, self.mask_threshold + CLEANED_MARGIN)
        if self.max_sprinkle_area > 0:
            specks = small_components(foreground, self.max_sprinkle_area).view_as(masks)
            masks = masks.masked_fill(specks, self.mask_threshold - CLEANED_MARGIN)
        return masks

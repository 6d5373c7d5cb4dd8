"""Segment objects in still images (SAM 2, Ravi et al. 2024): an image is encoded once and prompted many times.

Shapes: B prompts (objects), P points each, C masks per prompt, H and W rows and columns of the image, S the network's
input size, h = w = S / 4 the low-res masks.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.prompts import POINT_LABELS, as_float_tensor
from sam2.utils.transforms import RGBImage, SAM2Transforms, as_rgb_array

logger = logging.getLogger(__name__)

LOGIT_LIMIT = 32.0  # low-res logits are handed out within +-32, the range a mask prompt may have

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]


class Prompts(NamedTuple):
    """The prompts for one image as the network takes them; coordinates in pixels of its input."""

    mask_input: Tensor | None  # (1 or B, 1, h, w) logits
    point_coords: Tensor | None  # (B, P, 2) as (x, y)
    point_labels: Tensor | None  # (B, P) int32
    boxes: Tensor | None  # (B, 2, 2), two corners each


class Prediction(NamedTuple):
    """Masks that answer B prompts."""

    masks: Tensor  # (B, C, H, W) bool, or float32 logits
    ious: Tensor  # (B, C) float32, predicted IoU
    low_res_masks: Tensor  # (B, C, h, w) float32 logits


class SAM2ImagePredictor:
    """Predicts masks from points, boxes and earlier masks on one image, or on each image of a batch.

    Args:
        sam_model: the network; any input size.
        mask_threshold: logit above which a pixel belongs to a mask.
        max_hole_area: fill holes of up to so many low-res pixels; 0 fills none.
        max_sprinkle_area: remove specks of up to so many low-res pixels; 0 removes none.

    Raises:
        TypeError: an unknown keyword.
    """

    def __init__(
        self, sam_model: SAM2Base, mask_threshold: float = 0.0, max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_unknown(type(self), kwargs)
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._transforms = SAM2Transforms(sam_model.image_size, mask_threshold, max_hole_area, max_sprinkle_area)
        # Plain attributes under upstream's names: embeddings that were kept or made elsewhere are set through them.
        self._is_image_set = False
        # "image_embed" (images, C, S / 16, S / 16) and "high_res_feats", a list of (images, C_i, S / 4, S / 4) and
        # (images, C_i, S / 8, S / 8), or of none.
        self._features: dict[str, Any] | None = None
        self._orig_hw: list[tuple[int, int]] | None = None  # (H, W) of each image
        self._is_batch = False
        self._bb_feat_sizes = [(sam_model.image_size // stride,) * 2 for stride in (4, 8, 16)]  # of these maps

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """Build from a Hugging Face id, a folder or a checkpoint file.

        Args:
            model_id: as `sam2.build_sam.build_sam2_hf`.
            **kwargs: options of this class; the rest goes to `build_sam2_hf`.

        Raises:
            TypeError: an unknown keyword. Else as `build_sam2_hf`.
        """
        from sam2.build_sam import build_sam2_hf

        own, rest = split_options(cls, kwargs)
        return cls(build_sam2_hf(model_id, **rest), **own)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    # Images

    def set_image(self, image: RGBImage) -> None:
        """Encode an image; `predict` then answers prompts on it.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image of 8 bits, taken as it is stored: EXIF turns nothing.

        Raises:
            TypeError, ValueError: no such image. The image that was set before stays set.
        """
        self._encode([as_rgb_array(image)], is_batch=False)

    def set_image_batch(self, image_list: Sequence[RGBImage]) -> None:
        """Encode several images of any sizes in one pass; `predict_batch` then answers prompts on each.

        Args:
            image_list: (H, W, 3) uint8 RGB each, or PIL images.

        Raises:
            TypeError, ValueError: not a list, an empty one, or one with something else in it. The images that were set
                before stay set.
        """
        if not isinstance(image_list, (list, tuple)):
            raise TypeError(f"image_list must be a list of images, got {type(image_list).__name__}")
        if not image_list:
            raise ValueError("image_list must hold at least one image, got an empty list")
        images = [as_rgb_array(image, f"image_list[{i}]") for i, image in enumerate(image_list)]
        self._encode(images, is_batch=True)

    @torch.no_grad()
    def _encode(self, images: list[np.ndarray], is_batch: bool) -> None:
        self.reset_predictor()
        pixels = self._transforms.forward_batch(images).to(self.device)
        model = self.model
        with model.autocast():
            maps = model.encode_image(pixels).maps
            *high_res, embedding = maps
            if model.directly_add_no_mem_embed:
                embedding = embedding + model.no_mem_embed.view(1, -1, 1, 1)
        self._features = {"image_embed": embedding, "high_res_feats": high_res}
        self._orig_hw = [image.shape[:2] for image in images]
        self._is_image_set, self._is_batch = True, is_batch
        logger.info("Encoded %d image(s)", len(images))

    def get_image_embedding(self) -> Tensor:
        """The embedding of the images that are set, (images, C, S / 16, S / 16) on the network's device.

        Raises:
            RuntimeError: no image is set.
        """
        return self._require_features()["image_embed"]

    def reset_predictor(self) -> None:
        """Forget the images."""
        self._is_image_set = self._is_batch = False
        self._features = self._orig_hw = None

    def _require_features(self) -> dict[str, Any]:
        if not self._is_image_set or self._features is None:
            raise RuntimeError("no image is set: call set_image or set_image_batch first")
        return self._features

    def _require_sizes(self) -> list[tuple[int, int]]:
        if self._orig_hw is None:
            raise RuntimeError("the image's size is not known: set _orig_hw to [(height, width)] with the embedding")
        return self._orig_hw

    # Predictions

    def predict(
        self, point_coords: Any = None, point_labels: Any = None, box: Any = None, mask_input: Any = None,
        multimask_output: bool = True, return_logits: bool = False, normalize_coords: bool = True,
    ) -> Masks:  # fmt: skip
        """Predict the masks of one object, or of B objects at once, on the image that is set (the last of a batch).

        Args:
            point_coords: (P, 2) or (B, P, 2) as (x, y).
            point_labels: (P,) or (B, P): 1 for the object, 0 for what is not.
            box: (4,) or (B, 4) as (x_min, y_min, x_max, y_max). Points and boxes may be given together, then for the
                same objects.
            mask_input: (1, h, w) or (B, 1, h, w) logits, low-res masks of an earlier answer.
            multimask_output: answer with C = 3 masks, for prompts that may mean several things, rather than one.
            return_logits: leave the masks as logits.
            normalize_coords: coordinates are pixels of the image; otherwise shares of its width and height.

        Returns:
            All float32; without the first axis for one object:
            masks (B, C, H, W), 0 or 1, or logits;
            their predicted IoU (B, C);
            low-res logits (B, C, h, w) within +-32, which `mask_input` takes.

        Raises:
            RuntimeError: no image is set. ValueError, TypeError: bad input. The image stays set.
        """
        self._require_features()
        prompts = self._prep_prompts(point_coords, point_labels, box, mask_input, normalize_coords)
        return self._answer(prompts, multimask_output, return_logits, img_idx=-1)

    def predict_batch(
        self, point_coords_batch: Sequence[Any] | None = None, point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None, mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True, return_logits: bool = False, normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:  # fmt: skip
        """`predict` for each image of a batch: every argument is a list with one entry, or None, per image.

        Returns:
            Three lists with one array per image, as `predict` returns them.

        Raises:
            RuntimeError: no batch of images is set. ValueError, TypeError: bad input, or a list of another length.
        """
        self._require_features()
        if not self._is_batch:
            raise RuntimeError("predict_batch needs images set with set_image_batch; set_image goes with predict")
        columns = [
            self._per_image("point_coords_batch", point_coords_batch),
            self._per_image("point_labels_batch", point_labels_batch),
            self._per_image("box_batch", box_batch),
            self._per_image("mask_input_batch", mask_input_batch),
        ]
        prompts = []
        for i, (coords, labels, box, mask_input) in enumerate(zip(*columns, strict=True)):
            try:
                prompts.append(self._prep_prompts(coords, labels, box, mask_input, normalize_coords, img_idx=i))
            except (TypeError, ValueError) as error:
                raise type(error)(f"prompts of image {i}: {error}") from error
        answers = [self._answer(p, multimask_output, return_logits, img_idx=i) for i, p in enumerate(prompts)]
        masks, ious, low_res_masks = (list(column) for column in zip(*answers, strict=True))
        return masks, ious, low_res_masks

    def _per_image(self, name: str, values: Sequence[Any] | None) -> Sequence[Any]:
        count = len(self._require_sizes())
        if values is None:
            return [None] * count
        if len(values) != count:
            raise ValueError(f"{name} must have one entry for each of the {count} images, got {len(values)}")
        return values

    def _prep_prompts(
        self, point_coords: Any, point_labels: Any, box: Any, mask_logits: Any, normalize_coords: bool,
        img_idx: int = -1,
    ) -> Prompts:  # fmt: skip
        """Check a user's prompts and bring them to the network's device and coordinates."""
        image_hw = self._require_sizes()[img_idx]
        units_hw = image_hw if normalize_coords else (1, 1)
        points = read_point_batch(point_coords, point_labels)
        corners = None if box is None else read_boxes(box, *units_hw)
        side = 4 * self._require_features()["image_embed"].shape[-1]
        mask_input = None if mask_logits is None else read_mask_input(mask_logits, side)
        counts = {
            "point_coords": None if points is None else len(points[0]),
            "box": None if corners is None else len(corners),
            "mask_input": None if mask_input is None or len(mask_input) == 1 else len(mask_input),
        }
        if len({count for count in counts.values() if count is not None}) > 1:
            given = ", ".join(f"{name} for {count}" for name, count in counts.items() if count is not None)
            raise ValueError(f"prompts must be for the same number of objects, got {given}")

        device, transforms = self.device, self._transforms
        coords, labels = (None, None) if points is None else (x.to(device) for x in points)
        if coords is not None:
            coords = transforms.transform_coords(coords, normalize_coords, image_hw)
        if corners is not None:
            corners = transforms.transform_boxes(corners.to(device), normalize_coords, image_hw)
        return Prompts(None if mask_input is None else mask_input.to(device), coords, labels, corners)

    def _answer(self, prompts: Prompts, multimask_output: bool, return_logits: bool, img_idx: int) -> Masks:
        mask_input, coords, labels, boxes = prompts
        answer = self._predict(coords, labels, boxes, mask_input, multimask_output, return_logits, img_idx)
        masks, ious, low_res_masks = (x.squeeze(0).float().cpu().numpy() for x in answer)
        return masks, ious, low_res_masks

    @torch.no_grad()
    def _predict(
        self, point_coords: Tensor | None, point_labels: Tensor | None, boxes: Tensor | None = None,
        mask_input: Tensor | None = None, multimask_output: bool = True, return_logits: bool = False,
        img_idx: int = -1,
    ) -> Prediction:  # fmt: skip
        """`predict` on tensors that are already checked and in pixels of the network's input (see `Prompts`)."""
        low_res_masks, ious = self.decode(point_coords, point_labels, boxes, mask_input, multimask_output, img_idx)
        masks = self._transforms.postprocess_masks(low_res_masks, self._require_sizes()[img_idx])
        if not return_logits:
            masks = masks > self.mask_threshold
        return Prediction(masks, ious, low_res_masks.clamp(-LOGIT_LIMIT, LOGIT_LIMIT))

    @torch.no_grad()
    def decode(
        self, point_coords: Tensor | None = None, point_labels: Tensor | None = None, boxes: Tensor | None = None,
        mask_input: Tensor | None = None, multimask_output: bool = True, img_idx: int = -1,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the network's prompt encoder and mask decoder on tensors as in `Prompts`.

        Returns:
            Low-res logits (B, C, h, w), as they come, and predicted IoU (B, C); float32.
        """
        features = self._require_features()
        image = slice(img_idx, img_idx + 1 or None)
        encoder, decoder = self.model.sam_prompt_encoder, self.model.sam_mask_decoder
        with self.model.autocast():
            sparse, dense = encoder(
                points=join_boxes_and_points(boxes, point_coords, point_labels), boxes=None, masks=mask_input
            )
            decoded = decoder(
                image_embeddings=features["image_embed"][image],
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
                repeat_image=len(sparse) > 1,
                high_res_features=[level[image] for level in features["high_res_feats"]] or None,
            )
        return decoded.masks.float(), decoded.ious.float()


# Options


def own_options(cls: type) -> list[str]:
    """Names of the constructor's options: all but `self`, the model and `**kwargs`."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD][1:]


def split_options(cls: type, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords for the constructor of `cls`, and the others."""
    names = own_options(cls)
    own = {name: value for name, value in kwargs.items() if name in names}
    return own, {name: value for name, value in kwargs.items() if name not in names}


def refuse_unknown(cls: type, kwargs: dict[str, Any]) -> None:
    """Raise TypeError where a constructor was left with keywords it does not know."""
    if kwargs:
        known = ", ".join(own_options(cls))
        raise TypeError(f"{cls.__name__} got unknown keyword {', '.join(sorted(kwargs))}; its options are {known}")


# Prompts


def read_point_batch(point_coords: Any, point_labels: Any) -> tuple[Tensor, Tensor] | None:
    """Check clicks on one object, (P, 2) with (P,), or on several, (B, P, 2) with (B, P).

    Returns:
        (B, P, 2) float32 and (B, P) int32, or None without clicks.

    Raises:
        ValueError: one without the other, shapes that don't match, a number that is not finite, another label.
        TypeError: no numbers.
    """
    if point_coords is None and point_labels is None:
        return None
    if point_coords is None or point_labels is None:
        missing = "point_coords" if point_coords is None else "point_labels"
        raise ValueError(f"point_coords and point_labels must be given together, {missing} is missing")
    coords, labels = as_float_tensor("point_coords", point_coords), as_float_tensor("point_labels", point_labels)
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
        raise ValueError(f"point_coords must be (P, 2) or (B, P, 2), got {tuple(coords.shape)}")
    if labels.shape != coords.shape[:-1]:
        raise ValueError(
            f"point_labels must be {tuple(coords.shape[:-1])}, one label for each point of point_coords "
            f"{tuple(coords.shape)}, got {tuple(labels.shape)}"
        )
    _check_finite("point_coords", coords)
    if unknown := sorted(set(labels.flatten().tolist()) - set(POINT_LABELS)):
        raise ValueError(f"point_labels must be 1 (the object) or 0 (not the object), got {unknown}")
    labels = labels.to(torch.int32)
    return (coords, labels) if coords.ndim == 3 else (coords[None], labels[None])


def read_boxes(box: Any, height: float, width: float) -> Tensor:
    """Check one box or several, four numbers each, in the units of `height` and `width` -> (B, 4) float32.

    Raises:
        ValueError: another shape, a number that is not finite, or a box wholly outside the image.
        TypeError: no numbers.
    """
    boxes = as_float_tensor("box", box)
    if boxes.shape[-2:] == (2, 2):  # two corners
        boxes = boxes.flatten(-2)
    if boxes.ndim == 0 or boxes.shape[-1] != 4 or boxes.numel() == 0:
        raise ValueError(f"box must be 4 numbers (x_min, y_min, x_max, y_max) or (B, 4), got {tuple(boxes.shape)}")
    boxes = boxes.reshape(-1, 4)
    _check_finite("box", boxes)
    corners = boxes.view(-1, 2, 2)
    low, high = corners.amin(dim=1), corners.amax(dim=1)  # (B, 2) as (x, y)
    outside = ((high < 0) | (low > low.new_tensor([width, height]))).any(dim=1)
    if outside.any():
        raise ValueError(
            f"box must touch the image of width {width} and height {height}, got {boxes[outside].tolist()}"
        )
    return boxes


def read_mask_input(mask_input: Any, side: int) -> Tensor:
    """Check the logits of one object, (1, side, side), or of several, (B, 1, side, side) -> (B, 1, side, side) float32.

    Raises:
        ValueError: another shape, or a number that is not finite. TypeError: no numbers.
    """
    logits = as_float_tensor("mask_input", mask_input)
    if logits.ndim not in (3, 4) or logits.shape[-3:] != (1, side, side):
        raise ValueError(
            f"mask_input must be (1, {side}, {side}) or (B, 1, {side}, {side}) logits, got {tuple(logits.shape)}"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("mask_input must be finite, got NaN or infinity")
    return logits if logits.ndim == 4 else logits[None]


def _check_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {values.tolist()}")


def join_boxes_and_points(
    boxes: Tensor | None, point_coords: Tensor | None, point_labels: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Boxes (B, 2, 2) as two labelled points each, in front of the clicks (B, P, 2) and (B, P); None without either."""
    if boxes is None:
        return None if point_coords is None or point_labels is None else (point_coords, point_labels)
    corners = boxes.reshape(-1, 2, 2)
    labels = torch.tensor([2, 3], dtype=torch.int32, device=boxes.device).expand(len(corners), 2)
    if point_coords is None or point_labels is None:
        return corners, labels
    return torch.cat([corners, point_coords], dim=1), torch.cat([labels, point_labels], dim=1)

"""Masks of everything in an image: prompt a grid of points, keep the good answers, drop the duplicates.

After Segment Anything (Kirillov et al. 2023, section 5 and appendix B), with SAM 2's network.
Shapes: N masks, C masks per point, H and W rows and columns of the image, h = w the low-res masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import LOGIT_LIMIT, SAM2ImagePredictor, refuse_unknown, split_options
from sam2.utils.transforms import RGBImage, as_rgb_array

# Upstream has all of these here, where others import or replace them.
# isort: off
from sam2.utils.amg import (
    MaskData, area_from_rle, batch_iterator, batched_mask_to_box, box_xyxy_to_xywh, build_all_layer_point_grids,
    calculate_stability_score, coco_encode_rle, generate_crop_boxes, is_box_near_crop_edge, mask_to_rle_pytorch,
    remove_small_regions, rle_to_mask, uncrop_boxes_xyxy, uncrop_masks, uncrop_points,
)  # fmt: skip
# isort: on

_SEGMENTATIONS = {"binary_mask": rle_to_mask, "uncompressed_rle": lambda rle: rle, "coco_rle": coco_encode_rle}


class MaskRecord(TypedDict):
    """One mask of an image."""

    segmentation: Any  # (H, W) bool, or a run-length code
    area: int  # pixels
    bbox: list[float]  # x, y, width, height
    predicted_iou: float  # the network's own estimate
    point_coords: list[list[float]]  # the one point (x, y) that was prompted
    stability_score: float
    crop_box: list[float]  # x, y, width, height of the crop in which the mask was found


class SAM2AutomaticMaskGenerator:
    """Generates the masks of a whole image, without prompts.

    Args:
        model: the network; any input size.
        points_per_side: points along each side of the grid; None with `point_grids`.
        points_per_batch: points prompted at once; more is faster and takes more memory.
        pred_iou_thresh: drop masks whose predicted IoU is not above this; 0 keeps all.
        stability_score_thresh: drop masks whose stability (see `calculate_stability_score`) is below this; 0 keeps all.
        stability_score_offset: shift of the threshold for the stability, in logits.
        mask_threshold: logit above which a pixel belongs to a mask.
        box_nms_thresh: of masks whose boxes overlap with a greater IoU, the one with the best predicted IoU stays.
        crop_n_layers: repeat on 2 x 2, 4 x 4, ... crops of the image, so many layers.
        crop_nms_thresh: the same between crops, where the smallest crop's mask stays.
        crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's shorter side.
        crop_n_points_downscale_factor: by how much each layer's grid is coarser than the last.
        point_grids: instead of `points_per_side` a grid (P, 2) for the image and for each layer, (x, y) in 0 to 1.
        min_mask_region_area: fill holes and remove specks of up to so many low-res pixels; 0 leaves them.
        output_mode: "binary_mask" (H, W) bool; "uncompressed_rle" counts as a list; "coco_rle" as COCO's string.
        use_m2m: refine every mask once, by prompting with the point and the mask.
        multimask_output: three masks per point rather than one.

    Raises:
        ValueError: an option out of its range. TypeError: an unknown keyword.
    """

    def __init__(
        self, model: SAM2Base, points_per_side: int | None = 32, points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8, stability_score_thresh: float = 0.95, stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0, box_nms_thresh: float = 0.7, crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7, crop_overlap_ratio: float = 512 / 1500, crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None, min_mask_region_area: int = 0,
        output_mode: str = "binary_mask", use_m2m: bool = False, multimask_output: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_unknown(type(self), kwargs)
        if output_mode not in _SEGMENTATIONS:
            raise ValueError(f"output_mode must be one of {', '.join(_SEGMENTATIONS)}, got {output_mode!r}")
        if points_per_batch < 1:
            raise ValueError(f"points_per_batch must be at least 1, got {points_per_batch}")
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids, the other must be None")
        if points_per_side is not None:
            grids = build_all_layer_point_grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        else:
            grids = _read_point_grids(point_grids or (), crop_n_layers)
        self.point_grids = grids
        # parity: the clean-up threshold stays 0, whatever `mask_threshold` is.
        self.predictor = SAM2ImagePredictor(
            model, max_hole_area=min_mask_region_area, max_sprinkle_area=min_mask_region_area
        )
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh, self.stability_score_offset = stability_score_thresh, stability_score_offset
        self.mask_threshold = mask_threshold
        self.box_nms_thresh, self.crop_nms_thresh = box_nms_thresh, crop_nms_thresh
        self.crop_n_layers, self.crop_overlap_ratio = crop_n_layers, crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode, self.use_m2m, self.multimask_output = output_mode, use_m2m, multimask_output

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2AutomaticMaskGenerator:
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

    @torch.no_grad()
    def generate(self, image: RGBImage) -> list[MaskRecord]:
        """Generate the masks of an image; an empty list where none is good enough.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image.

        Raises:
            TypeError, ValueError: no such image.
        """
        data = self._generate_masks(as_rgb_array(image))
        encode = _SEGMENTATIONS[self.output_mode]
        return [
            MaskRecord(
                segmentation=encode(rle),
                area=area_from_rle(rle),
                bbox=box_xyxy_to_xywh(data["boxes"][i]).tolist(),
                predicted_iou=data["iou_preds"][i].item(),
                point_coords=[data["points"][i].tolist()],
                stability_score=data["stability_score"][i].item(),
                crop_box=box_xyxy_to_xywh(data["crop_boxes"][i]).tolist(),
            )
            for i, rle in enumerate(data["rles"])
        ]

    def _generate_masks(self, image: np.ndarray) -> MaskData:
        crop_boxes, layers = generate_crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        data = MaskData()
        for (x_min, y_min, x_max, y_max), layer in zip(crop_boxes, layers, strict=True):
            if x_min < x_max and y_min < y_max:  # an image of a few pixels has empty crops
                data.cat(self._process_crop(image, [x_min, y_min, x_max, y_max], layer, image.shape[:2]))
        if len(crop_boxes) > 1:
            x_min, y_min, x_max, y_max = data["crop_boxes"].unbind(dim=1)
            smallest_first = 1.0 / ((x_max - x_min) * (y_max - y_min))
            data.filter(_best_boxes(data["boxes"], smallest_first, self.crop_nms_thresh))
        data.to_numpy()
        return data

    # Both under upstream's names and arguments, for subclasses that call or override them.

    def _process_crop(
        self, image: np.ndarray, crop_box: list[int], crop_layer_idx: int, orig_size: tuple[int, ...]
    ) -> MaskData:
        """The distinct masks of one crop, as columns rles, boxes, iou_preds, stability_score, points and crop_boxes."""
        x_min, y_min, x_max, y_max = crop_box
        crop = image[y_min:y_max, x_min:x_max]
        grid = self.point_grids[crop_layer_idx] * np.array([x_max - x_min, y_max - y_min])  # pixels of the crop
        data = MaskData()
        self.predictor.set_image(crop)
        try:
            for (points,) in batch_iterator(self.points_per_batch, grid):
                data.cat(self._process_batch(points, crop.shape[:2], crop_box, orig_size, normalize=True))
        finally:
            self.predictor.reset_predictor()
        data.filter(_best_boxes(data["boxes"], data["iou_preds"], self.box_nms_thresh))
        data["boxes"] = uncrop_boxes_xyxy(data["boxes"], crop_box)
        data["points"] = uncrop_points(data["points"], crop_box)
        data["crop_boxes"] = torch.tensor(crop_box).expand(len(data["rles"]), 4)
        return data

    def _process_batch(
        self, points: np.ndarray, im_size: tuple[int, ...], crop_box: list[int], orig_size: tuple[int, ...],
        normalize: bool = False,
    ) -> MaskData:  # fmt: skip
        """The good masks of some points of a crop; boxes and points in its coordinates, codes in the image's.

        Args:
            points: (P, 2) in pixels of the crop with `normalize`, else as shares of its width and height.
            im_size, orig_size: (H, W) of the crop and of the image.
        """
        predictor = self.predictor
        crop_hw, (height, width) = (im_size[0], im_size[1]), orig_size[:2]
        clicks = torch.from_numpy(np.array(points, np.float32)).to(predictor.device)  # (P, 2)
        prompts = predictor._transforms.transform_coords(clicks, normalize=normalize, orig_hw=crop_hw)
        labels = torch.ones(len(clicks), dtype=torch.int32, device=clicks.device)
        logits, ious = predictor.decode(prompts[:, None], labels[:, None], multimask_output=self.multimask_output)
        per_point = logits.shape[1]
        clicks, prompts, labels = (x.repeat_interleave(per_point, dim=0) for x in (clicks, prompts, labels))  # (N, ...)
        logits, ious = logits.flatten(0, 1).unsqueeze(1), ious.flatten()  # (N, 1, h, w), (N,)
        if self.use_m2m:
            within = logits.squeeze(1).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
            logits, ious = self._refine(prompts, labels, within, self.points_per_batch)
        data = MaskData(low_res=logits, iou_preds=ious.flatten(), points=clicks)
        # Before masks are brought to the image's size, which costs the most memory.
        if self.pred_iou_thresh > 0:
            data.filter(data["iou_preds"] > self.pred_iou_thresh)
        masks = predictor._transforms.postprocess_masks(data["low_res"], crop_hw)[:, 0]  # (N, H, W) logits
        del data["low_res"]

        stability = calculate_stability_score(masks, self.mask_threshold, self.stability_score_offset)
        data["stability_score"] = stability
        data["masks"] = masks > self.mask_threshold
        if self.stability_score_thresh > 0:
            data.filter(stability >= self.stability_score_thresh)
        data["boxes"] = batched_mask_to_box(data["masks"])
        data.filter(~is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, width, height]))
        data["rles"] = mask_to_rle_pytorch(uncrop_masks(data["masks"], crop_box, height, width))
        del data["masks"]
        return data

    def _refine(
        self, points: Tensor, point_labels: Tensor, low_res_masks: Tensor, points_per_batch: int
    ) -> tuple[Tensor, Tensor]:
        """As `refine_with_m2m`, but the refined logits stay low-res, (N, 1, h, w)."""
        answers = [
            self.predictor.decode(some[:, None], labels[:, None], None, masks[:, None], multimask_output=False)
            for some, labels, masks in batch_iterator(points_per_batch, points, point_labels, low_res_masks)
        ]
        logits, ious = zip(*answers, strict=True)
        return torch.cat(logits), torch.cat(ious)

    def refine_with_m2m(
        self, points: Tensor, point_labels: Tensor, low_res_masks: Tensor, points_per_batch: int
    ) -> tuple[Tensor, Tensor]:
        """Refine masks on the image that `predictor` is set to: prompt again with each mask and the point it is from.

        Args:
            points: (N, 2) as (x, y) in pixels of the network's input.
            point_labels: (N,).
            low_res_masks: (N, h, w) logits within +-32.
            points_per_batch: points prompted at once.

        Returns:
            Logits (N, 1, H, W) and predicted IoU (N, 1).
        """
        logits, ious = self._refine(points, point_labels, low_res_masks, points_per_batch)
        predictor = self.predictor
        return predictor._transforms.postprocess_masks(logits, predictor._require_sizes()[-1]), ious

    @staticmethod
    def postprocess_small_regions(mask_data: MaskData, min_area: int, nms_thresh: float) -> MaskData:
        """Fill holes and remove islands at the image's size, and drop the masks that became duplicates, in place.

        Args:
            mask_data: columns "rles" and "boxes", tensors (N, 4), and any others.
            min_area: regions of less than so many pixels go.
            nms_thresh: of masks whose boxes overlap with a greater IoU, one stays, an unchanged one if there is one.

        Returns:
            `mask_data`.
        """
        if not mask_data["rles"]:
            return mask_data
        cleaned, unchanged = [], []
        for rle in mask_data["rles"]:
            mask, filled = remove_small_regions(rle_to_mask(rle), min_area, mode="holes")
            mask, removed = remove_small_regions(mask, min_area, mode="islands")
            cleaned.append(torch.from_numpy(np.ascontiguousarray(mask)))
            unchanged.append(not (filled or removed))
        masks = torch.stack(cleaned)
        boxes = batched_mask_to_box(masks)
        for i, same in enumerate(unchanged):
            if not same:
                mask_data["rles"][i] = mask_to_rle_pytorch(masks[i : i + 1])[0]
                mask_data["boxes"][i] = boxes[i]
        mask_data.filter(_best_boxes(boxes, torch.tensor(unchanged, dtype=torch.float32), nms_thresh))
        return mask_data


def _read_point_grids(grids: Sequence[np.ndarray], crop_n_layers: int) -> list[np.ndarray]:
    if len(grids) != crop_n_layers + 1:
        raise ValueError(
            f"point_grids must hold {crop_n_layers + 1} grids, one for the image and one for each of crop_n_layers, "
            f"got {len(grids)}"
        )
    for i, grid in enumerate(grids):
        if np.ndim(grid) != 2 or np.shape(grid)[1] != 2 or len(grid) == 0 or not np.isfinite(grid).all():
            raise ValueError(f"point_grids[{i}] must be finite (x, y) of shape (P, 2), got shape {np.shape(grid)}")
    return [np.asarray(grid) for grid in grids]


def _best_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices, best score first, of the boxes (N, 4) that are left after non-maximum suppression."""
    return nms(boxes.float(), scores.to(boxes.device), iou_threshold)

"""Small building blocks shared by the network's parts, and the simulated clicks used for training and evaluation.

Shapes: B batch, C channels, H and W rows and columns, P points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = TypeVar("Output")

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}


def select_closest_cond_frames(
    frame_idx: int, cond_frame_outputs: Mapping[int, Output], max_cond_frame_num: int
) -> tuple[dict[int, Output], dict[int, Output]]:
    """Split the prompted frames into those that memory attention reads and the rest.

    The nearest prompted frame before `frame_idx`, the nearest one at or after it, and then whatever is closest in
    time are selected until `max_cond_frame_num` are found; -1 selects all of them.

    Returns:
        (selected, unselected), both keyed by frame index. The order of `selected` is the order in memory.

    Raises:
        ValueError: there are more frames than `max_cond_frame_num`, and this is neither -1 nor at least 2.
    """
    if max_cond_frame_num == -1 or len(cond_frame_outputs) <= max_cond_frame_num:
        return dict(cond_frame_outputs), {}
    if max_cond_frame_num < 2:
        raise ValueError(f"max_cond_frames_in_attn must be -1 (no limit) or at least 2, got {max_cond_frame_num}")
    before = max((t for t in cond_frame_outputs if t < frame_idx), default=None)
    after = min((t for t in cond_frame_outputs if t >= frame_idx), default=None)
    chosen = [t for t in (before, after) if t is not None]
    others = sorted((t for t in cond_frame_outputs if t not in chosen), key=lambda t: abs(t - frame_idx))
    chosen += others[: max_cond_frame_num - len(chosen)]
    selected = {t: cond_frame_outputs[t] for t in chosen}
    return selected, {t: out for t, out in cond_frame_outputs.items() if t not in selected}


def get_1d_sine_pe(pos_inds: Tensor, dim: int, temperature: float = 10000) -> Tensor:
    """Sine encoding (Vaswani et al. 2017) of positions (...) -> (..., dim): all sines, then all cosines."""
    half = dim // 2
    channel = torch.arange(half, dtype=torch.float32, device=pos_inds.device)
    angles = pos_inds.unsqueeze(-1) / temperature ** (2 * (channel // 2) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The activation called "relu", "gelu" or "glu". Raises ValueError for any other name."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}")
    return _ACTIVATIONS[activation]


def get_clones(module: nn.Module, N: int) -> nn.ModuleList:
    """N independent copies of `module`."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(N))


class DropPath(nn.Module):
    """Stochastic depth: during training a sample's residual branch is dropped with probability `drop_prob`."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        kept = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep if self.scale_by_keep and keep > 0.0 else kept)


class MLP(nn.Module):
    """`num_layers` linear layers with `activation` between them, and a sigmoid at the end if asked for."""

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int,
        activation: type[nn.Module] = nn.ReLU, sigmoid_output: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_layers = num_layers
        self.sigmoid_output = sigmoid_output
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True))
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        x = self.layers[-1](x)
        return x.sigmoid() if self.sigmoid_output else x


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map, at every pixel."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        # parity: the fused kernel rounds differently, and tracking amplifies that beyond 1e-4 over some frames.
        centred = x - x.mean(dim=1, keepdim=True)
        deviation = (centred.pow(2).mean(dim=1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * (centred / deviation) + self.bias[:, None, None]


def mask_to_box(masks: Tensor) -> Tensor:
    """`sam2.utils.misc.mask_to_box`, which upstream has here too."""
    from sam2.utils.misc import mask_to_box as boxes_of  # not before it is needed: it brings what reads videos

    return boxes_of(masks)


def sample_box_points(
    masks: Tensor, noise: float = 0.1, noise_bound: float = 20, top_left_label: int = 2, bottom_right_label: int = 3
) -> tuple[Tensor, Tensor]:
    """The corners of each mask's bounding box, jittered as an annotator would.

    Args:
        masks: (B, 1, H, W) bool.
        noise: jitter as a share of the box's width and height; 0 gives the exact box.
        noise_bound: largest jitter, in pixels.

    Returns:
        Corner coordinates (B, 2, 2) as (x, y) in pixels, inside the image, and their labels (B, 2) int32.
    """
    height, width = masks.shape[-2:]
    boxes = mask_to_box(masks).float()  # (B, 1, 4) XYXY
    if noise > 0.0:
        size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)  # (B, 1, 4)
        reach = (size * noise).clamp(max=float(noise_bound))
        limit = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
        boxes = torch.minimum((boxes + reach * (2 * torch.rand_like(boxes) - 1)).clamp(min=0), limit)
    labels = torch.tensor([top_left_label, bottom_right_label], dtype=torch.int32, device=masks.device)
    return boxes.reshape(-1, 2, 2), labels.expand(masks.shape[0], 2)


def _error_regions(gt_masks: Tensor, pred_masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(false positive, false negative) regions of (B, 1, H, W) bool masks; no prediction counts as an empty one."""
    if pred_masks is None:
        pred_masks = torch.zeros_like(gt_masks)
    for name, mask in (("gt_masks", gt_masks), ("pred_masks", pred_masks)):
        if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1 or mask.shape != gt_masks.shape:
            raise ValueError(f"{name} must be bool (B, 1, H, W), got {mask.dtype} {tuple(mask.shape)}")
    return pred_masks & ~gt_masks, gt_masks & ~pred_masks


def sample_random_points_from_errors(
    gt_masks: Tensor, pred_masks: Tensor | None, num_pt: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw `num_pt` clicks per mask uniformly from where the prediction is wrong.

    A click on missed foreground is positive (1), one on wrong foreground negative (0). Where a prediction has no error
    the click is a negative one on the background.

    Args:
        gt_masks, pred_masks: (B, 1, H, W) bool; `pred_masks` None counts as empty.

    Returns:
        Points (B, num_pt, 2) float (x, y) in pixels and labels (B, num_pt) int32.
    """
    wrong, missed = _error_regions(gt_masks, pred_masks)
    batch, _, height, width = gt_masks.shape
    perfect = ~(wrong | missed).flatten(1).any(dim=1)
    candidates = torch.stack([wrong | (perfect[:, None, None, None] & ~gt_masks), missed], dim=-1)  # (B, 1, H, W, 2)
    score = torch.rand(batch, num_pt, height, width, 2, device=gt_masks.device) * candidates
    best = score.flatten(2).argmax(dim=2)  # (B, num_pt)
    pixel = best // 2
    points = torch.stack([pixel % width, pixel // width], dim=-1).float()
    return points, (best % 2).to(torch.int32)


def sample_one_point_from_error_center(
    gt_masks: Tensor, pred_masks: Tensor | None, padding: bool = True
) -> tuple[Tensor, Tensor]:
    """Click the pixel of the larger error region that is farthest from its border (RITM, Sofiiuk et al. 2021).

    Args:
        gt_masks, pred_masks: (B, 1, H, W) bool; `pred_masks` None counts as empty.
        padding: count the image border as a border of the region.

    Returns:
        Points (B, 1, 2) float (x, y) in pixels and labels (B, 1) int32, 1 positive, 0 negative.
    """
    wrong, missed = _error_regions(gt_masks, pred_masks)
    points, labels = [], []
    for wrong_map, missed_map in zip(wrong[:, 0].cpu().numpy(), missed[:, 0].cpu().numpy(), strict=True):
        (wrong_depth, wrong_at), (missed_depth, missed_at) = (
            _deepest_pixel(region, padding) for region in (wrong_map, missed_map)
        )
        positive = missed_depth > wrong_depth
        points.append([missed_at if positive else wrong_at])
        labels.append([int(positive)])
    device = gt_masks.device
    return torch.tensor(points, dtype=torch.float32, device=device), torch.tensor(
        labels, dtype=torch.int32, device=device
    )


def _deepest_pixel(region: np.ndarray, padding: bool) -> tuple[float, tuple[int, int]]:
    """Largest distance to the border of a bool (H, W) region, and the (x, y) where it is reached."""
    import cv2

    pad = int(padding)
    depth = cv2.distanceTransform(np.pad(region, pad).astype(np.uint8), cv2.DIST_L2, 0)
    depth = depth[pad : depth.shape[0] - pad, pad : depth.shape[1] - pad]
    y, x = divmod(int(depth.argmax()), region.shape[1])
    return float(depth[y, x]), (x, y)


def get_next_point(gt_masks: Tensor, pred_masks: Tensor | None, method: str) -> tuple[Tensor, Tensor]:
    """One corrective click per mask, drawn at random ("uniform") or from the centre of the error ("center")."""
    if method == "uniform":
        return sample_random_points_from_errors(gt_masks, pred_masks)
    if method == "center":
        return sample_one_point_from_error_center(gt_masks, pred_masks)
    raise ValueError(f'method must be "uniform" or "center", got {method!r}')

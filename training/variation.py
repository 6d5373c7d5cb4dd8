"""Clips that are trained on more than once look different each time.

`views` varies clips of folders on the CPU, once, frame by frame as they are read. Here whole batches are varied, on the
device where they are kept.

N clips, T frames of S x S pixels, B objects of all clips together. Random numbers come from torch's global generator of
the CPU. What is done to a clip is done to all its frames alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.clips import ClipBatch
from training.sources import MIN_SHARE
from training.views import CONTRAST, GREY_SHARE, LIGHT, SATURATION, SMALLEST_CROP, TINT


def varied(batch: ClipBatch) -> ClipBatch:
    """Turn time round, mirror, crop and recolour each clip by chance.

    Objects that can no longer be prompted on the first frame are left out. A clip that would lose them all is shown
    whole, and one of which an object is not seen at the end runs forward. Search regions are cut to their object, and
    follow it forward: clips of them are mirrored and recoloured only.
    """
    batch = _turned_round(batch)
    views = _random_views(len(batch.frames)).to(batch.frames.device)
    views[batch.near] = views[batch.near].sign() * views.new_tensor([[1.0, 0, 0], [0, 1, 0]])
    first = batch.masks[:, 0, None]
    kept = _visible(_seen_through(views[batch.clip_of], first.float()) >= 0.5)
    lost = torch.zeros(len(views), device=views.device).index_add(0, batch.clip_of, kept.float()) == 0
    views[lost] = torch.tensor([[1.0, 0, 0], [0, 1, 0]], device=views.device)
    rows = (kept | lost[batch.clip_of]).nonzero()[:, 0]
    clip_of = batch.clip_of[rows]
    masks = _seen_through(views[clip_of], batch.masks[rows].float()) >= 0.5
    shape = batch.frames.shape
    frames = _seen_through(views, batch.frames.flatten(1, 2).float()).reshape(shape)
    frames = _recoloured(frames).round_().clamp_(0, 255).to(torch.uint8)
    return batch._replace(frames=frames, masks=masks, clip_of=clip_of)


def _turned_round(batch: ClipBatch) -> ClipBatch:
    """Half of the clips that may be turned round, from the last frame to the first."""
    hidden = (~_visible(batch.masks[:, -1, None])).float()
    fixed = (torch.zeros(len(batch.frames), device=hidden.device).index_add(0, batch.clip_of, hidden) > 0) | batch.near
    turned = (torch.rand(len(fixed)) < 0.5).to(fixed.device) & ~fixed
    frames = torch.where(turned[:, None, None, None, None], batch.frames.flip(1), batch.frames)
    masks = torch.where(turned[batch.clip_of][:, None, None, None], batch.masks.flip(1), batch.masks)
    return batch._replace(frames=frames, masks=masks)


def _visible(masks: Tensor) -> Tensor:
    """Which of the objects, masks bool (B, 1, S, S), show enough to be prompted: bool (B,)."""
    return masks.float().mean(dim=(1, 2, 3)) >= MIN_SHARE


def _random_views(count: int) -> Tensor:
    """Crops, mirrored or not, as maps from where a pixel goes to where it comes from, both -1 to 1: (count, 2, 3)."""
    sides = _uniform((SMALLEST_CROP, 1.0), count, 2)
    sides[torch.rand(count) < 0.3] = 1.0
    middles = (1 - sides) * (2 * torch.rand(count, 2) - 1)
    views = torch.zeros(count, 2, 3)
    views[:, 0, 0] = sides[:, 0] * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    views[:, 1, 1] = sides[:, 1]
    views[:, :, 2] = middles
    return views


def _uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape)


def _seen_through(views: Tensor, pictures: Tensor) -> Tensor:
    """Pictures (K, C, S, S) through views (K, 2, 3), float32."""
    grid = F.affine_grid(views, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recoloured(frames: Tensor) -> Tensor:
    """Frames float (N, T, 3, S, S), 0 to 255, in another light, with other contrast and colours, perhaps none."""
    count, device = len(frames), frames.device
    gain = _uniform(LIGHT, count, 1) * _uniform(TINT, count, 3)
    saturation = torch.where(torch.rand(count) < GREY_SHARE, 0.0, _uniform(SATURATION, count))
    contrast = _uniform(CONTRAST, count)
    order = torch.where(torch.rand(count, 1) < 0.3, torch.rand(count, 3).argsort(dim=1), torch.arange(3))
    gain, saturation, contrast = (
        values.to(device).reshape(count, 1, -1, 1, 1) for values in (gain, saturation, contrast)
    )
    frames = frames.gather(2, order.to(device)[:, None, :, None, None].expand_as(frames))
    grey = frames.mean(dim=2, keepdim=True)
    frames = (grey + saturation * (frames - grey)) * gain
    middle = frames.mean(dim=(1, 2, 3, 4), keepdim=True)
    return middle + contrast * (frames - middle)

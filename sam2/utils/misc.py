"""Upstream's small helpers under their old names; the work is done in the modules of this folder.

Shapes: B and N masks, H and W rows and columns, P points.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sam2.utils.connected_components import label_components
from sam2.utils.frame_loader import FrameLoader, resize_frame
from sam2.utils.pictures import rgb_pixels
from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD
from sam2.utils.video_io import StrPath, Video

HOLE_SCORE = 0.1  # logit that a filled hole gets: just above 0, which is the border of a mask


def get_sdpa_settings() -> tuple[bool, bool, bool]:
    """Which attention kernels suit this machine, as (old_gpu, use_flash_attn, math_kernel_on).

    PyTorch chooses by itself; nothing here needs this. Flash attention wants compute capability 8.0 or more, and GPUs
    below 7.0 are old.
    """
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    return major < 7, major >= 8, major < 8


def get_connected_components(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Label the 8-connected components of masks (N, 1, H, W) bool or 0 / 1.

    Returns:
        labels and areas, int32 (N, 1, H, W): each pixel's component and that component's size in pixels, 0 outside.
    """
    labels, areas = label_components(mask)
    return labels, areas


def mask_to_box(masks: Tensor) -> Tensor:
    """Bounding boxes of masks (B, 1, H, W) bool: int32 (B, 1, 4), x and y of the first and the last pixel inside.

    An empty mask gives (W, H, -1, -1).
    """
    height, width = masks.shape[-2:]
    first_x, last_x = _extent(masks.any(dim=-2), width)
    first_y, last_y = _extent(masks.any(dim=-1), height)
    return torch.stack((first_x, first_y, last_x, last_y), dim=-1)


def _extent(occupied: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last true position along the last axis; (size, -1) where there is none."""
    places = torch.arange(size, device=occupied.device, dtype=torch.int32)
    return places.where(occupied, size).amin(dim=-1), places.where(occupied, -1).amax(dim=-1)


class AsyncVideoFrameLoader(FrameLoader):
    """The frames of picture files, prepared ahead of use; a `FrameLoader` with upstream's arguments."""

    def __init__(
        self,
        img_paths: Sequence[StrPath],
        image_size: int,
        offload_video_to_cpu: bool,
        img_mean: Sequence[float] | Tensor,
        img_std: Sequence[float] | Tensor,
        compute_device: torch.device | str,
    ) -> None:
        super().__init__(
            list(img_paths),
            image_size,
            compute_device,
            offload_video_to_cpu=offload_video_to_cpu,
            mean=img_mean,
            std=img_std,
        )

    @property
    def video_height(self) -> int:
        """Native rows."""
        return self.height

    @property
    def video_width(self) -> int:
        """Native columns."""
        return self.width


def _load_img_as_tensor(img_path: StrPath, image_size: int) -> tuple[Tensor, int, int]:
    """A picture file as a frame before it is normalised, (3, S, S) float32 from 0 to 1, and its own height and width.

    Raises:
        ValueError: a picture of more than 8 bits.
    """
    with Image.open(img_path) as picture:
        frame = rgb_pixels(picture, str(img_path))
    pixels = torch.from_numpy(resize_frame(frame, image_size))
    return pixels.permute(2, 0, 1).float() / 255, frame.shape[0], frame.shape[1]


def load_video_frames(
    video_path: Video,
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] | Tensor = IMAGE_MEAN,
    img_std: Sequence[float] | Tensor = IMAGE_STD,
    async_loading_frames: bool = False,
    compute_device: torch.device | str | None = None,
) -> tuple[FrameLoader, int, int]:
    """Open a clip for the network.

    Args:
        video_path: anything that `sam2.utils.video_io.open_source` takes.
        image_size: S, the network's input size.
        offload_video_to_cpu: hand the frames out on the CPU.
        img_mean, img_std: per channel, in units of the pixel range.
        async_loading_frames: without effect. Frames are always decoded when they are needed, or a little earlier.
        compute_device: where frames go otherwise; None takes the GPU if there is one.

    Returns:
        (images, height, width): images is indexed like a tensor (T, 3, S, S) and has its length, height and width are
        the frames' native size in pixels.

    Raises:
        As `open_source`.
    """
    device = _default_device() if compute_device is None else compute_device
    loader = FrameLoader(
        video_path, image_size, device, offload_video_to_cpu=offload_video_to_cpu, mean=img_mean, std=img_std
    )
    return loader, loader.height, loader.width


def load_video_frames_from_jpg_images(
    video_path: StrPath,
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] | Tensor = IMAGE_MEAN,
    img_std: Sequence[float] | Tensor = IMAGE_STD,
    async_loading_frames: bool = False,
    compute_device: torch.device | str | None = None,
) -> tuple[FrameLoader, int, int]:
    """`load_video_frames` for a folder of pictures.

    Raises:
        FileNotFoundError: no such folder.
        Else as `open_source`.
    """
    if not Path(video_path).is_dir():
        raise FileNotFoundError(f"video_path must be a folder of pictures, got {video_path}")
    return load_video_frames(
        video_path, image_size, offload_video_to_cpu, img_mean, img_std, async_loading_frames, compute_device
    )


def load_video_frames_from_video_file(
    video_path: StrPath | bytes,
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] | Tensor = IMAGE_MEAN,
    img_std: Sequence[float] | Tensor = IMAGE_STD,
    compute_device: torch.device | str | None = None,
) -> tuple[FrameLoader, int, int]:
    """`load_video_frames` for a video file, or the bytes of one.

    Raises:
        FileNotFoundError: no such file.
        Else as `open_source`.
    """
    if not isinstance(video_path, bytes) and not os.path.isfile(video_path):
        raise FileNotFoundError(f"video_path must be a video file, got {video_path}")
    return load_video_frames(
        video_path, image_size, offload_video_to_cpu, img_mean, img_std, compute_device=compute_device
    )


def fill_holes_in_mask_scores(mask: Tensor, max_area: int) -> Tensor:
    """Close small holes: background components of at most `max_area` pixels get a score just above 0.

    Args:
        mask: mask logits (N, 1, H, W); 0 or less is background. Not changed.
        max_area: in pixels of `mask`.

    Raises:
        ValueError: `max_area` is not positive.
    """
    if max_area <= 0:
        raise ValueError(f"max_area must be positive, got {max_area}")
    _, areas = label_components(mask <= 0)
    return torch.where((areas > 0) & (areas <= max_area), HOLE_SCORE, mask)


def concat_points(
    old_point_inputs: Mapping[str, Tensor] | None, new_points: Tensor, new_labels: Tensor
) -> dict[str, Tensor]:
    """Append points (B, P, 2) and labels (B, P) to the points of before, if any."""
    if old_point_inputs is None:
        return {"point_coords": new_points, "point_labels": new_labels}
    return {
        "point_coords": torch.cat((old_point_inputs["point_coords"], new_points), dim=1),
        "point_labels": torch.cat((old_point_inputs["point_labels"], new_labels), dim=1),
    }


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

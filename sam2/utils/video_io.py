"""Any source of frames, decoded on demand, and the writers of masks and videos.

Shapes: T frames, H rows, W columns. Colours are RGB, 8 bits each, everywhere.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from sam2.utils.davis import DAVIS_PALETTE, list_pictures, natural_key, write_label_map
from sam2.utils.pictures import check_depth, is_turned, rgb_pixels
from sam2.utils.video_file import VIDEO_SUFFIXES, FrameReadError, VideoFile
from sam2.utils.video_writer import VideoWriter

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FrameList",
    "FrameReadError",
    "FrameSource",
    "ImageFiles",
    "PaletteMaskWriter",
    "StrPath",
    "Video",
    "VideoFile",
    "VideoWriter",
    "open_source",
    "overlay",
]

logger = logging.getLogger(__name__)

# Of pictures with equal stems in one folder the first in this order is the frame: masks often lie beside JPEG frames.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

HEADERS_AT_OPENING = 256

StrPath: TypeAlias = str | os.PathLike[str]


@runtime_checkable
class FrameSource(Protocol):
    """Frames of one size that can be read in any order. Write your own for a source that is not covered here.

    What a `VideoFile` has besides is used where it is there: `has`, if the length is an estimate, `rate` and `time`.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def height(self) -> int:
        """Rows of every frame."""
        ...

    @property
    def width(self) -> int:
        """Columns of every frame."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, 0 to len - 1, as (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Release what the source holds."""
        ...


Video: TypeAlias = (
    StrPath | bytes | bytearray | memoryview | np.ndarray | Tensor | FrameSource | list[Any] | tuple[Any, ...]
)


def open_source(video: Video) -> FrameSource:
    """Open anything that holds frames.

    Args:
        video: one of
            a folder of pictures (.jpg, .jpeg, .png, .webp, .bmp) in natural order, other files ignored;
            a video file (OpenCV, or PyAV where OpenCV fails), or the bytes of one;
            a list of paths of pictures;
            a list of frames: PIL images, or arrays and tensors (H, W, 3) or (3, H, W);
            an array or tensor (T, H, W, 3) or (T, 3, H, W). Integers must be uint8. Floats must be 0 to 1 and are
            rounded to 8 bits. A last axis of 3 is taken for the colours;
            a `FrameSource`, which comes back as it is.
            Pictures are read as they are stored, as SAM 2 reads them: one that EXIF says to turn is not turned, and a
            warning names it. Video files stand upright.

    Raises:
        TypeError: none of these.
        FileNotFoundError: no such file or folder.
        ValueError: no frames, frames of different sizes, not RGB, not of 8 bits, or a file that is neither pictures nor
            video.
        FrameReadError: (a ValueError) a damaged or truncated video, a picture without a readable header, or one that
            has not 8 bits a pixel, as 16-bit grey has.
    """
    if isinstance(video, FrameSource):
        return video
    if isinstance(video, bytes | bytearray | memoryview):
        return VideoFile.from_bytes(video)
    if isinstance(video, str | os.PathLike):
        return _open_path(Path(video))
    if isinstance(video, np.ndarray | Tensor):
        if video.ndim != 4:
            raise ValueError(f"video must be (T, H, W, 3) or (T, 3, H, W), got {tuple(video.shape)}")
        return FrameList(video)
    if isinstance(video, list | tuple):
        if video and all(isinstance(item, str | os.PathLike) for item in video):
            return ImageFiles([Path(item) for item in video])
        return FrameList(video)
    raise TypeError(
        "video must be a folder, a video file, a list, array or tensor of frames or a FrameSource, "
        f"got {type(video).__name__}"
    )


def _open_path(path: Path) -> FrameSource:
    if path.is_dir():
        by_stem: dict[str, Path] = {}
        for picture in list_pictures(path, IMAGE_SUFFIXES):
            rival = by_stem.setdefault(picture.stem, picture)
            by_stem[picture.stem] = min(rival, picture, key=lambda each: IMAGE_SUFFIXES.index(each.suffix.lower()))
        if not by_stem:
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise ValueError(f"video: no frames ({', '.join(IMAGE_SUFFIXES)}) in {path}, found {found}")
        return ImageFiles(sorted(by_stem.values(), key=lambda each: (natural_key(each), each.name)), name=path.name)
    if not path.exists():
        raise FileNotFoundError(f"video: no such file or folder: {path}")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        raise ValueError(f"video: {path} is a single picture; give its folder, or a list of pictures")
    if suffix and suffix not in VIDEO_SUFFIXES:
        raise ValueError(f"video: {path} is no video file that is known ({', '.join(VIDEO_SUFFIXES)})")
    return VideoFile(path)


class ImageFiles:
    """Frames that are picture files, one each.

    Of up to `HEADERS_AT_OPENING` files the headers are read when it is opened (some 0.1 ms each): of all in a short
    clip, of the first and evenly spaced ones in a long one, whose other frames are checked when they are read.
    """

    def __init__(self, paths: Sequence[Path], *, name: str = "image list") -> None:
        """Check that all pictures are there, and that they are pictures of one size.

        Raises:
            FileNotFoundError: a file is missing.
            FrameReadError: a file is not a picture, or not one of 8 bits.
            ValueError: no paths, or a file whose size differs from the first one's.
        """
        self.paths = list(paths)
        self.name = name
        looked_at = self.paths[:: math.ceil(len(self.paths) / HEADERS_AT_OPENING) or 1]
        headers = [_read_header(path) for path in looked_at]
        self.width, self.height = _common_size([each.size for each in headers], [str(path) for path in looked_at])
        _warn_of_turned(name, [str(path) for path, each in zip(looked_at, headers, strict=True) if each.is_turned])
        if missing := [path for path in self.paths if not path.exists()]:
            raise FileNotFoundError(f"video: no such picture: {missing[0]}")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Decode a picture, (H, W, 3) uint8 RGB.

        Raises:
            FrameReadError: it is damaged, not of 8 bits, or has changed its size.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                frame = rgb_pixels(image, "it")
        except (OSError, SyntaxError, ValueError) as error:
            raise FrameReadError(
                f"frame {index}, {path}, cannot be decoded: {error}; expected a picture of {self.width}x{self.height}"
            ) from error
        if frame.shape[:2] != (self.height, self.width):
            raise FrameReadError(
                f"frame {index}, {path}, is {frame.shape[1]}x{frame.shape[0]}, expected {self.width}x{self.height}"
            )
        return frame

    def close(self) -> None:
        """Nothing is held open."""


class FrameList:
    """Frames in memory: a list of PIL images, arrays or tensors, or one array or tensor of four axes.

    A frame is converted when it is read; uint8 arrays (H, W, 3) are handed out without a copy.
    """

    def __init__(self, frames: Sequence[Any] | np.ndarray | Tensor, *, name: str = "frame list") -> None:
        """Check the sizes of all frames, and the values of the first.

        Raises:
            TypeError: a frame is no PIL image, array or tensor, or neither uint8 nor float.
            ValueError: no frames, frames of different sizes or without three colours, floats outside 0 to 1, or PIL
                images that have not 8 bits a pixel.
        """
        self.frames = frames
        self.name = name
        alike = isinstance(frames, np.ndarray | Tensor)
        checked = range(min(len(frames), 1) if alike else len(frames))
        labels = [f"frame {index}" for index in checked]
        self.width, self.height = _common_size([_frame_size(frames[index], labels[index]) for index in checked], labels)
        if not alike:
            turned = [isinstance(frame, Image.Image) and is_turned(frame) for frame in frames]
            _warn_of_turned(name, list(itertools.compress(labels, turned)))
        self.read(0)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> np.ndarray:
        """The frame as (H, W, 3) uint8 RGB.

        Raises:
            TypeError: neither uint8 nor float.
            ValueError: floats outside 0 to 1, or a PIL image that has not 8 bits a pixel.
        """
        return as_rgb(self.frames[index], f"frame {index}")

    def close(self) -> None:
        """Nothing is held open."""


class _Header(NamedTuple):
    """What is known of a picture file before it is decoded."""

    size: tuple[int, int]  # width, height
    is_turned: bool


def _read_header(path: Path) -> _Header:
    try:
        with Image.open(path) as image:
            check_depth(image, "it")
            return _Header(image.size, is_turned(image))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"video: no such picture: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise FrameReadError(f"video: {path} is not a picture that can be read ({error})") from error


def _warn_of_turned(name: str, labels: Sequence[str]) -> None:
    if labels:
        logger.warning(
            "%s: %s (one of %d) is turned or mirrored by its EXIF orientation where it is shown, but read as it is "
            "stored, as SAM 2 reads it, and so are the masks; if that is not meant, apply PIL.ImageOps.exif_transpose "
            "to the pictures first",
            name, labels[0], len(labels),
        )  # fmt: skip


def _frame_size(frame: Any, label: str) -> tuple[int, int]:
    """(width, height) of a frame in memory."""
    if isinstance(frame, Image.Image):
        check_depth(frame, f"video: {label}")
        return frame.size
    if not isinstance(frame, np.ndarray | Tensor):
        raise TypeError(f"video: {label} must be a PIL image, an array or a tensor, got {type(frame).__name__}")
    shape = tuple(frame.shape)
    if len(shape) == 3 and shape[2] == 3:
        return shape[1], shape[0]
    if len(shape) == 3 and shape[0] == 3:
        return shape[2], shape[1]
    raise ValueError(f"video: {label} must be (H, W, 3) or (3, H, W), got {shape}")


def _common_size(sizes: Sequence[tuple[int, int]], labels: Sequence[str]) -> tuple[int, int]:
    if not sizes:
        raise ValueError("video: there are no frames in it")
    for size, label in zip(sizes, labels, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"video: {label} is {size[0]}x{size[1]}, expected {sizes[0][0]}x{sizes[0][1]} as {labels[0]}"
            )
    if min(sizes[0]) == 0:
        raise ValueError(f"video: {labels[0]} is empty ({sizes[0][0]}x{sizes[0][1]})")
    return sizes[0]


def as_rgb(frame: Any, label: str) -> np.ndarray:
    """A PIL image, array or tensor as (H, W, 3) uint8."""
    if isinstance(frame, Image.Image):
        return rgb_pixels(frame, f"video: {label}")
    if isinstance(frame, Tensor):
        frame = frame.detach().cpu()
        frame = (frame.float() if frame.is_floating_point() else frame).numpy()
    if frame.shape[2] != 3:
        frame = frame.transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    if frame.dtype.kind == "f":
        low, high = frame.min(), frame.max()
        if not (low >= 0 and high <= 1):  # not NaN either
            raise ValueError(
                f"video: {label} has floats from {low} to {high}, expected 0 to 1; or give uint8, 0 to 255"
            )
        frame = np.rint(frame.astype(np.float32) * 255).astype(np.uint8)
    if frame.dtype != np.uint8:
        raise TypeError(f"video: {label} must be uint8, or float from 0 to 1, got {frame.dtype}")
    return np.ascontiguousarray(frame)


class PaletteMaskWriter:
    """Writes label maps as DAVIS palette PNGs into one folder, each at once or not at all."""

    def __init__(self, folder: StrPath) -> None:
        """Masks go to `folder`, which is made with the first one."""
        self.folder = Path(folder)

    def write(self, frame_name: str, labels: np.ndarray) -> Path:
        """Write one frame's label map to `<folder>/<frame_name>.png`, replacing what is there.

        Args:
            frame_name: the frame's stem, e.g. "00000".
            labels: object ids (H, W), 0 the background, up to 255.

        Raises:
            TypeError: labels are not integers or booleans.
            ValueError: labels are not (H, W) or exceed 0 to 255, or the name is not that of a file.
        """
        if not frame_name or Path(frame_name).name != frame_name:
            raise ValueError(f"frame_name must be the stem of a file, e.g. '00000', got {frame_name!r}")
        path = self.folder / f"{frame_name}.png"
        write_label_map(path, labels)
        return path


def overlay(frame: np.ndarray, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Draw objects over a frame in their DAVIS colours, with contours.

    Args:
        frame: (H, W, 3) uint8 RGB; not changed.
        labels: object ids (H, W) uint8, 0 the background.
        alpha: how opaque the objects are, 0 (contours only) to 1.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ, or alpha is not 0 to 1.
    """
    if labels.shape != frame.shape[:2] or labels.dtype != np.uint8:
        raise ValueError(f"labels must be {frame.shape[:2]} uint8 as the frame, got {labels.shape} {labels.dtype}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be 0 to 1, got {alpha}")
    import cv2

    palette = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)
    kernel = np.ones((3, 3), np.uint8)
    inside = labels > 0
    contour = inside & ((cv2.dilate(labels, kernel) != labels) | (cv2.erode(labels, kernel) != labels))
    drawn = frame.copy()
    mixed = frame[inside] * np.float32(1 - alpha) + palette[labels[inside]] * np.float32(alpha)
    drawn[inside] = np.rint(mixed).astype(np.uint8)
    drawn[contour] = palette[labels[contour]]
    return drawn

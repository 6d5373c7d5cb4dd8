"""PIL pictures as 8-bit RGB, and what of them must not be taken in silence."""

from __future__ import annotations

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are turns and reflections


def rgb_pixels(picture: Image.Image, label: str) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, as it is stored: EXIF turns nothing.

    Raises:
        ValueError: as `check_depth`.
    """
    check_depth(picture, label)
    return np.array(picture.convert("RGB"))


def check_depth(picture: Image.Image, label: str) -> None:
    """See that a pixel has 8 bits: PIL would clip others, so that 16-bit greys become white.

    Raises:
        ValueError: 16-bit grey, integers or floats.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise ValueError(f"{label} has the mode {picture.mode}, not 8 bits: scale it to 8 bits (mode L or RGB) first")


def is_turned(picture: Image.Image) -> bool:
    """Whether EXIF says that a picture is to be shown turned or mirrored. Only the header is read."""
    if "exif" not in picture.info:  # a PNG would be decoded to look for it after the pixels
        return False
    try:
        return picture.getexif().get(_ORIENTATION) in range(2, 9)
    except Exception:  # PIL fails in many ways on damaged EXIF, which the pixels do not need
        return False

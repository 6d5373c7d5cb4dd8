"""Objects drawn over a frame: tinted, outlined and named, in colours that most eyes tell apart.

An object keeps its colour by its number, which is its id where ids are numbers: over all frames and over all videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from sam2.utils.plots import COLOURS

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

_COLOURS: tuple[Colour, ...] = (
    *COLOURS[:-1], (240, 228, 66), (51, 34, 136), (136, 34, 85), (153, 153, 51), (204, 102, 119), (17, 119, 51),
)  # fmt: skip
_ALPHA = 0.45
_FONT = cv2.FONT_HERSHEY_DUPLEX


class DrawnObject(NamedTuple):
    """What is drawn of an object.

    name: written beside it.
    number: tells its colour, from 1; see `colour_of`.
    mask: (H, W) bool.
    """

    name: str
    number: int
    mask: np.ndarray


def colour_of(number: int) -> Colour:
    """The colour of an object's number, counted from 1; there are twelve, then they come again.

    They are taken from Okabe and Ito ("Color Universal Design", 2008) and Tol ("Colour Schemes", 2021), who chose them
    for eyes that do not tell red from green.
    """
    return _COLOURS[(number - 1) % len(_COLOURS)]


def draw_objects(frame: np.ndarray, objects: Sequence[DrawnObject], owner: np.ndarray) -> np.ndarray:
    """Draw objects over a frame; those with an empty mask are left out.

    Args:
        frame: (H, W, 3) uint8 RGB; not changed.
        objects: in order.
        owner: (H, W), which of `objects` tints a pixel, counted from 1, 0 for none.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ.
    """
    if owner.shape != frame.shape[:2]:
        raise ValueError(f"owner must be {frame.shape[:2]} as the frame, got {owner.shape}")
    colours = np.array([(0, 0, 0), *(colour_of(each.number) for each in objects)], np.float32)
    inside = owner > 0
    drawn = frame.copy()
    mixed = frame[inside] * np.float32(1 - _ALPHA) + colours[owner[inside]] * np.float32(_ALPHA)
    drawn[inside] = np.rint(mixed).astype(np.uint8)
    stroke = max(1, round(min(frame.shape[:2]) / 240))
    taken: list[_Plate] = []
    for each in objects:
        _draw_outline(drawn, each.mask, colour_of(each.number), stroke)
    for each in objects:
        if each.mask.any():
            plate = _place_name(each, frame.shape[0], frame.shape[1], taken)
            _draw_plate(drawn, plate, each.name, colour_of(each.number))
            taken.append(plate)
    return drawn


def _draw_outline(picture: np.ndarray, mask: np.ndarray, colour: Colour, stroke: int) -> None:
    """A coloured line with a dark rim, which shows on any background."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, contours, -1, (20, 20, 20), stroke + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, stroke, cv2.LINE_AA)


class _Plate(NamedTuple):
    """Where a name is written: upper left corner and size, and the letters' scale and base line, in pixels."""

    x: int
    y: int
    width: int
    height: int
    scale: float
    base: int

    def overlaps(self, other: _Plate) -> bool:
        return (
            self.x < other.x + other.width and other.x < self.x + self.width
            and self.y < other.y + other.height and other.y < self.y + self.height
        )  # fmt: skip


def _place_name(each: DrawnObject, height: int, width: int, taken: Sequence[_Plate]) -> _Plate:
    """Above the object's largest part, within the picture, and below the names that are there already."""
    scale = max(14, height / 26) / 30  # letters of this font are some 30 pixels high at scale 1, descenders included
    (text_width, text_height), below = cv2.getTextSize(each.name, _FONT, scale, 1)
    pad = max(2, round(0.3 * text_height))
    plate_width, plate_height = text_width + 2 * pad, text_height + 2 * pad
    _, _, parts, _ = cv2.connectedComponentsWithStats(each.mask.astype(np.uint8))
    left, top, part_width, _, _ = parts[1 + parts[1:, cv2.CC_STAT_AREA].argmax()].tolist()  # the first is the rest
    x, y = left + (part_width - plate_width) // 2, top - plate_height - 2
    x, y = min(max(x, 0), max(width - plate_width, 0)), max(y, 0)
    plate = _Plate(x, y, plate_width, plate_height, scale, y + pad + text_height)
    while any(plate.overlaps(other) for other in taken) and plate.y + 2 * plate_height < height:
        plate = plate._replace(y=plate.y + plate_height, base=plate.base + plate_height)
    return plate


def _draw_plate(picture: np.ndarray, plate: _Plate, name: str, colour: Colour) -> None:
    """Dark letters on a light colour, light ones on a dark colour."""
    corner = (plate.x + plate.width - 1, plate.y + plate.height - 1)
    cv2.rectangle(picture, (plate.x, plate.y), corner, colour, cv2.FILLED)
    cv2.rectangle(picture, (plate.x, plate.y), corner, (20, 20, 20), 1)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    ink = (255, 255, 255) if light < 140 else (0, 0, 0)
    (text_width, _), _ = cv2.getTextSize(name, _FONT, plate.scale, 1)
    left = plate.x + (plate.width - text_width) // 2
    weight = max(1, round(plate.scale * 1.2))
    cv2.putText(picture, name, (left, plate.base), _FONT, plate.scale, ink, weight, cv2.LINE_AA)

"""Prompts as the command line and prompt files give them, and what they say to the predictor."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2.utils.davis import read_label_map
from sam2.utils.rle import Rle, decode_mask, encode_mask

ALL_VIDEOS = "*"
"""The name under which a prompt file has the prompts of videos that it does not name."""

Pair = tuple[float, float]


class Prompt(NamedTuple):
    """What the user says of one object on one frame: a box, clicks or both; or a mask.

    Positions are (x, y) in pixels of the video.
    """

    obj_id: int
    frame: int
    box: tuple[float, ...] | None = None
    points: tuple[Pair, ...] = ()
    labels: tuple[int, ...] = ()  # of the points: 1 inside the object, 0 outside
    mask: Rle | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; equal prompts give equal JSON."""
        content: dict[str, Any] = {"id": self.obj_id, "frame": self.frame}
        if self.box is not None:
            content["box"] = list(self.box)
        if self.points:
            content |= {"points": [list(point) for point in self.points], "labels": list(self.labels)}
        if self.mask is not None:
            content["mask"] = self.mask.to_coco()
        return content


class Draft(NamedTuple):
    """One option or entry, as it was written.

    obj_id: None for a new object. mask: a picture of the object, or of several objects' ids where obj_id is None.
    """

    obj_id: int | None = None
    frame: int = 0
    box: tuple[float, ...] | None = None
    points: tuple[Pair, ...] = ()
    labels: tuple[int, ...] = ()
    mask: Path | None = None


# The command line


def parse_box(text: str) -> Draft:
    """Read [ID:[FRAME:]]x0,y0,x1,y1. Raises ValueError."""
    draft, rest = _split(text, "x0,y0,x1,y1")
    numbers = _numbers(rest.split(","))
    if numbers is None or len(numbers) != 4:
        raise ValueError(f"{text!r} is not [ID:[FRAME:]]x0,y0,x1,y1")
    return draft._replace(box=numbers)


def parse_point(text: str) -> Draft:
    """Read [ID:[FRAME:]]x,y[,LABEL], the label 1 (inside the object, as without one) or 0. Raises ValueError."""
    draft, rest = _split(text, "x,y")
    fields = rest.split(",")
    numbers = _numbers(fields[:2])
    if numbers is None or len(numbers) != 2 or len(fields) > 3 or fields[2:] not in ([], ["0"], ["1"]):
        raise ValueError(f"{text!r} is not [ID:[FRAME:]]x,y[,LABEL] with the label 1 (inside) or 0 (outside)")
    label = int(fields[2]) if fields[2:] else 1
    if label == 0 and draft.obj_id is None:
        raise ValueError(f"{text!r} is a point outside an object, and must say which one: ID:x,y,0")
    return draft._replace(points=((numbers[0], numbers[1]),), labels=(label,))


def parse_mask(text: str) -> Draft:
    """Read [ID:[FRAME:]]FILE. Raises ValueError."""
    draft, rest = _split(text, "FILE")
    if not rest:
        raise ValueError(f"{text!r} is not [ID:[FRAME:]]FILE")
    return draft._replace(mask=Path(rest))


def _split(text: str, what: str) -> tuple[Draft, str]:
    """The object and the frame that a text begins with, and the rest of it. An empty ID is a new object."""
    match = re.fullmatch(r"(?:(?P<id>\d*):(?:(?P<frame>\d*):)?)?(?P<rest>.*)", text)
    assert match is not None
    obj_id, frame = match["id"], match["frame"]
    return Draft(int(obj_id) if obj_id else None, int(frame) if frame else 0), match["rest"]


def _numbers(fields: Iterable[str]) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(field) for field in fields)
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


# Prompt files


class VideoPrompts(NamedTuple):
    """What a prompt file says of some videos.

    drafts: by the name of the video; empty where the file says nothing about it. warnings: what may be a mistake.
    """

    drafts: dict[str, list[Draft]]
    warnings: list[str]


class PromptFile:
    """Prompts of many videos, as JSON: for each video, by path, name or file name, a list of prompts.

        {"clip": [{"id": 1, "frame": 0, "box": [10, 20, 80, 90]},
                  {"id": 1, "points": [[40, 50], [5, 5]], "labels": [1, 0]},
                  {"frame": 12, "mask": "masks/clip_12.png"}],
         "*": [{"box": [0, 0, 50, 50]}]}

    "id" may be left out for a new object, "frame" for 0, "labels" where all are 1. Files are looked for from the
    prompt file's folder on. "*" stands for the videos that are not named.
    """

    def __init__(self, path: Path) -> None:
        """Read and check a prompt file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not such a file.
        """
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"--prompts: no such file: {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts: {path} is not a text file") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"--prompts: {path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(
                f"--prompts: {path} must hold {{video: [prompt, ...], ...}}, got a {type(content).__name__}"
            )
        self._drafts = {name: self._read(name, entries) for name, entries in content.items()}

    def of_videos(self, videos: Mapping[str, Path]) -> VideoPrompts:
        """The prompts of each video, given by its name.

        Raises:
            ValueError: two keys are the path of one video.
        """
        keys = [key for key in self._drafts if key != ALL_VIDEOS]
        try:
            key_of = match_keys(keys, videos, self.path.parent)
        except ValueError as error:
            raise ValueError(f"--prompts: {self.path}: {error}") from error
        warnings = []
        if unused := [repr(key) for key in keys if key not in key_of.values()]:
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            warnings.append(f"{self.path}: no video goes by {', '.join(unused[:5])}{more}")
        for key, count in Counter(key_of.values()).items():
            if count > 1:
                warnings.append(f"{self.path}: {count} videos go by {key!r} and get the same prompts")
        rest = self._drafts.get(ALL_VIDEOS, [])
        return VideoPrompts({name: self._drafts[key_of[name]] if name in key_of else rest for name in videos}, warnings)

    def _read(self, video: str, entries: Any) -> list[Draft]:
        if not isinstance(entries, list):
            raise ValueError(
                f"--prompts: {self.path}: {video}: must be a list of prompts, got a {type(entries).__name__}"
            )
        drafts = []
        for i, entry in enumerate(entries):
            try:
                draft = _read_entry(entry)
            except (TypeError, ValueError) as error:
                raise ValueError(f"--prompts: {self.path}: {video}: prompt {i}: {error}") from error
            drafts.append(draft if draft.mask is None else draft._replace(mask=self.path.parent / draft.mask))
        return drafts


def match_keys(keys: Sequence[str], videos: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """The key that each video goes by: its path, else its name, else its file name.

    Args:
        keys: each a path from `folder` on or as in `videos`, a name, or a file name, which may be that of several. What
            is the path of one video is not the name of another one, nor is a name a file name.
        videos: paths by name.

    Returns:
        By name, without the videos that go by none.

    Raises:
        ValueError: two keys are the path of one video.
    """
    name_of = {path.resolve(): name for name, path in videos.items()} | {str(path): n for n, path in videos.items()}
    key_of: dict[str, str] = {}
    others = []
    for key in keys:
        name = name_of.get(key) or name_of.get((folder / key).resolve())
        if name is None:
            others.append(key)
        elif name in key_of:
            raise ValueError(f"{key_of[name]!r} and {key!r} are the same video: say once what is to be tracked in it")
        else:
            key_of[name] = key
    named = {key for key in others if key in videos}
    files = {key for key in others if key not in videos}
    for name, path in videos.items():
        if name not in key_of and (name in named or path.name in files):
            key_of[name] = name if name in named else path.name
    return key_of


def _read_entry(entry: Any) -> Draft:
    known = ("id", "frame", "box", "points", "labels", "mask")
    if not isinstance(entry, Mapping):
        raise TypeError(f"must be an object with {', '.join(known)}, got {entry!r}")
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"knows no {unknown[0]!r}, only {', '.join(known)}")
    obj_id, frame = entry.get("id"), entry.get("frame", 0)
    for name, value in (("id", obj_id), ("frame", frame)):
        if not (value is None and name == "id") and not (type(value) is int and value >= 0):
            raise ValueError(f"{name} must be a whole number of 0 or more, got {value!r}")
    mask = entry.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise TypeError(f"mask must be the name of a file, got {mask!r}")
    box = None if entry.get("box") is None else _row(entry["box"], 4, "box must be [x0, y0, x1, y1]")
    points = tuple(_row(point, 2, "points must be [[x, y], ...]") for point in entry.get("points") or ())
    labels = tuple(entry.get("labels") or (1,) * len(points))
    if len(labels) != len(points) or any(type(label) is not int or label not in (0, 1) for label in labels):
        raise ValueError(f"labels must be {len(points)}, each 1 (inside) or 0 (outside), got {list(labels)}")
    if (box is None and not points) == (mask is None):
        raise ValueError("must have a box, points or both; or a mask")
    return Draft(obj_id, frame, box, points, labels, None if mask is None else Path(mask))  # type: ignore[arg-type]


def _row(values: Any, length: int, expected: str) -> tuple[float, ...]:
    is_row = isinstance(values, list) and len(values) == length
    if not is_row or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{expected}, got {values!r}")
    return tuple(float(value) for value in values)


# What they mean together


def resolve(drafts: Sequence[Draft]) -> list[Prompt]:
    """Number the new objects, read the masks, and put together what is said of one object on one frame.

    A new object gets the lowest id, from 1 on, that no draft before it has. In a picture without an id every value is
    the id of an object; in one that is black and white (0 and 255), white is a new object.

    Returns:
        In the order of their frames; on one frame, in the order they were given.

    Raises:
        FileNotFoundError: a mask is missing.
        ValueError: a picture that is no mask or an empty one, or prompts of one object that exclude each other.
    """
    split = [part for draft in drafts for part in _split_mask(draft)]
    taken: set[int] = set()
    together: dict[tuple[int, int], Prompt] = {}
    for draft, mask in split:
        free = next(number for number in itertools.count(1) if number not in taken)
        obj_id = free if draft.obj_id is None else draft.obj_id
        taken.add(obj_id)
        key = (draft.frame, obj_id)
        together[key] = _join(together.get(key, Prompt(obj_id, draft.frame)), draft, mask)
    return [together[key] for key in sorted(together, key=lambda key: key[0])]


def _split_mask(draft: Draft) -> list[tuple[Draft, Rle | None]]:
    """A draft for each object of its mask."""
    if draft.mask is None:
        return [(draft, None)]
    if not draft.mask.is_file():
        raise FileNotFoundError(f"mask: no such file: {draft.mask}")
    labels = read_label_map(draft.mask)
    values = np.unique(labels[labels > 0]).tolist()
    if not values:
        raise ValueError(f"{draft.mask}: there is no object in this mask")
    if draft.obj_id is not None or values == [255]:
        return [(draft, encode_mask(labels > 0))]
    return [(draft._replace(obj_id=value), encode_mask(labels == value)) for value in values]


def _join(prompt: Prompt, draft: Draft, mask: Rle | None) -> Prompt:
    """Add to what is said of an object on a frame."""
    where = f"object {prompt.obj_id} on frame {prompt.frame}"
    if prompt.mask is not None or (mask is not None and (prompt.box is not None or prompt.points)):
        raise ValueError(f"{where} has a mask and another prompt: give one of them")
    if prompt.box is not None and draft.box is not None:
        raise ValueError(f"{where} has two boxes: give one, or another id")
    return prompt._replace(
        box=prompt.box or draft.box,
        points=prompt.points + draft.points,
        labels=prompt.labels + draft.labels,
        mask=mask,
    )


def apply(predictor: Any, state: Any, prompts: Sequence[Prompt]) -> None:
    """Give prompts to a session of a `SAM2VideoPredictor`.

    Raises:
        ValueError: a frame or a position that the video does not have, or a mask of another size.
    """
    for prompt in prompts:
        _check_place(prompt, state.video_height, state.video_width)
        obj_id: Hashable = prompt.obj_id
        if prompt.mask is not None:
            predictor.add_new_mask(state, prompt.frame, obj_id, decode_mask(prompt.mask))
            continue
        points = prompt.points or None
        labels = prompt.labels or None
        predictor.add_new_points_or_box(state, prompt.frame, obj_id, points=points, labels=labels, box=prompt.box)


def _check_place(prompt: Prompt, height: int, width: int) -> None:
    if prompt.mask is not None and (prompt.mask.height, prompt.mask.width) != (height, width):
        raise ValueError(
            f"the mask of object {prompt.obj_id} is {prompt.mask.width}x{prompt.mask.height}, "
            f"and the frames are {width}x{height}"
        )
    for x, y in prompt.points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"point ({x:g}, {y:g}) of object {prompt.obj_id} is not in the frames, which are {width}x{height}"
            )

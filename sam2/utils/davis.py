"""The DAVIS layout on disk: which sequences, frames and annotations there are, and label maps as palette PNGs.

A label map is a uint8 array (H, W) of object ids; 0 is the background. DAVIS 2017 stores it as a PNG whose pixel values
are the ids and whose palette gives each id a colour (Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object
Segmentation", 2017).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from sam2.utils.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_RESOLUTION = "480p"
DEFAULT_YEAR = "2017"
_OBJECT_FOLDER = re.compile(r"\d{3,}(_.*)?")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def _davis_palette() -> bytes:
    """The PASCAL VOC rule: bit 3k + c of the id becomes bit 7 - k of colour channel c."""
    colours = bytearray()
    for label in range(256):
        for channel in range(3):
            colours.append(sum((label >> (3 * k + channel) & 1) << (7 - k) for k in range(3)))
    return bytes(colours)


DAVIS_PALETTE: bytes = _davis_palette()
"""Red, green and blue of ids 0 to 255, 768 bytes: id i has the colour DAVIS_PALETTE[3 * i : 3 * i + 3]."""


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read object ids from a mask picture.

    Palette PNGs give their pixel values, grey PNGs their grey levels, and coloured ones (RGB, opaque RGBA) the ids
    whose DAVIS colours they show. An RGB picture that is grey throughout and holds other colours than DAVIS's is read
    as grey. Grey 0/255 masks come back as 0 and 255: one picture cannot say what 255 means.

    Returns:
        uint8 (H, W), ids 0 to 255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the picture cannot be read, or its ids are ambiguous: lossy compression, colours outside the DAVIS
            palette, a palette that gives ids the DAVIS colours of other ids, transparency, values above 255.
    """
    try:
        with Image.open(path) as image:
            if image.format in ("JPEG", "WEBP"):
                raise ValueError(f"{path}: {image.format} does not keep object ids exactly; save the label map as PNG")
            return _label_map_of(image, path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture that can be read") from error
    except (OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise
        raise ValueError(f"{path}: damaged or cut short ({error})") from error


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write object ids as a palette PNG with the DAVIS colours, at once or not at all.

    The picture is written beside `path` and then renamed: nobody reads half a file and a killed run leaves none under
    that name. Missing folders are made.

    Args:
        path: where to; should end in .png.
        labels: (H, W) integers 0 to 255 or booleans.

    Raises:
        TypeError: labels are not integers or booleans.
        ValueError: labels are not (H, W) or exceed 0 to 255.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"labels must be (H, W), got shape {labels.shape}")
    if labels.dtype.kind not in "bui":
        raise TypeError(f"labels must be integers or booleans, got {labels.dtype}; threshold mask logits first")
    if labels.dtype.kind != "b" and labels.dtype != np.uint8 and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"labels must be 0 to 255, got {labels.min()} to {labels.max()}")
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(DAVIS_PALETTE)

    with replacing(Path(path)) as partial:
        image.save(partial, format="PNG", compress_level=3)


def is_label_map(path: str | os.PathLike[str]) -> bool:
    """Whether a picture has a palette, as all have that `write_label_map` writes; frames have none."""
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except OSError:
        return False


def object_folders(folder: Path) -> list[Path]:
    """Folders within one that are named as those of the masks of one object: 007, 012_left_hand. No links."""
    named = [each for each in sorted(folder.iterdir()) if _OBJECT_FOLDER.fullmatch(each.name)]
    return [each for each in named if each.is_dir() and not each.is_symlink()]


def label_maps(folder: Path) -> Iterator[Path]:
    """The label maps in a folder and in those of single objects within it; none where there is no folder."""
    if folder.is_dir():
        for place in (folder, *object_folders(folder)):
            yield from filter(is_label_map, sorted(place.glob("[!.]*.png")))


def merge_masks(obj_ids: Sequence[int], masks: np.ndarray | Tensor) -> np.ndarray:
    """Merge one mask per object into one label map, at most one object per pixel.

    A pixel belongs to the object with the highest logit there, if that is above 0. Equal logits go to the object that
    comes first in `obj_ids`. Booleans count as logits 1 and 0.

    Args:
        obj_ids: N different ids, 1 to 255.
        masks: mask logits or booleans, (N, H, W) or, as `propagate_in_video` yields them, (N, 1, H, W). A tensor stays
            on its device until the labels are known.

    Returns:
        uint8 (H, W).

    Raises:
        ValueError: ids that a label map cannot hold, or not one mask per id.
    """
    ids = [int(obj_id) for obj_id in obj_ids]
    if len(set(ids)) != len(ids) or any(not 1 <= obj_id <= 255 for obj_id in ids):
        raise ValueError(f"obj_ids must be different integers from 1 to 255, got {list(obj_ids)}")
    shape = tuple(masks.shape)
    if not (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)) or shape[0] != len(ids):
        raise ValueError(f"masks must be (N, H, W) or (N, 1, H, W) with N = {len(ids)} objects, got {shape}")
    masks = masks.reshape(shape[0], *shape[-2:])
    if not ids:
        return np.zeros(shape[-2:], np.uint8)
    if not isinstance(masks, np.ndarray) and not masks.is_cpu:
        logits = masks.detach() if masks.is_floating_point() else masks.int()  # booleans have no maximum
        best, index = logits.max(dim=0)  # also the first of equals, and only the labels leave the device
        return np.where((best > 0).cpu().numpy(), np.array(ids, np.uint8)[index.cpu().numpy()], np.uint8(0))
    planes = masks if isinstance(masks, np.ndarray) else masks.detach().float().numpy()
    labels, highest = np.zeros(shape[-2:], np.uint8), np.zeros(shape[-2:], planes.dtype)
    for obj_id, plane in zip(ids, planes, strict=True):
        labels[plane > highest] = obj_id
        np.maximum(highest, plane, out=highest)
    return labels


def _label_map_of(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    mode = image.mode
    if mode == "P":
        _check_palette(image, path)
        return np.array(image)
    if mode in ("L", "1"):
        return np.array(image).astype(np.uint8)
    if mode in ("RGB", "RGBA"):
        pixels = np.array(image)
        if mode == "RGBA" and not (pixels[..., 3] == 255).all():
            raise ValueError(f"{path}: partly transparent, so its colours do not say which object a pixel shows")
        return _labels_from_colours(pixels[..., :3], path)
    if mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"{path}: holds values {values.min()} to {values.max()}; object ids are 0 to 255")
        return values.astype(np.uint8)
    raise ValueError(f"{path}: mode {mode!r} is not a label map; expected a palette, grey or RGB PNG")


_LEVEL = np.full(256, 8, np.int16)
"""Channel value to level: multiples of 32 are 0 to 7, anything else 8. Some tools write 191 where the rule says 192."""
_LEVEL[::32] = np.arange(8)
_LEVEL[191] = 6


def _ids_of_levels() -> np.ndarray:
    """Id of each (red, green, blue) level, (729,) int16; -1 where the DAVIS palette has no such colour."""
    ids = np.full(9**3, -1, np.int16)
    levels = _LEVEL[np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)]
    ids[levels @ np.array([81, 9, 1], np.int16)] = np.arange(256)
    return ids


_ID_OF_LEVELS = _ids_of_levels()


def _ids_from_colours(colours: np.ndarray) -> np.ndarray:
    """DAVIS ids of colours (..., 3) uint8, int16 (...), -1 for other colours."""
    red, green, blue = (_LEVEL[colours[..., channel]] for channel in range(3))
    return _ID_OF_LEVELS[red * 81 + green * 9 + blue]


def _labels_from_colours(pixels: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    labels = _ids_from_colours(pixels)
    if labels.min() >= 0:
        return labels.astype(np.uint8)
    grey = pixels[..., 0]
    if np.array_equal(grey, pixels[..., 1]) and np.array_equal(grey, pixels[..., 2]):
        return grey.copy()
    row, column = np.argwhere(labels < 0)[0]
    colour = tuple(int(value) for value in pixels[row, column])
    raise ValueError(
        f"{path}: {(labels < 0).sum()} pixels have colours outside the DAVIS palette, the first {colour} at row {row}, "
        f"column {column}; was it resized, compressed or drawn over a frame?"
    )


def _check_palette(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Refuse a palette that shows ids in the DAVIS colours of other ids."""
    palette = bytes(image.getpalette("RGB") or ())
    if DAVIS_PALETTE.startswith(palette):
        return
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    used = np.flatnonzero(image.histogram())
    used = used[used < len(colours)]
    shown = _ids_from_colours(colours[used])
    is_grey_ramp = (colours[used] == used[:, None]).all()
    if is_grey_ramp or (shown < 0).any() or np.array_equal(shown, used) or not shown.any():
        return
    first = int(np.flatnonzero(shown != used)[0])
    raise ValueError(
        f"{path}: value {used[first]} is shown in the DAVIS colour of id {shown[first]}, so values and colours name "
        "different objects; some tool reordered the palette. Convert it to RGB or restore the DAVIS palette"
    )


@dataclass(frozen=True)
class DavisRoot:
    """The folders of a DAVIS-layout data set; `DavisRoot.open` finds them.

    Sequences are folders of frames under `frames_dir` and of label maps under `annotations_dir`, with equal stems
    (`00000.jpg`, `00000.png`). Either may be missing (None). Files are in natural order (2 before 10).
    """

    root: Path
    frames_dir: Path | None
    annotations_dir: Path | None
    split_dir: Path | None

    @classmethod
    def open(cls, root: str | os.PathLike[str], *, resolution: str | None = None, year: str | None = None) -> DavisRoot:
        """Find `JPEGImages/<resolution>`, `Annotations/<resolution>` and `ImageSets/<year>` under `root`.

        Args:
            root: the data set's folder.
            resolution: name of the folder between `JPEGImages` and the sequences. None takes "480p" if it is there,
                else the only one, else none (sequences directly under `JPEGImages`, as YouTube-VOS has them).
            year: name of the folder with the split files. None takes "2017" if it is there, else the one that is named
                as the resolution (DAVIS 2016), else the only one, else `ImageSets` itself. Of several others none is
                taken: `sequences` asks for one.

        Raises:
            FileNotFoundError: no such folder, no `JPEGImages` or `Annotations` in it, or not this resolution or year.
            ValueError: several resolutions and none was named.
        """
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"root: no such folder: {root}")
        frames, annotations = root / "JPEGImages", root / "Annotations"
        if not frames.is_dir() and not annotations.is_dir():
            raise FileNotFoundError(
                f"root: {root} is no DAVIS-layout folder: neither JPEGImages nor Annotations, found {_names(root)}"
            )
        frames_dir = _resolution_dir(frames, resolution) if frames.is_dir() else None
        annotations_dir = _resolution_dir(annotations, resolution) if annotations.is_dir() else None
        used = (annotations_dir or frames_dir or root).name
        return cls(root, frames_dir, annotations_dir, _split_dir(root / "ImageSets", year, used))

    def splits(self) -> list[str]:
        """Names of the splits that the data set lists, e.g. ["train", "val"]; empty when it lists none."""
        return sorted(path.stem for path in self.split_dir.glob("*.txt")) if self.split_dir else []

    def sequences(self, split: str | None = None) -> list[str]:
        """Names of the sequences of a split in the order of its file; of all sequences, sorted, with None.

        A file has a name on each line or, as those of DAVIS 2016, the paths of a frame and its annotation. A data set
        that lists no splits at all has all its sequences in every split.

        Raises:
            ValueError: the data set lists splits, but not this one, or in several folders of which none was named.
            FileNotFoundError: no sequences, or the split lists one that is not there.
        """
        base = self.annotations_dir or self.frames_dir
        assert base is not None
        if split is not None and self.split_dir is not None and not self.splits():
            holders = sorted(path.name for path in _folders(self.split_dir) if any(path.glob("*.txt")))
            if len(holders) > 1:
                raise ValueError(
                    f"year: {self.split_dir} lists splits in {', '.join(holders)}; name one, put the lists that are "
                    f"meant into {self.split_dir / DEFAULT_YEAR}, or name the sequences"
                )
        if split is None or not self.splits():
            found = sorted(path.name for path in _folders(base))
            if not found:
                raise FileNotFoundError(f"root: no sequences in {base}")
            return found
        if split not in self.splits():
            raise ValueError(f"split: {split!r} is not one of {', '.join(self.splits())} in {self.split_dir}")
        assert self.split_dir is not None
        lines = (self.split_dir / f"{split}.txt").read_text().splitlines()
        names = list(dict.fromkeys(_listed_sequence(line.strip()) for line in lines if line.strip()))
        missing = [name for name in names if not self.has(name)]
        if missing or not names:
            what = f"lists {', '.join(missing[:3])}, which {base} lacks" if missing else "lists no sequence"
            raise FileNotFoundError(f"split: {self.split_dir / split}.txt {what}")
        return names

    def frame_paths(self, sequence: str) -> list[Path]:
        """The frames of a sequence, in order. Of pictures with equal stems the first in `FRAME_SUFFIXES` is the frame.

        Raises:
            FileNotFoundError: no frames of this sequence.
        """
        paths = _files(self.frames_dir, sequence, FRAME_SUFFIXES, "frames", self.root / "JPEGImages")
        by_rank = sorted(paths, key=lambda path: FRAME_SUFFIXES.index(path.suffix.lower()), reverse=True)
        chosen = {path.stem: path for path in by_rank}
        return [path for path in paths if chosen[path.stem] == path]

    def annotation_paths(self, sequence: str) -> list[Path]:
        """The label maps of a sequence, in order; there may be fewer than frames.

        Raises:
            FileNotFoundError: no annotations of this sequence.
        """
        return _files(self.annotations_dir, sequence, (".png",), "annotations", self.root / "Annotations")

    def annotation_path(self, sequence: str, frame: str) -> Path:
        """The label map of one frame, which is named by its stem, e.g. "00000".

        Raises:
            FileNotFoundError: this frame is not annotated.
        """
        paths = self.annotation_paths(sequence)
        for path in paths:
            if path.stem == frame:
                return path
        raise FileNotFoundError(
            f"frame: {sequence} has no annotation of {frame!r} in {paths[0].parent}; "
            f"there are {len(paths)}, from {paths[0].name} to {paths[-1].name}"
        )

    def has(self, sequence: str) -> bool:
        """Whether there is a folder of this sequence's frames or annotations."""
        return any(base is not None and (base / sequence).is_dir() for base in (self.frames_dir, self.annotations_dir))


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key by which `2.png` comes before `10.png`."""
    parts = re.split(r"(\d+)", path.stem)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def list_pictures(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of these suffixes in natural order, hidden ones left out; empty when there is no such folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(found, key=natural_key)


def _resolution_dir(base: Path, resolution: str | None) -> Path:
    if resolution is not None:
        if not (base / resolution).is_dir():
            raise FileNotFoundError(f"resolution: no {resolution!r} in {base}, found {_names(base)}")
        return base / resolution
    # Hidden folders are no sequences: a notebook that was opened beside frames leaves one there.
    holders = [path for path in _folders(base) if _folders(path)]
    if not holders:
        return base
    by_name = {path.name: path for path in holders}
    if DEFAULT_RESOLUTION in by_name:
        return by_name[DEFAULT_RESOLUTION]
    if len(holders) > 1:
        raise ValueError(f"resolution: {base} has {', '.join(sorted(by_name))}; name one")
    return holders[0]


def _folders(base: Path) -> list[Path]:
    """Folders within one, hidden ones left out."""
    return [path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _split_dir(base: Path, year: str | None, resolution: str) -> Path | None:
    """The folder with the split files, `year` or, with None, as `DavisRoot.open` says; None where there is none."""
    if year is not None:
        if not (base / year).is_dir():
            raise FileNotFoundError(f"year: no folder {base / year}")
        return base / year
    if not base.is_dir():
        return None
    holders = {path.name: path for path in _folders(base) if any(path.glob("*.txt"))}
    for name in (DEFAULT_YEAR, resolution):
        if name in holders:
            return holders[name]
    return next(iter(holders.values())) if len(holders) == 1 else base


def _listed_sequence(line: str) -> str:
    """The sequence that a line of a split file names."""
    first = line.split()[0]
    is_frame = "/" in first and first.lower().endswith(FRAME_SUFFIXES)
    return first.split("/")[-2] if is_frame else line


def _files(base: Path | None, sequence: str, suffixes: Sequence[str], what: str, expected: Path) -> list[Path]:
    if base is None:
        raise FileNotFoundError(f"root: no {what}, there is no folder {expected}")
    if not (base / sequence).is_dir():
        raise FileNotFoundError(f"sequence: no {what} of {sequence!r} in {base}, found {_names(base)}")
    paths = list_pictures(base / sequence, suffixes)
    if not paths:
        raise FileNotFoundError(f"sequence: no {what} ({', '.join(suffixes)}) in {base / sequence}")
    return paths


def _names(folder: Path, most: int = 5) -> str:
    """The first few entries of a folder, for error messages."""
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more

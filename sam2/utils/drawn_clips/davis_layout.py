"""Drawn clips as a data set on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from sam2.utils.davis import DEFAULT_RESOLUTION, DEFAULT_YEAR, DavisRoot, write_label_map
from sam2.utils.drawn_clips.records import DrawnClip


def write_davis_layout(
    root: str | os.PathLike[str], clips: Mapping[str, DrawnClip], *, split: str = "val", quality: int = 95
) -> DavisRoot:
    """Write clips as a DAVIS-layout data set: JPEG frames, palette PNG annotations and one split that lists them all.

    Args:
        root: folder, made if missing.
        clips: by sequence name.
        split: name of the split.
        quality: of the JPEGs, 1 to 100.
    """
    root = Path(root)
    for name, clip in clips.items():
        frames = root / "JPEGImages" / DEFAULT_RESOLUTION / name
        frames.mkdir(parents=True, exist_ok=True)
        for t, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            Image.fromarray(frame).save(frames / f"{t:05d}.jpg", quality=quality)
            write_label_map(root / "Annotations" / DEFAULT_RESOLUTION / name / f"{t:05d}.png", labels)
    listing = root / "ImageSets" / DEFAULT_YEAR / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in clips), encoding="utf-8")
    return DavisRoot.open(root)

"""Command line: python -m training.curves RUN --picture FILE draws how a run went.

RUN is the `--output` folder of a training run. The picture shows the mean J on held-out clips after a mask, a box and a
click on the first frame, and the mean IoU on the training clips, by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sam2.utils.plots import Curve, Point, draw_curves
from training.logs import whole_rows
from training.prompts import KINDS

BINS = 40
"""Stretches of the run whose training IoU is shown as one point: single steps differ by their clips."""


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a log, none where there is no log: the run may be under way, or may not measure."""
    rows = whole_rows(path) if path.is_file() else []
    return [{name: float(value or "nan") for name, value in row.items()} for row in rows]


def run_curves(folder: Path) -> list[Curve]:
    """What a run's logs show, J and IoU from 0 to 1. Raises FileNotFoundError where there is no run."""
    measured, trained = (read_rows(folder / f"{name}.csv") for name in ("validation", "train"))
    if not trained:
        raise FileNotFoundError(f"{folder / 'train.csv'} has no row: give the --output folder of a training run")
    curves = [
        Curve(f"held-out clips, {kind}", [Point(row["step"], row[kind]) for row in measured])
        for kind in KINDS
        if measured
    ]
    tracked = np.array([(row["step"], row["tracked_iou"]) for row in trained if np.isfinite(row["tracked_iou"])])
    parts = np.array_split(tracked, min(BINS, len(tracked))) if len(tracked) else []
    points = [Point(*part.mean(axis=0)) for part in parts]
    return [*curves, Curve("training clips, tracked", points)] if points else curves


def draw_run(folder: Path) -> Image.Image:
    """The picture of a run."""
    title = "Mean J on held-out drawn clips, mean IoU on training clips"
    return draw_curves(run_curves(folder), title=title, x_label="step", y_label="J, IoU")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the arguments say."""
    parser = argparse.ArgumentParser(description="Draw how a training run went.")
    parser.add_argument("run", type=Path, help="the run's --output folder")
    parser.add_argument("--picture", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    try:
        draw_run(args.run).save(args.picture)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()

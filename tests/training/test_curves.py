"""The picture of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training.curves import BINS, main, run_curves


def write_logs(folder: Path, steps: int) -> None:
    rows = [f"{10 * i},{i / steps},nan" if i % 2 else f"{10 * i},nan,1" for i in range(1, steps + 1)]
    (folder / "train.csv").write_text("step,tracked_iou,other\n" + "\n".join(rows) + "\n")
    (folder / "validation.csv").write_text("step,mask,box,click\n0,0.5,0.1,0.2\n400,0.75,0.4,0.3\n")


def test_a_run_is_shown_by_its_validation_and_its_training_without_steps_that_tracked_nothing(tmp_path: Path):
    write_logs(tmp_path, 4 * BINS)
    *measured, trained = run_curves(tmp_path)
    assert [curve.name for curve in measured] == [f"held-out clips, {kind}" for kind in ("mask", "box", "click")]
    assert [(point.x, point.y) for point in measured[0].points] == [(0, 0.5), (400, 0.75)]
    assert len(trained.points) == BINS
    assert sum(point.y for point in trained.points) / BINS == pytest.approx(0.5)


def test_a_picture_is_written_and_a_folder_without_a_run_is_named(tmp_path: Path):
    write_logs(tmp_path, 4)
    main([str(tmp_path), "--picture", str(tmp_path / "run.png")])
    assert Image.open(tmp_path / "run.png").size == (900, 560)
    with pytest.raises(SystemExit, match="train.csv has no row"):
        main([str(tmp_path / "none"), "--picture", str(tmp_path / "none.png")])


def test_a_run_under_way_that_does_not_measure_is_shown_without_its_last_half_row(tmp_path: Path):
    (tmp_path / "train.csv").write_text("step,tracked_iou,other\n10,0.5,1\n20,0.6")
    (curve,) = run_curves(tmp_path)
    assert [(point.x, point.y) for point in curve.points] == [(10, 0.5)]

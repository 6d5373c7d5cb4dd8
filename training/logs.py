"""Logs of a run: one CSV file for training and one for validation, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam2.utils.files import replacing

logger = logging.getLogger(__name__)


def whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file without the last one if it was cut short: the disk is full, or it is being written."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


class CsvLog:
    """Rows of numbers under a header, appended one by one. Rows after `resume_step` are dropped when it opens."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept: list[dict[str, str]] = []
        if resume_step and path.is_file():
            kept = [row for row in whole_rows(path) if int(row["step"]) <= resume_step]
        self.header = list(kept[0]) if kept else []
        self._rewrite(kept)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; new names become new columns."""
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        if new := [name for name in row if name not in self.header]:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.header += new
            self._rewrite([*rows, row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.header).writerow(row)

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            if self.header:
                writer = csv.DictWriter(file, self.header)
                writer.writeheader()
                writer.writerows(rows)


class RunLog:
    """What a run reports: train.csv and validation.csv in its folder, and the same to TensorBoard."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        self.files = {name: CsvLog(folder / f"{name}.csv", resume_step) for name in ("train", "validation")}
        self.board: Any = _open_tensorboard(folder, resume_step)

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Report values after so many steps under "train" or "validation"."""
        self.files[name].append(step, values)
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self.board is not None:
            self.board.close()


def _open_tensorboard(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info('no TensorBoard log: pip install "sam2[training]" adds it; the CSV files hold the same numbers')
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

"""Logs of a run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from training.logs import CsvLog, RunLog


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_log_drops_what_will_be_done_again(tmp_path: Path):
    log = CsvLog(tmp_path / "a.csv", 0)
    for step in range(4):
        log.append(step, {"loss": 0.5 * step})
    CsvLog(tmp_path / "a.csv", 1).append(2, {"loss": 9.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "a.csv")] == [("0", "0"), ("1", "0.5"), ("2", "9")]


def test_a_row_that_was_cut_short_is_dropped(tmp_path: Path):
    (tmp_path / "a.csv").write_text("step,loss,lr\n1,0.5,0.1\n2,0.4,0.0")  # of 0.015, say
    CsvLog(tmp_path / "a.csv", 2)
    assert [row["step"] for row in rows(tmp_path / "a.csv")] == ["1"]


def test_a_new_run_starts_a_new_log(tmp_path: Path):
    CsvLog(tmp_path / "a.csv", 0).append(0, {"loss": 1.0})
    CsvLog(tmp_path / "a.csv", 0)
    assert rows(tmp_path / "a.csv") == []


def test_a_new_number_becomes_a_new_column(tmp_path: Path):
    log = CsvLog(tmp_path / "a.csv", 0)
    log.append(0, {"loss": 1.0})
    log.append(1, {"loss": 2.0, "lr": 0.1})
    assert rows(tmp_path / "a.csv") == [{"step": "0", "loss": "1", "lr": ""}, {"step": "1", "loss": "2", "lr": "0.1"}]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the extra `training` installs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write("train", 3, {"loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.25)]


def test_without_tensorboard_the_csv_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path)
    log.write("validation", 3, {"mask": 0.5})
    log.close()
    assert rows(tmp_path / "validation.csv") == [{"step": "3", "mask": "0.5"}]

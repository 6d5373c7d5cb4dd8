from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_davis_jf
from sam2.utils.davis import write_label_map

STATISTICS = ("mean", "recall", "decay")


def label_map(left: int, right: int) -> np.ndarray:
    return np.repeat([[left, left, right, right]], 4, axis=0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> Path:
    """A root with one sequence of two objects and five frames; `good` repeats it, `poor` loses object 2 after two."""
    for name, kept in (("gt/Annotations/480p", 5), ("good", 5), ("poor", 2)):
        for i in range(5):
            write_label_map(tmp_path / name / "duck" / f"{i:05d}.png", label_map(1, 2 if i < kept else 0))
    return tmp_path


def run(folders: Path, *predictions: str, options: tuple[str, ...] = ()) -> int:
    arguments = ["--gt_root", str(folders / "gt")]
    for i, name in enumerate(predictions, start=1):
        arguments += [f"--pred{i}", str(folders / name)]
    return eval_davis_jf.main([*arguments, "--processes", "1", *options])


def summarise(folder: Path, **content: object) -> None:
    (folder / "summary.json").write_text(json.dumps(content))


def test_the_json_equals_the_official_evaluation(shared, tmp_path, capsys):
    out = tmp_path / "new/scores.json"
    root = shared / "metrics"
    assert eval_davis_jf.main(["--gt_root", str(root), "--pred1", str(root / "osvos"), "--json", str(out)]) == 0
    expected = json.loads((root / "expected.json").read_text())
    scores = json.loads(out.read_text())
    assert set(scores) == {"pred1"} and set(scores["pred1"]) == {"overall", "objects"}
    overall = scores["pred1"]["overall"]
    assert overall["J&F"] == pytest.approx(expected["global"]["J&F-Mean"], abs=1e-6)
    for letter in "JF":
        official = [expected["global"][f"{letter}-{name.capitalize()}"] for name in STATISTICS]
        assert [overall[letter][name] for name in STATISTICS] == pytest.approx(official, abs=1e-6)
        for name, obj in expected["per_object"].items():
            found = [scores["pred1"]["objects"][name][letter][key] for key in STATISTICS]
            assert found == pytest.approx(obj[letter], abs=1e-6)
    assert set(scores["pred1"]["objects"]) == set(expected["per_object"])
    assert "overall" in capsys.readouterr().out


def test_the_table_has_objects_sequences_and_the_whole(folders, capsys):
    assert run(folders, "poor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].split()
        == ["poor", "J&F", "J", "mean", "J", "recall", "J", "decay"] + "F mean F recall F decay".split()
    )
    assert [line.split()[:-7] for line in lines if line[-1:].isdigit()] == [
        ["duck"],
        ["object", "1"],
        ["object", "2"],
        ["overall"],
    ]
    # Object 2 is right in the first of the three frames that count: J 1, 0, 0.
    assert lines[3].split()[3:5] == ["0.3333", "0.3333"]


def test_two_predictions_are_compared(folders, tmp_path):
    summarise(folders / "good", frames=10, seconds=20.0, skip_rate=0.0, device="cpu", processed=10)
    summarise(folders / "poor", frames=5, seconds=4.0, skip_rate=0.6, device="cpu")
    assert run(folders, "good", "poor", options=("--json", str(tmp_path / "a.json"))) == 0
    scores = json.loads((tmp_path / "a.json").read_text())
    assert set(scores) == {"pred1", "pred2", "fidelity", "comparison"}
    # The first repeats the annotation, so the fidelity of the second is its accuracy: object 2 in one frame of three.
    assert scores["fidelity"] == scores["pred2"]
    assert scores["fidelity"]["objects"]["duck_2"]["J"] == pytest.approx({"mean": 1 / 3, "recall": 1 / 3, "decay": 0.5})
    assert scores["comparison"] == {
        "J&F": scores["pred2"]["overall"]["J&F"] - 1.0,
        "skip_rate": {"pred1": 0.0, "pred2": 0.6},
        "speedup": pytest.approx((20 / 10) / (4 / 5)),
    }


def test_the_comparison_is_printed(folders, capsys):
    summarise(folders / "good", frames=10, seconds=20.0, skip_rate=0.0)
    summarise(folders / "poor", frames=10, seconds=8.0, skip_rate=0.625)
    run(folders, "good", "poor")
    text = capsys.readouterr().out.split("poor beside good")[1].splitlines()
    assert text[1].split() == ["duck", "1.0000", "0.6667", "-0.3333", "0.6667"]
    assert text[-2].split() == ["skip", "rate", "0.0%", "62.5%"]
    assert text[-1].split() == ["speed-up", "2.50x"]


@pytest.mark.parametrize("first, second", [(None, 0.5), ({"device": "cpu"}, {"device": "cuda:0"})])
def test_without_comparable_records_there_is_no_speedup(folders, tmp_path, first, second):
    if first is not None:
        summarise(folders / "good", frames=10, seconds=20.0, skip_rate=0.0, **first)
        summarise(folders / "poor", frames=10, seconds=8.0, skip_rate=0.5, **second)
    run(folders, "good", "poor", options=("--json", str(tmp_path / "a.json")))
    comparison = json.loads((tmp_path / "a.json").read_text())["comparison"]
    assert comparison["speedup"] is None
    assert comparison["skip_rate"]["pred2"] == (None if first is None else 0.5)


def test_the_csv_has_a_row_for_everything(folders, tmp_path):
    run(folders, "good", "poor", options=("--csv", str(tmp_path / "a.csv")))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prediction"], row["sequence"], row["object"]) for row in rows] == [
        (name, *place)
        for name in ("pred1", "pred2", "fidelity")
        for place in (("duck", ""), ("duck", "1"), ("duck", "2"), ("overall", ""))
    ]
    assert float(rows[6]["J mean"]) == pytest.approx(1 / 3)


def test_an_object_that_is_never_shown_is_noted(folders, capsys):
    for path in (folders / "poor/duck").iterdir():
        write_label_map(path, label_map(1, 0))
    assert run(folders, "poor") == 0
    assert "poor never shows duck_2" in capsys.readouterr().err


def break_prediction(folders: Path, image: Image.Image) -> None:
    image.save(folders / "good/duck/00002.png")


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda root: (root / "good/duck/00002.png").unlink(), "1 of 3 scored frames missing, the first 00002.png"),
        (lambda root: break_prediction(root, Image.new("L", (4, 4), 3)), "holds object ids 3, its annotation has 1, 2"),
        (lambda root: break_prediction(root, Image.new("L", (4, 4), 255)), "cannot tell 2 objects apart"),
        (lambda root: break_prediction(root, Image.new("L", (4, 4), 75)), "are the grey levels of DAVIS's colours"),
        (lambda root: break_prediction(root, Image.new("RGB", (4, 4), (1, 2, 3))), "colours outside the DAVIS palette"),
        (lambda root: break_prediction(root, Image.new("L", (5, 4), 1)), "is 5x4, its annotation 4x4"),
        (lambda root: (root / "good").rename(root / "moved"), "--pred1: no such folder"),
        (lambda root: (root / "gt").rename(root / "moved"), "--gt_root: no such folder"),
        (lambda root: (root / "gt/Annotations").rename(root / "gt/Masks"), "is no DAVIS-layout folder"),
        (lambda root: (root / "good/summary.json").write_text("{}"), "not the summary of a run"),
    ],
)
def test_what_would_score_wrongly_is_refused_in_one_line(folders, capsys, break_it, message):
    break_it(folders)
    assert run(folders, "good", "poor") == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_split_that_is_not_listed_is_refused(folders, capsys):
    listing = folders / "gt/ImageSets/2017/val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("duck\n")
    assert run(folders, "good") == 0
    assert run(folders, "good", options=("--split", "test")) == 2
    assert "split: 'test' is not one of val" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--gt_root", "a"], ["--gt_root", "a", "--pred1", "b", "--processes", "0"]])
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        eval_davis_jf.main(arguments)
    assert stop.value.code == 2


def test_it_runs_as_a_script(shared):
    script = Path(eval_davis_jf.__file__)
    root = shared / "metrics"
    command = [sys.executable, str(script), "--gt_root", str(root), "--pred1", str(root / "osvos")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-2].split() == "overall 0.2058 0.1532 0.1299 0.0077 0.2585 0.1578 -0.0240".split()

"""Results on disk: complete or not there, summed up by whoever comes last, gone on with only where nothing differs."""

import json
import os

import pytest

from sam2 import vos_records
from sam2.frame_skipping import FrameDecision, SkipOptions
from sam2.utils.files import write_text
from sam2.vos_records import RunFolder, Work

DECISIONS = [
    FrameDecision(0, "prompted", 0.0, "prompt", 0.5),
    FrameDecision(1, "reused", 0.0123456789, "low MAD (0.01)", 0.25),
    FrameDecision(2, "processed", 0.2, "high MAD (0.20)", 0.5),
    FrameDecision(3, "warped", 0.01, "low MAD (0.01)", 0.25),
]
STEMS = ["0", "1", "2", "3"]


def folder(path, *, threshold=0.1, device="cpu", **which):
    settings = {"strategy": "naive", "threshold": threshold}
    return RunFolder(path, SkipOptions(threshold), settings, device, **which)


def finish(run, name, seconds=2.0):
    for stem in STEMS:
        write_text(run.path / name / f"{stem}.png", "")
    run.finish(name, DECISIONS, seconds)


def test_a_finished_sequence_says_what_was_done_with_each_frame(tmp_path):
    finish(folder(tmp_path), "a")
    frames = json.loads((tmp_path / "a" / "frames.json").read_text())
    assert frames[:2] == [
        {"frame": 0, "action": "prompted", "change": 0.0, "seconds": 0.5},
        {"frame": 1, "action": "reused", "change": 0.012346, "seconds": 0.25},
    ]


def test_the_summary_adds_up_all_sequences(tmp_path):
    run = folder(tmp_path)
    finish(run, "a", seconds=2.0)
    finish(run, "b", seconds=3.0)
    assert run.summarise(["a", "b"]).work == Work(frames=8, processed=4, seconds=5.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    figures = {key: summary[key] for key in ("frames", "processed", "skip_rate", "seconds", "fps", "device", "missing")}
    assert figures == {
        "frames": 8, "processed": 4, "skip_rate": 0.5, "seconds": 5.0, "fps": 1.6, "device": "cpu", "missing": [],
    }  # fmt: skip
    assert summary["settings"] == {"strategy": "naive", "threshold": 0.1}
    assert set(summary["versions"]) == {"sam2", "torch", "python", "opencv"}
    assert summary["sequences"]["b"] == {"frames": 4, "processed": 2, "skip_rate": 0.5, "seconds": 3.0, "fps": 1.333}


def test_a_summary_made_before_all_is_done_names_what_is_missing(tmp_path):
    run = folder(tmp_path)
    finish(run, "b")
    assert run.summarise(["a", "b", "c"]).missing == ["a", "c"]
    assert json.loads((tmp_path / "summary.json").read_text())["missing"] == ["a", "c"]


def test_sequences_of_other_settings_are_not_summed_up(tmp_path):
    finish(folder(tmp_path, threshold=0.2), "a")
    finish(folder(tmp_path, is_plan=True), "b")
    assert folder(tmp_path).summarise(["a", "b"]).missing == ["a", "b"]


def test_what_an_earlier_run_finished_counts_only_to_resume_or_of_other_sequences(tmp_path):
    for name in ("a", "b"):
        finish(folder(tmp_path, token="earlier"), name)
    finish(folder(tmp_path, token="now"), "c")
    anew, resumed = (folder(tmp_path, token="now", resume=resume) for resume in (False, True))
    assert [anew.summarise(["a", "c"]).missing, resumed.summarise(["a", "c"]).missing] == [["a"], []]
    assert [[run.is_done(name) for name in "abcd"] for run in (anew, resumed)] == [
        [False, False, True, False], [True, True, True, False],
    ]  # fmt: skip
    assert [record.name for record in anew.summarise(["a", "c"]).records] == ["b", "c"]


def test_devices_of_all_sequences_are_named(tmp_path):
    finish(folder(tmp_path, device="cpu"), "a")
    finish(folder(tmp_path, device="mps"), "b")
    folder(tmp_path).summarise(["a", "b"])
    assert json.loads((tmp_path / "summary.json").read_text())["device"] == "cpu, mps"


def test_of_two_that_sum_up_at_once_neither_undoes_the_others_work(tmp_path, monkeypatch):
    run = folder(tmp_path)
    finish(run, "a")
    written = []

    def late_write(path, text):
        written.append(path.name)
        if written == ["summary.json"]:  # another process finishes a sequence while this one is about to write
            finish(run, "b")
        write_text(path, text)

    monkeypatch.setattr(vos_records, "write_text", late_write)
    assert run.summarise(["a", "b"]).missing == []
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 8
    assert written.count("summary.json") == 2


def test_a_sequence_is_finished_only_with_all_its_files(tmp_path):
    run = folder(tmp_path)
    assert not run.is_finished("a", STEMS)
    finish(run, "a")
    assert run.is_finished("a", STEMS)
    assert not run.is_finished("a", [*STEMS, "4"])  # the sequence has grown
    (tmp_path / "a" / "2.png").unlink()
    assert not run.is_finished("a", STEMS)


def test_a_sequence_made_from_other_inputs_is_not_finished(tmp_path):
    run = folder(tmp_path)
    for stem in STEMS:
        write_text(tmp_path / "a" / f"{stem}.png", "")
    run.finish("a", DECISIONS, 2.0, inputs="first")
    assert run.is_finished("a", STEMS, "first")
    assert not run.is_finished("a", STEMS, "second") and not run.is_finished("a", STEMS)


def test_a_plan_is_no_finished_run_and_needs_no_masks(tmp_path):
    plan = folder(tmp_path, is_plan=True)
    plan.finish("a", DECISIONS, 1.0)
    assert plan.is_finished("a", STEMS)
    assert not folder(tmp_path).is_finished("a", STEMS)
    folder(tmp_path, resume=True).check(["a"])
    assert plan.summarise(["a"]).work.expected_speedup == 2.0
    assert json.loads((tmp_path / "summary.json").read_text())["expected_speedup"] == 2.0


def test_what_a_killed_process_left_is_cleared_and_the_sequence_no_longer_finished(tmp_path):
    run = folder(tmp_path)
    finish(run, "a")
    run.summarise(["a"])
    (tmp_path / "a" / ".00001.png.77.part").write_text("half")
    run.clear("a")
    assert sorted(os.listdir(tmp_path / "a")) == [*(f"{stem}.png" for stem in STEMS), "frames.json"]
    assert os.listdir(tmp_path) == ["a"] and not run.is_finished("a", STEMS)


def test_resuming_with_other_settings_says_what_differs(tmp_path):
    finish(folder(tmp_path, threshold=0.2), "b")
    folder(tmp_path).check(["a", "b"])
    with pytest.raises(ValueError, match=r"b has other settings: threshold was 0.2, is 0.1$"):
        folder(tmp_path, resume=True).check(["a", "b"])


def test_a_plan_does_not_replace_the_records_of_masks(tmp_path):
    finish(folder(tmp_path), "a")
    with pytest.raises(ValueError, match="holds the masks of a run: give the plan another --output"):
        folder(tmp_path, is_plan=True).check(["a"])


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a"}'])
def test_a_damaged_record_is_refused_by_its_path(tmp_path, text):
    write_text(tmp_path / "a" / "sequence.json", text)
    with pytest.raises(ValueError, match=r"a/sequence.json: not the record of a sequence"):
        folder(tmp_path).record("a")

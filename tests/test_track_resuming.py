"""The tracking command in a folder that another run has used or is using: earlier ones, killed ones, other ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from tracked_videos import LENGTHS, files_of, label_maps, read_json, run, stored_of

from sam2 import exports, track, track_runs
from sam2.frame_skipping import SKIPPED
from sam2.utils.video_io import open_source
from sam2.video_results import VideoResults

pytest_plugins = ["tracked_videos"]  # its fixtures


# Stopping and resuming


def test_resuming_does_only_what_is_not_finished(videos, built, tmp_path):
    assert run(videos, tmp_path) == 0
    files = ("00001.png", "sequence.json", "results.json")
    before = [(tmp_path / "one" / name).stat().st_mtime_ns for name in files]
    for name in ("sequence.json", "results.json"):
        (tmp_path / "two" / name).unlink()
    (tmp_path / "two" / ".overlay.77.part.mp4").write_text("half a video")
    built.clear()
    assert run(videos, tmp_path, "--resume") == 0
    assert [name for name, _ in built] == ["two"] and not list(tmp_path.rglob("*.part*"))
    assert [(tmp_path / "one" / name).stat().st_mtime_ns for name in files] == before
    assert read_json(tmp_path, "summary.json")["frames"] == 7


def test_resuming_a_finished_run_builds_no_model(videos, built, tmp_path, monkeypatch):
    run(videos, tmp_path, names=["two"])
    monkeypatch.setattr(track, "build", None)
    assert run(videos, tmp_path, "--resume", names=["two"]) == 0


def test_another_format_is_written_without_tracking_anew(videos, built, tmp_path, monkeypatch):
    run(videos, tmp_path, names=["two"])
    seconds = read_json(tmp_path, "two", "sequence.json")["seconds"]
    monkeypatch.setattr(track, "build", None)
    assert run(videos, tmp_path, "--resume", "--format", "png", "youtube_vis", names=["two"]) == 0
    assert read_json(tmp_path, "two", "youtube_vis.json")["videos"][0]["length"] == 3
    assert read_json(tmp_path, "two", "sequence.json")["seconds"] == seconds


def test_an_overlay_of_another_rate_is_written_anew(videos, built, tmp_path, monkeypatch):
    pytest.importorskip("av")
    overlay, written = tmp_path / "two" / "overlay.mp4", []
    for options in ([], ["--fps", "10"], ["--fps", "10"], ["--fps", "0.5"], ["--fps", "0.5"], []):
        resume = ["--resume"] if overlay.exists() else []
        before = overlay.stat().st_mtime_ns if resume else 0
        assert run(videos, tmp_path, "--format", "mp4", *options, *resume, names=["two"]) == 0
        with closing(open_source(overlay)) as source:
            rate = round(exports.frame_rate(source), 2)
        written.append((rate, overlay.stat().st_mtime_ns > before))
    assert written == [(24, True), (10, True), (10, False), (0.5, True), (0.5, False), (24, True)]
    assert len(built) == 1


def test_an_overlay_of_one_frame_has_no_rate_to_be_wrong(videos, built, tmp_path):
    pytest.importorskip("av")
    single = tmp_path / "videos"
    (single / "two").mkdir(parents=True)
    for name in ("two/00000.jpg", "two.png", "prompts.json"):
        (single / name).write_bytes((videos / name).read_bytes())
    changed = []
    for resume in ([], ["--resume"]):
        assert run(single, tmp_path / "out", "--format", "mp4", "--fps", "0.5", *resume, names=["two"]) == 0
        changed.append((tmp_path / "out" / "two" / "overlay.mp4").stat().st_mtime_ns)
    assert changed[0] == changed[1]


def test_the_next_save_waits_as_the_last_one_took_long(videos, built, tmp_path, monkeypatch):
    saved = []

    def slow_save(folder, predictor, state, results):
        saved.append(max(results.stored))
        time.sleep(0.5)

    monkeypatch.setattr(track_runs.ClipFolder, "save_session", slow_save)
    assert run(videos, tmp_path, "--save-every", "0", names=["long"]) == 0
    assert saved == [0]


def test_without_resume_everything_is_tracked_again(videos, built, tmp_path):
    for threshold in ("0.1", "0.2"):
        assert run(videos, tmp_path, "--threshold", threshold, names=["two"]) == 0
    assert len(built) == 2 and read_json(tmp_path, "summary.json")["settings"]["threshold"] == 0.2


def test_masks_of_an_earlier_run_do_not_stay_beside_new_ones(videos, built, tmp_path):
    prompts = videos / "overlapping.json"
    prompts.write_text(json.dumps({"two": [{"id": 1, "box": [20, 20, 90, 90]}, {"id": 300, "box": [20, 20, 60, 60]}]}))
    assert run(videos, tmp_path, "--prompts", str(prompts), names=["two"]) == 0
    assert {name for name in files_of(tmp_path / "two") if name.endswith(".png")} == {
        f"{folder}/{t:05d}.png" for folder in ("001", "300") for t in range(3)
    }
    assert run(videos, tmp_path, names=["two"]) == 0
    pictures = [name for name in files_of(tmp_path / "two") if name.endswith(".png")]
    assert pictures == [f"{t:05d}.png" for t in range(3)] and not (tmp_path / "two" / "300").exists()


def test_a_finished_video_whose_results_were_removed_is_exported_anew(videos, built, tmp_path):
    formats = ["--format", "png", "coco", "npz"]
    assert run(videos, tmp_path, *formats, names=["two"]) == 0
    before = files_of(tmp_path)
    (tmp_path / "two" / "results.json").unlink()
    assert run(videos, tmp_path, *formats, "--resume", names=["two"]) == 0
    assert files_of(tmp_path) == before and len(built) == 2


def test_resuming_after_the_video_was_changed_is_refused(videos, built, tmp_path, capsys):
    assert run(videos, tmp_path, names=["two"]) == 0
    frame = videos / "two" / "00001.jpg"
    times = frame.stat()
    os.utime(frame, ns=(times.st_atime_ns, times.st_mtime_ns + 1000))
    assert run(videos, tmp_path, "--resume", names=["two"]) == 1
    message = "two differ in the video's files, which were changed since: leave out --resume to replace them"
    assert message in capsys.readouterr().err and len(built) == 1
    os.utime(frame, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(videos, tmp_path, "--resume", names=["two"]) == 0


def test_resuming_with_other_settings_prompts_or_videos_is_refused(videos, built, tmp_path, capsys):
    run(videos, tmp_path, names=["two"])
    assert run(videos, tmp_path, "--threshold", "0.2", "--resume", names=["two"]) == 2
    assert capsys.readouterr().err.endswith("two has other settings: threshold was 0.0, is 0.2\n")
    (videos / "moved.json").write_text(json.dumps({"two": [{"box": [1, 2, 50, 60]}]}))
    assert run(videos, tmp_path, "--prompts", str(videos / "moved.json"), "--resume", names=["two"]) == 1
    assert "two differ in prompts: leave out --resume to replace them" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    (videos / "two").rename(tmp_path / "elsewhere" / "two")
    try:
        arguments = ["--prompts", str(videos / "prompts.json"), "--threshold", "0", "--output", str(tmp_path)]
        assert track.main([str(tmp_path / "elsewhere" / "two"), *arguments, "--device", "cpu", "--resume"]) == 1
    finally:
        (tmp_path / "elsewhere" / "two").rename(videos / "two")
    assert "two differ in video: leave out" in capsys.readouterr().err
    assert len(built) == 1 and (tmp_path / "two" / "sequence.json").exists()


def test_a_killed_run_leaves_whole_files_and_resumes_to_the_results_of_an_unbroken_one(videos, whole, built, tmp_path):
    arguments = ["--prompts", str(videos / "prompts.json"), "--output", str(tmp_path), "--device", "cpu"]
    command = [sys.executable, "-m", "sam2.track", str(videos / "one"), str(videos / "two"), *arguments]
    with subprocess.Popen(
        [*command, "--threshold", "0"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=Path(track.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        while process.poll() is None and not (tmp_path / "two" / "task.json").exists():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert (tmp_path / "one" / "sequence.json").exists() and not (tmp_path / "two" / "sequence.json").exists()
    assert run(videos, tmp_path, "--resume") == 0
    assert files_of(tmp_path) == files_of(whole)
    for name in LENGTHS:
        assert stored_of(tmp_path, name) == stored_of(whole, name)
        assert [(tmp_path / name / f"{t:05d}.png").read_bytes() for t in range(3)] == [
            (whole / name / f"{t:05d}.png").read_bytes() for t in range(3)
        ]


def test_a_video_that_another_process_does_is_left_to_it(videos, built, tmp_path, monkeypatch, capsys):
    """Two runs of other prompts into one folder: the second one begins while the first one tracks."""
    moved = videos / "beside.json"
    moved.write_text(json.dumps({"two": [{"box": [20, 20, 60, 60]}]}))
    count = track.Progress.count

    def count_and_start_beside(self, decision):
        count(self, decision)
        monkeypatch.setattr(track.Progress, "count", count)
        if decision.frame == 0:
            statuses.append(run(videos, tmp_path, "--prompts", str(moved), names=["two"]))

    statuses = []
    monkeypatch.setattr(track.Progress, "count", count_and_start_beside)
    statuses.append(run(videos, tmp_path, names=["two"]))
    assert statuses == [1, 0] and len(built) == 1
    assert "failed: two: {}: another process is at work here\n".format(tmp_path / "two") in capsys.readouterr().err
    assert VideoResults.load(tmp_path / "two" / "results.json").obj_ids == [1, 9]
    assert files_of(tmp_path / "two") == [
        *(f"{t:05d}.png" for t in range(3)), "frames.json", "results.json", "sequence.json", "task.json",
    ]  # fmt: skip


def test_results_that_are_not_those_of_the_task_beside_them_are_refused(videos, built, tmp_path, capsys):
    """As two runs leave them that wrote at once on a file system without locks."""
    assert run(videos, tmp_path, names=["two"]) == 0
    results = VideoResults.load(tmp_path / "two" / "results.json")
    results.about["prompts"] = results.about["prompts"][:1]
    results.save(tmp_path / "two" / "results.json", "json")
    assert run(videos, tmp_path, "--resume", names=["two"]) == 1
    assert "two differ in prompts: leave out --resume to replace them" in capsys.readouterr().err


STOPS = [  # options; where a run that was stopped at frame 4 goes on, None for the first frame; what it skips then
    pytest.param(["--threshold", "0"], 4, 0, id="every frame"),
    pytest.param(["--threshold", "0", "--prompts", "late.json"], None, 0, id="a prompt to come"),
    pytest.param(["--threshold", "0.1", "--max-consecutive-skips", "2"], 4, 3, id="naive"),
    pytest.param(["--threshold", "0.3", "--strategy", "memory_guided"], 4, 3, id="memory_guided"),
    pytest.param(["--threshold", "0.3", "--strategy", "memory_guided", "--lookahead", "2"], 4, 1, id="look-ahead"),
]


@pytest.mark.parametrize(("options", "expected_start", "skipped"), STOPS)
def test_a_video_that_was_interrupted_comes_to_the_same_results(
    videos, built, tmp_path, monkeypatch, predictor, options, expected_start, skipped
):
    options = [str(videos / each) if each.endswith(".json") else each for each in options]
    assert run(videos, tmp_path / "whole", *options, names=["long"]) == 0
    count = track.Progress.count

    def count_and_stop(self, decision):
        count(self, decision)
        if decision.frame == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(track.Progress, "count", count_and_stop)
        patch.setattr(track_runs, "SAVE_SPACING", 0)
        assert run(videos, tmp_path / "two", *options, "--save-every", "0", names=["long"]) == 130
    assert list(VideoResults.load(tmp_path / "two" / "long" / "partial.json")) == [0, 1, 2, 3, 4]

    seen, starts = [], []
    propagate = predictor.propagate_results

    def note(state, start=None, **arguments):
        starts.append(start)
        return propagate(state, start, **arguments)

    monkeypatch.setattr(track.Progress, "count", lambda self, decision: seen.append(decision.frame))
    monkeypatch.setattr(predictor, "propagate_results", note, raising=False)
    assert run(videos, tmp_path / "two", *options, "--resume", names=["long"]) == 0
    assert starts == [expected_start] and seen == list(range(8))
    assert stored_of(tmp_path / "two", "long") == stored_of(tmp_path / "whole", "long")
    assert files_of(tmp_path / "two") == files_of(tmp_path / "whole")
    actions = [frame["action"] for frame in read_json(tmp_path, "two", "long", "frames.json")]
    assert sum(action in SKIPPED for action in actions[4:]) == skipped


# Several processes


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_ranks_do_what_one_process_does(videos, whole, built, tmp_path, monkeypatch, order):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = {}
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        built.clear()
        assert run(videos, tmp_path) == 0
        shares[rank] = [name for name, _ in built]
    assert shares == {0: ["one"], 1: ["two"]}
    assert files_of(tmp_path) == files_of(whole)
    assert all(stored_of(tmp_path, name) == stored_of(whole, name) for name in LENGTHS)
    assert read_json(tmp_path, "summary.json")["frames"] == 7


def test_of_several_processes_only_the_last_one_exits_with_a_status(videos, built, tmp_path, monkeypatch, capsys):
    path = videos / "half.json"
    path.write_text(json.dumps({"two": [{"mask": "two.png"}]}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run(videos, tmp_path, "--prompts", str(path)) == 0
    first = capsys.readouterr()
    assert "failed: one:" in first.err and "1 videos to come from other processes" in first.out
    monkeypatch.setenv("RANK", "1")
    assert run(videos, tmp_path, "--prompts", str(path)) == 1
    assert "failed: one:" in capsys.readouterr().err


def as_rank(monkeypatch, rank, run):
    """The environment of one of two processes that are started together."""
    for name, value in {"WORLD_SIZE": "2", "RANK": str(rank), "TORCHELASTIC_RUN_ID": run}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_failure_of_an_earlier_run_is_none_of_the_run_that_retries(
    videos, built, tmp_path, monkeypatch, capsys, order
):
    half = videos / "half.json"
    half.write_text(json.dumps({"one": [{"mask": "one.png"}]}))
    statuses, errors = [], []
    for run_id, prompts in (("first", half), ("second", videos / "prompts.json")):
        for rank in order:
            as_rank(monkeypatch, rank, run_id)
            statuses.append(run(videos, tmp_path, "--prompts", str(prompts), "--resume"))
        errors.append(capsys.readouterr().err)
    assert statuses == [0, 1, 0, 0] and ["failed: two" in error for error in errors] == [True, False]
    assert not list(tmp_path.rglob("failure.json")) and len(label_maps(tmp_path / "two")) == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("resume", [[], ["--resume", "--format", "png", "coco"]])
def test_what_an_earlier_run_did_is_not_done_before_its_process_has_come_to_it(
    videos, built, tmp_path, monkeypatch, capsys, order, resume
):
    assert run(videos, tmp_path) == 0
    bad = videos / "bad.json"
    bad.write_text(json.dumps({"one": [{"mask": "none.png"}], "two": [{"mask": "two.png"}]}))
    statuses, outputs = [], []
    for rank in order:
        as_rank(monkeypatch, rank, "next")
        statuses.append(run(videos, tmp_path, "--prompts", str(bad), *resume))
        outputs.append(capsys.readouterr())
    assert statuses == [0, 1] and "1 videos to come from other processes" in outputs[0].out
    assert "failed: one: mask: no such file" in outputs[1].err

"""The tracking command: videos and prompts in, results of each video out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2 import build_sam, exports, track, track_runs
from sam2.frame_skipping import SKIPPED, SkipOptions
from sam2.utils.davis import merge_masks, read_label_map, write_label_map
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.video_io import VideoWriter
from sam2.video_results import VideoResults

LENGTHS = {"one": 4, "two": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folders of frames, one/ and two/, two objects each; their masks, one.png and two.png; prompts.json with both."""
    root = tmp_path_factory.mktemp("videos")
    for seed, (name, length) in enumerate({**LENGTHS, "long": 8}.items()):
        clip = draw_clip(length, 96, 128, 2, seed=seed)
        clip.labels[clip.labels == 2] = 9
        (root / name).mkdir()
        for t, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(root / name / f"{t:05d}.jpg", quality=95)
        write_label_map(root / f"{name}.png", clip.labels[0])
    (root / "prompts.json").write_text(json.dumps({name: [{"mask": f"{name}.png"}] for name in (*LENGTHS, "long")}))
    late = {"id": 5, "frame": 5, "box": [20, 20, 60, 60]}
    (root / "late.json").write_text(json.dumps({"long": [{"mask": "long.png"}, late]}))
    return root


@pytest.fixture(scope="module")
def predictor():
    return build_sam.build_sam2_video_predictor(None, device="cpu")


@pytest.fixture
def built(monkeypatch, predictor):
    """One predictor for all runs. The skip options of each video it tracked."""
    tracked = []
    init_state = predictor.init_state

    def note(path, **options):
        tracked.append((Path(path).stem, predictor.skipping))
        return init_state(path, **options)

    monkeypatch.setattr(predictor, "init_state", note, raising=False)
    monkeypatch.setattr(track, "build", lambda args, device: predictor)
    return tracked


def run(videos, output, *arguments, names=("one", "two")):
    """Run the command on the folders of frames with their own prompts, nothing skipped unless arguments say so."""
    paths = [str(videos / name) for name in names]
    fixed = ["--prompts", str(videos / "prompts.json"), "--output", str(output), "--device", "cpu", "--threshold", "0"]
    return track.main([*paths, *fixed, *arguments])


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def label_maps(folder):
    return [read_label_map(path) for path in sorted(folder.glob("*.png"))]


def stored_of(output, name):
    """All results of a video but for the time they took."""
    stored = VideoResults.load(output / name / "results.json").stored
    return [(frame.decision._replace(seconds=0), frame.objects) for frame in stored.values()]


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory, predictor):
    """The results of a run that nothing stopped."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track, "build", lambda args, device: predictor)
        assert run(videos, output) == 0
    return output


# Tracking


def test_masks_are_those_of_the_predictor_under_their_own_ids(videos, whole, predictor):
    first = read_label_map(videos / "one.png")
    predictor.skip_mad_threshold = 0
    with predictor.open(videos / "one") as state:
        for obj_id in (1, 9):
            predictor.add_new_mask(state, 0, obj_id, first == obj_id)
        answers = list(predictor.propagate_in_video(state, progress=False))
    masks = label_maps(whole / "one")
    assert len(masks) == 4
    for t, obj_ids, logits in answers:
        assert np.array_equal(masks[t], merge_masks(obj_ids, logits))
    loaded = VideoResults.load(whole / "one" / "results.json")
    assert all(np.array_equal(loaded[t][9].mask, answers[t][2][1, 0] > 0) for t in range(4))
    assert loaded.about["prompts"][1]["id"] == 9 and loaded.frame_name(3) == "00003.jpg"


def test_the_run_and_each_video_are_on_record(videos, whole):
    summary = read_json(whole, "summary.json")
    assert (summary["frames"], summary["processed"], summary["missing"]) == (7, 7, [])
    assert sorted(summary["sequences"]) == ["one", "two"] and summary["settings"]["direction"] == "both"
    actions = [frame["action"] for frame in read_json(whole, "two", "frames.json")]
    assert actions == ["prompted", "processed", "processed"]
    assert read_json(whole, "two", "sequence.json")["frames"] == 3
    assert read_json(whole, "two", "task.json")["video"] == str(videos / "two")


def test_every_format_is_written_and_named(videos, built, tmp_path):
    pytest.importorskip("av")
    assert run(videos, tmp_path, "--format", *track.FORMATS, names=["two"]) == 0
    files = {name for name in files_of(tmp_path / "two") if "/" not in name}
    assert files == {
        *(f"{t:05d}.png" for t in range(3)), "coco.json", "youtube_vis.json", "overlay.mp4", "masks.npz",
        "results.json", "task.json", "frames.json", "sequence.json",
    }  # fmt: skip


def test_prompts_of_the_command_line_count_for_every_video(videos, built, tmp_path):
    boxes = ["--box", "40,20,80,60", "--box", "7:1:20,20,60,60", "--point", "1:50,40"]
    arguments = [*boxes, "--output", str(tmp_path), "--device", "cpu", "--format", "json"]
    assert track.main([str(videos / "one"), str(videos / "two"), *arguments]) == 0
    for name, length in LENGTHS.items():
        results = VideoResults.load(tmp_path / name / "results.json")
        assert (results.obj_ids, list(results)) == ([1, 7], list(range(length)))
        assert results.stored[1].objects[1].obj_id == 7 and results.stored[1].decision.action == "prompted"


def test_a_video_file_is_drawn_over_at_its_own_rate(built, tmp_path):
    cv2, _ = pytest.importorskip("cv2"), pytest.importorskip("av")
    clip = draw_clip(3, 96, 128, 1, seed=3)
    with VideoWriter(tmp_path / "clip.mp4", 12.5) as writer:
        for frame in clip.frames:
            writer.write(frame)
    write_label_map(tmp_path / "mask.png", clip.labels[0])
    arguments = ["--mask", str(tmp_path / "mask.png"), "--format", "mp4", "png", "--device", "cpu"]
    assert track.main([str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "out"), *arguments]) == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip" / "overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5 and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert len(label_maps(tmp_path / "out" / "clip")) == 3


def test_the_skip_options_reach_the_predictor(videos, built, tmp_path):
    run(videos, tmp_path / "a", "--format", "json", "--threshold", "0.3", "--strategy", "memory_guided",
        "--warp", "none", "--lookahead", "8", "--max-consecutive-skips", "5", names=["two"])  # fmt: skip
    track.main(
        [str(videos / "two"), "--mask", str(videos / "two.png"), "--output", str(tmp_path / "b"), "--device", "cpu"]
    )
    read = [read_json(tmp_path, which, "two", "sequence.json")["settings"] for which in ("a", "b")]
    names = ("strategy", "threshold", "warp", "lookahead", "max_consecutive_skips")
    assert [tuple(settings[name] for name in names) for settings in read] == [
        ("memory_guided", 0.3, None, 8, 5),
        ("naive", SkipOptions().threshold, None, 0, None),
    ]
    assert [frame["action"] for frame in read_json(tmp_path, "b", "two", "frames.json")].count("reused") > 0


# Failures


def test_a_video_that_fails_stops_no_other_and_is_reported(videos, built, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "prompts.json").write_text(json.dumps({"*": [{"mask": str(videos / "two.png")}]}))
    arguments = ["--prompts", str(tmp_path / "prompts.json"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert track.main([str(tmp_path / "bad.mp4"), str(videos / "two"), *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("failed: bad: bad.mp4")
    assert read_json(tmp_path, "out", "bad", "failure.json")["reason"] in error
    assert len(label_maps(tmp_path / "out" / "two")) == 3
    assert read_json(tmp_path, "out", "summary.json")["missing"] == ["bad"]


def test_what_was_tracked_before_a_damaged_frame_is_kept(videos, built, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    for path in (videos / "one").iterdir():
        content = path.read_bytes()
        (tmp_path / "one" / path.name).write_bytes(content[:800] if path.stem == "00002" else content)
    arguments = ["--mask", str(videos / "one.png"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert track.main([str(tmp_path / "one"), *arguments, "--threshold", "0"]) == 1
    assert "00002.jpg, cannot be decoded" in capsys.readouterr().err
    assert list(VideoResults.load(tmp_path / "out" / "one" / "partial.json")) == [0, 1]
    assert not (tmp_path / "out" / "one" / "results.json").exists()

    (tmp_path / "one" / "00002.jpg").write_bytes((videos / "one" / "00002.jpg").read_bytes())
    assert track.main([str(tmp_path / "one"), *arguments, "--threshold", "0", "--resume"]) == 0
    assert not (tmp_path / "out" / "one" / "partial.json").exists() and len(label_maps(tmp_path / "out" / "one")) == 4
    assert not list((tmp_path / "out").rglob("failure.json"))


def test_a_format_that_fails_stops_no_other_and_is_written_by_the_next_run(
    videos, built, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setitem(exports.FORMATS, "coco", lambda task: 1 / 0)
        assert run(videos, tmp_path, "--format", "coco", "png", names=["two"]) == 1
    assert "failed: two: format coco: division by zero" in capsys.readouterr().err
    assert len(label_maps(tmp_path / "two")) == 3 and not (tmp_path / "two" / "sequence.json").exists()
    assert run(videos, tmp_path, "--format", "coco", "png", "--resume", names=["two"]) == 0
    assert (tmp_path / "two" / "coco.json").exists() and len(built) == 1


@pytest.mark.parametrize("fails", ["the model", "the video", "a prompt"])
def test_results_stay_where_a_run_that_should_replace_them_cannot_begin(
    videos, built, tmp_path, monkeypatch, predictor, fails
):
    def fail(*_, **__):
        raise RuntimeError("none")

    assert run(videos, tmp_path, "--format", "png", "coco", names=["two"]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    prompts = videos / "outside.json"
    prompts.write_text(json.dumps({"two": [{"mask": "two.png"}, {"frame": 99, "box": [1, 2, 30, 40]}]}))
    if fails == "the model":
        monkeypatch.setattr(track, "build", fail)
    if fails == "the video":
        monkeypatch.setattr(predictor, "init_state", fail, raising=False)
    other = ["--prompts", str(prompts)] if fails == "a prompt" else []
    assert run(videos, tmp_path, *other, names=["two"]) == 1
    after = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    del before["summary.json"], after["summary.json"], after["two/failure.json"]
    assert after == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"frame": 3, "mask": "two.png"}, "two: frame_idx must be a frame in [0, 2], got 3"),
        ({"points": [[128.5, 3]]}, "two: point (128.5, 3) of object 1 is not in the frames, which are 128x96"),
        ({"mask": "none.png"}, "two: mask: no such file"),
        (None, "two: {} has no prompts for it"),
    ],
)
def test_prompts_that_do_not_fit_a_video_are_its_failure(videos, built, tmp_path, capsys, entry, message):
    path = videos / "other_prompts.json"
    path.write_text(json.dumps({"two" if entry else "three": [entry or {"box": [1, 2, 3, 4]}]}))
    assert run(videos, tmp_path, "--prompts", str(path), names=["two"]) == 1
    assert f"failed: {message.format(path)}" in capsys.readouterr().err


def test_a_key_that_no_video_goes_by_is_warned_of(videos, built, tmp_path, caplog):
    path = videos / "typo.json"
    path.write_text(json.dumps({"twoo": [{"mask": "one.png"}], "*": [{"mask": "two.png"}]}))
    assert run(videos, tmp_path, "--prompts", str(path), names=["two"]) == 0
    assert f"{path}: no video goes by 'twoo'" in caplog.messages


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
        written.append((exports.declared_rate(overlay), overlay.stat().st_mtime_ns > before))
    assert written == [(24, True), (10, True), (10, False), (0.5, True), (0.5, False), (24, True)]
    assert len(built) == 1


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
    pytest.param(["--threshold", "0.3", "--strategy", "memory_guided", "--lookahead", "2"], 3, 1, id="look-ahead"),
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


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to track: with --box, --point and --mask, or with --prompts FILE.json"),
        (["--box", "1,2,3,4", "--prompts", "p.json"], "say what to track"),
        (["--box", "1,2,3"], "argument --box: '1,2,3' is not [ID:[FRAME:]]x0,y0,x1,y1"),
        (["--point", "1,2,0"], "argument --point: '1,2,0' is a point outside an object"),
        (["--box", "1,2,3,4", "--format", "avi"], "argument --format: invalid choice: 'avi'"),
        (["--box", "1,2,3,4", "--fps", "0"], "argument --fps: must be positive, got 0"),
        (["--box", "1,2,3,4", "--config", "tiny"], "--config and --checkpoint belong together"),
        (["--box", "1,2,3,4", "--checkpoint", "a.pt"], "--checkpoint needs its --config"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        track.main(["clip.mp4", "--output", "out", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "none.json"], "--prompts: no such file: none.json"),
        (["--strategy", "clever"], "must be one of naive, mask_aware, memory_guided, got 'clever'"),
        (["--max-consecutive-skips", "0"], "max_consecutive_skips must be at least 1"),
        (["--config", "huge", "--checkpoint", "a.pt"], "config_file 'huge' is neither a file nor one of"),
    ],
)
def test_what_cannot_be_done_gives_one_line_and_an_exit_status(videos, built, tmp_path, capsys, arguments, message):
    assert run(videos, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists() and built == []


def test_mp4_without_pyav_is_refused_before_anything_is_tracked(videos, built, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(videos, tmp_path, "--format", "mp4") == 2
    assert 'pip install "sam2[video]"' in capsys.readouterr().err and built == []


def test_mp4_without_libx264_is_refused_before_anything_is_tracked(videos, built, tmp_path, without_libx264, capsys):
    assert run(videos, tmp_path, "--format", "mp4") == 2
    assert "--format mp4: H.264 needs the encoder libx264" in capsys.readouterr().err and built == []

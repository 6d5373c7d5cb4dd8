"""The tracking command: videos and prompts in, results of each video out."""

import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from tracked_videos import LENGTHS, files_of, label_maps, read_json, run

from sam2 import exports, track, vos_runs
from sam2.command_line import exit_code
from sam2.frame_skipping import SkipOptions
from sam2.track_guard import TrackGuard
from sam2.utils.davis import merge_masks, read_label_map, write_label_map
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.video_io import VideoWriter
from sam2.video_results import VideoResults

pytest_plugins = ["tracked_videos"]  # its fixtures


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


def test_a_closed_stderr_stops_no_run(videos, built, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert run(videos, tmp_path, names=["two"]) == 0


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


def test_the_image_size_is_on_record(videos, built, tmp_path):
    assert run(videos, tmp_path, "--image-size", "96", names=["two"]) == 0
    assert read_json(tmp_path, "two", "sequence.json")["settings"]["image_size"] == 96


def test_the_network_is_built_at_the_size_of_the_command_line():
    args = track.parse(["clip.mp4", "--point", "1,2", "--output", "out", "--image-size", "96"])
    assert track.build(args, torch.device("cpu")).image_size == 96


def test_the_network_is_built_with_the_search_factor_of_the_command_line():
    args = track.parse(["clip.mp4", "--point", "1,2", "--output", "out", "--image-size", "96", "--search-factor", "2"])
    assert track.build(args, torch.device("cpu")).search_factor == 2


def test_the_search_factor_is_on_record(videos, built, tmp_path):
    assert run(videos, tmp_path, "--search-factor", "1.5", names=["two"]) == 0
    assert read_json(tmp_path, "two", "sequence.json")["settings"]["search_factor"] == 1.5


def test_the_network_is_built_with_a_guard_if_the_command_line_says_so():
    plain = ["clip.mp4", "--point", "1,2", "--output", "out", "--image-size", "96"]
    built = [track.build(track.parse(args), torch.device("cpu")) for args in (plain, [*plain, "--guard"])]
    assert [predictor.guard for predictor in built] == [None, TrackGuard()]


def test_the_guard_is_on_record(videos, built, tmp_path):
    assert run(videos, tmp_path, "--guard", names=["two"]) == 0
    settings = read_json(tmp_path, "two", "sequence.json")["settings"]
    assert settings["guard"] == dataclasses.asdict(TrackGuard())


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


def test_a_model_that_cannot_be_built_is_built_once_and_is_one_error(videos, tmp_path, monkeypatch, capsys):
    builds = []
    monkeypatch.setattr(vos_runs.build_sam, "build_sam2_video_predictor", lambda *_, **__: builds.append(1) or 1 / 0)
    assert run(videos, tmp_path) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert errors == ["failed: one, two: division by zero"] and len(builds) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_is_not_put_beside_the_record_of_another_run(videos, whole, built, tmp_path, monkeypatch, processes):
    """The other run has finished the video before this one puts on record that it did not get its turn."""
    fcntl = pytest.importorskip("fcntl")
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    statuses = []
    with (tmp_path / "one" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for rank in range(processes):
            monkeypatch.setenv("RANK", str(rank))
            statuses.append(run(videos, tmp_path))
    (tmp_path / "one" / ".lock").unlink()
    assert statuses == [0] * (processes - 1) + [1] and files_of(tmp_path) == before
    assert [name for name, _ in built] == ["two"]


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


def test_a_box_may_begin_with_a_negative_number():
    arguments = ["clip.mp4", "--output", "out", "--box", "-5,-4.5,60,70", "--box", "3:-1,2,60,70", "--point", "-.5,4"]
    drafts = track.parse(arguments).drafts
    assert [draft.box for draft in drafts[:2]] == [(-5, -4.5, 60, 70), (-1, 2, 60, 70)]
    assert drafts[2].points == ((-0.5, 4),)


# Mistakes


@pytest.mark.parametrize("place", ["two", "two/009"])
def test_masks_that_no_run_left_are_not_written_over(videos, built, tmp_path, capsys, place):
    annotation = tmp_path / place / "00000.png"
    write_label_map(annotation, read_label_map(videos / "two.png"))
    before = annotation.read_bytes()
    for _ in range(2):
        assert run(videos, tmp_path, names=["two"]) == 1
        assert f"--output: {annotation} is a mask that no run left there" in capsys.readouterr().err
    assert annotation.read_bytes() == before and not (tmp_path / "two" / "task.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to track: with --box, --point and --mask, or with --prompts FILE.json"),
        (["--box", "1,2,3,4", "--prompts", "p.json"], "say what to track"),
        (["--box", "1,2,3"], "argument --box: '1,2,3' is not [ID:[FRAME:]]x0,y0,x1,y1"),
        (["--point", "1,2,0"], "argument --point: '1,2,0' is a point outside an object"),
        (["--box", "1,2,3,4", "--format", "avi"], "argument --format: invalid choice: 'avi'"),
        (["--box", "1,2,3,4", "--fps", "0"], "argument --fps: must be positive, got 0"),
        (["--box", "1,2,3,4", "--save-every", "nan"], "argument --save-every: must be a number of seconds, 0 or more"),
        (["--box", "1,2,3,4", "--save-every", "-3"], "argument --save-every: must be a number of seconds, 0 or more"),
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
        (["--device", "gpu"], "--device must be cuda, mps or cpu, or one of many GPUs as cuda:1, got 'gpu'"),
    ],
)
def test_what_cannot_be_done_gives_one_line_and_an_exit_status(videos, built, tmp_path, capsys, arguments, message):
    assert run(videos, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists() and built == []


def test_a_name_that_the_output_cannot_show_is_no_failure(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252", write_through=True))
    assert exit_code(lambda: print("犬: 4 frames") or 0) == 0
    assert shown.getvalue().startswith(rb"\u72ac: 4 frames")


def test_mp4_without_pyav_is_refused_before_anything_is_tracked(videos, built, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(videos, tmp_path, "--format", "mp4") == 2
    assert 'pip install "sam2[video]"' in capsys.readouterr().err and built == []


def test_mp4_without_libx264_is_refused_before_anything_is_tracked(videos, built, tmp_path, without_libx264, capsys):
    assert run(videos, tmp_path, "--format", "mp4") == 2
    assert "--format mp4: H.264 needs the encoder libx264" in capsys.readouterr().err and built == []

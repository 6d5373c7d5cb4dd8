"""The main job: DAVIS-layout folder in, palette PNGs and the record of every frame out."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import run_mgfs_davis
from sam2 import build_sam, vos_runs
from sam2.frame_skipping import FrameDecision, SkipOptions
from sam2.modeling.outputs import FrameOutput
from sam2.track_guard import TrackGuard
from sam2.utils.davis import read_label_map
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from sam2.utils.vos_metrics import score_label_maps
from sam2.vos_runs import TrackedFrame

LENGTH = 4
SCRIPT = Path(run_mgfs_davis.__file__)


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    root = tmp_path_factory.mktemp("davis")
    clips = {name: draw_clip(LENGTH, 96, 128, num_objects=2, seed=seed) for seed, name in enumerate(("one", "two"))}
    for clip in clips.values():
        clip.labels[clip.labels == 2] = 9  # ids need not be consecutive
    write_davis_layout(root, clips)
    return root, clips


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """Five sequences of 3 to 7 frames in which nothing moves but the last frame."""
    root = tmp_path_factory.mktemp("stills")
    write_davis_layout(
        root, {f"s{n}": draw_clip(n, 64, 96, 1, seed=n, motion="fast", still=range(n - 1)) for n in range(3, 8)}
    )
    return root


@pytest.fixture
def tracked(monkeypatch):
    """No network: every frame shows the first one's labels. The list of (sequence, options) that were tracked."""
    calls = []

    def track_frames(predictor, frames, first_labels):
        calls.append((frames[0].parent.name, predictor.skipping))
        for t, _ in enumerate(frames):
            action = "reused" if t and predictor.skipping.is_on else "processed"
            yield TrackedFrame(first_labels, FrameDecision(t, action, 0.0, "", 0.01))

    def build(config_file, ckpt_path, **options):
        return SimpleNamespace(skipping=SkipOptions(), **options)

    monkeypatch.setattr(vos_runs, "track_frames", track_frames)
    monkeypatch.setattr(build_sam, "build_sam2_video_predictor", build)
    return calls


def run(root, output, *arguments):
    return run_mgfs_davis.main(["--davis_root", str(root), "--output", str(output), "--device", "cpu", *arguments])


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Tracking


def test_every_object_is_tracked_under_its_own_id_and_written_as_palette_png(davis, tmp_path, capsys):
    root, clips = davis
    assert run(root, tmp_path, "--threshold", "0") == 0
    for name, clip in clips.items():
        masks = [read_label_map(tmp_path / name / f"{t:05d}.png") for t in range(LENGTH)]
        assert set(np.unique(masks[-1])) == {0, 1, 9}
        assert score_label_maps(name, list(clip.labels), masks).scores.mean > 0.7
        with Image.open(tmp_path / name / "00000.png") as picture:
            assert (picture.mode, picture.getpalette()[3:6]) == ("P", [128, 0, 0])
        actions = [frame["action"] for frame in read_json(tmp_path, name, "frames.json")]
        assert actions == ["prompted", "processed", "processed", "processed"]
    last_line = capsys.readouterr().out.splitlines()[2]
    assert "8 frames" in last_line and "0.0% skipped" in last_line


def test_a_plan_decides_as_the_network_run_does(stills, tmp_path):
    options = ("--threshold", "0.005", "--warp", "flow", "--max-consecutive-skips", "2", "--sequences", "s6")
    assert run(stills, tmp_path / "run", *options) == 0
    assert run(stills, tmp_path / "plan", *options, "--plan") == 0
    done, planned = (read_json(tmp_path, name, "s6", "frames.json") for name in ("run", "plan"))
    assert [frame["action"] for frame in done] == ["prompted", "warped", "warped", "processed", "warped", "processed"]
    keys = ("frame", "action", "change")
    assert [[frame[key] for key in keys] for frame in planned] == [[frame[key] for key in keys] for frame in done]
    assert files_of(tmp_path / "plan") == {"summary.json", "s6/frames.json", "s6/sequence.json"}


def test_a_plan_needs_no_annotation(stills, tmp_path, capsys):
    shutil.copytree(stills / "JPEGImages", tmp_path / "JPEGImages")
    for _ in range(2):
        assert run(tmp_path, tmp_path / "plan", "--plan", "--sequences", "s3", "--resume") == 0
        assert "3 frames" in capsys.readouterr().out
    assert run(tmp_path, tmp_path / "run", "--sequences", "s3") == 2
    assert "no annotations" in capsys.readouterr().err


def test_tracking_with_a_1024_model_skips_the_published_frames(shared, tmp_path, monkeypatch):
    predictor = build_sam.build_sam2_video_predictor(hydra_overrides_extra=["++model.image_size=1024"], device="cpu")
    score = torch.full((1, 1), 9.0)
    answer = FrameOutput(torch.zeros(1, 1, 256, 256), torch.zeros(1, 128), score, ious=torch.ones(1, 1))
    monkeypatch.setattr(predictor, "_track_object", lambda *_, **__: answer)
    monkeypatch.setattr(predictor, "_write_prompted_memory", lambda *_: None)
    monkeypatch.setattr(build_sam, "build_sam2_video_predictor", lambda *_, **__: predictor)
    clip = "paragliding-launch"
    assert run(shared / "davis_mini", tmp_path, "--threshold", "0.15", "--sequences", clip) == 0
    published = read_json(shared, "golden", "published_gate.json")[clip]["0.15"]
    frames = read_json(tmp_path, clip, "frames.json")
    assert [frame["frame"] for frame in frames if frame["action"] == "reused"] == published["skipped"]
    assert [frame["change"] for frame in frames[1:]] == pytest.approx(published["mad"], abs=1e-6)


def test_only_the_named_sequences_are_tracked(stills, tracked, tmp_path):
    run(stills, tmp_path, "--sequences", "s4", "s4/")
    assert [name for name, _ in tracked] == ["s4"]
    assert files_of(tmp_path) == {
        "summary.json", "s4/frames.json", "s4/sequence.json", *(f"s4/{t:05d}.png" for t in range(4)),
    }  # fmt: skip


def test_the_skip_options_of_the_command_line_reach_the_predictor(stills, tracked, tmp_path):
    run(stills, tmp_path, "--sequences", "s3")
    run(stills, tmp_path, "--sequences", "s3", "--strategy", "memory_guided", "--threshold", "0.3", "--warp", "none",
        "--lookahead", "8", "--max-consecutive-skips", "5")  # fmt: skip
    assert [options for _, options in tracked] == [
        SkipOptions(),
        SkipOptions(0.3, "memory_guided", warp=None, lookahead=8, max_consecutive_skips=5),
    ]


def test_the_image_size_of_the_command_line_reaches_the_network_and_the_record(stills, tmp_path, monkeypatch):
    build, sizes = build_sam.build_sam2_video_predictor, []
    monkeypatch.setattr(
        build_sam, "build_sam2_video_predictor",
        lambda *args, **options: sizes.append((predictor := build(*args, **options)).image_size) or predictor,
    )  # fmt: skip
    assert run(stills, tmp_path, "--sequences", "s3", "--image-size", "96") == 0
    assert sizes == [96]
    assert read_json(tmp_path, "s3", "sequence.json")["settings"]["image_size"] == 96


def test_the_search_factor_of_the_command_line_reaches_the_network_and_the_record(stills, tmp_path, capsys):
    plain = ["--sequences", "s3", "--image-size", "96"]
    assert run(stills, tmp_path, *plain) == 0
    assert "search_factor" not in read_json(tmp_path, "s3", "sequence.json")["settings"]
    everywhere = (tmp_path / "s3" / "00002.png").read_bytes()
    assert run(stills, tmp_path, *plain, "--search-factor", "1.5", "--resume") == 2
    assert "search_factor" in capsys.readouterr().err  # results of other settings are not mixed
    assert run(stills, tmp_path, *plain, "--search-factor", "1.5") == 0
    assert read_json(tmp_path, "s3", "sequence.json")["settings"]["search_factor"] == 1.5
    assert (tmp_path / "s3" / "00002.png").read_bytes() != everywhere


def test_the_guard_of_the_command_line_reaches_the_network_and_the_record(stills, tmp_path, monkeypatch, capsys):
    build, guards = build_sam.build_sam2_video_predictor, []
    monkeypatch.setattr(
        build_sam, "build_sam2_video_predictor",
        lambda *args, **options: guards.append((predictor := build(*args, **options)).guard) or predictor,
    )  # fmt: skip
    plain = ["--sequences", "s3", "--image-size", "96"]
    assert run(stills, tmp_path, *plain) == 0
    assert "guard" not in read_json(tmp_path, "s3", "sequence.json")["settings"]
    assert run(stills, tmp_path, *plain, "--guard", "--resume") == 2
    assert "guard" in capsys.readouterr().err  # results of other settings are not mixed
    assert run(stills, tmp_path, *plain, "--guard") == 0
    assert read_json(tmp_path, "s3", "sequence.json")["settings"]["guard"]["most_leap"] == 1.5
    assert guards == [None, TrackGuard()]


def test_a_plan_cannot_be_guarded(stills, tmp_path, capsys):
    assert run(stills, tmp_path, "--plan", "--guard") == 2
    assert capsys.readouterr().err.startswith("error: a plan has no masks that a guard could doubt")


def test_a_search_factor_that_is_none_is_one_error(stills, tmp_path, capsys):
    assert run(stills, tmp_path, "--search-factor", "0.5") == 2
    assert capsys.readouterr().err == "error: search_factor must be a number of 1 or more, or None, got 0.5\n"


def test_several_thresholds_have_a_folder_each_and_take_turns_by_sequence(stills, tracked, tmp_path, capsys):
    run(stills, tmp_path, "--strategy", "mask_aware", "--threshold", "0", "0.10", "--sequences", "s3", "s4")
    assert [(name, options.threshold) for name, options in tracked] == [("s4", 0), ("s4", 0.1), ("s3", 0), ("s3", 0.1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask_aware_0", "mask_aware_0.1"]
    summary = read_json(tmp_path, "mask_aware_0.1", "summary.json")
    assert (summary["frames"], summary["processed"], summary["skip_rate"]) == (7, 2, 0.714286)
    assert summary["settings"]["strategy"] == "mask_aware" and len(summary["settings"]["checkpoint_sha256"]) == 64
    assert "71.4% skipped" in capsys.readouterr().out


def test_skipped_frames_are_logged_when_asked_for(stills, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(stills, tmp_path, "--sequences", "s3", "--verbose")
    assert "Skipping frame 1 due to low MAD (0.00)" in caplog.messages


# Stopping and resuming


def test_resuming_tracks_only_what_is_not_finished(stills, tracked, tmp_path):
    run(stills, tmp_path, "--sequences", "s3", "s5")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in ("s3/00001.png", "s5/00001.png")}
    (tmp_path / "s5" / "sequence.json").unlink()
    (tmp_path / "s5" / ".00004.png.77.part").write_text("half a picture")
    tracked.clear()
    assert run(stills, tmp_path, "--resume") == 0
    assert (tmp_path / "s5" / "sequence.json").exists() and not list(tmp_path.rglob("*.part"))
    assert sorted(name for name, _ in tracked) == ["s4", "s5", "s6", "s7"]
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    assert after["s3/00001.png"] == before["s3/00001.png"] and after["s5/00001.png"] > before["s5/00001.png"]
    assert read_json(tmp_path, "summary.json")["frames"] == 3 + 4 + 5 + 6 + 7


@pytest.mark.parametrize("changed", ["JPEGImages/480p/s3/00001.jpg", "Annotations/480p/s3/00000.png"])
def test_resuming_tracks_a_sequence_whose_pictures_have_changed_anew(stills, tracked, tmp_path, caplog, changed):
    root, output = tmp_path / "davis", tmp_path / "masks"
    shutil.copytree(stills, root)
    run(root, output, "--sequences", "s3", "s4")
    with Image.open(root / changed) as picture:
        turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(root / changed)
    for resumed in (["s3"], []):
        tracked.clear()
        assert run(root, output, "--sequences", "s3", "s4", "--resume") == 0
        assert [name for name, _ in tracked] == resumed
    assert caplog.messages.count("s3 was tracked from other pictures: it is tracked anew") == 1


def test_resuming_a_finished_run_builds_no_model(stills, tracked, tmp_path, monkeypatch):
    run(stills, tmp_path, "--sequences", "s3")
    monkeypatch.setattr(build_sam, "build_sam2_video_predictor", None)
    assert run(stills, tmp_path, "--sequences", "s3", "--resume") == 0


def test_without_resume_everything_is_tracked_again(stills, tracked, tmp_path):
    for threshold in ("0.1", "0.2"):
        assert run(stills, tmp_path, "--sequences", "s3", "--threshold", threshold) == 0
    assert len(tracked) == 2 and read_json(tmp_path, "summary.json")["settings"]["threshold"] == 0.2


def test_a_run_that_replaced_another_one_and_broke_off_can_be_resumed(stills, tracked, tmp_path, monkeypatch, capsys):
    assert run(stills, tmp_path, "--threshold", "0.1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(vos_runs, "read_label_map", lambda path: 1 / 0 if "s5" in str(path) else read_label_map(path))
        with pytest.raises(ZeroDivisionError):
            run(stills, tmp_path, "--threshold", "0.2")
    tracked.clear()
    assert run(stills, tmp_path, "--threshold", "0.2", "--resume") == 0
    assert [name for name, _ in tracked] == ["s5", "s4", "s3"]


def test_resuming_with_other_settings_is_refused_and_says_what_differs(stills, tracked, tmp_path, capsys):
    run(stills, tmp_path, "--sequences", "s3", "--threshold", "0.1")
    assert run(stills, tmp_path, "--threshold", "0.2", "--max-consecutive-skips", "3", "--resume") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("s3 has other settings: threshold was 0.1, is 0.2, max_consecutive_skips was None, is 3")
    assert len(tracked) == 1


def test_a_killed_run_leaves_whole_files_and_resumes_to_the_masks_of_an_unbroken_one(tmp_path):
    root = tmp_path / "davis"
    clips = {name: draw_clip(length, 96, 128, 1, seed=length) for name, length in (("long", 8), ("short", 3))}
    write_davis_layout(root, clips)
    command = [sys.executable, str(SCRIPT), "--davis_root", str(root), "--device", "cpu", "--threshold", "0.01"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "killed")],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        while process.poll() is None and not (tmp_path / "killed" / "long" / "00003.png").exists():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    left = [path for path in (tmp_path / "killed").rglob("*") if path.is_file() and path.name[0] != "."]
    assert 4 <= len(left) <= 8 and all(read_label_map(path).shape == (96, 128) for path in left)

    assert run(root, tmp_path / "killed", "--threshold", "0.01", "--resume") == 0
    assert run(root, tmp_path / "whole", "--threshold", "0.01") == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    for name, clip in clips.items():
        for t in range(len(clip.frames)):
            masks = [(tmp_path / which / name / f"{t:05d}.png").read_bytes() for which in ("killed", "whole")]
            assert masks[0] == masks[1]


@pytest.mark.parametrize("options", [[], ["--resume"], ["--plan"]])
def test_a_sequence_that_another_process_tracks_is_left_to_it(stills, tracked, tmp_path, capsys, options):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "s3").mkdir()
    with (tmp_path / "s3" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(stills, tmp_path, "--sequences", "s3", *options) == 2
    assert capsys.readouterr().err.endswith(f"error: {tmp_path / 's3'}: another process is at work here\n")
    assert tracked == [] and files_of(tmp_path) == {"s3/.lock"}


# Several processes


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_share_the_sequences_and_the_last_one_sums_up(stills, tracked, tmp_path, monkeypatch, capsys, order):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = {}
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        tracked.clear()
        assert run(stills, tmp_path) == 0
        shares[rank] = [name for name, _ in tracked]
    assert shares == {0: ["s7", "s4", "s3"], 1: ["s6", "s5"]}
    summary = read_json(tmp_path, "summary.json")
    assert (summary["frames"], summary["missing"], len(summary["sequences"])) == (25, [], 5)
    out = capsys.readouterr().out
    assert f"{len(shares[order[1]])} sequences to come" in out and out.count("frames per second") == 6


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_sequences_of_an_earlier_run_are_to_come_until_their_rank_has_done_them(
    stills, tracked, tmp_path, monkeypatch, capsys, order
):
    assert run(stills, tmp_path) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "next")
    missing = []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        assert run(stills, tmp_path) == 0
        missing.append(read_json(tmp_path, "summary.json")["missing"])
    assert missing == [["s5", "s6"] if order == (0, 1) else ["s3", "s4", "s7"], []]
    assert f"{len(missing[0])} sequences to come" in capsys.readouterr().out


def test_a_rank_without_a_sequence_has_nothing_to_do(stills, tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert run(stills, tmp_path, "--sequences", "s3", "s4") == 0
    assert tracked == []


# Failures


@pytest.fixture
def damaged(stills, tmp_path):
    """The five sequences, of which s3 has no frames and the annotation of s4 is cut short."""
    root = tmp_path / "davis"
    shutil.copytree(stills, root)
    for frame in (root / "JPEGImages" / "480p" / "s3").iterdir():
        frame.unlink()
    annotation = root / "Annotations" / "480p" / "s4" / "00000.png"
    annotation.write_bytes(annotation.read_bytes()[:-30])
    return root


REASONS = {"s3": r"sequence: no frames \(.*\) in .*s3$", "s4": r".*s4/00000.png: damaged or cut short"}


def failures_in(error: str) -> dict[str, str]:
    lines = (line.removeprefix("failed: ") for line in error.splitlines() if line.startswith("failed: "))
    return {name: reason for name, _, reason in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("options", [[], ["--resume"], ["--threshold", "0", "0.1"]])
def test_a_sequence_that_cannot_be_tracked_stops_no_other(stills, damaged, tracked, tmp_path, capsys, options):
    assert run(damaged, tmp_path / "out", *options) == 1
    found = failures_in(capsys.readouterr().err)
    assert found.keys() == REASONS.keys() and all(re.match(REASONS[name], found[name]) for name in found)
    folders = [tmp_path / "out" / name for name in ("naive_0", "naive_0.1")] if len(options) > 1 else [tmp_path / "out"]
    for folder in folders:
        assert read_json(folder, "summary.json")["missing"] == ["s3", "s4"]
        assert {name: read_json(folder, name, "failure.json")["reason"] for name in found} == found
        assert (folder / "s7" / "00006.png").exists() and not (folder / "s5" / "failure.json").exists()
    tracked.clear()
    shutil.copytree(stills, damaged, dirs_exist_ok=True)
    assert run(damaged, tmp_path / "out", *options, "--resume") == 0
    assert {name for name, _ in tracked} == {"s3", "s4"} and not list(tmp_path.rglob("failure.json"))


def test_an_outdated_result_does_not_stand_for_a_sequence_that_can_no_longer_be_tracked(stills, tracked, tmp_path):
    root, out = tmp_path / "davis", tmp_path / "out"
    shutil.copytree(stills, root)
    assert run(root, out) == 0
    (root / "Annotations" / "480p" / "s4" / "00000.png").write_bytes(b"garbage")
    assert run(root, out, "--resume") == 1
    assert (out / "s4" / "failure.json").exists() and read_json(out, "summary.json")["missing"] == ["s4"]


def test_a_run_of_which_nothing_could_be_tracked_exits_as_one_that_is_impossible(damaged, tracked, tmp_path, capsys):
    assert run(damaged, tmp_path / "out", "--sequences", "s3", "s4") == 2
    assert failures_in(capsys.readouterr().err).keys() == REASONS.keys()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_processes_the_last_one_reports_what_failed(damaged, tracked, tmp_path, monkeypatch, capsys, order):
    monkeypatch.setenv("WORLD_SIZE", "2")
    statuses, found = [], []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        statuses.append(run(damaged, tmp_path / "out"))
        found.append(failures_in(capsys.readouterr().err).keys())
    assert statuses == [0, 1] and found[1] == REASONS.keys()


def test_a_gpu_is_warmed_up_by_a_sequence_that_can_be_tracked(damaged, tracked, tmp_path, monkeypatch):
    warmed = []
    warm_up = vos_runs.warm_up
    monkeypatch.setattr(vos_runs, "warm_up", lambda *args: warm_up(*args) or warmed.append(args[-1]))
    monkeypatch.setattr(vos_runs, "named_device", torch.device)
    shutil.rmtree(damaged / "Annotations" / "480p" / "s6")  # the longest, which comes first
    assert run(damaged, tmp_path / "out", "--device", "mps", "--sequences", "s3", "s4", "s5", "s6") == 1
    assert warmed == ["s5"]


# The demo


def test_the_demo_needs_no_data_and_leaves_the_trade_off_and_a_picture_of_masks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_mgfs_davis, "DEMO_LENGTH", 4)
    monkeypatch.setattr(run_mgfs_davis, "DEMO_THRESHOLDS", {"naive": (0.05,), "memory_guided": (0.3,)})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_mgfs_davis.main(["--demo", "--output", str(tmp_path), "--device", "cpu"]) == 0
    points = read_json(tmp_path, "tradeoff.json")
    assert [(p["strategy"], p["setting"]) for p in points] == [("off", 0), ("naive", 0.05), ("memory_guided", 0.3)]
    assert (points[0]["skip_rate"], points[0]["fidelity"], points[0]["speedup"]) == (0.0, 1.0, 1.0)
    assert all(0 < p["skip_rate"] < 1 and p["fidelity"] < 1 and p["accuracy"] > 0.5 for p in points[1:])
    out = capsys.readouterr().out
    assert f"off{'0.0%':>27}{points[0]['accuracy']:10.3f}" in out
    for name in ("demo.png", "tradeoff.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > picture.size[1]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --davis_root or --demo"),
        (["--davis_root", "x", "--demo"], "give either --davis_root or --demo"),
        (["--davis_root", "x", "--config", "tiny"], "--config and --checkpoint belong together"),
        (["--davis_root", "x", "--checkpoint", "a.pt"], "--checkpoint needs its --config"),
        (
            ["--demo", "--max-consecutive-skips", "3"],
            "--demo chooses its own data and settings, and takes no --max-con",
        ),
        (["--davis_root", "x", "--threshold", "low"], "argument --threshold: invalid float value: 'low'"),
        (["--davis_root", "x", "--warp", "up"], "argument --warp: invalid choice"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run_mgfs_davis.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sequences", "three"], "no frames of 'three'"),
        (["--split", "test"], "split: 'test' is not one of val"),
        (["--strategy", "clever"], "must be one of naive, mask_aware, memory_guided, got 'clever'"),
        (["--threshold", "-0.1"], "must be a finite number of 0 or more, got -0.1"),
        (["--threshold", "0.1", "nan"], "must be a finite number of 0 or more, got nan"),
        (["--threshold", "0.1", "0.10"], "--threshold: each value once, got 0.1 0.1"),
        (["--threshold", "0.1234567", "0.1234568"], "once, got 0.123457 0.123457 (to the six digits that name folders"),
        (["--lookahead", "4"], "skip_lookahead needs skip_strategy 'memory_guided'"),
        (["--max-consecutive-skips", "0"], "max_consecutive_skips must be at least 1"),
        (["--plan", "--strategy", "memory_guided"], "only the strategy \"naive\" can do, got 'memory_guided'"),
        (["--config", "huge", "--checkpoint", "a.pt"], "config_file 'huge' is neither a file nor one of"),
        (["--config", "tiny", "--checkpoint", "a.pt"], "checkpoint: no such file: a.pt"),
        (["--device", "gpu"], "--device must be cuda, mps or cpu, or one of many GPUs as cuda:1, got 'gpu'"),
    ],
)
def test_what_cannot_be_done_gives_one_line_and_an_exit_code(stills, tracked, tmp_path, capsys, arguments, message):
    assert run(stills, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists() and tracked == []


def test_a_data_set_that_is_not_there_gives_one_line_and_an_exit_code(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path) == 2
    assert capsys.readouterr().err == f"error: root: no such folder: {tmp_path / 'nowhere'}\n"


@pytest.mark.parametrize("demo", [False, True])
def test_a_run_that_is_stopped_says_how_to_go_on_where_it_can(stills, tmp_path, monkeypatch, capsys, demo):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_mgfs_davis, "command", stop)
    assert (run_mgfs_davis.main(["--demo"]) if demo else run(stills, tmp_path)) == 130
    assert capsys.readouterr().err == ("stopped\n" if demo else "stopped; the same command with --resume goes on\n")


def test_a_plan_does_not_replace_the_records_of_a_run(stills, tracked, tmp_path, capsys):
    run(stills, tmp_path, "--sequences", "s3")
    assert run(stills, tmp_path, "--sequences", "s3", "--plan") == 2
    assert "holds the masks of a run" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["Annotations", "JPEGImages"])
def test_masks_never_replace_the_annotation_or_lie_among_the_frames(stills, tracked, capsys, part):
    before = {path: path.read_bytes() for path in stills.rglob("*.*") if path.is_file()}
    assert run(stills, stills / part / "480p", "--sequences", "s3") == 2
    assert f"--output: {stills / part / '480p'} holds the data of --davis_root" in capsys.readouterr().err
    assert run(stills, stills / part / "480p", "--sequences", "s3", "--threshold", "0", "1") == 2
    assert f"--output: {stills / part / '480p' / 'naive_0'} lies among the data of" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in stills.rglob("*.*") if path.is_file()} == before and tracked == []


def test_an_annotation_of_another_size_is_refused(tmp_path, capsys):
    clip = draw_clip(LENGTH, 96, 128, num_objects=1, seed=0)
    write_davis_layout(tmp_path, {"one": clip._replace(labels=clip.labels[:, ::2, ::2])})
    assert run(tmp_path, tmp_path / "m") == 2
    assert "one: the annotation's size (48, 64) is not that of its frames, (96, 128)" in capsys.readouterr().err

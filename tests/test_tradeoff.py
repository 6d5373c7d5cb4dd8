"""The sweep over strategies: its points, averages and pictures, on drawn clips."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks import tradeoff
from benchmarks.tradeoff import Outcome, Point, Setting, average, curves, fidelity_at, main, table
from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.utils.davis import read_label_map
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from sam2.utils.vos_metrics import score_label_maps
from sam2.vos_runs import TrackedFrame, track_frames

EVERYTHING = 50.0  # a threshold that no frame reaches
ONE_OBJECT, TWO_OBJECTS = "one", "two"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    clips = {
        ONE_OBJECT: draw_clip(8, 64, 96, num_objects=1, seed=4),
        TWO_OBJECTS: draw_clip(5, 64, 96, num_objects=2, seed=3),
    }
    return write_davis_layout(tmp_path_factory.mktemp("davis"), clips)


def labels_of(root, name):
    """The annotation as it lies on disk."""
    return [read_label_map(path) for path in root.annotation_paths(name)]


def sweep(root, tmp_path, monkeypatch, settings, *options):
    """Run the command line with these settings; the points it wrote, as dicts."""
    monkeypatch.setattr(tradeoff, "SETTINGS", settings)
    output = tmp_path / "points" / "tradeoff.json"
    assert main(["--davis_root", str(root.root), "--json", str(output), "--processes", "1", *options]) == 0
    return json.loads(output.read_text())


# Key frames from the annotation


def test_with_annotated_key_frames_a_copied_first_frame_scores_what_its_label_map_scores(root, tmp_path, monkeypatch):
    settings = [Setting("naive", EVERYTHING)]
    (point,) = sweep(root, tmp_path, monkeypatch, settings, "--key-frames", "annotation")
    scores = []
    for name in (ONE_OBJECT, TWO_OBJECTS):
        labels = labels_of(root, name)
        scores.append(score_label_maps(name, labels, [labels[0]] * len(labels)).scores.mean)
    assert point == {
        "strategy": "naive", "setting": EVERYTHING, "lookahead": 0, "key_frames": "annotation",
        "skip_rate": pytest.approx((7 / 8 + 4 / 5) / 2), "fidelity": pytest.approx(np.mean(scores)),
        "accuracy": pytest.approx(np.mean(scores)), "speedup": None,
    }  # fmt: skip
    assert 0.1 < point["fidelity"] < 0.9


def test_carrying_masks_along_is_more_faithful_than_copying_them(root, tmp_path, monkeypatch):
    settings = [Setting("naive", EVERYTHING), Setting("memory_guided", 3.0), Setting("memory_guided", 3.0, lookahead=4)]
    copied, carried, blended = sweep(root, tmp_path, monkeypatch, settings, "--key-frames", "annotation")
    assert carried["fidelity"] > copied["fidelity"] + 0.05
    assert blended["lookahead"] == 4 and blended["skip_rate"] == pytest.approx((5 / 8 + 3 / 5) / 2)


def test_only_the_named_sequences_are_swept(root, tmp_path, monkeypatch):
    options = ("--key-frames", "annotation", "--sequences", TWO_OBJECTS)
    (point,) = sweep(root, tmp_path, monkeypatch, [Setting("naive", EVERYTHING)], *options)
    assert point["skip_rate"] == 4 / 5


def test_the_picture_lies_beside_the_points_or_where_it_is_wanted(root, tmp_path, monkeypatch):
    options, wanted = ("--key-frames", "annotation"), tmp_path / "new" / "a.png"
    sweep(root, tmp_path, monkeypatch, [Setting("naive", EVERYTHING)], *options)
    sweep(root, tmp_path, monkeypatch, [Setting("naive", EVERYTHING)], *options, "--picture", str(wanted))
    assert Image.open(tmp_path / "points" / "tradeoff.png").size == Image.open(wanted).size


# Key frames from the model


def test_with_a_model_every_setting_is_compared_with_the_run_without_skipping(root, tmp_path, monkeypatch):
    off, naive = sweep(root, tmp_path, monkeypatch, [Setting("naive", EVERYTHING)], "--sequences", TWO_OBJECTS)
    labels = labels_of(root, TWO_OBJECTS)
    predictor = build_sam2_video_predictor(device="cpu")

    def tracked(threshold):
        predictor.skipping = SkipOptions(threshold)
        return [frame.labels for frame in track_frames(predictor, root.frame_paths(TWO_OBJECTS), labels[0])]

    processed, skipped = tracked(0), tracked(EVERYTHING)
    assert (off["strategy"], off["skip_rate"], off["fidelity"], off["speedup"]) == ("off", 0.0, 1.0, 1.0)
    assert off["accuracy"] == pytest.approx(score_label_maps("", labels, processed).scores.mean)
    assert naive["skip_rate"] == 4 / 5
    assert naive["fidelity"] == pytest.approx(score_label_maps("", processed, skipped, [1, 2]).scores.mean)
    assert naive["accuracy"] == pytest.approx(score_label_maps("", labels, skipped).scores.mean)
    assert naive["speedup"] > 1


def test_runs_take_turns_of_a_few_frames_and_start_under_their_own_options(root, monkeypatch):
    class Predictor:
        skipping = None

    log = []

    def tracked(predictor, frames, first_labels):
        threshold = predictor.skipping.threshold
        for t in range(len(frames)):
            log.append((threshold, t))
            yield TrackedFrame(first_labels, tradeoff.FrameDecision(t, "processed", 0.0, "", 0.0))

    monkeypatch.setattr(tradeoff, "track_frames", tracked)
    monkeypatch.setattr(tradeoff, "TURN", 3)
    clip = tradeoff.Clip.read(root, TWO_OBJECTS)
    tradeoff.sweep_tracked(Predictor(), clip, [Setting("naive", 0.5)])
    assert log == [(t, frame) for frames in ((0, 1, 2), (3, 4)) for t in (0, 0.5) for frame in frames]


# Averages


def test_points_are_means_over_sequences_and_the_speed_up_is_that_of_the_mean_share_of_time():
    settings = [Setting("naive", 0.1), Setting("memory_guided", 0.2, 16)]
    first = [Outcome(0.2, 0.9, 0.8, 0.9), Outcome(0.5, 1.0, 0.5, 0.5)]
    second = [Outcome(0.6, 0.7, 0.6, 0.3), Outcome(0.7, 0.8, 0.7, 0.3)]
    assert average(settings, [first, second], "model") == [
        Point("naive", 0.1, 0, "model", *map(pytest.approx, (0.4, 0.8, 0.7, 1 / 0.6))),
        Point("memory_guided", 0.2, 16, "model", *map(pytest.approx, (0.6, 0.9, 0.6, 1 / 0.4))),
    ]


def point(skip_rate, fidelity, strategy="naive", lookahead=0):
    return Point(strategy, 0.1, lookahead, "annotation", skip_rate, fidelity, fidelity, None)


def test_curves_are_by_strategy_and_look_ahead_with_rising_skip_rate():
    points = [point(0.6, 0.8), point(0.0, 1.0, "off"), point(0.2, 0.9), point(0.5, 0.9, "memory_guided", 16)]
    assert curves(points) == {"naive": [points[2], points[0]], "memory_guided, look-ahead 16": [points[3]]}


@pytest.mark.parametrize(("rate", "expected"), [(0.2, 0.95), (0.4, 0.9), (0.5, 0.85), (0.6, 0.8), (0.7, None)])
def test_fidelity_at_a_skip_rate_lies_on_the_line_between_points(rate, expected):
    found = fidelity_at([point(0.4, 0.9), point(0.6, 0.8)], rate)
    assert found is expected or found == pytest.approx(expected)


def test_the_table_shows_points_and_fidelity_at_equal_skip_rates():
    lines = table([point(0.4, 0.9), point(0.6, 0.8)]).splitlines()
    assert lines[1].split() == ["naive", "0.1", "40.0%", "0.900", "0.900"]
    assert lines[-1].split() == ["naive", "0.938", "0.850", "-", "-", "-"]


@pytest.mark.parametrize("settings", [tradeoff.SETTINGS, tradeoff.QUICK_SETTINGS])
def test_every_way_of_skipping_is_swept_with_settings_that_make_sense(settings):
    kinds = {("naive", False), ("mask_aware", False), ("memory_guided", False), ("memory_guided", True)}
    assert {(setting.strategy, setting.lookahead > 0) for setting in settings} == kinds
    assert all(setting.options().is_on for setting in settings)


# What it refuses


def test_a_sequence_that_is_not_annotated_throughout_is_refused(root, tmp_path, capsys):
    copy = tmp_path / "davis"
    shutil.copytree(root.root, copy)
    (copy / "Annotations" / "480p" / TWO_OBJECTS / "00003.png").unlink()
    options = ["--davis_root", str(copy), "--json", str(tmp_path / "x.json"), "--key-frames", "annotation"]
    assert main([*options, "--sequences", TWO_OBJECTS]) == 2
    assert "two: needs an annotation of every frame" in capsys.readouterr().err


def test_weights_without_their_config_are_refused(root, tmp_path):
    with pytest.raises(SystemExit):
        main(["--davis_root", str(root.root), "--json", str(tmp_path / "x.json"), "--checkpoint", "a.pt"])


def test_a_device_that_torch_does_not_know_is_refused(root, tmp_path, capsys):
    assert main(["--davis_root", str(root.root), "--json", str(tmp_path / "a.json"), "--device", "gpu"]) == 2
    assert "error: --device must be cuda, mps or cpu" in capsys.readouterr().err

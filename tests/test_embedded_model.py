"""How well a small model tracks: what is measured, and on what."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import embedded_model
from benchmarks.embedded_model import (
    Clip,
    Drawn,
    Row,
    chained_flow,
    copied,
    differences,
    draw,
    drawn_of,
    main,
    parse,
    read,
    row_of,
    table,
)
from sam2.build_sam import EMBEDDED, build_sam2_video_predictor, packaged_file
from sam2.track_guard import TrackGuard
from sam2.utils.davis import DavisRoot
from sam2.utils.drawn_clips import DrawnClip, draw_clip, random_clip, write_davis_layout


class Here:
    """Stands for a pool of processes: does everything at once, here."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def submit(self, function, *args):
        self.value = function(*args)
        return type("Done", (), {"result": lambda _, value=self.value: value})()


@pytest.fixture
def in_this_process(monkeypatch):
    predictor = build_sam2_video_predictor(device="cpu", hydra_overrides_extra=["++model.image_size=64"])
    predictor.skip_mad_threshold = 0
    monkeypatch.setattr(embedded_model, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(embedded_model, "predictor_of", lambda model: predictor)
    monkeypatch.setattr(embedded_model, "DRAWN_SIZE", (96, 128))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    clip = draw_clip(4, 96, 128, num_objects=2, seed=4)
    return write_davis_layout(tmp_path_factory.mktemp("davis"), {"a": clip})


@pytest.mark.usefixtures("in_this_process")
def test_every_method_is_measured_on_the_folder_and_on_drawn_clips(root, tmp_path, capsys):
    figures, picture = tmp_path / "figures.json", tmp_path / "masks.png"
    options = ["--davis_root", str(root.root), "--clips", "2", "--frames", "3", "--repeats", "1"]
    assert main([*options, "--json", str(figures), "--picture", str(picture)]) == 0
    rows = json.loads(figures.read_text())
    methods = ["first mask copied", "optical flow chained", "mask", "box", "click"]
    assert [row["method"] for row in rows] == 3 * methods
    assert [row["difficulty"] for row in rows[::5]] == [None, 0.0, 0.9]
    assert all(row["j_and_f"] == pytest.approx((row["j"] + row["f"]) / 2) for row in rows)
    assert Image.open(picture).width == 4 * embedded_model.PICTURE_WIDTH
    printed = capsys.readouterr().out
    assert "2 drawn" in printed and "a: " in printed and "frames/s" in printed


def test_the_model_is_built_as_the_command_line_says():
    predictor = embedded_model.predictor_of(embedded_model.Model(None, None, "float32", 1, 96, 1.5, TrackGuard()))
    assert (predictor.image_size, predictor.search_factor, predictor.skip_mad_threshold) == (96, 1.5, 0)
    assert predictor.guard == TrackGuard()


def test_the_options_of_the_command_line_reach_the_model(monkeypatch):
    asked = []

    def stop(model):
        asked.append(model)
        raise RuntimeError("enough")

    monkeypatch.setattr(embedded_model, "predictor_of", stop)
    assert main(["--search-factor", "1.5", "--image-size", "96", "--dtype", "bfloat16"]) == 2
    assert main(["--guard"]) == 2
    model = embedded_model.Model(None, None, "bfloat16", 1, 96, 1.5)
    assert asked == [model, embedded_model.Model(None, None, "float32", 1, guard=TrackGuard())]


@pytest.mark.usefixtures("in_this_process")
def test_only_the_methods_that_are_named_are_measured(tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--clips", "1", "--frames", "3", "--repeats", "1", "--json", str(figures)]
    assert main([*options, "--methods", "mask", "copied"]) == 0
    assert [row["method"] for row in json.loads(figures.read_text())] == ["mask", "first mask copied"]


def test_methods_without_a_network_are_as_good_as_the_clip_is_still():
    still = draw_clip(4, 96, 128, num_objects=2, seed=4, motion="still")
    moving = draw_clip(4, 96, 128, num_objects=1, seed=1, motion="fast")
    for drawn, is_still in ((still, True), (moving, False)):
        clip = Clip("c", drawn.frames, list(drawn.labels))
        scores = [row_of(clip, "m", method(clip)).j for method in (copied, chained_flow)]
        if is_still:
            assert scores[0] == 1.0 and scores[1] > 0.97
        else:
            assert scores[0] < scores[1] < 1.0


def test_black_and_white_annotations_are_one_object_and_void_is_none(tmp_path):
    clip = draw_clip(3, 96, 128, num_objects=1, seed=4)
    for name, labels in (("white", clip.labels * 255), ("void", np.where(clip.labels == 0, 255, clip.labels))):
        made = write_davis_layout(tmp_path / name, {"a": DrawnClip(clip.frames, labels.astype(np.uint8))})
        found = read(made, "a")
        assert found.obj_ids == [1] and row_of(found, "m", list(clip.labels)).j == 1.0


def test_drawn_clips_are_evenly_difficult_and_the_table_sums_them_up_by_thirds():
    assert [draw(n, Drawn(0, 3, 1, 0.8)).difficulty for n in range(3)] == [0.0, 0.4, 0.8]
    rows = [Row(f"drawn {n}", "mask", 0, 0, n / 6, {}, n / 6) for n in range(6)]
    printed = table(rows).splitlines()
    assert [line.split()[-1] for line in printed[1:]] == ["0.083", "0.417", "0.750", "0.417"]


def test_drawn_clips_start_at_the_seed_that_is_given():
    later, same = draw(1, Drawn(6, 2, 3, 0.5)), random_clip(7, 3, (480, 854), difficulty=0.5)
    assert later.name == "drawn 7" and later.difficulty == 0.5
    assert np.array_equal(np.asarray(later.frames), same.frames)


@pytest.mark.parametrize("name", ["packs", "strings"])
def test_drawn_clips_have_packs_and_strings_where_they_are_asked_for(name):
    args = parse(["--first", "6", "--clips", "2", "--frames", "3", "--difficulty", "0.5", f"--{name}", "1"])
    found, plain = draw(1, drawn_of(args)), draw(1, drawn_of(args)._replace(packs=0.0, strings=0.0))
    same = random_clip(7, 3, (480, 854), difficulty=0.5, **{name: 1.0})
    assert np.array_equal(np.asarray(found.frames), same.frames)
    assert not np.array_equal(np.asarray(found.frames), plain.frames)


@pytest.mark.parametrize("name", ["difficulty", "packs", "strings"])
def test_chances_of_drawn_clips_are_shares(name, capsys):
    for value in ("1.5", "nan"):
        with pytest.raises(SystemExit):
            parse([f"--{name}", value])
        assert f"--{name} must be 0 to 1, got {value}" in capsys.readouterr().err


def test_other_weights_are_measured_on_the_same_clips_and_the_difference_has_an_error(tmp_path, monkeypatch, capsys):
    networks = {}

    def predictor_of(model):
        if model.checkpoint not in networks:
            networks[model.checkpoint] = build_sam2_video_predictor(
                model.config, model.checkpoint, device="cpu", hydra_overrides_extra=["++model.image_size=64"]
            )
        return networks[model.checkpoint]

    weights = torch.load(packaged_file("checkpoints", EMBEDDED.checkpoint), weights_only=True)
    worse = {name: value * 0.9 for name, value in weights["model"].items()}
    torch.save({"model": worse}, tmp_path / "worse.pt")
    monkeypatch.setattr(embedded_model, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(embedded_model, "predictor_of", predictor_of)
    monkeypatch.setattr(embedded_model, "DRAWN_SIZE", (96, 128))
    figures = tmp_path / "figures.json"
    options = ["--first", "5", "--clips", "2", "--frames", "4", "--repeats", "1", "--methods", "copied", "mask"]
    options += ["--json", str(figures)]
    assert main([*options, "--beside", str(tmp_path / "worse.pt")]) == 0
    rows = [Row(**row) for row in json.loads(figures.read_text())]
    assert [(row.method, row.beside) for row in rows] == 2 * [
        ("first mask copied", False), ("mask", False), ("mask", True)
    ]  # fmt: skip
    assert [row.clip for row in rows] == 3 * ["drawn 5"] + 3 * ["drawn 6"]
    gains = [rows[1].j_and_f - rows[2].j_and_f, rows[4].j_and_f - rows[5].j_and_f]
    assert gains[0] != gains[1]
    printed = capsys.readouterr().out.splitlines()
    means = [np.mean([rows[i].j_and_f, rows[i + 3].j_and_f]) for i in range(3)]
    assert printed[0].endswith("mask, beside")
    assert [line.split()[2:] for line in printed if line.startswith("2 drawn")] == [[f"{mean:.3f}" for mean in means]]
    error = abs(gains[0] - gains[1]) / 2
    told = f"mask: J&F {np.mean(gains):+.3f} over the other weights on 2 drawn clips, standard error {error:.3f}"
    assert printed.count(told) == 1


def test_a_folder_and_drawn_clips_differ_each_for_itself_and_one_clip_has_no_error():
    rows = []
    for clip, difficulty, own, other in (
        ("a", None, 0.5, 0.75),
        ("drawn 0", 0.0, 0.4, 0.3),
        ("drawn 1", 0.9, 0.4, 0.4),
    ):
        rows += [
            Row(clip, "box", 0, 0, own, {}, difficulty),
            Row(clip, "box", 0, 0, other, {}, difficulty, beside=True),
        ]
    assert differences(rows) == [
        "box: J&F -0.250 over the other weights on 1 sequence",
        "box: J&F +0.050 over the other weights on 2 drawn clips, standard error 0.050",
    ]


def test_other_weights_that_are_not_there_are_named_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded_model, "measure", lambda *args: pytest.fail("measured"))
    monkeypatch.setattr(embedded_model, "ProcessPoolExecutor", Here)
    assert main(["--clips", "1", "--beside", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "0"], "nothing to measure: give --davis_root or --clips"),
        (["--frames", "2"], "--frames 3 or more"),
        (["--first", str(2**32 - 49)], "--first must leave the seeds of all clips at 0 or more, below 4294967296"),
        (["--first", "-1"], "got -1"),
        (["--methods", "flow", "--beside", "x.pt"], "--beside needs one of --methods mask box click"),
        (["--config", "tiny"], "--config and --checkpoint belong together"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_a_sequence_that_starts_without_an_object_is_named(tmp_path, capsys):
    clip = draw_clip(4, 96, 128, num_objects=1, seed=4)
    clip.labels[0] = 0
    root = write_davis_layout(tmp_path, {"late": clip})
    assert main(["--davis_root", str(root.root), "--clips", "0"]) == 2
    assert "late: the first frame's annotation has no object" in capsys.readouterr().err
    assert DavisRoot.open(root.root).sequences("val") == ["late"]

"""The main job: DAVIS-layout folder in, palette PNGs out."""

import numpy as np
import pytest
from PIL import Image

import run_mgfs_davis
from sam2.utils.davis import read_label_map
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from sam2.utils.vos_metrics import score_label_maps

LENGTH = 4


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    root = tmp_path_factory.mktemp("davis")
    clips = {name: draw_clip(LENGTH, 96, 128, num_objects=2, seed=seed) for seed, name in enumerate(("one", "two"))}
    for clip in clips.values():
        clip.labels[clip.labels == 2] = 9  # ids need not be consecutive
    write_davis_layout(root, clips)
    return root, clips


def test_every_object_is_tracked_under_its_own_id_and_written_as_palette_png(davis, tmp_path, capsys):
    root, clips = davis
    assert run_mgfs_davis.main(["--davis_root", str(root), "--output", str(tmp_path), "--device", "cpu"]) == 0
    for name, clip in clips.items():
        masks = [read_label_map(tmp_path / name / f"{t:05d}.png") for t in range(LENGTH)]
        assert set(np.unique(masks[-1])) == {0, 1, 9}
        assert score_label_maps(name, list(clip.labels), masks).scores.mean > 0.7
        with Image.open(tmp_path / name / "00000.png") as picture:
            assert (picture.mode, picture.getpalette()[3:6]) == ("P", [128, 0, 0])
    assert "8 frames" in capsys.readouterr().out.splitlines()[2]


def test_only_the_named_sequences_are_tracked(davis, tmp_path):
    root, _ = davis
    run_mgfs_davis.main(["--davis_root", str(root), "--sequences", "two", "--output", str(tmp_path), "--device", "cpu"])
    assert [p.name for p in tmp_path.iterdir()] == ["two"]


def test_the_demo_needs_no_data_and_leaves_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_mgfs_davis, "DEMO_LENGTH", 3)
    assert run_mgfs_davis.main(["--demo", "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert "J&F against the drawn masks: 0." in capsys.readouterr().out
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size[0] > picture.size[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --davis_root or --demo"),
        (["--davis_root", "x", "--demo"], "give either --davis_root or --demo"),
        (["--davis_root", "x", "--config", "tiny"], "--config and --checkpoint belong together"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run_mgfs_davis.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_bad_data_gives_one_line_and_an_exit_code(davis, tmp_path, capsys):
    root, _ = davis
    assert run_mgfs_davis.main(["--davis_root", str(tmp_path / "nowhere"), "--output", str(tmp_path)]) == 2
    assert run_mgfs_davis.main(["--davis_root", str(root), "--sequences", "three", "--output", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)


def test_an_annotation_of_another_size_is_refused(tmp_path, capsys):
    clip = draw_clip(LENGTH, 96, 128, num_objects=1, seed=0)
    write_davis_layout(tmp_path, {"one": clip._replace(labels=clip.labels[:, ::2, ::2])})
    assert run_mgfs_davis.main(["--davis_root", str(tmp_path), "--output", str(tmp_path / "m"), "--device", "cpu"]) == 2
    assert "one: the annotation's size (48, 64) is not that of its frames, (96, 128)" in capsys.readouterr().err

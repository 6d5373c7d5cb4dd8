"""What a guard changes: what the benchmark hides, counts and prints."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_embedded_model import Here

from benchmarks import embedded_model, track_guard
from benchmarks.embedded_model import Clip
from benchmarks.track_guard import Changes, Masks, Outcome, count_masks, cuts, hidden_frames, hide, main, table
from sam2.build_sam import build_sam2_video_predictor
from sam2.utils.drawn_clips import draw_clip, write_davis_layout


def clip_of(length, *, size=(40, 60)):
    """A thing of 6 x 8 pixels that stands still."""
    labels = np.zeros(size, np.uint8)
    labels[10:16, 20:28] = 3
    frames = np.full((length, *size, 3), 200, np.uint8)
    return Clip("still", frames, [labels.copy() for _ in range(length)])


@pytest.fixture
def in_this_process(monkeypatch):
    predictor = build_sam2_video_predictor(device="cpu", image_size=64)
    predictor.skip_mad_threshold = 0
    monkeypatch.setattr(track_guard, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(track_guard, "predictor_of", lambda model: predictor)
    monkeypatch.setattr(embedded_model, "DRAWN_SIZE", (96, 128))


@pytest.mark.parametrize(("length", "hidden"), [(9, range(3, 6)), (24, range(8, 16)), (90, range(30, 40))])
def test_objects_are_hidden_under_a_box_for_a_while(length, hidden):
    clip = clip_of(length)
    assert hidden_frames(clip) == hidden
    covered = hide(clip)
    for t in range(length):
        assert (covered.labels[t] == 3).sum() == (0 if t in hidden else 48)
        grey = (covered.frames[t] == track_guard.GREY).all(axis=-1)
        ys, xs = np.nonzero(grey)
        assert len(xs) == (12 * 14 if t in hidden else 0)
        if t in hidden:
            assert (ys.min(), ys.max(), xs.min(), xs.max()) == (7, 18, 17, 30)
    assert (clip.frames == 200).all() and (clip.labels[4] == 3).any()  # it is a copy


def test_masks_are_wrong_or_not_and_doubted_or_not():
    clip = clip_of(3)
    right = clip.labels[0] == 3
    half, less, nothing = right.copy(), right.copy(), np.zeros_like(right)
    half[10:13], less[10:14] = False, False
    shown = [(right, "prompted"), (half, "tracked"), (less, "suspect")]
    shown += [(right, "suspect"), (less, "tracked"), (nothing, "occluded")]
    results = [
        SimpleNamespace(frame=min(t, 2), objects=[SimpleNamespace(obj_id=3, area=m.sum(), mask=m, status=status)])
        for t, (m, status) in enumerate(shown)
    ]
    assert count_masks(clip, results) == Masks(wrong=2, doubted_wrong=1, right=2, doubted_right=1)


def test_cuts_between_clips_are_found_and_others_are_false():
    red, blue = (np.full((20, 20, 3), colour, np.uint8) for colour in ((200, 20, 20), (20, 20, 200)))
    changes = [Changes([0.0, 0.1], red, red), Changes([0.0, 0.9], blue, blue), Changes([0.0], blue, blue)]
    assert cuts(changes) == "cuts: 1 of 2 found, 1 of 5 other frames taken for one"


def test_the_table_has_sequences_and_the_mean_of_drawn_clips():
    masks = Masks(10, 4, 90, 1)
    outcomes = [Outcome("swan", False, 0.8, 0.81, 0.5, 0.7, masks)]
    outcomes += [
        Outcome("drawn 0", True, 0.6, 0.6, 0.2, 0.4, masks),
        Outcome("drawn 1", True, 0.8, 0.8, 0.4, 0.4, masks),
    ]
    _, swan, drawn, gain, doubted = table(outcomes).splitlines()
    assert swan.split() == ["swan", "0.800", "0.810", "0.500", "0.700"]
    assert drawn.split() == ["2", "drawn", "0.700", "0.700", "0.300", "0.400"]
    assert gain.split() == ["gain", "(standard", "error)", "+0.000", "(0.000)", "+0.100", "(0.100)"]
    assert doubted == "doubted: 12 of 30 wrong masks, 3 of 270 others"


@pytest.mark.usefixtures("in_this_process")
def test_it_runs_on_a_folder_and_on_drawn_clips(tmp_path, capsys):
    root = write_davis_layout(tmp_path / "davis", {"a": draw_clip(9, 96, 128, num_objects=1, seed=4)}).root
    figures, picture = tmp_path / "figures.json", tmp_path / "hidden.png"
    options = ["--davis_root", str(root), "--clips", "2", "--frames", "9", "--json", str(figures)]
    assert main([*options, "--picture", str(picture)]) == 0
    rows = json.loads(figures.read_text())
    assert [(row["clip"], row["is_drawn"]) for row in rows] == [("a", False), ("drawn 0", True), ("drawn 1", True)]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("plain", "plain_guarded", "hidden", "hidden_guarded"))
    assert Image.open(picture).size == (6 * 320, 2 * 240)
    printed = capsys.readouterr().out
    assert "2 drawn" in printed and "doubted: " in printed and "cuts: " in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--frames", "8"],
        ["--clips", "-1"],
        ["--processes", "0"],
        ["--clips", "0"],
        ["--first", "-1"],
        ["--first", str(2**32)],
    ],
)
def test_what_cannot_be_measured_is_one_error(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

"""Videos for the tracking command, and what runs it on them and reads what it left."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sam2 import build_sam, track
from sam2.utils.davis import read_label_map, write_label_map
from sam2.utils.drawn_clips import draw_clip
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

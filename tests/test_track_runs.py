"""Which videos a run is about, and what it leaves of each."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2.track_runs import Clip, check_output, declared_length, find_clips
from sam2.utils.video_io import VideoWriter


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """clips/a.mp4, clips/b10.mp4, clips/b9.mp4, clips/frames/ with 3 pictures, other/a.mp4"""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/a.mp4", "clips/b10.mp4", "clips/b9.mp4", "other/a.mp4", "clips/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("clips/frames").mkdir()
    for t in range(3):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(f"clips/frames/{t}.jpg")


def found(*arguments):
    return [(clip.name, clip.path.as_posix()) for clip in find_clips(arguments)]


def test_a_video_is_a_file_or_a_folder_of_frames(videos):
    assert found("clips/a.mp4", "clips/frames") == [("a", "clips/a.mp4"), ("frames", "clips/frames")]


def test_a_folder_of_videos_and_a_pattern_stand_for_the_videos_in_natural_order(videos):
    everything = [("a", "clips/a.mp4"), ("b9", "clips/b9.mp4"), ("b10", "clips/b10.mp4"), ("frames", "clips/frames")]
    assert found("clips") == everything
    assert found("clips/*.mp4") == everything[:3]


def test_a_video_that_is_named_twice_is_meant_once(videos):
    assert found("clips/a.mp4", "clips/*a.mp4", "other/../clips/a.mp4") == [("a", "clips/a.mp4")]


def test_videos_that_are_called_alike_are_told_apart_by_their_folders(videos):
    assert [name for name, _ in found("clips/a.mp4", "other/a.mp4", "clips/b9.mp4")] == ["clips_a", "other_a", "b9"]
    Path("deep/other").mkdir(parents=True)
    Path("deep/other/a.mp4").touch()
    with pytest.raises(ValueError, match="other/a.mp4 and deep/other/a.mp4 would both be called 'other_a'"):
        find_clips(["other/a.mp4", "deep/other/a.mp4"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none.mp4", "VIDEO: no such file or folder: none.mp4"),
        ("none*.mp4", r"VIDEO: nothing matches none\*.mp4"),
        ("clips/frames/0.jpg", "VIDEO: clips/frames/0.jpg is a single picture; name the folder of the frames"),
        ("clips/notes.txt", r"VIDEO: clips/notes.txt is no video file that is known \(.mp4"),
        ("empty", "VIDEO: empty holds neither frames"),
        ("mixed", "VIDEO: mixed holds pictures and videos, a.mp4 for one: name what is meant"),
    ],
)
def test_what_is_no_video_is_an_error_that_names_it(videos, argument, message):
    for name in ("empty", "mixed"):
        Path(name).mkdir()
    Path("mixed/a.mp4").touch()
    Path("mixed/a.png").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_clips([argument])


def test_the_length_is_known_without_decoding(videos):
    with VideoWriter("clips/a.mp4", 10) as writer:
        for _ in range(5):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    assert [declared_length(Path("clips") / name) for name in ("frames", "a.mp4", "b9.mp4")] == [3, 5, 1]


def test_masks_may_not_lie_among_the_frames(videos):
    with pytest.raises(ValueError, match="--output: clips/frames holds the frames of a video; name another folder"):
        check_output(Path("clips"), [Clip("frames", Path("clips/frames"))])
    check_output(Path("clips"), [Clip("a", Path("clips/a.mp4"))])

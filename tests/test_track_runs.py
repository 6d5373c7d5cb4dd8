"""Which videos a run is about, and what it leaves of each."""

import os
from pathlib import Path

import numpy as np
import pytest
from clip_files import drawn_clip, write_encoded
from PIL import Image

from sam2.frame_skipping import SkipOptions
from sam2.track_runs import Clip, ClipFolder, check_output, declared_length, files_sha256, find_clips, is_save_due
from sam2.utils.davis import write_label_map
from sam2.utils.decoders import OpenCvDecoder
from sam2.utils.video_io import VideoWriter
from sam2.vos_records import RunFolder


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


def test_the_length_of_a_file_that_has_only_a_duration_is_near_and_bounded_in_cost(tmp_path, monkeypatch):
    pytest.importorskip("av")
    uneven, even = tmp_path / "uneven.webm", tmp_path / "even.mkv"
    write_encoded(uneven, drawn_clip(40), "libvpx", steps=(20, 120, 60, 75), ticks=1000)  # 2,676 by duration and rate
    write_encoded(even, drawn_clip(90), "libx264")
    write_encoded(tmp_path / "short.mkv", drawn_clip(9), "libx264", steps=(1, 4))
    advances = []
    advance = OpenCvDecoder.advance
    monkeypatch.setattr(OpenCvDecoder, "advance", lambda self: advances.append(1) or advance(self))
    assert declared_length(uneven) == pytest.approx(40, abs=2)
    assert (declared_length(even), len(advances)) == (90, 66)
    assert declared_length(tmp_path / "short.mkv") == 9


def test_an_overlay_may_not_take_the_place_of_its_video(videos):
    clip = Clip("overlay", Path("clips/overlay/overlay.mp4"))
    with pytest.raises(ValueError, match="is where the overlay of this video would be"):
        check_output(Path("clips"), ["clips/overlay/overlay.mp4"], [clip])


def test_masks_may_not_lie_among_the_frames(videos):
    with pytest.raises(ValueError, match="--output: clips/frames holds the frames of a video; name another folder"):
        check_output(Path("clips"), ["clips/frames"], [Clip("frames", Path("clips/frames"))])
    check_output(Path("clips"), ["clips/a.mp4"], [Clip("a", Path("clips/a.mp4"))])


@pytest.mark.parametrize("argument", ["clips", "cl*s", "other/../clips"])
def test_results_may_not_lie_where_videos_are_searched(videos, argument):
    with pytest.raises(ValueError, match="--output: clips is a VIDEO too, results in it would be taken for videos"):
        check_output(Path("clips"), [argument], find_clips([argument]))
    check_output(Path("clips/out"), [argument], find_clips([argument]))


def test_the_digest_of_a_video_changes_with_its_files(videos):
    frame, video = Path("clips/frames/1.jpg"), Path("clips/a.mp4")
    before = [files_sha256(path) for path in (frame.parent, video)]
    assert before == [files_sha256(path) for path in (frame.parent.absolute(), video.absolute())]
    os.utime(frame, (0, 0))
    video.write_bytes(b"1")
    assert not set(before) & {files_sha256(path) for path in (frame.parent, video)}
    Path("clips/frames/2.jpg").unlink()
    assert len({*before, files_sha256(frame.parent)}) == 3


def test_clearing_removes_what_a_run_left_and_nothing_else(videos):
    run = RunFolder(Path("out"), SkipOptions(), {}, "cpu")
    folder = ClipFolder(run, Clip("a", Path("clips/a.mp4")), [])
    for name in ("0.png", "001/0.png", "1000_cat/0.png", "002/0.png"):
        write_label_map(folder.path / name, np.ones((4, 6), int))
    kept = ["002/notes.txt", "frame.png", "masks/0.png"]
    for name in (kept[0], "frames.json", "sequence.json", "failure.json"):
        (folder.path / name).touch()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder.path / kept[1])
    write_label_map(folder.path / kept[2], np.ones((4, 6), int))
    folder.clear()
    assert len([path for path in folder.path.rglob("*") if path.is_file()]) == 7  # no run began here
    folder.begin()
    folder.clear()
    assert sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*")) == [
        "002", kept[0], kept[1], "masks", kept[2],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("elapsed", "save_took", "is_due"),
    [(59, 0, False), (60, 0, True), (60, 3, True), (60, 4, False), (79, 4, False), (80, 4, True)],
)
def test_saving_takes_a_twentieth_of_the_time_at_most(elapsed, save_took, is_due):
    assert is_save_due(elapsed, 60, save_took) == is_due

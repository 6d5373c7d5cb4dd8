from __future__ import annotations

import builtins
import os
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clip_files import drawn_clip, write_lossless
from PIL import Image

from sam2.utils import video_io
from sam2.utils.davis import DAVIS_PALETTE
from sam2.utils.video_io import (
    FrameReadError,
    FrameSource,
    PaletteMaskWriter,
    VideoFile,
    VideoWriter,
    open_source,
    overlay,
)
from sam2.utils.video_writer import _Mpeg4Encoder, next_tick

RED = (128, 0, 0)  # the DAVIS colour of object 1


def save(folder: Path, name: str, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path = folder / name
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def first_values(source: FrameSource) -> list[int]:
    return [int(source.read(index)[0, 0, 0]) for index in range(len(source))]


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for value, name in [(20, "10.png"), (10, "2.png"), (5, "00001.png")]:
        save(tmp_path, name, value)
    source = open_source(str(tmp_path))
    assert first_values(source) == [5, 10, 20]
    assert (source.height, source.width, source.name) == (6, 8, tmp_path.name)


def test_all_kinds_of_pictures_are_frames_and_other_files_are_not(tmp_path: Path) -> None:
    for index, suffix in enumerate([".jpg", ".JPEG", ".png", ".webp", ".BMP", ".PNG"]):
        save(tmp_path, f"frame{index}{suffix}")
    for stray in ("notes.txt", "Thumbs.db", "._frame0.jpg", ".DS_Store"):
        (tmp_path / stray).write_text("not a picture")
    (tmp_path / "folder.jpg.d").mkdir()
    assert len(open_source(tmp_path)) == 6


def test_a_mask_beside_its_jpeg_frame_is_no_frame(tmp_path: Path) -> None:
    save(tmp_path, "00000.jpg", 200)
    save(tmp_path, "00000.png", 1)
    assert first_values(open_source(tmp_path)) == [200]


def test_pictures_become_rgb_whatever_their_mode(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "0.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 128)).save(tmp_path / "1.png")
    source = open_source(tmp_path)
    assert source.read(0)[0, 0].tolist() == [7, 7, 7]
    assert source.read(1)[0, 0].tolist() == [1, 2, 3]


DEEP = {"I;16": np.uint16, "I": np.int32, "F": np.float32}  # what PIL would clip to 8 bits


@pytest.mark.parametrize("mode", DEEP)
def test_pictures_of_more_than_8_bits_are_refused_as_images(mode: str) -> None:
    picture = Image.fromarray(np.full((6, 8), 300, DEEP[mode]))
    assert picture.mode == mode
    with pytest.raises(ValueError, match=f"video: frame 1 has the mode {mode}, not 8 bits: scale it to 8 bits"):
        open_source([Image.new("L", (8, 6)), picture])
    with pytest.raises(ValueError, match=f"video: frame 3 has the mode {mode}"):
        video_io.as_rgb(picture, "frame 3")


@pytest.mark.parametrize("as_list", [False, True])
def test_a_picture_file_of_16_bits_is_refused_by_name(tmp_path: Path, as_list: bool) -> None:
    save(tmp_path, "0.png")
    Image.fromarray(np.full((6, 8), 300, np.uint16)).save(tmp_path / "1.png")
    video = sorted(tmp_path.iterdir()) if as_list else tmp_path
    with pytest.raises(FrameReadError, match=r"1\.png is not .*\(it has the mode I(;16)?, not 8 bits: scale it"):
        open_source(video)


def test_a_picture_of_16_bits_that_was_not_looked_at_is_refused_when_it_is_read(tmp_path: Path) -> None:
    save(tmp_path, "0.png")
    source = open_source(tmp_path)
    Image.fromarray(np.full((6, 8), 300, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(FrameReadError, match=r"frame 0, .*0\.png, .* it has the mode I.*scale it to 8 bits"):
        source.read(0)


def save_turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn_clip(1)[0]).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["folder", "paths", "images"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pictures_that_exif_turns_are_read_as_they_are_stored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, suffix: str
) -> None:
    paths = [save_turned(tmp_path / f"{index}{suffix}", orientation) for index, orientation in enumerate((1, 6, 6))]
    images = [Image.open(path) for path in paths]
    source = open_source({"folder": tmp_path, "paths": list(paths), "images": images}[kind])
    assert source.read(1).shape == (48, 64, 3)
    (record,) = caplog.records
    named = "frame 1" if kind == "images" else str(paths[1])
    assert f"{named} (one of 2) is turned" in record.getMessage() and "exif_transpose" in record.getMessage()


def test_upright_pictures_and_damaged_exif_are_read_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_turned(tmp_path / "0.jpg", 1)
    Image.fromarray(drawn_clip(1)[0]).save(tmp_path / "1.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    Image.fromarray(drawn_clip(1)[0]).save(tmp_path / "2.jpg", exif=b"Exif\0\0no EXIF")
    assert len(open_source(tmp_path)) == 3 and not caplog.records


def test_a_list_of_paths_keeps_its_order(tmp_path: Path) -> None:
    paths = [str(save(tmp_path, "b.png", 1)), save(tmp_path, "a.png", 2)]
    assert first_values(open_source(paths)) == [1, 2]


def test_a_source_is_its_own_source() -> None:
    source = open_source(drawn_clip(1))
    assert open_source(source) is source


def test_video_files_and_bytes_are_recognised(tmp_path: Path) -> None:
    path = write_lossless(tmp_path / "clip.avi", drawn_clip(3))
    nameless = path.rename(tmp_path / "no_suffix")
    for video in (nameless, str(nameless), nameless.read_bytes(), bytearray(nameless.read_bytes())):
        source = open_source(video)
        assert isinstance(source, VideoFile) and len(source) == 3


@pytest.mark.parametrize("layout", ["(T, H, W, 3)", "(T, 3, H, W)"])
@pytest.mark.parametrize("kind", ["array", "tensor", "float array", "half tensor", "list"])
def test_arrays_and_tensors_of_both_layouts_give_their_pixels(layout: str, kind: str) -> None:
    frames = np.stack(drawn_clip(3))
    laid = frames.transpose(0, 3, 1, 2) if layout == "(T, 3, H, W)" else frames
    video = {
        "array": lambda: laid,
        "tensor": lambda: torch.from_numpy(laid.copy()),
        "float array": lambda: laid / 255.0,
        "half tensor": lambda: torch.from_numpy(laid.copy()).half() / 255,
        "list": lambda: list(laid),
    }[kind]()
    source = open_source(video)
    assert (len(source), source.height, source.width) == (3, 48, 64)
    for index in range(3):
        frame = source.read(index)
        assert frame.dtype == np.uint8 and frame.flags.c_contiguous
        np.testing.assert_array_equal(frame, frames[index])


@pytest.mark.parametrize("name", ["missing", "missing.mp4", "missing/00000.jpg"])
def test_a_missing_path_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"video: no such file or folder: .*{name}"):
        open_source(tmp_path / name)


def test_a_missing_picture_of_a_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such picture: .*b\.png"):
        open_source([save(tmp_path, "a.png"), tmp_path / "b.png"])


def test_an_empty_folder_and_one_without_pictures_say_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frames \(.jpg, .*found nothing"):
        open_source(tmp_path)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ValueError, match=r"no frames .*found clip\.mp4"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"), [("a.png", "single picture; give its folder"), ("notes.txt", "no video file that is known")]
)
def test_other_files_are_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("some text\n" * 50)
    with pytest.raises(ValueError, match=f"{name} is .*{message}|{name} is {message}"):
        open_source(tmp_path / name)


def test_a_frame_of_another_size_is_named_when_the_folder_is_opened(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path, f"{index}.png", size=(8, 6) if index != 1 else (9, 6))
    with pytest.raises(ValueError, match=r"1\.png is 9x6, expected 8x6 as .*0\.png"):
        open_source(tmp_path)


def test_a_frame_of_another_size_in_a_list_is_named() -> None:
    with pytest.raises(ValueError, match="frame 1 is 64x50, expected 64x48 as frame 0"):
        open_source([*drawn_clip(1), *drawn_clip(1, height=50)])


def test_a_file_that_is_no_picture_is_named_when_opened(tmp_path: Path) -> None:
    save(tmp_path, "0.png")
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(FrameReadError, match=r"1\.png is not a picture"):
        open_source(tmp_path)


def test_a_picture_cut_short_is_named_when_it_is_read_and_the_others_stay_readable(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(noise).save(tmp_path / f"{index}.jpg")
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    source = open_source(tmp_path)
    with pytest.raises(FrameReadError, match=r"frame 1, .*1\.jpg, cannot be decoded: .*expected a picture of 32x32"):
        source.read(1)
    assert source.read(2).shape == (32, 32, 3)


def test_a_picture_that_changed_its_size_is_named(tmp_path: Path) -> None:
    save(tmp_path, "0.png")
    source = open_source(tmp_path)
    save(tmp_path, "0.png", size=(9, 9))
    with pytest.raises(FrameReadError, match=r"frame 0, .*0\.png, is 9x9, expected 8x6"):
        source.read(0)


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        ([], ValueError, "there are no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "there are no frames"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"\(T, H, W, 3\) or \(T, 3, H, W\), got \(4, 4, 3\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), ValueError, r"frame 0 must be \(H, W, 3\) or \(3, H, W\), got \(4, 4, 4\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), ValueError, "frame 0 is empty"),
        (np.zeros((2, 4, 4, 3), np.int64), TypeError, "frame 0 must be uint8, or float from 0 to 1, got int64"),
        (np.full((2, 4, 4, 3), 200.0), ValueError, "frame 0 has floats from 200.0 to 200.0, expected 0 to 1"),
        (torch.full((2, 4, 4, 3), -0.5), ValueError, "floats from -0.5 to -0.5"),
        (torch.full((2, 4, 4, 3), float("nan")), ValueError, "floats from nan"),
        ([np.zeros((4, 4, 3), np.uint8), "a.png"], TypeError, "frame 1 must be a PIL image, an array or a tensor"),
        (0, TypeError, "video must be a folder, .* got int"),
        (None, TypeError, "got NoneType"),
        (iter([]), TypeError, "got list_iterator"),
    ],
)
def test_what_holds_no_frames_is_refused(video: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(video)  # pyright: ignore[reportArgumentType]


def test_masks_are_written_as_davis_palette_pngs(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    path = PaletteMaskWriter(tmp_path / "new" / "folder").write("00007", labels)
    assert path == tmp_path / "new" / "folder" / "00007.png"
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), labels)
        assert bytes(image.getpalette() or ()) == DAVIS_PALETTE
        assert image.convert("RGB").getpixel((1, 0)) == RED


def test_a_mask_that_cannot_be_written_leaves_the_old_one_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = PaletteMaskWriter(tmp_path)
    before = writer.write("00000", np.ones((2, 2), np.uint8)).read_bytes()

    def fail_halfway(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", fail_halfway)
    with pytest.raises(OSError, match="the disk is full"):
        writer.write("00000", np.zeros((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]
    assert (tmp_path / "00000.png").read_bytes() == before


@pytest.mark.parametrize("name", ["", "clip/00000", "../00000"])
def test_mask_names_are_stems(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="frame_name must be the stem of a file"):
        PaletteMaskWriter(tmp_path).write(name, np.zeros((2, 2), np.uint8))


@pytest.fixture(params=["pyav", "opencv"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with PyAV and without it."""
    if request.param == "pyav":
        pytest.importorskip("av")
        return request.param
    original = builtins.__import__

    def refuse_av(name: str, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse_av)
    return request.param


def test_without_libx264_a_warning_says_what_is_written_instead(
    tmp_path: Path, without_libx264: None, caplog: pytest.LogCaptureFixture
) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=25) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert "clip.mp4 becomes MPEG-4 Part 2, which browsers do not play: H.264 needs the encoder" in caplog.text
    assert len(open_source(tmp_path / "clip.mp4")) == 1


@pytest.mark.parametrize(
    ("last", "tick", "expected"),
    [(None, None, 0), (None, 70, 70), (0, None, 1000), (500, 501, 501), (500, 500, 1500), (500, 20, 1500)],
)
def test_a_frame_is_shown_at_its_time_or_one_frame_after_the_last(
    last: int | None, tick: int | None, expected: int
) -> None:
    assert next_tick(last, tick) == expected


@pytest.mark.parametrize("fps", [1 / 3600, 7, 24000 / 1001, 59.94, np.float32(29.97), 240, 1000])
def test_any_frame_rate_can_be_written(tmp_path: Path, fps: float) -> None:
    pytest.importorskip("av")
    with VideoWriter(tmp_path / "clip.mp4", fps) as writer:
        for value in range(4):
            writer.write(np.full((48, 64, 3), value, np.uint8))
    source = VideoFile(tmp_path / "clip.mp4")
    assert len(source) == 4 and source.rate == pytest.approx(fps, rel=1e-6)


def test_a_written_video_shows_the_frames_and_their_times(tmp_path: Path, encoder: str) -> None:
    frames = [np.full((48, 64, 3), colour, np.uint8) for colour in ([200, 30, 30], [30, 200, 30], [30, 30, 200])]
    with VideoWriter(tmp_path / "new" / "clip.mp4", fps=12.5) as writer:
        for frame in frames:
            writer.write(frame)
    capture = cv2.VideoCapture(str(tmp_path / "new" / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    assert fourcc == ("h264" if encoder == "pyav" else "FMP4")
    source = open_source(tmp_path / "new" / "clip.mp4")
    assert len(source) == 3
    for index, frame in enumerate(frames):
        assert np.abs(source.read(index).astype(int) - frame).max() <= 8


def test_an_avi_file_has_the_frame_rate_and_no_empty_frames(tmp_path: Path, encoder: str) -> None:
    with VideoWriter(tmp_path / "clip.avi", 25) as writer:
        for t in range(5):
            writer.write(np.full((48, 64, 3), 40 * t, np.uint8), t / 10)
    source = VideoFile(tmp_path / "clip.avi")
    assert len(source) == 5 and source.rate == 25 and source.time(4) == pytest.approx(0.16)
    assert [round(source.read(t).mean() / 40) for t in range(5)] == [0, 1, 2, 3, 4]


def test_a_relative_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    with VideoWriter("concat:clip.mp4", 25) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert len(open_source(tmp_path / "concat:clip.mp4")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_opencv_is_not_asked_to_write_a_name_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would end the process.
    monkeypatch.setattr(cv2, "VideoWriter", lambda *_: pytest.fail("OpenCV was asked"))
    with pytest.raises(OSError, match="not UTF-8"):
        _Mpeg4Encoder(tmp_path / os.fsdecode(b"caf\xe9.mp4"), Fraction(25), 48, 64)


def test_odd_sizes_get_their_last_row_and_column_twice(tmp_path: Path, encoder: str) -> None:
    frame = np.full((33, 47, 3), 120, np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", fps=25) as writer:
        writer.write(frame)
    read = open_source(tmp_path / "clip.mp4").read(0)
    assert read.shape == (34, 48, 3)
    assert np.abs(read.astype(int) - 120).max() <= 4


def test_an_error_in_the_block_leaves_a_playable_video(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "clip.mp4", fps=25) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        raise RuntimeError("stop")
    assert len(open_source(tmp_path / "clip.mp4")) == 1
    with pytest.raises(ValueError, match="the writer was closed"):
        writer.write(np.zeros((48, 64, 3), np.uint8))


def test_a_writer_without_frames_makes_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=25):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_frames_per_second_must_be_positive(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match="fps must be positive"):
        VideoWriter(tmp_path / "clip.mp4", fps)


def test_a_video_name_that_no_encoder_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in one of \.mp4"):
        VideoWriter(tmp_path / "clip.png", 25)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((6, 4, 3), np.uint8)]
)
def test_frames_that_do_not_fit_the_video_are_refused(tmp_path: Path, frame: np.ndarray) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        writer.write(np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(ValueError, match="frame must be"):
            writer.write(frame)


def test_overlay_mixes_colours_inside_and_draws_the_contour_in_full() -> None:
    frame = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 1
    drawn = overlay(frame, labels, alpha=0.25)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[4, 4].tolist() == [107, 75, 75]  # 3/4 of 100 and 1/4 of 128, 0, 0
    assert [drawn[2, 4].tolist(), drawn[4, 6].tolist()] == [list(RED), list(RED)]
    assert (drawn == np.array(RED)).all(axis=-1).sum() == 16  # the 5 x 5 square's outermost ring
    assert (frame == 100).all()


def test_overlay_draws_the_contour_between_two_objects_and_none_along_the_frame() -> None:
    labels = np.ones((4, 8), np.uint8)
    labels[:, 4:] = 2
    drawn = overlay(np.zeros((4, 8, 3), np.uint8), labels, alpha=0)
    assert drawn[0, :, :2].tolist() == [[0, 0], [0, 0], [0, 0], [128, 0], [0, 128], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("labels", "alpha", "message"),
    [
        (np.zeros((3, 4), np.uint8), 0.5, r"labels must be \(4, 4\) uint8"),
        (np.zeros((4, 4), bool), 0.5, "got .* bool"),
        (np.zeros((4, 4), np.uint8), 1.5, "alpha must be 0 to 1, got 1.5"),
    ],
)
def test_overlay_refuses_what_does_not_fit(labels: np.ndarray, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(np.zeros((4, 4, 3), np.uint8), labels, alpha)


def test_a_long_folder_opens_with_a_look_at_some_pictures_and_checks_the_others_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_io, "HEADERS_AT_OPENING", 4)
    for index in range(10):
        Image.new("RGB", (8, 6) if index != 5 else (8, 7)).save(tmp_path / f"{index}.png")
    looked_at = []
    look = video_io._read_header
    monkeypatch.setattr(video_io, "_read_header", lambda path: looked_at.append(path.stem) or look(path))
    source = open_source(tmp_path)
    assert (looked_at, len(source)) == (["0", "3", "6", "9"], 10)
    with pytest.raises(FrameReadError, match=r"frame 5, .*5\.png, is 8x7, expected 8x6"):
        source.read(5)
    with pytest.raises(FileNotFoundError, match=r"no such picture: .*nothing\.png"):
        open_source([*sorted(tmp_path.iterdir()), tmp_path / "nothing.png"])

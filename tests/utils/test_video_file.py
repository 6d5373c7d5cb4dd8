from __future__ import annotations

import builtins
import gc
import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from clip_files import drawn_clip, write_encoded, write_lossless

from sam2.utils import video_file
from sam2.utils.containers import promised_bytes
from sam2.utils.video_file import FrameReadError, VideoFile

DECODERS = {"opencv": video_file.OpenCvDecoder, "pyav": video_file.PyAvDecoder}


@pytest.fixture(params=list(DECODERS))
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with each decoder, the other one out of order."""
    if request.param == "pyav":
        pytest.importorskip("av")
    other = {"opencv": "PyAvDecoder", "pyav": "OpenCvDecoder"}[request.param]

    class OutOfOrder:
        title = other

        def __init__(self, path: Path) -> None:
            raise video_file.DecodeFailure("is out of order")

    monkeypatch.setattr(video_file, other, OutOfOrder)
    return request.param


@pytest.fixture
def advances(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every frame that a decoder steps to, opening included."""
    stepped: list[int] = []
    for decoder in DECODERS.values():
        original = decoder.advance

        def counted(self, original=original):
            stepped.append(1)
            return original(self)

        monkeypatch.setattr(decoder, "advance", counted)
    return stepped


def cut(path: Path, share: float) -> Path:
    """The first part of a file, under another name."""
    data = path.read_bytes()
    short = path.with_name("cut_" + path.name)
    short.write_bytes(data[: int(len(data) * share)])
    return short


def forward(video: VideoFile) -> list[np.ndarray]:
    return [video.read(index) for index in range(len(video))]


def test_lossless_video_gives_the_frames_that_were_written(tmp_path: Path, decoder: str) -> None:
    frames = drawn_clip(12)
    video = VideoFile(write_lossless(tmp_path / "clip.avi", frames))
    assert (len(video), video.height, video.width, video.name) == (12, 48, 64, "clip.avi")
    np.testing.assert_array_equal(forward(video), frames)


@pytest.mark.parametrize(
    ("name", "codec", "steps", "options"),
    [
        ("one_key_frame.mp4", "libx264", (1,), {"g": "1000"}),
        ("open_gops.mp4", "libx264", (1,), {"x264-params": "open-gop=1:keyint=12"}),
        ("refreshed_by_columns.mp4", "libx264", (1,), {"x264-params": "intra-refresh=1:keyint=12"}),
        ("uneven_times.mkv", "libx264", (1, 1, 5, 1, 2), {"g": "7"}),
        ("open_gops_h265.mp4", "libx265", (1,), {"x265-params": "log-level=none:keyint=10"}),
        ("hidden_frames.webm", "libvpx", (1,), {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "15"}),
        ("simple.avi", "mpeg4", (1,), {"g": "9"}),
        ("broadcast.ts", "mpeg2video", (1,), {"g": "9", "bf": "2"}),
    ],
)
def test_any_order_of_reading_gives_the_frames_of_reading_forward(
    tmp_path: Path, decoder: str, name: str, codec: str, steps: tuple[int, ...], options: dict[str, str]
) -> None:
    pytest.importorskip("av")
    path = write_encoded(tmp_path / name, drawn_clip(90), codec, options, steps=steps)
    expected = forward(VideoFile(path))
    assert len(expected) == 90
    assert all((a != b).any() for a, b in zip(expected, expected[1:], strict=False))
    video = VideoFile(path, block_bytes=0)  # blocks of 8 frames
    order = [*range(89, -1, -1), 85, 3, 3, 4, 70, 69, 71, 0, *range(80, 60, -3), 61]
    for index in order:
        np.testing.assert_array_equal(video.read(index), expected[index], err_msg=f"frame {index}")


def test_reading_backward_decodes_each_group_of_pictures_a_few_times_only(
    tmp_path: Path, decoder: str, advances: list[int]
) -> None:
    pytest.importorskip("av")
    count = 240
    path = write_encoded(tmp_path / "clip.mp4", drawn_clip(count), "libx264", {"g": "24", "bf": "0"})
    video = VideoFile(path, block_bytes=24 * 48 * 64 * 3)
    advances.clear()
    for index in reversed(range(count)):
        video.read(index)
    assert len(advances) < 3 * count


def test_reading_forward_decodes_each_frame_once(tmp_path: Path, decoder: str, advances: list[int]) -> None:
    video = VideoFile(write_lossless(tmp_path / "clip.avi", drawn_clip(20)))
    advances.clear()
    forward(video)
    assert len(advances) == 20


def test_a_far_jump_seeks_instead_of_decoding_all_frames_between(
    tmp_path: Path, decoder: str, advances: list[int]
) -> None:
    video = VideoFile(write_lossless(tmp_path / "clip.avi", drawn_clip(200)))  # key frames only
    assert video.count() == 200
    video.read(0)
    advances.clear()
    video.read(190)
    assert len(advances) < 60


def test_opening_a_long_video_steps_through_its_first_frames_only(
    tmp_path: Path, decoder: str, advances: list[int]
) -> None:
    if decoder == "pyav":
        pytest.skip("where OpenCV fails, all frames are decoded at once to tell damage from an odd format")
    path = write_lossless(tmp_path / "clip.avi", drawn_clip(200))
    advances.clear()
    video = VideoFile(path)
    assert len(advances) == 32 and len(video) == 200
    assert video.has(199) and not video.has(200) and not video.has(-1)
    assert len(advances) < 200 + 40, "asking whether there is a frame steps on from the last known one"


@pytest.mark.parametrize(("declared", "end"), [(250, "earlier"), (45, "later")])
def test_the_end_may_come_earlier_or_later_than_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, declared: int, end: str
) -> None:
    frames = drawn_clip(60)
    path = write_lossless(tmp_path / "clip.avi", frames)
    for each in DECODERS.values():
        monkeypatch.setattr(each, "declared", declared)
    video = VideoFile(path)
    assert len(video) == declared
    np.testing.assert_array_equal(video.read(50), frames[50])
    assert video.has(59) and not video.has(60)
    assert len(video) == video.count() == 60
    with pytest.raises(IndexError, match=r"clip\.avi has frames 0 to 59, got 60"):
        video.read(60)
    np.testing.assert_array_equal(video.read(59), frames[59])
    assert ("speaks of 250 frames, 60 can be decoded" in caplog.text) == (end == "earlier")


def test_where_the_container_has_no_number_of_frames_its_packets_are_counted(
    tmp_path: Path, advances: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    path = write_encoded(tmp_path / "clip.mkv", drawn_clip(90), "libx264", steps=(1, 1, 5))  # 209 by its duration
    assert (len(VideoFile(path)), len(advances)) == (90, 32)
    monkeypatch.setattr(video_file, "count_packets", lambda path: 0)  # as without PyAV
    assert len(VideoFile(path)) == 90 and len(advances) >= 120


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_frames_have_their_times_in_seconds_from_the_first(tmp_path: Path, decoder: str, name: str) -> None:
    pytest.importorskip("av")
    video = VideoFile(write_encoded(tmp_path / name, drawn_clip(40), "libx264", steps=(1, 1, 5)))
    assert video.rate == pytest.approx(31 / (71 / 25) if decoder == "opencv" else 39 / (91 / 25), rel=1e-3)
    assert video.count() == 40
    assert [video.time(index) for index in (0, 1, 2, 3, 39)] == pytest.approx([0, 0.04, 0.08, 0.28, 91 / 25], abs=1e-3)


@pytest.mark.parametrize(
    ("timestamps", "declared", "expected"),
    [
        ([0, 33, 67, 100], 30, 30),
        ([0, 20, 140, 200], 1000, 15),
        ([0, 20, 140, 200], 0, 15),
        ([0, 0.5], 0, 2000),
        ([0, 0, 0], 25, 25),
        ([90, 40], 25, 25),
        ([7], 25, 25),
        ([None, None], 25, 25),
        ([None], 90_000, None),
        ([0], float("nan"), None),
    ],
)
def test_the_frame_rate_is_the_one_on_record_unless_the_times_say_another(
    timestamps: list[float | None], declared: float, expected: float | None
) -> None:
    assert video_file.frame_rate(timestamps, 1e-3, declared) == (expected and pytest.approx(expected))


def test_without_times_the_rate_is_the_one_on_record(tmp_path: Path, decoder: str) -> None:
    pytest.importorskip("av")
    video = VideoFile(write_encoded(tmp_path / "clip.h264", drawn_clip(5), "libx264"))
    assert video.rate == 25


def test_memory_for_reading_backward_is_bounded(tmp_path: Path) -> None:
    frame_bytes = 48 * 64 * 3
    video = VideoFile(write_lossless(tmp_path / "clip.avi", drawn_clip(60)), block_bytes=10 * frame_bytes)
    for index in reversed(range(60)):
        video.read(index)
        assert sum(frame.nbytes for frame in video._block.values()) <= 10 * frame_bytes


def test_opencv_is_asked_first_and_pyav_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    frames = drawn_clip(5)
    path = write_lossless(tmp_path / "clip.avi", frames)
    assert VideoFile(path)._decoder_type is video_file.OpenCvDecoder

    monkeypatch.setattr(video_file.OpenCvDecoder, "advance", lambda self: False)
    video = VideoFile(path)
    assert video._decoder_type is video_file.PyAvDecoder
    np.testing.assert_array_equal(forward(video), frames)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_name_that_is_not_utf8_is_left_to_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    frames = drawn_clip(5)
    path = write_lossless(tmp_path / "clip.avi", frames).rename(tmp_path / os.fsdecode(b"caf\xe9.avi"))
    # OpenCV itself would end the process on such a name.
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("OpenCV was asked"))
    np.testing.assert_array_equal(forward(VideoFile(path)), frames)


def stops_at(monkeypatch: pytest.MonkeyPatch, decoder: type, frame: int, error: Exception | None) -> None:
    """Let a decoder end, or fail, where this frame of a clip at 25 frames per second would be."""
    original, unit = decoder.advance, 40 if decoder is video_file.OpenCvDecoder else 1

    def advance(self) -> bool:
        if original(self) and self.timestamp < frame * unit:
            return True
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(decoder, "advance", advance)


def test_pyav_is_asked_when_opencv_finds_fewer_frames_than_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    frames = drawn_clip(10)
    path = write_lossless(tmp_path / "clip.avi", frames)
    stops_at(monkeypatch, video_file.OpenCvDecoder, 5, None)
    np.testing.assert_array_equal(forward(VideoFile(path)), frames)


def test_damage_that_only_pyav_reports_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    path = write_lossless(tmp_path / "clip.avi", drawn_clip(10))
    stops_at(monkeypatch, video_file.OpenCvDecoder, 5, None)
    stops_at(monkeypatch, video_file.PyAvDecoder, 7, video_file.DecodeFailure("damaged data"))
    with pytest.raises(FrameReadError, match=r"frame 7 of clip\.avi cannot be decoded \(PyAV damaged data\)"):
        VideoFile(path)


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse_av(name: str, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse_av)
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"this is no video" * 100)
    with pytest.raises(FrameReadError, match=r"clip\.mp4 cannot be read.*OpenCV cannot open it.*sam2\[video\]"):
        VideoFile(path)


@pytest.mark.parametrize("data", [b"", b"this is no video" * 100])
def test_a_file_that_is_no_video_is_one_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(FrameReadError, match=r"clip\.mp4 cannot be read as a video"):
        VideoFile(path)


def test_a_video_cut_short_says_how_much_is_there_and_which_frame_is_missing(tmp_path: Path) -> None:
    path = cut(write_lossless(tmp_path / "clip.avi", drawn_clip(40)), 0.5)
    with pytest.raises(
        FrameReadError, match=r"cut_clip\.avi is truncated.*(\d+) frames can be decoded and frame \1 is missing.* 40"
    ):
        VideoFile(path)


@pytest.mark.parametrize("name", ["clip.mp4", "indexed_first.mp4", "clip.mkv"])
def test_truncation_shows_at_once_in_every_common_container(tmp_path: Path, name: str) -> None:
    pytest.importorskip("av")
    whole = write_encoded(tmp_path / name, drawn_clip(60), "libx264", index_first=name.startswith("indexed"))
    assert len(VideoFile(whole)) == 60
    for share in (0.98, 0.5):
        with pytest.raises(FrameReadError, match=f"cut_{name} is truncated: it has "):
            VideoFile(cut(whole, share))


def test_damage_within_a_video_names_the_frame(tmp_path: Path, decoder: str) -> None:
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)
    frames = list(noise.repeat(8, axis=1).repeat(8, axis=2))
    path = write_encoded(tmp_path / "clip.mp4", frames, "libx264", index_first=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(FrameReadError, match=r"frame [23]\d of clip\.mp4 cannot be decoded"):
        VideoFile(path).count()


def test_a_frame_that_fails_later_is_named_and_the_others_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = drawn_clip(10)
    video = VideoFile(write_lossless(tmp_path / "clip.avi", frames))
    original = video_file.OpenCvDecoder.image

    def fail_at_frame_4(self):
        if self.timestamp == 160:
            raise video_file.DecodeFailure("damaged data")
        return original(self)

    monkeypatch.setattr(video_file.OpenCvDecoder, "image", fail_at_frame_4)
    np.testing.assert_array_equal(video.read(3), frames[3])
    with pytest.raises(FrameReadError, match=r"frame 4 of clip\.avi cannot be decoded.* 10 frames of 64x48"):
        video.read(4)
    np.testing.assert_array_equal(video.read(5), frames[5])


def test_fewer_frames_than_declared_is_logged_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, decoder: str
) -> None:
    path = write_lossless(tmp_path / "clip.avi", drawn_clip(10))
    monkeypatch.setattr(DECODERS[decoder], "declared", 12)
    assert len(VideoFile(path)) == 10
    assert "clip.avi speaks of 12 frames, 10 can be decoded" in caplog.text


def test_a_rotated_recording_stands_upright(tmp_path: Path, decoder: str) -> None:
    pytest.importorskip("av")
    path = write_encoded(tmp_path / "clip.mp4", drawn_clip(3), "libx264")
    lying = VideoFile(path).read(0)
    data = path.read_bytes()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter_turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise, as phones write it
    track = data.index(b"tkhd")
    path.write_bytes(data[:track] + data[track:].replace(identity, quarter_turn, 1))
    video = VideoFile(path)
    assert (video.height, video.width) == (64, 48)
    np.testing.assert_array_equal(video.read(0), np.rot90(lying, -1))


def test_bytes_are_read_as_a_video_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = drawn_clip(6)
    data = write_lossless(tmp_path / "clip.avi", frames).read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    video = VideoFile.from_bytes(data)
    np.testing.assert_array_equal(forward(video), frames)
    video.close()
    assert not list(scratch.iterdir())

    forgotten = VideoFile.from_bytes(data)
    forgotten.read(0)
    del forgotten
    gc.collect()
    assert not list(scratch.iterdir())

    with pytest.raises(FrameReadError, match="video bytes cannot be read"):
        VideoFile.from_bytes(b"this is no video" * 100)
    assert not list(scratch.iterdir())


def test_frames_outside_the_video_and_closed_videos_are_errors(tmp_path: Path) -> None:
    video = VideoFile(write_lossless(tmp_path / "clip.avi", drawn_clip(4)))
    with pytest.raises(IndexError, match=r"clip\.avi has frames 0 to 3, got 4"):
        video.read(4)
    video.read(2)
    video.read(1)
    video.close()
    assert not video._block
    with pytest.raises(ValueError, match=r"clip\.avi is closed"):
        video.read(0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8) + struct.pack(">I4s", 100, b"mdat") + bytes(92), 116),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8) + struct.pack(">I4s", 100, b"mdat") + bytes(10), 116),
        (struct.pack(">I4s", 8, b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 5 << 32) + bytes(4), 8 + (5 << 32)),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8) + struct.pack(">I4s", 0, b"mdat") + bytes(10), None),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8) + b"trailer of a camera", None),
        (b"RIFF" + struct.pack("<I", 4096) + b"AVI LIST", 4096),
        (b"RIFF" + struct.pack("<I", 0) + b"AVI LIST", None),
        (b"\x1a\x45\xdf\xa3\x82\0\0\x18\x53\x80\x67\x41\x00", 13 + 256),
        (b"\x1a\x45\xdf\xa3\x82\0\0\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff", None),
        (b"OggS", None),
        (b"", None),
    ],
)
def test_promised_bytes_are_read_from_the_container(tmp_path: Path, data: bytes, expected: int | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert promised_bytes(path) == expected


def test_importing_the_sources_loads_no_decoder() -> None:
    program = "import sys, sam2.utils.video_io; print([name for name in ('cv2', 'av') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

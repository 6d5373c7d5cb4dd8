from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import drawn_clip, write_lossless
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from sam2.utils import video_file
from sam2.utils.frame_loader import FrameLoader
from sam2.utils.video_io import FrameReadError, FrameSource, open_source

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class WatchedSource:
    """A source that records what is read, and how many of its frames are still alive."""

    name, height, width = "watched", 6, 8

    def __init__(self, count: int, *, damaged: int | None = None) -> None:
        self.count, self.damaged = count, damaged
        self.reads: list[int] = []
        self.alive = self.most_alive = 0
        self.closed = False
        self._entered = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> np.ndarray:
        assert self._entered.acquire(blocking=False), "two threads read at once"
        try:
            time.sleep(0.0005)
            self.reads.append(index)
            if index == self.damaged:
                raise FrameReadError(f"frame {index} is damaged")
            frame = np.full((self.height, self.width, 3), index % 256, np.uint8)
            self.alive += 1
            self.most_alive = max(self.alive, self.most_alive)
            weakref.finalize(frame, self._forgotten)
            return frame
        finally:
            self._entered.release()

    def _forgotten(self) -> None:
        self.alive -= 1

    def close(self) -> None:
        self.closed = True


def prepared(frame: np.ndarray, size: int) -> np.ndarray:
    """What the network gets from a frame: bicubic resize, divided in double precision, then normalised in single."""
    pixels = np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
    return (((pixels / 255.0).astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def settled(source: WatchedSource) -> list[int]:
    """What was read once nothing more is for a while, or after two seconds."""
    seen, deadline = -1, time.monotonic() + 2
    while seen != len(source.reads) and time.monotonic() < deadline:
        seen = len(source.reads)
        time.sleep(0.05)
    return source.reads


@pytest.mark.parametrize("size", [32, 96])
def test_a_folder_of_jpegs_gives_the_tensors_of_the_original_loader_bit_for_bit(tmp_path: Path, size: int) -> None:
    expected = []
    for index, frame in enumerate(drawn_clip(3)):
        path = tmp_path / f"{index}.jpg"
        Image.fromarray(frame).save(path, quality=90)
        expected.append(prepared(np.array(Image.open(path).convert("RGB")), size))
    with FrameLoader(tmp_path, size) as loader:
        assert len(loader) == 3 and (loader.height, loader.width) == (48, 64)
        for image, want in zip(loader, expected, strict=True):
            assert image.dtype == torch.float32 and image.is_contiguous()
            np.testing.assert_array_equal(image.numpy(), want)


def as_png_folder(frames: list[np.ndarray], folder: Path):
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


SOURCES = {
    "png folder": as_png_folder,
    "list of paths": lambda frames, folder: sorted(as_png_folder(frames, folder).iterdir()),
    "list of arrays": lambda frames, folder: frames,
    "list of PIL images": lambda frames, folder: [Image.fromarray(frame) for frame in frames],
    "array": lambda frames, folder: np.stack(frames),
    "tensor (T, H, W, 3)": lambda frames, folder: torch.from_numpy(np.stack(frames)),
    "tensor (T, 3, H, W)": lambda frames, folder: torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2),
    "float tensor": lambda frames, folder: torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255,
    "source": lambda frames, folder: open_source(frames),
    "video": lambda frames, folder: write_lossless(folder / "clip.avi", frames),
    "video bytes": lambda frames, folder: write_lossless(folder / "clip.avi", frames).read_bytes(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_pixels_give_the_same_tensor_from_any_source(tmp_path: Path, kind: str) -> None:
    frames = drawn_clip(4)
    with FrameLoader(SOURCES[kind](frames, tmp_path), 40) as loader:
        np.testing.assert_array_equal([image.numpy() for image in loader], [prepared(frame, 40) for frame in frames])


def test_the_same_video_gives_the_same_tensor_through_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    frames = drawn_clip(4)
    monkeypatch.setattr(video_file.OpenCvDecoder, "advance", lambda self: False)
    with FrameLoader(write_lossless(tmp_path / "clip.avi", frames), 40) as loader:
        np.testing.assert_array_equal([image.numpy() for image in loader], [prepared(frame, 40) for frame in frames])


def test_a_part_of_a_frame_is_cut_at_its_native_size() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    with FrameLoader([frame], 32) as loader:
        cut = loader.cut(0, slice(10, 30), slice(20, 45))
        with FrameLoader([np.ascontiguousarray(frame[10:30, 20:45])], 32) as part:
            assert torch.equal(cut, part[0])


def test_frames_are_resized_on_demand_where_that_is_asked_for() -> None:
    frames = [np.full((40, 60, 3), value, np.uint8) for value in (10, 200)]
    with FrameLoader(frames, 32) as ahead, FrameLoader(frames, 32) as on_demand:
        on_demand.resizes = False
        for index in (0, 1):
            assert torch.equal(ahead[index], on_demand[index])
        assert on_demand.pixels(1) is not on_demand.pixels(1)


def test_pixels_and_frame_are_the_steps_before_the_tensor_and_are_made_once() -> None:
    frames = drawn_clip(2)
    source = WatchedSource(2)
    source.read = lambda index: (source.reads.append(index), frames[index])[1]
    with FrameLoader(source, 32, read_ahead=0) as loader:
        np.testing.assert_array_equal(
            loader.pixels(1), np.array(Image.fromarray(frames[1]).resize((32, 32), Image.Resampling.BICUBIC))
        )
        np.testing.assert_array_equal(loader.frame(1), frames[1])
        np.testing.assert_array_equal(loader[1].numpy(), prepared(frames[1], 32))
        assert loader.pixels(1) is loader.pixels(1)
        assert source.reads == [1]


def test_changing_a_tensor_does_not_change_the_loader() -> None:
    with FrameLoader(drawn_clip(1), 16) as loader:
        loader[0].zero_()
        assert loader[0].abs().sum() > 0


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_frames_held_do_not_grow_with_the_clip(order: str, threads: int) -> None:
    source = WatchedSource(300)
    indices = list(range(300))
    if order == "backward":
        indices.reverse()
    if order == "random":
        random.Random(0).shuffle(indices)
    with FrameLoader(source, 8, cache_size=5, read_ahead=2, threads=threads) as loader:
        for index in indices:
            assert loader.pixels(index)[0, 0, 0] == index % 256
    assert source.most_alive <= 5 + threads + 2
    del loader
    assert wait_until(lambda: source.alive == 0)


def test_reading_ahead_stays_within_its_bound_and_follows_the_direction() -> None:
    source = WatchedSource(100)
    with FrameLoader(source, 8, read_ahead=3) as loader:
        loader.pixels(0)
        assert settled(source) == [0, 1, 2, 3]
        loader.pixels(1)
        assert settled(source) == [0, 1, 2, 3, 4]
        loader.pixels(50)
        assert settled(source)[5:] == [50], "nothing is known about the direction after a jump"
        loader.pixels(49)
        assert settled(source)[6:] == [49, 48, 47, 46]
        loader.pixels(48)
        assert settled(source)[10:] == [45]


def test_reading_ahead_ends_with_the_clip() -> None:
    source = WatchedSource(3)
    with FrameLoader(source, 8, read_ahead=5) as loader:
        loader.pixels(0)
        assert settled(source) == [0, 1, 2]


def test_frames_are_read_once_and_in_order_by_several_threads() -> None:
    source = WatchedSource(60)
    with FrameLoader(source, 8, read_ahead=6, threads=4) as loader:
        for index in range(60):
            loader.pixels(index)
    assert source.reads == list(range(60))


@pytest.mark.parametrize(("network_threads", "reading_threads"), [(4, 0), (3, 1)])
def test_by_default_frames_are_read_ahead_if_the_network_leaves_a_core(
    monkeypatch: pytest.MonkeyPatch, network_threads: int, reading_threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: network_threads)
    before = threading.active_count()
    with FrameLoader(torch.from_numpy(np.stack(drawn_clip(4))), 16) as loader:
        loader.frame(0)
        loader.frame(1)
        assert threading.active_count() - before == reading_threads


def test_without_read_ahead_there_is_no_thread_and_no_frame_too_many() -> None:
    source = WatchedSource(9)
    before = threading.active_count()
    with FrameLoader(source, 8, read_ahead=0) as loader:
        loader.pixels(0)
        loader.pixels(1)
        assert threading.active_count() == before
    assert source.reads == [0, 1]


def test_a_damaged_frame_is_an_error_at_that_frame_only() -> None:
    source = WatchedSource(12, damaged=5)
    with FrameLoader(source, 8, read_ahead=3) as loader:
        for index in range(5):
            loader.pixels(index)
        assert settled(source) == [0, 1, 2, 3, 4, 5], "nothing is read past the damage"
        with pytest.raises(FrameReadError, match="frame 5 is damaged"):
            loader.pixels(5)
        with pytest.raises(FrameReadError, match="frame 5 is damaged"):
            loader[5]
        assert loader.pixels(4)[0, 0, 0] == 4
        assert loader.pixels(6)[0, 0, 0] == 6
        source.damaged = None
        assert loader.pixels(5)[0, 0, 0] == 5


def test_many_threads_get_the_right_frames() -> None:
    source = WatchedSource(40)
    wrong: list[int] = []

    def reader(seed: int) -> None:
        for index in random.Random(seed).choices(range(40), k=120):
            if loader.pixels(index)[0, 0, 0] != index:
                wrong.append(index)

    with FrameLoader(source, 8, cache_size=3, read_ahead=2) as loader:
        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert wrong == []


def test_close_ends_the_threads_and_further_use_is_an_error() -> None:
    loader = FrameLoader(drawn_clip(9), 8)
    loader[0]
    (thread,) = loader._frames._threads
    assert thread.daemon
    loader.close()
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        loader[0]
    loader.close()


def test_a_forgotten_loader_ends_its_threads() -> None:
    loader = FrameLoader(drawn_clip(9), 8)
    loader[0]
    (thread,) = loader._frames._threads
    del loader
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_close_closes_what_the_loader_opened_and_leaves_what_was_given(tmp_path: Path) -> None:
    source = WatchedSource(2)
    FrameLoader(source, 8).close()
    assert not source.closed

    loader = FrameLoader(write_lossless(tmp_path / "clip.avi", drawn_clip(3)), 8)
    loader[0]
    loader.close()
    with pytest.raises(ValueError, match=r"clip\.avi is closed"):
        loader.source.read(0)


def test_indices_are_checked_and_may_count_from_the_end() -> None:
    with FrameLoader(WatchedSource(7), 8) as loader:
        assert loader.pixels(-1)[0, 0, 0] == 6
        assert loader.pixels(np.int64(2))[0, 0, 0] == 2
        for index in (7, -8):
            with pytest.raises(IndexError, match=rf"watched has frames 0 to 6, got {index}"):
                loader[index]
        with pytest.raises(TypeError):
            loader[1.5]  # pyright: ignore[reportArgumentType]


def test_tensors_go_to_the_device_unless_the_video_is_kept_on_the_cpu() -> None:
    assert FrameLoader(drawn_clip(1), 8, "meta")[0].device.type == "meta"
    assert FrameLoader(drawn_clip(1), 8, "meta", offload_video_to_cpu=True)[0].device.type == "cpu"


@pytest.mark.gpu
def test_a_gpu_gives_the_same_tensor_bit_for_bit() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    image = FrameLoader([frame], 16, "cuda")[0]
    np.testing.assert_array_equal(image.cpu().numpy(), prepared(frame, 16))


def test_no_float64_tensor_is_made() -> None:
    dtypes: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            dtypes.update(each.dtype for each in [result] if isinstance(each, torch.Tensor))
            return result

    with Watch(), FrameLoader(torch.from_numpy(np.stack(drawn_clip(2))), 16, read_ahead=0) as loader:
        loader[0]
    assert torch.float32 in dtypes and torch.float64 not in dtypes


def test_other_means_and_deviations_are_used() -> None:
    frame = np.full((4, 4, 3), 255, np.uint8)
    with FrameLoader([frame], 4, mean=(0.0, 0.5, 1.0), std=torch.tensor([1.0, 0.5, 2.0])) as loader:
        assert loader[0][:, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(("name", "value"), [("image_size", 0), ("cache_size", 0), ("read_ahead", -1), ("threads", 0)])
def test_sizes_out_of_range_are_errors(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        FrameLoader(drawn_clip(1), **{"image_size": 8, name: value})  # pyright: ignore[reportArgumentType]


def test_the_watched_source_is_a_frame_source() -> None:
    assert isinstance(WatchedSource(1), FrameSource)

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import drawn_clip, write_lossless
from PIL import Image

from sam2.utils import misc
from sam2.utils.frame_loader import FrameLoader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, frame in enumerate(drawn_clip(3)):
        Image.fromarray(frame).save(frames / f"{index:05d}.jpg")
    return frames


def mask(rows: list[str]) -> torch.Tensor:
    """A mask (1, 1, H, W) drawn with # and . characters."""
    return torch.tensor([[character == "#" for character in row] for row in rows])[None, None]


def test_mask_to_box_gives_the_first_and_last_pixel() -> None:
    masks = torch.cat([mask(["....", ".##.", ".#.."]), mask(["...#", "....", "...."]), mask(["####", "####", "####"])])
    boxes = misc.mask_to_box(masks)
    assert boxes.dtype == torch.int32
    assert boxes.tolist() == [[[1, 1, 2, 2]], [[3, 0, 3, 0]], [[0, 0, 3, 2]]]


def test_mask_to_box_of_an_empty_mask_is_inside_out() -> None:
    assert misc.mask_to_box(mask(["....", "....", "...."])).tolist() == [[[4, 3, -1, -1]]]


def test_connected_components_touch_at_corners_too() -> None:
    labels, areas = misc.get_connected_components(mask(["#..#", ".#..", "...#"]))
    assert labels.dtype == areas.dtype == torch.int32 and labels.shape == (1, 1, 3, 4)
    assert areas[0, 0].tolist() == [[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 1]]
    assert len({labels[0, 0, 0, 0].item(), labels[0, 0, 0, 3].item(), labels[0, 0, 2, 3].item(), 0}) == 4
    assert labels[0, 0, 0, 0] == labels[0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holes_up_to_the_area_are_filled_and_larger_ones_stay(dtype: torch.dtype) -> None:
    drawn = mask(["########", "#.##..##", "####..##", "########"])
    scores = torch.where(drawn, 5.0, -5.0).to(dtype)
    scores[0, 0, 1, 1] = 0.0  # the border itself is background
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = misc.fill_holes_in_mask_scores(scores, max_area=3)
    assert filled.dtype == dtype
    expected = scores.clone()
    expected[0, 0, 1, 1] = 0.1
    assert torch.equal(filled, expected)
    assert scores[0, 0, 1, 1] == 0.0
    assert (misc.fill_holes_in_mask_scores(scores, max_area=4) > 0).all()


def test_fill_holes_refuses_an_area_below_one() -> None:
    with pytest.raises(ValueError, match="max_area must be positive, got 0"):
        misc.fill_holes_in_mask_scores(torch.zeros(1, 1, 2, 2), 0)


def test_a_picture_is_loaded_as_a_frame_that_is_not_normalised(folder: Path) -> None:
    path = folder / "00001.jpg"
    pixels, height, width = misc._load_img_as_tensor(str(path), 32)
    frames = FrameLoader(folder, 32, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(pixels, frames[1]) and pixels.dtype == torch.float32
    assert (height, width) == (frames.height, frames.width) and height != width


def test_concat_points_appends_to_what_is_there() -> None:
    first = misc.concat_points(None, torch.tensor([[[1.0, 2.0]]]), torch.tensor([[1]]))
    both = misc.concat_points(first, torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0]]))
    assert both["point_coords"].tolist() == [[[1, 2], [3, 4]]]
    assert both["point_labels"].tolist() == [[1, 0]]
    assert first["point_coords"].shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, (True, False, True)),
        ((6, 1), (True, False, True)),
        ((7, 5), (False, False, True)),
        ((9, 0), (False, True, False)),
    ],
)
def test_sdpa_settings_follow_the_gpu_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, expected: tuple[bool, bool, bool]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert misc.get_sdpa_settings() == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_load_video_frames_gives_images_that_are_decoded_when_asked_for(folder: Path, asynchronous: bool) -> None:
    images, height, width = misc.load_video_frames(
        str(folder), 32, offload_video_to_cpu=True, async_loading_frames=asynchronous
    )
    assert (height, width, len(images)) == (48, 64, 3)
    stacked = torch.stack(list(images))
    assert stacked.shape == (3, 3, 32, 32) and stacked.dtype == torch.float32
    assert torch.equal(images[1], stacked[1])


def test_the_loader_of_a_folder_and_the_asynchronous_one_agree(folder: Path) -> None:
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    images, _, _ = misc.load_video_frames_from_jpg_images(str(folder), 32, True, img_mean=mean, img_std=std)
    paths = [str(path) for path in sorted(folder.iterdir())]
    ahead = misc.AsyncVideoFrameLoader(paths, 32, False, mean, std, torch.device("cpu"))
    assert (ahead.video_height, ahead.video_width, len(ahead)) == (48, 64, 3)
    assert all(torch.equal(one, other) for one, other in zip(images, ahead, strict=True))


def test_a_video_file_and_its_bytes_are_loaded(tmp_path: Path) -> None:
    frames = drawn_clip(2)
    path = write_lossless(tmp_path / "clip.avi", frames)
    for video in (str(path), path.read_bytes()):
        images, height, width = misc.load_video_frames_from_video_file(video, 16, True)
        assert (height, width, len(images)) == (48, 64, 2)
        with FrameLoader(frames, 16) as expected:
            assert torch.equal(images[1], expected[1])


def test_special_loaders_refuse_what_is_not_theirs(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="video_path must be a video file"):
        misc.load_video_frames_from_video_file(str(folder), 16, True)
    with pytest.raises(FileNotFoundError, match="video_path must be a folder of pictures"):
        misc.load_video_frames_from_jpg_images(str(folder / "00000.jpg"), 16, True)


def test_frames_stay_on_the_cpu_when_offloaded_and_else_go_to_the_compute_device(folder: Path) -> None:
    images, _, _ = misc.load_video_frames(str(folder), 16, False, compute_device=torch.device("meta"))
    assert images[0].device.type == "meta"
    images, _, _ = misc.load_video_frames(str(folder), 16, True, compute_device=torch.device("meta"))
    assert images[0].device.type == "cpu"


def test_signatures_keep_the_names_and_the_order_of_upstream(shared: Path) -> None:
    import inspect
    import json

    recorded = json.loads((shared / "golden" / "api.json").read_text())["sam2.utils.misc"]
    for name, entry in recorded.items():
        ours = getattr(misc, name)
        wanted = entry["function"] if "function" in entry else entry["class"]["__init__"]
        parameters = inspect.signature(ours if "function" in entry else ours.__init__).parameters
        assert list(parameters) == [parameter[0] for parameter in wanted], name


def test_numbers_of_pixels_survive_the_way_through_a_jpeg_folder(folder: Path) -> None:
    images, _, _ = misc.load_video_frames(str(folder), 64, True)
    pixels = np.array(Image.open(folder / "00002.jpg").resize((64, 64), Image.Resampling.BICUBIC))
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    expected = ((pixels / 255.0).astype(np.float32) - mean) / std
    np.testing.assert_array_equal(images[2].permute(1, 2, 0).numpy(), expected)

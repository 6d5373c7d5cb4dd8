"""Annotated videos on disk: what is read, and what is said when a folder is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam2.utils.davis import write_label_map
from sam2.utils.video_file import VideoFile
from training.folders import SAV_FRAMES, SAV_MASKS, LabelledPictures, open_davis, open_sav
from training.recipe import DataSource
from training.sources import FolderSource, Wanted, beginning, beginnings, clip_frames, open_source, shared_videos

WANTED = Wanted(num_frames=3, size=64, max_objects=3)


def picture(t: int) -> np.ndarray:
    """A grey picture (48, 80, 3) whose brightness tells the frame."""
    return np.full((48, 80, 3), 20 + 10 * t, np.uint8)


def labels(t: int, objects: int = 2) -> np.ndarray:
    """Label map (48, 80): object i in the i-th strip of 20 columns, moving down with time."""
    ids = np.zeros((48, 80), np.uint8)
    for i in range(objects):
        ids[t : t + 24, 20 * i : 20 * i + 18] = i + 1
    return ids


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """One sequence of five frames, of which the third has no annotation."""
    for t in range(5):
        frame = tmp_path / "JPEGImages" / "480p" / "walk" / f"{t:05d}.png"
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(t)).save(frame)
        if t != 2:
            write_label_map(tmp_path / "Annotations" / "480p" / "walk" / f"{t:05d}.png", labels(t))
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("walk\n")
    return tmp_path


def test_davis_frames_come_with_their_annotations(davis: Path):
    (video,) = open_davis(davis, "train")
    assert len(video) == 4
    assert [int(video.frame(i)[0, 0, 0]) for i in range(4)] == [20, 30, 50, 60]
    assert np.array_equal(video.masks(2)[2], labels(3) == 2)


def test_void_is_no_object(davis: Path):
    ids = labels(0)
    ids[40:, 60:] = 255
    write_label_map(davis / "Annotations" / "480p" / "walk" / "00000.png", ids)
    assert list(open_davis(davis, None)[0].masks(0)) == [1, 2]


def test_sav_videos_are_annotated_at_every_fourth_frame_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    coco = pytest.importorskip("pycocotools.mask", reason="the extra `export` installs it")
    video = tmp_path / "sav_000" / "sav_000001.mp4"
    video.parent.mkdir()
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 24, (80, 48))
    for t in range(10):
        writer.write(picture(t))
    writer.release()

    def encoded(mask: np.ndarray) -> dict:
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}

    for kind, obj_id in (("manual", 1), ("auto", 2)):
        masklet = [[encoded(labels(t) == obj_id)] for t in range(3)]
        video.with_name(f"sav_000001_{kind}.json").write_text(json.dumps({"masklet": masklet}))
    (found,) = open_sav(tmp_path)
    assert len(found) == 3
    assert round(found.frame(2)[0, 0, 0] / 10) == 10  # frame 8 has level 100, and the encoder is lossy
    assert np.array_equal(found.masks(1)[0], labels(1) == 1) and np.array_equal(found.masks(1)[1], labels(1) == 2)

    opened: list[VideoFile] = []
    monkeypatch.setattr("training.folders.VideoFile", lambda path: opened.append(VideoFile(path)) or opened[-1])
    found.close()
    source = FolderSource([found], augment=True, max_stride=1)
    for seed in range(3):
        source.draw(np.random.default_rng(seed), WANTED)
    assert len(opened) == 3 and "_masklets" not in vars(found)
    for file in opened:
        with pytest.raises(ValueError, match="closed"):
            file.read(0)


def test_sav_pictures_have_a_folder_of_masks_per_object(tmp_path: Path):
    for t in range(9):
        frame = tmp_path / SAV_FRAMES / "sav_7" / f"{t:05d}.jpg"
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(t)).save(frame)
    for obj_id, times in (("000", (0, 4, 8)), ("001", (4, 8))):
        for t in times:
            write_label_map(tmp_path / SAV_MASKS / "sav_7" / obj_id / f"{t:05d}.png", labels(t) == int(obj_id) + 1)
    (found,) = open_sav(tmp_path)
    assert len(found) == 3
    assert list(found.masks(0)) == [0] and list(found.masks(2)) == [0, 1]
    assert np.array_equal(found.masks(1)[1], labels(4) == 2)


def test_a_folder_without_annotations_is_refused(tmp_path: Path, davis: Path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_source(DataSource(kind="davis", root=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="it has no Annotations"):
        (davis / "Annotations").rename(tmp_path / "elsewhere")
        open_source(DataSource(kind="davis", root=str(davis)))
    with pytest.raises(FileNotFoundError, match=r"expected \*.mp4 files .* or the folders JPEGImages_24fps"):
        open_source(DataSource(kind="sav", root=str(davis)))


def test_a_json_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a_manual.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="no list called `masklet`"):
        open_sav(tmp_path)[0].masks(0)


def test_a_picture_with_its_annotation_is_a_clip_that_stands_still(davis: Path):
    for folder, name in (("JPEGImages", "00000.png"), ("Annotations", "00000.png")):
        picture_of = davis / folder / "480p" / "portrait"
        picture_of.mkdir()
        (picture_of / name).write_bytes((davis / folder / "480p" / "walk" / name).read_bytes())
    portrait, _ = open_davis(davis, None)
    sample = beginning(portrait, WANTED, np.random.default_rng(0))
    assert len(portrait) == 1 and sample is not None
    assert sample.frames.shape[0] == 3 and (sample.frames == sample.frames[:1]).all()


def test_a_video_of_which_only_the_first_frame_is_annotated_is_left_out(davis: Path):
    for path in sorted((davis / "Annotations" / "480p" / "walk").iterdir())[1:]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="two annotated frames, or a single picture"):
        open_davis(davis, None)


def test_white_masks_are_refused_with_what_to_do(davis: Path):
    paths = sorted((davis / "Annotations" / "480p" / "walk").iterdir())
    for path in paths:
        write_label_map(path, np.where(labels(0) > 0, 255, 0).astype(np.uint8))
    with pytest.raises(ValueError, match=r"hold no label but 255, which stands for void: .*mask // 255"):
        open_davis(davis, None)
    write_label_map(paths[-1], labels(0))
    assert len(open_davis(davis, None)) == 1


def test_measuring_takes_each_video_once(davis: Path):
    (walk,) = open_davis(davis, None)
    assert isinstance(walk, LabelledPictures)
    videos = [LabelledPictures(walk.frames, walk.labels) for _ in range(5)]
    seen: list[int] = []
    for number, video in enumerate(videos):
        video.frame = lambda i, number=number: seen.append(number) or picture(i)  # type: ignore[method-assign]
    videos[3].masks = lambda i: {}  # type: ignore[method-assign]
    one, two, six = (beginnings(videos, count, WANTED) for count in (1, 2, 6))
    assert [len(samples) for samples in (one, two, six)] == [1, 2, 4]
    assert np.array_equal(one[0].frames, two[0].frames) and np.array_equal(two[1].masks, six[1].masks)
    assert sorted(set(seen[-4 * 3 :])) == [0, 1, 2, 4]


def test_videos_that_are_trained_on_and_measured_are_counted(davis: Path):
    whole, listed, drawn = (
        DataSource(kind=kind, root=root, split=split)
        for kind, root, split in (
            ("davis", str(davis), None),
            ("davis", f"{davis}/../{davis.name}", "train"),
            ("drawn", None, None),
        )
    )
    assert shared_videos([drawn, whole], listed) == 1 and shared_videos([drawn], whole) == 0


@pytest.mark.parametrize(
    ("length", "first", "stride", "expected"),
    [(10, 2, 1, [2, 3, 4, 5]), (10, 1, 3, [1, 4, 7, 8]), (3, 0, 1, [0, 1, 2, 1]), (1, 0, 1, [0, 0, 0, 0])],
)
def test_a_clip_turns_round_at_the_ends_of_a_short_video(length, first, stride, expected):
    assert clip_frames(length, 4, first, stride) == expected


def test_without_augmentation_a_sample_is_the_beginning_of_a_video(davis: Path):
    source = open_source(DataSource(kind="davis", root=str(davis), augment=False))
    sample = source.draw(np.random.default_rng(0), WANTED)
    assert sample is not None
    assert sample.frames[:, 0, 0, 0].tolist() == [20, 30, 50]
    assert sample.masks.shape == (2, 3, 64, 64)
    expected = cv2.resize((labels(0) > 0).astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) >= 0.5
    assert np.array_equal(sample.masks[:, 0].any(axis=0), expected)


def test_objects_that_are_too_small_on_the_first_frame_are_not_asked_for(davis: Path):
    tiny = np.zeros((48, 80), np.uint8)
    tiny[0, 0] = 1
    for path in (davis / "Annotations" / "480p" / "walk").iterdir():
        write_label_map(path, tiny)
    assert (
        open_source(DataSource(kind="davis", root=str(davis), augment=False)).draw(np.random.default_rng(0), WANTED)
        is None
    )


def test_with_search_regions_small_objects_are_seen_large_and_one_at_a_time(davis: Path):
    spot = np.zeros((48, 80), np.uint8)
    spot[20:26, 30:36], spot[40:43, 70:73] = 1, 2
    for path in (davis / "Annotations" / "480p" / "walk").iterdir():
        write_label_map(path, spot)
    source = DataSource(kind="davis", root=str(davis), augment=False, search_factor=1.25)
    shares = set()
    for seed in range(12):
        sample = open_source(source).draw(np.random.default_rng(seed), WANTED)
        assert sample is not None and sample.masks.shape == (1, 3, 64, 64)
        assert sample.frames[:, 0, 0, 0].tolist() == [20, 30, 50]
        shares.add(float(sample.masks[0, 0].mean()))
    assert sorted(shares) == pytest.approx([3**2 / 12**2, 6**2 / 12**2], rel=0.1)  # of regions of 12 pixels


def test_with_search_regions_clips_vary_too_and_an_object_may_leave(davis: Path):
    write_label_map(davis / "Annotations" / "480p" / "walk" / "00001.png", np.zeros((48, 80), np.uint8))
    source = FolderSource(open_davis(davis, None), augment=True, max_stride=2, search_factor=2.0)
    samples = [source.draw(np.random.default_rng(seed), WANTED) for seed in range(30)]
    kept = [sample for sample in samples if sample is not None]
    assert 0 < len(kept) < 30  # None where the first frame is the empty one
    assert all(sample.masks.shape[0] == 1 and sample.masks[0, 0].any() for sample in kept)
    assert any(not sample.masks[0, 1:].any(axis=(1, 2)).all() for sample in kept)
    assert len({sample.frames[0, 32, 32].tobytes() for sample in kept}) > 20


def test_search_regions_follow_in_the_direction_of_the_clip(davis: Path):
    source = FolderSource(open_davis(davis, None), augment=True, max_stride=1, search_factor=2.0)
    directions = set()
    for seed in range(30):
        sample = source.draw(np.random.default_rng(seed), WANTED)
        if sample is not None:
            rows = [np.nonzero(mask.any(axis=1))[0].mean() for mask in sample.masks[0, :2]]
            # Both frames have the region of the first mask, in which the object moves down, or up if time runs back.
            directions.add(int(np.sign(rows[1] - rows[0])))
    assert directions == {-1, 1}


def test_augmented_clips_run_in_both_directions_and_at_several_speeds(davis: Path):
    videos = open_davis(davis, None)
    source = FolderSource(videos, augment=True, max_stride=2)
    order = set()
    for seed in range(30):
        sample = source.draw(np.random.default_rng(seed), WANTED._replace(num_frames=2))
        if sample is not None:
            means = sample.frames.mean(axis=(1, 2, 3))
            order.add(int(np.sign(means[1] - means[0])))
    assert {-1, 1} <= order

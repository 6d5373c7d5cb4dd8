"""Results as files that other tools read; each is read back with a tool of its own."""

import itertools
import json
import sys

import cv2
import numpy as np
import pytest
from clip_files import drawn_clip, write_encoded
from PIL import Image
from test_video_results import clip_results, result_at

from sam2 import exports
from sam2.exports import FORMATS, object_numbers
from sam2.utils.davis import read_label_map
from sam2.utils.labelled_frames import colour_of
from sam2.utils.video_io import VideoFile
from sam2.video_results import VideoResults


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flat_results(ids=(7, 9)):
    return VideoResults.collect([result_at(t, {ids[0]: (t, 0, t + 2, 2), ids[1]: (0, 3, 2, 5)}) for t in range(2)])


# Pictures


def test_png_is_a_palette_picture_of_ids_per_frame(tmp_path):
    results = flat_results()
    results.save(tmp_path, "png")
    assert files_of(tmp_path) == ["00000.png", "00001.png"]
    for t in range(2):
        assert np.array_equal(read_label_map(tmp_path / f"{t:05d}.png"), results[t].label_map())
    with Image.open(tmp_path / "00001.png") as picture:
        assert picture.mode == "P" and np.array(picture)[0].tolist() == [0, 7, 7, 0, 0, 0]


def test_pngs_are_named_like_the_frames(tmp_path):
    clip_results(frame_names=[f"f{t}.jpg" for t in range(5)], num_frames=None).save(tmp_path, "png")
    assert [name for name in files_of(tmp_path) if "/" not in name] == ["f1.png", "f2.png", "f3.png"]


def test_masks_that_overlap_are_written_one_by_one_too(tmp_path):
    results = clip_results()
    results.save(tmp_path, "png")
    assert files_of(tmp_path) == [f"{folder}{t:05d}.png" for folder in ("", "007/", "009/") for t in (1, 2, 3)]
    assert read_label_map(tmp_path / "00002.png")[2, 2] == 9
    for t in results:
        for obj_id in (7, 9):
            mask = results[t][obj_id].mask if obj_id in results[t] else np.zeros((5, 6), bool)
            assert np.array_equal(read_label_map(tmp_path / f"{obj_id:03d}" / f"{t:05d}.png"), mask)


@pytest.mark.parametrize(
    ("ids", "folders"),
    [((7, 256), ("007", "256")), ((0, 1), ("000", "001")), (("left hand", 3), ("003", "004_left_hand"))],
)
def test_ids_that_are_no_pixel_values_are_written_one_by_one_only(tmp_path, ids, folders):
    flat_results(ids).save(tmp_path, "png")
    assert files_of(tmp_path) == [f"{folder}/{t:05d}.png" for folder in folders for t in range(2)]


def results_on(frames, ids=(7,)):
    return VideoResults.collect([result_at(t, dict.fromkeys(ids, (0, 0, 2, 2))) for t in frames])


@pytest.mark.parametrize(
    ("earlier", "later", "left"),
    [
        (results_on(range(4)), results_on(range(2)), "00002.png"),
        (results_on(range(2)), results_on(range(2, 4)), "00000.png"),
        (results_on(range(2), (7, 9)), results_on(range(2), (7,)), "007/00000.png"),
        (results_on(range(2), (7, 9)), results_on(range(2), (7, 8)), "009/00000.png"),
        (results_on(range(2), (7,)), results_on(range(2), (7, 256)), "00000.png"),
    ],
)
def test_masks_of_other_frames_or_objects_are_neither_mixed_with_new_ones_nor_lost(tmp_path, earlier, later, left):
    earlier.save(tmp_path, "png")
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    with pytest.raises(ValueError, match=f"holds masks of frames or objects .*, {left} for one; remove them, or name"):
        later.save(tmp_path, "png")
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before


def test_masks_of_the_same_frames_are_replaced_and_other_files_stay(tmp_path):
    results_on(range(2)).save(tmp_path, "png")
    Image.new("RGB", (4, 4)).save(tmp_path / "frame.png")
    (tmp_path / ".00009.ab.part.png").write_bytes((tmp_path / "00000.png").read_bytes())  # left by a killed process
    (tmp_path / "notes.txt").write_text("mine")
    results_on(range(3), (9,)).save(tmp_path, "png")
    assert files_of(tmp_path) == [".00009.ab.part.png", *(f"0000{t}.png" for t in range(3)), "frame.png", "notes.txt"]
    assert read_label_map(tmp_path / "00000.png").max() == 9


def test_numbers_are_ids_where_these_are_numbers_and_free_ones_elsewhere():
    results = VideoResults.collect([result_at(0, dict.fromkeys(["a", 5, -1, 0, True, 2]))])
    assert object_numbers(results) == {"a": 6, 5: 5, -1: 7, 0: 0, True: 8, 2: 2}


# Annotations


def test_coco_annotations_are_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    results = clip_results()
    results.save(tmp_path / "coco.json", "coco")
    data = coco.COCO(str(tmp_path / "coco.json"))
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == [f"clip/0000{t}.jpg" for t in (1, 2, 3)]
    found = data.loadAnns(data.getAnnIds())
    assert [(each["image_id"], each["track_id"]) for each in found] == [(1, 7), (2, 7), (2, 9), (3, 9)]
    for each in found:
        expected = results[each["image_id"]][each["object_id"]]
        assert np.array_equal(data.annToMask(each), expected.mask)
        assert each["area"] == expected.mask.sum() and each["status"] == expected.status
        assert each["bbox"] == coco.maskUtils.toBbox(each["segmentation"]).tolist()
    assert data.loadCats(data.getCatIds()) == [{"id": 1, "name": "object", "supercategory": ""}]


def test_youtube_vis_has_one_annotation_per_object_and_null_where_it_is_not_seen(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    results = clip_results()
    results.save(tmp_path / "vis.json", "youtube_vis")
    content = json.loads((tmp_path / "vis.json").read_text())
    assert content["videos"] == [
        {
            "id": 1, "name": "clip", "height": 5, "width": 6, "length": 5,
            "file_names": [f"clip/0000{t}.jpg" for t in range(5)],
        }
    ]  # fmt: skip
    seven, nine = content["annotations"]
    assert [(each["id"], each["object_id"], each["video_id"], each["category_id"]) for each in (seven, nine)] == [
        (1, 7, 1, 1), (2, 9, 1, 1),
    ]  # fmt: skip
    assert [each is None for each in seven["segmentations"]] == [True, False, False, True, True]
    assert seven["bboxes"] == [None, [0, 0, 2, 2], [0, 0, 3, 3], None, None]
    assert nine["areas"] == [None, None, 6, 12, None]
    assert seven["statuses"] == [None, "prompted", "tracked", "occluded", None]
    for t in (2, 3):
        assert np.array_equal(coco.decode(nine["segmentations"][t]), results[t][9].mask)


# Video and arrays


@pytest.fixture
def frames():
    return np.full((5, 96, 128, 3), 90, np.uint8)


def drawn_results():
    return VideoResults.collect([result_at(t, {1: (20, 40, 60, 80)}, shape=(96, 128)) for t in (1, 2)], name="clip")


def test_mp4_shows_all_frames_and_the_objects_where_there_are_results(tmp_path, frames):
    av = pytest.importorskip("av")
    drawn_results().save(tmp_path / "clip.mp4", "mp4", video=frames, fps=10)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.codec_context.pix_fmt) == ("h264", 10, "yuv420p")
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 5 and files_of(tmp_path) == ["clip.mp4"]
    tint = np.rint(90 * 0.55 + 0.45 * np.array(colour_of(1)))
    assert np.abs(shown[1][60, 40] - tint).max() <= 6  # lossy
    assert all(np.abs(shown[t][60, 40].astype(int) - 90).max() <= 6 for t in (0, 3, 4))


def times_of(path):
    """When each frame of a file is shown, in milliseconds."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [round(1000 * frame.time) for frame in container.decode(container.streams.video[0])]


KINDS = {"path": str, "bytes": lambda path: path.read_bytes(), "VideoFile": VideoFile}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [10, 12.5, 30000 / 1001])
def test_the_frame_rate_is_that_of_the_video_file(tmp_path, frames, kind, fps):
    pytest.importorskip("av")
    drawn_results().save(tmp_path / "a.mp4", "mp4", video=frames, fps=fps)
    drawn_results().save(tmp_path / "b.mp4", "mp4", video=KINDS[kind](tmp_path / "a.mp4"))
    capture = cv2.VideoCapture(str(tmp_path / "b.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), len(VideoFile(tmp_path / "b.mp4"))) == (pytest.approx(fps, rel=1e-9), 5)
    assert times_of(tmp_path / "b.mp4") == [round(1000 * t / fps) for t in range(5)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "codec"), [("clip.webm", "libvpx"), ("clip.mp4", "libx264")])
def test_frames_that_come_at_uneven_times_are_shown_at_these(tmp_path, kind, name, codec):
    pytest.importorskip("av")
    steps = (20, 120, 60, 75)
    path = write_encoded(tmp_path / name, drawn_clip(40, 96, 128), codec, steps=steps, ticks=1000)
    expected = [0, *itertools.accumulate(itertools.islice(itertools.cycle(steps), 39))]
    assert times_of(path) == expected
    drawn_results().save(tmp_path / "overlay.mp4", "mp4", video=KINDS[kind](path))
    assert times_of(tmp_path / "overlay.mp4") == expected
    drawn_results().save(tmp_path / "even.mp4", "mp4", video=KINDS[kind](path), fps=20)
    assert times_of(tmp_path / "even.mp4") == [50 * t for t in range(40)], "a rate that is asked for counts"


def test_frames_without_times_have_the_rate_of_the_file_or_24(tmp_path, frames):
    pytest.importorskip("av")
    write_encoded(tmp_path / "raw.h264", drawn_clip(5, 96, 128), "libx264")
    drawn_results().save(tmp_path / "a.mp4", "mp4", video=tmp_path / "raw.h264")
    assert times_of(tmp_path / "a.mp4") == [0, 40, 80, 120, 160]
    drawn_results().save(tmp_path / "b.mp4", "mp4", video=frames)
    assert times_of(tmp_path / "b.mp4") == [round(1000 * t / 24) for t in range(5)]


@pytest.mark.parametrize("other_name", [False, True])
@pytest.mark.parametrize("kind", [str, VideoFile])
def test_an_overlay_never_replaces_the_video_it_is_drawn_over(tmp_path, kind, other_name):
    pytest.importorskip("av")
    path = write_encoded(tmp_path / "clip.mp4", drawn_clip(3, 96, 128), "libx264")
    before = path.read_bytes()
    target = tmp_path / "link.mp4" if other_name else path
    if other_name:
        target.symlink_to(path)
    with pytest.raises(ValueError, match=f"path: .*{target.name} is the video itself.*; name another file"):
        drawn_results().save(target, "mp4", video=kind(path))
    assert path.read_bytes() == before and target.is_symlink() == other_name


def test_npz_holds_all_masks_as_packed_bits(tmp_path):
    results = clip_results()
    results.save(tmp_path / "r.npz", "npz")
    with np.load(tmp_path / "r.npz") as arrays:
        masks = np.unpackbits(arrays["masks"], axis=-1, count=arrays["size"][1])
        assert masks.shape == (3, 2, 5, 6) and arrays["obj_ids"].tolist() == [7, 9]
        assert arrays["frames"].tolist() == [1, 2, 3] and arrays["areas"].tolist() == [[4, 0], [9, 6], [0, 12]]
        assert arrays["statuses"].tolist() == [["prompted", ""], ["tracked", "tracked"], ["occluded", "reused"]]
        assert arrays["boxes"][1].tolist() == [[0, 0, 3, 3], [2, 2, 5, 4]]
    assert np.array_equal(masks[1, 0], results[2][7].mask) and np.array_equal(masks[2, 1], results[3][9].mask)
    assert not masks[0, 1].any()


@pytest.mark.parametrize(("other", "names"), [("dog", ["1", "dog"]), ("1", None)])
def test_npz_tells_objects_apart_or_is_refused(tmp_path, other, names):
    results = VideoResults.collect([result_at(0, {1: (0, 0, 2, 2), other: (2, 2, 5, 4)})])
    if names is None:
        with pytest.raises(ValueError, match=r"obj_ids must differ as text too for \"npz\", .* got \[1, '1'\]"):
            results.save(tmp_path / "r.npz", "npz")
        assert files_of(tmp_path) == []
        return
    with np.load(results.save(tmp_path / "r.npz", "npz")) as arrays:
        assert arrays["obj_ids"].tolist() == names


# Mistakes


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="format must be one of png, coco, youtube_vis, mp4, npz, json, got 'avi'"):
        clip_results().save(tmp_path / "x", "avi")


@pytest.mark.parametrize("format", FORMATS)
def test_without_results_there_is_nothing_to_save(tmp_path, format, frames):
    with pytest.raises(ValueError, match="there are no results of empty yet"):
        VideoResults(name="empty").save(tmp_path / "x", format, video=frames)
    assert files_of(tmp_path) == []


def test_mp4_without_frames_says_that_it_needs_them(tmp_path):
    with pytest.raises(ValueError, match='format "mp4" draws over the frames: give them as video'):
        clip_results().save(tmp_path / "x.mp4", "mp4")


@pytest.mark.parametrize(
    ("name", "fps", "size", "message"),
    [
        ("x.webm", None, (96, 128), r"path must end in one of .*, got \S*/x\.webm$"),
        ("x.mp4", 0, (96, 128), "fps must be positive, got 0"),
        ("x.mp4", None, (128, 96), "frame list is 96x128, the results of clip are 128x96; give the video that was"),
        ("x.mp4", None, (2, 96, 128), "frame list has 2 frames, the results of clip go to frame 2, so there are 3 at"),
    ],
)
def test_an_overlay_that_cannot_be_made_says_why(tmp_path, name, fps, size, message):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=message):
        drawn_results().save(tmp_path / name, "mp4", video=drawn_clip(*[3, *size][-3:]), fps=fps)
    assert files_of(tmp_path) == []


def test_mp4_without_pyav_names_the_extra(tmp_path, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "sam2\[video\]"'):
        drawn_results().save(tmp_path / "x.mp4", "mp4", video=frames)


def test_mp4_without_libx264_is_refused_too(tmp_path, frames, without_libx264):
    with pytest.raises(ImportError, match="H.264 needs the encoder libx264, which this build of PyAV is without"):
        drawn_results().save(tmp_path / "x.mp4", "mp4", video=frames)
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("format", ["mp4", "npz"])
def test_a_file_that_cannot_be_finished_leaves_the_earlier_one_as_it_was(tmp_path, frames, monkeypatch, format):
    path = tmp_path / f"x.{format}"
    path.write_text("earlier")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(exports, "_labelled_frame", fail)
    monkeypatch.setattr(exports, "_stream_masks", fail)
    with pytest.raises(OSError, match="disk full"):
        drawn_results().save(path, format, video=frames)
    assert files_of(tmp_path) == [path.name] and path.read_text() == "earlier"

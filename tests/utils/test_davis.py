from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.utils.davis import DAVIS_PALETTE, DavisRoot, merge_masks, read_label_map, write_label_map

LABELS = np.array([[0, 1, 2], [3, 9, 22]], np.uint8)
COLOURS = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def palette_image(labels: np.ndarray, palette: bytes) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(palette)
    return image


def make_root(
    root: Path, sequences: dict[str, int], *, resolution: str = "480p", splits: dict[str, str] | None = None
) -> Path:
    for name, length in sequences.items():
        for i in range(length):
            write_label_map(root / "Annotations" / resolution / name / f"{i:05d}.png", np.ones((2, 2), np.uint8))
            frame = root / "JPEGImages" / resolution / name / f"{i:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(frame)
    for split, text in (splits or {}).items():
        path = root / "ImageSets" / "2017" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "label, colour",
    [(0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0)), (7, (128, 128, 128)), (8, (64, 0, 0))]
    + [(9, (192, 0, 0)), (21, (128, 64, 128)), (64, (32, 0, 0)), (255, (224, 224, 192))],
)
def test_the_palette_follows_the_pascal_bit_rule(label, colour):
    assert tuple(DAVIS_PALETTE[3 * label : 3 * label + 3]) == colour


def test_the_palette_is_the_one_of_davis_annotations(shared):
    with Image.open(shared / "metrics/Annotations/480p/judo/00000.png") as image:
        assert bytes(image.getpalette() or []) == DAVIS_PALETTE


def test_written_label_maps_are_palette_pngs_that_read_back_the_same(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = tmp_path / "new" / "folder" / "00000.png"
    write_label_map(path, labels)
    with Image.open(path) as image:
        assert image.mode == "P" and bytes(image.getpalette() or []) == DAVIS_PALETTE
    np.testing.assert_array_equal(read_label_map(path), labels)
    assert [p.name for p in path.parent.iterdir()] == ["00000.png"]


@pytest.mark.parametrize("labels", [LABELS.astype(np.int64), LABELS > 0])
def test_integers_and_booleans_can_be_written(tmp_path, labels):
    write_label_map(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels.astype(np.uint8))


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (np.zeros((1, 2, 2), np.uint8), ValueError, r"labels must be \(H, W\), got shape \(1, 2, 2\)"),
        (np.zeros((2, 2), np.float32), TypeError, "labels must be integers or booleans, got float32"),
        (np.array([[0, 256]]), ValueError, "labels must be 0 to 255, got 0 to 256"),
        (np.array([[-1, 1]]), ValueError, "labels must be 0 to 255, got -1 to 1"),
    ],
)
def test_what_is_no_label_map_is_not_written(tmp_path, labels, error, message):
    with pytest.raises(error, match=message):
        write_label_map(tmp_path / "a.png", labels)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_label_map(path, LABELS)

    def save_half(self, file, **options):
        Path(file).write_bytes(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        write_label_map(path, np.zeros_like(LABELS))
    np.testing.assert_array_equal(read_label_map(path), LABELS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LABELS),
        Image.fromarray(LABELS.astype(np.uint16)),
        Image.fromarray(COLOURS[LABELS]),
        Image.fromarray(np.dstack([COLOURS[LABELS], np.full_like(LABELS, 255)])),
        Image.fromarray(np.where(COLOURS[LABELS] == 192, np.uint8(191), COLOURS[LABELS])),
        palette_image(LABELS, bytes(range(256)) * 3),
        palette_image(LABELS, bytes(np.repeat(np.arange(256, dtype=np.uint8), 3))),
        Image.fromarray(np.dstack([LABELS] * 3)),
    ],
    ids=["grey", "16-bit grey", "rgb", "rgba", "rgb with 191", "other palette", "grey palette", "grey as rgb"],
)
def test_ids_are_read_from_every_kind_of_picture(tmp_path, image):
    np.testing.assert_array_equal(read_label_map(save(image, tmp_path / "a.png")), LABELS)


@pytest.mark.parametrize("mode, expected", [("1", 1), ("L", 255), ("RGB", 255)])
def test_black_and_white_masks_keep_their_white(tmp_path, mode, expected):
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    assert read_label_map(save(image, tmp_path / "a.png")).tolist() == [[0, expected]]


def test_a_coloured_picture_of_a_grey_palette_colour_is_that_id(tmp_path):
    image = Image.fromarray(np.array([[[0, 0, 0], [128, 128, 128]]], np.uint8))
    assert read_label_map(save(image, tmp_path / "a.png")).tolist() == [[0, 7]]


def transparent() -> Image.Image:
    return Image.fromarray(np.array([[[128, 0, 0, 255], [128, 0, 0, 0]]], np.uint8))


@pytest.mark.parametrize(
    "image, name, message",
    [
        (
            Image.fromarray(np.array([[[128, 0, 0], [120, 3, 0]]], np.uint8)),
            "a.png",
            r"first \(120, 3, 0\) at row 0, colu",
        ),
        (
            palette_image(np.array([[0, 1]], np.uint8), bytes([0, 0, 0, 0, 128, 0])),
            "a.png",
            "value 1 is shown in the .* id 2",
        ),
        (Image.fromarray(LABELS), "a.jpg", "JPEG does not keep object ids exactly"),
        (transparent(), "a.png", "partly transparent"),
        (Image.fromarray(np.array([[0, 300]], np.uint16)), "a.png", "holds values 0 to 300"),
    ],
    ids=["colour", "reordered palette", "jpeg", "transparent", "too large"],
)
def test_ambiguous_pictures_are_refused(tmp_path, image, name, message):
    with pytest.raises(ValueError, match=message):
        read_label_map(save(image, tmp_path / name))


def test_files_that_are_no_pictures_or_cut_short_are_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png: not a picture"):
        read_label_map(tmp_path / "text.png")
    write_label_map(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="half.png: damaged or cut short"):
        read_label_map(tmp_path / "half.png")
    with pytest.raises(FileNotFoundError):
        read_label_map(tmp_path / "none.png")


LOGITS = np.array([[[-1.0, 2.0, 1.0, 0.0]], [[-2.0, 1.0, 1.0, -3.0]], [[-3.0, 3.0, 0.5, -1.0]]], np.float32)


@pytest.mark.parametrize(
    "masks",
    [LOGITS, LOGITS[:, None], torch.from_numpy(LOGITS), torch.from_numpy(LOGITS)[:, None].bfloat16().requires_grad_()],
    ids=["array", "array N1HW", "tensor", "bfloat16 with gradient"],
)
def test_a_pixel_belongs_to_the_highest_positive_logit_and_to_the_first_of_equals(masks):
    assert merge_masks([4, 7, 2], masks).tolist() == [[0, 2, 4, 0]]


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_overlapping_boolean_masks_go_to_the_first_object(convert):
    masks = convert(np.array([[[True, True, False]], [[False, True, False]]]))
    assert merge_masks([2, 1], masks).tolist() == [[2, 2, 0]]


def test_no_objects_merge_to_background():
    assert merge_masks([], np.zeros((0, 2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("obj_ids", [[0, 1, 2], [1, 1, 2], [1, 2, 256]])
def test_ids_that_a_label_map_cannot_hold_are_refused(obj_ids):
    with pytest.raises(ValueError, match="obj_ids must be different integers from 1 to 255"):
        merge_masks(obj_ids, LOGITS)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 2, 4, 4), (4, 4)])
def test_masks_must_be_one_per_id(shape):
    with pytest.raises(ValueError, match="masks must be .* with N = 3 objects"):
        merge_masks([1, 2, 3], np.zeros(shape, np.float32))


def test_a_split_lists_its_sequences_in_the_order_of_its_file(tmp_path):
    root = DavisRoot.open(make_root(tmp_path, {"a": 1, "b": 1, "c": 1}, splits={"val": "c\na\n\n", "train": "b\n"}))
    assert root.splits() == ["train", "val"]
    assert root.sequences("val") == ["c", "a"]
    assert root.sequences() == ["a", "b", "c"]


def test_without_split_files_every_split_holds_all_sequences(tmp_path):
    root = DavisRoot.open(make_root(tmp_path, {"b": 1, "a": 1}))
    assert root.splits() == []
    assert root.sequences("val") == ["a", "b"]


@pytest.mark.parametrize("folder", ["2016", "480p", "."])
def test_split_files_are_found_in_other_folders_than_2017(tmp_path, folder):
    make_root(tmp_path, {"a": 1, "b": 1})
    for name in {folder, "1080p" if folder == "480p" else folder}:  # DAVIS 2016 lists each resolution
        (tmp_path / "ImageSets" / name).mkdir(parents=True)
        (tmp_path / "ImageSets" / name / "val.txt").write_text("b\n" if name == folder else "a\n")
    root = DavisRoot.open(tmp_path)
    assert (root.splits(), root.sequences("val")) == (["val"], ["b"])
    with pytest.raises(ValueError, match="split: 'test' is not one of val"):
        root.sequences("test")


def test_the_split_files_of_a_year_are_found_beside_those_of_2017(tmp_path):
    make_root(tmp_path, {"a": 1, "b": 1}, splits={"val": "a"})
    (tmp_path / "ImageSets/2016").mkdir()
    (tmp_path / "ImageSets/2016/val.txt").write_text("b")
    assert DavisRoot.open(tmp_path).sequences("val") == ["a"]
    assert DavisRoot.open(tmp_path, year="2016").sequences("val") == ["b"]
    with pytest.raises(FileNotFoundError, match=r"year: no folder .*2019"):
        DavisRoot.open(tmp_path, year="2019")


def test_of_several_folders_with_split_files_none_is_guessed(tmp_path):
    """Every sequence would be taken, those that are trained on too."""
    make_root(tmp_path, {"a": 1, "b": 1})
    for year in ("2016", "2019", ".ipynb_checkpoints"):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
        (tmp_path / "ImageSets" / year / "val.txt").write_text("b")
    with pytest.raises(ValueError, match=r"year: .*ImageSets lists splits in 2016, 2019; name one"):
        DavisRoot.open(tmp_path).sequences("val")
    assert DavisRoot.open(tmp_path).sequences() == ["a", "b"]
    assert DavisRoot.open(tmp_path, year="2019").sequences("val") == ["b"]
    shutil.rmtree(tmp_path / "ImageSets" / "2016")
    assert DavisRoot.open(tmp_path).sequences("val") == ["b"]


def test_a_split_may_list_frames_as_that_of_davis_2016_does(tmp_path):
    lines = [
        f"/JPEGImages/480p/{name}/0000{t}.jpg /Annotations/480p/{name}/0000{t}.png" for name in "ca" for t in (0, 1)
    ]
    root = DavisRoot.open(make_root(tmp_path, {"a": 2, "b": 2, "c": 2}, splits={"val": "\n".join(lines)}))
    assert root.sequences("val") == ["c", "a"]


def test_files_are_in_natural_order_and_others_are_left_out(tmp_path):
    make_root(tmp_path, {"a": 2})
    folder = tmp_path / "Annotations/480p/a"
    for name in ("10.png", "9.png", ".hidden.png", "frames.json"):
        (folder / name).touch()
    root = DavisRoot.open(tmp_path)
    assert [path.name for path in root.annotation_paths("a")] == ["00000.png", "00001.png", "9.png", "10.png"]
    assert [path.name for path in root.frame_paths("a")] == ["00000.jpg", "00001.jpg"]
    assert root.annotation_path("a", "00001") == folder / "00001.png"


def test_of_pictures_with_equal_stems_one_is_the_frame(tmp_path):
    folder = make_root(tmp_path, {"a": 2}) / "JPEGImages/480p/a"
    for name in ("00000.png", "00001.JPEG", "00002.png"):
        (folder / name).touch()
    assert [path.name for path in DavisRoot.open(tmp_path).frame_paths("a")] == ["00000.jpg", "00001.jpg", "00002.png"]


@pytest.mark.parametrize("resolution", ["Full-Resolution", "1080p"])
def test_the_only_resolution_is_found_and_any_can_be_named(tmp_path, resolution):
    make_root(tmp_path, {"a": 1}, resolution=resolution)
    assert DavisRoot.open(tmp_path).annotation_paths("a")[0].parts[-3] == resolution
    make_root(tmp_path, {"a": 1})
    assert DavisRoot.open(tmp_path).annotation_paths("a")[0].parts[-3] == "480p"
    assert DavisRoot.open(tmp_path, resolution=resolution).frame_paths("a")[0].parts[-3] == resolution


def test_sequences_may_lie_directly_under_annotations(tmp_path):
    write_label_map(tmp_path / "Annotations" / "a" / "00000.png", LABELS)
    (tmp_path / "Annotations" / "a" / ".ipynb_checkpoints").mkdir()
    root = DavisRoot.open(tmp_path)
    assert root.sequences("val") == ["a"]
    assert root.frames_dir is None


@pytest.mark.parametrize(
    "ask, error, message",
    [
        (lambda root: DavisRoot.open(root / "none"), FileNotFoundError, "root: no such folder"),
        (
            lambda root: DavisRoot.open(root / "ImageSets"),
            FileNotFoundError,
            "root: .* neither JPEGImages nor Annotations",
        ),
        (lambda root: DavisRoot.open(root, resolution="4k"), FileNotFoundError, "resolution: no '4k' .* found 480p"),
        (lambda root: DavisRoot.open(root).sequences("test"), ValueError, "split: 'test' is not one of broken, val"),
        (
            lambda root: DavisRoot.open(root).sequences("broken"),
            FileNotFoundError,
            "split: .*broken.txt lists zebra, which",
        ),
        (lambda root: DavisRoot.open(root).frame_paths("zebra"), FileNotFoundError, "sequence: no frames of 'zebra'"),
        (
            lambda root: DavisRoot.open(root).annotation_path("a", "00007"),
            FileNotFoundError,
            "frame: a has no .* '00007'",
        ),
        (
            lambda root: DavisRoot.open(root).annotation_paths("empty"),
            FileNotFoundError,
            "sequence: no annotations .png",
        ),
    ],
)
def test_what_is_not_there_is_named(tmp_path, ask, error, message):
    make_root(tmp_path, {"a": 1}, splits={"val": "a", "broken": "a\nzebra"})
    (tmp_path / "Annotations/480p/empty").mkdir()
    with pytest.raises(error, match=message.replace(" .png", r" \(.png\)")):
        ask(DavisRoot.open(tmp_path).root)


def test_several_resolutions_without_480p_ask_for_one(tmp_path):
    make_root(tmp_path, {"a": 1}, resolution="Full-Resolution")
    make_root(tmp_path, {"a": 1}, resolution="1080p")
    with pytest.raises(ValueError, match="resolution: .* has 1080p, Full-Resolution; name one"):
        DavisRoot.open(tmp_path)

"""Prompts as the command line and prompt files give them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sam2.track_prompts import (
    Draft,
    Prompt,
    PromptFile,
    apply,
    match_keys,
    parse_box,
    parse_mask,
    parse_point,
    resolve,
)
from sam2.utils.davis import write_label_map
from sam2.utils.rle import decode_mask, encode_mask

LABELS = np.array([[0, 3, 3], [9, 0, 0]], np.uint8)


@pytest.mark.parametrize(
    ("text", "obj_id", "frame"),
    [("1,2,3.5,4", None, 0), ("7:1,2,3.5,4", 7, 0), ("7:12:1,2,3.5,4", 7, 12), (":12:1,2,3.5,4", None, 12)],
)
def test_a_box_has_an_object_and_a_frame_or_the_usual_ones(text, obj_id, frame):
    assert parse_box(text) == Draft(obj_id, frame, box=(1.0, 2.0, 3.5, 4.0))


def test_a_point_is_inside_unless_its_label_is_0():
    assert parse_point("5,6") == Draft(None, 0, points=((5.0, 6.0),), labels=(1,))
    assert parse_point("2:3:5,6,1") == Draft(2, 3, points=((5.0, 6.0),), labels=(1,))
    assert parse_point("2:5,6,0") == Draft(2, 0, points=((5.0, 6.0),), labels=(0,))


def test_a_mask_is_a_file():
    assert parse_mask("a/b.png") == Draft(mask=Path("a/b.png"))
    assert parse_mask("4:2:b.png") == Draft(4, 2, mask=Path("b.png"))
    assert parse_mask("C:/b.png") == Draft(mask=Path("C:/b.png"))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_box, "1,2,3", "'1,2,3' is not"),
        (parse_box, "1:2:3:1,2,3,4", "is not"),
        (parse_box, "a:1,2,3,4", "is not"),
        (parse_box, "1,2,3,nan", "is not"),
        (parse_point, "1", "is not"),
        (parse_point, "1:1,2,2", "with the label 1"),
        (parse_point, "1,2,0", "a point outside an object, and must say which one: ID:x,y,0"),
        (parse_mask, "3:", "is not"),
    ],
)
def test_what_is_not_written_so_is_an_error_that_shows_it(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


# What they mean together


def test_a_new_object_gets_the_lowest_id_that_no_prompt_before_it_has():
    drafts = [parse_box("2:0,0,2,2"), parse_box("0,0,1,1"), parse_point(":4:3,3"), parse_point("1:5,5")]
    assert [(each.obj_id, each.frame) for each in resolve(drafts)] == [(2, 0), (1, 0), (3, 4)]
    assert resolve(drafts)[1] == Prompt(1, 0, (0.0, 0.0, 1.0, 1.0), ((5.0, 5.0),), (1,))


def test_a_box_and_clicks_on_one_object_and_frame_belong_together():
    drafts = [parse_point("1:5,6"), parse_box("1:0,0,9,9"), parse_point("1:7,8,0"), parse_point("1:3:1,1")]
    assert resolve(drafts) == [
        Prompt(1, 0, (0.0, 0.0, 9.0, 9.0), ((5.0, 6.0), (7.0, 8.0)), (1, 0)),
        Prompt(1, 3, points=((1.0, 1.0),), labels=(1,)),
    ]


def test_every_value_of_a_mask_is_an_object(tmp_path):
    write_label_map(tmp_path / "m.png", LABELS)
    three, nine = resolve([Draft(frame=2, mask=tmp_path / "m.png")])
    assert (three.obj_id, three.frame, nine.obj_id) == (3, 2, 9)
    assert np.array_equal(decode_mask(three.mask), LABELS == 3) and np.array_equal(decode_mask(nine.mask), LABELS == 9)


def test_a_mask_with_an_id_is_that_object_and_a_black_and_white_one_a_new_one(tmp_path):
    write_label_map(tmp_path / "m.png", LABELS)
    Image.fromarray(np.where(LABELS > 0, 255, 0).astype(np.uint8)).save(tmp_path / "white.png")
    for draft, obj_id in ((Draft(5, mask=tmp_path / "m.png"), 5), (Draft(mask=tmp_path / "white.png"), 1)):
        assert resolve([draft]) == [Prompt(obj_id, 0, mask=encode_mask(LABELS > 0))]


@pytest.mark.parametrize(
    ("drafts", "message"),
    [
        (["1:0,0,1,1", "1:0,0,2,2"], "object 1 on frame 0 has two boxes"),
        (["3:0,0,1,1", "m.png"], "object 3 on frame 0 has a mask and another prompt"),
        (["m.png", "3:0,0,1,1"], "object 3 on frame 0 has a mask and another prompt"),
        (["3:m.png", "m.png"], "object 3 on frame 0 has a mask and another prompt"),
        (["empty.png"], "empty.png: there is no object in this mask"),
        (["none.png"], "mask: no such file"),
    ],
)
def test_prompts_that_exclude_each_other_and_masks_that_are_none_are_errors(tmp_path, monkeypatch, drafts, message):
    monkeypatch.chdir(tmp_path)
    write_label_map("m.png", LABELS)
    write_label_map("empty.png", 0 * LABELS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resolve([parse_mask(text) if text.endswith("png") else parse_box(text) for text in drafts])


# Prompt files


def prompt_file(folder, content):
    (folder / "p.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return PromptFile(folder / "p.json")


def test_a_prompt_file_names_videos_by_name_file_or_path_and_the_rest_by_a_star(tmp_path):
    boxes = {key: [{"box": [0, 0, i, i]}] for i, key in enumerate(("a", "b.mp4", "deep/c.mp4", "*"))}
    file = prompt_file(tmp_path, boxes)
    videos = {Path(each).stem: tmp_path / each for each in ("a.mp4", "b.mp4", "deep/c.mp4", "d.mp4")}
    drafts, warnings = file.of_videos(videos)
    assert [drafts[name][0].box[2] for name in "abcd"] == [0, 1, 2, 3] and warnings == []
    assert prompt_file(tmp_path, {"d": []}).of_videos(videos).drafts == dict.fromkeys("abcd", [])


VIDEOS = {"x_a": Path("x/a.mp4"), "y_a": Path("y/a.mp4"), "a": Path("/z/a"), "b": Path("x/b.mp4")}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a.mp4", "x/a.mp4"], {"x_a": "x/a.mp4", "y_a": "a.mp4"}),  # a path comes before a file name, in any order
        (["x/a.mp4", "a.mp4"], {"x_a": "x/a.mp4", "y_a": "a.mp4"}),
        (["a.mp4", "x_a"], {"x_a": "x_a", "y_a": "a.mp4"}),  # so does a name
        (["y_a", "y/../y/a.mp4"], {"y_a": "y/../y/a.mp4"}),
        (["a.mp4", "*.mp4"], {"x_a": "a.mp4", "y_a": "a.mp4"}),
        (["a", "/z/a"], {"a": "/z/a"}),
        (["b.mp4", "b"], {"b": "b"}),
    ],
)
def test_a_video_goes_by_its_path_else_its_name_else_its_file_name(tmp_path, monkeypatch, keys, expected):
    monkeypatch.chdir(tmp_path)
    assert match_keys(keys, VIDEOS, Path(".")) == expected


def test_a_key_that_is_the_path_of_a_video_means_no_other_one_of_that_file_name(tmp_path):
    videos = {"x_a": tmp_path / "a.mp4", "y_a": tmp_path / "y" / "a.mp4"}
    assert match_keys(["a.mp4"], videos, tmp_path) == {"x_a": "a.mp4"}
    with pytest.raises(ValueError, match="'a.mp4' and '.*/a.mp4' are the same video: say once what is to be"):
        match_keys(["a.mp4", str(tmp_path / "a.mp4")], videos, tmp_path)


def test_keys_that_fit_no_video_or_several_are_warned_of(tmp_path):
    box = [{"box": [0, 0, 1, 1]}]
    videos = {name: tmp_path / path for name, path in VIDEOS.items()}
    file = prompt_file(tmp_path, {"a": box, "bb": box, "*": box})
    assert file.of_videos(videos).warnings == [f"{file.path}: no video goes by 'bb'"]
    file = prompt_file(tmp_path, {"a.mp4": box, **{str(i): box for i in range(7)}})
    assert file.of_videos(videos).warnings == [
        f"{file.path}: no video goes by '0', '1', '2', '3', '4' and 2 more",
        f"{file.path}: 2 videos go by 'a.mp4' and get the same prompts",
    ]


def test_an_entry_says_what_the_options_say_and_masks_lie_beside_the_file(tmp_path):
    entries = [
        {"id": 7, "frame": 2, "box": [1, 2, 3, 4], "points": [[5, 6], [7, 8.5]], "labels": [1, 0]},
        {"points": [[5, 6]]},
        {"id": 0, "mask": "m/x.png"},
    ]
    drafts = prompt_file(tmp_path, {"a": entries}).of_videos({"a": tmp_path / "a.mp4"}).drafts
    assert drafts["a"] == [
        Draft(7, 2, (1.0, 2.0, 3.0, 4.0), ((5.0, 6.0), (7.0, 8.5)), (1, 0)),
        Draft(None, 0, points=((5.0, 6.0),), labels=(1,)),
        Draft(0, 0, mask=tmp_path / "m" / "x.png"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "p.json is not JSON"),
        ([], "must hold {video: "),
        ({"a": {}}, "a: must be a list of prompts"),
        ({"a": [3]}, "a: prompt 0: must be an object"),
        ({"a": [{"box": [1, 2, 3, 4]}, {"bbox": [1]}]}, "a: prompt 1: knows no 'bbox', only id, frame"),
        ({"a": [{"box": [1, 2, 3]}]}, r"box must be \[x0, y0, x1, y1\], got \[1, 2, 3\]"),
        ({"a": [{"points": [[1, "2"]]}]}, r"points must be \[\[x, y\], ...\]"),
        ({"a": [{"points": [[1, 2]], "labels": [2]}]}, r"labels must be 1, each 1 \(inside\) or 0"),
        ({"a": [{"id": -1, "box": [1, 2, 3, 4]}]}, "id must be a whole number of 0 or more, got -1"),
        ({"a": [{"frame": True, "box": [1, 2, 3, 4]}]}, "frame must be a whole number"),
        ({"a": [{"id": 1}]}, "must have a box, points or both; or a mask"),
        ({"a": [{"mask": "m.png", "box": [1, 2, 3, 4]}]}, "must have a box, points or both; or a mask"),
        ({"a": [{"mask": 3}]}, "mask must be the name of a file, got 3"),
    ],
)
def test_a_file_that_is_not_so_is_an_error_that_names_the_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        prompt_file(tmp_path, content)


def test_a_prompt_file_that_is_not_there_is_an_error_that_names_the_option(tmp_path):
    with pytest.raises(FileNotFoundError, match="--prompts: no such file"):
        PromptFile(tmp_path / "none.json")


# What the predictor is told


def test_prompts_reach_the_predictor_in_order():
    calls = []
    predictor = SimpleNamespace(
        add_new_mask=lambda state, frame, obj_id, mask: calls.append((frame, obj_id, mask.tolist())),
        add_new_points_or_box=lambda state, frame, obj_id, **what: calls.append((frame, obj_id, what)),
    )
    state = SimpleNamespace(video_height=2, video_width=3)
    click = Prompt(4, 5, points=((1.0, 2.0),), labels=(0,))
    apply(predictor, state, [Prompt(1, 0, mask=encode_mask(LABELS > 0)), Prompt(2, 0, box=(0, 0, 1, 1)), click])
    assert calls == [
        (0, 1, (LABELS > 0).tolist()),
        (0, 2, {"points": None, "labels": None, "box": (0, 0, 1, 1)}),
        (5, 4, {"points": ((1.0, 2.0),), "labels": (0,), "box": None}),
    ]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            Prompt(1, 0, points=((3.5, 1.0),), labels=(1,)),
            r"point \(3.5, 1\) of object 1 is not in the frames, which are 3x2",
        ),
        (Prompt(1, 0, mask=encode_mask(LABELS[:, :2])), "the mask of object 1 is 2x2, and the frames are 3x2"),
    ],
)
def test_what_does_not_fit_the_frames_is_an_error(prompt, message):
    with pytest.raises(ValueError, match=message):
        apply(None, SimpleNamespace(video_height=2, video_width=3), [prompt])

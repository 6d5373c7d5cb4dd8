"""The results of a whole clip, kept small and read back whole."""

import numpy as np
import pytest
import torch

from sam2.frame_skipping import FrameDecision
from sam2.results import FrameResult, frame_result
from sam2.video_results import VideoResults


def result_at(frame: int, masks: dict, *, action="processed", shape=(5, 6), order=1) -> FrameResult:
    """Objects that are rectangles (x0, y0, x1, y1), None for an empty mask; the later ones in front, or with the order
    -1 the earlier ones."""
    logits = torch.full((len(masks), 1, *shape), -1.0)
    for i, box in enumerate(masks.values()):
        if box is not None:
            logits[i, 0, box[1] : box[3], box[0] : box[2]] = 9.0 + order * i
    scores = [-2.0 if box is None else 2.0 + i for i, box in enumerate(masks.values())]
    decision = FrameDecision(frame, action, 0.25, "why", 0.125)
    return frame_result(decision, list(masks), logits, scores, [0.5] * len(masks))


def clip_results(**options) -> VideoResults:
    """Frames 1 to 3 of 5: objects 7 and 9 overlap on frame 2, and 7 is hidden on frame 3."""
    frames = [
        result_at(1, {7: (0, 0, 2, 2)}, action="prompted"),
        result_at(2, {7: (0, 0, 3, 3), 9: (2, 2, 5, 4)}),
        result_at(3, {7: None, 9: (2, 2, 6, 5)}, action="reused"),
    ]
    return VideoResults.collect(frames, **{"name": "clip", "num_frames": 5, **options})


def assert_same(a: FrameResult, b: FrameResult) -> None:
    assert a.decision == b.decision and np.array_equal(a.owner, b.owner) and a.owner.dtype == b.owner.dtype
    for x, y in zip(a.objects, b.objects, strict=True):
        assert np.array_equal(x.mask, y.mask) and x.mask.dtype == y.mask.dtype == bool
        names = ("obj_id", "box", "area", "object_score", "predicted_iou", "status")
        assert [getattr(x, name) for name in names] == [getattr(y, name) for name in names]


def test_a_frame_comes_back_as_it_was():
    overlapping = {7: (0, 0, 3, 3), 9: (2, 2, 5, 4), 8: (1, 1, 3, 4)}
    several = (result_at(2, overlapping), result_at(2, overlapping, order=-1))
    for result in (*several, result_at(0, {}), result_at(0, {"dog": None})):
        assert_same(VideoResults.collect([result])[result.frame], result)


def test_a_clip_knows_its_frames_objects_and_decisions():
    results = clip_results()
    assert (list(results), len(results), results.num_frames) == ([1, 2, 3], 3, 5)
    assert (results.height, results.width, results.obj_ids) == (5, 6, [7, 9])
    assert [decision.action for decision in results.decisions] == ["prompted", "processed", "reused"]
    assert {t: (each.area, each.status) for t, each in results.track(7).items()} == {
        1: (4, "prompted"), 2: (9, "tracked"), 3: (0, "occluded"),
    }  # fmt: skip


def test_frames_come_in_any_order_and_the_later_result_of_a_frame_counts():
    results = VideoResults.collect(result_at(t, {7: (0, 0, t + 1, 1)}) for t in (2, 1, 0))
    results.add(result_at(1, {7: (0, 0, 6, 5)}))
    assert list(results) == [0, 1, 2] and [results[t][7].area for t in results] == [1, 30, 3]
    assert results.num_frames == 3 and [decision.frame for decision in results.decisions] == [0, 1, 2]


def test_only_what_lies_under_another_mask_is_kept_twice():
    results = clip_results()
    assert [each.front is None for each in results.stored[2].objects] == [False, True]
    assert results.has_overlaps and not VideoResults.collect([result_at(0, {7: (0, 0, 2, 2)})]).has_overlaps


def test_a_thousand_frames_take_little_memory():
    result = result_at(0, {1: (100, 50, 500, 300), 2: (300, 200, 800, 400)}, shape=(480, 854))
    stored = VideoResults.collect([result]).stored[0]
    assert sum(len(each.mask.counts) + len(each.front.counts if each.front else b"") for each in stored.objects) < 6000


def test_all_of_it_is_saved_and_loaded(tmp_path):
    results = clip_results(frame_names=[f"{t}.png" for t in range(5)], about={"prompts": [1, None]})
    assert results.save(tmp_path / "deep" / "r.json", "json") == tmp_path / "deep" / "r.json"
    loaded = VideoResults.load(tmp_path / "deep" / "r.json")
    assert loaded.stored == results.stored
    assert (loaded.name, loaded.num_frames, loaded.about, loaded.frame_name(4)) == ("clip", 5, results.about, "4.png")
    assert_same(loaded[2], results[2])


def test_names_may_be_paths_and_the_length_a_numpy_number(tmp_path):
    results = clip_results(name=tmp_path, frame_names=[tmp_path / f"{t}.png" for t in range(5)], num_frames=np.int64(5))
    loaded = VideoResults.load(results.save(tmp_path / "r.json", "json"))
    assert (loaded.name, loaded.num_frames, loaded.frame_name(4)) == (str(tmp_path), 5, "4.png")
    assert VideoResults.load(clip_results(num_frames=np.int64(7)).save(tmp_path / "n.json", "json")).num_frames == 7


def test_ids_that_are_names_are_saved_too(tmp_path):
    VideoResults.collect([result_at(0, {"dog": (0, 0, 2, 2)})]).save(tmp_path / "r.json", "json")
    assert VideoResults.load(tmp_path / "r.json")[0]["dog"].area == 4


def test_an_id_that_json_has_not_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"obj_id must be an integer or a string to be saved, got \(1, 2\)"):
        VideoResults.collect([result_at(0, {(1, 2): (0, 0, 2, 2)})]).save(tmp_path / "r.json", "json")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "other"}', '{"kind": "sam2 results 1"}'])
def test_a_file_that_holds_no_results_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match="r.json does not hold results"):
        VideoResults.load(tmp_path / "r.json")
    with pytest.raises(FileNotFoundError):
        VideoResults.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r[0], KeyError, "frame 0 has no results; there are 3 of 5 frames"),
        (lambda r: r.track(8), KeyError, r"obj_id 8 is not in these results; their objects are \[7, 9\]"),
        (lambda r: r.add(result_at(5, {})), ValueError, r"a frame in \[0, 4\], got 5"),
        (lambda r: r.add(result_at(0, {}, shape=(4, 4))), ValueError, r"of \(5, 6\) \(H, W\) as the others are, got"),
        (lambda r: VideoResults(name="empty").height, ValueError, "there are no results of empty yet"),
        (lambda r: VideoResults(num_frames=2, frame_names=["0"]), ValueError, "frame_names must be 2, one per frame"),
        (
            lambda r: VideoResults(frame_names=["0.jpg", "0.png"]),
            ValueError,
            "frame_names must differ before their end",
        ),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(clip_results())

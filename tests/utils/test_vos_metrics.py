from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2.utils import vos_metrics
from sam2.utils.davis import DavisRoot, read_label_map, write_label_map
from sam2.utils.vos_metrics import (
    Statistics,
    annotated_objects,
    boundary_radius,
    contour_accuracy,
    evaluate,
    frame_statistics,
    mask_boundary,
    matched_objects,
    overall_scores,
    region_similarity,
    score_label_maps,
    score_mask,
)


def mask(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


EMPTY = np.zeros((8, 8), bool)
FULL = np.ones((8, 8), bool)
DOT = np.pad([[True]], ((2, 5), (2, 5)))


def bar(column: int, width: int = 1) -> np.ndarray:
    """A vertical bar through a picture of 40 x 60."""
    picture = np.zeros((40, 60), bool)
    picture[:, column : column + width] = True
    return picture


@pytest.fixture(scope="module")
def evaluation(shared):
    return evaluate(shared / "metrics", [shared / "metrics/osvos"])


@pytest.fixture(scope="module")
def expected(shared):
    return json.loads((shared / "metrics/expected.json").read_text())


def test_every_object_equals_the_official_evaluation(evaluation, expected):
    found = {f"{item.sequence}_{obj.obj_id}": obj for item in evaluation.predictions[0] for obj in item.objects}
    assert found.keys() == expected["per_object"].keys()
    for name, official in expected["per_object"].items():
        np.testing.assert_allclose(found[name].scores.region, official["J"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[name].scores.contour, official["F"], rtol=0, atol=1e-12)


def test_every_frame_equals_the_official_evaluation(evaluation, expected):
    for item in evaluation.predictions[0]:
        for obj in item.objects:
            official = expected["per_object"][f"{item.sequence}_{obj.obj_id}"]
            np.testing.assert_allclose(obj.region[:8], official["J_frame"], rtol=0, atol=1e-12)
            np.testing.assert_allclose(obj.contour[:8], official["F_frame"], rtol=0, atol=1e-12)


def test_the_overall_scores_equal_the_official_evaluation(evaluation, expected):
    scores = overall_scores(evaluation.predictions[0])
    official = expected["global"]
    assert scores.mean == pytest.approx(official["J&F-Mean"], abs=1e-12)
    for letter, found in (("J", scores.region), ("F", scores.contour)):
        assert found == pytest.approx([official[f"{letter}-{name}"] for name in ("Mean", "Recall", "Decay")], abs=1e-12)


@pytest.mark.parametrize(
    "shape, expected", [(mask("....", ".##.", ".##.", "...."), mask("###.", "#.#.", "###.", "...."))]
    + [(mask("..", ".#"), mask("##", "#.")), (mask("##", "##"), mask("..", "..")), (mask("#.", ".."), mask("#.", ".."))]
    + [(mask("...", "..#", "..#"), mask(".##", ".#.", ".#.")), (mask("...", "...", ".##"), mask("...", "###", "#.."))],
)  # fmt: skip
def test_a_boundary_pixel_differs_from_its_right_lower_or_diagonal_neighbour(shape, expected):
    np.testing.assert_array_equal(mask_boundary(shape), expected)


@pytest.mark.parametrize("shape, radius", [((480, 854), 8), ((480, 910), 9), ((1080, 1920), 18), ((40, 60), 1)])
def test_boundaries_match_within_eight_thousandths_of_the_diagonal(shape, radius):
    assert boundary_radius(shape) == radius


@pytest.mark.parametrize(
    "annotation, prediction, expected",
    [(EMPTY, EMPTY, 1.0), (DOT, EMPTY, 0.0), (EMPTY, DOT, 0.0), (DOT, DOT, 1.0), (FULL, DOT, 1 / 64)],
)
def test_region_similarity_is_intersection_over_union(annotation, prediction, expected):
    assert region_similarity(annotation, prediction) == expected


@pytest.mark.parametrize(
    "annotation, prediction, expected",
    [(EMPTY, EMPTY, 1.0), (DOT, EMPTY, 0.0), (EMPTY, DOT, 0.0), (DOT, DOT, 1.0), (FULL, EMPTY, 1.0), (FULL, DOT, 0.0)],
)
def test_a_missing_boundary_agrees_with_nothing_but_another_missing_boundary(annotation, prediction, expected):
    assert contour_accuracy(annotation, prediction) == expected


@pytest.mark.parametrize("shift, expected", [(3, 1.0), (4, 0.5), (5, 0.0), (20, 0.0)])
def test_boundaries_match_up_to_the_radius_and_no_further(shift, expected):
    # A bar one pixel wide has two columns of boundary, x - 1 and x: moved by 4, one is 3 from the other bar.
    assert contour_accuracy(bar(10), bar(10 + shift), radius=3) == expected


def test_contour_accuracy_is_the_harmonic_mean_of_precision_and_recall():
    # Boundaries at columns 9 and 19, predicted at 9 and 29: both precision and recall are one half. Another bar in the
    # prediction adds two wrong columns: precision 1/4, recall 1/2.
    assert contour_accuracy(bar(10, 10), bar(10, 20)) == 0.5
    assert contour_accuracy(bar(10, 10), bar(10, 20) | bar(40, 10)) == pytest.approx(1 / 3)


def test_boundaries_match_within_a_disk_and_not_within_a_square():
    # One pixel has four boundary pixels, 2 x 2. Moved by (4, 4), the outermost is (4, 4) = 5.66 from the other four.
    dot, moved = (np.zeros((20, 20), bool) for _ in range(2))
    dot[6, 6] = moved[10, 10] = True
    assert contour_accuracy(dot, moved, radius=5) == 0.75


@pytest.mark.parametrize("seed", range(20))
def test_scoring_the_common_box_equals_scoring_the_whole_picture(seed):
    rng = np.random.default_rng(seed)
    shape = (rng.integers(20, 300), rng.integers(20, 300))
    masks = []
    for _ in range(2):
        picture = np.zeros(shape, bool)
        top, left = rng.integers(0, shape[0] - 5), rng.integers(0, shape[1] - 5)
        region = picture[top : top + rng.integers(1, 200), left : left + rng.integers(1, 200)]
        region[...] = rng.uniform(size=region.shape) < 0.9
        masks.append(picture)
    score = score_mask(*masks)
    assert (score.region, score.contour) == (region_similarity(*masks), contour_accuracy(*masks))
    assert score.is_predicted


def test_statistics_of_nine_frames_by_hand():
    # Bins of nine frames: 0-2, 2-4, 4-6, 6-8.
    values = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert frame_statistics(values) == pytest.approx(Statistics(0.6, 5 / 9, 0.9 - 0.3))


@pytest.mark.parametrize(
    "values, expected",
    [([0.5], (0.5, 0.0, 0.0)), ([1.0, 0.0], (0.5, 0.5, 1.0)), ([0.9, 0.7, 0.2], (0.6, 2 / 3, 0.8 - 0.2))],
)
def test_short_clips_have_statistics(values, expected):
    # First and last bin: frame 0 and 0; 0 and 1; 0-1 and 2.
    assert frame_statistics(np.array(values)) == pytest.approx(expected)


def test_the_decay_of_more_than_256_frames_takes_the_last_quarter():
    assert frame_statistics(np.linspace(1, 0, 401)).decay == pytest.approx(0.75)


def test_no_frames_have_no_statistics():
    with pytest.raises(ValueError, match="values must hold at least one frame"):
        frame_statistics(np.array([]))


def label_maps(*ids: int) -> list[np.ndarray]:
    """One map per id, its left half that object; 0 is an empty map."""
    return [np.repeat([[i, i, 0, 0]], 4, axis=0).astype(np.uint8) for i in ids]


def test_first_and_last_frame_are_left_out():
    scores = score_label_maps("a", label_maps(1, 1, 1, 1), label_maps(0, 1, 0, 0))
    assert scores.objects[0].region.tolist() == [1.0, 0.0]


def test_objects_that_appear_late_count_from_the_start():
    scores = score_label_maps("a", label_maps(1, 1, 2, 2), label_maps(1, 1, 2, 2))
    assert [obj.obj_id for obj in scores.objects] == [1, 2]
    assert [obj.region.tolist() for obj in scores.objects] == [[1.0, 1.0], [1.0, 1.0]]
    late = score_label_maps("a", label_maps(1, 1, 2, 2), label_maps(1, 2, 0, 2)).objects[1]
    assert late.region.tolist() == [0.0, 0.0]


def test_an_object_that_is_never_predicted_is_known_as_such():
    scores = score_label_maps("a", label_maps(1, 1, 2, 1), label_maps(2, 1, 1, 2))
    assert [obj.is_predicted for obj in scores.objects] == [True, False]


def test_sequences_are_means_of_objects_and_the_whole_is_the_mean_of_all_objects():
    two = score_label_maps("a", label_maps(1, 1, 2, 2), label_maps(1, 1, 0, 0))
    one = score_label_maps("b", label_maps(1, 1, 1), label_maps(0, 0, 0))
    assert two.scores.region.mean == pytest.approx((1.0 + 0.5) / 2)
    assert overall_scores([two, one]).region.mean == pytest.approx((1.0 + 0.5 + 0.0) / 3)


@pytest.mark.parametrize(
    "annotations, predictions, message",
    [
        (label_maps(1, 1, 1), label_maps(1, 1), "predictions: a needs one per annotation .* got 2 and 3"),
        (label_maps(1, 1), label_maps(1, 1), "at least 3 of both"),
        (label_maps(0, 0, 0), label_maps(1, 1, 1), "annotations: no object in any frame"),
        (label_maps(1, 1, 1), label_maps(1, 2, 1), "a, frame 1: holds object ids 2, its annotation has 1"),
        (label_maps(1, 1, 1), [np.zeros((4, 5), np.uint8)] * 3, "a, frame 1: is 5x4, its annotation 4x4"),
    ],
)
def test_what_cannot_be_scored_is_refused(annotations, predictions, message):
    with pytest.raises(ValueError, match=message):
        score_label_maps("a", annotations, predictions)


def test_255_beside_ids_is_background():
    found = annotated_objects([np.array([[0, 1, 255]], np.uint8), np.array([[4, 1, 0]], np.uint8)])
    assert found.obj_ids == (1, 4)
    assert [labels.tolist() for labels in found.label_maps] == [[[0, 1, 0]], [[4, 1, 0]]]


def test_255_alone_is_one_object():
    found = annotated_objects([np.array([[0, 255]], np.uint8), np.array([[0, 0]], np.uint8)])
    assert found.obj_ids == (1,)
    assert [labels.tolist() for labels in found.label_maps] == [[[0, 1]], [[0, 0]]]


def test_a_black_and_white_prediction_shows_the_only_object():
    prediction = np.array([[0, 255]], np.uint8)
    assert matched_objects(prediction, [3], (1, 2), "p").tolist() == [[0, 3]]


@pytest.mark.parametrize(
    "values, ids, message",
    [
        ([0, 255], [1, 2], "p: a black and white mask .* cannot tell 2 objects apart"),
        ([1, 255], [1], "p: holds object ids 255, its annotation has 1$"),
        ([1, 255], [1, 2], "p: holds object ids 255, its annotation has 1, 2$"),
        (
            [38, 75],
            [1, 2],
            "p: holds object ids 38, 75, its annotation has 1, 2: they are the grey levels of DAVIS's colours",
        ),
        ([1, 3], [1, 2], "p: holds object ids 3, its annotation has 1, 2$"),
    ],
)
def test_ids_that_the_annotation_lacks_are_refused_with_the_likely_cause(values, ids, message):
    with pytest.raises(ValueError, match=message):
        matched_objects(np.array([values], np.uint8), ids, (1, 2), "p")


def write_maps(folder: Path, maps: list[np.ndarray]) -> None:
    for i, labels in enumerate(maps):
        write_label_map(folder / f"{i:05d}.png", labels)


@pytest.fixture
def small(tmp_path) -> Path:
    """A root with sequences a (two objects, five frames) and b, and the prediction folders `same` and `late`."""
    write_maps(tmp_path / "gt/Annotations/480p/a", label_maps(1, 1, 2, 2, 2))
    write_maps(tmp_path / "gt/Annotations/480p/b", label_maps(1, 1, 1))
    for name, ids in (("same", (1, 1, 2, 2, 2)), ("late", (1, 1, 1, 2, 2))):
        write_maps(tmp_path / name / "a", label_maps(*ids))
        write_maps(tmp_path / name / "b", label_maps(1, 1, 1))
    return tmp_path


def test_the_fidelity_takes_the_first_prediction_for_the_annotation(small):
    result = evaluate(small / "gt", [small / "late", small / "same"])
    assert [overall_scores(item).region.mean for item in result.predictions] == pytest.approx([7 / 9, 1.0])
    assert result.fidelity is not None
    assert [obj.region.tolist() for obj in result.fidelity[0].objects] == [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    same = evaluate(small / "gt", [small / "late", small / "late"])
    assert same.fidelity is not None and overall_scores(same.fidelity).mean == 1.0


def test_several_processes_give_the_same_scores_in_the_same_order(small, monkeypatch):
    monkeypatch.setattr(vos_metrics, "FRAMES_PER_PROCESS", 1)
    alone, shared_out = (evaluate(small / "gt", [small / "late"], processes=count) for count in (1, 2))
    assert [item.sequence for item in shared_out.predictions[0]] == ["a", "b"]
    assert [item.scores for item in shared_out.predictions[0]] == [item.scores for item in alone.predictions[0]]


def test_only_the_frames_that_count_must_be_predicted(small):
    for name in ("00000.png", "00004.png"):
        (small / "same/a" / name).unlink()
    write_label_map(small / "same/a/00009.png", np.full((9, 9), 9, np.uint8))
    assert overall_scores(evaluate(small / "gt", [small / "same"]).predictions[0]).mean == 1.0


def test_coloured_and_grey_predictions_score_as_palette_ones_do(small):
    for path in (small / "late").rglob("*.png"):
        image = Image.open(path)
        Image.fromarray(read_label_map(path)).save(path) if path.stem == "00001" else image.convert("RGB").save(path)
    assert evaluate(small / "gt", [small / "late"]).predictions[0][0].objects[0].region.tolist() == [1.0, 0.0, 1.0]


def replace_prediction(root: Path, image: Image.Image) -> None:
    image.save(root / "same/a/00001.png")


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda root: (root / "same/a/00002.png").unlink(),
            r"same/a: 1 of 3 scored frames missing, the first 00002.png; there",
        ),
        (lambda root: (root / "same/b").rename(root / "same/c"), r"same/b: no predictions \(PNG\) of sequence b"),
        (
            lambda root: replace_prediction(root, Image.new("L", (4, 4), 3)),
            "00001.png: holds object ids 3, its annotation has",
        ),
        (lambda root: replace_prediction(root, Image.new("L", (4, 4), 255)), "00001.png: a black and white mask"),
        (lambda root: replace_prediction(root, Image.new("L", (8, 4), 1)), "00001.png: is 8x4, its annotation 4x4"),
        (
            lambda root: (root / "gt/Annotations/480p/b/00002.png").unlink(),
            "b: 2 annotated, the first and last are not",
        ),
        (lambda root: (root / "same").rename(root / "other"), "no such folder of predictions: .*same"),
    ],
    ids=["frame", "sequence", "ids", "black and white", "size", "short", "folder"],
)
def test_folders_that_would_be_scored_wrongly_are_refused(small, break_it, message):
    break_it(small)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(small / "gt", [small / "same"])


def test_a_split_limits_the_sequences_and_a_root_may_be_given_open(small):
    split = small / "gt/ImageSets/2017/val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("b\n")
    root = DavisRoot.open(small / "gt")
    assert [item.sequence for item in evaluate(root, [small / "same"]).predictions[0]] == ["b"]
    assert [item.sequence for item in evaluate(root, [small / "same"], split=None).predictions[0]] == ["a", "b"]


def test_more_than_two_predictions_are_refused(small):
    with pytest.raises(ValueError, match="predictions must be one or two folders, got 3"):
        evaluate(small / "gt", [small / "same"] * 3)

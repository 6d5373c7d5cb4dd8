"""Run-length codes, against COCO's own tools."""

import json

import numpy as np
import pytest

from sam2.utils.rle import Rle, decode_mask, encode_mask, read_runs, write_runs

MASK = np.array([[0, 1, 1], [0, 1, 0]], bool)


def test_a_code_written_by_hand():
    code = encode_mask(MASK)
    assert read_runs(code.counts).tolist() == [2, 3, 1]  # columns: outside 2, inside 3, outside 1
    assert code.to_coco() == {"size": [2, 3], "counts": "231"} and code.area == 3
    assert np.array_equal(decode_mask(code), MASK)


def test_a_mask_that_begins_inside_has_an_empty_first_run_and_one_that_ends_inside_no_empty_last_one():
    assert read_runs(encode_mask(~MASK).counts).tolist() == [0, 2, 3, 1]
    assert read_runs(encode_mask(np.ones((2, 3), bool)).counts).tolist() == [0, 6]
    assert read_runs(encode_mask(np.zeros((2, 3), bool)).counts).tolist() == [6]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_codes_are_those_of_pycocotools_and_come_back_as_the_mask(share):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(round(100 * share))
    for _ in range(40):
        mask = rng.random(rng.integers(1, 30, 2)) < share
        code = encode_mask(mask)
        assert code.counts == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
        assert np.array_equal(decode_mask(code), mask) and code.area == mask.sum()


def test_runs_of_many_characters_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((1500, 2000), bool)
    mask[:, 3:1500] = True
    mask[700, 40:1400] = False
    code = encode_mask(mask)
    assert code.counts == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    assert np.array_equal(decode_mask(code), mask)


@pytest.mark.parametrize("runs", [[2**40, 0, 5, 2**62], [0, 1, 15, 16, 31, 32, 0, 1023, 1024]])
def test_any_runs_come_back(runs):
    assert read_runs(write_runs(np.array(runs))).tolist() == runs


@pytest.mark.parametrize("counts", ["231", b"231", [2, 3, 1]])
def test_a_coco_segmentation_is_read_in_each_of_its_forms(counts):
    assert np.array_equal(decode_mask(Rle.from_coco({"size": [2, 3], "counts": counts})), MASK)


def test_a_coco_segmentation_is_plain_json():
    code = encode_mask(MASK)
    assert Rle.from_coco(json.loads(json.dumps(code.to_coco()))) == code


def test_integers_other_than_0_are_inside():
    assert encode_mask(MASK.astype(np.uint8) * 7) == encode_mask(MASK)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_mask(np.zeros((2, 3, 1), bool)), r"mask must be \(H, W\), got shape \(2, 3, 1\)"),
        (lambda: decode_mask(Rle(2, 4, b"231")), "runs that add up to 2 x 4 pixels, got 3 that add up to 6"),
        (lambda: read_runs(b"23 1"), "counts are no run-length code: b'23 1'"),
        (lambda: read_runs(b"23P"), "counts are no run-length code"),
        (lambda: read_runs(b"P" * 20 + b"0"), "counts are no run-length code: a number of 21 characters"),
        (lambda: Rle.from_coco({"counts": "231"}), "code must be"),
    ],
)
def test_what_is_no_mask_or_no_code_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Objects drawn over a frame."""

import itertools

import numpy as np
import pytest

from sam2.utils.labelled_frames import DrawnObject, colour_of, draw_objects

FRAME = np.full((120, 160, 3), 90, np.uint8)


def square(x, y, size=40):
    mask = np.zeros(FRAME.shape[:2], bool)
    mask[y : y + size, x : x + size] = True
    return mask


def test_an_object_is_tinted_outlined_and_named_and_the_frame_is_not_changed():
    mask = square(60, 60)
    drawn = draw_objects(FRAME, [DrawnObject("1", 1, mask)], mask.astype(np.uint8))
    assert (FRAME == 90).all()
    assert drawn[80, 80].tolist() == np.rint(90 * np.float32(0.55) + 0.45 * np.array(colour_of(1))).tolist()
    assert np.abs(drawn[60, 80] - np.array(colour_of(1))).max() <= 16  # the outline, whose rim is smoothed
    assert drawn[58, 80].max() < 90 and (drawn[64:96, 64:96] == drawn[80, 80]).all() and (drawn[:, :50] == 90).all()
    plate = drawn[20:58, 60:100].reshape(-1, 3)
    assert (plate == colour_of(1)).all(axis=1).sum() > 50 and (plate > 220).all(axis=1).any()


def test_where_masks_overlap_the_owner_tints_the_pixel():
    masks = [square(40, 60), square(60, 60)]
    owner = np.where(masks[1], 2, masks[0]).astype(np.uint8)
    drawn = draw_objects(FRAME, [DrawnObject(str(i + 1), i + 1, mask) for i, mask in enumerate(masks)], owner)
    only = draw_objects(FRAME, [DrawnObject("2", 2, masks[1])], masks[1].astype(np.uint8))
    assert drawn[85, 72].tolist() == only[85, 72].tolist()


def test_names_do_not_cover_one_another_and_stay_in_the_picture():
    masks = [square(0, 0), square(2, 0), square(130, 90, 20)]
    owner = np.zeros(FRAME.shape[:2], np.uint8)
    drawn = draw_objects(FRAME, [DrawnObject("12", i + 1, mask) for i, mask in enumerate(masks)], owner)
    pixels = [(drawn == colour_of(i)).all(axis=2).sum() for i in (1, 2, 3)]
    assert min(pixels) > 100


def test_an_object_in_parts_is_named_at_the_largest():
    parts = square(100, 70, 30) | square(4, 90, 20)
    drawn = draw_objects(FRAME, [DrawnObject("1", 1, parts)], np.zeros(FRAME.shape[:2], np.uint8))
    assert (drawn[30:66, 90:140] == colour_of(1)).all(axis=2).any() and (drawn[:86, :80] == 90).all()


def test_an_object_that_is_not_seen_is_not_named():
    nothing = np.zeros(FRAME.shape[:2], bool)
    assert np.array_equal(draw_objects(FRAME, [DrawnObject("1", 1, nothing)], nothing.astype(np.uint8)), FRAME)


def test_twelve_objects_have_colours_of_their_own():
    colours = [colour_of(number) for number in range(1, 13)]
    assert colours[0] == (0, 114, 178) and colour_of(13) == colours[0]
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colours, 2)) >= 60


def test_another_size_than_the_frame_is_an_error():
    with pytest.raises(ValueError, match=r"owner must be \(120, 160\) as the frame, got \(1, 1\)"):
        draw_objects(FRAME, [], np.zeros((1, 1), np.uint8))

"""Curves drawn without matplotlib."""

import numpy as np
import pytest

from sam2.utils.plots import COLOURS, Curve, Point, draw_curves


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < 12).all(axis=-1)


def test_points_lie_where_the_axes_say():
    curve = Curve("a", [Point(0.0, 0.0), Point(1.0, 1.0), Point(2.0, 0.0)])
    picture = np.array(draw_curves([curve], title="", x_label="", y_label="", width=400, height=300))
    assert picture.shape == (300, 400, 3)
    rows, columns = np.nonzero(near(picture, COLOURS[0])[:230])  # above the legend
    top = columns[rows == rows.min()].mean()
    assert top == pytest.approx((78 + 400 - 28) / 2, abs=2)  # the peak is in the middle of the axes


def test_each_curve_has_its_colour():
    curves = [Curve(name, [Point(0, i, "x"), Point(1, i + 0.5)]) for i, name in enumerate("abc")]
    picture = np.array(draw_curves(curves, title="t", x_label="x", y_label="y"))
    assert all(near(picture, colour).sum() > 200 for colour in COLOURS[:3])
    assert not near(picture, COLOURS[3]).any()


@pytest.mark.parametrize("rises", [True, False])
def test_the_legend_covers_no_line_that_another_corner_would_spare(rises: bool):
    ends = [Point(0, 0), Point(1, 1)] if rises else [Point(0, 1), Point(1, 0)]
    curves = [Curve("a name", ends), Curve("another", ends)]
    picture = np.array(draw_curves(curves, title="", x_label="", y_label="", width=400, height=300))
    left, right, bottom = 78, 400 - 28, 300 - 62  # of the axes
    is_orange = picture[..., 0].astype(int) - picture[..., 2] > 60  # also where it is blended with the background
    columns = np.flatnonzero(is_orange[:bottom].any(axis=0))
    room = 0.08 / 1.16 * (right - left) + 8  # at both ends of the line, and its markers with their white rims
    assert np.isin(np.arange(np.ceil(left + room), right - room), columns).all()


def test_where_all_corners_are_passed_the_legend_is_between_them():
    curves = [Curve(name, [Point(0, at), Point(1, at)]) for name, at in (("a name", 0), ("another", 1))]
    picture = np.array(draw_curves(curves, title="", x_label="", y_label="", width=400, height=300))
    coloured = (np.ptp(picture.astype(int), axis=-1) > 60).sum(axis=1)  # pixels of each row
    assert min(coloured[:120].max(), coloured[180:].max()) > 235, (
        "both lines from end to end, but for their markers' rims"
    )


def test_a_single_point_can_be_drawn():
    assert draw_curves([Curve("a", [Point(3, 3)])], title="", x_label="", y_label="").size == (900, 560)


@pytest.mark.parametrize("points", [[], [Point(0, float("nan"))]])
def test_no_points_or_points_at_infinity_are_refused(points):
    with pytest.raises(ValueError, match="curves must have at least one point, all finite"):
        draw_curves([Curve("a", points)], title="", x_label="", y_label="")

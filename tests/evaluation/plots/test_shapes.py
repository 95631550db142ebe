"""Shapes of diagrams: arrows go from side to side, and frames hold what they frame."""

import pytest

from mmret_tf.evaluation.plots.shapes import Box, Page


@pytest.mark.parametrize(
    ("place", "start", "end"),
    [
        ((50, 10), (15, 10), (45, 10)),  # to the right
        ((10, 40), (10, 12), (10, 38)),  # below
        ((14, 40), (10, 12), (14, 38)),  # below, a little to the right
        ((50, 40), (15, 10), (45, 40)),  # both: across the gap
    ],
)
def test_an_arrow_goes_between_the_sides_that_face_each_other(place, start, end):
    one, other = Box(10, 10, 10, 4), Box(*place, 10, 4)
    assert one.towards(other) == start and other.towards(one) == end
    page = Page(height=50)
    page.arrow(one, other)
    (arrow,) = page.axes.texts
    assert (arrow.xyann, arrow.xy) == (start, end)


def test_a_chain_has_an_arrow_to_each_next_box():
    page = Page(height=50)
    page.chain(*(page.box(20 * n, 10, 10, 4) for n in (1, 2, 3)))
    assert [(arrow.xyann[0], arrow.xy[0]) for arrow in page.axes.texts] == [(25, 35), (45, 55)]


def test_a_frame_holds_its_boxes():
    page = Page(height=50)
    boxes = [page.box(20, 20, 10, 4), page.box(60, 30, 20, 8)]
    frame = page.frame(boxes, "tower 塔")
    assert frame.left < 15 and frame.right > 70
    assert frame.top < 18 and frame.bottom > 34
    assert (frame.bottom - 34) < (18 - frame.top)  # its text is above the boxes


def test_y_grows_downwards_and_a_page_is_100_units_wide():
    axes = Page(height=50).axes
    assert axes.get_xlim() == (0, 100) and axes.get_ylim() == (50, 0)
    assert axes.figure.get_size_inches().tolist() == [9, 4.5]

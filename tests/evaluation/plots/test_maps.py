"""Maps of embeddings: the projection is NumPy's, and each point has the place of its row."""

import numpy as np
import pytest
from drawn_texts import check_layout, texts_of

from mmret_tf.evaluation.plots import draw_embedding_map, principal_components

ROWS = np.random.default_rng(0).normal(size=(20, 6)) * [5, 3, 1, 1, 0.5, 0.1]


def points_of(figure):
    """The points of each kind; what is only in the legend has none."""
    found = [each.get_offsets().data for each in figure.axes[0].collections]
    return [each for each in found if len(each)]


def test_components_are_the_eigenvectors_of_the_covariance():
    points, shares = principal_components(ROWS, 3)
    variances = np.linalg.eigvalsh(np.cov(ROWS.T))[::-1]
    assert np.allclose(np.cov(points.T), np.diag(variances[:3]), atol=1e-6)
    assert np.allclose(shares, variances[:3] / variances.sum())
    assert np.allclose(points.mean(axis=0), 0)


def test_components_of_all_directions_keep_all_distances():
    points, shares = principal_components(ROWS, 6)
    assert shares.sum() == pytest.approx(1)
    distances = [np.linalg.norm(each[:, None] - each, axis=-1) for each in (points, ROWS)]
    assert np.allclose(*distances, atol=1e-5)


def test_components_do_not_depend_on_the_order_of_the_rows():
    points, _ = principal_components(ROWS)
    turned, _ = principal_components(ROWS[::-1])
    assert np.allclose(points, turned[::-1])


def test_equal_vectors_have_no_variance():
    points, shares = principal_components(np.ones((4, 3)))
    assert not points.any() and not shares.any()
    check_layout(draw_embedding_map({"picture 图像": np.ones((4, 3))}))  # a collapsed model


@pytest.mark.parametrize("shape", [(1, 3), (5, 1)])
def test_too_few_rows_or_columns_are_refused(shape):
    with pytest.raises(ValueError, match="2 directions need at least as many rows and columns"):
        principal_components(np.ones(shape))


def test_each_kind_has_its_points_and_each_label_its_colour():
    kinds = {"picture 图像": ROWS, "caption 描述": ROWS + 0.2}
    labels = ["red 红", "blue 蓝"] * 10
    figure = draw_embedding_map(kinds, labels, lines=True)
    check_layout(figure)
    points, shares = principal_components(np.concatenate(list(kinds.values())))
    pictures, captions = points_of(figure)
    assert np.allclose(pictures, points[:20]) and np.allclose(captions, points[20:])
    (axes,) = figure.axes
    lines = np.array([line.get_xydata() for line in axes.lines])
    assert np.allclose(lines, np.stack([points[:20], points[20:]], axis=1))  # between the pairs
    said = [text.get_text() for text in texts_of(figure)]
    assert {*kinds, *labels} <= set(said)
    assert f"component 1 主成分 1: {shares[0]:.0%} of the variance 方差" in said
    colours = [each.get_facecolor() for each in axes.collections if len(each.get_offsets())]
    for kind in colours:
        assert len(np.unique(kind[::2], axis=0)) == len(np.unique(kind[1::2], axis=0)) == 1
        assert len(np.unique(kind, axis=0)) == 2
    assert np.array_equal(*colours)


def test_kinds_without_labels_differ_in_colour_and_in_number():
    figure = draw_embedding_map({"picture 图像": ROWS, "caption 描述": ROWS[:7]})
    check_layout(figure)
    assert [len(each) for each in points_of(figure)] == [20, 7]
    first, second, *_ = (
        each.get_facecolor()[0] for each in figure.axes[0].collections if len(each.get_offsets())
    )
    assert not np.array_equal(first, second)


def test_labels_have_the_colours_that_are_given():
    figure = draw_embedding_map({"a": ROWS[:2]}, ["red", "x"], colours={"red": "#ff0000"})
    first, second = figure.axes[0].collections[0].get_facecolor()
    assert first.tolist() == [1, 0, 0, 1] != second.tolist()


@pytest.mark.parametrize(
    ("kinds", "labels", "lines", "message"),
    [
        ({}, None, False, "1 to 6 kinds; got 0"),
        ({str(n): ROWS for n in range(7)}, None, False, "1 to 6 kinds; got 7"),
        ({"a": ROWS, "b": ROWS[:, :2]}, None, False, "the same width"),
        ({"a": ROWS, "b": ROWS[:7]}, None, True, "the same number of rows"),
        ({"a": ROWS}, ["x"] * 19, False, "and 19 labels"),
        ({"a": ROWS}, [*range(20)], False, "at most 10 different ones; got 20"),
        ({"a": ROWS * np.nan}, None, False, "a holds NaN"),
    ],
)
def test_what_does_not_fit_together_is_refused(kinds, labels, lines, message):
    with pytest.raises(ValueError, match=message):
        draw_embedding_map(kinds, labels, lines)

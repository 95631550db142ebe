"""Exact search against NumPy and by eye, and what every index refuses, ScaNN's too."""

import numpy as np
import pytest

from mmret_tf import exact
from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.index import ScannIndex

BOTH = pytest.mark.parametrize("kind", [BruteForceIndex, ScannIndex])
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


@BOTH
def test_cosine_by_eye(kind):
    built = kind.build([[3, 0], [0, 2], [3, 4], [0, 0]], ["east", "north", "between", "nowhere"])
    ids, scores = built.search([[10, 0], [0, 1]], k=4)
    assert ids.tolist() == [
        ["east", "between", "north", "nowhere"],  # cosines 1, 0.6, 0, and 0: the first row first
        ["north", "between", "east", "nowhere"],  # cosines 1, 0.8, 0, 0
    ]
    np.testing.assert_allclose(scores, [[1, 0.6, 0, 0], [1, 0.8, 0, 0]], atol=1e-6)
    assert scores.dtype == np.float32
    assert (len(built), built.dim, built.metric) == (4, 2, "cosine")
    assert built.stats == {"mode": "exact", "recall": 1.0}


@BOTH
def test_euclidean_scores_are_negative_squared_distances(kind):
    built = kind.build([[0, 0], [3, 4], [1, 0]], [10, 20, 30], metric="euclidean")
    ids, scores = built.search([0, 0], k=3)
    assert ids.tolist() == [[10, 30, 20]] and ids.dtype == np.int64
    np.testing.assert_allclose(scores, [[0, -1, -25]])


@METRICS
@pytest.mark.parametrize("block_scores", [1, 700, 2**24])
def test_brute_force_agrees_with_numpy_on_data_full_of_ties(metric, block_scores, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_SCORES", block_scores)
    random = np.random.default_rng(0)
    for n, k in ((1, 1), (7, 3), (60, 10), (60, 60)):
        # Whole numbers, so that a tie is one in float64 too; for cosine, signs of length 2 alone.
        points = random.choice([-1, 1], (n + 20, 4)).astype(float)
        if metric == "euclidean":
            points = random.integers(-2, 3, (n + 20, 4)).astype(float)
            right = -((points[n:, None] - points[None, :n]) ** 2).sum(axis=2)
        else:
            right = points[n:] @ points[:n].T / 4
        order = np.argsort(-right, axis=1, kind="stable")[:, :k]
        ids, scores = BruteForceIndex.build(points[:n], range(n), metric).search(points[n:], k)
        np.testing.assert_array_equal(ids, order)
        np.testing.assert_allclose(scores, np.take_along_axis(right, order, axis=1), atol=1e-6)


def test_equal_rows_tie_wherever_they_stand():
    # Matrix products may differ in the last bit between columns; 257 is no multiple of anything.
    row = np.random.default_rng(0).standard_normal(100)
    built = BruteForceIndex.build(np.tile(row, (257, 1)), range(257))
    ids, scores = built.search(np.random.default_rng(1).standard_normal((5, 100)), k=20)
    assert ids.tolist() == [list(range(20))] * 5
    assert (scores == scores[:, :1]).all()


def test_euclidean_distances_far_from_the_origin_are_exact():
    # In |q|^2 - 2 q x + |x|^2 with float32, numbers of a million are within 0.06 of the truth.
    points = (1000 + np.random.default_rng(0).standard_normal((300, 3))).astype(np.float32)
    ids, scores = BruteForceIndex.build(points, range(300), "euclidean").search(points[:50], k=5)
    right = -((points[:50, None].astype(float) - points) ** 2).sum(axis=2)
    np.testing.assert_array_equal(ids, np.argsort(-right, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(right)[:, :-6:-1], rtol=1e-6)


def test_unit_rows_rank_alike_by_both_metrics():
    random = np.random.default_rng(0)
    points, queries = (random.standard_normal((n, 32), np.float32) for n in (300, 100))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosine_ids, cosine = BruteForceIndex.build(points, range(300)).search(queries)
    euclidean_ids, euclidean = BruteForceIndex.build(points, range(300), "euclidean").search(
        queries
    )
    np.testing.assert_array_equal(cosine_ids, euclidean_ids)
    np.testing.assert_allclose(euclidean, 2 * cosine - 2, atol=1e-5)  # |q - x|^2 = 2 - 2 q x


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["a", "b"], "there are 3 rows and 2 ids"),
        ("abc", "must be a list of strings or integers"),
        (None, "must be a list of strings or integers"),
        (["a", "b", "a"], "1 come more than once: 'a'"),
        ([1, 1, 1], "1 come more than once: 1"),
        (["a", 1, 2], "all strings or all integers; got int, str"),
        ([0.0, 1.0, 2.0], "got float"),
        ([True, False, 2], "got bool, int"),
        ([0, 1, 2**63], "must fit"),
        (["a", "b", "c\0"], "without NUL"),
    ],
)
@BOTH
def test_ids_that_cannot_be_given_back_are_refused(kind, ids, reason):
    with pytest.raises(ValueError, match=reason):
        kind.build(np.eye(3), ids)


@BOTH
def test_ids_keep_their_kind(kind):
    for ids, expected in (
        (np.array(["01", "1"]), [["1", "01"]]),
        ([np.str_("01"), "1"], [["1", "01"]]),
        (np.array([7, -8], np.int32), [[-8, 7]]),
        (range(2), [[1, 0]]),
    ):
        built = kind.build(np.eye(2), ids)
        found = built.search([0, 1])[0]
        assert found.tolist() == expected and found.dtype.kind in "Ui"
        assert built.ids == np.asarray(ids).tolist()


@BOTH
@METRICS
def test_bad_arguments_are_refused(kind, metric):
    for rows in (
        [],
        [[]],
        [1.0, 2.0],
        np.zeros((0, 2)),
        np.zeros((2, 1, 2)),
        [["a", "b"]],
        [[1], []],
    ):
        with pytest.raises(ValueError, match="embeddings must be"):
            kind.build(rows, ["a"], metric=metric)
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="embeddings holds .* in 1 rows, the first is row 1"):
            kind.build([[1, 2], [bad, 0]], ["a", "b"], metric=metric)
    with pytest.raises(ValueError, match='metric must be "cosine" or "euclidean"; got'):
        kind.build(np.eye(2), ["a", "b"], metric="l1")
    built = kind.build(np.eye(2), ["a", "b"], metric=metric)
    for queries, reason in (
        (np.ones((1, 3)), "queries must have width 2; got 3"),
        ([1.0], "queries must have width 2; got 1"),
        ([], "non-empty"),
        (np.ones((0, 2)), "non-empty"),
        ([[0, np.nan]], "queries holds NaN"),
        ("red", "must be an array of numbers"),
    ):
        with pytest.raises(ValueError, match=reason):
            built.search(queries)
    for k in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="k must be an integer of at least 1; got"):
            built.search([1, 0], k=k)


@pytest.mark.parametrize("target", [0, 1.01, -1, float("nan")])
def test_a_recall_target_is_a_share(target):
    with pytest.raises(ValueError, match="recall_target"):
        ScannIndex.build(np.eye(2), ["a", "b"], recall_target=target)


@BOTH
def test_an_index_keeps_a_copy(kind):
    points = np.eye(2, dtype=np.float32)
    built = kind.build(points, ["a", "b"], metric="euclidean")
    points[:] = 9
    assert built.search([0, 1])[1].tolist() == [[0, -2]]

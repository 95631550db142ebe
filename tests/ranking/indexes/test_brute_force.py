"""Exact search against NumPy: the oracle has to be right where scores are equal or nearly so."""

import numpy as np
import pytest
from ranking.galleries import METRICS

from mmret_tf.ranking import BruteForceIndex
from mmret_tf.similarity import nearest as kernel


@METRICS
@pytest.mark.parametrize("block_scores", [1, 700, 2**24])
def test_it_agrees_with_numpy_on_data_full_of_ties(metric, block_scores, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK_SCORES", block_scores)
    random = np.random.default_rng(0)
    for n, k in ((1, 1), (7, 3), (60, 10), (60, 60)):
        # Whole numbers tie in float64 too; for cosine, signs, so that all lengths are 2.
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


def test_equal_rows_tie_in_every_column():
    # Matrix products may differ in the last bit between columns; 257 is not a multiple of a block.
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
    built = BruteForceIndex.build(points, range(300), "euclidean")
    euclidean_ids, euclidean = built.search(queries)
    np.testing.assert_array_equal(cosine_ids, euclidean_ids)
    np.testing.assert_allclose(euclidean, 2 * cosine - 2, atol=1e-5)  # |q - x|^2 = 2 - 2 q x

"""The kernel of exact search, where its shortcuts could go wrong; against sorting with NumPy."""

import numpy as np
import pytest

from mmret_tf.similarity import nearest as exact
from mmret_tf.similarity.nearest import nearest

METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


def oracle(vectors, queries, k, metric, allowed):
    if metric == "cosine":
        scores = queries.astype(float) @ vectors.T.astype(float)
    else:
        scores = -((queries[:, None].astype(float) - vectors) ** 2).sum(axis=2)
    scores = np.where(allowed, scores, -np.inf).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


@METRICS
@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
@pytest.mark.parametrize("block", [(2**22, 128), (2000, 128), (2**22, 7)])  # scores, queries
def test_it_finds_what_sorting_finds(metric, share, block, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_SCORES", block[0])
    monkeypatch.setattr(exact, "BLOCK_QUERIES", block[1])
    random = np.random.default_rng(0)
    vectors, queries = (random.standard_normal((n, 8), np.float32) for n in (3000, 20))
    for rows in (vectors, queries):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    allowed = random.random(3000) < share
    for k in (1, 10, 100, np.count_nonzero(allowed)):
        right, right_scores = oracle(vectors, queries, k, metric, allowed)
        rows, scores = nearest(vectors, queries, k, metric, None if share == 1 else allowed)
        np.testing.assert_allclose(scores, right_scores, rtol=1e-6, atol=1e-6)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert (rows == right).mean() > 0.999  # float64 sums may differ in the last bit
        assert allowed[rows].all()


@METRICS
def test_more_equal_rows_than_any_spare_come_in_their_order(metric):
    vectors = np.tile(np.float32([[1, 0], [0, 1]]), (500, 1))  # 500 times the same two
    queries = np.float32([[1, 0], [0.6, 0.8]])
    rows, _ = nearest(vectors, queries, 40, metric)
    assert rows[0].tolist() == list(range(0, 80, 2))
    assert rows[1].tolist() == list(range(1, 81, 2))
    allowed = np.arange(1000) >= 400
    rows, _ = nearest(vectors, queries, 40, metric, allowed)
    assert rows[0].tolist() == list(range(400, 480, 2))


def test_scores_that_float32_confuses_are_told_apart():
    # 1e-9 apart: equal in a float32 product, and in the float32 scores; a tie goes to the first.
    base = np.float32([0.6, 0.8])
    vectors = np.stack([base + np.float32([0, i * 6e-8]) for i in range(200)])
    rows, scores = nearest(vectors, np.float32([[0, 1]]), 5, "euclidean")
    right, _ = oracle(vectors, np.float32([[0, 1]]), 5, "euclidean", np.ones(200, bool))
    np.testing.assert_array_equal(rows, right)

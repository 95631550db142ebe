"""The k nearest of some rows, found by comparing every query with every row (精确检索).

NumPy alone: a blocked matrix product in float32 finds candidates, and float64 ranks them.
"""

from __future__ import annotations

import numpy as np

METRICS = ("cosine", "euclidean")

# Scores held at once (float32, so 16 MiB: they stay in the cache), and of how many queries at most.
BLOCK_SCORES = 2**22
BLOCK_QUERIES = 128

# A float32 matrix product is right to this, relative to the lengths of its rows.
MARGIN = 1e-5

# Candidates beyond the k-th; more are needed only where scores are equal or nearly so.
SPARE = 8

# Columns of one score in the first pass through a block; only groups with a high one get a second.
GROUP = 16


def square_norms(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths of rows `[n, dim]`; `[n]`."""
    return np.einsum("nd,nd->n", vectors, vectors)


def nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    metric: str,
    allowed: np.ndarray | None = None,
    norms: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for each query, best first; of equal scores the first row comes first.

    The float32 product only chooses candidates: what may, by its error, be among the k best. Each
    is then scored in float64, so that equal rows have equal scores wherever they stand.

    Args:
        vectors: `[n, dim]` float32; of unit length if the metric is cosine.
        queries: `[n_queries, dim]` float32, likewise.
        k: at least 1, and at most the number of rows that are allowed.
        metric: "cosine", the inner product of unit vectors, or "euclidean", the sum of squared
            differences, with a minus.
        allowed: bool `[n]`, the rows that may be found; all by default.
        norms: `square_norms(vectors)`, where they are known and the metric needs them.

    Returns:
        rows `[n_queries, k]` int64 and scores of the same shape, float32.

    >>> rows, scores = nearest(np.eye(3, dtype="float32"), np.float32([[0, 0.6, 0.8]]), 2, "cosine")
    >>> rows.tolist(), scores.round(2).tolist()
    ([[2, 1]], [[0.800000011920929, 0.6000000238418579]])
    """
    if metric == "cosine":
        norms = None
    elif norms is None:
        norms = square_norms(vectors)
    rows, offsets = None, norms  # what is taken from the scores: infinity from what may not be
    if allowed is not None and 4 * np.count_nonzero(allowed) < len(allowed):
        rows = np.flatnonzero(allowed)
    elif allowed is not None:
        offsets = np.where(allowed, np.float32(0) if norms is None else norms, np.float32(np.inf))
    n = len(vectors) if rows is None else len(rows)
    found_rows = np.empty((len(queries), k), np.int64)
    found_scores = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), BLOCK_QUERIES):
        block = queries[start : start + BLOCK_QUERIES]
        # |query|^2 is one number a query and moves no rank; without it less is cancelled.
        left = block if metric == "cosine" else 2 * block
        candidates, rough = _candidates(vectors, left, min(k + SPARE, n), rows, offsets)
        margin = np.full(len(block), 2 * MARGIN, np.float32)
        if metric == "euclidean":
            margin *= square_norms(block) + norms.max()
        enough = np.partition(rough, -k, axis=1)[:, -k] - margin
        stop = start + len(block)
        found_rows[start:stop], found_scores[start:stop] = ranked(
            vectors, np.where(rough < enough[:, None], -1, candidates), block, k, metric
        )
        # Where more than the spare are as good as the k-th, all of them are candidates.
        for i in np.flatnonzero(rough.min(axis=1) >= enough) if rough.shape[1] < n else ():
            each, rough = _candidates(vectors, left[i : i + 1], n, rows, offsets)
            found_rows[start + i], found_scores[start + i] = ranked(
                vectors, each[rough >= enough[i]][None], block[i : i + 1], k, metric
            )
    return found_rows, found_scores


def _candidates(
    vectors: np.ndarray,
    queries: np.ndarray,
    count: int,
    rows: np.ndarray | None,
    offsets: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best rows by float32 products less offsets `[n]`; `[n_queries, count]`."""
    n = len(vectors) if rows is None else len(rows)
    width = min(max(BLOCK_SCORES // len(queries) // GROUP, 1), -(-n // GROUP)) * GROUP
    scores = np.empty((len(queries), width), np.float32)
    found = []  # of each part of the rows: places, and their scores
    for start in range(0, n, width):
        part = slice(start, start + width) if rows is None else rows[start : start + width]
        columns = min(width, n - start)
        np.matmul(queries, vectors[part].T, out=scores[:, :columns])
        if offsets is not None:
            scores[:, :columns] -= offsets[part]
        scores[:, columns:] = -np.inf
        best = _highest(scores, min(count, columns))
        found.append((start + best, np.take_along_axis(scores, best, axis=1)))
    places, best_scores = found[0]
    if len(found) > 1:
        places, best_scores = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        kept = _partitioned(best_scores, count)
        places = np.take_along_axis(places, kept, axis=1)
        best_scores = np.take_along_axis(best_scores, kept, axis=1)
    return places if rows is None else rows[places], best_scores


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` highest scores in each row, in any order; `[n, count]`."""
    groups = scores.shape[1] // GROUP
    if groups <= 2 * count:
        return _partitioned(scores, count)
    # The highest scores stand in the groups with the highest maxima. Columns of a group lie far
    # apart, so that the maxima are taken between whole rows of numbers.
    maxima = scores.reshape(len(scores), GROUP, groups).max(axis=1)
    columns = _partitioned(maxima, count)[:, None] + groups * np.arange(GROUP)[:, None]
    columns = columns.reshape(len(scores), -1)
    best = _partitioned(np.take_along_axis(scores, columns, axis=1), count)
    return np.take_along_axis(columns, best, axis=1)


def _partitioned(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(scores, -count, axis=1)[:, -count:]


def ranked(
    vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of some rows `[n_queries, count]`, of which -1 is none, scored in float64."""
    scores = np.empty(rows.shape, np.float32)
    exact_queries = queries.astype(np.float64)
    step = max(1, BLOCK_SCORES // 4 // queries.size)
    for start in range(0, rows.shape[1], step):
        part = vectors[rows[:, start : start + step]].astype(np.float64)
        if metric == "cosine":
            part = np.clip(np.einsum("qnd,qd->qn", part, exact_queries), -1, 1)
        else:
            part -= exact_queries[:, None]
            part = 0.0 - np.einsum("qnd,qnd->qn", part, part)
        scores[:, start : start + step] = part
    scores[rows < 0] = -np.inf
    best = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)

"""The k nearest rows, found by comparing every query with every row (精确检索).

NumPy alone: a blocked matrix product in float32 finds candidates, and float64 ranks them.
"""

import numpy as np

METRICS = ("cosine", "euclidean")

# Scores held at once (float32, so 16 MiB: they stay in the cache), and queries, at most.
BLOCK_SCORES = 2**22
BLOCK_QUERIES = 128

# Candidates that are scored in float64 at once.
BLOCK_CANDIDATES = 2**12

# A float32 matrix product is right to this, relative to the lengths of its rows.
MARGIN = 1e-5

# The k-th highest score is at least the k-th highest maximum of groups of this many columns.
GROUP = 64


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

    The float32 product only chooses candidates: the rows that may, by its error, be among the k
    best. Each is then scored in float64, so that equal rows have equal scores wherever they stand.

    Args:
        vectors: `[n, dim]` float32; of unit length if the metric is cosine.
        queries: `[n_queries, dim]` float32, likewise.
        k: At least 1, and at most the number of rows that are allowed.
        metric: "cosine", the inner product of unit vectors, or "euclidean", the sum of squared
            differences, with a minus.
        allowed: bool `[n]`, the rows that may be found; all by default.
        norms: `square_norms(vectors)`, where they are known and the metric needs them.

    Returns:
        Rows `[n_queries, k]` int64 and scores of the same shape, float32.

    >>> rows, scores = nearest(np.eye(3, dtype="float32"), np.float32([[0, 0.6, 0.8]]), 2, "cosine")
    >>> rows.tolist(), scores.round(2).tolist()
    ([[2, 1]], [[0.800000011920929, 0.6000000238418579]])
    """
    if metric == "euclidean" and norms is None:
        norms = square_norms(vectors)
    penalty = norms if metric == "euclidean" else None  # what is subtracted from the products
    kept = None  # if few rows are allowed, the only ones that are compared
    if allowed is not None and 4 * np.count_nonzero(allowed) < len(vectors):
        kept = np.flatnonzero(allowed)
    elif allowed is not None:
        penalty = np.where(allowed, np.float32(0) if penalty is None else penalty, np.inf)
        penalty = penalty.astype(np.float32)
    blocks = [
        _nearest(vectors, queries[start : start + BLOCK_QUERIES], k, metric, penalty, kept)
        for start in range(0, len(queries), BLOCK_QUERIES)
    ]
    rows, scores = map(np.concatenate, zip(*blocks, strict=True))
    return rows, scores


def best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores of each query and their rows; of equal ones the lower row comes first.

    Args:
        rows: `[n_queries, count]`.
        scores: Of the same shape.
        k: Number of results.
    """
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    metric: str,
    penalty: np.ndarray | None,
    kept: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, for the queries of a block; `penalty` `[n]` is infinite for other rows."""
    n = len(vectors) if kept is None else len(kept)
    factor, margin = np.float32(1), np.float32(2 * MARGIN)
    if metric == "euclidean":
        # |query|^2 is the same for all rows and changes no rank; without it less is cancelled.
        factor = np.float32(2)
        margin *= square_norms(queries)[:, None] + penalty.max(where=penalty < np.inf, initial=0)
    # Rows that are kept are copied, a block at a time.
    width = max(BLOCK_SCORES // (len(queries) if kept is None else max(queries.shape)), 1)
    highest = np.full((len(queries), k), -np.inf, np.float32)
    found = []  # of each block of rows: candidates as places in its scores, and these
    for start in range(0, n, width):
        part = slice(start, start + width) if kept is None else kept[start : start + width]
        scores = factor * queries @ vectors[part].T
        if penalty is not None:
            scores -= penalty[part]
        groups = np.arange(0, scores.shape[1], GROUP)
        maxima = np.maximum.reduceat(scores, groups, axis=1) if len(groups) > 2 * k else scores
        highest = np.partition(np.hstack([highest, maxima]), -k, axis=1)[:, -k:]
        enough = highest[:, :1] - margin - np.float32(1e-30)
        places = np.flatnonzero(scores > enough)
        query, row = np.divmod(places, scores.shape[1])
        found.append((query, start + row, scores.ravel()[places]))
    query, row, rough = map(np.concatenate, zip(*found, strict=True))
    if kept is not None:
        row = kept[row]
    is_found = rough > enough[query, 0]
    query, row = query[is_found], row[is_found]
    scores = np.empty(len(row), np.float32)
    for start in range(0, len(row), BLOCK_CANDIDATES):
        part = slice(start, start + BLOCK_CANDIDATES)
        one, other = vectors[row[part]].astype(np.float64), queries[query[part]].astype(np.float64)
        if metric == "cosine":
            scores[part] = np.clip(np.einsum("nd,nd->n", one, other), -1, 1)
        else:
            scores[part] = 0.0 - square_norms(one - other)
    order = np.lexsort((row, -scores, query))
    firsts = np.searchsorted(query[order], np.arange(len(queries)))
    order = order[firsts[:, None] + np.arange(k)]
    return row[order], scores[order]

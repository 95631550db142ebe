"""Exact search (精确检索): ids and embeddings in, the k best ids and their scores out.

Every query is compared with every embedding, which makes `BruteForceIndex` the oracle of
any other index, and the right one for small galleries. Arrays and ids, never models. Sections 2.4
and 3.1(5) of the document.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.folders import replace_folder

FORMAT = "mmret_tf index"
VERSION = 1

METRICS = ("cosine", "euclidean")

# Scores held at once (float32, so 64 MiB, and as much again to find the k-th).
BLOCK_SCORES = 2**24

# A float32 matrix product is right to this, relative to the lengths of its rows.
MARGIN = 1e-5

Ids = Sequence[str] | Sequence[int] | np.ndarray


class Index:
    """What both indexes have: rows and their ids, checks, exact search, and files."""

    def __init__(self, vectors: np.ndarray, ids: list, metric: str):
        self.vectors = vectors  # [n, dim] float32, of unit length if the metric is cosine
        self.ids = ids
        self.metric = metric
        self.stats: dict[str, Any] = {"mode": "exact", "recall": 1.0}

    def __len__(self) -> int:
        """The number of items."""
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, dim {self.dim}, {self.metric!r})"

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.vectors.shape[1]

    def search(self, queries: npt.ArrayLike, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the highest scores, for each query, best first. Section 3.1(5).

        The score is the cosine similarity (余弦相似度) for the metric "cosine"; queries need not
        be of unit length, and one of length 0 has cosine 0 with everything. For "euclidean"
        (欧氏距离) it is the NEGATIVE of the document's distance, the sum of squared differences:
        larger is better in both. Of items with one score, the one built in first comes first.

        Args:
            queries: `[n_queries, dim]`, or `[dim]` for one.
            k: how many; an index with fewer items returns all of them.

        Returns:
            ids `[n_queries, min(k, n)]`, strings or int64 as they were given, and scores, float32
            of the same shape.

        Raises:
            ValueError: k is below 1, or queries are empty, of another width, or hold NaN or
                infinity.
        """
        k = checked_count(k, "k")
        queries = checked_queries(queries, self.dim, self.metric)
        rows, scores = self._nearest(queries, min(k, len(self)))
        return np.array([[self.ids[row] for row in found] for found in rows.tolist()]), scores

    def save(self, directory: str | os.PathLike) -> None:
        """Write the index as a folder, whole or not at all; it may be moved afterwards.

        Args:
            directory: does not exist, is empty, or holds an older index, which is replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "class": type(self).__name__,
            "metric": self.metric,
            "n": len(self),
            "dim": self.dim,
            "stats": self.stats,
        }
        with replace_folder(Path(directory), manifest) as new:
            self._write(new)

    def _write(self, folder: Path) -> None:
        (folder / "ids.json").write_text(json.dumps(self.ids), encoding="utf-8")
        np.save(folder / "dataset.npy", self.vectors, allow_pickle=False)

    @functools.cached_property
    def _square_norms(self) -> np.ndarray:
        """`[n]` float32."""
        return np.einsum("nd,nd->n", self.vectors, self.vectors)

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `[n_queries, k]` and their scores, by comparing every query with every item.

        The float32 product only chooses candidates: what may, by its error, be among the k best.
        Each is then scored in float64, so that equal items have equal scores wherever they stand.
        """
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        queries_per_block = max(1, BLOCK_SCORES // len(self))
        for start in range(0, len(queries), queries_per_block):
            block = queries[start : start + queries_per_block]
            rough = block @ self.vectors.T  # [block, n]
            margin = np.full(len(block), MARGIN, np.float32)
            if self.metric == "euclidean":
                # |query|^2 is one number a query and moves no rank; without it less is cancelled.
                rough = 2 * rough - self._square_norms
                margin *= np.einsum("qd,qd->q", block, block) + self._square_norms.max()
            kth = np.partition(rough, len(self) - k, axis=1)[:, len(self) - k]
            for i, query in enumerate(block):
                candidates = np.flatnonzero(rough[i] >= kth[i] - 2 * margin[i])
                exact = self._scores(candidates, query)
                best = np.lexsort((candidates, -exact))[:k]
                rows[start + i], scores[start + i] = candidates[best], exact[best]
        return rows, scores

    def _scores(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Scores of some rows against one query `[dim]`, summed in float64; float32 `[rows]`."""
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 2**14):  # all rows, where all embeddings are the same
            part = self.vectors[rows[start : start + 2**14]].astype(np.float64)
            if self.metric == "cosine":
                part = np.clip(np.einsum("nd,d->n", part, query), -1, 1)
            else:
                part -= query
                part = 0.0 - np.einsum("nd,nd->n", part, part)
            scores[start : start + 2**14] = part
        return scores


class BruteForceIndex(Index):
    """Exact search: every query is compared with every embedding. Section 2.4.

    >>> index = BruteForceIndex.build([[1, 0], [0, 1], [1, 1]], ["a", "b", "c"])
    >>> ids, scores = index.search([2, 0], k=2)
    >>> ids.tolist(), scores.round(3).tolist()
    ([['a', 'c']], [[1.0, 0.7070000171661377]])
    """

    @classmethod
    def build(cls, embeddings: npt.ArrayLike, ids: Ids, metric: str = "cosine") -> BruteForceIndex:
        """Index some embeddings; they are copied, and normalised in the copy for "cosine".

        Args:
            embeddings: `[n, dim]`.
            ids: `[n]` different strings, or different integers.
            metric: "cosine" or "euclidean".

        Raises:
            ValueError: no embeddings, NaN or infinity in them, ids that come twice or do not fit,
                or another metric.
        """
        return cls(*checked_items(embeddings, ids, metric))


def checked_count(value: int, name: str) -> int:
    """A number of things that must be an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    return int(value)


def checked_items(embeddings: npt.ArrayLike, ids: Ids, metric: str) -> tuple[np.ndarray, list, str]:
    """What an index is built from, checked and copied."""
    if metric not in METRICS:
        raise ValueError(f'metric must be "cosine" or "euclidean"; got {metric!r}')
    vectors = _checked_rows(embeddings, "embeddings", metric)
    return vectors, checked_ids(ids, len(vectors)), metric


def checked_queries(queries: npt.ArrayLike, dim: int, metric: str) -> np.ndarray:
    """`[n_queries, dim]`, or `[dim]` for one, checked and copied."""
    rows = np.reshape(queries, (1, -1)) if np.ndim(queries) == 1 else queries
    rows = _checked_rows(rows, "queries", metric)
    if rows.shape[1] != dim:
        raise ValueError(f"queries must have width {dim}; got {rows.shape[1]}")
    return rows


def _checked_rows(array: npt.ArrayLike, name: str, metric: str) -> np.ndarray:
    """Check `[n, dim]` numbers; return a float32 copy, with rows of unit length for cosine."""
    try:
        with np.errstate(over="ignore"):
            rows = np.array(array, dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers [n, dim]; {error}") from None
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} must be a non-empty array [n, dim]; got shape {rows.shape}")
    # A sum in float64 can neither overflow nor vanish, and NaN or infinity shows in it.
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    # Squared distances must fit into float32, which ends at 3.4e38.
    bad = np.flatnonzero(~(norms < (np.inf if metric == "cosine" else 1e18)))
    if bad.size:
        raise ValueError(
            f"{name} holds NaN, infinity or too large numbers in {bad.size} rows, "
            f"the first is row {bad[0]}"
        )
    if metric == "cosine":
        norms[norms == 0] = 1
        np.divide(rows, norms[:, None], out=rows, casting="same_kind")
    return rows


def checked_ids(ids: Ids, n: int) -> list:
    """Check that there are n different ids, and return them as a list of `str` or of `int`."""
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
        raise ValueError(f"ids must be a list of {n} strings or integers; got {ids!r:.80}")
    ids = [key.item() if isinstance(key, np.generic) else key for key in ids]
    if len(ids) != n:
        raise ValueError(f"ids must have one id a row: there are {n} rows and {len(ids)} ids")
    types = {type(key) for key in ids}
    if types not in ({str}, {int}):
        names = sorted(each.__name__ for each in types)
        raise ValueError(f"ids must be all strings or all integers; got {', '.join(names)}")
    if len(set(ids)) != n:
        seen: set = set()
        twice = list(dict.fromkeys(key for key in ids if key in seen or seen.add(key)))
        raise ValueError(
            f"ids must be unique; {len(twice)} come more than once: "
            + ", ".join(map(repr, twice[:3]))
        )
    # NumPy's strings drop a final NUL, and its integers have 64 bits.
    bad = [key for key in ids if ("\0" in key if types == {str} else not -(2**63) <= key < 2**63)]
    if bad:
        raise ValueError(f"ids must fit into a NumPy array, without NUL; got {bad[0]!r}")
    return ids

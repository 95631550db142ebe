"""Nearest neighbours (最近邻检索): ids and embeddings in, the k best ids and their scores out.

`BruteForceIndex` compares with every embedding and is the oracle; `ScannIndex` (arXiv 1908.10396)
is fast on large galleries. Arrays and ids, never models. Sections 2.4, 3.1(5), 4.3 and 7.2.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.folders import open_array, read_manifest, replace_folder

FORMAT = "mmret_tf index"
VERSION = 1

METRICS = ("cosine", "euclidean")

# Below the first, exact search is as fast as any other; below the second, a tree gains nothing.
EXACT_BELOW = 20_000
HASHED_BELOW = 100_000

# Recall is measured at this k, on at most this many queries.
TUNED_K = 10
TUNED_QUERIES = 200

# Scores held at once (float32, so 64 MiB, and as much again to find the k-th).
BLOCK_SCORES = 2**24

# A float32 matrix product is right to this, relative to the lengths of its rows.
MARGIN = 1e-5

# What ScaNN writes. Its item ids, a pickle, are not among them: they stand in ids.json.
SCANN_FILES = {
    "scann_config.pb",
    "scann_assets.pbtxt",
    "dataset.npy",
    "hashed_dataset.npy",
    "ah_codebook.pb",
    "serialized_partitioner.pb",
    "datapoint_to_token.npy",
}
ASSETS = re.compile(r'(assets \{\n  asset_type: \w+\n  asset_path: "\w+\.(npy|pb)"\n\}\n)+')

Ids = Sequence[str] | Sequence[int] | np.ndarray


class _Index:
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
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be an integer of at least 1; got {k!r}")
        queries = _checked_queries(queries, self.dim, self.metric)
        rows, scores = self._nearest(queries, min(int(k), len(self)))
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


class BruteForceIndex(_Index):
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
        return cls(*_checked_items(embeddings, ids, metric))


class ScannIndex(_Index):
    """Approximate search with ScaNN (近似最近邻), tuned to a recall. Section 7.2, arXiv 1908.10396.

    Attributes:
        stats: "mode", one of "exact" (below 20,000 items), "hashed" (below 100,000) and
            "partitioned", and "recall". Where the search is approximate: the "recall_target"; the
            recall at 10 that was "measured_on" "queries" or "perturbed embeddings", and on how
            many ("n_measured"); "reorder", the candidates that are scored exactly; and, if
            partitioned, the number of "leaves" and "leaves_to_search".

    >>> index = ScannIndex.build(np.eye(4), ["a", "b", "c", "d"])
    >>> index.search([0, 3, 0, 0], k=1)[0].tolist(), index.stats["mode"]
    ([['b']], 'exact')
    """

    def __init__(
        self, vectors: np.ndarray, ids: list, metric: str, searcher: Any, stats: dict[str, Any]
    ):
        super().__init__(vectors, ids, metric)
        self.stats = stats
        self._searcher = searcher

    @classmethod
    def build(
        cls,
        embeddings: npt.ArrayLike,
        ids: Ids,
        recall_target: float = 0.95,
        metric: str = "cosine",
        queries: npt.ArrayLike | None = None,
    ) -> ScannIndex:
        """Index some embeddings in the way that fits their number.

        Small galleries are searched exactly. In larger ones the search is widened (twice as many
        leaves and candidates, again and again) until it finds the share `recall_target` of the 10
        nearest, on up to 200 queries, with two standard errors to spare for the queries to come.
        An item that scores as high as the 10th nearest counts as found.

        Args:
            embeddings: `[n, dim]`.
            ids: `[n]` different strings, or different integers.
            recall_target: recall at 10 to reach, above 0 and up to 1.
            metric: "cosine" or "euclidean".
            queries: `[n_queries, dim]` to measure recall on, best embeddings of texts: where texts
                are the queries, embeddings of images say little. Without them, embeddings of the
                gallery with some noise are taken.

        Raises:
            ValueError: as for `BruteForceIndex.build`, or a target that is no share.
            ImportError: ScaNN is not installed; see `build_index`.
        """
        if not 0 < recall_target <= 1:
            raise ValueError(f"recall_target must be above 0 and at most 1; got {recall_target}")
        scann = _import_scann()
        vectors, ids, metric = _checked_items(embeddings, ids, metric)
        n, dim = vectors.shape
        if queries is not None:
            queries = _checked_queries(queries, dim, metric)
        builder = scann.builder(
            vectors, TUNED_K, "dot_product" if metric == "cosine" else "squared_l2"
        )
        if n < EXACT_BELOW:
            searcher = builder.score_brute_force().build()
            return cls(vectors, ids, metric, searcher, {"mode": "exact", "recall": 1.0})
        stats = {"mode": "hashed", "reorder": 5 * TUNED_K}
        if n >= HASHED_BELOW:
            leaves = round(n**0.5)
            start = max(1, leaves // 100)
            stats = {**stats, "mode": "partitioned", "leaves": leaves, "leaves_to_search": start}
            builder = builder.tree(leaves, start)
        # The threshold of the paper is meant for inner products of unit vectors.
        threshold = {"anisotropic_quantization_threshold": 0.2} if metric == "cosine" else {}
        searcher = builder.score_ah(min(2, dim), **threshold).reorder(stats["reorder"]).build()
        index = cls(vectors, ids, metric, searcher, stats)
        index._widen(recall_target, queries)
        return index

    def _widen(self, recall_target: float, queries: np.ndarray | None) -> None:
        """Double the effort until the target is reached; fill in `stats`."""
        random = np.random.default_rng(0)
        source = self.vectors if queries is None else queries
        chosen = source[np.sort(random.permutation(len(source))[:TUNED_QUERIES])]
        if queries is None:
            noise = random.standard_normal(chosen.shape, np.float32) / self.dim**0.5
            noise *= np.linalg.norm(chosen, axis=1, keepdims=True)
            chosen = _checked_queries(chosen + 0.1 * noise, self.dim, self.metric)
        k = min(TUNED_K, len(self))
        kth = super()._nearest(chosen, k)[1][:, -1:]
        enough = kth - (1e-6 if self.metric == "cosine" else MARGIN * np.abs(kth))  # a tie
        while True:
            _, found = self._approximate(chosen, k)
            share = np.mean(found >= enough, axis=1)  # [n_queries]
            recall = float(share.mean())
            doubt = 2 * share.std() / len(share) ** 0.5
            wider = {"reorder": min(2 * self.stats["reorder"], len(self))}
            if self.stats["mode"] == "partitioned":
                twice = 2 * self.stats["leaves_to_search"]
                wider["leaves_to_search"] = min(twice, self.stats["leaves"])
            if recall - doubt >= recall_target or wider.items() <= self.stats.items():
                break
            self.stats.update(wider)
        self.stats |= {
            "recall": recall,
            "recall_target": recall_target,
            "measured_on": "perturbed embeddings" if queries is None else "queries",
            "n_measured": len(chosen),
        }

    def _approximate(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What ScaNN finds: rows and scores `[n_queries, k]`, NaN where it found fewer than k."""
        effort = {}
        if self.stats["mode"] != "exact":
            candidates = self.stats["reorder"] * max(k, TUNED_K) // TUNED_K
            effort["pre_reorder_num_neighbors"] = min(candidates, len(self))
        if self.stats["mode"] == "partitioned":
            effort["leaves_to_search"] = self.stats["leaves_to_search"]
        rows, scores = self._searcher.search_batched_parallel(
            queries, final_num_neighbors=k, **effort
        )
        scores = np.clip(scores, -1, 1) if self.metric == "cosine" else np.minimum(0.0 - scores, 0)
        return rows.astype(np.int64), scores

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows, scores = self._approximate(queries, k)
        order = np.lexsort((rows, -scores))
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        # The leaves that were searched may hold fewer than k items.
        short = np.isnan(scores).any(axis=1)
        if short.any():
            rows[short], scores[short] = super()._nearest(queries[short], k)
        return rows, scores

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        # It writes the same dataset.npy once more.
        self._searcher.serialize(str(folder), relative_path=True)


def build_index(
    embeddings: npt.ArrayLike,
    ids: Ids,
    recall_target: float = 0.95,
    metric: str = "cosine",
    queries: npt.ArrayLike | None = None,
) -> BruteForceIndex | ScannIndex:
    """A `ScannIndex`, or with a warning a `BruteForceIndex` where ScaNN is not installed.

    Arguments and errors as for `ScannIndex.build`, without its `ImportError`.

    >>> len(build_index(np.eye(3), [10, 20, 30]))
    3
    """
    try:
        _import_scann()
    except ImportError as error:
        warnings.warn(f"{error} and is used instead: exact, but slower", stacklevel=2)
        return BruteForceIndex.build(embeddings, ids, metric)
    return ScannIndex.build(embeddings, ids, recall_target, metric, queries)


def load_index(directory: str | os.PathLike) -> BruteForceIndex | ScannIndex:
    """Open a saved index, after checking that it is whole; the embeddings stay on disk.

    Nothing in the folder is unpickled: it must hold exactly the files of its manifest, and only
    such as an index has, before ScaNN reads any. A `ScannIndex` is opened as a `BruteForceIndex`,
    with a warning, where ScaNN is not installed.

    Args:
        directory: what `save` wrote, wherever it was moved since.

    Raises:
        ValueError: there is no index, or it is damaged, or of a newer version of mmret_tf.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> BruteForceIndex.build(np.eye(2), ["007", "红"]).save(folder)
    >>> load_index(folder).search([0, 1], k=1)[0].tolist()
    [['红']]
    """
    directory = Path(directory)
    manifest = read_manifest(directory, FORMAT, VERSION)
    kind, metric, stats = (manifest.get(name) for name in ("class", "metric", "stats"))
    if kind not in ("BruteForceIndex", "ScannIndex") or metric not in METRICS:
        raise ValueError(f"{directory} is damaged: class {kind!r}, metric {metric!r}")
    vectors = open_array(directory / "dataset.npy", (manifest.get("n"), manifest.get("dim")))
    try:
        ids = _checked_ids(json.loads((directory / "ids.json").read_bytes()), len(vectors))
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{directory} is damaged: ids.json, {error}") from None
    if kind == "BruteForceIndex":
        return BruteForceIndex(vectors, ids, metric)

    if foreign := sorted(set(manifest["files"]) - SCANN_FILES - {"ids.json"}):
        raise ValueError(f"{directory} holds {foreign[0]!r}, which no index has")
    assets = directory / "scann_assets.pbtxt"
    if not assets.is_file() or not ASSETS.fullmatch(assets.read_text(encoding="utf-8")):
        raise ValueError(f"{directory} is damaged: scann_assets.pbtxt names other files")
    if not _is_sound(stats):
        raise ValueError(f"{directory} is damaged: stats are {stats!r}")
    try:
        scann = _import_scann()
    except ImportError as error:
        warnings.warn(f"{error} and is used instead: exact, but slower", stacklevel=2)
        return BruteForceIndex(vectors, ids, metric)
    try:
        searcher = scann.load_searcher(str(directory))
    except RuntimeError as error:
        raise ValueError(f"{directory} is damaged: ScaNN says {error}") from None
    if searcher.size() != len(vectors):
        raise ValueError(
            f"{directory} is damaged: {len(vectors)} embeddings, {searcher.size()} items in ScaNN"
        )
    return ScannIndex(vectors, ids, metric, searcher, stats)


def _import_scann() -> Any:
    """ScaNN's module of NumPy functions; ImportError, in one line, where it does not load."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except Exception as error:  # beside another TensorFlow it is TensorFlow's NotFoundError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportError(
            f"ScaNN cannot be imported ({reason}); BruteForceIndex works without it"
        ) from error
    return scann_ops_pybind


def _is_sound(stats: Any) -> bool:
    """Whether numbers that a file holds may be given to ScaNN."""
    if not isinstance(stats, dict) or stats.get("mode") not in ("exact", "hashed", "partitioned"):
        return False
    needed = {"exact": [], "hashed": ["reorder"]}.get(
        stats["mode"], ["reorder", "leaves", "leaves_to_search"]
    )
    return all(type(stats.get(name)) is int and 0 < stats[name] < 2**31 for name in needed)


def _checked_items(
    embeddings: npt.ArrayLike, ids: Ids, metric: str
) -> tuple[np.ndarray, list, str]:
    """What an index is built from, checked and copied."""
    if metric not in METRICS:
        raise ValueError(f'metric must be "cosine" or "euclidean"; got {metric!r}')
    vectors = _checked_rows(embeddings, "embeddings", metric)
    return vectors, _checked_ids(ids, len(vectors)), metric


def _checked_queries(queries: npt.ArrayLike, dim: int, metric: str) -> np.ndarray:
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


def _checked_ids(ids: Ids, n: int) -> list:
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

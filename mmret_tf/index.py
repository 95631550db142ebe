"""Approximate nearest neighbours (近似最近邻检索): search that stays fast on large galleries.

`ScannIndex` is ScaNN (arXiv 1908.10396), tuned to a recall; `build_index` and `load_index` fall
back to exact search, and say so, where ScaNN is not installed. Sections 4.3 and 7.2.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.brute_force import (
    FORMAT,
    MARGIN,
    METRICS,
    VERSION,
    BruteForceIndex,
    Ids,
    Index,
    checked_ids,
    checked_items,
    checked_queries,
)
from mmret_tf.folders import open_array, read_manifest

# Below the first, exact search is as fast as any other; below the second, a tree gains nothing.
EXACT_BELOW = 20_000
HASHED_BELOW = 100_000

# Recall is measured at this k, on at most this many queries.
TUNED_K = 10
TUNED_QUERIES = 200

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


class ScannIndex(Index):
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
        vectors, ids, metric = checked_items(embeddings, ids, metric)
        n, dim = vectors.shape
        if queries is not None:
            queries = checked_queries(queries, dim, metric)
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
            chosen = checked_queries(chosen + 0.1 * noise, self.dim, self.metric)
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

    def effort(self, k: int) -> dict[str, int]:
        """How widely ScaNN searches for k items: the arguments of its search functions."""
        effort = {}
        if self.stats["mode"] != "exact":
            candidates = self.stats["reorder"] * max(k, TUNED_K) // TUNED_K
            effort["pre_reorder_num_neighbors"] = min(candidates, len(self))
        if self.stats["mode"] == "partitioned":
            effort["leaves_to_search"] = self.stats["leaves_to_search"]
        return effort

    def tensors(self) -> list:
        """What ScaNN has learnt, as its TensorFlow op takes it (see `scann_ops.ScannState`)."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._searcher.serialize(name, relative_path=True)

            def proto(name: str) -> list[bytes] | str:
                path = folder / f"{name}.pb"
                return [path.read_bytes()] if path.exists() else ""

            def array(name: str, missing: np.generic) -> np.ndarray | np.generic:
                path = folder / f"{name}.npy"
                return np.load(path, allow_pickle=False) if path.exists() else missing

            return [
                proto("scann_config"),
                proto("serialized_partitioner"),
                array("datapoint_to_token", np.int32(0)),
                proto("ah_codebook"),
                array("hashed_dataset", np.uint8(0)),
                np.int8(0),  # int8 vectors, their scales and norms: not used by `build`
                np.float32(0),
                np.float32(0),
                np.asarray(self.vectors),
            ]

    def _approximate(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What ScaNN finds: rows and scores `[n_queries, k]`, NaN where it found fewer than k."""
        rows, scores = self._searcher.search_batched_parallel(
            queries, final_num_neighbors=k, **self.effort(k)
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
        ids = checked_ids(json.loads((directory / "ids.json").read_bytes()), len(vectors))
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

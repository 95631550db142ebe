"""Approximate nearest neighbours (近似最近邻搜索): search that stays fast on large galleries.

`ScannIndex` is ScaNN (arXiv 1908.10396), tuned to a recall. ScaNN is imported when an index is
built or opened. Section 8.3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import Ids, checked_count, checked_queries
from mmret_tf._files import open_array
from mmret_tf.ranking.index import Index
from mmret_tf.ranking.indexes.scann_engine import (
    EXACT_BELOW,
    Goal,
    ScannConfig,
    ScannEngine,
    make_builder,
    sample,
)
from mmret_tf.ranking.indexes.scann_files import (
    build_searcher,
    import_scann,
    open_searcher,
    tensors,
)
from mmret_tf.ranking.indexes.snapshot import Segment, Snapshot, checked_segment
from mmret_tf.ranking.indexes.tuning import silent

# From this many items on, twice as many leaves are worth the time of choosing among them.
MANY = 200_000

# Time limit for finding faster settings, once the target is reached.
TUNING_SECONDS = 30.0


class ScannIndex(Index):
    """Approximate search with ScaNN (近似最近邻), tuned to a recall. Section 8.3, arXiv 1908.10396.

    Made by `build`, or opened by `load_index`.

    Args:
        snapshot: The items, with their engine.
        goal: The goal of tuning.
        config: The user's settings, if any.

    >>> index = ScannIndex.build(np.eye(4), ["a", "b", "c", "d"])
    >>> index.search([0, 3, 0, 0], k=1)[0].tolist(), index.stats["mode"]
    ([['b']], 'exact')
    >>> rows = np.random.default_rng(0).normal(size=(1000, 16))
    >>> index = ScannIndex.build(rows, range(1000), 0.9, config=ScannConfig(leaves=10), seconds=0.1)
    >>> index.stats["mode"], index.stats["recall"] >= 0.9, sorted(index.effort(k=5))
    ('partitioned', True, ['leaves_to_search', 'pre_reorder_num_neighbors'])
    >>> index.tune(recall_target=0.5, seconds=0.1)
    >>> index.stats["recall_target"]
    0.5
    """

    def __init__(self, snapshot: Snapshot, goal: Goal, config: ScannConfig | None):
        super().__init__(snapshot)
        self._goal = goal
        self._config = config

    @classmethod
    def build(
        cls,
        embeddings: npt.ArrayLike,
        ids: Ids,
        recall_target: float = 0.95,
        queries: npt.ArrayLike | None = None,
        k: int = 10,
        metric: str = "cosine",
        *,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        config: ScannConfig | None = None,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
        kth: np.ndarray | None = None,
    ) -> "ScannIndex":
        """Index some embeddings in the way that suits their number.

        Fewer than 5,000 are searched exactly, in about a tenth of a millisecond. More are
        partitioned into leaves; `tune` then finds how widely to search for the recall.

        Args:
            embeddings: Array `[n, dim]`; copied or left in its file, as by `BruteForceIndex.build`.
            ids: `[n]` different strings, or different integers.
            recall_target: Share of the k nearest items that searches find, above 0 and at most 1.
            queries: Array `[n_queries, dim]` to measure the recall on; 2,000 are drawn from more.
                Give embeddings of texts if texts are the queries: embeddings of images say little
                about them. By default embeddings of the gallery with noise are used, which are
                easier to find than real queries. Queries are saved for later tuning.
            k: Number of results that the recall is about.
            metric: "cosine" or "euclidean".
            attributes: As for `BruteForceIndex.build`.
            config: Settings of ScaNN, which is then used for any number of items.
            seconds: Time limit for finding faster settings, once the target is reached.
            progress: Is told each step, in one line; `print`, for example.
            kth: `[n_queries, 1]`, for a part of a larger gallery: the score of the whole's k-th
                nearest item for each query. The recall is then that of the whole.

        Raises:
            ValueError: As for `BruteForceIndex.build`; or the target is out of range, or there are
                too few items for the config.
            ImportError: ScaNN cannot be imported; `build_index` then searches exactly.
        """
        import_scann()
        items = checked_segment(embeddings, ids, metric, attributes)
        queries = _checked_sample(queries, items.vectors.shape[1], metric)
        goal = Goal(recall_target, k, queries, kth)
        if config and len(items) < (least := config.fewest_items):
            raise ValueError(f"this config needs {least} items; got {len(items)}: leave it out")
        index = cls(Snapshot.of(items), goal, config)
        index._snapshot = Snapshot.of(items, index.prepare(items, seconds, progress))
        return index

    @property
    def _scann(self) -> ScannEngine | None:
        """The engine, unless the search is exact."""
        return self.engine if isinstance(self.engine, ScannEngine) else None

    @property
    def stats(self) -> dict[str, Any]:
        """How the index searches, with measurements.

        - "mode": "exact" or "partitioned".
        - "recall".

        If the search is approximate, also:

        - "recall_target", and "k", which the recall is about.
        - "measured_on": "queries" or "perturbed embeddings"; "n_measured", their number.
        - "queries_per_second" in a batch; "single_query_ms", the median of one at a time.
        - "leaves", "leaves_to_search", and "reorder", the number of candidates scored again.
        """
        return dict(self._scann.stats) if self._scann else super().stats

    def tune(
        self,
        recall_target: float | None = None,
        queries: npt.ArrayLike | None = None,
        k: int | None = None,
        *,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
    ) -> None:
        """Measure again how widely to search, without building again. Searches go on meanwhile.

        For several numbers of candidates, the fewest leaves that reach the target are found, with
        one standard error (标准误差) to spare; the fastest of these pairs is taken. An item that
        scores as high as the k-th nearest counts as found. Exact search has nothing to tune.

        Args:
            recall_target: As for `build`; unchanged by default, as are the next two.
            queries: As for `build`.
            k: As for `build`.
            seconds: As for `build`.
            progress: As for `build`.

        Raises:
            ValueError: As for `build`.
        """
        with self._change:
            queries = _checked_sample(queries, self.dim, self.metric)
            given = {"recall_target": recall_target, "k": k, "queries": queries}
            given = {name: value for name, value in given.items() if value is not None}
            goal = replace(self._goal, kth=None, **given) if given else self._goal
            if engine := self._scann:
                engine = engine.tuned(goal, seconds, progress)
                self._snapshot = replace(self._snapshot, engine=engine)
            self._goal = goal

    def effort(self, k: int) -> dict[str, int]:
        """How widely ScaNN searches for k items.

        Args:
            k: Number of results.

        Returns:
            Arguments of ScaNN's search functions: "pre_reorder_num_neighbors" and
            "leaves_to_search"; `{}` if the search is exact.
        """
        if not (engine := self._scann):
            return {}
        leaves_to_search, reorder = astuple(engine.setting(k))
        return {"leaves_to_search": leaves_to_search, "pre_reorder_num_neighbors": max(reorder, k)}

    def tensors(self) -> list:
        """ScaNN's state as its TensorFlow op takes it, for an export.

        Returns:
            Arrays and protobuf messages, the `[n, dim]` embeddings among them.

        Raises:
            ValueError: The index was changed since it was built.
        """
        snapshot = self._snapshot
        if len(snapshot.fresh) or snapshot.n_dead:
            raise ValueError("the index was changed: call its rebalance() before exporting it")
        vectors, engine = snapshot.base.vectors, snapshot.engine
        if isinstance(engine, ScannEngine):
            return tensors(engine.searcher, vectors)
        measure = "dot_product" if self.metric == "cosine" else "squared_l2"
        builder = import_scann().builder(vectors, 10, measure).score_brute_force()
        return tensors(build_searcher(builder), vectors)

    def prepare(
        self,
        items: Segment,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
    ) -> ScannEngine | Segment:
        """Train and tune ScaNN; a gallery that is searched exactly is its own engine.

        Args:
            items: The rows.
            seconds: As for `build`.
            progress: As for `build`.
        """
        config = self._config
        if config is None and len(items) >= EXACT_BELOW:
            leaves = round(len(items) ** 0.5) * (2 if len(items) >= MANY else 1)
            config = ScannConfig(leaves)
        if config is None or len(items) < config.fewest_items:  # after deletes
            return items
        return ScannEngine.train(items, config, progress).tuned(self._goal, seconds, progress)

    def write(self, folder: Path) -> dict[str, Any]:
        engine, queries = self._scann, self._goal.queries
        if engine:
            # Writes dataset.npy as well, with the same content as ours.
            engine.searcher.serialize(str(folder), relative_path=True)
        if queries is not None:
            np.save(folder / "queries.npy", queries, allow_pickle=False)
        return {
            "recall_target": self._goal.recall_target,
            "k": self._goal.k,
            "n_queries": 0 if queries is None else len(queries),
            "config": self._config and asdict(self._config),
            "stats": engine and engine.stats,
        }

    @classmethod
    def read(cls, folder: Path, manifest: Mapping[str, Any], snapshot: Snapshot) -> "ScannIndex":
        import_scann()
        n_queries, dim = manifest["n_queries"], manifest["dim"]
        queries = open_array(folder / "queries.npy", (n_queries, dim)) if n_queries else None
        goal = Goal(manifest["recall_target"], manifest["k"], queries)
        config, stats = manifest["config"], manifest["stats"]
        config = None if config is None else ScannConfig(**config)
        if stats is None:
            return cls(snapshot, goal, config)
        for name in ("k", "leaves_to_search", "reorder"):
            checked_count(stats[name], name)
        base, config_used = snapshot.base, config or ScannConfig(stats["leaves"])
        leaves = config_used.leaves
        builder = make_builder(base, leaves)
        searcher = open_searcher(folder, builder, *base.vectors.shape, leaves)
        if searcher.size() != len(base):
            raise ValueError(f"{len(base)} embeddings, but {searcher.size()} items in ScaNN")
        engine = ScannEngine(base, config_used, searcher, stats)
        return cls(replace(snapshot, engine=engine), goal, config)


def _checked_sample(queries: npt.ArrayLike | None, dim: int, metric: str) -> np.ndarray | None:
    """Checked queries to tune on."""
    return None if queries is None else sample(checked_queries(queries, dim, metric))

"""Approximate nearest neighbours (近似最近邻检索): search that stays fast on large galleries.

`ScannIndex` is ScaNN (arXiv 1908.10396), tuned to a recall; `build_index` and `load_index` fall
back to exact search, and say so, where ScaNN is not installed. Sections 4.3 and 7.2.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.brute_force import FORMAT, VERSION, BruteForceIndex, Index
from mmret_tf.checks import Ids, checked_queries
from mmret_tf.exact import METRICS
from mmret_tf.folders import open_array, read_manifest
from mmret_tf.scann_engine import (
    EXACT_BELOW,
    SCANN_FILES,
    TUNED_QUERIES,
    Goal,
    ScannConfig,
    ScannEngine,
    import_scann,
    tensors,
    threads,
)
from mmret_tf.segments import Segment, Snapshot, checked_segment, read_snapshot

FILES = {"ids.json", "attributes.json", "dataset.npy", "fresh.npy", "queries.npy"}


# From so many items on, twice as many leaves are worth the time that it takes to find them.
MANY = 200_000

# How long tuning may look for something faster, once it has reached the target.
TUNING_SECONDS = 30.0


def silent(line: str) -> None:
    """Report no progress."""


class ScannIndex(Index):
    """Approximate search with ScaNN (近似最近邻), tuned to a recall. Section 7.2, arXiv 1908.10396.

    Made by `build`, or read by `load_index`; they give the constructor its `snapshot`, the `goal`
    of tuning and the `config`. Changes and files are as those of `BruteForceIndex`.

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
        self._config = config  # what the user gave

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
    ) -> ScannIndex:
        """Index some embeddings in the way that fits their number.

        Fewer than 5,000 are searched exactly, which takes a tenth of a millisecond or so. More are
        partitioned into leaves, and the search is made as wide as the recall needs, and no
        wider, by trying it: see `tune`.

        Args:
            embeddings: `[n, dim]`; copied, or left in their file, as `BruteForceIndex.build` says.
            ids: `[n]` different strings, or different integers.
            recall_target: the share of the k nearest that searches are to find, above 0 and up to
                1.
            queries: `[n_queries, dim]` to measure recall on; of more than 2,000 some are drawn.
                Best embeddings of texts: where texts are the queries, embeddings of images say
                little. Without them, embeddings of the gallery with some noise are taken, which are
                found more easily than queries are. They are kept, and saved, for the next tuning.
            k: how many answers the recall is about.
            metric: "cosine" or "euclidean".
            attributes: as for `BruteForceIndex.build`.
            config: how ScaNN is to be set up, whatever the number of items.
            seconds: how long tuning may look for something faster, once it has reached the target.
            progress: is told what is being done, a line each; `print`, for example.

        Raises:
            ValueError: as for `BruteForceIndex.build`, or a target that is no share.
            ImportError: ScaNN is not installed; see `build_index`.
        """
        import_scann()
        items = checked_segment(embeddings, ids, metric, attributes)
        goal = Goal(recall_target, k, some_queries(queries, items.vectors.shape[1], metric))
        if config and len(items) < config.fewest_items:
            raise ValueError(
                f"this config needs {config.fewest_items} items, for its leaves and for ScaNN's "
                f"codes; got {len(items)}: leave it out, and they are searched exactly"
            )
        index = cls(Snapshot.of(items), goal, config)
        index._snapshot = index._rebuilt(items, seconds, progress)
        return index

    @property
    def stats(self) -> dict[str, Any]:
        """How the index searches, and what was measured.

        "mode": "exact", "hashed" (by a `ScannConfig` without leaves) or "partitioned"; "recall".
        Where the search is approximate also "recall_target"; "k", which the recall is about;
        "measured_on" ("queries" or "perturbed embeddings") and how many, "n_measured";
        "queries_per_second" in a batch of these; "single_query_ms", the median of one at a time;
        the number of "leaves", of "leaves_to_search", and of candidates to "reorder".
        """
        engine = self._snapshot.engine
        return dict(engine.stats) if engine else super().stats

    def tune(
        self,
        recall_target: float | None = None,
        queries: npt.ArrayLike | None = None,
        k: int | None = None,
        *,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
    ) -> None:
        """Measure anew how widely to search, without building anew. Searches go on meanwhile.

        For each number of candidates to score again, the fewest leaves that reach the target are
        found, with one standard error (标准误差) to spare for the queries to come, and the fastest
        of these pairs is taken. An item that scores as high as the k-th nearest counts as found. An
        exact index has nothing to tune.

        Args:
            recall_target: see `build`; by default, like the others, as it was.
            queries: see `build`.
            k: see `build`.
            seconds: see `build`.
            progress: see `build`.

        Raises:
            ValueError: as for `build`.
        """
        with self._change:
            snapshot, goal = self._snapshot, self._goal
            goal = Goal(
                goal.recall_target if recall_target is None else recall_target,
                goal.k if k is None else k,
                goal.queries if queries is None else some_queries(queries, self.dim, self.metric),
            )
            if snapshot.engine:
                engine = snapshot.engine.tuned(goal, seconds, progress)
                with self._exchange:
                    self._snapshot = replace(snapshot, engine=engine)
            self._goal = goal

    def effort(self, k: int) -> dict[str, int]:
        """How widely ScaNN searches for k items.

        Args:
            k: how many.

        Returns:
            Arguments of ScaNN's search functions, "pre_reorder_num_neighbors" and perhaps
            "leaves_to_search"; `{}` where the search is exact.
        """
        engine = self._snapshot.engine
        if not engine:
            return {}
        setting = engine.setting(k)
        effort = {"pre_reorder_num_neighbors": max(setting.reorder, k)}
        if engine.config.leaves:
            effort["leaves_to_search"] = setting.leaves_to_search
        return effort

    def tensors(self) -> list:
        """What ScaNN has learnt of the items, as its TensorFlow op takes it; for an export.

        Returns:
            TensorFlow tensors, the `[n, dim]` embeddings among them.

        Raises:
            ValueError: the index was changed since it was built, or that op cannot do the same.
        """
        snapshot = self._snapshot
        if len(snapshot.fresh) or snapshot.n_dead:
            raise ValueError("the index was changed: call its rebalance() before exporting it")
        vectors, engine = snapshot.base.vectors, snapshot.engine
        if not engine:
            measure = "dot_product" if self.metric == "cosine" else "squared_l2"
            builder = import_scann().builder(vectors, 10, measure).score_brute_force()
            return tensors(builder.set_n_training_threads(threads()).build(), vectors)
        if engine.config.soar_lambda or engine.config.reorder_dtype != "float32":
            raise ValueError(
                "ScaNN's TensorFlow op knows neither soar_lambda nor a reorder_dtype of fewer "
                'digits: build the index without them, or export with index="brute_force"'
            )
        return tensors(engine.searcher, vectors)

    def _rebuilt(
        self,
        items: Segment,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
    ) -> Snapshot:
        config = self._config
        if config is None and len(items) >= EXACT_BELOW:
            width = items.vectors.shape[1]
            leaves = round(len(items) ** 0.5) * (2 if len(items) >= MANY else 1)
            config = ScannConfig(leaves=leaves, dimensions_per_block=min(2, width))
        if config is None or len(items) < config.fewest_items:  # after deletes
            return Snapshot.of(items)
        engine = ScannEngine.train(items, config, progress)
        return Snapshot.of(items, engine.tuned(self._goal, seconds, progress))

    def _description(self) -> dict[str, Any]:
        goal, engine = self._goal, self._snapshot.engine
        return {
            "recall_target": goal.recall_target,
            "k": goal.k,
            "n_queries": 0 if goal.queries is None else len(goal.queries),
            "config": self._config and asdict(self._config),
            "engine": engine and {"config": asdict(engine.config), "stats": engine.stats},
        }

    def _write_more(self, folder: Path) -> None:
        if engine := self._snapshot.engine:
            # Among others its dataset.npy, once more.
            engine.searcher.serialize(str(folder), relative_path=True)
        if self._goal.queries is not None:
            np.save(folder / "queries.npy", self._goal.queries, allow_pickle=False)


def build_index(
    embeddings: npt.ArrayLike,
    ids: Ids,
    recall_target: float = 0.95,
    queries: npt.ArrayLike | None = None,
    k: int = 10,
    metric: str = "cosine",
    **options: Any,
) -> BruteForceIndex | ScannIndex:
    """A `ScannIndex`, or with a warning a `BruteForceIndex` where ScaNN is not installed. Section
    3.1(5) and 7.2.

    Args:
        embeddings, ids, recall_target, queries, k, metric: as for `ScannIndex.build`.
        options: its others: `attributes`, `config`, `seconds`, `progress`.

    Raises:
        ValueError: as for `ScannIndex.build`.

    >>> index = build_index(np.eye(3), [10, 20, 30])
    >>> index.search([0, 0, 1], k=2)[0].tolist()
    [[30, 10]]
    """
    try:
        import_scann()
    except ImportError as error:
        warnings.warn(f"{error} and is used instead: exact, but slower", stacklevel=2)
        return BruteForceIndex.build(embeddings, ids, metric, options.get("attributes"))
    return ScannIndex.build(embeddings, ids, recall_target, queries, k, metric, **options)


def load_index(directory: str | os.PathLike) -> BruteForceIndex | ScannIndex:
    """Open a saved index, after checking that it is whole; embeddings stay on disk. Section 7.2.

    Nothing in the folder is unpickled: it must hold exactly the files of its manifest, and only
    such as an index has, before ScaNN reads any. A `ScannIndex` is opened as a `BruteForceIndex`,
    with a warning, where ScaNN is not installed.

    Args:
        directory: what `save` wrote, wherever it was moved since.

    Raises:
        ValueError: there is no index, or it is damaged, or of another version of mmret_tf.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> BruteForceIndex.build(np.eye(2), ["007", "红"]).save(folder)
    >>> load_index(folder).search([0, 1], k=1)[0].tolist()
    [['红']]
    """
    directory, manifest = read_manifest(Path(directory), FORMAT, VERSION)
    if foreign := sorted(set(manifest["files"]) - SCANN_FILES - FILES):
        raise ValueError(f"{directory} holds {foreign[0]!r}, which no index has")
    kind, metric = manifest.get("class"), manifest.get("metric")
    if kind not in ("BruteForceIndex", "ScannIndex") or metric not in METRICS:
        raise ValueError(f"{directory} is damaged: class {kind!r}, metric {metric!r}")
    try:
        n, n_fresh, dim = (manifest[name] for name in ("n", "n_fresh", "dim"))
        snapshot = read_snapshot(directory, n, n_fresh, dim, metric)
        if kind == "BruteForceIndex":
            return BruteForceIndex(snapshot)
        queries = None
        if manifest["n_queries"]:
            queries = open_array(directory / "queries.npy", (manifest["n_queries"], dim))
        goal = Goal(manifest["recall_target"], manifest["k"], queries)
        config, engine = manifest["config"], manifest["engine"]
        config = None if config is None else ScannConfig(**config)
        import_scann()
        if engine is not None:
            engine = ScannEngine.load(
                directory, snapshot.base, ScannConfig(**engine["config"]), engine["stats"]
            )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise ValueError(f"{directory} is damaged: {reason}") from None
    except ImportError as error:
        warnings.warn(f"{error} and is used instead: exact, but slower", stacklevel=2)
        return BruteForceIndex(snapshot)
    return ScannIndex(replace(snapshot, engine=engine), goal, config)


def some_queries(queries: npt.ArrayLike | None, dim: int, metric: str) -> np.ndarray | None:
    """What to tune on, checked: all, or of many some."""
    if queries is None:
        return None
    queries = checked_queries(queries, dim, metric)
    order = np.random.default_rng(0).permutation(len(queries))
    return queries[np.sort(order[:TUNED_QUERIES])]  # a copy

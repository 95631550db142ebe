"""ScaNN (arXiv 1908.10396) over the rows of an index: training, tuning and search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._checks import checked_count, checked_queries
from mmret_tf.ranking.indexes.scann_files import build_searcher, import_scann, open_searcher
from mmret_tf.ranking.indexes.tuning import Setting, Trial, fastest_setting
from mmret_tf.ranking.snapshot import Found, Segment
from mmret_tf.similarity.nearest import MARGIN, ranked

# Fewer rows are searched exactly, in about a tenth of a millisecond.
EXACT_BELOW = 5_000

# Fewer allowed rows are searched exactly: ScaNN's candidates would include too few of them.
SELECTIVE = 20_000

# Recall is measured on this many queries at most.
TUNED_QUERIES = 2000

# Rows per leaf that the centres of leaves are learnt from. With fewer, centres are worse and more
# leaves must be searched.
LEAF_SAMPLE = 250

# Rows that codes are learnt from. More do not improve them, but take memory.
CODE_SAMPLE = 20_000

REORDER_DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class ScannConfig:
    """Settings of ScaNN (arXiv 1908.10396) that are fixed instead of chosen. Section 8.3.

    Attributes:
        leaves: Number of leaves that the gallery is partitioned into; None for no tree. The square
            root of the number of items is usually best, and twice that from 200,000 items on.
        leaves_to_search: Number of leaves that a search visits; None to tune it to the recall.
        reorder: Number of candidates that are scored again; None to tune it.
        reorder_dtype: Precision used for reordering: "float32", "bfloat16" (half the memory) or
            "int8" (a quarter). After the shorter ones, the best 2 k are scored once more with the
            float32 embeddings of the index.
        dimensions_per_block: Number of dimensions that share a code of four bits.
        anisotropic_threshold: Parameter of the paper's loss, which prefers errors across a vector
            to errors along it; None for the plain loss. Ignored for the metric "euclidean".
        soar_lambda: Weight of SOAR (arXiv 2404.00774), which puts each item into a second leaf;
            commonly 1.5, None for one leaf. It pays for high recall. Only for "cosine", and not for
            an export with `index="scann"`.

    Raises:
        ValueError: A value is out of range, or does not fit the others.

    >>> ScannConfig(leaves=300, leaves_to_search=400)
    Traceback (most recent call last):
    ValueError: leaves_to_search must be at most the number of leaves, 300; got 400
    """

    leaves: int | None = None
    leaves_to_search: int | None = None
    reorder: int | None = None
    reorder_dtype: str = "float32"
    dimensions_per_block: int = 2
    anisotropic_threshold: float | None = 0.2
    soar_lambda: float | None = None

    def __post_init__(self):
        for name in ("leaves", "leaves_to_search", "reorder"):
            if getattr(self, name) is not None:
                checked_count(getattr(self, name), name)
        checked_count(self.dimensions_per_block, "dimensions_per_block")
        if self.leaves is None and (self.leaves_to_search or self.soar_lambda):
            raise ValueError("leaves_to_search and soar_lambda need a tree: set leaves")
        if self.leaves_to_search and self.leaves_to_search > self.leaves:
            raise ValueError(
                f"leaves_to_search must be at most the number of leaves, {self.leaves}; "
                f"got {self.leaves_to_search}"
            )
        if self.reorder_dtype not in REORDER_DTYPES:
            raise ValueError(
                f"reorder_dtype must be one of {', '.join(REORDER_DTYPES)}; "
                f"got {self.reorder_dtype!r}"
            )
        for name in ("anisotropic_threshold", "soar_lambda"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name} must be a number above 0, or None; got {value!r}")

    @property
    def fewest_items(self) -> int:
        """Number of items that training needs: one for each leaf and each value of a code."""
        return max(self.leaves or 0, 16)


@dataclass(frozen=True)
class Goal:
    """The goal of tuning.

    Attributes:
        recall_target: Share of the nearest items that searches find, above 0 and at most 1.
        k: Number of nearest items.
        queries: `[n_queries, dim]` to measure on; None for the gallery's own rows with noise.
    """

    recall_target: float
    k: int
    queries: np.ndarray | None

    def __post_init__(self):
        target = self.recall_target
        if not (isinstance(target, int | float) and 0 < target <= 1):
            raise ValueError(f"recall_target must be above 0 and at most 1; got {target!r}")
        checked_count(self.k, "k")


@dataclass(frozen=True)
class ScannEngine:
    """ScaNN's searcher over a segment, with its settings.

    Attributes:
        base: The rows.
        config: How the searcher was trained.
        searcher: ScaNN's.
        stats: Measurements and the tuned settings, see `ScannIndex.stats`.
    """

    base: Segment
    config: ScannConfig
    searcher: Any
    stats: dict[str, Any]

    @classmethod
    def train(
        cls, base: Segment, config: ScannConfig, progress: Callable[[str], None]
    ) -> ScannEngine:
        """Partition and encode the rows; the engine still has to be tuned."""
        scann = import_scann()
        (n, dim), is_cosine = base.vectors.shape, base.metric == "cosine"
        if config.dimensions_per_block > dim:
            raise ValueError(
                f"dimensions_per_block must be at most the width, {dim}; "
                f"got {config.dimensions_per_block}"
            )
        if config.soar_lambda and not is_cosine:
            raise ValueError('soar_lambda is only for the metric "cosine"')
        builder = scann.builder(base.vectors, 10, "dot_product" if is_cosine else "squared_l2")
        if config.leaves:
            progress(f"partitioning {n:,} items into {config.leaves:,} leaves")
            # Leaves are chosen by the inner product with their centres. Spherical centres have one
            # length; plain means would be shorter for wider leaves, which would be missed.
            builder = builder.tree(
                config.leaves,
                1,
                training_sample_size=min(LEAF_SAMPLE * config.leaves, n),
                spherical=is_cosine,
                soar_lambda=config.soar_lambda,
            )
        threshold = config.anisotropic_threshold if is_cosine else None
        builder = builder.score_ah(
            config.dimensions_per_block,
            training_sample_size=CODE_SAMPLE,
            anisotropic_quantization_threshold=math.nan if threshold is None else threshold,
        )
        dtype = scann.scann_builder.ReorderType[config.reorder_dtype.upper()]
        return cls(base, config, build_searcher(builder.reorder(100, dtype)), {})

    @classmethod
    def load(
        cls, folder: Path, base: Segment, config: ScannConfig, stats: dict[str, Any]
    ) -> ScannEngine:
        """Open a saved engine.

        Raises:
            ValueError: The files are damaged, or do not match the rows.
            ImportError: ScaNN cannot be imported.
        """
        for name in ("k", "leaves_to_search", "reorder"):
            if checked_count(stats[name], name) >= 2**31:
                raise ValueError(f"{name} is {stats[name]}")
        searcher = open_searcher(folder)
        if searcher.size() != len(base):
            raise ValueError(f"{len(base)} embeddings, but {searcher.size()} items in ScaNN")
        return cls(base, config, searcher, stats)

    @property
    def leaves(self) -> int:
        """Number of leaves; 1 without a tree."""
        return self.config.leaves or 1

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """As `Segment.nearest`, but some of the best may be missed; the next best follow."""
        n = len(self.base)
        n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        if allowed is not None and n_allowed < SELECTIVE:
            return self.base.nearest(queries, k, allowed)
        k = min(k, n_allowed)
        wanted = k if allowed is None else math.ceil(1.2 * k * n / n_allowed) + 4
        return self._nearest(queries, k, min(wanted, n), allowed)

    def _nearest(
        self, queries: np.ndarray, k: int, wanted: int, allowed: np.ndarray | None
    ) -> Found:
        """The best k allowed rows among `wanted` candidates; ask for more if too few are allowed,
        and compare all rows in the end."""
        rows, scores = self.find(queries, wanted, self.setting(wanted))
        if allowed is not None:
            scores = np.where(allowed[rows], scores, -np.inf)
        if allowed is not None or (scores[:, 1:] == scores[:, :-1]).any():  # not in order
            order = np.lexsort((rows, -scores))
            rows = np.take_along_axis(rows, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
        rows, scores = rows[:, :k], scores[:, :k]
        short = scores[:, -1] == -np.inf
        if short.any():
            if 8 * wanted < len(self.base):
                again = self._nearest(queries[short], k, 4 * wanted, allowed)
            else:
                again = self.base.nearest(queries[short], k, allowed)
            rows[short], scores[short] = again
        return rows, scores

    def setting(self, k: int) -> Setting:
        """How widely to search for k results; wider if k is more than it was tuned for."""
        times = max(1.0, k / self.stats["k"])
        return Setting(
            min(math.ceil(self.stats["leaves_to_search"] * times**0.5), self.leaves),
            min(math.ceil(self.stats["reorder"] * times), len(self.base)),
        )

    def find(self, queries: np.ndarray, k: int, setting: Setting) -> Found:
        """ScaNN's results `[n_queries, k]`; missing ones have a score of minus infinity."""
        is_exact = self.config.reorder_dtype == "float32"
        n_found = k if is_exact else min(2 * k, len(self.base))
        rows, scores = self.searcher.search_batched_parallel(
            queries, n_found, max(setting.reorder, n_found), setting.leaves_to_search
        )
        missing = np.isnan(scores)
        if is_exact:
            scores = (
                np.clip(scores, -1, 1) if self.base.metric == "cosine" else np.minimum(-scores, 0)
            )
            scores[missing] = -np.inf
            return np.where(missing, 0, rows.astype(np.int64)), scores
        rows = np.where(missing, -1, rows.astype(np.int64))
        rows, scores = ranked(self.base.vectors, rows, queries, k, self.base.metric)
        return np.maximum(rows, 0), scores

    def tuned(self, goal: Goal, seconds: float, progress: Callable[[str], None]) -> ScannEngine:
        """The same searcher with the fastest settings that reach the goal; fixed ones stay."""
        fixed, n, k = self.config, len(self.base), min(goal.k, len(self.base))
        trial = self._trial(goal, k, progress)
        leaves = (fixed.leaves_to_search,) * 2 if fixed.leaves_to_search else (1, self.leaves)
        reorder = (fixed.reorder,) * 2 if fixed.reorder else (k, n)
        setting = fastest_setting(trial, leaves, reorder, seconds, progress)
        recall, _ = trial.recall(setting)
        if recall < goal.recall_target:
            warnings.warn(
                f"the recall at {k} is only {recall:.3f}, below the target of "
                f"{goal.recall_target}: set leaves_to_search or reorder of ScannConfig higher, or "
                "leave them out",
                stacklevel=4,
            )
        [batch_seconds] = trial.seconds([setting])
        stats = {
            "mode": "partitioned" if fixed.leaves else "hashed",
            "recall": recall,
            "recall_target": goal.recall_target,
            "k": k,
            "measured_on": "perturbed embeddings" if goal.queries is None else "queries",
            "n_measured": len(trial.queries),
            "queries_per_second": len(trial.queries) / batch_seconds,
            "single_query_ms": trial.single_query_ms(setting),
            "leaves": self.leaves,
            "leaves_to_search": setting.leaves_to_search,
            "reorder": setting.reorder,
        }
        return replace(self, stats=stats)

    def _trial(self, goal: Goal, k: int, progress: Callable[[str], None]) -> Trial:
        """Measurements against the exact results for the queries of a goal."""
        queries = self._perturbed_rows() if goal.queries is None else goal.queries
        progress(f"exact answers to {len(queries):,} queries")
        kth = self.base.nearest(queries, k)[1][:, -1:]
        # A score as high as the k-th, within rounding, counts as found: it may be the k-th.
        enough = kth - (1e-6 if self.base.metric == "cosine" else MARGIN * np.abs(kth))
        return Trial(
            lambda some, setting: self.find(some, k, setting), queries, enough, goal.recall_target
        )

    def _perturbed_rows(self) -> np.ndarray:
        """A sample of the rows with a tenth of noise, in place of queries."""
        rows, dim = sample(self.base.vectors), self.base.vectors.shape[1]
        noise = np.random.default_rng(1).standard_normal(rows.shape, np.float32) / dim**0.5
        noise *= np.linalg.norm(rows, axis=1, keepdims=True)
        return checked_queries(rows + 0.1 * noise, dim, self.base.metric)


def sample(rows: np.ndarray) -> np.ndarray:
    """A copy of all rows, or of `TUNED_QUERIES` random ones if there are more."""
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[np.sort(order[:TUNED_QUERIES])]

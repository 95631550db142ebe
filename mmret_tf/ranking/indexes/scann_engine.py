"""ScaNN (arXiv 1908.10396) over the rows of an index: training, tuning and search."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmret_tf._checks import checked_count, checked_queries
from mmret_tf.ranking.indexes.scann_files import DIMENSIONS_PER_CODE, build_searcher, import_scann
from mmret_tf.ranking.indexes.snapshot import Found, Segment
from mmret_tf.ranking.indexes.tuning import Setting, Trial, fastest_setting
from mmret_tf.similarity.nearest import MARGIN, best

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

# The paper's threshold, which prefers errors across a vector to errors along it.
ANISOTROPIC = 0.2


@dataclass(frozen=True)
class ScannConfig:
    """Settings of ScaNN (arXiv 1908.10396) that are fixed instead of chosen. Section 8.3.

    Attributes:
        leaves: Number of leaves that the gallery is partitioned into. The square root of the number
            of items is usually best, and twice that from 200,000 items on.
        leaves_to_search: Number of leaves that a search visits; None to tune it to the recall.
        reorder: Number of candidates that are scored again; None to tune it.

    Raises:
        ValueError: A value is out of range, or does not fit the others.

    >>> ScannConfig(leaves=300, leaves_to_search=400)
    Traceback (most recent call last):
    ValueError: leaves_to_search must be at most the number of leaves, 300; got 400
    """

    leaves: int
    leaves_to_search: int | None = None
    reorder: int | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value is not None or name == "leaves":
                checked_count(value, name)
        if (self.leaves_to_search or 1) > self.leaves:
            raise ValueError(
                f"leaves_to_search must be at most the number of leaves, {self.leaves}; "
                f"got {self.leaves_to_search}"
            )

    @property
    def fewest_items(self) -> int:
        """Number of items that training needs: one for each leaf and each value of a code."""
        return max(self.leaves, 16)


@dataclass(frozen=True)
class Goal:
    """The goal of tuning.

    Attributes:
        recall_target: Share of the nearest items that searches find, above 0 and at most 1.
        k: Number of nearest items.
        queries: `[n_queries, dim]` to measure on; None for the gallery's own rows with noise.
        kth: `[n_queries, 1]`, the score of the k-th nearest item of a larger gallery that these
            rows are a part of; None if they are the whole.
    """

    recall_target: float
    k: int
    queries: np.ndarray | None
    kth: np.ndarray | None = None

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
    ) -> "ScannEngine":
        """Partition and encode the rows; the engine still has to be tuned."""
        progress(f"partitioning {len(base):,} items into {config.leaves:,} leaves")
        return cls(base, config, build_searcher(make_builder(base, config.leaves)), {})

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, wider: int = 1
    ) -> Found:
        """As `Segment.nearest`, but some of the best may be missed; the next best follow.

        If too few candidates are allowed, more are asked for, and in the end all rows are compared.

        Args:
            queries: `[n_queries, dim]`, checked by `checked_queries`.
            k: Number of rows.
            allowed: bool `[n]`; all rows by default.
            wider: Factor for the number of candidates.
        """
        n = len(self.base)
        n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        wanted = k if n_allowed == n else math.ceil(1.2 * k * n / max(n_allowed, 1)) + 4
        wanted *= wider
        if n_allowed < min(SELECTIVE, n) or 2 * wanted > n:
            return self.base.nearest(queries, k, allowed)
        rows, scores = self.find(queries, wanted, self.setting(wanted))
        if allowed is not None:
            scores = np.where(allowed[rows], scores, -np.inf)
        if allowed is not None or (scores[:, 1:] == scores[:, :-1]).any():  # not in order
            rows, scores = best(rows, scores, k)
        rows, scores = rows[:, :k], scores[:, :k]
        short = scores[:, -1] == -np.inf
        if short.any():
            again = self.nearest(queries[short], k, allowed, 4 * wider)
            rows[short], scores[short] = again
        return rows, scores

    def setting(self, k: int) -> Setting:
        """How widely to search for k results; wider if k is more than it was tuned for."""
        times = max(1.0, k / self.stats["k"])
        return Setting(
            min(math.ceil(self.stats["leaves_to_search"] * times**0.5), self.config.leaves),
            min(math.ceil(self.stats["reorder"] * times), len(self.base)),
        )

    def find(self, queries: np.ndarray, k: int, setting: Setting) -> Found:
        """ScaNN's results `[n_queries, k]`; missing ones have a score of minus infinity."""
        rows, scores = self.searcher.search_batched_parallel(
            queries, k, max(setting.reorder, k), setting.leaves_to_search
        )
        missing = np.isnan(scores)
        is_cosine = self.base.metric == "cosine"
        scores = np.clip(scores, -1, 1) if is_cosine else np.minimum(-scores, 0)
        scores[missing] = -np.inf
        return np.where(missing, 0, rows.astype(np.int64)), scores

    def tuned(self, goal: Goal, seconds: float, progress: Callable[[str], None]) -> "ScannEngine":
        """The same searcher with the fastest settings that reach the goal; fixed ones stay."""
        fixed, n, k = self.config, len(self.base), min(goal.k, len(self.base))
        queries = perturbed_rows(self.base) if goal.queries is None else goal.queries
        progress(f"exact answers to {len(queries):,} queries")
        scores = self.base.nearest(queries, k)[1]
        kth, wanted = scores[:, -1:], None
        if goal.kth is not None:  # fewer than k of the whole's nearest are here
            kth = goal.kth
            wanted = np.sum(scores >= enough_of(kth, self.base.metric), axis=1)
        enough = enough_of(kth, self.base.metric)
        trial = Trial(
            lambda some, setting: self.find(some, k, setting),
            queries,
            enough,
            goal.recall_target,
            wanted,
        )
        leaves = (fixed.leaves_to_search or 1, fixed.leaves_to_search or fixed.leaves)
        reorder = (fixed.reorder or k, fixed.reorder or n)
        setting = fastest_setting(trial, leaves, reorder, seconds, progress)
        recall, _ = trial.recall(setting)
        if recall < goal.recall_target:
            warnings.warn(
                f"the recall at {k} is only {recall:.3f}, below the target of "
                f"{goal.recall_target}: set ScannConfig's leaves_to_search or reorder higher",
                stacklevel=4,
            )
        stats = {
            "mode": "partitioned",
            "recall": recall,
            "recall_target": goal.recall_target,
            "k": k,
            "measured_on": "perturbed embeddings" if goal.queries is None else "queries",
            "n_measured": len(queries),
            "queries_per_second": len(queries) / trial.seconds(setting),
            "single_query_ms": 1e3 * trial.seconds(setting, single=True),
            "leaves": fixed.leaves,
            **asdict(setting),
        }
        return replace(self, stats=stats)


def enough_of(kth: np.ndarray, metric: str) -> np.ndarray:
    """The score that counts as found: within rounding, an item with it may be the k-th."""
    return kth - (1e-6 if metric == "cosine" else MARGIN * np.abs(kth))


def perturbed_rows(items: Segment) -> np.ndarray:
    """A sample of the rows with a tenth of noise, in place of queries."""
    rows, dim = sample(items.vectors), items.vectors.shape[1]
    noise = np.random.default_rng(1).standard_normal(rows.shape, np.float32) / dim**0.5
    noise *= np.linalg.norm(rows, axis=1, keepdims=True)
    return checked_queries(rows + 0.1 * noise, dim, items.metric)


def make_builder(base: Segment, leaves: int) -> Any:
    """ScaNN's builder of a searcher over a segment."""
    (n, dim), is_cosine = base.vectors.shape, base.metric == "cosine"
    measure = "dot_product" if is_cosine else "squared_l2"
    builder = import_scann().builder(base.vectors, 10, measure)
    # Leaves are chosen by the inner product with their centres. Spherical centres have one length;
    # plain means would be shorter for wider leaves, which would be missed.
    sample_size = min(LEAF_SAMPLE * leaves, n)
    builder = builder.tree(leaves, 1, training_sample_size=sample_size, spherical=is_cosine)
    builder = builder.score_ah(
        min(DIMENSIONS_PER_CODE, dim),
        training_sample_size=CODE_SAMPLE,
        anisotropic_quantization_threshold=ANISOTROPIC if is_cosine else math.nan,
    )
    return builder.reorder(100)


def sample(rows: np.ndarray) -> np.ndarray:
    """A copy of all rows, or of `TUNED_QUERIES` random ones if there are more."""
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[np.sort(order[:TUNED_QUERIES])]

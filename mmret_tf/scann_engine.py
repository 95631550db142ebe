"""ScaNN (arXiv 1908.10396) over the rows of a segment: set up, tuned, asked, saved."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf.checks import checked_count, checked_queries
from mmret_tf.exact import MARGIN, ranked
from mmret_tf.segments import Found, Segment
from mmret_tf.tuning import Setting, Trial, fastest_setting

# Below so many rows all can be compared in a tenth of a millisecond or so.
EXACT_BELOW = 5_000

# So few allowed rows are compared, one by one: what ScaNN finds would hold few of them.
SELECTIVE = 20_000

# Recall is measured on at most so many queries.
TUNED_QUERIES = 2000

# The centre of a leaf is learnt from so many rows; from fewer it is a worse one, and more leaves
# must be searched.
LEAF_SAMPLE = 250

# Codes are learnt from so many rows; more make no better codes, and each takes memory.
CODE_SAMPLE = 20_000

REORDER_DTYPES = ("float32", "bfloat16", "int8")

# What ScaNN writes. Its item ids, a pickle, are not among them: they stand in ids.json.
SCANN_FILES = {
    "scann_config.pb",
    "scann_assets.pbtxt",
    "hashed_dataset.npy",
    "hashed_dataset_soar.npy",
    "ah_codebook.pb",
    "serialized_partitioner.pb",
    "datapoint_to_token.npy",
    "bfloat16_dataset.npy",
    "int8_dataset.npy",
    "int8_multipliers.npy",
    "dp_norms.npy",
}
ASSETS = re.compile(r'(assets \{\n  asset_type: \w+\n  asset_path: "\w+\.(npy|pb)"\n\}\n)+')


@dataclass(frozen=True)
class ScannConfig:
    """How ScaNN (arXiv 1908.10396) is set up, for those who want to say it themselves. Section 7.2.

    Attributes:
        leaves: into which the gallery is partitioned; None for no tree. The root of the number of
            items is most often best, from 200,000 items on twice as many.
        leaves_to_search: how many of them a search looks into; None to tune it to the recall.
        reorder: how many candidates are scored again for `k` answers; None to tune it.
        reorder_dtype: with what digits: "float32", "bfloat16" or "int8". The shorter ones take half
            and a quarter of the memory; the last of all, twice k, are scored with all digits from
            the index's own embeddings.
        dimensions_per_block: of the codes, four bits a block.
        anisotropic_threshold: of the paper's loss, which prefers errors across a vector to errors
            along it; None for the plain loss. Not used for the metric "euclidean".
        soar_lambda: puts each item into a second leaf, chosen by SOAR (arXiv 2404.00774), commonly
            with 1.5; None for no second leaf. Pays for high recall. Not for "euclidean", nor to be
            exported with `index="scann"`.

    Raises:
        ValueError: a number that is none, or that does not fit the others.

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
            raise ValueError("leaves_to_search and soar_lambda need a tree: say how many leaves")
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
        """One a leaf, and one a value of a code."""
        return max(self.leaves or 0, 16)


@dataclass(frozen=True)
class Goal:
    """What an index is tuned to: the share `recall_target` of the `k` nearest to queries as
    `queries` `[n_queries, dim]`; None for the gallery's own rows, with some noise."""

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
    """ScaNN's searcher over a segment, and how it is to be asked.

    Attributes:
        base: the rows.
        config: how the searcher was set up.
        searcher: ScaNN's.
        stats: what was measured, and with what setting; see `ScannIndex.stats`.
    """

    base: Segment
    config: ScannConfig
    searcher: Any
    stats: dict[str, Any]

    @classmethod
    def train(
        cls,
        base: Segment,
        config: ScannConfig,
        progress: Callable[[str], None],
    ) -> ScannEngine:
        """Partition and encode the rows; the engine is still to be tuned."""
        scann = import_scann()
        (n, dim), metric = base.vectors.shape, base.metric
        if config.dimensions_per_block > dim:
            raise ValueError(
                f"dimensions_per_block must be at most the width, {dim}; "
                f"got {config.dimensions_per_block}"
            )
        if config.soar_lambda and metric == "euclidean":
            raise ValueError('soar_lambda is for the metric "cosine" alone')
        measure = "dot_product" if metric == "cosine" else "squared_l2"
        builder = scann.builder(base.vectors, 10, measure)
        if config.leaves:
            progress(f"partitioning {n:,} items into {config.leaves:,} leaves")
            # Leaves are chosen by the inner product with their centres, which must be of one length
            # too: the mean of a leaf is the shorter, the wider the leaf is.
            builder = builder.tree(
                config.leaves,
                1,
                training_sample_size=min(LEAF_SAMPLE * config.leaves, n),
                spherical=metric == "cosine",
                soar_lambda=config.soar_lambda,
            )
        threshold = config.anisotropic_threshold if metric == "cosine" else None
        builder = builder.score_ah(
            config.dimensions_per_block,
            training_sample_size=CODE_SAMPLE,
            anisotropic_quantization_threshold=math.nan if threshold is None else threshold,
        )
        builder = builder.reorder(
            100, scann.scann_builder.ReorderType[config.reorder_dtype.upper()]
        )
        searcher = builder.set_n_training_threads(threads()).build()
        searcher.set_num_threads(threads())
        return cls(base, config, searcher, {})

    @property
    def leaves(self) -> int:
        """Of the tree; 1 where there is none."""
        return self.config.leaves or 1

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """As `Segment.nearest`, but some of the best may be missed, and others take their place."""
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
        """The best k that are allowed, of `wanted`; where they lack, of more, at last of all."""
        rows, scores = self.find(queries, wanted, self.setting(wanted))
        if allowed is not None:
            scores = np.where(allowed[rows], scores, -np.inf)
        if allowed is not None or (scores[:, 1:] == scores[:, :-1]).any():  # else it is sorted
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
        """How widely to search for k answers: wider for more than it was tuned to."""
        times = max(1.0, k / self.stats["k"])
        return Setting(
            min(math.ceil(self.stats["leaves_to_search"] * times**0.5), self.leaves),
            min(math.ceil(self.stats["reorder"] * times), len(self.base)),
        )

    def find(self, queries: np.ndarray, k: int, setting: Setting) -> Found:
        """What ScaNN finds, `[n_queries, k]`; where it found fewer, scores of minus infinity."""
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
        """The same searcher, asked with what reaches the goal soonest; what was given stays."""
        queries = self._perturbed_rows() if goal.queries is None else goal.queries
        k, recall_target = min(goal.k, len(self.base)), goal.recall_target
        progress(f"exact answers to {len(queries):,} queries")
        kth = self.base.nearest(queries, k)[1][:, -1:]
        # What scores as high as the k-th counts as found: it may be the k-th.
        enough = kth - (1e-6 if self.base.metric == "cosine" else MARGIN * np.abs(kth))
        trial = Trial(
            lambda some, setting: self.find(some, k, setting), queries, enough, recall_target
        )
        given, n = self.config, len(self.base)
        leaves = (given.leaves_to_search,) * 2 if given.leaves_to_search else (1, self.leaves)
        reorder = (given.reorder,) * 2 if given.reorder else (k, n)
        if leaves[0] == leaves[1] and reorder[0] == reorder[1]:
            setting = Setting(leaves[0], reorder[0])
        else:
            setting = fastest_setting(trial, leaves, reorder, seconds, progress)
        recall, _ = trial.recall(setting)
        [batch] = trial.seconds([setting])
        single = []
        for query in queries[:200, None]:
            started = time.perf_counter()
            self.find(query, k, setting)
            single.append(time.perf_counter() - started)
        if recall < recall_target:
            warnings.warn(
                f"recall {recall:.3f} at {k} is all that was reached of {recall_target}: give "
                "ScannConfig more leaves_to_search or reorder, or leave them out",
                stacklevel=4,
            )
        stats = {
            "mode": "partitioned" if self.config.leaves else "hashed",
            "recall": recall,
            "recall_target": recall_target,
            "k": k,
            "measured_on": "perturbed embeddings" if goal.queries is None else "queries",
            "n_measured": len(queries),
            "queries_per_second": len(queries) / batch,
            "single_query_ms": 1e3 * float(np.median(single)),
            "leaves": self.leaves,
            "leaves_to_search": setting.leaves_to_search,
            "reorder": setting.reorder,
        }
        return replace(self, stats=stats)

    def _perturbed_rows(self) -> np.ndarray:
        """Rows with a tenth of noise, where no queries were given."""
        random = np.random.default_rng(0)
        n, dim = self.base.vectors.shape
        rows = self.base.vectors[np.sort(random.permutation(n)[:TUNED_QUERIES])]
        noise = random.standard_normal(rows.shape, np.float32) / dim**0.5
        noise *= np.linalg.norm(rows, axis=1, keepdims=True)
        return checked_queries(rows + 0.1 * noise, dim, self.base.metric)

    @classmethod
    def load(
        cls, folder: Path, base: Segment, config: ScannConfig, stats: dict[str, Any]
    ) -> ScannEngine:
        """Open ScaNN's files, without ScaNN's own loader, which unpickles ids.

        Raises:
            ValueError: what the files hold is not what ScaNN may be given.
            ImportError: ScaNN is not installed.
        """
        path = folder / "scann_assets.pbtxt"
        assets = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not ASSETS.fullmatch(assets):
            raise ValueError(f"{folder} is damaged: scann_assets.pbtxt names other files")
        for name in ("k", "leaves_to_search", "reorder"):
            if checked_count(stats[name], name) >= 2**31:
                raise ValueError(f"{folder} is damaged: {name} is {stats[name]}")
        scann = import_scann()
        try:
            searcher = scann.ScannSearcher(scann.scann_pybind.ScannNumpy(str(folder), assets))
        except RuntimeError as error:
            raise ValueError(f"{folder} is damaged: ScaNN says {error}") from None
        if searcher.size() != len(base):
            raise ValueError(
                f"{folder} is damaged: {len(base)} embeddings, {searcher.size()} items in ScaNN"
            )
        searcher.set_num_threads(threads())
        return cls(base, config, searcher, stats)


def tensors(searcher: Any, vectors: np.ndarray) -> list:
    """What ScaNN has learnt, as its TensorFlow op takes it (see `scann_ops.ScannState`)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        searcher.serialize(name, relative_path=True)

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
            np.int8(0),  # int8 vectors, their scales and norms: `ScannIndex` exports none
            np.float32(0),
            np.float32(0),
            np.asarray(vectors),
        ]


def threads() -> int:
    """How many threads this process may use at once."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, where ScaNN is
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def import_scann() -> Any:
    """ScaNN's module of NumPy functions; ImportError, in one line, where it does not load."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except Exception as error:  # beside another TensorFlow it is TensorFlow's NotFoundError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportError(
            f"ScaNN cannot be imported ({reason}); BruteForceIndex works without it"
        ) from error
    return scann_ops_pybind

"""The fastest settings of ScaNN for a recall (召回率), found by measurement.

Two numbers decide: how many leaves of the tree are searched, and how many candidates are scored
again with full precision. More of either finds more and takes longer. For each number of candidates
there is a smallest number of leaves that reaches the target; one such pair is fastest.
"""

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmret_tf.ranking.indexes.snapshot import Found

# Each setting is timed this often; the median counts.
ROUNDS = 5

# Queries that are timed one at a time.
SINGLE_QUERIES = 200

# Stop when fewer candidates make searches slower than the fastest by this factor.
SLOWER = 1.5

# With this many candidates for each result, anything missed is missed by the leaves.
GENEROUS = 50


def silent(line: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Setting:
    """How widely ScaNN searches.

    Attributes:
        leaves_to_search: Number of leaves that are searched.
        reorder: Number of candidates from these leaves that are scored again.
    """

    leaves_to_search: int
    reorder: int


class Trial:
    """Measures recall and time of settings, on queries with known exact results.

    Args:
        find: From queries `[n, dim]` and a setting to rows and scores `[n, k]`.
        queries: `[n, dim]`.
        enough: `[n, 1]`, the score that an item needs to be among the k best.
        target: The recall to reach, with one standard error (标准误差) to spare.
        wanted: `[n]`, the number of items with such a score; by default k.
    """

    def __init__(
        self,
        find: Callable[[np.ndarray, Setting], Found],
        queries: np.ndarray,
        enough: np.ndarray,
        target: float,
        wanted: np.ndarray | None = None,
    ):
        self.find, self.queries, self.target = find, queries, target
        self.enough, self.wanted = enough, wanted

    def recall(self, setting: Setting) -> tuple[float, float]:
        """Share of the k best that is found, and its standard error over the queries."""
        is_found = self.find(self.queries, setting)[1] >= self.enough
        found = is_found.sum(axis=1)
        wanted = np.full(len(found), is_found.shape[1]) if self.wanted is None else self.wanted
        if not (total := wanted.sum()):  # of a part of a gallery: the best are all in the others
            return 1.0, 0.0
        recall = found.sum() / total
        deviations = found - recall * wanted
        return float(recall), float(deviations.std() * len(deviations) ** 0.5 / total)

    def is_enough(self, setting: Setting) -> bool:
        """Whether the setting reaches the target with one standard error to spare."""
        recall, error = self.recall(setting)
        return recall - error >= self.target

    def seconds(self, setting: Setting, single: bool = False) -> float:
        """Median seconds for a batch of all queries, or for a single query."""
        batches = self.queries[:SINGLE_QUERIES, None] if single else [self.queries] * ROUNDS
        times = []
        for queries in batches:
            started = time.perf_counter()
            self.find(queries, setting)
            times.append(time.perf_counter() - started)
        return float(np.median(times))


def fastest_setting(
    trial: Trial,
    leaves: tuple[int, int],
    reorder: tuple[int, int],
    seconds: float,
    progress: Callable[[str], None] = silent,
) -> Setting:
    """The fastest setting that reaches the target; the widest of all if none does.

    The search starts with many candidates, which shows how few leaves can be enough. Fewer
    candidates then need more leaves, until these take longer than the candidates save.

    Args:
        trial: Measures settings.
        leaves: Smallest and largest number of leaves to search.
        reorder: Smallest and largest number of candidates.
        seconds: Time limit; it applies once a setting has reached the target.
        progress: Is told about each setting, in one line.
    """
    started = time.monotonic()
    candidates = min(GENEROUS * reorder[0], reorder[1])
    while (fewest := fewest_leaves(trial, candidates, leaves)) is None:
        if candidates == reorder[1]:
            return Setting(leaves[1], reorder[1])
        candidates = min(4 * candidates, reorder[1])
    times: dict[Setting, float] = {}
    while fewest is not None:
        setting = Setting(fewest, candidates)
        times[setting] = trial.seconds(setting)
        speed = len(trial.queries) / times[setting]
        progress(f"{fewest} leaves, {candidates} candidates: {speed:,.0f} queries a second")
        limit = SLOWER * min(times.values())
        is_late = time.monotonic() - started > seconds
        if is_late or candidates == reorder[0] or times[setting] > limit:
            break
        candidates = max(candidates * 5 // 6, reorder[0])
        fewest = fewest_leaves(trial, candidates, (fewest, leaves[1]), limit)
    best = min(times, key=times.get)
    fewest = bisect.bisect_left(
        range(best.reorder),
        True,
        reorder[0],
        key=lambda count: trial.is_enough(Setting(best.leaves_to_search, count)),
    )
    return Setting(best.leaves_to_search, fewest)


def fewest_leaves(
    trial: Trial, reorder: int, leaves: tuple[int, int], limit: float = np.inf
) -> int | None:
    """The fewest leaves that reach the target with a number of candidates.

    Args:
        trial: Measures settings.
        reorder: Number of candidates.
        leaves: Smallest and largest number of leaves.
        limit: Seconds; the search ends when one measurement takes longer.

    Returns:
        None if no number of leaves within the limit reaches the target.
    """
    low, high = leaves[0], leaves[0]
    started = time.perf_counter()
    while not trial.is_enough(Setting(high, reorder)):
        if high == leaves[1] or time.perf_counter() - started > limit:
            return None
        low, high = high + 1, min(2 * high, leaves[1])
        started = time.perf_counter()
    return bisect.bisect_left(
        range(high), True, low, key=lambda count: trial.is_enough(Setting(count, reorder))
    )

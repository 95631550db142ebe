"""The fastest settings of ScaNN for a recall (召回率), found by measurement.

Two numbers decide: how many leaves of the tree are searched, and how many candidates are scored
again with full precision. More of either finds more and takes longer. For each number of candidates
there is a smallest number of leaves that reaches the target; one such pair is fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmret_tf.ranking.snapshot import Found

# Each setting is timed this often; the median counts.
ROUNDS = 5

# Queries that are timed one at a time.
SINGLE_QUERIES = 200

# Stop after this many steps to fewer candidates that each made searches slower by a tenth.
PATIENCE, TOLERANCE = 3, 1.1

# With this many candidates for each result, anything missed is missed by the leaves.
GENEROUS = 50


def silent(line: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Setting:
    """How widely ScaNN searches.

    Attributes:
        leaves_to_search: Number of leaves that are searched; 1 without a tree.
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
    """

    def __init__(
        self,
        find: Callable[[np.ndarray, Setting], Found],
        queries: np.ndarray,
        enough: np.ndarray,
        target: float,
    ):
        self.find, self.queries, self.enough, self.target = find, queries, enough, target

    def recall(self, setting: Setting) -> tuple[float, float]:
        """Share of the k best that is found, and its standard error over the queries."""
        shares = np.mean(self.find(self.queries, setting)[1] >= self.enough, axis=1)
        return float(shares.mean()), float(shares.std() / len(shares) ** 0.5)

    def is_enough(self, setting: Setting) -> bool:
        """Whether the setting reaches the target with one standard error to spare."""
        recall, error = self.recall(setting)
        return recall - error >= self.target

    def seconds(self, settings: list[Setting]) -> list[float]:
        """Seconds for a batch of all queries; settings take turns, so a slow moment hits all."""
        rounds = np.empty((ROUNDS, len(settings)))
        for times in rounds:
            for column, setting in enumerate(settings):
                started = time.perf_counter()
                self.find(self.queries, setting)
                times[column] = time.perf_counter() - started
        return np.median(rounds, axis=0).tolist()

    def single_query_ms(self, setting: Setting) -> float:
        """Median milliseconds for one query at a time."""
        times = []
        for query in self.queries[:SINGLE_QUERIES, None]:
            started = time.perf_counter()
            self.find(query, setting)
            times.append(time.perf_counter() - started)
        return 1e3 * float(np.median(times))


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
    candidates = max(reorder[0], min(GENEROUS * reorder[0], reorder[1]))
    while (fewest := fewest_leaves(trial, candidates, leaves)) is None:
        if candidates == reorder[1]:
            return Setting(leaves[1], reorder[1])
        candidates = min(4 * candidates, reorder[1])
    best = Setting(fewest, candidates)
    [limit] = trial.seconds([best])
    slower = 0
    while candidates > reorder[0] and slower < PATIENCE:
        candidates = max(candidates * 5 // 6, reorder[0])
        fewest = fewest_leaves(trial, candidates, (best.leaves_to_search, leaves[1]), 2 * limit)
        if fewest is None or time.monotonic() - started > seconds:
            break
        setting = Setting(fewest, candidates)
        taken, limit = trial.seconds([setting, best])
        progress(
            f"{fewest} leaves, {candidates} candidates: "
            f"{len(trial.queries) / taken:,.0f} queries a second"
        )
        slower = slower + 1 if taken > TOLERANCE * limit else 0
        if taken < limit or fewest == best.leaves_to_search:  # or cheaper in any case
            best = setting
    fewest = _fewest(
        reorder[0] - 1,
        best.reorder,
        lambda middle: trial.is_enough(Setting(best.leaves_to_search, middle)),
    )
    return Setting(best.leaves_to_search, fewest)


def fewest_leaves(
    trial: Trial, reorder: int, leaves: tuple[int, int], limit: float = np.inf
) -> int | None:
    """The fewest leaves that reach the target with a number of candidates, within a twentieth.

    Args:
        trial: Measures settings.
        reorder: Number of candidates.
        leaves: Smallest and largest number of leaves.
        limit: Seconds; the search ends when one measurement takes longer.

    Returns:
        None if no number of leaves within the limit reaches the target.
    """
    low, high = leaves[0] - 1, leaves[0]
    started = time.perf_counter()
    while not trial.is_enough(Setting(high, reorder)):
        if high == leaves[1] or time.perf_counter() - started > limit:
            return None
        low, high = high, min(2 * high, leaves[1])
        started = time.perf_counter()
    return _fewest(low, high, lambda middle: trial.is_enough(Setting(middle, reorder)), 0.05)


def _fewest(low: int, high: int, is_enough: Callable[[int], bool], slack: float = 0.0) -> int:
    """The smallest number that is enough, to within a share of it; low is not enough, high is."""
    while high - low > max(1, slack * high):
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high

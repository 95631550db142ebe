"""How widely ScaNN must search for a recall (召回率), found by measurement: no more than it needs.

Two numbers decide: the leaves of the tree that are searched, and the candidates that are scored
again with all their digits. More of either finds more, and takes longer; for each number of
candidates there is a fewest number of leaves that reaches the target, and one such pair is fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmret_tf.segments import Found

# How often a setting is timed, to compare it with others; the middle one of the times counts.
ROUNDS = 5

# After so many steps to fewer candidates that made it slower, by a tenth or more, none will help.
PATIENCE, TOLERANCE = 3, 1.1

# With so many candidates for each answer, what is missed is missed by the leaves.
GENEROUS = 50


@dataclass(frozen=True)
class Setting:
    """`leaves_to_search` of the tree's leaves, 1 where there is no tree; of what they hold, the
    `reorder` best are scored again."""

    leaves_to_search: int
    reorder: int


class Trial:
    """Recall and time of settings, on queries whose right answers are known.

    Args:
        find: from queries `[n, dim]` and a setting to rows and scores `[n, k]`.
        queries: `[n, dim]`.
        enough: `[n, 1]`, the score that an item must have to be among the k best.
        target: the recall to be sure of: one standard error (标准误差) below what is measured.
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
        """The share of the k best that is found, and its standard error over the queries."""
        shares = np.mean(self.find(self.queries, setting)[1] >= self.enough, axis=1)
        return float(shares.mean()), float(shares.std() / len(shares) ** 0.5)

    def is_enough(self, setting: Setting) -> bool:
        """Whether the target is reached with one standard error to spare."""
        recall, error = self.recall(setting)
        return recall - error >= self.target

    def seconds(self, settings: list[Setting]) -> list[float]:
        """What all queries take together; settings take turns, so that a slow moment hits all."""
        rounds = np.empty((ROUNDS, len(settings)))
        for times in rounds:
            for column, setting in enumerate(settings):
                started = time.perf_counter()
                self.find(self.queries, setting)
                times[column] = time.perf_counter() - started
        return np.median(rounds, axis=0).tolist()


def fastest_setting(
    trial: Trial,
    leaves: tuple[int, int],
    reorder: tuple[int, int],
    seconds: float,
    progress: Callable[[str], None] = lambda line: None,
) -> Setting:
    """The fastest setting that is sure to reach the target; the widest of all if none does.

    Many candidates show how few leaves can be enough. With fewer and fewer candidates ever more
    leaves are needed, until that takes longer than it saves.

    Args:
        trial: measures them.
        leaves: the fewest and the most that may be searched.
        reorder: the fewest candidates and the most.
        seconds: after so long nothing more is tried, once a setting has reached the target.
        progress: is told what was tried.
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
        if taken < limit or fewest == best.leaves_to_search:  # fewer of one and more of none
            best = setting
    return Setting(best.leaves_to_search, fewest_candidates(trial, best, reorder[0]))


def fewest_candidates(trial: Trial, enough: Setting, fewest: int) -> int:
    """The fewest candidates, from `fewest` on, with which as many leaves are still enough."""
    low, high = fewest - 1, enough.reorder
    while high - low > 1:
        middle = (low + high) // 2
        if trial.is_enough(Setting(enough.leaves_to_search, middle)):
            high = middle
        else:
            low = middle
    return high


def fewest_leaves(
    trial: Trial, reorder: int, leaves: tuple[int, int], limit: float = np.inf
) -> int | None:
    """The fewest leaves that reach the target with so many candidates, to within a twentieth.

    Args:
        trial: measures them.
        reorder: the candidates.
        leaves: the fewest and the most that may be searched.
        limit: seconds; what takes longer is not looked for.

    Returns:
        None where no number of leaves reaches the target, or none within the limit.
    """
    low, high = leaves[0] - 1, leaves[0]
    started = time.perf_counter()
    while not trial.is_enough(Setting(high, reorder)):
        if high == leaves[1] or time.perf_counter() - started > limit:
            return None
        low, high = high, min(2 * high, leaves[1])
        started = time.perf_counter()
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        if trial.is_enough(Setting(middle, reorder)):
            high = middle
        else:
            low = middle
    return high

"""How widely ScaNN must search for a recall (召回率), found by measurement: no more than it needs.

Two numbers decide: the leaves of the tree that are searched, and the candidates that are scored
again with all their digits. More of either finds more, and takes longer; for each number of
candidates there is a fewest number of leaves that reaches the target, and one such pair is fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mmret_tf.segments import Found

# How often a setting is timed, to compare it with others; the middle one of the times counts.
ROUNDS = 5

# As many of the fastest settings are timed once more, in turns, to choose among them.
FINALISTS = 4

# After so many steps to more candidates that made nothing faster, none will.
PATIENCE = 3


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

    def sure_recall(self, setting: Setting) -> float:
        """The recall, less one standard error."""
        recall, error = self.recall(setting)
        return recall - error

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

    Args:
        trial: measures them.
        leaves: the fewest and the most that may be searched.
        reorder: the fewest candidates and the most.
        seconds: after so long nothing more is tried, once a setting has reached the target.
        progress: is told what was tried.
    """
    started = time.monotonic()
    tried: dict[Setting, float] = {}
    guess, since_best = max(leaves[0], leaves[1] // 100), 0
    for count in counts(*reorder):
        fewest = fewest_leaves(trial, count, leaves, guess)
        if fewest is not None:
            guess = fewest  # with more candidates, as many leaves are enough
            setting = Setting(fewest, count)
            best = min(tried.values(), default=np.inf)
            [tried[setting]] = trial.seconds([setting])
            progress(
                f"{fewest} leaves, {count} candidates: "
                f"{len(trial.queries) / tried[setting]:,.0f} queries a second"
            )
            since_best = 0 if tried[setting] < best else since_best + 1
        if tried and (since_best == PATIENCE or time.monotonic() - started > seconds):
            break
    if not tried:
        return Setting(leaves[1], reorder[1])
    finalists = sorted(tried, key=tried.get)[:FINALISTS]
    return finalists[int(np.argmin(trial.seconds(finalists)))]


def counts(fewest: int, most: int) -> Iterator[int]:
    """Numbers of candidates to try, each a quarter larger or so.

    >>> list(counts(10, 30))
    [10, 12, 15, 18, 22, 27, 30]
    """
    while fewest < most:
        yield fewest
        fewest += max(1, fewest // 4)
    yield most


def fewest_leaves(trial: Trial, reorder: int, leaves: tuple[int, int], guess: int) -> int | None:
    """The fewest leaves that reach the target with so many candidates, to within a twentieth.

    None where they cannot: each time the leaves are doubled there is less to be gained.

    Args:
        trial: measures them.
        reorder: the candidates.
        leaves: the fewest and the most that may be searched.
        guess: where to begin.
    """
    low, high, before = leaves[0] - 1, guess, -np.inf
    while (recall := trial.sure_recall(Setting(high, reorder))) < trial.target:
        if high == leaves[1] or 3 * (recall - before) < trial.target - recall:
            return None
        low, high, before = high, min(2 * high, leaves[1]), recall
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        if trial.sure_recall(Setting(middle, reorder)) < trial.target:
            low = middle
        else:
            high = middle
    return high

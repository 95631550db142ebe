"""Choice of drawn items: distinct combinations of a split, the same on every machine."""

import numbers
import random
from collections.abc import Sequence
from typing import Any

from mmret_tf.data.splits import SPLITS, hash_split


def choose_combinations(
    parts: Sequence[Any],
    shares: Sequence[float],
    split: str,
    size: int,
    generator: random.Random,
) -> list[tuple[Any, ...]]:
    """Different sequences of one or more parts, in random order.

    A hash of a sequence decides its split, see `hash_split`: none of the test occurs in training.

    Args:
        parts: What a sequence is made of, with a string form each; no part stands in it twice.
        shares: Share of the sequences that have one part, two parts and so on. Where a split has
            too few of a length, the next length makes up for it.
        split, size: Which, and their number.
        generator: Decides the choice.

    Raises:
        ValueError: The split has fewer sequences.

    >>> few = choose_combinations("abc", [0.5, 0.5], "train", 4, random.Random(0))
    >>> sorted(map(len, few))  # one part alone is in this split
    [1, 2, 2, 2]
    """
    chosen: list[tuple[Any, ...]] = []
    wanted = 0.0
    for length, share in enumerate(shares, 1):
        wanted += share * size
        numbers_of = range(len(parts) ** length)
        for number in generator.sample(numbers_of, len(numbers_of)):
            if len(chosen) >= round(wanted):
                break
            places = [number // len(parts) ** digit % len(parts) for digit in range(length)]
            sequence = tuple(parts[place] for place in places)
            is_new = len(set(places)) == length
            if is_new and hash_split(" | ".join(map(str, sequence))) == split:
                chosen.append(sequence)
    if len(chosen) < size:
        raise ValueError(
            f"size must be at most {len(chosen)}, the number of different ones in the split "
            f"{split!r}; got {size}"
        )
    generator.shuffle(chosen)
    return chosen


def check_request(split: str, size: int, seed: int) -> None:
    """Refuse an unknown split, and numbers out of range; ValueError.

    Args:
        split: "train", "dev" or "test".
        size: Number of items, at least 1.
        seed: 0 to 2**32 - 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if not isinstance(size, numbers.Integral) or size < 1:
        raise ValueError(f"size must be a whole number, at least 1; got {size!r}")
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; got {seed!r}")

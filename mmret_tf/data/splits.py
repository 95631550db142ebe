"""Train, dev and test (数据集划分): one name for each split, and who is in which.

Every loader goes by the same rules, so that nothing that a model was trained on tests it.
"""

from __future__ import annotations

import hashlib
from collections import Counter

SPLIT_ALIASES = {"val": "dev", "valid": "dev", "validation": "dev", "restval": "train"}


def normal_split(name: str) -> str:
    """One name for each split: train, dev and test. Any other name stays.

    >>> normal_split(" Validation"), normal_split("extra")
    ('dev', 'extra')
    """
    name = name.strip().lower()
    return SPLIT_ALIASES.get(name, name)


def hash_split(record_id: str) -> str:
    """80 % train, 10 % dev, 10 % test: the same for an id on each machine and in each order."""
    digest = hashlib.sha256(record_id.encode("utf-8", "surrogatepass")).digest()
    return (*["train"] * 8, "dev", "test")[int.from_bytes(digest, "big") % 10]


def rows_of_split(splits: list[str], name: str, kind: str) -> list[int]:
    """The rows of one split, by any of its names; `kind` is what a row is, for the message.

    Raises:
        ValueError: there are none; the message names the splits that there are.

    >>> rows_of_split(["train", "dev", "train"], "train", "images")
    [0, 2]
    """
    name = normal_split(name)
    rows = [row for row, split in enumerate(splits) if split == name]
    if not rows:
        raise ValueError(f"no {kind} of split {name!r}; there are {count_splits(splits)}")
    return rows


def count_splits(splits: list[str]) -> str:
    """How many rows each split has, in words.

    >>> count_splits(["train", "train", ""])
    'train (2), no split (1)'
    """
    counts = Counter(splits)
    return ", ".join(f"{name or 'no split'} ({count})" for name, count in counts.items()) or "none"

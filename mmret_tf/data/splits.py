"""Train, dev and test (数据集划分): one name for each split, and a rule that assigns items to them.

All loaders share it, so no item is in the training split once and in the test split another time.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

SPLITS = ("train", "dev", "test")
SPLIT_ALIASES = {
    **dict.fromkeys(("training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "dev"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
}


def normal_split(name: str) -> str:
    """The name of a split in lower case; other names of train and dev are replaced.

    >>> normal_split(" Validation"), normal_split("extra")
    ('dev', 'extra')
    """
    name = name.strip().lower()
    return SPLIT_ALIASES.get(name, name)


def is_split(name: str) -> bool:
    """Whether a name is that of a split, by any of its names."""
    return normal_split(name) in SPLITS


def split_of_path(path: str) -> str | None:
    """The split that the first folder of a path names, `data/` aside; `None` if it names none.

    >>> split_of_path("validation/dogs/1.jpg"), split_of_path("data/test/1.jpg")
    ('dev', 'test')
    >>> split_of_path("dogs/train.jpg")
    """
    *folders, _ = path.removeprefix("data/").split("/")
    return normal_split(folders[0]) if folders and is_split(folders[0]) else None


def split_of_file(name: str) -> str | None:
    """The split with which the name of a file begins or ends, numbers and suffix aside.

    >>> split_of_file("train-00000-of-00002.parquet"), split_of_file("photos_val.tfrecord")
    ('train', 'dev')
    >>> split_of_file("0001.tar")
    """
    stem = re.sub(r"-\d+-of-\d+", "", name.lower().split(".")[0])
    words = re.findall("[a-z]+", stem)
    ends = (*words[:1], *words[-1:])
    return next((normal_split(word) for word in ends if is_split(word)), None)


def hash_split(record_id: str, shares: Sequence[str] = (*["train"] * 8, "dev", "test")) -> str:
    """The split of an id, the same on every machine.

    Args:
        record_id: The id.
        shares: Splits of equal shares: by default 80 % train, 10 % dev and 10 % test.

    >>> hash_split("b.png"), hash_split("b.png", ["dev", "test"])
    ('train', 'test')
    """
    digest = hashlib.sha256(record_id.encode("utf-8", "surrogatepass")).digest()
    return shares[int.from_bytes(digest, "big") % len(shares)]


def rows_of_split(splits: list[str], name: str, kind: str) -> list[int]:
    """The rows of one split.

    Args:
        splits: Split of each row.
        name: The split, by any of its names.
        kind: Plural noun for the rows, for the error message.

    Raises:
        ValueError: The split has no rows. The message lists the splits that exist.

    >>> rows_of_split(["train", "dev", "train"], "train", "images")
    [0, 2]
    """
    name = normal_split(name)
    rows = [row for row, split in enumerate(splits) if split == name]
    if not rows:
        raise ValueError(f"no {kind} of split {name!r}; there are {count_splits(splits)}")
    return rows


def count_splits(splits: list[str]) -> str:
    """The number of rows of each split, in words.

    >>> count_splits(["train", "train", ""])
    'train (2), no split (1)'
    """
    counts = Counter(splits)
    return ", ".join(f"{name or 'no split'} ({count})" for name, count in counts.items()) or "none"

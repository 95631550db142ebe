"""Names of splits, and the hash that decides where a collection names none."""

import hashlib
from collections import Counter

import pytest

from mmret_tf.data.splits import count_splits, hash_split, normal_split, rows_of_split


def test_every_split_has_one_name():
    names = [
        "train",
        "restval",
        "dev",
        "val",
        "valid",
        "validate",
        " Validation ",
        "TEST",
        "extra",
        "",
    ]
    expected = ["train", "train", *["dev"] * 5, "test", "extra", ""]
    assert [normal_split(name) for name in names] == expected


def test_the_hash_decides_the_same_forever():
    expected = {"1.jpg": "train", "2.jpg": "test", "3.jpg": "train", "12.jpg": "dev"}
    assert {name: hash_split(name) for name in expected} == expected
    number = int(hashlib.sha256("红.jpg".encode()).hexdigest(), 16) % 10
    assert hash_split("红.jpg") == ("train" if number < 8 else ("dev", "test")[number - 8])
    assert hash_split("\ud800") in ("train", "dev", "test")  # half a character


def test_the_hash_keeps_the_shares():
    counts = Counter(hash_split(f"{i}.jpg") for i in range(10_000))
    shares = [counts[split] for split in ("train", "dev", "test")]
    assert shares == pytest.approx([8000, 1000, 1000], rel=0.1)


def test_rows_and_counts_of_splits():
    splits = ["train", "dev", "", "dev"]
    assert rows_of_split(splits, "validation", "items") == [1, 3]
    assert count_splits(splits) == "train (1), dev (2), no split (1)"
    assert count_splits([]) == "none"
    with pytest.raises(
        ValueError, match=r"no pictures of split 'test'; there are train \(1\), dev"
    ):
        rows_of_split(splits, "test", "pictures")

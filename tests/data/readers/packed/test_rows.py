"""A row as an item: its columns, captions and attributes, whatever holds the row."""

import math

import numpy as np
import pytest

from mmret_tf.data.readers.packed.rows import add_item, plain, required_columns, texts_of
from mmret_tf.data.readers.reading import Reading, Record, TableForm
from mmret_tf.data.sources import InlineSource


@pytest.mark.parametrize(
    ("columns", "pictures", "expected"),
    [
        (["text", "image"], None, ("image", "text")),
        (["path", "caption"], None, ("path", "caption")),
        (["path", "caption"], [], (None, "caption")),
        (["image"], None, ("image", None)),
    ],
)
def test_columns_are_found_by_their_names(columns, pictures, expected):
    assert required_columns(TableForm(), columns, pictures) == expected


def test_columns_that_are_missing_are_asked_for():
    for form, columns in ((TableForm(), ["a", "b"]), (TableForm("photo"), ["image", "text"])):
        with pytest.raises(ValueError, match=f"no column of .* among {columns[0]}, {columns[1]}"):
            required_columns(form, columns)


def test_captions_and_values_of_every_form():
    assert texts_of(None) == [] and texts_of("a") == ["a"] and texts_of(["a", None]) == ["a"]
    assert texts_of([{"raw": "a"}, {"text": ["b", "红".encode()]}]) == ["a", "b", "红"]
    assert texts_of(np.array(["a"], object)) == ["a"] and texts_of(3) == [3]
    assert plain(np.int8(3)) == 3 and plain("红".encode()) == "红" and plain(b"\xff") == b"\xff"
    with pytest.raises(UnicodeDecodeError):
        texts_of(["a", b"caf\xe9"])


@pytest.fixture
def reading(tmp_path):
    return Reading(tmp_path, "a file")


def test_a_row_of_its_own_split_and_id(reading):
    others = {"id": None, "key": 7, "split": "val", "n": 2, "nan": math.nan, "list": [1]}
    source = InlineSource(b"x")
    record = Record("a/0", {}, "row 0", "train")
    add_item(reading, record, source, "a dog", others, ("id", "key"))
    assert reading.records == [record] and reading.source_of("row 0") is source
    assert (record.id, record.split, record.attributes) == ("7", "dev", {"n": 2})
    assert record.sources == {"image": ["row 0"], "text": ["a dog"]}


def test_a_row_without_them(reading):
    add_item(reading, Record("a/0", {}, "row 0", "train"), "a.png", None, {})
    (record,) = reading.records
    assert (record.id, record.split, record.sources) == ("a/0", "train", {"image": ["a.png"]})


@pytest.mark.parametrize("others", [{"split": 3}, {"id": b"\xff"}, {"id": [1]}])
def test_a_split_or_id_of_another_type_is_refused(others, reading):
    with pytest.raises(ValueError, match="must be a string"):
        add_item(reading, Record("a/0", {}, "row 0"), None, "x", others)
    assert reading.records == []

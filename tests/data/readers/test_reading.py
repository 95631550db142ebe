"""What readers share: records, rows that are set aside, and files that are not trusted."""

import json

import pytest
from conftest import draw, write

from mmret_tf.data import load_pairs
from mmret_tf.data.readers import reading as module
from mmret_tf.data.readers.reading import Reading, Record, get_field


@pytest.fixture
def reading(tmp_path):
    return Reading(tmp_path, "captions.txt")


def places_and_reasons(reading):
    return [(each.place, each.reason) for each in reading.problems]


def test_a_record_is_in_one_split():
    record = Record("a", {"image": ["a.png"], "text": ["x"]}, "line 1")
    assert record.paths == ["a.png"]  # a text is not a file
    for name, split in ((None, None), ("", None), (" Val ", "dev"), (None, "dev"), ("dev", "dev")):
        record.set_split(name)
        assert record.split == split
    with pytest.raises(ValueError, match="split 'test', but a is in 'dev' already"):
        record.set_split("test")


def test_rows_of_one_image_make_one_record(reading):
    reading.base = "Images"
    reading.add_row("line 1", " ./a.png ", "one", "train")
    reading.add_row("line 2", "a.png", "一")
    reading.add_row("line 3", "a.png", "lost", "test")
    reading.add_row("line 4", "b.png", split="dev")
    first, second = reading.records
    assert first.id == "a.png" and first.sources == {
        "image": ["Images/a.png"],
        "text": ["one", "一"],
    }
    assert (first.split, second.split, second.sources) == (
        "train",
        "dev",
        {"image": ["Images/b.png"]},
    )
    assert places_and_reasons(reading) == [
        ("line 3", "split 'test', but a.png is in 'train' already")
    ]
    assert reading.problems[0].record_id == "a.png"


def test_captions_that_cannot_be_used_are_set_aside_one_by_one(reading):
    record = Record("a", {}, "line 1")
    reading.add_texts(record, [" red ", None, "", " \t", 5, "\ud800", "蓝"], "line 1")
    assert record.sources == {"text": ["red", "蓝"]}
    assert [reason for _, reason in places_and_reasons(reading)] == [
        "a caption must be a string, got null",
        "empty caption",
        "empty caption",
        "a caption must be a string, got 5",
        "not valid Unicode: half a character (a lone surrogate)",
    ]


def test_only_what_a_row_can_cause_is_set_aside(reading):
    with pytest.raises(KeyError), reading.set_aside("line 1"):
        raise KeyError("a bug")
    with reading.set_aside("line 2"):
        json.loads("[" * 100_000)
    assert places_and_reasons(reading) == [("line 2", "JSON nested too deeply")]


def test_lines_that_are_not_utf8_are_set_aside(reading, tmp_path):
    file = tmp_path / "sub" / "captions.txt"
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbfone\ncaf\xe9\n\xe7\xba\xa2\r\nlast")
    assert list(reading.lines(file)) == [
        ("sub/captions.txt line 1", "one\n"),
        ("sub/captions.txt line 3", "红\r\n"),
        ("sub/captions.txt line 4", "last"),
    ]
    assert places_and_reasons(reading) == [("sub/captions.txt line 2", "not UTF-8: byte 0xe9 at 4")]


def test_lists_of_a_json_file(reading, tmp_path):
    file = write(tmp_path / "x.json", '{"images": [1, 2], "annotations": [3]}')
    assert reading.json_lists(file, "annotations", "images") == [
        [("x.json annotations[0]", 3)],
        [("x.json images[0]", 1), ("x.json images[1]", 2)],
    ]
    for text, message in (
        ("{", "not JSON: .* line 2 column 1"),
        ("[]", r"expected a JSON object, got \[\]"),
        ('{"images": 3}', "`images` must be a list, got 3"),
        ("[" * 100_000, "JSON nested too deeply"),
    ):
        with pytest.raises(ValueError, match="x.json: " + message):
            reading.json_lists(write(file, text), "images")


def test_captions_files_are_regular_files_of_the_folder_and_of_a_size_that_fits(
    reading, tmp_path, monkeypatch
):
    inside = write(tmp_path / "captions.txt", "abc")
    assert reading.read_bytes(inside) == b"abc\n"
    monkeypatch.setattr(module, "MAX_CAPTIONS_BYTES", 3)
    with pytest.raises(ValueError, match="captions.txt is not a file of at most 3 bytes"):
        reading.read_bytes(inside)
    with pytest.raises(ValueError, match="is not a file of at most 3 bytes"):
        reading.read_bytes(tmp_path)
    outside = write(tmp_path.parent / f"{tmp_path.name}.txt", "")
    (tmp_path / "link.txt").symlink_to(outside)
    with pytest.raises(ValueError, match="link.txt is a link that leads outside the collection"):
        reading.read_bytes(tmp_path / "link.txt")


def test_fields_have_a_type():
    row = {"a": "x", "b": 3, "c": None, "d": "", "e": []}
    assert get_field(row, "a", str) == "x" and get_field(row, "b", (str, int)) == 3
    assert get_field(row, "c", str, None) is None and get_field(row, "z", str, "y") == "y"
    for key, kind, message in (
        ("b", str, "`b` must be a string, got 3"),
        ("a", list, '`a` must be a list, got "x"'),
        ("a", dict, '`a` must be an object, got "x"'),
        ("e", (str, int), r"`e` must be a string or number, got \[\]"),
        ("c", str, "`c` must be a string, got null"),
        ("d", str, '`d` must be a string, got ""'),
    ):
        with pytest.raises(ValueError, match=message):
            get_field(row, key, kind)
    with pytest.raises(ValueError, match=r"expected a JSON object, got \[1\]"):
        get_field([1], "a", str)


@pytest.mark.parametrize(
    ("encoding", "form"),
    [
        ("utf-16", {}),
        ("utf-8-sig", {}),
        ("utf-16-le", {"encoding": "utf-16-le"}),
        ("gb18030", {"encoding": "gb18030"}),
        ("big5", {"encoding": "big5"}),
    ],
)
def test_captions_in_other_encodings(encoding, form, tmp_path):
    draw(tmp_path / "a.png", 9)
    (tmp_path / "captions.csv").write_bytes("image,caption\na.png,小狗\n".encode(encoding))
    assert load_pairs(tmp_path, **form).captions == [["小狗"]]


@pytest.mark.parametrize(
    ("encoding", "reason"), [("ascii", "is not in the encoding 'ascii'"), ("x", "encoding 'x'")]
)
def test_another_encoding_than_was_said_is_a_value_error(encoding, reason, tmp_path):
    draw(tmp_path / "a.png", 9)
    write(tmp_path / "captions.csv", "image,caption", "a.png,小狗")
    with pytest.raises(ValueError, match=f"captions.csv .*{reason}"):
        load_pairs(tmp_path, encoding=encoding)

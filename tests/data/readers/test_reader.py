"""Which reader reads a folder or a captions file, readers defined elsewhere, and errors."""

import dataclasses
import gc
import json

import pytest
from conftest import draw, load_quietly, write, write_jsonl

from mmret_tf.data.readers.reader import Reader, all_readers, read_layout
from mmret_tf.data.readers.reading import Record, TableForm
from mmret_tf.training.config import FORM

NAMES = ["JsonLines", "ImageFolder", "Csv", "ChineseCaptions", "AiChallenger"]
NAMES += ["Esc50", "AudioCaps", "Clotho", "Msvd", "MsrVtt", "Karpathy", "Coco"]
NAMES += ["Flickr8k", "AnyTable"]
NAMES += ["Shards", "Parquet", "TfRecords", "TuxPaint", "TextBeside", "Pictures"]


@pytest.fixture
def notes_reader():
    """A reader that the package does not know: a picture and its caption in each line."""

    class Notes(Reader):
        """name: caption."""

        names = ("*.notes",)
        precedence = 0.2

        def read(self, reading, file):
            for place, line in reading.lines(file):
                image, _, caption = line.partition(":")
                record = Record(image, {"image": [image]}, place)
                reading.records.append(record)
                reading.add_texts(record, [caption], place)

    yield "Notes"
    del Notes
    gc.collect()  # a class refers to itself: `__subclasses__` lists it until then


def test_readers_come_in_their_order():
    assert [reader.__name__ for reader in all_readers()] == NAMES


def test_a_reader_defined_elsewhere_is_found(notes_reader, tmp_path):
    assert [reader.__name__ for reader in all_readers()] == [NAMES[0], notes_reader, *NAMES[1:]]
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    write(tmp_path / "my.notes", "a.png: a dog", "b.png: 一只狗")
    for source in (tmp_path, tmp_path / "my.notes"):
        pairs = load_quietly(source)
        assert pairs.ids == ["a.png", "b.png"] and pairs.captions == [["a dog"], ["一只狗"]]
    write_jsonl(tmp_path, {"image": "a.png", "caption": "first"})
    assert load_quietly(tmp_path).captions == [["first"]]


def test_the_first_layout_that_is_found_is_read(tmp_path):
    row = {"filename": "a.png", "sentences": [{"raw": "from dataset_a.json"}]}
    found = []
    for name, lines in (
        ("a.txt", ["from a.txt"]),
        ("captions.txt", ["image,caption", "a.png,from captions.txt"]),
        ("dataset_a.json", [json.dumps({"images": [row]})]),
        ("captions.csv", ["image,caption", "a.png,from captions.csv"]),
        ("captions.jsonl", ['{"image": "a.png", "caption": "from captions.jsonl"}']),
    ):
        draw(tmp_path / "a.png")
        write(tmp_path / name, *lines)
        reading = read_layout(tmp_path)
        found.append((name, reading.records[0].sources["text"]))
        assert reading.source == (name if name != "a.txt" else tmp_path.name)
    assert all(texts == [f"from {name}"] for name, texts in found)


def test_a_captions_file_may_be_named_directly(tmp_path):
    draw(tmp_path / "a.png")
    row = '{"image": "a.png", "caption": "x"}'
    for file in (
        write(tmp_path / "mine.jsonl", row),
        write(tmp_path / "mine.csv", "image,caption", "a.png,x"),
        write(tmp_path / "captions.txt", "image,caption", "a.png,x"),
        write(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "x"}'),
    ):
        reading = read_layout(file)
        assert reading.folder == tmp_path and reading.source == file.name
        assert [record.id for record in reading.records] == ["a.png"]


def test_files_in_annotations_belong_to_the_folder_above(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    file = write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(content))
    reading = read_layout(file)
    assert reading.folder == tmp_path
    assert reading.records[0].sources == {"image": ["val2017/a.jpg"]}
    assert reading.records[0].split == "dev"


@pytest.mark.parametrize(
    "name",
    ["data/flickr8kzhc.caption.txt", "f30k/TextData/seg.flickr30kzhb.caption.txt"],
)
def test_folders_of_captions_belong_to_the_folder_above(name, tmp_path):
    draw(tmp_path / "Images" / "a.jpg")
    reading = read_layout(write(tmp_path / name, "a.jpg#zhc#0 一只狗"))
    assert reading.folder == tmp_path
    assert reading.records[0].sources == {"image": ["Images/a.jpg"], "text": ["一只狗"]}


def test_a_hash_splits_only_collections_without_splits(tmp_path):
    write_jsonl(tmp_path, {"id": "2.jpg", "caption": "x"}, {"id": "12.jpg", "caption": "x"})
    reading = read_layout(tmp_path)
    assert reading.is_hashed and [each.split for each in reading.records] == ["test", "dev"]
    write_jsonl(
        tmp_path, {"id": "2.jpg", "caption": "x"}, {"id": "1", "caption": "x", "split": "val"}
    )
    reading = read_layout(tmp_path)
    assert not reading.is_hashed and [each.split for each in reading.records] == ["", "dev"]


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "", "has none of the layouts known: captions.jsonl, .*; it holds nothing"),
        ({"a.txt": "", "x.md": ""}, "", "none of the layouts known: .*; it holds a.txt, x.md"),
        (
            {"a.csv": "image,text", "b.csv": "image,text"},
            "",
            r"several tables \(a.csv, b.csv\): give the path of one",
        ),
        (dict.fromkeys("abcdefg", ""), "", "it holds a, b, c, d, e, ...$"),
        ({"x.md": ""}, "x.md", "x.md has none of the layouts known"),
        ({"Caption.json": ""}, "", "holds Caption.json; Caption.json is close to captions.jsonl"),
        ({"metadata.json": ""}, "metadata.json", "; metadata.json is close to metadata.jsonl"),
        ({}, "nowhere", "there is no folder or captions file .*nowhere"),
        ({"dataset_a.json": "", "dataset_b.json": ""}, "", "several dataset_.*: give the path of"),
    ],
)
def test_what_is_not_a_collection_is_a_value_error_of_one_line(files, source, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_layout(tmp_path / source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "lines", "form"),
    [
        ("captions.jsonl", ['{"image": "a.png", "caption": "x"}'], {"caption_column": "caption"}),
        ("metadata.jsonl", ['{"file_name": "a.png", "text": "x"}'], {"image_column": "file_name"}),
        ("a.txt", ["x"], {"separator": ";"}),
        ("notes.md", ["x"], {"encoding": "gbk"}),
    ],
)
def test_a_form_that_does_not_apply_is_refused(name, lines, form, tmp_path):
    draw(tmp_path / "a.png")
    write(tmp_path / name, *lines)
    with pytest.raises(
        ValueError, match=f"{next(iter(form))} does not apply to .*, which is read by"
    ):
        read_layout(tmp_path, TableForm(**form))


def test_the_form_of_a_table_is_four_settings_of_a_run():
    assert [field.name for field in dataclasses.fields(TableForm)] == list(FORM)

"""TFRecord: features and file names, what is damaged in files, and pictures read where they are."""

import gzip
import io
import struct
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from collection_forms import make_example
from conftest import load_quietly
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import load
from mmret_tf.data.decoders.image import load_image
from mmret_tf.data.readers.packed import tfrecords as module


def png(level=128):
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def write_records(path, *records):
    """TensorFlow's own writer; a dict is written as an Example."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in records:
            writer.write(make_example(**each) if isinstance(each, dict) else each)
    return path


@pytest.mark.parametrize(
    "names",
    [
        {"picture": "image", "texts": "caption", "key": "id"},
        {"picture": "image/encoded", "texts": "image/caption", "key": "image/filename"},
        {"picture": "image", "texts": "captions", "key": "image/id"},
        {"picture": "image", "texts": "captions/text", "key": "id"},
    ],
)
def test_features_by_their_usual_names(names, tmp_path):
    features = {names["picture"]: png(), names["texts"]: ["a dog", "一只狗"], names["key"]: "7"}
    write_records(tmp_path / "a.tfrecord", {**features, "split": "val", "n": 3, "x": 0.5})
    items = load(tmp_path)
    assert items.ids == ["7"] and items.captions == [["a dog", "一只狗"]]
    assert items.splits == ["dev"] and items.attributes == [{"n": 3, "x": 0.5}]
    assert items.sources["image"][0][0].read() == png()


def test_unusual_features_are_named(tmp_path):
    write_records(tmp_path / "a.tfrecord", {"photo": png(), "words": "a dog", "image": "x"})
    items = load(tmp_path, image_column="photo", caption_column="words")
    assert items.captions == [["a dog"]] and items.attributes == [{"image": "x"}]
    with pytest.raises(ValueError, match="separator does not apply"):
        load(tmp_path, separator=";")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.tfrecord", "train"),
        ("val-00000-of-00002.tfrecords", "dev"),
        ("photos-test.tfrecord-00000-of-00001", "test"),
        ("train/0.tfrecord", "train"),
        ("data/validation.tfrecord", "dev"),
    ],
)
def test_names_of_files_and_folders_are_splits(name, split, tmp_path):
    file = write_records(tmp_path / name, {"image": png(), "caption": "x"})
    items = load(tmp_path)
    assert items.splits == [split] and items.ids == [f"{name}/0"]
    if "/" not in name:
        assert load(file).ids == items.ids


def test_text_alone_and_pictures_alone(tmp_path):
    write_records(tmp_path / "a.tfrecord", {"caption": "a note"}, {"image": png()})
    items = load(tmp_path)
    assert items.captions == [["a note"], []]
    assert [len(each) for each in items.sources["image"]] == [0, 1]


def test_bad_records_are_set_aside_alone(tmp_path):
    good = {"image": png(), "caption": "good"}
    bad = [b"\xff\xff", {"label": 3}, {**good, "caption": [b"x", b"caf\xe9"]}]
    bad += [{**good, "image": 3}, {**good, "image": [png(), png()]}, {**good, "image": "a.jpg"}]
    bad += [{**good, "image": png()[:-30]}, {**good, "caption": " "}]
    bad += [{**good, "id": "a.tfrecord/0"}]
    write_records(tmp_path / "a.tfrecord", good, *bad, {"image": b"", "caption": "x"}, good)
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a.tfrecord/0", "a.tfrecord/8", "a.tfrecord/11"]
    assert items.captions == [["good"], [], ["good"]]
    expected = {
        1: "not a tf.train.Example",
        2: "no column of images or captions among label",
        3: "not UTF-8: byte 0xe9 at 4",
        4: "`image` must hold the bytes of one encoded picture, got a int",
        5: "`image` must hold the bytes of one encoded picture, got 2 values",
        6: "not an image",
        7: "",
        8: "empty caption",
        9: "duplicate id or file",
        10: "empty file",
    }
    found = dict(items.quarantined)
    assert found.keys() == {f"a.tfrecord record {number}" for number in expected}
    for number, reason in expected.items():
        assert found[f"a.tfrecord record {number}"].startswith(reason)


def with_length(length):
    """A record of a forged length, without the right checksum."""
    return struct.pack("<QI", length, 0) + b"x" * 40


# What is written behind two good records of `size` bytes each, or in place of their end.
DAMAGE = {
    "cut content": (lambda whole, size: whole[:-20], 1, "the file ends within it"),
    "cut header": (lambda whole, size: whole[: size + 5], 1, "the file ends within it"),
    "bytes behind": (lambda whole, size: whole + b"xyz", 2, "the file ends within it"),
    "long": (lambda whole, size: whole + with_length(2**63), 2, "its length is damaged, or above"),
    "longer": (lambda whole, size: whole + with_length(1000), 2, "the file ends within it"),
    "length": (lambda whole, size: whole + with_length(8), 2, "its checksum is wrong"),
    "content": (lambda whole, size: whole[:-20] + b"!" + whole[-19:], 1, "its checksum is wrong"),
    "text": (lambda whole, size: b"no records at all, but text\n" * 9, 0, "its length is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_ends_its_file_alone(damage, tmp_path):
    spoil, left, reason = DAMAGE[damage]
    good = {"image": png(), "caption": "good"}
    write_records(tmp_path / "b.tfrecord", good)
    file = write_records(tmp_path / "a.tfrecord", good, good)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole, len(whole) // 2))
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == [*(f"a.tfrecord/{n}" for n in range(left)), "b.tfrecord/0"]
    ((place, found),) = items.quarantined
    assert place == f"a.tfrecord record {left}" and found.startswith(reason)
    assert found.endswith("the rest of the file is not read")


def test_a_record_above_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 100)
    write_records(tmp_path / "a.tfrecord", {"caption": "x"}, {"caption": "x" * 100})
    items = load_quietly(tmp_path, loader=load)
    assert len(items) == 1 and items.quarantined[0][1].startswith("its length is damaged, or above")


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_a_compressed_file_is_refused(name, tmp_path):
    whole = write_records(tmp_path / "b.tfrecord", {"image": png(), "caption": "x"}).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(whole))
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is compressed with GZIP, so it cannot"):
            load(source)


def test_a_file_outside_the_collection_is_set_aside(tmp_path):
    row = {"image": png(), "caption": "x"}
    write_records(tmp_path / "photos" / "a.tfrecord", row)
    outside = write_records(tmp_path / "outside.tfrecord", row)
    (tmp_path / "photos" / "b.tfrecord").symlink_to(outside)
    items = load_quietly(tmp_path / "photos", loader=load)
    assert items.ids == ["a.tfrecord/0"]
    assert items.quarantined == [("b.tfrecord", "leads outside the collection")]


def test_loading_does_not_hold_the_pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 200, 200, 3), np.uint8)
    pictures = [tf.io.encode_png(each).numpy() for each in pixels]
    rows = ({"image": each, "caption": "x"} for each in pictures)
    file = write_records(tmp_path / "a.tfrecord", *rows)
    tracemalloc.start()
    items = load(file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 4e6 and most < 2e6
    assert [each.read() for (each,) in items.sources["image"]] == pictures


def test_a_record_of_a_search_opens_its_picture(shared_model, tmp_path):
    rows = [{"image": png(level), "id": str(level)} for level in (0, 100, 200)]
    write_records(tmp_path / "a.tfrecord", *rows)
    store = mm.EmbeddingStore.export(shared_model, load(tmp_path), tmp_path / "embeddings")
    record = store.items[1]["image"]
    assert record.startswith(f"{tmp_path}/a.tfrecord/record-1/bytes-")
    assert np.array_equal(load_image(record, 9), load_image(png(100), 9))
    for wrong in ("a.tfrecord/record-1/bytes-5-99999", "a.tfrecord/1"):
        with pytest.raises(ValueError, match=r"a\.tfrecord"):
            load_image(f"{tmp_path}/{wrong}", 9)

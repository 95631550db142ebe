"""A text file beside each picture, in any subfolder, and pictures alone."""

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load, load_pairs
from mmret_tf.data.readers.reader import read_layout


def test_pairs_of_image_and_text_in_subfolders(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "one dog", "", "一只狗")
    draw(tmp_path / "more" / "B.PNG")
    write(tmp_path / "more" / "B.txt", "two cats")
    draw(tmp_path / "alone.jpg")
    write(tmp_path / "notes.txt", "hello")
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["a.jpg", "more/B.PNG"]
    assert pairs.captions == [["one dog", "一只狗"], ["two cats"]]
    assert pairs.quarantined == [
        ("notes.txt", "no image of this name"),
        ("alone.jpg", "image without a caption"),
    ]


def test_one_text_may_describe_several_pictures(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        draw(tmp_path / name)
    write(tmp_path / "a.txt", "a dog")
    write(tmp_path / "b.txt", " ")
    records = read_layout(tmp_path).records
    assert [record.id for record in records] == ["a.jpg", "a.png"]
    assert all(record.sources["text"] == ["a dog"] for record in records)


def test_jfif_is_a_suffix_of_jpeg(tmp_path):
    draw(tmp_path / "a.jpg").rename(tmp_path / "a.jfif")
    write(tmp_path / "a.txt", "a dog")
    assert load_quietly(tmp_path).ids == ["a.jfif"]


def test_pictures_alone_are_items_without_captions(tmp_path):
    for name in ("a.png", "2019/holiday/b.jpg", "2019/c.webp", ".hidden/d.png"):
        draw(tmp_path / name)
    write(tmp_path / "notes.md", "x")
    items = load(tmp_path)
    assert items.ids == ["a.png", "2019/c.webp", "2019/holiday/b.jpg"]
    assert items.captions == [[], [], []] and items.attributes == [{}, {}, {}]
    assert items.quarantined == []
    with pytest.raises(ValueError, match="no item has both an image and a caption"):
        load_pairs(tmp_path)
    with pytest.raises(ValueError, match="holds pictures alone: there is no column of captions"):
        load(tmp_path, caption_column="label")


def test_folders_of_one_depth_are_classes(tmp_path):
    for name in ("train/cat/1.png", "train/狗/2.png", "test/cat/3.png"):
        draw(tmp_path / name)
    items = load(tmp_path)
    assert items.splits == ["test", "train", "train"]
    assert [each["label"] for each in items.attributes] == ["cat", "cat", "狗"]
    assert items.captions == [[], [], []]
    assert load_pairs(tmp_path, caption_column="label").captions == [["cat"], ["cat"], ["狗"]]


def test_folders_of_splits_are_no_classes(tmp_path):
    for split in ("train", "validation", "test"):
        draw(tmp_path / split / "1.png")
    items = load(tmp_path)
    assert items.splits == ["test", "train", "dev"] and items.attributes == [{}, {}, {}]


def test_a_damaged_picture_alone_is_set_aside(tmp_path):
    draw(tmp_path / "a.png")
    write(tmp_path / "b.png", "no picture")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a.png"] and [place for place, _ in items.quarantined] == ["b.png"]

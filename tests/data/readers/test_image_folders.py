"""Hugging Face's imagefolder: metadata beside the images, splits, attributes, several images."""

import json

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load


def write_metadata(folder, *rows):
    for row in rows:
        for name in [row.get("file_name", ())] if isinstance(row.get("file_name"), str) else ():
            draw(folder / name)
    return write(folder / "metadata.jsonl", *(json.dumps(row) for row in rows))


@pytest.mark.parametrize("column", ["text", "caption", "title", "prompt"])
def test_any_column_of_text_is_the_caption(column, tmp_path):
    write_metadata(tmp_path, {"file_name": "a.png", column: "a dog"})
    assert load(tmp_path).captions == [["a dog"]]


def test_other_columns_are_attributes(tmp_path):
    row = {
        "file_name": "a.png",
        "text": "a dog",
        "year": 2019,
        "tags": ["x"],
        "place": "",
        "n": None,
    }
    write_metadata(tmp_path, row)
    assert load(tmp_path).attributes == [{"year": 2019, "tags": ["x"]}]
    write(tmp_path / "metadata.csv", "file_name,text,year,code", "a.png,a dog,2019,007")
    (tmp_path / "metadata.jsonl").unlink()
    assert load(tmp_path).attributes == [{"year": 2019, "code": "007"}]


def test_rows_of_the_same_file_are_captions_of_one_item(tmp_path):
    rows = [("a.png", "a dog", 1), ("b.png", "a cat", 2), ("a.png", "狗", 3)]
    write_metadata(tmp_path, *({"file_name": f, "text": t, "n": n} for f, t, n in rows))
    items = load(tmp_path)
    assert items.captions == [["a dog", "狗"], ["a cat"]]
    assert items.attributes == [{"n": 1}, {"n": 2}] and items.quarantined == []


def test_each_split_may_have_its_metadata(tmp_path):
    for split in ("train", "validation", "test"):
        write_metadata(tmp_path / split, {"file_name": "1.png", "text": f"of {split}"})
    items = load(tmp_path)
    assert items.splits == ["test", "train", "dev"]
    assert items.captions == [["of test"], ["of train"], ["of validation"]]
    assert items.ids == ["test/1.png", "train/1.png", "validation/1.png"]


def test_one_metadata_file_may_name_the_splits_folders(tmp_path):
    rows = [{"file_name": f"{split}/1.png", "text": split} for split in ("train", "test")]
    write_metadata(tmp_path, *rows)
    assert load(tmp_path).splits == ["train", "test"]


def test_an_item_may_have_several_images_and_captions(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, 10 if name == "a.png" else 90)
    row = {"front_file_name": "a.png", "back_file_name": "b.png", "captions": ["a shoe", "鞋"]}
    write(tmp_path / "metadata.jsonl", json.dumps(row))
    items = load(tmp_path)
    assert [path.name for path in items.image_paths[0]] == ["a.png", "b.png"]
    assert items.captions == [["a shoe", "鞋"]]


def test_metadata_without_text_are_items_without_captions(tmp_path):
    write_metadata(tmp_path, {"file_name": "a.png", "label": 3})
    items = load(tmp_path)
    assert items.captions == [[]] and items.attributes == [{"label": 3}]


def test_one_of_several_texts_is_chosen_by_name(tmp_path):
    write_metadata(tmp_path, {"file_name": "a.png", "prompt": "a dog", "artist": "Li"})
    with pytest.raises(ValueError, match=r"has 2 columns of text \(prompt, artist\): name that"):
        load(tmp_path)
    with pytest.raises(ValueError, match="name that of the captions .* got 'promt'"):
        load(tmp_path, caption_column="promt")
    items = load(tmp_path, caption_column="Prompt")
    assert items.captions == [["a dog"]] and items.attributes == [{"artist": "Li"}]


def test_bad_rows_are_set_aside_by_line(tmp_path):
    draw(tmp_path / "a.png")
    lines = [
        "{",
        "[]",
        '{"text": "x"}',
        '{"file_name": 3}',
        '{"file_name": "../b.png", "text": "x"}',
    ]
    lines += ['{"file_name": "gone.png", "text": "x"}', '{"file_name": "a.png", "text": "\\ud800"}']
    write(tmp_path / "metadata.jsonl", *lines, '{"file_name": "a.png", "text": "a dog"}')
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a.png"] and items.captions == [["a dog"]]
    places = {place.removeprefix("metadata.jsonl ") for place, _ in items.quarantined}
    assert places == {*(f"line {n}" for n in (1, 2, 3, 4, 7)), "../b.png", "gone.png"}

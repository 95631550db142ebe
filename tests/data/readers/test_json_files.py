"""Layouts of JSON: captions.jsonl, Karpathy's and MS-COCO's."""

import json

import pytest
from conftest import draw, load_quietly, write, write_jsonl
from PIL import Image

from mmret_tf.data import Modality, load_items, load_pairs
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.data.readers.reader import read_layout

IDS = ["a.jpg", "b.png", "c.jpg"]
CAPTIONS = [['a "red", round ball', "红色的球"], ["a dog"], ["两只猫", "two cats"]]


def test_jsonl(check_layout, tmp_path):
    write_jsonl(
        tmp_path,
        {"image": "a.jpg", "captions": CAPTIONS[0], "split": "train"},
        {"image": "./b.png", "caption": "a dog", "split": "validation"},
        {"image": "c.jpg", "caption": "两只猫", "split": "test"},
        {"image": "c.jpg", "caption": "two cats"},
    )
    check_layout(tmp_path, tmp_path)


def test_jsonl_in_the_general_form(check_layout, tmp_path):
    write_jsonl(
        tmp_path,
        *(
            {"sources": {"image": [name], "text": captions}, "split": split}
            for name, captions, split in zip(IDS, CAPTIONS, ["train", "dev", "test"], strict=True)
        ),
    )
    check_layout(tmp_path, tmp_path)


@pytest.mark.parametrize("source", ["", "dataset_tiny.json"])
def test_karpathy(source, check_layout, tmp_path):
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions]}
        for name, split, captions in zip(IDS, ["restval", "val", "test"], CAPTIONS, strict=True)
    ]
    write(tmp_path / "dataset_tiny.json", json.dumps({"images": images, "dataset": "tiny"}))
    check_layout(tmp_path / source, tmp_path if source else tmp_path / "images")


@pytest.mark.parametrize("annotations", ["annotations", "."])
def test_coco(annotations, check_layout, tmp_path):
    splits = ["train", "val", "test"]
    for number, split in enumerate(splits):
        content = {
            "images": [{"id": 7, "file_name": IDS[number]}],
            "annotations": [
                {"id": i, "image_id": 7, "caption": caption}
                for i, caption in enumerate(CAPTIONS[number])
            ],
        }
        write(tmp_path / annotations / f"captions_{split}2017.json", json.dumps(content))
    if annotations == ".":
        check_layout(tmp_path, tmp_path / "images")
    else:
        check_layout(tmp_path, *(tmp_path / f"{split}2017" for split in splits))


def test_ids_and_attributes_of_jsonl(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    write_jsonl(
        tmp_path,
        {"image": "a.png", "captions": ["x"], "id": 42, "attributes": {"colour": "红"}},
        {"image": "b.png", "captions": ["y"]},
    )
    pairs = load_pairs(tmp_path)
    assert pairs.ids == ["42", "b.png"]
    assert pairs.attributes == [{"colour": "红"}, {}]


def test_the_general_form_says_the_same_as_the_short_ones(tmp_path):
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    general = [
        {"id": "one", "sources": {"image": ["a.png"], "text": ["a dog", "狗"]}},
        {"id": "two", "sources": {"image": ["b.png", "c.png"]}, "attributes": {"n": 2}},
        {"id": "three", "sources": {"text": ["text alone"]}},
    ]
    short = [
        {"id": "one", "image": "a.png", "captions": ["a dog", "狗"]},
        {"id": "two", "images": ["b.png", "c.png"], "attributes": {"n": 2}},
        {"id": "three", "caption": "text alone"},
    ]
    records = []
    for rows in (general, short):
        write_jsonl(tmp_path, *rows)
        items = load_items(tmp_path)
        assert items.quarantined == []
        records.append(items.records())
    assert records[0] == records[1]


def test_files_of_any_modality(tmp_path, monkeypatch):
    sound = Modality(
        "sound", (".snd",), lambda contents: None, lambda c, side: Image.new("L", (1, 1))
    )
    monkeypatch.setitem(MODALITIES, "sound", sound)
    write(tmp_path / "bark.snd", "wow")
    write_jsonl(
        tmp_path,
        {"sources": {"sound": ["./bark.snd"], "text": ["a dog barks"]}},
        {"id": "gone", "sources": {"sound": ["gone.snd"], "text": ["x"]}},
        {"id": "out", "sources": {"sound": ["../out.snd"]}},
        {"id": "empty", "sources": {"sound": [], "text": ["x"]}},
        {"id": "smell", "sources": {"smell": ["a.sml"]}},
    )
    items = load_quietly(tmp_path, loader=load_items)
    assert items.ids == ["bark.snd"]
    assert items.sources["sound"][0][0].path == tmp_path / "bark.snd"
    assert items.pairs("sound", "text").all_captions() == ["a dog barks"]
    known = ", ".join(sorted(MODALITIES))
    assert items.quarantined == [
        (
            "captions.jsonl line 4",
            "`sounds` must be a list of strings, at least one; got []",
        ),
        ("captions.jsonl line 5", f"no modality 'smell'; there are: {known}"),
        ("gone.snd", "the file does not exist (captions.jsonl line 2)"),
        ("../out.snd", "leads outside the collection (captions.jsonl line 3)"),
    ]


def test_content_of_any_modality_in_the_row_itself(tmp_path, monkeypatch):
    text = MODALITIES["text"]
    tags = Modality("tags", (), text.check, text.thumbnail, text.as_source)
    monkeypatch.setitem(MODALITIES, "tags", tags)
    draw(tmp_path / "a.png")
    write_jsonl(
        tmp_path,
        {"image": "a.png", "caption": "a dog", "sources": {"tags": ["animal", "pet"]}},
        {"id": "alone", "sources": {"tags": ["plant"]}},
        {"id": "wrong", "sources": {"tags": [3]}},
    )
    items = load_quietly(tmp_path, loader=load_items)
    assert items.ids == ["a.png", "alone"] and items.captions == [["a dog"], []]
    records = [[source.record for source in each] for each in items.sources["tags"]]
    assert records == [["animal", "pet"], ["plant"]]
    assert [place for place, _ in items.quarantined] == ["captions.jsonl line 3"] * 2


def test_karpathy_file_paths(tmp_path):
    draw(tmp_path / "val2014" / "x.jpg")
    image = {"filepath": "val2014", "filename": "x.jpg", "split": "val"}
    image["sentences"] = [{"raw": "a dog"}]
    write(tmp_path / "dataset_coco.json", json.dumps({"images": [image]}))
    pairs = load_pairs(tmp_path)
    assert pairs.ids == ["val2014/x.jpg"]
    assert pairs.image_paths == [tmp_path / "val2014" / "x.jpg"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "a.png"', "not JSON: Expecting ',' delimiter, line 1 column 18"),
        ('["a.png", "x"]', 'expected a JSON object, got ["a.png", "x"]'),
        ("[" * 100_000, "JSON nested too deeply"),
        ('{"caption": "x"}', "`image` must be a string, got null"),
        ('{"image": 3, "caption": "x"}', "`image` must be a string, got 3"),
        ('{"image": "", "caption": "x"}', '`image` must be a string, got ""'),
        ('{"image": "a.png", "caption": null}', "`caption` must be a string, got null"),
        ('{"id": "a"}', "`caption` must be a string, got null"),
        ('{"captions": ["x"]}', "`image` must be a string, got null (text alone needs an `id`)"),
        (
            '{"image": "a.png", "images": ["b.png"], "caption": "x"}',
            "a row has `image` or `images`",
        ),
        ('{"images": "a.png", "caption": "x"}', '`images` must be a list, got "a.png"'),
        ('{"images": [], "caption": "x"}', "`images` must be a list of strings, at least one; got"),
        ('{"images": ["a.png", 3], "caption": "x"}', "`images` must be a list of strings"),
        ('{"images": ["a.png", ""], "caption": "x"}', "`images` must be a list of strings"),
        ('{"image": "a.png", "captions": "x"}', '`captions` must be a list, got "x"'),
        ('{"image": "a.png", "captions": [5]}', "a caption must be a string, got 5"),
        ('{"image": "a.png", "captions": [" "]}', "empty caption"),
        ('{"image": "a.png", "captions": ["\\ud800"]}', "not valid Unicode: half a character"),
        ('{"image": "a.png", "caption": "x", "split": 1}', "`split` must be a string, got 1"),
        ('{"image": "a.png", "caption": "x", "id": []}', "`id` must be a string or number"),
        ('{"image": "a.png", "caption": "x", "attributes": 1}', "`attributes` must be an object"),
        ('{"image": "a.png", "caption": "x", "attributes": {"a": "\\ud800"}}', "not valid Unicode"),
        ('{"sources": ["a.png"]}', '`sources` must be an object, got ["a.png"]'),
        ('{"sources": {"image": "a.png"}}', '`image` must be a list, got "a.png"'),
        (
            '{"sources": {"image": [3]}}',
            "`images` must be a list of strings, at least one; got [3]",
        ),
        ('{"id": "a", "sources": {"text": "x"}}', '`text` must be a list, got "x"'),
        ('{"sources": {"text": ["x"]}}', "`image` must be a string, got null (text alone needs"),
    ],
)
def test_bad_lines_of_jsonl_are_set_aside(line, reason, tmp_path):
    write(tmp_path / "captions.jsonl", '{"image": "good.png", "caption": "x"}', line)
    reading = read_layout(tmp_path)
    assert reading.records[0].sources == {"image": ["good.png"], "text": ["x"]}
    assert reading.problems[0].place == "captions.jsonl line 2"
    assert reading.problems[0].reason.startswith(reason)


def test_bad_items_of_coco_are_set_aside(tmp_path):
    draw(tmp_path / "val" / "a.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, 5]
    annotations = [{"image_id": i, "caption": c} for i, c in [(1, "x"), (2, "x"), (1, None)]]
    content = json.dumps({"images": images, "annotations": annotations})
    write(tmp_path / "annotations" / "captions_val.json", content)
    pairs = load_quietly(tmp_path / "annotations" / "captions_val.json")
    assert pairs.ids == ["a.jpg"] and pairs.captions == [["x"]]
    file = "annotations/captions_val.json"
    assert pairs.quarantined == [
        (f"{file} images[1]", "duplicate id 1, that of a.jpg"),
        (f"{file} images[2]", "expected a JSON object, got 5"),
        (f"{file} annotations[1]", "image_id 2 is not among the images"),
        (f"{file} annotations[2]", "a caption must be a string, got null"),
    ]


def test_bad_items_of_karpathy_are_set_aside(tmp_path):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "alone.jpg")
    images = [{"filename": "a.jpg", "sentences": [{"raw": "x"}, {}]}, {"filename": "b.jpg"}]
    write(tmp_path / "dataset_x.json", json.dumps({"images": images}))
    pairs = load_quietly(tmp_path)
    assert pairs.captions == [["x"]]
    assert pairs.quarantined == [
        ("dataset_x.json images[0]", "a caption must be a string, got null"),
        ("dataset_x.json images[1]", "`sentences` must be a list, got null"),
        ("alone.jpg", "image without a caption"),
    ]


def test_karpathy_beside_the_images_of_flickr30k(tmp_path):
    draw(tmp_path / "flickr30k-images" / "1.jpg", 9)
    image = {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}
    write(tmp_path / "dataset_flickr30k.json", json.dumps({"images": [image]}))
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["1.jpg"] and pairs.quarantined == []

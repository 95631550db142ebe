"""Records of items: the general form and its short forms."""

import json
import os
from pathlib import Path

import pytest

from mmret_tf.data import Item
from mmret_tf.data.items import item_of
from mmret_tf.data.sources import FileSource, InlineSource

GENERAL = {"image": ["a.png", "b.png"], "text": ["a dog", "狗"]}


@pytest.mark.parametrize(
    ("record", "sources"),
    [
        ({"sources": GENERAL}, GENERAL),
        ({"images": ["a.png", "b.png"], "captions": ("a dog", "狗")}, GENERAL),
        ({"image": "a.png", "images": ["a.png", "b.png"], "captions": ["a dog", "狗"]}, GENERAL),
        ({"image": "a.png", "captions": []}, {"image": ["a.png"]}),
        ({"image": "a.png"}, {"image": ["a.png"]}),
        ({"image": None, "captions": ["a dog"]}, {"text": ["a dog"]}),
        ({"captions": ["a dog"]}, {"text": ["a dog"]}),
        ({"sources": {"sound": ["a.wav"]}}, {"sound": ["a.wav"]}),
        ({}, {}),
    ],
)
def test_every_spelling_gives_the_same_record(record, sources):
    item = Item.of({"id": "a", **record})
    assert item == {"id": "a", "sources": sources, "attributes": {}}
    assert item["image"] == (sources["image"][0] if "image" in sources else None)
    assert item["captions"] == sources.get("text", [])


def test_attributes_are_kept_and_other_keys_are_not():
    item = Item.of({"id": "a", "image": "a.png", "attributes": {"n": 1}, "more": 2})
    assert item["attributes"] == {"n": 1} and set(item) == {"id", "sources", "attributes"}


def test_an_item_stays_as_it_is():
    item = Item.of({"id": "a", "captions": ["x"]})
    assert Item.of(item) is item
    assert Item.of(dict(item)) == Item.of(json.loads(json.dumps(item))) == item


def test_a_record_needs_an_id_and_an_item_has_no_other_keys():
    with pytest.raises(KeyError, match="id"):
        Item.of({"captions": ["x"]})
    with pytest.raises(KeyError, match="colour"):
        Item.of({"id": "a", "captions": ["x"]})["colour"]


def test_the_record_of_sources_leaves_out_what_an_item_lacks():
    sources = {
        "image": [FileSource(Path("a.png"))],
        "text": [InlineSource("狗".encode()), InlineSource(b"dog")],
        "sound": [],
    }
    assert item_of("a", sources, {"n": 1}) == {
        "id": "a",
        "sources": {"image": [os.path.abspath("a.png")], "text": ["狗", "dog"]},
        "attributes": {"n": 1},
    }

"""Collections of any modalities: consistency, subsets, splits, and what is drawn from them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data import Collection, Modality, caption_items
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.data.sources import InlineSource


@pytest.fixture
def sound(monkeypatch):
    """A modality "sound", of which nothing is decoded here."""
    thumbnail = Image.new("RGB", (8, 8))
    modality = Modality("sound", (".snd",), lambda contents: None, lambda *_: thumbnail)
    monkeypatch.setitem(MODALITIES, "sound", modality)


@pytest.fixture
def items():
    """Items with both modalities, with several images, and with one modality alone."""
    return Collection(
        ["red", "two", "note", "alone"],
        {
            "image": [["red.png"], ["blue.png", "navy.png"], [], ["alone.png"]],
            "text": [["a red circle", "红色的圆"], ["a blue square"], ["a note"], []],
        },
        [{}, {"n": 2}, {}, {}],
        ["train", "train", "dev", ""],
        [("gone.png", "the file does not exist")],
    )


def test_what_a_collection_says_of_its_items(items):
    assert len(items) == 4
    assert items.captions == [["a red circle", "红色的圆"], ["a blue square"], ["a note"], []]
    assert [[path.name for path in paths] for paths in items.image_paths] == [
        ["red.png"], ["blue.png", "navy.png"], [], ["alone.png"]
    ]  # fmt: skip
    assert repr(items) == (
        "Collection(4 items, 4 image, 4 text, "
        "splits: train (2), dev (1), no split (1), 1 set aside)"
    )
    assert {name: len(each) for name, each in items.sources_of(1).items()} == {
        "image": 2,
        "text": 1,
    }
    assert items.records()[1] == {
        "id": "two",
        "sources": {
            "image": [os.path.abspath("blue.png"), os.path.abspath("navy.png")],
            "text": ["a blue square"],
        },
        "attributes": {"n": 2},
    }
    assert items.records()[2]["sources"] == {"text": ["a note"]}


def test_what_is_not_given_is_empty():
    items = Collection(["a"], {"text": [["x"]]})
    assert items.image_paths == [[]] and items.attributes == [{}] and items.splits == [""]
    assert items.quarantined == [] and not items.has_pairs()
    images = Collection(["a"], {"image": [["a.png"]]})
    assert images.captions == [[]] and not images.has_pairs()


def test_subsets_take_rows_in_any_order(items):
    part = items.subset(np.array([3, 1]))
    assert part.ids == ["alone", "two"] and part.captions == [[], ["a blue square"]]
    assert part.attributes == [{}, {"n": 2}] and part.splits == ["", "train"]
    assert part.quarantined == items.quarantined
    assert part.sources["image"][1][0] is items.sources["image"][1][0]
    assert len(items.subset(row for row in [])) == 0
    with pytest.raises(IndexError):
        items.subset([4])


def test_splits_go_by_any_of_their_names(items):
    assert items.split("train").ids == ["red", "two"]
    assert items.split("val").ids == items.split("validation").ids == ["note"]
    with pytest.raises(ValueError, match=r"no items of split 'test'; there are train \(2\), dev"):
        items.split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["x", "x"]}, "ids must be unique; 'x' occurs more than once"),
        ({"text": [["a"], []]}, "every item must have a source; 'y' has no image or text"),
        ({"text": [["a"]]}, r"2 ids, and every list must have as many; got {'text': 1}"),
        ({"splits": ["dev"]}, r"2 ids, and every list must have as many; got {'splits': 1}"),
        ({"attributes": [{}]}, r"every list must have as many; got {'attributes': 1}"),
        ({"text": [["a"], "b"]}, "expected a list of texts; for one text, give a list"),
        ({"image": [Path("x.png"), []]}, "expected a list of images; for one image, give a list"),
        ({"text": [["a"], [3]]}, "a text must be a string; got 3"),
        ({"smell": [["a"], ["b"]]}, "no modality 'smell'; there are: .*image, .*text"),
    ],
)
def test_a_collection_is_consistent(change, message):
    good = {"ids": ["x", "y"], "image": [["x.png"], []], "text": [[], ["b"]]} | change
    more = {name: good.pop(name) for name in ("attributes", "splits") if name in good}
    with pytest.raises(ValueError, match=message):
        Collection(good.pop("ids"), good, **more)


def test_pairs_are_a_row_an_image_and_a_group_an_item(items):
    pairs = items.pairs()
    assert pairs.ids == ["red", "two#0", "two#1"]
    assert [path.name for path in pairs.image_paths] == ["red.png", "blue.png", "navy.png"]
    assert pairs.captions == [["a red circle", "红色的圆"], ["a blue square"], ["a blue square"]]
    assert pairs.groups == [0, 1, 1] and pairs.splits == ["train"] * 3
    assert pairs.attributes == [{}, {"n": 2}, {"n": 2}]
    assert pairs.quarantined == [
        ("gone.png", "the file does not exist"),
        ("note", "text without image"),
        ("alone", "image without text"),
    ]
    assert items.has_pairs() and not items.subset([2, 3]).has_pairs()
    with pytest.raises(ValueError, match="none of the 2 items has both image and text"):
        items.subset([2, 3]).pairs()


def test_pairs_of_any_two_modalities(sound, items):
    mixed = Collection(
        ["dog", "cat"],
        {
            "sound": [["bark.snd", "growl.snd"], ["meow.snd"]],
            "text": [["a dog"], []],
            "image": [["dog.png"], ["cat.png"]],
        },
    )
    assert repr(mixed).startswith("Collection(2 items, 3 sound, 1 text, 2 image, ")
    pairs = mixed.pairs("sound", "image")
    assert pairs.modalities == ("sound", "image") and pairs.ids == ["dog#0", "dog#1", "cat"]
    assert [source.name for source in pairs.first_sources] == ["bark.snd", "growl.snd", "meow.snd"]
    assert [source.name for source in pairs.second_sources] == ["dog.png", "dog.png", "cat.png"]
    turned = mixed.pairs("text", "sound")
    assert turned.modalities == ("text", "sound") and turned.ids == ["dog"]
    assert len(turned.second_sources) == 2
    assert turned.quarantined == [("cat", "sound without text")]
    assert not items.has_pairs("sound", "text")
    with pytest.raises(ValueError, match="none of the 4 items has both sound and text"):
        items.pairs("sound", "text")


def test_each_caption_is_an_item_once(items):
    captions = caption_items(items.pairs())
    assert captions.ids == ["red#0", "red#1", "two#0#0"]
    assert captions.captions == [["a red circle"], ["红色的圆"], ["a blue square"]]
    assert captions.image_paths == [[]] * 3 and captions.splits == ["train"] * 3
    assert captions.attributes == [{}, {}, {"n": 2}]
    assert captions.quarantined == items.pairs().quarantined
    assert caption_items(items).ids == ["red#0", "red#1", "two#0", "note#0"]


def test_content_in_memory_is_a_source_as_well(tmp_path):
    picture = InlineSource(b"abc", "a camera")
    pairs = Collection(["a"], {"image": [[picture]], "text": [["x"]]}).pairs()
    assert pairs.first_sources == [picture] and pairs.first_sources[0].name == "a camera"


def test_the_files_of_some_modalities_alone():
    sources = {
        "image": [["a.png"], ["b.png"], []],
        "audio": [["a.wav"], [], ["c.wav"]],
        "text": [["red"], ["blue"], ["low"]],
    }
    collection = Collection(["a", "b", "c"], sources)
    sounds = collection.of_modalities("audio")
    assert sounds.ids == ["a", "c"] and list(sounds.sources) == ["audio", "text"]
    assert collection.of_modalities("audio", "image").ids == ["a", "b", "c"]
    assert list(collection.sources) == ["image", "audio", "text"]  # the whole stays as it is
    with pytest.raises(ValueError, match="none of the 3 items has video"):
        collection.of_modalities("video")

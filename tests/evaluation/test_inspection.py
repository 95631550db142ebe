"""Inspection: counts, languages, sizes, reasons and copies of a collection that is known by eye."""

import json
import shutil

import numpy as np
import pytest
from conftest import load_quietly, write_jsonl
from PIL import Image

from mmret_tf import load
from mmret_tf.data import Collection
from mmret_tf.evaluation import inspect_collection
from mmret_tf.evaluation.inspection import language_of


def draw(path, seed, width, height, **options):
    """A smooth picture of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(path, **options)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Two pictures of train, which dev and test have again, two flat ones, and broken rows."""
    folder = tmp_path_factory.mktemp("photos")
    draw(folder / "a.png", seed=1, width=200, height=150)
    draw(folder / "b.png", seed=2, width=200, height=150)
    shutil.copy(folder / "a.png", folder / "copied.png")
    draw(folder / "smaller.jpg", seed=2, width=100, height=75, quality=60)
    Image.new("RGB", (20, 100), "white").save(folder / "white.png")
    Image.new("RGB", (20, 100), "snow").save(folder / "snow.png")
    for name in ("empty", "hollow"):
        (folder / f"{name}.png").write_bytes(b"")
    write_jsonl(
        folder,
        {"image": "a.png", "captions": ["a red dog", "一只红狗", "another"], "split": "train"},
        {"image": "b.png", "captions": ["一件 T 恤"], "split": "train"},
        {"image": "white.png", "captions": ["nothing at all to see"], "split": "train"},
        {"image": "smaller.jpg", "captions": ["собака"], "split": "dev"},
        {"image": "copied.png", "split": "test"},
        {"image": "snow.png", "captions": ["snow"], "split": "test"},
        {"id": "note", "captions": ["only words"], "split": "test"},
        {"image": "gone.png", "caption": "x", "split": "train"},
        {"image": "lost.png", "caption": "x", "split": "train"},
        {"image": "empty.png", "caption": "x", "split": "train"},
        {"image": "hollow.png", "caption": "x", "split": "train"},
        {"image": "missing.png", "caption": "x", "split": "train"},
        {"image": "a.png", "captions": 3, "id": "three", "split": "train"},
    )
    return load_quietly(folder, loader=load)


@pytest.fixture(scope="module")
def report(collection):
    return inspect_collection(collection)


def test_the_report_is_plain_json_and_counts_everything(report):
    assert json.loads(json.dumps(report)) == report
    assert report["layout"] == "JsonLines: captions.jsonl" and report["items"] == 7
    assert report["splits"] == {"train": 3, "test": 3, "dev": 1}
    assert report["modalities"] == {
        "image": {"items": 6, "sources": 6},
        "text": {"items": 6, "sources": 8},
    }
    # a has three captions, copied none, each other picture one.
    assert report["captions_per_image"] == {"min": 0, "median": 1, "mean": 7 / 6, "max": 3}
    assert report["languages"] == {"english": 5, "chinese": 1, "both": 1, "other": 1}
    # a: 3, 4, 1 (each Chinese character is a word); then 4 with the T, 5, 1, 1 and 2
    assert report["caption_words"] == {"min": 1, "median": 2.5, "mean": 21 / 8, "max": 5}


def test_pictures_have_formats_and_upright_sizes(report, tmp_path):
    pictures = report["pictures"]
    assert (pictures["read"], pictures["unreadable"], pictures["flat"]) == (6, 0, 2)
    assert pictures["formats"] == {"PNG": 5, "JPEG": 1}
    # 200, 200, 200, 100, 20, 20 and 150, 150, 150, 75, 100, 100
    assert pictures["width"] == {"min": 20, "median": 150, "mean": 740 / 6, "max": 200}
    assert pictures["height"] == {"min": 75, "median": 125, "mean": 725 / 6, "max": 150}
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    draw(tmp_path / "side.jpg", seed=1, width=80, height=60, exif=exif)
    sizes = inspect_collection(Collection(["a"], {"image": [[tmp_path / "side.jpg"]]}))["pictures"]
    assert (sizes["width"]["max"], sizes["height"]["max"]) == (60, 80)


def test_entries_that_were_set_aside_are_grouped_by_reason(report):
    reasons = {each["reason"]: each for each in report["set_aside"]}
    counts = {reason: each["count"] for reason, each in reasons.items()}
    assert counts == {
        "the file does not exist": 3,
        "empty file": 2,
        "`captions` must be a list": 1,
    }
    places = [place for place, _ in reasons["the file does not exist"]["examples"]]
    assert places == ["gone.png", "lost.png", "missing.png"]
    assert "captions.jsonl line 8" in reasons["the file does not exist"]["examples"][0][1]


def test_pictures_of_two_splits_are_a_leak_and_flat_ones_are_not(report):
    found = [
        (p["split"], p["id"], p["other_split"], p["other_id"], p["is_exact"])
        for p in report["copies"]
    ]
    assert found == [
        ("dev", "smaller.jpg", "train", "b.png", False),
        ("test", "copied.png", "train", "a.png", True),
    ]
    assert report["copies"][1]["distance"] == 0
    assert report["leaks"] == [
        {"split": "dev", "other_split": "train", "pictures": 1, "exact": 0},
        {"split": "test", "other_split": "train", "pictures": 1, "exact": 1},
    ]


def test_samples_are_spread_over_the_collection_with_a_caption_a_language(report, collection):
    assert [each["id"] for each in report["samples"]] == [
        *("a.png", "b.png", "white.png", "smaller.jpg", "snow.png")
    ]
    assert report["samples"][0]["captions"] == ["a red dog", "一只红狗"]
    assert report["samples"][0]["image"].endswith("a.png")
    two = inspect_collection(collection, samples=2)["samples"]
    assert [each["id"] for each in two] == ["a.png", "snow.png"]
    with pytest.raises(ValueError, match="samples must be an integer of at least 1"):
        inspect_collection(collection, samples=0)


def test_other_collections_are_reported_too(tmp_path):
    report = inspect_collection(Collection([], {}))
    assert report["items"] == 0 and report["pictures"]["width"] is None and not report["samples"]
    report = inspect_collection(Collection(["a"], {"text": [["a dog"]]}))
    assert report["captions_per_image"] is None and report["languages"] == {"english": 1}
    assert report["samples"] == [{"id": "a", "split": "", "image": None, "captions": ["a dog"]}]
    (tmp_path / "a.png").write_bytes(b"no picture")
    files = [[tmp_path / "a.png", tmp_path / "gone.png"]]
    report = inspect_collection(Collection(["a"], {"image": files}))
    assert (report["pictures"]["read"], report["pictures"]["unreadable"]) == (0, 2)
    assert report["layout"] == "" and report["copies"] == []


def test_the_layout_stays_with_a_part(collection):
    assert collection.split("dev").layout == collection.pairs().layout != ""


def test_a_caption_has_the_language_of_its_characters():
    texts = ["A dog.", "狗", "狗 dog", "123", "собака"]
    assert [language_of(text) for text in texts] == ["english", "chinese", "both", "other", "other"]

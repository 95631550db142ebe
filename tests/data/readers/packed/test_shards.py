"""WebDataset: tar files that stay packed, what is broken in them, and ranges of numbers."""

import io
import json
import tarfile

import numpy as np
import pytest
from collection_forms import add_member
from conftest import load_quietly
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import load, load_pairs
from mmret_tf.data.decoders.image import load_image
from mmret_tf.data.readers.packed import shards as module

COLOURS = ("red", "blue", "black", "lime")


def png(colour=128):
    file = io.BytesIO()
    colour = (colour,) * 3 if isinstance(colour, int) else colour
    Image.new("RGB", (9, 9), colour).save(file, "PNG")
    return file.getvalue()


def write_shard(path, mode="w", **members):
    """A shard; "_" in a name stands for the dot before the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            add_member(archive, name.replace("_", "."), content)
    return path


def test_members_of_one_name_are_an_item(tmp_path):
    description = json.dumps({"caption": "a dog", "width": 9, "url": None})
    members = {"1_png": png(), "1_json": description, "1_txt": "a dog\n一只狗\n", "1_cls": "3"}
    write_shard(tmp_path / "0.tar", **members, d_1_npy="x")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["0.tar/1"] and items.captions == [["a dog", "一只狗"]]
    assert items.attributes == [{"width": 9, "label": "3"}]
    assert items.sources["image"][0][0].read() == png()
    assert items.quarantined == [("0.tar/d", "neither a file nor a caption")]


def test_an_item_may_have_several_images_in_folders(tmp_path):
    write_shard(tmp_path / "0.tar", **{"a/1_left_png": png(1), "a/1_right_JPG": png(2)})
    items = load(tmp_path)
    assert items.ids == ["0.tar/a/1"] and len(items.sources["image"][0]) == 2
    assert [each.name for each in items.sources["image"][0]] == [
        f"{tmp_path}/0.tar/a/1.{name}" for name in ("left.png", "right.JPG")
    ]


def test_folders_and_names_of_shards_are_splits(tmp_path):
    for name in ("train-0.tar", "val-0.tar"):
        write_shard(tmp_path / name, **{"1_png": png(), "1_txt": name})
    assert load(tmp_path).splits == ["train", "dev"]
    for name in ("train/0.tar", "test/0.tar"):
        write_shard(tmp_path / "folders" / name, **{"1_png": png(), "1_txt": name})
    assert load(tmp_path / "folders").splits == ["test", "train"]


def test_shards_may_be_named_with_a_range(tmp_path):
    for number in range(12):
        write_shard(tmp_path / f"s-{number:03}.tar", **{f"{number}_png": png(number)})
    assert load(tmp_path / "s-{008..010}.tar").ids == [f"s-{n:03}.tar/{n}" for n in (8, 9, 10)]
    assert load(f"{tmp_path}/s-0{{0..1}}{{0..1}}.tar").ids[-1] == "s-011.tar/11"
    assert len(load(tmp_path / "s-003.tar")) == 1
    with pytest.raises(ValueError, match="there is no folder or captions file .*s-012.tar"):
        load(tmp_path / "s-{000..012}.tar")
    with pytest.raises(ValueError, match="names more than 1048576 files"):
        load(tmp_path / "s-{000..999999999}.tar")


def test_what_is_broken_is_set_aside_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 40)
    bad = {"2_png": "no picture", "2_txt": "x", "3_png": png(), "3_txt": b"caf\xe9"}
    bad |= {"4_png": png(), "4_json": "{", "5_png": png(), "5_json": "[1]"}
    bad |= {"6_png": png(), "6_txt": "x" * 41, "7_png": png(), "7_txt": " "}
    write_shard(tmp_path / "0.tar", **{"1_png": png(), "1_txt": "good"}, **bad)
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == [f"0.tar/{number}" for number in (1, 3, 4, 5, 6, 7)]
    assert items.captions == [["good"], [], [], [], [], []]
    assert {place: reason[:24] for place, reason in items.quarantined} == {
        "0.tar/2.png": "not an image: expected J",
        "0.tar/3.txt": "not UTF-8: byte 0xe9 at ",
        "0.tar/4.json": "not JSON: Expecting prop",
        "0.tar/5.json": "expected a JSON object, ",
        "0.tar/6.txt": "has 41 bytes, at most 40",
    }


@pytest.mark.parametrize("damage", ["cut", "compressed", "text"])
def test_a_damaged_shard_does_not_cost_the_others(damage, tmp_path):
    write_shard(tmp_path / "1.tar", **{"1_png": png(), "1_txt": "good"})
    broken = write_shard(tmp_path / "0.tar", "w:gz" if damage == "compressed" else "w", a_png=png())
    if damage == "cut":
        broken.write_bytes(broken.read_bytes()[:600])
    elif damage == "text":
        broken.write_bytes(b"no archive")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["1.tar/1"]
    assert items.quarantined[0][0].startswith("0.tar")


def test_a_shard_outside_the_collection_is_set_aside(tmp_path):
    members = {"1_png": png(), "1_txt": "x"}
    write_shard(tmp_path / "photos" / "0.tar", **members)
    outside = write_shard(tmp_path / "outside.tar", **members)
    (tmp_path / "photos" / "1.tar").symlink_to(outside)
    items = load_quietly(tmp_path / "photos", loader=load)
    assert items.ids == ["0.tar/1"]
    assert items.quarantined == [("1.tar", "leads outside the collection")]


def test_it_is_embedded_searched_and_drawn_without_unpacking(shared_model, tmp_path):
    write_shard(tmp_path / "0.tar", **{f"{each}_png": png(each) for each in COLOURS})
    store = mm.EmbeddingStore.export(shared_model, load(tmp_path), tmp_path / "embeddings")
    index = mm.BruteForceIndex.build(store.embeddings, store.ids)
    searcher = mm.Searcher(shared_model, index, store.items)
    (found,) = searcher.search(image=png("blue"), k=1)
    assert found.id == "0.tar/blue" and found.score == pytest.approx(1, abs=1e-5)
    record = found.item["image"]
    assert record == f"{tmp_path}/0.tar/blue.png"
    assert np.array_equal(load_image(record, 9), load_image(png("blue"), 9))
    assert "image/jpeg" in searcher.search(image=record, k=2)._repr_html_()
    with pytest.raises(ValueError, match=r"0.tar has no such member"):
        load_image(f"{tmp_path}/0.tar/9.png", 9)


def test_it_is_trained_on(model, tmp_path):
    members = {}
    for colour in COLOURS:
        members |= {f"{colour}_png": png(colour), f"{colour}_txt": f"a {colour} square"}
    write_shard(tmp_path / "train-0.tar", **members)
    dataset = load_pairs(tmp_path).as_dataset(model, batch_size=4, training=True)
    assert np.isfinite(model.fit(dataset, epochs=1, verbose=0).history["loss"]).all()

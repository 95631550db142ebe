"""Loading a collection whole, by split, or as pairs, and the warning of what was set aside."""

import collection_forms
import pytest
from conftest import draw, load_quietly, make_mixed_collection, write, write_jsonl

from mmret_tf.data import Pairs, draw_worlds, load, load_items, load_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_mixed_collection(tmp_path_factory.mktemp("loading") / "mixed")


def test_scenes_are_drawn_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    pairs = load_pairs("scenes", split="val", size=3, seed=1)
    assert len(pairs) == 3 and pairs.splits == ["dev"] * 3
    assert all(pairs.captions) and all(pairs.attributes)
    assert load_pairs("scenes", size=2).splits == ["train"] * 2
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "scenes" / "mine.png")
    write_jsonl(tmp_path / "scenes", {"image": "mine.png", "caption": "a folder of that name"})
    assert load_pairs("./scenes").ids == ["mine.png"]


def test_worlds_have_items_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    items, drawn = load("worlds", split="test", seed=2), draw_worlds("test", seed=2)
    assert not items.quarantined and len(items) == len(drawn)
    assert items.attributes == [item.attributes for item in drawn]
    assert items.captions == [[*item.captions] for item in drawn]
    assert [len(paths) for paths in items.image_paths] == [len(item.pictures) for item in drawn]
    assert len(load("worlds", "dev", size=20)) == 20


def test_pairs_are_those_of_the_collection():
    items, pairs = load("scenes", "dev", 3, 1), load_pairs("scenes", "dev", 3, 1)
    assert load_items is load
    assert isinstance(pairs, Pairs) and not isinstance(items, Pairs)
    assert vars(items.pairs()) == vars(pairs)


def test_items_of_every_kind_are_loaded(folder):
    with pytest.warns(UserWarning, match="3 of 9 entries were set aside") as caught:
        items = load(folder)
    assert caught[0].filename == __file__
    assert items.ids == ["red.png", "two", "note", "alone.png", "dev.png", "dev note"]
    assert [[path.name for path in paths] for paths in items.image_paths] == [
        ["red.png"], ["blue.png", "navy.png"], [], ["alone.png"], ["dev.png"], []
    ]  # fmt: skip
    assert items.captions == [
        ["a red circle", "红色的圆"],
        ["a blue square"],
        ["a red circle", "红色的圆"],
        [],
        ["蓝色的方块"],
        ["a blue square"],
    ]
    assert items.attributes[2] == {"kind": "note"}
    assert items.splits == ["train"] * 4 + ["dev"] * 2
    assert repr(items) == (
        "Collection(6 items, 5 image, 7 text, splits: train (4), dev (2), 3 set aside)"
    )


def test_one_split_is_loaded_by_any_of_its_names(folder):
    assert load(folder, "validation").ids == load(folder, "val").ids == ["dev.png", "dev note"]
    with pytest.raises(ValueError, match=r"has no items of split 'test'; it has train \(5\), dev"):
        load(folder, "test")


def test_pairs_of_a_mixed_collection(folder):
    with pytest.warns(UserWarning, match="6 of 10 entries were set aside") as caught:
        pairs = load_pairs(folder)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert pairs.ids == ["red.png", "two#0", "two#1", "dev.png"]
    assert pairs.groups == [0, 1, 1, 2]
    aside = dict(pairs.quarantined)
    assert len(aside) == len(pairs.quarantined) == 6
    assert aside["alone.png"] == "image without text"
    assert aside["note"] == aside["dev note"] == "text without image"


def test_a_hash_decides_where_no_split_is_named(tmp_path):
    for name in ("1.jpg", "2.jpg", "3.jpg", "12.jpg"):
        draw(tmp_path / name)
    rows = (f"{name},x" for name in ("1.jpg", "2.jpg", "3.jpg", "12.jpg"))
    write(tmp_path / "captions.csv", "image,caption", *rows)
    assert load_pairs(tmp_path).splits == ["train", "test", "train", "dev"]
    assert load_pairs(tmp_path, split="train").ids == ["1.jpg", "3.jpg"]


def test_text_alone_is_a_collection_but_has_no_pairs(tmp_path):
    write_jsonl(tmp_path, {"id": "a", "caption": "x"}, {"id": "b", "caption": "y"})
    assert load(tmp_path).ids == ["a", "b"]
    with pytest.raises(ValueError, match="nothing usable in .*: no item has both an image and a"):
        load_pairs(tmp_path)


def test_images_alone_are_a_collection_but_have_no_pairs(tmp_path):
    draw(tmp_path / "a.png")
    write_jsonl(tmp_path, {"image": "a.png"})
    assert load(tmp_path).captions == [[]]
    with pytest.raises(ValueError, match="nothing usable in .*: no item has both an image and a"):
        load_pairs(tmp_path)


def test_the_warning_is_one_line_with_the_first_reasons(tmp_path):
    draw(tmp_path / "a.png")
    names = [f"gone {number}\n.png" for number in range(4)]
    write_jsonl(tmp_path, *({"image": name, "caption": "x"} for name in ("a.png", *names)))
    with pytest.warns(UserWarning) as caught:
        load(tmp_path)
    message = str(caught[0].message)
    assert message.startswith("4 of 5 entries were set aside (see .quarantined): gone 0 .png: the")
    assert message.endswith("; ...") and "\n" not in message and "gone 3" not in message
    draw(tmp_path / "b.png")
    write_jsonl(tmp_path, {"image": "a.png", "caption": "x"})
    with pytest.warns(UserWarning, match=r"b.png: image without a caption$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions.jsonl": ""}, "captions.jsonl names 0 files; 0 entries were set aside: none"),
        (
            {"captions.csv": "image,caption\na.jpg,x\n"},
            "captions.csv names 1 files; 1 entries were set aside: a.jpg: the file does not exist",
        ),
        ({"dataset_a.json": "{"}, "dataset_a.json: not JSON: .* line 1 column 2"),
        ({"dataset_a.json": "[]"}, r"dataset_a.json: expected a JSON object, got \[\]"),
        ({"captions_a.json": "{}"}, "captions_a.json: `images` must be a list, got null"),
        ({}, "none of the layouts known"),
    ],
)
@pytest.mark.parametrize("loader", [load, load_pairs])
def test_a_collection_that_cannot_be_used_is_a_value_error_of_one_line(
    loader, files, message, tmp_path
):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        loader(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_split_without_a_usable_file_says_so(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    write_jsonl(
        tmp_path,
        {"image": "a.png", "caption": "x", "split": "train"},
        {"image": "b.png", "caption": "x", "split": "test"},
    )
    assert load_pairs(tmp_path, split="train").ids == ["a.png"]
    with pytest.raises(ValueError, match="nothing usable .* b.png: empty file"):
        load_quietly(tmp_path, split="test")


def test_every_form_of_a_collection_gives_the_same_items_and_batches(capsys, tmp_path):
    """With more scenes, and the batches of all forms, by the script itself."""
    one_a_kind_of_source = ("captions.csv", "shards", "parquet", "tf.data")
    assert collection_forms.main(12, tmp_path, one_a_kind_of_source) == []
    assert capsys.readouterr().out.count("alike") == len(collection_forms.FORMS)

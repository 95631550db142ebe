"""Parquet: columns and file names, what is broken in rows and files, and Hugging Face's files."""

import io
import os
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import draw, load_quietly
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import load, load_pairs
from mmret_tf.data.decoders.image import load_image
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.readers.packed import parquet_pictures
from mmret_tf.data.readers.packed.parquet_pictures import ParquetSource


def png(level=128):
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def write_table(path, row_group_size=100, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size)
    return path


def first_pictures(items):
    return [each[0].read() for each in items.sources["image"]]


def struct_of(content, path=None):
    """Hugging Face's type of an encoded picture."""
    return {"bytes": content, "path": path}


@pytest.mark.parametrize(
    "image",
    [
        pyarrow.array([png(1), png(2)]),
        pyarrow.array([png(1), png(2)], pyarrow.large_binary()),
        pyarrow.array([png(1), png(2)]).dictionary_encode(),
        pyarrow.array([struct_of(png(1), "a.png"), struct_of(png(2))]),
        pyarrow.array([{"bytes": png(1)}, {"bytes": png(2)}]),
    ],
    ids=["binary", "large", "dictionary", "struct", "without a path"],
)
@pytest.mark.parametrize(
    "caption",
    [
        [["a dog", "一只狗"], ["two"]],
        [[{"raw": "a dog"}, {"raw": "一只狗"}], [{"raw": "two"}]],
        [{"text": ["a dog", "一只狗"]}, {"text": ["two"]}],
    ],
    ids=["list", "structs", "struct"],
)
def test_pictures_and_captions_come_in_many_forms(image, caption, tmp_path):
    write_table(tmp_path / "a.parquet", image=image, caption=caption)
    items = load(tmp_path)
    assert items.ids == ["a.parquet/0", "a.parquet/1"]
    assert items.captions == [["a dog", "一只狗"], ["two"]]
    assert first_pictures(items) == [png(1), png(2)]


def test_paths_are_relative_to_the_file_and_stay_in_the_folder(tmp_path):
    draw(tmp_path / "outside.png")
    for name in ("a.png", "b.png", "unnamed.png"):
        draw(tmp_path / "photos" / "data" / name)
    paths = ["a.png", "../../outside.png", "gone.png", None]
    captions = ["good", "x", "x", "a note"]
    write_table(tmp_path / "photos" / "data" / "0.parquet", file_name=paths, text=captions)
    items = load_quietly(tmp_path / "photos", loader=load)
    assert items.captions == [["good"], ["a note"]]
    assert items.image_paths == [[tmp_path / "photos" / "data" / "a.png"], []]
    assert dict(items.quarantined) == {
        "../outside.png": "leads outside the collection (data/0.parquet row 1)",
        "data/gone.png": "the file does not exist (data/0.parquet row 2)",
        "data/b.png": "image without a caption",
        "data/unnamed.png": "image without a caption",
    }


def test_a_struct_without_bytes_names_a_file(tmp_path):
    draw(tmp_path / "a.png")
    image = [struct_of(None, "a.png"), struct_of(png(), "a.png"), None, struct_of(None)]
    write_table(tmp_path / "0.parquet", image=image, caption=["file", "bytes", "note", None])
    items = load_quietly(tmp_path, loader=load)
    assert items.captions == [["file"], ["bytes"], ["note"]]
    assert items.image_paths[0] == [tmp_path / "a.png"]
    assert items.sources["image"][1][0].read() == png() and items.sources["image"][2] == []
    assert items.quarantined == [("0.parquet row 3", "neither a file nor a caption")]


def test_ids_splits_and_attributes(tmp_path):
    columns = {"id": [7, 8], "split": ["val", None], "year": [2019, None], "score": [0.5, np.nan]}
    columns |= {"tag": pyarrow.array(["x", "y"]).dictionary_encode(), "raw": [b"1", b"2"]}
    columns |= {"vector": [[1.0], [2.0]], "time": pyarrow.array([1, 2], pyarrow.timestamp("s"))}
    write_table(tmp_path / "train.parquet", image=[png(1), png(2)], **columns)
    items = load(tmp_path)
    assert items.ids == ["7", "8"] and items.splits == ["dev", "train"]
    assert items.attributes == [{"year": 2019, "score": 0.5, "tag": "x"}, {"tag": "y"}]


def test_files_for_each_split_are_one_collection(tmp_path):
    names = ["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"]
    for level, name in enumerate([*names, "validation-00000-of-00001"]):
        write_table(tmp_path / "data" / f"{name}.parquet", image=[png(level)], text=[name])
    items = load(tmp_path)
    assert items.splits == ["test", "train", "train", "dev"]
    assert first_pictures(items) == [png(level) for level in range(4)]
    assert load(tmp_path / "data" / f"{names[1]}.parquet").captions == [[names[1]]]
    ranged = tmp_path / "data" / "train-{00000..00001}-of-00002.parquet"
    assert load(ranged).captions == [[names[1]], [names[2]]]


@pytest.mark.parametrize(
    ("columns", "form", "captions"),
    [
        (["photo", "prompt", "text"], {"image_column": "photo", "caption_column": "prompt"}, "b"),
        (["photo", "file_name", "caption"], {}, "c"),  # bytes are a picture, whatever their name
    ],
)
def test_unusual_columns(columns, form, captions, tmp_path):
    values = zip(columns, ([png()], ["b"], ["c"]), strict=True)
    write_table(tmp_path / "a.parquet", **dict(values))
    items = load(tmp_path, **form)
    assert items.captions == [[captions]] and first_pictures(items) == [png()]


@pytest.mark.parametrize(
    ("columns", "form", "message"),
    [
        ({"a": [1], "b": [2]}, {}, "no column of images or captions among a, b: name them with"),
        ({"image": [png()]}, {"image_column": "x"}, "no column of images .* among image: name"),
        ({"image": [[1, 2]], "text": ["x"]}, {}, "column image must hold .* it holds list"),
        ({"image": [png()]}, {"separator": ";"}, "separator does not apply to"),
        ({"image": pyarrow.array([], pyarrow.binary())}, {}, "nothing usable in .*0 entries"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_value_error(columns, form, message, tmp_path):
    write_table(tmp_path / "a.parquet", **columns)
    with pytest.raises(ValueError, match=message) as caught:
        load_quietly(tmp_path, loader=load, **form)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_set_aside_alone(tmp_path):
    image = [png(1), None, b"no picture", png(2)[:-30], png(3), b"", png(4), png(5)]
    caption = pyarrow.array(["good", None, "x", "x", " ", "x", "x", b"caf\xe9"], pyarrow.binary())
    ids = ["a", "b", "c", "d", "e", "f", "a", "h"]
    write_table(tmp_path / "0.parquet", image=image, caption=caption, id=ids)
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a", "e"] and items.captions == [["good"], []]
    reasons = {place.removeprefix("0.parquet row "): each for place, each in items.quarantined}
    assert sorted(reasons) == list("1234567")
    assert reasons["1"] == "neither a file nor a caption" and reasons["5"] == "empty file"
    assert reasons["4"] == "empty caption" and reasons["6"].startswith("duplicate id")
    assert reasons["7"] == "not UTF-8: byte 0xe9 at 4"


def test_a_text_that_is_not_utf_8_costs_its_row_alone(tmp_path):
    raw = pyarrow.array([b"good", b"caf\xe9", b"fine"])
    texts = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])
    write_table(tmp_path / "0.parquet", image=[png(n) for n in range(3)], caption=texts)
    items = load_quietly(tmp_path, loader=load)
    assert items.captions == [["good"], ["fine"]]
    assert [place for place, _ in items.quarantined] == ["0.parquet row 1"]


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "outside", "folder", "pipe"])
def test_a_damaged_file_does_not_cost_the_others(damage, tmp_path):
    folder = tmp_path / "photos"
    good = write_table(folder / "b.parquet", image=[png()], caption=["good"])
    bad = folder / "a.parquet"
    if damage == "outside":
        bad.symlink_to(write_table(tmp_path / "c.parquet", image=[png()], caption=["x"]))
    elif damage == "folder":
        bad.mkdir()
    elif damage == "pipe":
        os.mkfifo(bad)
    else:
        contents = {"cut": good.read_bytes()[:-9], "text": b"not parquet at all", "empty": b""}
        bad.write_bytes(contents[damage])
    items = load_quietly(folder, loader=load)
    assert items.ids == ["b.parquet/0"]
    ((place, reason),) = items.quarantined
    reasons = dict.fromkeys(("folder", "pipe"), "not a regular file")
    reasons["outside"] = "leads outside the collection"
    assert place == "a.parquet"
    assert reason.startswith(reasons.get(damage, "not a whole Parquet file: "))


def test_bytes_that_are_changed_at_random_never_give_another_error(tmp_path):
    """Whatever pyarrow says of a damaged file is a problem, or a ValueError if it costs all."""
    whole = write_table(
        tmp_path / "whole.parquet", 4, image=[png(n) for n in range(9)], caption=["x"] * 9
    ).read_bytes()
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    loaded = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            content[place] = generator.integers(256)
        (tmp_path / "photos" / "0.parquet").write_bytes(content)
        try:
            loaded += len(load_quietly(tmp_path / "photos", loader=load)) > 0
        except ValueError as error:
            assert "nothing usable" in str(error)
    assert 0 < loaded < 60


def test_loading_does_not_hold_the_pictures(tmp_path, monkeypatch):
    held, read = [], ParquetSource.read

    def counted(source):
        held.append(pyarrow.total_allocated_bytes())
        return read(source)

    monkeypatch.setattr(parquet_pictures, "KEPT_BYTES", 2**20)
    monkeypatch.setattr(ParquetSource, "read", counted)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 200, 3), np.uint8)
    pictures = [encode_png(each) for each in pixels]
    file = write_table(tmp_path / "a.parquet", 10, image=pictures, caption=["x"] * 160)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    items = load(file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 19e6 and most < 4e6 and max(held) - before < 10e6
    assert first_pictures(items) == pictures


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    write_table(tmp_path / "a.parquet", image=[png()], caption=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'need pyarrow: pip install "mmret_tf\[parquet\]"'):
        load(tmp_path)


def test_files_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="an oracle, not a dependency")
    kinds = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    kinds["label"] = datasets.ClassLabel(names=["cat", "dog"])
    rows = {"image": [Image.new("RGB", (5, 4), (n, 0, 0)) for n in range(5)], "label": [0, 1] * 2}
    rows |= {"caption": [[f"picture {n}", "图"] for n in range(5)], "label": [0, 1, 0, 1, 1]}
    written = datasets.Dataset.from_dict(rows, datasets.Features(kinds))
    written.to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=2)
    items = load(tmp_path)
    assert items.splits == ["train"] * 5 and items.captions == rows["caption"]
    assert [each["label"] for each in items.attributes] == rows["label"]
    for picture, (source,) in zip(written["image"], items.sources["image"], strict=True):
        assert np.array_equal(load_image(source.read(), 9), load_image(picture, 9))


def test_it_is_batched_embedded_and_found_again(shared_model, tmp_path):
    levels = [0, 100, 200, 255]
    image = [struct_of(png(level)) for level in levels]
    file = tmp_path / "train.parquet"
    write_table(file, 2, image=image, caption=[f"a {level} square" for level in levels])
    pairs = load_pairs(file)
    inputs, rows = next(iter(pairs.as_dataset(shared_model, batch_size=4, training=True)))
    assert [levels[row] for row in rows] == inputs["image"].numpy()[:, 0, 0, 0].tolist()
    store = mm.EmbeddingStore.export(shared_model, pairs, tmp_path / "embeddings")
    record = store.items[3]["image"]
    assert record == f"{file}/image/1/1"
    assert np.array_equal(load_image(record, 9), load_image(png(255), 9))

"""Datasets in memory: tf.data, Hugging Face's rows, lists; and rows that are set aside."""

import io
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import Collection
from mmret_tf.data.decoders.image import decode_image

RED = Image.new("RGB", (4, 3), "red")
PIXELS = np.asarray(RED)


def png(image=RED):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "picture",
    [RED, PIXELS, png(), {"bytes": png(), "path": None}],
    ids=["PIL", "array", "bytes", "Hugging Face"],
)
def test_a_picture_comes_in_many_forms(picture, tmp_path):
    items = Collection.from_dataset([{"image": picture, "text": "red"}])
    ((source,),) = items.sources["image"]
    assert np.array_equal(decode_image(source.read()), PIXELS)
    assert items.captions == [["red"]] and items.splits == [""]


@pytest.mark.parametrize(
    "captions",
    [["a", "红"], ("a", "红"), np.array(["a", "红"], object), {"text": ["a", "红"]}]
    + [[{"raw": "a"}, {"raw": "红"}], [b"a", "红".encode()]],
)
def test_captions_come_in_many_forms(captions):
    assert Collection.from_dataset([{"image": RED, "captions": captions}]).captions == [["a", "红"]]


def test_rows_of_tensorflow_datasets():
    images, texts = np.stack([PIXELS, PIXELS[::-1]]), np.array([["a", "b"], ["c", "红"]])
    columns = {"image": images, "captions": {"text": texts}, "image/id": np.int64([7, 9])}
    items = Collection.from_dataset(tf.data.Dataset.from_tensor_slices(columns))
    assert items.captions == [["a", "b"], ["c", "红"]]
    assert items.attributes == [{"image/id": 7}, {"image/id": 9}]


def test_ids_splits_attributes_and_rows_without_a_picture():
    rows = [{"id": 3, "image": RED, "split": "validation", "year": np.int32(2019), "tags": ["x"]}]
    rows.append({"id": "note", "image": None, "caption": "a note", "year": None})
    items = Collection.from_dataset(rows)
    assert items.ids == ["3", "note"] and items.splits == ["dev", ""]
    assert items.attributes == [{"year": 2019}, {}]
    assert items.captions == [[], ["a note"]]


def test_unusual_columns_are_named():
    rows = [{"photo": RED, "prompt": "red", "text": "an attribute"}]
    items = Collection.from_dataset(rows, image_column="photo", caption_column="prompt")
    assert items.captions == [["red"]] and items.attributes == [{"text": "an attribute"}]


def test_bad_rows_are_set_aside_by_number():
    rows = [{"image": b"no picture", "caption": "x"}, {"image": np.ones((2, 2)) * 300}, [1]]
    rows += [{"image": 3}, {"other": 3}, {"image": RED, "caption": ["", "good"]}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        items = Collection.from_dataset(rows)
    assert items.ids == ["5"] and items.captions == [["good"]]
    assert sorted(place for place, _ in items.quarantined) == [f"row {n}" for n in range(6)]
    with pytest.raises(ValueError, match="nothing usable in the dataset"):
        Collection.from_dataset([])


def test_what_is_not_text_costs_neither_the_row_nor_the_others():
    cut = Image.open(io.BytesIO(png()[:-30]))  # decoded when it is used, as Hugging Face has it
    rows = [{"image": RED, "text": "red", "mask": b"\xff\xfe"}, {"image": cut, "text": "x"}]
    rows += [{"image": RED, "text": "x", "split": 3}, {"image": RED, "words": "x"}]
    rows += [{"image": RED, "text": b"caf\xe9"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        items = Collection.from_dataset(rows, caption_column="text")
    assert items.ids == ["0"] and items.attributes == [{}]
    assert [place for place, _ in items.quarantined] == ["row 1", "row 2", "row 3", "row 4"]


def test_it_is_trained_on_and_embedded(model, tmp_path):
    rows = [{"image": RED, "text": "a red circle"}, {"image": Image.new("L", (4, 4)), "text": "x"}]
    items = Collection.from_dataset(rows)
    dataset = items.pairs().as_dataset(model, batch_size=2, training=True)
    assert np.isfinite(model.fit(dataset, epochs=1, verbose=0).history["loss"]).all()
    store = mm.EmbeddingStore.export(model, items, tmp_path / "embeddings")
    assert store.ids == ["0", "1"]

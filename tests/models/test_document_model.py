"""The model of section 5: the listing runs, labels let it learn, ranking agrees with NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.applications import VGG16
from keras.applications.resnet50 import preprocess_input
from keras.layers import (
    GRU,
    LSTM,
    BatchNormalization,
    Conv2D,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
)
from keras.losses import CosineSimilarity
from keras.models import Sequential

from mmret_tf.models import MultimodalRetrievalModel, item_labels, rank_items, top_k_images

N_ITEMS = 8


def small_model():
    """Two models of a few hundred weights: 16 features of an image, 8 of a text."""
    keras.utils.set_random_seed(0)
    image_model = Sequential([Conv2D(16, 3, activation="relu"), GlobalAveragePooling2D()])
    return MultimodalRetrievalModel(image_model, Sequential([Embedding(50, 8), LSTM(8)]))


def noisy_pairs(pairs_per_item, seed):
    """Noisy pictures of each item's colour, noisy texts with its word, and the item ids."""
    random = np.random.default_rng(seed)
    items = np.tile(np.arange(N_ITEMS), pairs_per_item)
    colours = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(N_ITEMS)])[items]
    images = colours[:, None, None] + random.normal(0, 0.5, (len(items), 8, 8, 3))
    texts = random.integers(20, 50, (len(items), 5))
    texts[np.arange(len(items)), random.integers(0, 5, len(items))] = 1 + items
    return {"image": images.astype(np.float32), "text": texts}, items


def cosines(rows, others):
    rows, others = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    return rows @ others.T / lengths


@pytest.fixture
def without_graphs():
    """Tracing a ResNet50 takes longer than three steps without a graph."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


class Listing(tf.keras.Model):
    """The model as section 5 has it, but for its two models, which are globals there."""

    def __init__(self, image_model, text_model):
        super().__init__()
        self.image_model = image_model
        self.text_model = text_model

    def call(self, inputs):
        image_features = self.image_model(inputs["image"])
        text_features = self.text_model(inputs["text"])
        return tf.concat([image_features, text_features], axis=1)


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_the_listing_of_the_document_runs():
    """Its names, calls and order; a comment where a line differs."""
    keras.utils.set_random_seed(0)
    # Values that the document leaves open.
    vocab_size, embedding_dim, lstm_units, epochs, k = 100, 16, 8, 3, 3
    random = np.random.default_rng(0)
    image_data = preprocess_input(random.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32))
    text_data = random.integers(0, vocab_size, (4, 6))
    item_ids = ["shoe", "hat", "shoe", "bag"]
    query_image, query_text = image_data[:1], text_data[:1]

    # "imagenet" would have to be downloaded.
    image_model = tf.keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
    text_model = tf.keras.Sequential(
        [
            tf.keras.layers.Embedding(vocab_size, embedding_dim, mask_zero=True),  # a mask
            tf.keras.layers.LSTM(units=lstm_units),
        ]
    )
    model = MultimodalRetrievalModel(image_model, text_model)  # not as globals
    labels = item_labels(item_ids, model.width)  # not stated
    model.compile(
        optimizer="adam",
        loss=tf.keras.losses.CosineSimilarity(),
        metrics=[tf.keras.metrics.CosineSimilarity()],
    )
    x = {"image": image_data, "text": text_data}
    history = model.fit(x=x, y=labels, epochs=epochs, verbose=0).history
    predictions = model.predict({"image": query_image, "text": query_text}, verbose=0)
    gallery = model.predict(x, verbose=0)  # missing
    sorted_indices = rank_items(predictions, gallery)  # tf.argsort of the predictions alone
    top_images = image_data[sorted_indices[0, :k]]  # not [:k], which takes queries

    assert model.width == 2048 + lstm_units and predictions.shape == (1, model.width)
    assert len(history["loss"]) == epochs
    assert history["cosine_similarity"] == pytest.approx(-np.array(history["loss"]), abs=1e-5)
    assert sorted_indices[0, 0] == 0 and sorted(sorted_indices[0]) == [0, 1, 2, 3]
    assert np.array_equal(top_k_images(predictions, gallery, image_data, k)[0], top_images)


def test_the_model_of_the_listing_trains_but_a_saved_file_does_not_load(tmp_path):
    """This is why there is a `get_config`."""
    parts = small_model()

    class Globals(Listing):
        def __init__(self):
            super().__init__(parts.image_model, parts.text_model)

    listing = Globals()
    pairs, items = noisy_pairs(1, seed=0)
    listing.compile("adam", CosineSimilarity(), run_eagerly=True)
    before = [np.array(weight) for weight in listing.trainable_variables]
    listing.fit(pairs, item_labels(items, parts.width), verbose=0)
    changed = [
        not np.array_equal(old, new)
        for old, new in zip(before, listing.trainable_variables, strict=True)
    ]
    assert len(changed) == 6 and all(changed)
    assert np.array_equal(listing(pairs), parts(pairs))
    listing.save(tmp_path / "listing.keras")
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        keras.saving.load_model(tmp_path / "listing.keras", custom_objects={"Globals": Globals})


def test_sorting_the_prediction_of_a_query_ranks_no_items():
    """This is why there is `rank_items`."""
    model = small_model()
    pairs, _ = noisy_pairs(1, seed=0)
    predictions = model.predict(pairs, verbose=0)
    sorted_indices = tf.argsort(predictions[:1], direction="DESCENDING")
    # All 24 coordinates, and not the 8 items; [:3] leaves the one query as it is.
    assert sorted(sorted_indices.numpy()[0]) == list(range(model.width))
    assert sorted_indices[:3].shape == (1, model.width)
    with pytest.raises(IndexError):
        pairs["image"][sorted_indices[:3]]


def test_it_finds_the_item_of_new_pairs():
    model = small_model()
    pairs, items = noisy_pairs(12, seed=1)
    new_pairs, new_items = noisy_pairs(8, seed=2)
    labels = item_labels(range(N_ITEMS), model.width)
    model.compile(keras.optimizers.Adam(0.01), loss=CosineSimilarity())
    losses = model.fit(pairs, labels[items], batch_size=16, epochs=25, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.4

    predictions = model.predict(new_pairs, verbose=0)
    assert np.mean(rank_items(predictions, labels)[:, 0] == new_items) > 0.8
    gallery = model.predict(pairs, verbose=0)
    found = top_k_images(predictions, gallery, items, k=1)  # the item ids stand for the pictures
    assert np.mean(np.ravel(found) == new_items) > 0.8
    assert cosines(predictions, predictions)[new_items[:, None] != new_items].mean() < 0.6


def test_with_one_label_for_all_everything_becomes_one_vector():
    model = small_model()
    pairs, items = noisy_pairs(12, seed=1)
    new_pairs, new_items = noisy_pairs(8, seed=2)
    labels = item_labels(range(N_ITEMS), model.width)
    model.compile(keras.optimizers.Adam(0.01), loss=CosineSimilarity())
    model.fit(pairs, labels[0 * items], batch_size=16, epochs=25, verbose=0)
    predictions = model.predict(new_pairs, verbose=0)
    assert cosines(predictions, predictions).min() > 0.95
    assert np.mean(rank_items(predictions, labels)[:, 0] == new_items) < 0.2  # chance is 0.125


IMAGE_MODELS = {
    "VGG16": lambda: VGG16(include_top=False, weights=None, pooling="max", input_shape=(32, 32, 3)),
    "flat": lambda: Sequential([keras.Input((32, 32, 3)), Conv2D(2, 3, strides=8), Flatten()]),
    "not built": lambda: Sequential([Conv2D(4, 3), GlobalAveragePooling2D()]),
}


@pytest.mark.parametrize("recurrent", [LSTM, GRU])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_output_is_both_features_joined(name, recurrent):
    image_model = IMAGE_MODELS[name]()
    text_model = Sequential([Embedding(20, 4, mask_zero=True), recurrent(3)])
    model = MultimodalRetrievalModel(image_model, text_model)
    random = np.random.default_rng(0)
    images = random.uniform(0, 1, (3, 32, 32, 3)).astype(np.float32)
    texts = np.array([[3, 4, 0], [5, 0, 0], [19, 1, 2]])
    joined = np.concatenate([image_model(images), text_model(texts)], axis=1)
    assert model.width == joined.shape[1]
    assert np.allclose(model({"image": images, "text": texts}), joined, atol=1e-6)


def test_both_models_are_told_whether_they_train():
    keras.utils.set_random_seed(0)
    image_model = Sequential([GlobalAveragePooling2D(), BatchNormalization(momentum=0.0)])
    text_model = Sequential([Embedding(50, 4), GlobalAveragePooling1D(), Dropout(0.5)])
    model = MultimodalRetrievalModel(image_model, text_model)
    model.compile("sgd", loss=CosineSimilarity(), run_eagerly=True)
    x = {"image": np.full((2, 4, 4, 3), 7.0, np.float32), "text": np.ones((2, 3), int)}
    model.fit(x, item_labels(["a", "b"], model.width), verbose=0)
    # With momentum 0 the moving average is that of the last batch.
    average = image_model.layers[-1].moving_mean
    assert np.allclose(average, 7.0)
    dropped = np.isclose(model(x, training=True)[:, 3:], 0)
    assert dropped.any() and not np.isclose(model(x, training=False)[:, 3:], 0).any()

    listing = Listing(image_model, text_model)
    listing.compile("sgd", loss=CosineSimilarity(), run_eagerly=True)
    listing.fit({**x, "image": x["image"] + 1}, item_labels(["a", "b"], model.width), verbose=0)
    assert np.allclose(average, 7.0)  # it does not tell them


def test_the_loss_is_the_negative_cosine():
    model = small_model()
    model.compile(loss=CosineSimilarity(), run_eagerly=True)
    pairs, items = noisy_pairs(1, seed=0)
    labels = item_labels(items, model.width)
    expected = -np.diag(cosines(model(pairs), labels)).mean()
    assert model.evaluate(pairs, labels, verbose=0) == pytest.approx(expected, abs=1e-5)


def test_a_saved_model_answers_the_same_and_training_resumes(tmp_path):
    model = small_model()
    pairs, items = noisy_pairs(1, seed=0)
    labels = item_labels(items, model.width)
    model.compile(
        "adam", CosineSimilarity(), metrics=[keras.metrics.CosineSimilarity()], run_eagerly=True
    )
    model.fit(pairs, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")  # in safe mode
    assert isinstance(loaded, MultimodalRetrievalModel) and loaded.width == model.width
    assert np.allclose(loaded(pairs), model(pairs), atol=1e-6)
    losses = [each.fit(pairs, labels, verbose=0).history["loss"][0] for each in (model, loaded)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert np.allclose(loaded(pairs), model(pairs), atol=1e-5)  # Adam's state is restored too


def test_labels_belong_to_the_item():
    labels = item_labels(["shoe", "hat", "鞋", "shoe"], 2176)
    assert labels.dtype == np.float32
    assert np.array_equal(labels[3], labels[0])
    assert np.allclose(cosines(labels[:3], labels[:3]), np.eye(3), atol=0.1)
    assert np.allclose(np.linalg.norm(labels, axis=1), 1, atol=1e-6)
    assert np.array_equal(item_labels(["hat"], 2176), labels[1:2])
    assert np.array_equal(item_labels(np.array([7, 8]), 30), item_labels(["7", "8"], 30))
    assert abs(cosines(item_labels(["hat"], 2176, seed=1), labels[1:2])[0, 0]) < 0.1
    assert item_labels([], 5).shape == (0, 5)

    many = item_labels(range(1000), 256)
    similar = cosines(many, many)[~np.eye(1000, dtype=bool)]
    # Random directions: the cosine has mean 0 and deviation 1 / sqrt(width).
    assert abs(similar.mean()) < 1e-3 and similar.std() == pytest.approx(1 / 16, rel=0.02)


def test_labels_are_the_same_everywhere_and_always():
    """A trained model is useful only as long as its labels can be drawn again."""
    expected = np.array([[-16.5, -93.5, -62.5], [85.5, -42.5, -86.5]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(item_labels(["鞋", "hat"], 3), expected, atol=1e-6)


def test_ranking_by_hand():
    # Cosines with (1, 0): 0.6, 1, -1, 1, 0. Length does not matter; ties go to the earlier row.
    items = [[3, 4], [9, 0], [-1, 0], [0.1, 0], [0, 0]]
    assert rank_items([[2, 0]], items).tolist() == [[1, 3, 0, 4, 2]]
    assert top_k_images([[2, 0], [0, 1]], items, list("abcde"), k=2) == [["b", "d"], ["a", "b"]]


def test_ranking_agrees_with_a_full_sort():
    random = np.random.default_rng(0)
    queries, items = random.standard_normal((7, 5)), random.standard_normal((40, 5))
    expected = np.argsort(-cosines(queries, items), axis=1, kind="stable")
    ranking = rank_items(queries, items)
    assert ranking.dtype == np.int64 and np.array_equal(ranking, expected)
    assert np.array_equal(rank_items(queries, items, k=3), expected[:, :3])
    images = random.integers(0, 255, (40, 2, 2, 3))
    for k in (1, 3, 40, 99):
        found = top_k_images(queries, items, images, k)
        assert np.array_equal(found, images[expected[:, :k]])


def test_mistakes_in_the_model_are_explained():
    model = small_model()
    pairs, items = noisy_pairs(1, seed=0)
    with pytest.raises(ValueError, match=r'both "image" and "text"; got \[\'image\'\]'):
        model({"image": pairs["image"]})
    with pytest.raises(ValueError, match='both "image" and "text"; got list'):
        model([pairs["image"], pairs["text"]])
    model.compile("adam", CosineSimilarity(), run_eagerly=True)
    for labels, got in [
        (items, r"shape \(.*\)"),
        (items[:, None], r"shape \(.*, 1\)"),
        (item_labels(items, 23), r"shape \(.*, 23\)"),
        (None, "none"),
    ]:
        with pytest.raises(ValueError, match=rf"embeddings \[batch, 24\].*got {got}"):
            model.fit(pairs, labels, verbose=0)
    maps = keras.Sequential([keras.Input((8, 8, 3)), Conv2D(4, 3)])
    with pytest.raises(ValueError, match=r'image_model.*pooling="avg".*shape \(None, 6, 6, 4\)'):
        MultimodalRetrievalModel(maps, model.text_model)
    words = Sequential([Embedding(20, 4)])
    with pytest.raises(ValueError, match=r"text_model .*LSTM.*shape \(None, None, 4\)"):
        MultimodalRetrievalModel(model.image_model, words)


def test_mistakes_in_labels_and_rankings_are_explained():
    rows = np.eye(3)
    for ids in ("shoe", [1.5], [["a"]]):
        with pytest.raises(ValueError, match="item_ids must be a list of strings or integers; got"):
            item_labels(ids, 4)
    with pytest.raises(ValueError, match="width must be an integer of at least 1; got 0"):
        item_labels(["a"], 0)
    with pytest.raises(ValueError, match="queries must have width 3; got 2"):
        rank_items([[1, 2]], rows)
    for bad in (np.full((1, 3), np.nan), np.full((1, 3), np.inf)):
        for queries, items in [(bad, rows), (rows, bad)]:
            with pytest.raises(ValueError, match="NaN, infinity"):
                rank_items(queries, items)
    with pytest.raises(ValueError, match="must be a non-empty array"):
        rank_items(rows, [])
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got 0"):
        rank_items(rows, rows, k=0)
    with pytest.raises(ValueError, match="images must be one an item; got 2 and 3 items"):
        top_k_images(rows, rows, "ab", k=1)

"""The model of the document's section 5 as it is printed: an image's and a text's features, joined.

What cannot work in it is changed here. Its `call` reads both models from outside the class, where
Keras finds nothing to train: they are given to the model. Nor does it pass `training` on, without
which batch normalization never learns its averages. Its labels are of unstated shape: see
`item_labels`. And `np.argsort(predictions)` sorts the coordinates of vectors: see
`rank_items`. `DualEncoder` is what to use otherwise: here an item has to have both modalities, and
nothing ties the image half of a vector to the text half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.checks import checked_count


@keras.saving.register_keras_serializable("mmret_tf")
class MultimodalRetrievalModel(tf.keras.Model):
    """An image with its text -> the features of both, one after the other. Section 5.

    Call: `{"image": [batch, height, width, 3], "text": [batch, length]}` -> `[batch, width]`, not
    of unit length. Pictures are given as `image_model` wants them, nothing is done to them here:
    for ResNet50, `keras.applications.resnet50.preprocess_input` of levels 0 to 255.

    `compile`, `fit`, `predict` and `save` are Keras' own. Labels are the embeddings that the pairs
    should get, `[batch, width]`, from `item_labels`; the loss is `keras.losses.CosineSimilarity`.

    Args:
        image_model: functional or Sequential model that gives `[batch, features]`, as
            `keras.applications.ResNet50(include_top=False, pooling="avg")` does. Without weights
            yet, it is built for pictures of any size with three channels.
        text_model: the same for token ids, say an `Embedding` and an `LSTM`. Without weights yet,
            it is built for texts of any length.

    Attributes:
        width: of the vectors: the image features and the text features together.

    Raises:
        ValueError: the output of one of the models is not `[batch, features]`.

    >>> image_model = keras.Sequential(
    ...     [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    ... )
    >>> text_model = keras.Sequential([keras.layers.Embedding(100, 16), keras.layers.LSTM(4)])
    >>> model = MultimodalRetrievalModel(image_model, text_model)
    >>> model.compile(optimizer="adam", loss=keras.losses.CosineSimilarity())
    >>> x = {"image": np.zeros((2, 32, 32, 3)), "text": np.array([[5, 3, 0], [7, 0, 0]])}
    >>> history = model.fit(x, item_labels(["a", "b"], model.width), verbose=0)
    >>> model.predict(x, verbose=0).shape
    (2, 12)
    """

    def __init__(self, image_model: keras.Model, text_model: keras.Model, **kwargs):
        super().__init__(**kwargs)
        self.image_model = image_model
        self.text_model = text_model
        self.width = _width(image_model, "image_model", (None, None, None, 3)) + _width(
            text_model, "text_model", (None, None)
        )
        self.built = True

    def build(self, input_shape):
        """Nothing is left to build: both models have their weights."""

    def call(self, inputs, training=False):
        if not isinstance(inputs, dict) or set(inputs) != {"image", "text"}:
            got = list(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(f'inputs must be a dict with both "image" and "text"; got {got}')
        image_features = self.image_model(inputs["image"], training=training)
        text_features = self.text_model(inputs["text"], training=training)
        return tf.concat([image_features, text_features], axis=1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        # Keras' loss would spread labels `[batch, 1]`, item numbers say, over all coordinates, and
        # train on that without a word.
        shape = tf.TensorShape([] if y is None else y.shape)
        if not shape.is_compatible_with([None, self.width]):
            raise ValueError(
                f"labels must be embeddings [batch, {self.width}], as item_labels(item_ids, "
                f"model.width) makes them; got {'none' if y is None else f'shape {shape}'}"
            )
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def get_config(self) -> dict:
        parts = {"image_model": self.image_model, "text_model": self.text_model}
        return {
            "name": self.name,
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> MultimodalRetrievalModel:
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("image_model", "text_model")
        }
        return cls(**{**config, **parts})


def item_labels(item_ids: Sequence[str] | Sequence[int], width: int, seed: int = 0) -> np.ndarray:
    """Labels for `MultimodalRetrievalModel`: a random direction for each item. Section 5.

    Pairs of one item share its label. With one label for all, or with cosine similarity between
    matching pairs alone, one and the same vector for every input is as good as any; random
    directions are nearly at right angles where there are many coordinates, so that each item has
    to get a vector of its own.

    An item that was not trained on has no label that its pairs would be near to, which is why
    `DualEncoder` is the one to use. Features behind a ReLU, as those of ResNet50, are never
    negative, and half of a label is: the loss then cannot fall below about -0.7, and with many
    items it stays far above that. Ranking works all the same.

    Args:
        item_ids: `[n]`, the item of each pair. The label is drawn by a hash of the id: it is the
            same in any order, process and machine. 1 and "1" are one id.
        width: `model.width`.
        seed: another one gives other labels.

    Returns:
        float32 `[n, width]`, rows of unit length.

    Raises:
        ValueError: ids that are no list of strings or integers, or a width below 1.

    >>> labels = item_labels(["shoe", "hat", "shoe"], width=2176)
    >>> (labels @ labels.T).round(1).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    width = checked_count(width, "width")
    if isinstance(item_ids, (str, bytes)) or not all(
        isinstance(key, (str, int, np.integer)) for key in item_ids
    ):
        raise ValueError(f"item_ids must be a list of strings or integers; got {item_ids!r:.80}")
    rows = np.empty((len(item_ids), width))
    for row, key in zip(rows, item_ids, strict=True):
        digest = hashlib.shake_256(f"{seed}:{key}".encode()).digest(width)
        row[:] = np.frombuffer(digest, np.int8) + 0.5  # -127.5 to 127.5: the mean is 0
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rank_items(queries: npt.ArrayLike, items: npt.ArrayLike) -> np.ndarray:
    """All items, the most similar first: what section 5 means by `np.argsort(predictions)`.

    They are compared by cosine similarity; of equally similar ones the earlier row comes first.

    Args:
        queries: `[n_queries, width]`, say the model's predictions.
        items: `[n_items, width]`, predictions for the gallery, or its labels.

    Returns:
        Rows of `items`, int64 `[n_queries, n_items]`.

    Raises:
        ValueError: arrays that are empty, differ in width, or hold NaN or infinity.

    >>> rank_items([[2, 1], [0, 1]], [[1, 0], [0, 3], [1, 1]]).tolist()
    [[2, 0, 1], [1, 2, 0]]
    """
    return BruteForceIndex.build(items, range(len(items))).search(queries, len(items))[0]


def top_k_images(
    queries: npt.ArrayLike, items: npt.ArrayLike, images: Sequence, k: int
) -> list[list[Any]]:
    """The k images that are most similar to each query, best first. Sections 3.1(5) and 5.

    Args:
        queries: `[n_queries, width]`.
        items: `[n_items, width]`, as in `rank_items`.
        images: `[n_items]`, paths, arrays or anything else, in the order of `items`.
        k: how many; all images where there are fewer.

    Returns:
        A list for each query, of min(k, n_items) images.

    Raises:
        ValueError: k is below 1, images and items differ in number, or as in `rank_items`.

    >>> top_k_images([[2, 1]], [[1, 0], [0, 3], [1, 1]], ["a.png", "b.png", "c.png"], k=2)
    [['c.png', 'a.png']]
    """
    if len(images) != len(items):
        raise ValueError(f"images must be one an item; got {len(images)} and {len(items)} items")
    rows, _ = BruteForceIndex.build(items, range(len(items))).search(queries, k)
    return [[images[row] for row in nearest] for nearest in rows.tolist()]


def _width(model: keras.Model, name: str, input_shape: tuple) -> int:
    """How many features a model gives; it is built if it has no weights yet."""
    if not model.built:
        model.build(input_shape)
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"{name} must be a functional or Sequential model that gives [batch, features], with "
            f'pooling="avg" say, or an LSTM at its end; its output has shape {shape}'
        )
    return shape[1]

"""The model of section 5 of the document: image features and text features, joined.

The listing trains, but it cannot search. The least that mends it is changed here:

- The class takes the two models, and has `get_config`: without it, a saved file does not load.
- `call` passes `training` on: without it, batch normalization and dropout work as in prediction.
- Labels come from `item_labels`: the listing does not state their shape.
- `rank_items` compares queries with a gallery: `tf.argsort` of a prediction sorts the coordinates
  of the query, and no item takes part.

It is the contrast to `DualEncoder`: every item needs both modalities, and nothing aligns the image
half of a vector with the text half.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mmret_tf._checks import checked_count, checked_queries, checked_rows
from mmret_tf.models.layers import output_width
from mmret_tf.models.whole_model import WholeModel
from mmret_tf.similarity.nearest import nearest


@keras.saving.register_keras_serializable("mmret_tf")
class MultimodalRetrievalModel(WholeModel):
    """An image with its text -> the features of both, concatenated. Section 5.

    Call: `{"image": [batch, height, width, 3], "text": [batch, length]}` -> `[batch, width]`, not
    scaled to unit length. Pictures must be scaled as `image_model` expects: for ResNet50,
    `keras.applications.resnet50.preprocess_input` of levels 0 to 255. Texts of different lengths
    need an `Embedding` with `mask_zero=True`: without it, padding is read like words.

    `compile`, `fit`, `predict` and `save` are Keras' own. Labels are the embeddings that the pairs
    should get, `[batch, width]`, from `item_labels`. The loss is `keras.losses.CosineSimilarity`,
    minus the cosine; `keras.metrics.CosineSimilarity` is the cosine itself.

    Args:
        image_model: Functional or Sequential model that returns `[batch, features]`, such as
            `keras.applications.ResNet50(include_top=False, pooling="avg")`. If it has no weights
            yet, it is built for pictures of any size with three channels.
        text_model: The same for token ids, such as an `Embedding` and an `LSTM`. If it has no
            weights yet, it is built for texts of any length.

    Attributes:
        width: Number of image features and text features together.

    Raises:
        ValueError: The output of a model is not `[batch, features]`.

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
        # The document's own text model has no input shape, and so no weights, before this.
        for model, shape in ((image_model, (None, None, None, 3)), (text_model, (None, None))):
            if not model.built:
                model.build(shape)
        self.width = output_width(image_model, "image_model") + output_width(
            text_model, "text_model"
        )
        self.built = True

    def input_specs(self) -> dict:
        parts = {"image": self.image_model, "text": self.text_model}
        return {
            name: keras.InputSpec(part.inputs[0].dtype, part.inputs[0].shape)
            for name, part in parts.items()
        }

    def call(self, inputs, training=False):
        if not isinstance(inputs, dict) or set(inputs) != {"image", "text"}:
            got = list(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(f'inputs must be a dict with both "image" and "text"; got {got}')
        image_features = self.image_model(inputs["image"], training=training)
        text_features = self.text_model(inputs["text"], training=training)
        return tf.concat([image_features, text_features], axis=1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        # Keras' loss would broadcast labels `[batch, 1]`, such as item numbers, over all
        # coordinates and train on them without an error.
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
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> "MultimodalRetrievalModel":
        return cls(**keras.saving.deserialize_keras_object(config))


def item_labels(item_ids: Sequence[str] | Sequence[int], width: int, seed: int = 0) -> np.ndarray:
    """Labels for `MultimodalRetrievalModel`: a random direction for each item. Section 5.

    Pairs of one item share its label. If all items shared one label, or if the loss compared only
    matching pairs, one constant vector would be the best answer to every input. Random directions
    in many dimensions are nearly orthogonal, so each item has to get a vector of its own.

    Two limits remain. An item outside the training set has no label, which is why `DualEncoder` is
    the model to use. Features behind a ReLU, such as those of ResNet50, are never negative, while
    half of each label is: the loss cannot fall below about -0.7, and with many items it stays far
    above that. Ranking still works.

    Args:
        item_ids: The item of each pair, `[n]`. A label is drawn from a hash of the id, so that it
            is the same in any order, process and machine. 1 and "1" are the same id.
        width: `model.width`.
        seed: Another seed gives other labels.

    Returns:
        float32 `[n, width]`, unit rows.

    Raises:
        ValueError: The ids are not a list of strings or integers, or the width is below 1.

    >>> labels = item_labels(["shoe", "hat", "shoe"], width=2176)
    >>> (labels @ labels.T).round(1).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    width = checked_count(width, "width")
    if isinstance(item_ids, str | bytes) or not all(
        isinstance(key, str | int | np.integer) for key in item_ids
    ):
        raise ValueError(f"item_ids must be a list of strings or integers; got {item_ids!r:.80}")
    rows = np.empty((len(item_ids), width))
    for row, key in zip(rows, item_ids, strict=True):
        digest = hashlib.shake_256(f"{seed}:{key}".encode()).digest(width)
        row[:] = np.frombuffer(digest, np.int8) + 0.5  # -127.5 to 127.5: the mean is 0
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rank_items(queries: npt.ArrayLike, items: npt.ArrayLike, k: int | None = None) -> np.ndarray:
    """Rank items by cosine similarity: what section 5 means by
    `tf.argsort(predictions, direction="DESCENDING")`.

    The most similar item comes first; of equally similar ones, the earlier row.

    Args:
        queries: `[n_queries, width]`, for example the model's predictions.
        items: `[n_items, width]`, predictions for the gallery, or its labels.
        k: Number of items to return; all by default.

    Returns:
        Rows of `items`, int64 `[n_queries, min(k, n_items)]`.

    Raises:
        ValueError: The arrays are empty, differ in width, or hold NaN or infinity; or k is below 1.

    >>> rank_items([[2, 1], [0, 1]], [[1, 0], [0, 3], [1, 1]]).tolist()
    [[2, 0, 1], [1, 2, 0]]
    """
    rows = checked_rows(items, "items", "cosine")
    queries = checked_queries(queries, rows.shape[1], "cosine")
    k = len(rows) if k is None else min(checked_count(k, "k"), len(rows))
    return nearest(rows, queries, k, "cosine")[0]


def top_k_images(
    queries: npt.ArrayLike, items: npt.ArrayLike, images: Sequence, k: int
) -> list[list[Any]]:
    """Return the k images that are most similar to each query, best first. Sections 3.1(5) and 5.

    Args:
        queries: `[n_queries, width]`.
        items: `[n_items, width]`, as for `rank_items`.
        images: `[n_items]`, paths, arrays or anything else, in the order of `items`.
        k: Number of images; all of them if there are fewer.

    Returns:
        A list of min(k, n_items) images for each query.

    Raises:
        ValueError: `images` and `items` differ in number, or as for `rank_items`.

    >>> top_k_images([[2, 1]], [[1, 0], [0, 3], [1, 1]], ["a.png", "b.png", "c.png"], k=2)
    [['c.png', 'a.png']]
    """
    if len(images) != len(items):
        raise ValueError(f"images must be one an item; got {len(images)} and {len(items)} items")
    return [[images[row] for row in rows] for rows in rank_items(queries, items, k).tolist()]

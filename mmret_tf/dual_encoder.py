"""The dual encoder (双编码器): two towers in one Keras model, trained to share one space.

This is what the model of the document's section 5 should become: instead of joining the two feature
vectors, it compares them, so that images can be embedded and indexed before any query is known.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf
from keras import ops

# A saved model names its towers, its loss and its optimizer: their classes must be registered to
# load it.
from mmret_tf import losses, optimizers, towers  # noqa: F401
from mmret_tf.backbones import read_keras_file
from mmret_tf.preprocessing import ImageSource, TextPreprocessor, load_batches

# The temperature of the softmax over cosines: where it starts, and how far training may take it.
TEMPERATURE = 0.07
TEMPERATURE_RANGE = (0.01, 1.0)

# A spread below this (1 is as wide as can be) means that all inputs get nearly one embedding.
COLLAPSED = 0.02


class ImageEncoder(Protocol):
    """What embeds pictures in the place of an image tower: see `compression`."""

    name: str

    def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[batch, height, width, 3]` -> float32 `[batch, dim]`, rows of unit length."""


@keras.saving.register_keras_serializable("mmret_tf")
class DualEncoder(keras.Model):
    """An image tower and a text tower with one embedding space. Section 5; arXiv 2103.00020.

    Call: `{"image": [batch, height, width, 3] or [batch, features], "text": [batch, length]}`, or
    a dict with one of the two -> a dict with the same keys, float32 `[batch, dim]`, unit rows.

    `compile`, `fit`, `evaluate`, `predict` and `save` are Keras' own. Targets are group ids
    `[batch]`: rows with the same id belong to one image; without targets, every row stands for an
    image of its own. The loss is one of `mmret_tf.losses`, or any Keras loss that takes such a
    dict. While it trains, the metric `spread` tells how far the embeddings are from all being the
    same: 1 minus the squared length of their mean, of the narrower of the two modalities.

    Towers with several `members` are a mild ensemble (集成): each member's part of the embeddings
    is trained by a loss of its own, and the embedding is all of them side by side, so that a search
    adds up their cosines.

    Args:
        image_tower: model from images to `[batch, dim]`, as `towers.image_tower` makes it.
        text_tower: model from token ids to `[batch, dim]`, as `towers.text_tower` makes it.
        text_preprocessor: adapted `TextPreprocessor`; it is saved with the model. The text tower
            must be made for its `vocabulary_size()` at least.

    Attributes:
        image_encoder: what `encode_images` uses in the place of the image tower, a smaller or
            faster form of it; not saved with the model. See `compression`.

    Raises:
        ValueError: the towers differ in width or in their members, or the vocabulary does not fit
            the text tower.

    >>> text = TextPreprocessor(max_tokens=100, sequence_length=8)
    >>> text.adapt(["a red circle", "红色的圆"])
    >>> image = towers.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, towers.text_tower(100, units=8, embedding_dim=8), text)
    >>> model.encode_texts(["a red circle", "红色的圆"]).shape
    (2, 8)
    >>> red = np.full((20, 30, 3), [255, 0, 0], np.uint8)  # or a path
    >>> model.encode_images([red]).shape
    (1, 8)
    >>> model.encode_items([[red, red], []], [[], ["红色的圆"]]).shape  # two pictures; a text
    (2, 8)

    For training see `PairDataset.as_dataset` and `RetrievalMetrics`.
    """

    def __init__(
        self,
        image_tower: keras.Model,
        text_tower: keras.Model,
        text_preprocessor: TextPreprocessor | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.text_preprocessor = text_preprocessor
        widths = image_tower.embedding_dim, text_tower.output_shape[-1]
        if widths[0] != widths[1]:
            raise ValueError(
                "both towers must have one embedding_dim; "
                f"got {widths[0]} for images and {widths[1]} for text"
            )
        self.embedding_dim = widths[0]
        self.members = getattr(image_tower, "members", 1)
        found = max([getattr(layer, "members", 1) for layer in text_tower.layers], default=1)
        if found != self.members:
            raise ValueError(
                "both towers must have as many members; "
                f"got {self.members} for images and {found} for text"
            )
        if text_preprocessor is not None:
            words = text_preprocessor.vocabulary_size()
            for layer in text_tower.layers:
                if isinstance(layer, keras.layers.Embedding) and layer.input_dim < words:
                    raise ValueError(
                        f"the text tower has vectors for {layer.input_dim} token ids, and the "
                        f"vocabulary has {words}: make it with text_tower(text.vocabulary_size())"
                    )
        self.image_encoder: ImageEncoder | None = None
        self.spread = keras.metrics.Mean("spread")
        # It stands here and not in the loss because a Keras loss owns no weights.
        self.log_temperature = self.add_weight(
            name="log_temperature",
            shape=(),
            initializer=keras.initializers.Constant(np.log(TEMPERATURE)),
        )
        self.built = True

    @property
    def image_size(self) -> int:
        """Side of the pictures that the image tower is meant for, in pixels."""
        return self.image_tower.image_size

    def build(self, input_shape):
        """Nothing is left to build: the towers come with their weights."""

    def call(self, inputs, training=False):
        unknown = set(inputs) - {"image", "text"}
        if unknown or not inputs:
            raise ValueError(f'inputs must be a dict of "image" and "text"; got {list(inputs)}')
        tower_of = {"image": self.image_tower, "text": self.text_tower}
        return {name: tower_of[name](value, training=training) for name, value in inputs.items()}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if len(y_pred) != 2:
            raise ValueError(
                f'a loss needs both "image" and "text" in the inputs; got only {list(y_pred)}'
            )
        if y is None:
            y = ops.arange(ops.shape(y_pred["image"])[0])
        spreads = [1 - ops.sum(ops.mean(rows, axis=0) ** 2) for rows in y_pred.values()]
        self.spread.update_state(ops.minimum(*spreads))
        low, high = TEMPERATURE_RANGE
        temperature = ops.clip(ops.exp(ops.cast(self.log_temperature, "float32")), low, high)
        loss = keras.losses.get(self.loss)
        length = self.members**-0.5  # of each member's part of a unit vector
        parts = {
            name: ops.split(rows / length, self.members, axis=1) for name, rows in y_pred.items()
        }
        costs = [
            loss(y, {"image": image, "text": text, "temperature": temperature}, sample_weight)
            for image, text in zip(parts["image"], parts["text"], strict=True)
        ]
        extras = sum(self._aggregate_additional_loss(extra) for extra in self.losses)
        return sum(costs) / self.members + extras

    def fit(
        self,
        *args,
        callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] | None = None,
        **kwargs,
    ) -> keras.callbacks.History:
        """Keras' `fit`, with a warning, once, when the embeddings collapse.

        Args:
            callbacks: Keras' own or others, such as `RetrievalMetrics`.
            args, kwargs: as of `keras.Model.fit`: a dataset of `PairDataset.as_dataset`, say.

        Returns:
            Keras' history: the loss, the `spread`, and what the callbacks report, by epoch.
        """
        callbacks = keras.tree.flatten(callbacks) if callbacks is not None else []
        if isinstance(args[0] if args else kwargs.get("x"), tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # it has its own order; Keras would warn of True
        if self.optimizer is not None and not self.optimizer.built:
            # Made inside the first step, its variables would have that step traced twice.
            self.optimizer.build(self.trainable_variables)
        return super().fit(*args, callbacks=[*callbacks, CollapseAlarm()], **kwargs)

    def encode_images(
        self, images: Sequence[ImageSource] | np.ndarray, batch_size: int = 64
    ) -> np.ndarray:
        """Embed pictures, each centre-cropped to `image_size`. Section 3.1(3).

        Args:
            images: paths, encoded bytes, PIL images or arrays `[height, width, 3]` in any mix; one
                array `[n, height, width, 3]`; or features of the backbone `[n, features]`.
            batch_size: pictures that are embedded at once, while the next are decoded.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError: a picture cannot be read (the message names it), the list is empty, or it is
                no list.
        """
        check_images(images)
        if isinstance(images, np.ndarray) and images.ndim == 2:
            return _encode(self.image_tower, _batches(images, batch_size))
        encoder = self.image_encoder or self.image_tower
        return _encode(encoder, load_batches(images, self.image_size, batch_size))

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed captions or queries, in any language that the vocabulary holds. Section 3.1(3).

        Args:
            texts: strings; an empty one, or one of unknown words only, is embedded too.
            batch_size: strings that are embedded at once.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError: the list is empty or no list of strings, or the model has no
                text_preprocessor.
        """
        if self.text_preprocessor is None:
            raise ValueError("this model has no text_preprocessor; give one to DualEncoder")
        check_texts(texts)
        batches = _batches(list(texts), batch_size)
        return _encode(self.text_tower, map(self.text_preprocessor, batches))

    def encode_items(
        self, images: Sequence[Sequence[ImageSource]], texts: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Embed items that have any number of pictures and texts, for a gallery. Section 7.2.

        An item's embedding is that of its picture; of several, their mean, brought to unit length.
        Its texts count only where it has no picture, in the same way: captions of a picture are
        what asks for it. A `FusedEncoder` makes use of both.

        Args:
            images: for each item its pictures, as `encode_images` takes them; an empty list for
                an item without.
            texts: for each item its texts.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError: the lists differ in length, an item has neither picture nor text, or a
                picture cannot be read.
        """
        check_items(images, texts)
        alone = [() if len(each) else words for each, words in zip(images, texts, strict=True)]
        pictures = mean_vectors(self.encode_images, images, self.embedding_dim)
        return pictures + mean_vectors(self.encode_texts, alone, self.embedding_dim)

    def get_config(self) -> dict:
        parts = {
            "image_tower": self.image_tower,
            "text_tower": self.text_tower,
            "text_preprocessor": self.text_preprocessor,
        }
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> DualEncoder:
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("dtype", "image_tower", "text_tower", "text_preprocessor")
        }
        return cls(**{**config, **parts})


def check_images(images: Sequence[ImageSource] | np.ndarray) -> None:
    """Refuse one picture in the place of a list; ValueError."""
    if isinstance(images, (str, os.PathLike, bytes)):
        raise ValueError("encode_images takes a list; for one picture, give [picture]")


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of strings; ValueError."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("encode_texts takes a list of strings; for one text, give [text]")


def check_items(images: Sequence[Sequence[ImageSource]], texts: Sequence[Sequence[str]]) -> None:
    """Refuse what is no list of pictures and list of texts for each item; ValueError."""
    if len(images) != len(texts):
        raise ValueError(
            f"images and texts must have one list an item; got {len(images)} and {len(texts)}"
        )
    for row, (pictures, words) in enumerate(zip(images, texts, strict=True)):
        check_images(pictures)
        check_texts(words)
        if not len(pictures) and not len(words):
            raise ValueError(f"item {row} has neither an image nor a text: nothing to embed")


def mean_vectors(
    encode: Callable[[list], np.ndarray], sources: Sequence[Sequence], dim: int
) -> np.ndarray:
    """The mean of each item's embeddings at unit length, float32 `[n, dim]`; zeros for none.

    All sources are encoded in one call. An item of one source has its embedding as it is.

    >>> mean_vectors(np.array, [[[3.0, 0.0], [0.0, 4.0]], [], [[0.8, 0.6]]], 2).round(1)
    array([[0.6, 0.8],
           [0. , 0. ],
           [0.8, 0.6]], dtype=float32)
    """
    counts = np.array([len(each) for each in sources], int)
    means = np.zeros((len(sources), dim), np.float32)
    if flat := [source for each in sources for source in each]:
        np.add.at(means, np.repeat(np.arange(len(sources)), counts), encode(flat))
    lengths = np.linalg.norm(means[counts > 1], axis=1, keepdims=True)
    means[counts > 1] /= np.maximum(lengths, 1e-6)
    return means


def _batches(rows: Sequence, batch_size: int) -> Iterator[Sequence]:
    """Some rows at a time."""
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _encode(encoder: keras.Model | ImageEncoder, batches: Iterable) -> np.ndarray:
    """What an encoder makes of each batch, as one array `[n, dim]`."""
    embeddings = [encoder.predict_on_batch(batch) for batch in batches]
    if not embeddings:
        raise ValueError("nothing to encode: the list is empty")
    return np.concatenate(embeddings)


class CollapseAlarm(keras.callbacks.Callback):
    """Warn, once, when an epoch ends with all embeddings nearly the same (表示坍缩)."""

    def __init__(self):
        super().__init__()
        self.is_raised = False

    def on_epoch_end(self, epoch, logs=None):
        spread = (logs or {}).get("spread", 1.0)
        if spread < COLLAPSED and not self.is_raised:
            self.is_raised = True
            warnings.warn(
                f"the embeddings have collapsed: their spread is {spread:.4f} of at most 1, so all "
                "inputs look alike to the index. Use a loss with negatives (ContrastiveCosine), a "
                "lower learning rate, or negatives='sum' before 'hardest'.",
                stacklevel=2,
            )


def load_model(path: str | os.PathLike) -> DualEncoder:
    """Load a dual encoder from its `.keras` file: towers, weights, vocabulary, and compilation.
    Section 5.

    Keras' safe mode stays on: a file cannot bring code of its own.

    Args:
        path: what `model.save` wrote, or a run's `model.keras`.

    Returns:
        A `DualEncoder` that makes the same embeddings.

    Raises:
        ValueError: there is no such file, it is no `.keras` file, or holds another kind of model.

    >>> import tempfile
    >>> image = towers.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, towers.text_tower(100, units=8, embedding_dim=8))
    >>> path = f"{tempfile.mkdtemp()}/model.keras"
    >>> model.save(path)
    >>> pictures = {"image": np.zeros((1, 16, 16, 3))}
    >>> np.allclose(model(pictures)["image"], load_model(path)(pictures)["image"])
    True
    """
    return load_as(DualEncoder, path)


def load_as(kind: type[keras.Model], path: str | os.PathLike) -> keras.Model:
    """Load a `.keras` file that must hold a model of one kind; ValueError for any other."""
    model = read_keras_file(path)
    if not isinstance(model, kind):
        raise ValueError(f"{os.fspath(path)} holds a {type(model).__name__}, not a {kind.__name__}")
    return model

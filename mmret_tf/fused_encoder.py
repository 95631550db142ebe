"""An encoder of items and queries that have an image, a text, or both (融合编码器).

It stands on a dual encoder whose towers are trained already: what they make of images and texts is
fused to one vector in their own space, so that indexes, queries and scores stay comparable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder, check_items, load_as, mean_vectors
from mmret_tf.fusion import Fusion, presence
from mmret_tf.missing import Imputer, ModalityDropout
from mmret_tf.preprocessing import ImageSource, load_batches


@keras.saving.register_keras_serializable("mmret_tf")
class FusedEncoder(keras.Model):
    """A dual encoder and a fusion: image and text, or one of them, -> one embedding. Section 2.3.

    Call: `{"image": ..., "text": ...}` as `features` makes them, zeros where something is absent
    -> float32 `[batch, dim]`, unit rows; zeros for a row that has nothing.

    `compile`, `fit`, `predict` and `save` are Keras' own. Targets are embeddings `[batch, dim]` of
    the dual encoder's space, those of what is to be found, say. A loss for them is
    `losses.ContrastiveTargets`; the document's, `keras.losses.CosineSimilarity`, does as well.

    Args:
        encoder: the trained dual encoder. From here on it is frozen: not trainable, not compiled.
        fusion: a layer of `fusion`, or `missing.EnsembleFusion`, that gives the encoder's width.
            Late fusions get embeddings; early and hybrid ones get regions and words.
        imputer: a layer of `missing` that fills in what is absent, before a late fusion.
        modality_dropout: probability with which training hides an image or a text whose item has
            both, see `missing.ModalityDropout`.

    Raises:
        ValueError: the fusion is of another width, or an imputer is given to one that takes
            regions and words.

    >>> import mmret_tf as mm
    >>> from mmret_tf.training import build_model
    >>> pairs = mm.load_pairs("scenes", split="dev", size=4)
    >>> config = mm.TrainConfig(backbone="SmallCNN", weights="none", image_size=16, embedding_dim=8)
    >>> model = build_model(config, pairs.all_captions(), steps=1)  # or `load_model`
    >>> fused = FusedEncoder(model, mm.GatedFusion(dim=8))
    >>> fused.compile("adam", mm.losses.ContrastiveTargets())
    >>> history = fused.fit(*item_examples(fused, pairs), verbose=0)
    >>> image = pairs.image_paths[0]
    >>> fused.encode_items([[image], [image], []], [["a red circle"], [], ["红色的圆"]]).shape
    (3, 8)
    """

    def __init__(
        self,
        encoder: DualEncoder,
        fusion: Fusion,
        imputer: Imputer | None = None,
        modality_dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if imputer is not None and fusion.takes_sequences:
            raise ValueError(
                f"{type(fusion).__name__} reads regions and words, and needs nothing filled in: "
                "give an imputer to a late fusion"
            )
        encoder.trainable = False
        # Its optimizer would be saved with it, at twice the size of the weights.
        encoder.compiled, encoder.optimizer = False, None
        self.encoder = encoder
        self.embedding_dim = encoder.embedding_dim
        self.fusion = fusion
        self.imputer = imputer
        self.dropout = ModalityDropout(modality_dropout)
        shapes = self._feature_shapes()
        for layer in (imputer, fusion):
            if layer is not None and not layer.built:
                layer.build(shapes)
        if fusion.dim != encoder.embedding_dim:
            raise ValueError(
                f"the fusion must give the encoder's width, {encoder.embedding_dim}; it gives "
                f"{fusion.dim}"
            )
        self.built = True
        self._compiled = {
            "image": tf.function(self.image_features),
            "text": tf.function(self.text_features),
        }

    def build(self, input_shape):
        """Nothing is left to build: all weights are made in `__init__`."""

    def call(self, inputs, training=False):
        present = self.dropout(presence(inputs), training=training)
        if self.imputer is None:
            return self.fusion(inputs, mask=present, training=training)
        return self.fusion(self.imputer(inputs, mask=present), training=training)

    def image_features(self, images: tf.Tensor) -> tf.Tensor:
        """What the fusion takes of some images.

        Args:
            images: `[batch, height, width, 3]`, levels 0 to 255.

        Returns:
            float32: embeddings `[batch, dim]` for a late fusion, regions `[batch, regions,
            channels]` for others.
        """
        tower = self.encoder.image_tower
        if self.fusion.takes_sequences:
            return tower.regions(images)
        return tower(images, training=False)

    def text_features(self, tokens: tf.Tensor) -> tf.Tensor:
        """What the fusion takes of some texts.

        Args:
            tokens: token ids `[batch, length]`.

        Returns:
            float32: embeddings `[batch, dim]` for a late fusion, word vectors `[batch, length,
            width]`, zeros for padding, for others.
        """
        tower = self.encoder.text_tower
        if not self.fusion.takes_sequences:
            return tower(tokens, training=False)
        words = tower.get_layer("words")(tokens)
        return words * ops.cast(ops.not_equal(tokens, 0), words.dtype)[:, :, None]

    def features(
        self, images: Sequence[Sequence[ImageSource]], texts: Sequence[Sequence[str]]
    ) -> dict[str, np.ndarray]:
        """What `call` and `fit` take, to be computed once: the towers are frozen.

        Args:
            images: for each item its pictures, as `DualEncoder.encode_images` takes them; an empty
                list for an item without.
            texts: for each item its texts.

        Returns:
            `{"image": ..., "text": ...}`. For late fusions, float32 `[n, dim]`: the mean of an
            item's embeddings, brought to unit length. For others, float32 `[n, length, width]`:
            the regions of all its pictures, or the words of all its texts, one after another.
            Zeros where there is nothing.

        Raises:
            ValueError: the lists differ in length, an item has neither picture nor text, or a
                picture cannot be read.
        """
        check_items(images, texts)
        if self.fusion.takes_sequences:
            return {
                "image": _joined_sequences(self._regions, images, self.fusion.widths["image"]),
                "text": _joined_sequences(self._words, texts, self.fusion.widths["text"]),
            }
        return {
            "image": mean_vectors(self.encoder.encode_images, images, self.embedding_dim),
            "text": mean_vectors(self.encoder.encode_texts, texts, self.embedding_dim),
        }

    def encode_items(
        self, images: Sequence[Sequence[ImageSource]], texts: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Embed items or queries that have any number of pictures and texts.

        Args:
            images, texts: as for `features`.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError: as for `features`.
        """
        features = self.features(images, texts)
        blocks = (slice(start, start + 256) for start in range(0, len(images), 256))
        return np.concatenate(
            [
                self.predict_on_batch({name: rows[block] for name, rows in features.items()})
                for block in blocks
            ]
        )

    def _regions(self, pictures: Sequence[ImageSource]) -> np.ndarray:
        """`[n, regions, channels]`."""
        batches = load_batches(pictures, self.encoder.image_size)
        return np.concatenate([self._compiled["image"](batch) for batch in batches])

    def _words(self, texts: Sequence[str]) -> np.ndarray:
        """`[n, length, width]`."""
        blocks = (texts[start : start + 256] for start in range(0, len(texts), 256))
        tokens = map(self.encoder.text_preprocessor, blocks)
        return np.concatenate([self._compiled["text"](block) for block in tokens])

    def _feature_shapes(self) -> dict[str, tuple]:
        """The shapes of `features`, for the layers that are built from them."""
        if not self.fusion.takes_sequences:
            return {"image": (None, self.embedding_dim), "text": (None, self.embedding_dim)}
        side = self.encoder.image_size
        regions = self.image_features(np.zeros((1, side, side, 3), np.float32))
        words = self.text_features(np.zeros((1, 1), np.int64))
        return {
            "image": (None, None, regions.shape[-1]),
            "text": (None, None, words.shape[-1]),
        }

    def get_config(self) -> dict:
        parts = {"encoder": self.encoder, "fusion": self.fusion, "imputer": self.imputer}
        return {
            "name": self.name,
            "modality_dropout": self.dropout.rate,
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> FusedEncoder:
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("encoder", "fusion", "imputer")
        }
        return cls(**{**config, **parts})


def item_examples(fused: FusedEncoder, pairs: PairDataset) -> tuple[dict, np.ndarray]:
    """Inputs and targets that teach a late fusion to embed items, from complete pairs. Section 2.3.

    Each caption of an image is in turn the item's text, and the next caption of the image is the
    query that should find the item.

    Args:
        fused: whose towers embed them.
        pairs: images with captions; those with one caption only are left out.

    Returns:
        `({"image": [n, dim], "text": [n, dim]}, [n, dim])`, float32, for `FusedEncoder.fit`; n is
        the number of captions.

    Raises:
        ValueError: no image has two captions, or the fusion takes regions and words.

    >>> from types import SimpleNamespace
    >>> from mmret_tf.fusion import WeightedSum
    >>> encoder = SimpleNamespace(encode_images=lambda paths: np.ones((len(paths), 3)))
    >>> encoder.encode_texts = lambda texts: np.eye(len(texts))
    >>> fused = SimpleNamespace(encoder=encoder, fusion=WeightedSum())  # or a `FusedEncoder`
    >>> pairs = PairDataset(["a"], ["a.png"], [["red", "红", "a red one"]], [{}], [""])
    >>> inputs, targets = item_examples(fused, pairs)
    >>> inputs["image"].shape, inputs["text"].argmax(axis=1), targets.argmax(axis=1)
    ((3, 3), array([0, 1, 2]), array([1, 2, 0]))
    """
    if fused.fusion.takes_sequences:
        raise ValueError("item_examples takes a late fusion: it repeats each image's features")
    rows = [row for row, captions in enumerate(pairs.captions) if len(captions) > 1]
    if not rows:
        raise ValueError("no image has two captions: one for the item, one for the query")
    pairs = pairs.subset(rows)
    images = fused.encoder.encode_images(pairs.image_paths)
    texts = fused.encoder.encode_texts(pairs.all_captions())
    ends = np.cumsum([len(captions) for captions in pairs.captions])
    following = np.arange(1, len(texts) + 1)
    following[ends - 1] = np.concatenate([[0], ends[:-1]])
    return {"image": images[pairs.caption_to_image()], "text": texts}, texts[following]


def load_fused_encoder(path: str | os.PathLike) -> FusedEncoder:
    """Load a fused encoder, its dual encoder included, from its `.keras` file. Section 2.3.

    Args:
        path: what `FusedEncoder.save` wrote, say a run's `fusion.keras`.

    Returns:
        A `FusedEncoder` that makes the same embeddings.

    Raises:
        ValueError: there is no such file, it is no `.keras` file, or holds another kind of model.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> encoder = DualEncoder(image, mm.text_tower(100, units=8, embedding_dim=8))
    >>> path = f"{tempfile.mkdtemp()}/fusion.keras"
    >>> FusedEncoder(encoder, mm.WeightedSum({"image": 1.0, "text": 2.0})).save(path)
    >>> load_fused_encoder(path).fusion.weights_given
    {'image': 1.0, 'text': 2.0}
    """
    return load_as(FusedEncoder, path)


def _joined_sequences(encode: Callable, sources: Sequence[Sequence], width: int) -> np.ndarray:
    """The vectors of all that an item has, one after another, then zeros: `[n, length, width]`."""
    flat = [source for each in sources for source in each]
    if not flat:
        return np.zeros((len(sources), 1, width), np.float32)
    vectors = encode(flat)
    counts = [*map(len, sources)]
    joined = np.zeros((len(sources), max(counts), *vectors.shape[1:]), np.float32)
    places = np.concatenate([np.arange(count) for count in counts])
    joined[np.repeat(np.arange(len(sources)), counts), places] = vectors
    joined = joined.reshape(len(sources), -1, width)
    longest = 1 + max(np.flatnonzero(joined.any(axis=(0, 2))), default=0)
    return joined[:, :longest]

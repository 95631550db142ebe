"""The two towers (双塔): an image and a caption, each to a vector of unit length in one space.

Section 2.2 and 3.2(1, 2) of the document: a CNN for images (ResNet50 with average pooling), and
an Embedding followed by a recurrent network (LSTM) for text.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from mmret_tf.backbones import load_backbone
from mmret_tf.pooling import POOLINGS, MaskedPooling
from mmret_tf.transformer import TransformerEncoder

RNNS = ("lstm", "gru", "bilstm", "transformer")
TEXT_POOLINGS = ("last", *POOLINGS)


def unit_length(vectors, members: int = 1):
    """Scale rows `[batch, dim]` to length 1, in float32; a row of zeros stays zeros.

    Of an ensemble, whose members' vectors stand side by side in a row, each is scaled to the same
    length: the cosine of two rows is then the mean of the members' cosines.

    The floor is under the root, where it keeps the gradient finite too.
    """
    vectors = ops.cast(vectors, "float32")
    apart = ops.reshape(vectors, (-1, members, vectors.shape[-1] // members))
    squares = ops.sum(apart**2, axis=-1, keepdims=True) * members
    return ops.reshape(apart * ops.rsqrt(ops.maximum(squares, 1e-12)), ops.shape(vectors))


@keras.saving.register_keras_serializable("mmret_tf")
class UnitLength(layers.Layer):
    """`unit_length` as a layer: `[batch, dim]` -> `[batch, dim]`, the end of each tower."""

    def __init__(self, members: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.members = members

    def call(self, vectors):
        return unit_length(vectors, self.members)

    def get_config(self) -> dict:
        return {**super().get_config(), "members": self.members}


@keras.saving.register_keras_serializable("mmret_tf")
class ImageTower(keras.Model):
    """A backbone, a projection, and unit length. Made by `image_tower`.

    Call: images `[batch, height, width, 3]` with levels 0 to 255, or features of the backbone
    `[batch, features]`, computed before by `features` -> float32 `[batch, embedding_dim]`.

    Args:
        backbone: a model from images to features `[batch, features]`.
        image_size: side in pixels of the pictures that this tower is meant for.
        embedding_dim: width of the embedding.
        scaling: name of the `keras.applications` module whose `preprocess_input` belongs to the
            backbone; `None` where the backbone takes levels 0 to 255 itself.
        dropout: fraction of the features that is dropped in training.
        normalize_features: whether batch normalization comes before the projection: it brings the
            features of a frozen backbone, which cannot adapt, to one scale.
        members: of an ensemble (集成): `embedding_dim` is shared out among so many vectors, each of
            which is learnt by itself, see `DualEncoder`.
        scales: sides, in pixels, at which the backbone sees each picture (多尺度); the features
            are their mean. By default `image_size` alone.
    """

    def __init__(
        self,
        backbone: keras.Model,
        image_size: int = 224,
        embedding_dim: int = 256,
        scaling: str | None = None,
        dropout: float = 0.0,
        normalize_features: bool = False,
        scales: Sequence[int] | None = None,
        members: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.scaling = scaling
        self.normalize_features = normalize_features
        self.scales = list(scales or [image_size])
        self.members = members
        if normalize_features:
            self.normalization = layers.BatchNormalization(
                momentum=0.9, dtype=self.dtype_policy, name="normalization"
            )
            self.normalization.build((None, backbone.output_shape[-1]))
        self.dropout = layers.Dropout(dropout, dtype=self.dtype_policy)
        self.projection = layers.Dense(embedding_dim, dtype=self.dtype_policy, name="projection")
        self.projection.build((None, backbone.output_shape[-1]))
        self.built = True
        self._features = None
        self._feature_map = None

    def build(self, input_shape):
        """Nothing is left to build: all weights are made in `__init__`."""

    def features(self, images, training: bool = False, scales: Sequence[int] | None = None):
        """Images `[batch, height, width, 3]`, levels 0 to 255 -> features `[batch, features]`, the
        mean of those at all scales, or at some."""
        images = ops.cast(images, "float32")
        seen = []
        for scale in scales or self.scales:
            resized = images
            if scale != self.image_size:
                resized = ops.image.resize(images, (scale, scale))
            features = self.backbone(self._scaled(resized), training=training)
            seen.append(ops.cast(features, "float32"))
        return sum(seen) / len(seen)

    def _scaled(self, images):
        """Levels 0 to 255 as the backbone wants them."""
        if self.scaling:
            images = getattr(keras.applications, self.scaling).preprocess_input(images)
        return images

    def regions(self, images):
        """Images `[batch, height, width, 3]` -> the backbone's last feature map, a vector for each
        region (图像区域): `[batch, regions, channels]`.

        Raises:
            ValueError: the backbone has no feature map.
        """
        if self._feature_map is None:
            maps = [each.output for each in self.backbone.layers if len(each.output.shape) == 4]
            if len(maps) < 2:  # the input is one
                raise ValueError(f"{self.backbone.name} pools no feature map: it has no regions")
            # A function, or Keras would take it for a part of the tower, and save it too.
            self._feature_map = functools.partial(
                keras.Model(self.backbone.input, maps[-1]), training=False
            )
        feature_map = self._feature_map(self._scaled(ops.cast(images, "float32")))
        return ops.reshape(feature_map, (ops.shape(images)[0], -1, feature_map.shape[-1]))

    def features_on_batch(self, images, scales: Sequence[int] | None = None) -> np.ndarray:
        """`features` of a batch as a NumPy array, in a compiled graph: to be kept for later."""
        if self._features is None:
            self._features = tf.function(self.features, reduce_retracing=True)
        return self._features(images, scales=tuple(scales or self.scales)).numpy()

    def call(self, inputs, training=False):
        if len(inputs.shape) not in (2, 4):
            raise ValueError(
                "the image tower takes images [batch, height, width, 3] or features "
                f"[batch, {self.backbone.output_shape[-1]}]; got shape {tuple(inputs.shape)}"
            )
        return unit_length(self.project(inputs, training), self.members)

    def project(self, inputs, training: bool = False):
        """What `call` returns before it is brought to unit length, `[batch, embedding_dim]`."""
        features = inputs if len(inputs.shape) == 2 else self.features(inputs, training)
        if self.normalize_features:
            features = self.normalization(features, training=training)
        return self.projection(self.dropout(features, training=training))

    def get_config(self) -> dict:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_size": self.image_size,
            "embedding_dim": self.embedding_dim,
            "scaling": self.scaling,
            "dropout": self.dropout.rate,
            "normalize_features": self.normalize_features,
            "scales": self.scales,
            "members": self.members,
        }

    @classmethod
    def from_config(cls, config: dict):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        trainable = config.pop("trainable")
        tower = cls(backbone, **config)
        if not trainable:  # True would thaw a frozen backbone too
            tower.trainable = False
        return tower


def image_tower(
    backbone: str | os.PathLike | keras.Model = "ResNet50",
    weights: str | os.PathLike | None = "imagenet",
    image_size: int = 224,
    embedding_dim: int = 256,
    trainable: bool | None = None,
    dropout: float = 0.0,
    feature_layers: Sequence[str] = (),
    scales: Sequence[int] | None = None,
    members: int = 1,
) -> ImageTower:
    """The image tower: a CNN with average pooling, then a projection. Section 2.2 and 5.

    Args:
        backbone: a name in `keras.applications`; "SmallCNN", see `backbones.small_cnn`; a model
            from images with levels 0 to 255 to features `[batch, features]`; or a `.keras` file
            that holds one.
        weights: of a named backbone: "imagenet" (downloaded once by Keras), `None` for a start
            from scratch (batch normalization then follows faster, and residual blocks start as
            the identity), or a `.weights.h5` file. A model or a `.keras` file brings its own.
        image_size: side of the pictures, in pixels.
        embedding_dim: width of the embedding.
        trainable: whether training changes the backbone; by default only one that starts from
            scratch is changed.
        dropout: fraction of the backbone's features that is dropped in training.
        feature_layers: names of layers of the backbone: the average and the maximum of each one's
            feature map, side by side, take the place of the backbone's own features. Its last layer
            knows ImageNet's classes; those before it, more of what else there is to see. Of
            ResNet50, say, "conv4_block6_out" and "conv5_block3_out".
        scales: sides, in pixels, at which the backbone sees each picture, such as `[224, 288]`,
            where it takes pictures of any size: the features are their mean. By default
            `image_size` alone.
        members: of an ensemble, see `DualEncoder`; they share out the `embedding_dim`.

    Returns:
        A model, images `[batch, image_size, image_size, 3]` or features `[batch, features]` ->
        float32 `[batch, embedding_dim]`, rows of length 1.

    Raises:
        ValueError: no such backbone, one that does not give `[batch, features]`, layers that it
            does not have, scales that it does not take, or an `embedding_dim` that is no multiple
            of `members`.
        ConnectionError: the ImageNet weights could not be downloaded.

    >>> tower = image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> vectors = tower(ops.ones((2, 16, 16, 3)))
    >>> vectors.shape, ops.norm(vectors, axis=1).numpy().round(3).tolist()
    (TensorShape([2, 8]), [1.0, 1.0])
    """
    network, scaling, is_trainable = load_backbone(
        backbone, weights, image_size if scales is None else None, feature_layers
    )
    trainable = is_trainable if trainable is None else trainable
    side = network.input_shape[1]
    if scales is not None and not (
        len(scales) and all(scale > 0 and side in (None, scale) for scale in scales)
    ):
        raise ValueError(
            f"scales must be sides, in pixels, that the backbone takes ({side or 'any'}); "
            f"got {list(scales)}"
        )
    network.trainable = bool(trainable)
    return ImageTower(
        network,
        image_size,
        embedding_dim,
        scaling,
        dropout,
        normalize_features=not network.trainable,
        scales=scales,
        members=_checked_members(members, embedding_dim),
        name="image_tower",
    )


def _checked_members(members: int, embedding_dim: int) -> int:
    """The number of members, if they can share out the embedding; else ValueError."""
    if members < 1 or embedding_dim % members:
        raise ValueError(
            "embedding_dim must be a multiple of members, of which there is at least one; got "
            f"{embedding_dim} and {members}"
        )
    return members


def text_tower(
    vocabulary_size: int,
    rnn: str = "lstm",
    word_dim: int = 128,
    units: int = 256,
    embedding_dim: int = 256,
    dropout: float = 0.0,
    pooling: str = "last",
    bag_of_words: bool = False,
    members: int = 1,
) -> keras.Model:
    """The text tower: Embedding, LSTM, then a projection. Section 2.2 and 5.

    Args:
        vocabulary_size: number of token ids; id 0 is padding, which never changes a result.
        rnn: "lstm", "gru", "bilstm" (both directions, side by side) or "transformer".
        word_dim: width of a word's vector.
        units: width of the recurrent state (of each direction), or of the Transformer: a multiple
            of 4 then.
        embedding_dim: width of the embedding.
        dropout: fraction dropped, in training, of each word's vector and of the pooled state.
        pooling: what is taken of the states: the "last"; their "mean"; or their "max", channel by
            channel. A Transformer has no last state: its "last" is the "mean".
        bag_of_words: whether the mean of the word vectors (词袋) stands beside that, before the
            projection.
        members: of an ensemble, see `DualEncoder`: so many networks read the same words, and share
            out the `embedding_dim`.

    Returns:
        A model, token ids `[batch, length]` -> float32 `[batch, embedding_dim]`, rows of length 1.

    Raises:
        ValueError: an unknown `rnn` or `pooling`, a size that is not positive, or an
            `embedding_dim` that is no multiple of `members`.

    >>> tower = text_tower(100, units=16, embedding_dim=8)
    >>> vectors = tower(ops.array([[5, 7, 0], [7, 5, 0]]))
    >>> vectors.shape, np.allclose(vectors[:1], tower(ops.array([[5, 7]])), atol=1e-6)  # padding
    (TensorShape([2, 8]), True)
    """
    for name, size in [
        ("vocabulary_size", vocabulary_size),
        ("word_dim", word_dim),
        ("units", units),
        ("embedding_dim", embedding_dim),
    ]:
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if rnn not in RNNS:
        raise ValueError(f"rnn must be one of {', '.join(RNNS)}; got {rnn!r}")
    if pooling not in TEXT_POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(TEXT_POOLINGS)}; got {pooling!r}")
    width = embedding_dim // _checked_members(members, embedding_dim)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    # With Keras' +-0.05, all sentences look alike to the network for an epoch or two; with a
    # deviation of 1, Flickr8k is learnt more slowly (text to image R@10 after 8 epochs: 31 %
    # instead of 39 %, one run each).
    words = layers.Embedding(
        vocabulary_size,
        word_dim,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
        mask_zero=True,
        name="words",
    )(tokens)
    vectors = []
    for member in range(members):
        seen = layers.Dropout(dropout)(words)
        if rnn == "transformer":
            encoder = TransformerEncoder(units, pooling="mean" if pooling == "last" else pooling)
        else:
            network = layers.GRU if rnn == "gru" else layers.LSTM
            encoder = network(units, return_sequences=pooling != "last")
            if rnn == "bilstm":
                encoder = layers.Bidirectional(encoder)
        state = encoder(seen)
        if len(state.shape) == 3:
            state = MaskedPooling(pooling)(state)
        if bag_of_words:
            state = layers.Concatenate()([state, MaskedPooling("mean")(seen)])
        name = f"projection_{member}" if member else "projection"
        vectors.append(layers.Dense(width, name=name)(layers.Dropout(dropout)(state)))
    joined = vectors[0] if members == 1 else layers.Concatenate()(vectors)
    return keras.Model(tokens, UnitLength(members, dtype="float32")(joined), name="text_tower")

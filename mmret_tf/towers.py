"""The two towers (双塔): an image and a caption, each to a vector of unit length in one space.

Section 2.2 and 3.2(1, 2) of the document: a CNN for images (ResNet50 with average pooling), and
an Embedding followed by a recurrent network (LSTM) for text.
"""

from __future__ import annotations

import inspect
import os

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

RNNS = ("lstm", "gru", "bilstm", "transformer")


def unit_length(vectors):
    """Scale rows `[batch, dim]` to length 1, in float32; a row of zeros stays zeros.

    The floor is under the root, where it keeps the gradient finite too.
    """
    vectors = ops.cast(vectors, "float32")
    return vectors * ops.rsqrt(ops.maximum(ops.sum(vectors**2, axis=-1, keepdims=True), 1e-12))


@keras.saving.register_keras_serializable("mmret_tf")
class UnitLength(layers.Layer):
    """`unit_length` as a layer: `[batch, dim]` -> `[batch, dim]`, the end of each tower."""

    def call(self, vectors):
        return unit_length(vectors)


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
    """

    def __init__(
        self,
        backbone: keras.Model,
        image_size: int = 224,
        embedding_dim: int = 256,
        scaling: str | None = None,
        dropout: float = 0.0,
        normalize_features: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.scaling = scaling
        self.normalize_features = normalize_features
        if normalize_features:
            self.normalization = layers.BatchNormalization(momentum=0.9, name="normalization")
            self.normalization.build((None, backbone.output_shape[-1]))
        self.dropout = layers.Dropout(dropout)
        self.projection = layers.Dense(embedding_dim, name="projection")
        self.projection.build((None, backbone.output_shape[-1]))
        self.built = True
        self._features = None

    def build(self, input_shape):
        """Nothing is left to build: all weights are made in `__init__`."""

    def features(self, images, training: bool = False):
        """Images `[batch, height, width, 3]`, levels 0 to 255 -> features `[batch, features]`."""
        images = ops.cast(images, "float32")
        if self.scaling:
            images = getattr(keras.applications, self.scaling).preprocess_input(images)
        return self.backbone(images, training=training)

    def features_on_batch(self, images) -> np.ndarray:
        """`features` of a batch as a NumPy array, in a compiled graph: to be kept for later."""
        if self._features is None:
            self._features = tf.function(self.features, reduce_retracing=True)
        return self._features(images).numpy()

    def call(self, inputs, training=False):
        if len(inputs.shape) not in (2, 4):
            raise ValueError(
                "the image tower takes images [batch, height, width, 3] or features "
                f"[batch, {self.backbone.output_shape[-1]}]; got shape {tuple(inputs.shape)}"
            )
        return unit_length(self.project(inputs, training))

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
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_size": self.image_size,
            "embedding_dim": self.embedding_dim,
            "scaling": self.scaling,
            "dropout": self.dropout.rate,
            "normalize_features": self.normalize_features,
        }

    @classmethod
    def from_config(cls, config: dict):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
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
) -> ImageTower:
    """The image tower: a CNN with average pooling, then a projection. Section 2.2 and 5.

    Args:
        backbone: a name in `keras.applications`, a model from images with levels 0 to 255 to
            features `[batch, features]`, or a `.keras` file that holds one.
        weights: of a named backbone: "imagenet" (downloaded once by Keras), `None` for a start
            from scratch (batch normalization then follows faster, and residual blocks start as
            the identity), or a `.weights.h5` file. A model or a `.keras` file brings its own.
        image_size: side of the pictures, in pixels.
        embedding_dim: width of the embedding.
        trainable: whether training changes the backbone; by default only one that starts from
            scratch is changed.
        dropout: fraction of the backbone's features that is dropped in training.

    Returns:
        A model, images `[batch, image_size, image_size, 3]` or features `[batch, features]` ->
        float32 `[batch, embedding_dim]`, rows of length 1.

    Raises:
        ValueError: no such backbone, or one that does not give `[batch, features]`.
        ConnectionError: the ImageNet weights could not be downloaded.

    >>> tower = image_tower("MobileNetV3Small", weights=None, image_size=32, embedding_dim=8)
    >>> tower(ops.zeros((2, 32, 32, 3))).shape
    TensorShape([2, 8])
    """
    scaling = None
    if isinstance(backbone, str) and not backbone.endswith(".keras"):
        network, scaling = _application(backbone, weights, image_size)
        trainable = weights is None if trainable is None else trainable
        if weights is None:
            _ease_the_start(network)
    elif isinstance(backbone, keras.Model):
        network = backbone
    else:
        if not os.path.isfile(backbone):
            raise ValueError(f"no backbone at {os.fspath(backbone)}: expected a .keras file")
        network = keras.saving.load_model(backbone, compile=False)
    if len(network.output_shape) != 2:
        raise ValueError(
            "a backbone must map images to features [batch, features], as average pooling does; "
            f"this one gives shape {network.output_shape}"
        )
    network.trainable = bool(trainable)
    return ImageTower(
        network,
        image_size,
        embedding_dim,
        scaling,
        dropout,
        normalize_features=not network.trainable,
        name="image_tower",
    )


def _application(
    name: str, weights: str | os.PathLike | None, image_size: int
) -> tuple[keras.Model, str]:
    """A network of `keras.applications`, and the module that holds its input scaling."""
    build = getattr(keras.applications, name, None)
    if not inspect.isfunction(build):
        raise ValueError(
            f"no backbone {name!r}: expected a name in keras.applications (ResNet50, VGG16, "
            "MobileNetV3Small, EfficientNetV2B0, ConvNeXtTiny, ...), a keras.Model or a .keras file"
        )
    if weights not in (None, "imagenet") and not os.path.isfile(weights):
        raise ValueError(f"no weights at {weights}: expected imagenet, none, or a .weights.h5 file")
    try:
        network = build(
            include_top=False,
            weights=weights,
            pooling="avg",
            input_shape=(image_size, image_size, 3),
        )
    except Exception as error:
        # Keras raises a bare Exception with these words when it cannot fetch a file.
        if weights != "imagenet" or "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be downloaded. Three ways on: start from "
            "scratch (--weights none, weights=None); give a file that you have (--weights FILE, "
            "or a .keras file as the backbone); or put the file that Keras would fetch into "
            "models/ under KERAS_HOME (by default ~/.keras)"
        ) from None
    return network, build.__module__.rsplit(".", 1)[-1]


def _ease_the_start(network: keras.Model) -> None:
    """Let a network learn from scratch within a short run.

    At Keras' momentum of 0.99 the moving statistics of batch normalization lag hundreds of steps
    behind, and a network that learned well reads as chance in evaluation. And a block of ResNet
    whose shortcut is the identity starts as the identity (its last scale is 0, arXiv 1706.02677,
    section 5.1): the network starts shallow, and grows as deep as the pictures need.
    """
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        if not isinstance(layer, layers.BatchNormalization):
            continue
        layer.momentum = 0.9
        # Of the names in a block, "conv2_block1" say, the convolution "0" is in the shortcut.
        block = layer.name.removesuffix("_3_bn")
        if f"{block}_add" in names and f"{block}_0_conv" not in names:
            layer.gamma.assign(ops.zeros_like(layer.gamma))


@keras.saving.register_keras_serializable("mmret_tf")
class TransformerEncoder(layers.Layer):
    """A small Transformer in the place of the recurrent network (arXiv 1706.03762).

    Two blocks of self-attention and feed-forward, normalised first, over word vectors with
    sinusoidal positions; the mean of the real tokens is the result. Masked tokens take no part.

    Call: `[batch, length, word_dim]` with Keras' mask -> `[batch, units]`.

    Args:
        units: width of the blocks and of the result; a multiple of 4, the number of heads.
    """

    HEADS = 4
    BLOCKS = 2

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        if units % self.HEADS:
            raise ValueError(f"units must be a multiple of {self.HEADS}; got {units}")
        self.supports_masking = True
        self.units = units
        self.entry = layers.Dense(units)
        self.blocks = [
            (
                layers.LayerNormalization(),
                layers.MultiHeadAttention(self.HEADS, units // self.HEADS),
                layers.LayerNormalization(),
                layers.Dense(4 * units, activation="gelu"),
                layers.Dense(units),
            )
            for _ in range(self.BLOCKS)
        ]
        self.last_norm = layers.LayerNormalization()

    def build(self, input_shape):
        hidden = (*input_shape[:-1], self.units)
        self.entry.build(input_shape)
        for norm, attention, next_norm, widen, narrow in self.blocks:
            norm.build(hidden)
            attention.build(hidden, hidden)
            next_norm.build(hidden)
            widen.build(hidden)
            narrow.build((*input_shape[:-1], 4 * self.units))
        self.last_norm.build(hidden)

    def call(self, words, mask=None):
        if mask is None:
            mask = ops.ones(ops.shape(words)[:2], dtype="bool")
        hidden = self.entry(words)
        hidden = hidden + ops.cast(self._positions(ops.shape(words)[1]), hidden.dtype)
        attend = mask[:, None, :]  # [batch, 1, length]: nobody looks at padding
        for norm, attention, next_norm, widen, narrow in self.blocks:
            normed = norm(hidden)
            hidden = hidden + attention(normed, normed, attention_mask=attend)
            hidden = hidden + narrow(widen(next_norm(hidden)))
        real = ops.cast(mask, hidden.dtype)[:, :, None]
        # An empty caption has no token to take the mean of: its result is zeros.
        return ops.sum(self.last_norm(hidden) * real, axis=1) / ops.maximum(
            ops.sum(real, axis=1), 1
        )

    def _positions(self, length):
        """Sines and cosines of each position, `[length, units]`."""
        waves = ops.power(10000.0, -ops.arange(self.units // 2, dtype="float32") * 2 / self.units)
        angles = ops.arange(length, dtype="float32")[:, None] * waves
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)

    def compute_mask(self, inputs, mask=None):
        """The mask ends here: the result has no time axis."""
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


def text_tower(
    vocabulary_size: int,
    rnn: str = "lstm",
    word_dim: int = 128,
    units: int = 256,
    embedding_dim: int = 256,
    dropout: float = 0.0,
) -> keras.Model:
    """The text tower: Embedding, LSTM, then a projection. Section 2.2 and 5.

    Args:
        vocabulary_size: number of token ids; id 0 is padding, which never changes a result.
        rnn: "lstm", "gru", "bilstm" (both directions, side by side) or "transformer".
        word_dim: width of a word's vector.
        units: width of the recurrent state (of each direction).
        embedding_dim: width of the embedding.
        dropout: fraction dropped, in training, of each word's vector and of the last state.

    Returns:
        A model, token ids `[batch, length]` -> float32 `[batch, embedding_dim]`, rows of length 1.

    Raises:
        ValueError: an unknown `rnn`, or a size that is not positive.

    >>> tower = text_tower(100, units=16, embedding_dim=8)
    >>> tower(ops.array([[5, 7, 0, 0]])).shape
    TensorShape([1, 8])
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
    encoder = {
        "lstm": lambda: layers.LSTM(units),
        "gru": lambda: layers.GRU(units),
        "bilstm": lambda: layers.Bidirectional(layers.LSTM(units)),
        "transformer": lambda: TransformerEncoder(units),
    }[rnn]()
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
    state = encoder(layers.Dropout(dropout)(words))
    state = layers.Dropout(dropout)(state)
    embedding = UnitLength(dtype="float32")(layers.Dense(embedding_dim, name="projection")(state))
    return keras.Model(tokens, embedding, name="text_tower")

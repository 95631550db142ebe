"""Layers that towers and fusions share: pooling, a small Transformer, temperature.

Section 2.2 of the document names the Transformer as the alternative to recurrent networks.
"""

import itertools
from collections.abc import Iterable

import keras
import numpy as np
from keras import layers, ops

# Temperature of the softmax over cosines: its first value, and the range that training is kept in.
TEMPERATURE = 0.07
TEMPERATURE_RANGE = (0.01, 1.0)

POOLINGS = ("mean", "max")


def track(owner: layers.Layer, name: str, parts: Iterable[layers.Layer]) -> None:
    """Make layers attributes of their owner as well, which keeps them in a list, tuple or dict:
    TensorFlow's checkpoints would leave them out.

    Args:
        owner: A layer or model.
        name: Of the attributes, which are numbered.
        parts: The layers, in an order that does not change.
    """
    for number, part in enumerate(parts):
        setattr(owner, f"{name}_{number}", part)


def output_width(model: keras.Model, name: str) -> int:
    """Number of features of a model that returns `[batch, features]`.

    Args:
        model: Any model.
        name: What the message calls it.

    Raises:
        ValueError: It returns something else, several things, or nothing yet.

    >>> output_width(keras.Sequential([keras.Input((2,)), layers.Dense(3)]), "the head")
    3
    """
    shape = getattr(model, "output_shape", None)  # a Sequential without an Input has none
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"{name} must be a functional or Sequential model that begins with a keras.Input and "
            f'returns [batch, features], as pooling="avg" or an LSTM does; its output has the '
            f"shape {shape}"
        )
    return shape[1]


@keras.saving.register_keras_serializable("mmret_tf")
class MaskedPooling(layers.Layer):
    """Mean or maximum of the unmasked vectors, channel by channel (池化).

    Max-pooling over the hidden states of an LSTM keeps the contribution of each word, which the
    last state would have to carry to the end of the sentence (InferSent, arXiv 1705.02364, section
    3.2).

    Call: `[batch, length, units]` with Keras' mask -> `[batch, units]`; zeros for a row that is
    masked completely.

    Args:
        kind: "mean" or "max".

    Raises:
        ValueError: `kind` is something else.

    >>> states = ops.array([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]]])
    >>> MaskedPooling("max")(states, mask=ops.array([[True, True, False]])).numpy().tolist()
    [[3.0, 5.0]]
    """

    def __init__(self, kind: str, **kwargs):
        super().__init__(**kwargs)
        if kind not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {kind!r}")
        self.supports_masking = True
        self.kind = kind

    def call(self, states, mask=None):
        if mask is None:
            mask = ops.ones(ops.shape(states)[:2], dtype="bool")
        real = ops.cast(mask, states.dtype)[:, :, None]
        if self.kind == "mean":
            return ops.sum(states * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)
        # float16 ends at -65504, so that the usual -1e9 would overflow.
        highest = ops.max(ops.where(real > 0, states, -1e4), axis=1)
        return ops.where(ops.any(real > 0, axis=1), highest, 0)

    def compute_mask(self, inputs, mask=None):
        """The mask ends here: the result has no time axis."""
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict:
        return {**super().get_config(), "kind": self.kind}


def sinusoidal_positions(length, units: int):
    """Sines and cosines of each position, float32 `[length, units]` (arXiv 1706.03762).

    >>> sinusoidal_positions(2, 4).numpy().round(2).tolist()[0]
    [0.0, 0.0, 1.0, 1.0]
    """
    waves = ops.power(10000.0, -ops.arange(units // 2, dtype="float32") * 2 / units)
    angles = ops.arange(length, dtype="float32")[:, None] * waves
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)


@keras.saving.register_keras_serializable("mmret_tf")
class TransformerEncoder(layers.Layer):
    """A small Transformer in place of the recurrent network (arXiv 1706.03762).

    Two pre-norm blocks of self-attention and feed-forward layers over word vectors with sinusoidal
    positions; then pooling. Masked tokens are neither attended to nor pooled.

    Call: `[batch, length, word_dim]` with Keras' mask -> `[batch, units]`.

    Args:
        units: Width of the blocks and of the result; a multiple of 4, the number of heads.
        positions: Whether to add positions; False where the vectors already have them.
        pooling: "mean" or "max", over the tokens.

    Raises:
        ValueError: `units` is not a multiple of 4, or the pooling is unknown.

    >>> TransformerEncoder(units=8)(ops.ones((2, 5, 3))).shape
    TensorShape([2, 8])
    """

    HEADS = 4
    BLOCKS = 2

    def __init__(self, units: int, positions: bool = True, pooling: str = "mean", **kwargs):
        super().__init__(**kwargs)
        if units % self.HEADS:
            raise ValueError(f"units must be a multiple of {self.HEADS}; got {units}")
        self.supports_masking = True
        self.units = units
        self.positions = positions
        policy = {"dtype": self.dtype_policy}
        self.entry = layers.Dense(units, **policy)
        self.blocks = [
            (
                layers.LayerNormalization(**policy),
                layers.MultiHeadAttention(self.HEADS, units // self.HEADS, **policy),
                layers.LayerNormalization(**policy),
                layers.Dense(4 * units, activation="gelu", **policy),
                layers.Dense(units, **policy),
            )
            for _ in range(self.BLOCKS)
        ]
        track(self, "block", itertools.chain(*self.blocks))
        self.last_norm = layers.LayerNormalization(**policy)
        self.pooling = MaskedPooling(pooling, **policy)

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
        if self.positions:
            positions = sinusoidal_positions(ops.shape(words)[1], self.units)
            hidden = hidden + ops.cast(positions, hidden.dtype)
        attend = mask[:, None, :]  # [batch, 1, length]: no token attends to padding
        for norm, attention, next_norm, widen, narrow in self.blocks:
            normed = norm(hidden)
            hidden = hidden + attention(normed, normed, attention_mask=attend)
            hidden = hidden + narrow(widen(next_norm(hidden)))
        return self.pooling(self.last_norm(hidden), mask=mask)

    def compute_mask(self, inputs, mask=None):
        """The mask ends here: the result has no time axis."""
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "units": self.units,
            "positions": self.positions,
            "pooling": self.pooling.kind,
        }


@keras.saving.register_keras_serializable("mmret_tf")
class Temperature(layers.Layer):
    """The learned temperature of a contrastive loss, kept between 0.01 and 1 (arXiv 2103.00020).

    An encoder owns it, because a Keras loss has no weights.

    >>> round(float(Temperature()()), 2)
    0.07
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        start = keras.initializers.Constant(np.log(TEMPERATURE))
        # Always float32: in half precision, small steps would not change it.
        self.log_temperature = self.add_weight(
            name="log_temperature", shape=(), initializer=start, dtype="float32", autocast=False
        )
        self.built = True

    def call(self, inputs=None):
        low, high = TEMPERATURE_RANGE
        return ops.clip(ops.exp(self.log_temperature), low, high)

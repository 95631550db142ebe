"""A small Transformer over word vectors or image regions (arXiv 1706.03762).

The document names it (section 2.2) as the option beside the recurrent networks.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from mmret_tf.pooling import MaskedPooling


def sinusoidal_positions(length, units: int):
    """Sines and cosines of each position, float32 `[length, units]` (arXiv 1706.03762)."""
    waves = ops.power(10000.0, -ops.arange(units // 2, dtype="float32") * 2 / units)
    angles = ops.arange(length, dtype="float32")[:, None] * waves
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)


@keras.saving.register_keras_serializable("mmret_tf")
class TransformerEncoder(layers.Layer):
    """A small Transformer in the place of the recurrent network (arXiv 1706.03762).

    Two blocks of self-attention and feed-forward, normalised first, over word vectors with
    sinusoidal positions; the real tokens are then pooled. Masked tokens take no part.

    Call: `[batch, length, word_dim]` with Keras' mask -> `[batch, units]`.

    Args:
        units: width of the blocks and of the result; a multiple of 4, the number of heads.
        positions: whether they are added here; False where the vectors come with their own.
        pooling: "mean" or "max", over the tokens.
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
        self.pooling = MaskedPooling(pooling)

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
        attend = mask[:, None, :]  # [batch, 1, length]: nobody looks at padding
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

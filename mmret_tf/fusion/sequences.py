"""Early and hybrid fusion (早期融合, 混合融合): regions and words -> one vector. Section 2.3.

Inputs, and what counts as absent, are described in `mmret_tf.fusion.fusion`.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from mmret_tf.fusion.fusion import Fusion, any_of, identity_if_square
from mmret_tf.fusion.late import GatedFusion
from mmret_tf.models.layers import TransformerEncoder, sinusoidal_positions


@keras.saving.register_keras_serializable("mmret_tf")
class EarlyFusion(Fusion):
    """Early fusion (早期融合): one Transformer reads the regions and words of all modalities as one
    sequence. Section 2.3; like the single-stream encoders, arXiv 1909.11740.

    Call: `{name: [batch, length, width] or [batch, width]}` -> float32 `[batch, dim]`, unit rows.
    A modality that comes as one vector counts as a sequence of one.

    Args:
        dim: Width of the result.
        units: Width of the Transformer, a multiple of 4; see `TransformerEncoder`.

    Raises:
        ValueError: Other `units`. In a call: as for `Concatenate`.

    >>> layer = EarlyFusion(dim=3, units=8)
    >>> regions, words = ops.ones((2, 4, 5)), ops.ones((2, 6, 7))  # 4 regions, 6 words
    >>> layer({"image": regions, "text": words}).shape
    TensorShape([2, 3])
    """

    takes_sequences = True

    def __init__(self, dim: int, units: int = 256, **kwargs):
        super().__init__(dim, **kwargs)
        self.units = units
        self.encoder = TransformerEncoder(units, positions=False)
        self.projection = layers.Dense(dim)

    def make_weights(self, widths):
        # The bias tells the encoder which modality a token comes from.
        bias = keras.initializers.RandomNormal(stddev=0.1)
        self.entries = {
            name: layers.Dense(self.units, bias_initializer=bias.clone()) for name in widths
        }
        for name, width in widths.items():
            self.entries[name].build((None, width))
        self.encoder.build((None, None, self.units))
        self.projection.build((None, self.units))

    def fuse(self, inputs, present, training):
        sequences, there = _as_sequences(inputs, present)
        tokens = []
        for name in self.widths:
            # Each modality counts from 0: the length of one never moves the words of another.
            positions = sinusoidal_positions(ops.shape(sequences[name])[1], self.units)
            tokens.append(self.entries[name](sequences[name]) + positions)
        joined = ops.concatenate(tokens, axis=1)
        mask = ops.concatenate([there[name] for name in self.widths], axis=1)
        return self.projection(self.encoder(joined, mask=mask))

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("mmret_tf")
class HybridFusion(Fusion):
    """Hybrid fusion (混合融合): the tokens of each modality attend to those of all others, regions
    to words and words to regions; gates then fuse their means late. Section 2.3; like the
    co-attention of arXiv 1908.02265.

    Call: as for `EarlyFusion`.

    Args:
        dim: Width of the result and of the attention; a multiple of `heads`.
        heads: Number of attention heads.

    Raises:
        ValueError: `dim` is not a multiple of `heads`. In a call: as for `Concatenate`.

    >>> layer = HybridFusion(dim=8)
    >>> regions, words = ops.ones((2, 4, 5)), ops.ones((2, 6, 7))  # 4 regions, 6 words
    >>> layer({"image": regions, "text": words}).shape
    TensorShape([2, 8])
    """

    takes_sequences = True

    def __init__(self, dim: int, heads: int = 4, **kwargs):
        super().__init__(dim, **kwargs)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got {dim} and {heads}")
        self.heads = heads
        self.late = GatedFusion(dim)

    def make_weights(self, widths):
        self.streams = {
            name: (
                layers.Dense(self.dim, kernel_initializer=identity_if_square),
                layers.LayerNormalization(),
                layers.MultiHeadAttention(self.heads, self.dim // self.heads),
                layers.LayerNormalization(),
                layers.Dense(2 * self.dim, activation="gelu"),
                layers.Dense(self.dim),
            )
            for name in widths
        }
        tokens = (None, None, self.dim)
        for name, (entry, norm, attention, last_norm, widen, narrow) in self.streams.items():
            entry.build((None, None, widths[name]))
            norm.build(tokens)
            attention.build(tokens, tokens)
            last_norm.build(tokens)
            widen.build(tokens)
            narrow.build((None, None, 2 * self.dim))
        self.late.build({name: (None, self.dim) for name in widths})

    def fuse(self, inputs, present, training):
        sequences, there = _as_sequences(inputs, present)
        tokens, normed = {}, {}
        for name, (entry, norm, *_) in self.streams.items():
            tokens[name] = entry(sequences[name])
            positions = sinusoidal_positions(ops.shape(tokens[name])[1], self.dim)
            normed[name] = norm(tokens[name]) + positions
        pooled = {}
        for name, (_, _, attention, last_norm, widen, narrow) in self.streams.items():
            others = [other for other in self.widths if other != name]
            hidden = tokens[name]
            if others:
                mask = ops.concatenate([there[other] for other in others], axis=1)
                context = ops.concatenate([normed[other] for other in others], axis=1)
                attended = attention(normed[name], context, attention_mask=mask[:, None, :])
                # Where all others are absent, the softmax would still return an average.
                hidden = hidden + ops.where(ops.any(mask, axis=1)[:, None, None], attended, 0.0)
            hidden = hidden + narrow(widen(last_norm(hidden)))
            real = ops.cast(there[name], "float32")[:, :, None]
            pooled[name] = ops.sum(hidden * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)
        mask = {name: any_of(present[name]) for name in self.widths}
        return self.late(pooled, mask=mask, training=training)

    def get_config(self) -> dict:
        return {**super().get_config(), "heads": self.heads}


def _as_sequences(inputs: dict, present: dict) -> tuple[dict, dict]:
    """Vectors `[batch, width]` as sequences of one, and their presence likewise."""
    is_vector = {name: len(vectors.shape) == 2 for name, vectors in inputs.items()}
    return (
        {name: each[:, None] if is_vector[name] else each for name, each in inputs.items()},
        {name: each[:, None] if is_vector[name] else each for name, each in present.items()},
    )

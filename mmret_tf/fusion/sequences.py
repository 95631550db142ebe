"""Early and hybrid fusion (早期融合, 混合融合): regions and words -> one vector. Section 2.3.

Inputs, and what counts as absent, are described in `mmret_tf.fusion.fusion`.
"""

import itertools

import keras
from keras import layers, ops

from mmret_tf.fusion.fusion import Fusion, identity_if_square, presence
from mmret_tf.fusion.late import GatedFusion
from mmret_tf.models.layers import MaskedPooling, TransformerEncoder, track


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
        policy = {"dtype": self.dtype_policy}
        self.encoder = TransformerEncoder(units, positions=False, **policy)
        self.projection = layers.Dense(dim, **policy)

    def make_weights(self, widths):
        # The bias tells the encoder which modality a token comes from.
        bias = keras.initializers.RandomNormal(stddev=0.1)
        self.entries = {
            name: layers.Dense(self.units, bias_initializer=bias.clone(), dtype=self.dtype_policy)
            for name in widths
        }
        track(self, "entry", self.entries.values())

    def fuse(self, inputs):
        # Each modality counts from 0: the length of one never moves the words of another.
        tokens = [
            self.entries[name](each) + self._positions(each, self.units)
            for name, each in inputs.items()
        ]
        mask = ops.concatenate([presence(each) for each in inputs.values()], axis=1)
        return self.projection(self.encoder(ops.concatenate(tokens, axis=1), mask=mask))

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
        self.pooling = MaskedPooling("mean", dtype=self.dtype_policy)
        self.late = GatedFusion(dim, dtype=self.dtype_policy)

    def make_weights(self, widths):
        policy = {"dtype": self.dtype_policy}
        self.streams = {
            name: (
                layers.Dense(self.dim, kernel_initializer=identity_if_square, **policy),
                layers.LayerNormalization(**policy),
                layers.MultiHeadAttention(self.heads, self.dim // self.heads, **policy),
                layers.LayerNormalization(**policy),
                layers.Dense(2 * self.dim, activation="gelu", **policy),
                layers.Dense(self.dim, **policy),
            )
            for name in widths
        }
        track(self, "stream", itertools.chain(*self.streams.values()))

    def fuse(self, inputs):
        there = {name: presence(vectors) for name, vectors in inputs.items()}
        tokens, normed, pooled = {}, {}, {}
        for name, (entry, norm, *_) in self.streams.items():
            tokens[name] = entry(inputs[name])
            normed[name] = norm(tokens[name]) + self._positions(tokens[name], self.dim)
        for name, (_, _, attention, last_norm, widen, narrow) in self.streams.items():
            hidden = tokens[name]
            if others := [other for other in self.widths if other != name]:
                mask = ops.concatenate([there[other] for other in others], axis=1)
                context = ops.concatenate([normed[other] for other in others], axis=1)
                attended = attention(normed[name], context, attention_mask=mask[:, None, :])
                # Where all others are absent, the softmax would still return an average.
                hidden = hidden + ops.where(ops.any(mask, axis=1)[:, None, None], attended, 0.0)
            hidden = hidden + narrow(widen(last_norm(hidden)))
            pooled[name] = self.pooling(hidden, mask=there[name])
        return self.late(pooled)

    def get_config(self) -> dict:
        return {**super().get_config(), "heads": self.heads}

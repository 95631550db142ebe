"""Late fusion (晚期融合): one vector per modality -> one vector. Sections 2.3 and 3.2(3).

Inputs, and what counts as absent, are described in `mmret_tf.fusion.fusion`.
"""

import keras
import numpy as np
from keras import layers, ops

from mmret_tf.fusion.fusion import Fusion, identity_if_square, ordered_weights, presence
from mmret_tf.models.layers import track

# Of a gate that is closed; half precision ends at -65504.
LOWEST = -6e4


@keras.saving.register_keras_serializable("mmret_tf")
class Concatenate(Fusion):
    """Late fusion by concatenation (拼接): `W [x_1; x_2; ...] + b`. Section 3.2(3).

    The part of W for a modality that is already `dim` wide starts as the identity. If all are, the
    result starts as their sum.

    Call: `{name: [batch, width]}` -> float32 `[batch, dim]`, unit rows. Rows of zeros are absent,
    see `mmret_tf.fusion.fusion`.

    Args:
        dim: Width of the result.

    Raises:
        ValueError: In a call, inputs of another shape, or a modality that the first call lacked.

    >>> layer = Concatenate(2)
    >>> image, text = ops.array([[1.0, 0.0]]), ops.array([[0.0, 1.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)
    array([[0.707, 0.707]], dtype=float32)
    >>> layer({"image": image}).numpy()  # the text is missing
    array([[1., 0.]], dtype=float32)
    """

    def make_weights(self, widths):
        def blocks(shape, dtype=None):
            parts = [identity_if_square((width, self.dim), dtype) for width in widths.values()]
            return ops.concatenate(parts)

        self.projection = layers.Dense(self.dim, kernel_initializer=blocks, dtype=self.dtype_policy)

    def fuse(self, inputs):
        return self.projection(ops.concatenate(list(inputs.values()), axis=-1))


@keras.saving.register_keras_serializable("mmret_tf")
class WeightedSum(Fusion):
    """Late fusion by weighted sum (加权求和) of the present modalities. Section 3.2(3).

    Call: `{name: [batch, dim]}`, all of one width -> float32 `[batch, dim]`, unit rows.

    Args:
        weights: `{name: share}`, a share above 0 for each modality; equal shares by default.
        learned: Whether training changes the shares.

    Raises:
        ValueError: In a call: as for `Concatenate`, the widths differ, a weight is not above 0, or
            the weights name other modalities.

    >>> layer = WeightedSum({"image": 3.0, "text": 4.0})
    >>> image, text = ops.array([[1.0, 0.0]] * 2), ops.array([[0.0, 1.0], [0.0, 0.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)
    array([[0.6, 0.8],
           [1. , 0. ]], dtype=float32)
    """

    def __init__(self, weights: dict[str, float] | None = None, learned: bool = False, **kwargs):
        super().__init__(dim=None, **kwargs)
        self.weights_given = weights
        self.learned = learned

    def make_weights(self, widths):
        if len(set(widths.values())) != 1:
            raise ValueError(f"a sum needs modalities of one width; got {widths}")
        self.dim = next(iter(widths.values()))
        logarithms = np.log(ordered_weights(self.weights_given, widths))
        self.log_weights = self.add_weight(
            (len(widths),),
            lambda shape, dtype: ops.cast(logarithms, dtype),
            trainable=self.learned,
            name="log_weights",
        )

    def fuse(self, inputs):
        shares = ops.unstack(ops.cast(ops.exp(self.log_weights), self.compute_dtype))
        return sum(share * each for share, each in zip(shares, inputs.values(), strict=True))

    def get_config(self) -> dict:
        config = {"weights": self.weights_given, "learned": self.learned}
        return {**layers.Layer.get_config(self), **config}


@keras.saving.register_keras_serializable("mmret_tf")
class GatedFusion(Fusion):
    """Late fusion by gates (门控融合): the content decides the share of each modality in each
    number of the result. Section 3.2(3).

    The gated multimodal unit (arXiv 1702.01992) for any number of modalities: `sum_m gate_m * (W_m
    x_m + b_m)`. The gates are a linear map of all modalities, with a softmax over those that are
    present. The result starts as the mean of the modalities.

    Call, and errors: as for `Concatenate`.

    Args:
        dim: Width of the result.

    >>> layer = GatedFusion(2)
    >>> image, text = ops.array([[0.8, 0.6]] * 2), ops.array([[0.6, 0.8], [0.0, 0.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)  # no text in the second row
    array([[0.707, 0.707],
           [0.8  , 0.6  ]], dtype=float32)
    """

    def make_weights(self, widths):
        self.values = {
            name: layers.Dense(
                self.dim, kernel_initializer=identity_if_square, dtype=self.dtype_policy
            )
            for name in widths
        }
        track(self, "value", self.values.values())
        self.gates = layers.Dense(
            len(widths) * self.dim, kernel_initializer="zeros", dtype=self.dtype_policy
        )

    def fuse(self, inputs):
        values = ops.stack([self.values[name](rows) for name, rows in inputs.items()], axis=1)
        gates = self.gates(ops.concatenate(list(inputs.values()), axis=-1))
        gates = ops.reshape(gates, ops.shape(values))
        there = ops.stack([presence(rows) for rows in inputs.values()], axis=1)
        shares = ops.softmax(ops.where(there[:, :, None], gates, LOWEST), axis=1)
        return ops.sum(shares * values, axis=1)

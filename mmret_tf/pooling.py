"""From a vector for each word, or region, to one for the whole: the mean or the maximum (池化)."""

from __future__ import annotations

import keras
from keras import layers, ops

POOLINGS = ("mean", "max")


@keras.saving.register_keras_serializable("mmret_tf")
class MaskedPooling(layers.Layer):
    """The mean or the maximum, channel by channel, of the vectors that the mask lets through.

    The maximum over the states of an LSTM keeps what any word said, where the last state has to
    carry it to the end (InferSent, arXiv 1705.02364, section 3.2).

    Call: `[batch, length, units]` with Keras' mask -> `[batch, units]`; zeros where all is masked.

    Args:
        kind: "mean" or "max".

    Raises:
        ValueError: another kind.

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
        # The floor of a half-precision state lies above -1e9.
        highest = ops.max(ops.where(real > 0, states, -1e4), axis=1)
        return ops.where(ops.any(real > 0, axis=1), highest, 0)

    def compute_mask(self, inputs, mask=None):
        """The mask ends here: the result has no time axis."""
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict:
        return {**super().get_config(), "kind": self.kind}

"""Fusions and training that cope with missing modalities (模态缺失). Sections 7.2 and 8.2.

`EnsembleFusion` combines one model per modality (模型融合); `ModalityDropout` hides modalities in
training. The other ways of section 8.2, filling in and prediction, are in `imputers`.
"""

import keras
from keras import layers, ops

from mmret_tf.fusion.fusion import Fusion, presence, present_rows
from mmret_tf.models.layers import output_width, track
from mmret_tf.similarity.vectors import unit_length


@keras.saving.register_keras_serializable("mmret_tf")
class EnsembleFusion(Fusion):
    """One model per modality, combined (模型融合): the sum of the unit vectors that the models of
    the present modalities return. Section 8.2.

    Call: `{name: [batch, width]}` -> float32 `[batch, dim]`, unit rows.

    Args:
        models: For each modality a model `[batch, width] -> [batch, dim]` that was trained alone.

    Raises:
        ValueError: A model does not return `[batch, dim]`, or they return different widths. In a
            call: modalities without a model, or the reverse.

    >>> double = keras.Sequential([keras.Input((2,)), layers.Rescaling(2.0)])
    >>> layer = EnsembleFusion({"image": double, "text": double})
    >>> rows = {"image": ops.array([[3.0, 4.0], [1.0, 0.0]]), "text": ops.array([[0.0, 0.0]] * 2)}
    >>> layer(rows).numpy().round(3)  # from the images alone
    array([[0.6, 0.8],
           [1. , 0. ]], dtype=float32)
    """

    def __init__(self, models: dict[str, keras.Model], **kwargs):
        dims = {output_width(model, f"the model of {name}") for name, model in models.items()}
        if len(dims) != 1:
            raise ValueError(f"the models must return vectors of one width; got {sorted(dims)}")
        super().__init__(dims.pop(), **kwargs)
        self.models = models
        track(self, "model", models.values())

    def make_weights(self, widths):
        if set(widths) != set(self.models):
            raise ValueError(f"there are models for {list(self.models)}; got {list(widths)}")

    def fuse(self, inputs):
        return sum(
            unit_length(model(inputs[name])) * ops.cast(presence(inputs[name]), "float32")[:, None]
            for name, model in self.models.items()
        )

    def get_config(self) -> dict:
        models = keras.saving.serialize_keras_object(self.models)
        return {**layers.Layer.get_config(self), "models": models}

    @classmethod
    def from_config(cls, config: dict) -> "EnsembleFusion":
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable("mmret_tf")
class ModalityDropout(layers.Layer):
    """Hide modalities at random in training (模态丢弃): a fusion learns to do without any of them.
    Section 8.2; like ModDrop, arXiv 1501.00102.

    Call: `{name: [batch, width] or [batch, length, width]}` -> the same, with zeros where hidden.
    One of the modalities that a row has, chosen at random, stays; each other one is hidden with
    probability `rate`.

    Args:
        rate: Probability, at least 0 and below 1.

    Raises:
        ValueError: `rate` is out of range.

    >>> rows = {"image": ops.array([[1.0], [2.0]]), "text": ops.array([[3.0], [0.0]])}
    >>> hidden = ModalityDropout(0.9)(rows, training=True)
    >>> (hidden["image"] + hidden["text"] > 0).numpy().tolist()  # one stays
    [[True], [True]]
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and below 1; got {rate}")
        self.rate = rate
        self.generator = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        there = ops.stack([present_rows(vectors) for vectors in inputs.values()], axis=1)
        there = ops.cast(there, "float32")
        lots = there * keras.random.uniform(ops.shape(there), seed=self.generator)
        stays = ops.equal(lots, ops.max(lots, axis=1, keepdims=True))
        stays |= keras.random.uniform(ops.shape(there), seed=self.generator) >= self.rate
        kept = {}
        for (name, vectors), keep in zip(inputs.items(), ops.unstack(stays, axis=1), strict=True):
            axes = tuple(range(1, len(vectors.shape)))
            kept[name] = ops.where(ops.expand_dims(keep, axes), vectors, 0.0)
        return kept

    def compute_output_spec(self, inputs, training=False) -> dict:
        return {
            name: keras.KerasTensor(each.shape, self.compute_dtype) for name, each in inputs.items()
        }

    def get_config(self) -> dict:
        return {**super().get_config(), "rate": self.rate}

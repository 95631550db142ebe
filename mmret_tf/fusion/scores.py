"""Score fusion (分数级融合): rank by each modality on its own, then join the scores or the ranks.

This is the latest form of late fusion (section 2.3). Nothing is trained, and each modality may have
its own index. Inputs are `{name: scores [queries, items]}`, where NaN is an absent score.
"""

import keras
import tensorflow as tf
from keras import layers, ops

from mmret_tf.fusion.fusion import ordered_weights


class ScoreFusion(layers.Layer):
    """The base class: scores stay in float32, whatever the precision, because ranks follow from
    their last digits.

    Args:
        kwargs: As of `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def compute_output_spec(self, inputs) -> keras.KerasTensor:
        return keras.KerasTensor(next(iter(inputs.values())).shape, "float32")


@keras.saving.register_keras_serializable("mmret_tf")
class WeightedScores(ScoreFusion):
    """Score fusion by the weighted mean of an item's scores. Section 2.3.

    Call: `{name: scores [queries, items]}` -> float32 `[queries, items]`. Absent scores (NaN) do
    not count; an item without any score gets -inf.

    Args:
        weights: `{name: share}`, a share above 0 for each modality; equal shares by default.

    Raises:
        ValueError: In a call, a weight is not above 0, or the weights name other modalities.

    >>> scores = {"image": ops.array([[0.9, 0.1]]), "text": ops.array([[0.5, float("nan")]])}
    >>> WeightedScores()(scores).numpy().round(2)
    array([[0.7, 0.1]], dtype=float32)
    """

    def __init__(self, weights: dict[str, float] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.weights_given = weights

    def call(self, inputs):
        return _mean_of_present(inputs, self.weights_given)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights_given}


@keras.saving.register_keras_serializable("mmret_tf")
class ReciprocalRankFusion(ScoreFusion):
    """Score fusion by ranks (倒数排名融合; Cormack, Clarke and Buettcher 2009): the mean of
    `1 / (constant + rank)` over the modalities that rank an item. Section 2.3.

    Ranks start at 1; items of equal score share the worst of their ranks. The scores of the
    modalities need not have the same scale.

    Call: as for `WeightedScores`.

    Args:
        constant: At least 0; the larger it is, the less the first ranks stand out. 60 in the paper.

    Raises:
        ValueError: `constant` is below 0.

    >>> scores = {"image": ops.array([[0.9, 0.1]]), "text": ops.array([[0.5, 0.7]])}
    >>> ReciprocalRankFusion(constant=1)(scores).numpy().round(3)  # means of 1/2 and 1/3
    array([[0.417, 0.417]], dtype=float32)
    """

    def __init__(self, constant: float = 60.0, **kwargs):
        super().__init__(**kwargs)
        if constant < 0:
            raise ValueError(f"constant must be at least 0; got {constant}")
        self.constant = constant

    def call(self, inputs):
        ranked = {}
        for name, scores in inputs.items():
            costs = ops.where(ops.isnan(scores), float("inf"), -scores)
            ranks = tf.searchsorted(ops.sort(costs, axis=1), costs, side="right")
            shares = 1 / (self.constant + ops.cast(ranks, "float32"))
            ranked[name] = ops.where(ops.isnan(scores), scores, shares)
        return _mean_of_present(ranked)

    def get_config(self) -> dict:
        return {**super().get_config(), "constant": self.constant}


def _mean_of_present(scores: dict, weights: dict[str, float] | None = None):
    """The weighted mean of each item's scores that are not NaN; -inf without any."""
    stacked = ops.stack(list(scores.values()), axis=-1)
    shares = ops.where(ops.isnan(stacked), 0.0, ops.array(ordered_weights(weights, scores)))
    totals = ops.sum(shares * ops.where(shares > 0, stacked, 0.0), axis=-1)
    counts = ops.sum(shares, axis=-1)
    return ops.where(counts > 0, totals / ops.maximum(counts, 1e-9), -float("inf"))

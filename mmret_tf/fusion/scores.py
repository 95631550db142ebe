"""Score fusion (分数级融合): rank by each modality on its own, then join the scores or the ranks.

This is the latest form of late fusion (section 2.3). Nothing is trained, and each modality may have
its own index. Inputs are `{name: scores [queries, items]}`. A score of NaN is absent, and so is one
whose `mask` (booleans of the same shape under the same names) is False.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from mmret_tf.fusion.fusion import MaskedLayer, check_weights, ordered_weights


@keras.saving.register_keras_serializable("mmret_tf")
class WeightedScores(MaskedLayer):
    """Score fusion by the weighted mean of an item's scores. Section 2.3.

    Call: `{name: scores [queries, items]}` -> float32 `[queries, items]`. Absent scores (NaN, or a
    `mask` of False) do not count; an item without any score gets -inf.

    Args:
        weights: `{name: share}`, a share above 0 for each modality; equal shares by default.

    Raises:
        ValueError: A weight is not above 0. In a call: the weights name other modalities.

    >>> scores = {"image": ops.array([[0.9, 0.1]]), "text": ops.array([[0.5, float("nan")]])}
    >>> WeightedScores()(scores).numpy().round(2)
    array([[0.7, 0.1]], dtype=float32)
    """

    def __init__(self, weights: dict[str, float] | None = None, **kwargs):
        super().__init__(**kwargs)
        check_weights(weights)
        self.weights_given = weights

    def call(self, inputs, mask=None):
        return _mean_of_present(inputs, _scored(inputs, mask), self.weights_given)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights_given}


@keras.saving.register_keras_serializable("mmret_tf")
class ReciprocalRankFusion(MaskedLayer):
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

    def call(self, inputs, mask=None):
        present = _scored(inputs, mask)
        ranked = {}
        for name, scores in inputs.items():
            costs = ops.where(present[name], -scores, float("inf"))
            ranks = tf.searchsorted(ops.sort(costs, axis=1), costs, side="right")
            ranked[name] = 1 / (self.constant + ops.cast(ranks, "float32"))
        return _mean_of_present(ranked, present, None)

    def get_config(self) -> dict:
        return {**super().get_config(), "constant": self.constant}


def _scored(scores: dict, mask: dict | None) -> dict:
    """Which scores are present, booleans `[queries, items]`."""
    there = {name: ~ops.isnan(each) for name, each in scores.items()}
    given = {name: each for name, each in (mask or {}).items() if each is not None}
    return {name: each & given.get(name, True) for name, each in there.items()}


def _mean_of_present(scores: dict, present: dict, weights: dict[str, float] | None):
    """The weighted mean of each item's present scores; -inf without any."""
    total, shares = 0.0, 0.0
    for (name, each), weight in zip(scores.items(), ordered_weights(weights, scores), strict=True):
        share = weight * ops.cast(present[name], "float32")
        total = total + share * ops.where(present[name], each, 0.0)
        shares = shares + share
    return ops.where(shares > 0, total / ops.maximum(shares, 1e-9), -float("inf"))

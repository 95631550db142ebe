"""Late fusions against their formulas in NumPy."""

import numpy as np
import pytest
from keras import ops

from mmret_tf.fusion import Concatenate, GatedFusion, WeightedSum

DIM = 8
NAMES = ("audio", "image", "text")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_concatenate_is_the_formula(vectors, moved):
    rows = vectors()
    layer = moved(lambda: Concatenate(DIM), rows)
    kernel, bias = layer.get_weights()
    expected = np.concatenate([rows[name] for name in NAMES], axis=1) @ kernel + bias
    assert np.allclose(layer(rows).numpy(), unit(expected), atol=1e-5)


def test_fusions_within_one_space_start_as_the_sum(vectors):
    rows = vectors()
    for layer in (Concatenate(DIM), GatedFusion(DIM), WeightedSum(), WeightedSum(learned=True)):
        assert np.allclose(layer(rows).numpy(), unit(sum(rows.values())), atol=1e-5)


def test_weighted_sum_by_eye():
    rows = {
        "image": ops.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        "text": ops.array([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    }
    layer = WeightedSum({"image": 0.6, "text": 0.8})
    assert np.allclose(layer(rows).numpy(), [[0.6, 0.8], [1, 0], [0, 1]])
    assert not layer.trainable_variables  # only with `learned`


def test_gates_are_a_softmax_over_the_present_modalities(vectors, moved):
    rows = vectors() | {"text": np.zeros((5, DIM), np.float32)}
    layer = moved(lambda: GatedFusion(DIM), rows)
    values = np.stack([layer.values[name](rows[name]).numpy() for name in ("audio", "image")], 1)
    logits = layer.gates(np.concatenate([rows[name] for name in NAMES], axis=1)).numpy()
    gates = np.exp(logits.reshape(5, 3, DIM)[:, :2])  # those of the text come last
    expected = (values * gates / gates.sum(axis=1, keepdims=True)).sum(axis=1)
    assert np.allclose(layer(rows).numpy(), unit(expected), atol=1e-5)


def test_mistakes_are_explained():
    rows = {"image": np.eye(2, dtype=np.float32), "text": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match="one width; got {'image': 2, 'text': 3}"):
        WeightedSum()(rows)
    with pytest.raises(ValueError, match="above 0, one for image; got {'image': 0.0}"):
        WeightedSum({"image": 0.0})({"image": rows["image"]})
    with pytest.raises(ValueError, match="above 0, one for image; got {'text': 1.0}"):
        WeightedSum({"text": 1.0})({"image": rows["image"]})

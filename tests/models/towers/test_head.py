"""The head: projection, unit length, members, normalization; and sizes that are refused."""

import keras
import numpy as np
import pytest

from mmret_tf.models import Head

FEATURES = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_a_head_projects_and_scales_to_unit_length():
    head = Head(width=6, embedding_dim=4)
    kernel, bias = head.get_weights()
    assert np.allclose(head(FEATURES), unit(FEATURES @ kernel + bias), atol=1e-6)
    assert np.allclose(head.project(FEATURES), FEATURES @ kernel + bias, atol=1e-6)


@pytest.mark.parametrize("is_split", [False, True])
def test_members_divide_the_embedding(is_split):
    head = Head(width=6, embedding_dim=4, members=2, is_split=is_split)
    inputs = [FEATURES[:, :3], FEATURES[:, 3:]] if is_split else [FEATURES, FEATURES]
    parts = [
        unit(each @ layer.kernel.numpy()) * 0.5**0.5  # half of the squared length each
        for each, layer in zip(inputs, head.projections, strict=True)
    ]
    assert np.allclose(head(FEATURES), np.concatenate(parts, axis=1), atol=1e-6)


def test_members_share_neither_normalization_nor_dropout():
    head = Head(width=6, embedding_dim=4, members=2, normalize=True, dropout=0.5)
    head.projections[1].set_weights(head.projections[0].get_weights())
    first, second = np.split(np.asarray(head.project(FEATURES)), 2, axis=1)
    assert np.allclose(first, second, atol=1e-6)
    first, second = np.split(np.asarray(head.project(FEATURES, training=True)), 2, axis=1)
    assert not np.allclose(first, second)
    head.normalization.gamma.assign([1] * 6 + [0] * 6)
    first, second = np.split(np.asarray(head.project(FEATURES)), 2, axis=1)
    assert np.all(first != 0) and np.all(second == 0)


def test_features_can_be_normalized_first():
    head = Head(width=6, embedding_dim=4, normalize=True)
    kernel, bias = head.projections[0].get_weights()
    mean, variance = FEATURES.mean(axis=0), FEATURES.var(axis=0)
    expected = unit((FEATURES - mean) / np.sqrt(variance + 0.001) @ kernel + bias)
    assert np.allclose(head(FEATURES, training=True), expected, atol=1e-4)
    # The averages move by a tenth of the way with each step.
    assert np.allclose(head.normalization.moving_mean, 0.1 * mean, atol=1e-6)
    head.normalization.moving_mean.assign(mean)
    head.normalization.moving_variance.assign(variance)
    assert np.allclose(head(FEATURES), expected, atol=1e-4)


def test_dropout_acts_in_training_alone():
    head = Head(width=6, embedding_dim=4, dropout=0.5)
    assert np.array_equal(head(FEATURES), head(FEATURES))
    assert not np.allclose(head(FEATURES, training=True), head(FEATURES))


def test_a_head_round_trips_with_its_policy():
    head = Head(6, 4, dropout=0.25, normalize=True, members=2, is_split=True, dtype="mixed_float16")
    config = keras.saving.serialize_keras_object(head)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == head.get_config()
    assert {each.compute_dtype for each in again._flatten_layers()} == {"float16"}
    assert head(FEATURES).dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1; got 0"),
        ({"embedding_dim": 5, "members": 2}, "must be a multiple of members.*; got 5 and 2"),
        ({"embedding_dim": 4, "members": 0}, "must be a multiple of members.*; got 4 and 0"),
    ],
)
def test_sizes_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Head(width=6, **arguments)

"""Shared layers against NumPy: pooling, the Transformer, the temperature."""

import keras
import numpy as np
import pytest

from mmret_tf.models.layers import (
    POOLINGS,
    MaskedPooling,
    Temperature,
    TransformerEncoder,
    sinusoidal_positions,
)

WORDS = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_agrees_with_numpy_on_unmasked_vectors(pooling):
    states = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[True, True, False, False], [True, False, True, True], [False] * 4])
    pooled = MaskedPooling(pooling)(states, mask=mask)
    expected = [getattr(states[row][mask[row]], pooling)(axis=0) for row in (0, 1)]
    assert np.allclose(pooled, [*expected, [0, 0]], atol=1e-6)
    assert np.allclose(MaskedPooling(pooling)(states), getattr(states, pooling)(axis=1))


def test_the_maximum_of_half_precision_states_is_finite():
    states = np.full((1, 2, 1), -5, np.float16)
    pooled = MaskedPooling("max", dtype="float16")(states, mask=np.array([[True, False]]))
    assert np.asarray(pooled).tolist() == [[-5]]


def test_positions_are_sines_and_cosines():
    # Wave lengths 2 pi and 2 pi * 100, for 4 channels.
    angles = np.arange(3)[:, None] * [1, 0.01]
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    assert np.allclose(sinusoidal_positions(3, 4), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_transformer_ignores_padding(pooling):
    encoder = TransformerEncoder(units=8, pooling=pooling)
    padded = np.concatenate([WORDS, np.full((2, 3, 3), 9, np.float32)], axis=1)
    mask = np.arange(7)[None] < np.array([[4], [4]])
    assert np.allclose(encoder(padded, mask=mask), encoder(WORDS), atol=1e-5)
    assert np.isfinite(encoder(WORDS, mask=np.zeros((2, 4), bool))).all()


def test_the_order_of_words_matters_to_a_transformer_through_positions_alone():
    for positions in (True, False):
        encoder = TransformerEncoder(units=8, positions=positions)
        same = np.allclose(encoder(WORDS[:, ::-1]), encoder(WORDS), atol=1e-5)
        assert same == (not positions)


def test_a_transformer_computes_by_its_own_policy_and_round_trips():
    encoder = TransformerEncoder(units=8, positions=False, pooling="max", dtype="mixed_bfloat16")
    encoder.build((None, None, 3))
    assert {each.compute_dtype for each in encoder._flatten_layers()} == {"bfloat16"}
    config = encoder.get_config()
    assert TransformerEncoder.from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("log_temperature", "expected"), [(np.log(0.5), 0.5), (-50.0, 0.01), (50.0, 1.0)]
)
def test_the_temperature_is_kept_in_its_range(log_temperature, expected):
    temperature = Temperature(dtype="mixed_float16")
    assert float(temperature()) == pytest.approx(0.07)  # not rounded to half precision
    temperature.log_temperature.assign(log_temperature)
    assert float(temperature()) == pytest.approx(expected)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="pooling must be one of mean, max; got 'last'"):
        MaskedPooling("last")
    with pytest.raises(ValueError, match="units must be a multiple of 4; got 6"):
        TransformerEncoder(6)
    assert keras.saving.get_registered_name(MaskedPooling) == "mmret_tf>MaskedPooling"

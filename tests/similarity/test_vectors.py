"""Unit vectors, means of rows, and cosines row by row, with values to check by eye."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.similarity.vectors import mean_vectors, row_cosines, unit_length


def test_unit_length_keeps_zeros_and_scales_everything_else():
    rows = unit_length(np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


def test_unit_length_has_a_finite_gradient_at_zero():
    row = tf.Variable([[0.0, 0.0]])
    with tf.GradientTape() as tape:
        length = tf.reduce_sum(unit_length(row))
    assert np.isfinite(tape.gradient(length, row)).all()


def test_members_of_an_ensemble_share_the_length():
    rows = unit_length(np.array([[3.0, 4.0, 0.0, 2.0]]), members=2)
    expected = np.array([[0.6, 0.8, 0, 1]]) / np.sqrt(2)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    # The cosine of two rows is the mean of the members' cosines: 0.6 and 1.
    other = unit_length(np.array([[1.0, 0.0, 0.0, 1.0]]), members=2)
    assert float(keras.ops.sum(rows * other)) == pytest.approx((0.6 + 1) / 2, abs=1e-6)


def test_half_precision_is_scaled_in_float32():
    rows = unit_length(tf.constant([[300.0, 400.0]], tf.float16))
    assert rows.dtype == tf.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8]], atol=1e-6)


def test_mean_vectors_average_the_rows_of_each_item():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        mean_vectors(rows, [2, 0, 1]), [[half, half], [0, 0], [0.8, 0.6]], atol=1e-6
    )


def test_opposite_rows_cancel_to_zeros():
    assert mean_vectors(np.array([[1.0, 0.0], [-1.0, 0.0]]), [2]).tolist() == [[0, 0]]


def test_row_cosines_compare_row_by_row():
    cosines = row_cosines(
        np.array([[1.0, 0], [3, 4], [0, 0]]), np.array([[2.0, 0], [4, 3], [1, 0]])
    )
    np.testing.assert_allclose(cosines, [1, 0.96, 0])

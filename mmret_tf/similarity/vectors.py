"""Unit vectors (单位向量): scaling rows to length 1, averaging them, comparing them row by row."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras import ops


def unit_length(vectors: tf.Tensor | np.ndarray, members: int = 1) -> tf.Tensor:
    """Scale rows to length 1, in float32; a row of zeros stays zeros. Section 4.3.

    The vectors of an ensemble stand side by side in a row. Each is scaled to the same length, so
    that the cosine of two rows is the mean of the members' cosines.

    Args:
        vectors: `[batch, dim]`.
        members: Number of vectors that share a row.

    Returns:
        float32 `[batch, dim]`.

    >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])).numpy().round(1).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    vectors = ops.cast(vectors, "float32")
    apart = ops.reshape(vectors, (-1, members, vectors.shape[-1] // members))
    squares = ops.sum(apart**2, axis=-1, keepdims=True) * members
    # The floor is under the root, where it keeps the gradient finite too.
    return ops.reshape(apart * ops.rsqrt(ops.maximum(squares, 1e-12)), ops.shape(vectors))


def mean_vectors(vectors: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Average consecutive rows and scale each mean to length 1.

    Args:
        vectors: `[sum(counts), dim]`, the rows of the first item, then those of the second.
        counts: Number of rows of each item, `[n]`.

    Returns:
        float32 `[n, dim]`; a single row as it is, zeros for an item without rows.

    >>> mean_vectors(np.array([[3.0, 0.0], [0.0, 4.0], [0.8, 0.6]]), [2, 0, 1]).round(1)
    array([[0.6, 0.8],
           [0. , 0. ],
           [0.8, 0.6]], dtype=float32)
    """
    counts = np.asarray(counts, int)
    means = np.zeros((len(counts), np.shape(vectors)[1]), np.float32)
    np.add.at(means, np.repeat(np.arange(len(counts)), counts), vectors)
    lengths = np.linalg.norm(means[counts > 1], axis=1, keepdims=True)
    means[counts > 1] /= np.maximum(lengths, 1e-6)
    return means


def row_cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row with the same row of another array. Section 4.3.

    Args:
        first, second: `[n, dim]`.

    Returns:
        float64 `[n]`; 0 for a row of zeros.

    >>> row_cosines(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("nd,nd->n", first, second) / np.maximum(lengths, 1e-12)

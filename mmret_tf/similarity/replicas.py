"""The rows of all replicas (副本): what a loss needs where a batch is spread over devices.

Section 8.3 of the document. A replica computes the embeddings of its part of a batch. Its negatives
are the rows of the whole batch, so each replica gathers the rows of all others, gradients included
(open_clip does so, too; arXiv 2103.00020 trains with global batches of 32,768).
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops


def count_replicas() -> int:
    """The number of replicas that compute a step together; 1 without a `tf.distribute` strategy.

    >>> count_replicas()
    1
    """
    return tf.distribute.get_strategy().num_replicas_in_sync


def gather_replicas(arrays: Any) -> Any:
    """The rows of all replicas, in the order of the replicas. Call it in a step of training.

    Replicas may have different numbers of rows. The gradient of a gathered row is the sum of its
    gradients in the losses of all replicas. If each replica computes the same loss over the
    gathered rows, and divides it by the number of replicas, then the gradients are those of one
    device with the whole batch.

    Args:
        arrays: Tensors with the rows of this replica, `[n, ...]`, all of one n, in any structure of
            lists and dicts. `None` stays as it is. Strings become integers, equal for equal
            strings.

    Returns:
        The same structure of `[n_all, ...]`; if there is one replica, the arrays as they are.

    >>> gather_replicas({"rows": tf.constant([1.0, 2.0]), "weights": None})["rows"].numpy().tolist()
    [1.0, 2.0]
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return arrays
    flat = [None if each is None else _numbers(each) for each in tf.nest.flatten(arrays)]
    given = [each for each in flat if each is not None]
    place, n = context.replica_id_in_sync_group, tf.shape(given[0])[0]
    mine = tf.one_hot(place, context.num_replicas_in_sync, on_value=n, off_value=0, dtype=tf.int32)
    counts = context.all_reduce(tf.distribute.ReduceOp.SUM, mine)
    before = tf.reduce_sum(counts[:place])
    after = tf.reduce_sum(counts) - before - n
    # `all_gather` has no gradient. A sum has one, and zeros for the rows of the other replicas make
    # a sum of what is gathered.
    padded = [tf.pad(each, [[before, after], *[[0, 0]] * (len(each.shape) - 1)]) for each in given]
    gathered = iter([context.all_reduce(tf.distribute.ReduceOp.SUM, each) for each in padded])
    whole = [None if each is None else next(gathered) for each in flat]
    return tf.nest.pack_sequence_as(arrays, whole)


def _numbers(array: Any) -> tf.Tensor:
    """Strings as integers of 63 bits, because only numbers can be summed."""
    array = tf.convert_to_tensor(array)
    return tf.strings.to_hash_bucket_fast(array, 2**63 - 1) if array.dtype == "string" else array


def weighted_loss(loss: Callable, weight: float) -> Callable:
    """A Keras loss as this replica's part of it: over the replicas, the parts sum up to the loss.

    Args:
        loss: A `keras.losses.Loss`, or a function of the targets and the predictions.
        weight: A factor.

    Returns:
        A function of targets, predictions and, perhaps, sample weights: a number. ValueError for
        sample weights beside a plain function.

    >>> absolute = weighted_loss(keras.losses.MeanAbsoluteError(), 2.0)
    >>> float(absolute(ops.array([1.0, 2.0]), ops.array([1.0, 5.0])))
    3.0
    """

    def weighted(y_true, y_pred, sample_weight=None):
        if isinstance(loss, keras.losses.Loss):
            share = count_replicas()
            if share > 1 and loss.reduction not in ("sum", "none", None):
                # Keras divides a mean of rows, but not a loss that is one number already.
                is_number = len(loss.call(y_true, y_pred).shape) == 0
                share = share if is_number else 1
            return weight * loss(y_true, y_pred, sample_weight) / share
        if sample_weight is not None:
            raise ValueError("sample weights need a keras.losses.Loss, not a function as the loss")
        return weight * ops.mean(loss(y_true, y_pred)) / count_replicas()

    return weighted

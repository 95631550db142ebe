"""Keras' LSTM with a leaner loop, for processors. Section 2.2."""

import keras
import tensorflow as tf
from keras import layers, ops


@keras.saving.register_keras_serializable("mmret_tf")
class LSTM(layers.LSTM):
    """`keras.layers.LSTM`: the same weights, arguments and results, in less time on a processor.

    Keras computes each step for all texts of a batch; here only those that have a word at this
    place are computed, which is half of the work where the longest text has twice the mean length.
    A short text spends its time on reading kernels from memory. Keras multiplies each word by the
    kernel as it comes; here one product does so for all words before the loop, which then reads the
    recurrent kernel alone. Under a mixed policy, training computes in its lower precision, and
    everything else in float32: converting the kernels takes longer than reading a text. With a GPU,
    Keras' own loop calls cuDNN.

    Call: vectors `[batch, length, width]` and a mask `[batch, length]` -> as `keras.layers.LSTM`.

    >>> LSTM(4)(ops.ones((2, 5, 3))).shape
    TensorShape([2, 4])
    """

    def __init__(self, units: int, **kwargs):
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        super().__init__(units, **{"autocast": has_gpu, **kwargs})

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.autocast:
            return super().inner_loop(sequences, initial_state, mask, training)
        dtype = self.compute_dtype if training else self.variable_dtype
        # Converted here, because a conversion inside the loop is repeated in each step.
        kernel, recurrent_kernel, bias = (ops.cast(each, dtype) for each in self.cell.weights)
        initial_state = [ops.cast(each, dtype) for each in initial_state]
        words = tf.transpose(ops.cast(sequences, dtype), (1, 0, 2))
        length = tf.shape(words)[0]
        is_word = tf.ones(tf.shape(words)[:2], "bool") if mask is None else tf.transpose(mask)
        if self.go_backwards:
            words, is_word = words[::-1], is_word[::-1]
        counts = tf.math.count_nonzero(is_word, axis=1, dtype="int32")

        def by_step(values, width):
            # An index into a tensor would cost its whole size in each step of the backward pass.
            array = tf.TensorArray(
                values.dtype, length, infer_shape=False, element_shape=(None, width)
            )
            return array.split(values, counts)

        texts_of = by_step(tf.where(is_word)[:, 1:], 1)
        gates_of = by_step(tf.boolean_mask(words, is_word) @ kernel + bias, 4 * self.units)

        def step(place, outputs, state, carry):
            texts = texts_of.read(place)
            gates = gates_of.read(place) + tf.gather_nd(state, texts) @ recurrent_kernel
            write, keep, new, read = tf.split(gates, 4, axis=1)
            new = tf.sigmoid(write) * tf.tanh(new) + tf.sigmoid(keep) * tf.gather_nd(carry, texts)
            carry = tf.tensor_scatter_nd_update(carry, texts, new)
            state = tf.tensor_scatter_nd_update(state, texts, tf.sigmoid(read) * tf.tanh(new))
            return place + 1, outputs.write(place, state), state, carry

        outputs = tf.TensorArray(words.dtype, length, element_shape=(None, self.units))
        _, outputs, state, carry = tf.while_loop(
            lambda place, *_: place < length, step, (0, outputs, *initial_state)
        )
        return state, tf.transpose(outputs.stack(), (1, 0, 2)), [state, carry]

"""Keras' LSTM with a leaner loop, for processors. Section 2.2."""

import keras
import tensorflow as tf
from keras import layers, ops


@keras.saving.register_keras_serializable("mmret_tf")
class LSTM(layers.LSTM):
    """`keras.layers.LSTM`: the same weights, arguments and results, in less time on a processor.

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
        words = tf.tensordot(words, kernel, axes=1) + bias
        # Repeated for each unit, because `tf.where` is slow where it has to broadcast.
        is_word = None if mask is None else tf.repeat(tf.transpose(mask)[..., None], self.units, 2)
        if self.go_backwards:
            words = words[::-1]
            is_word = None if is_word is None else is_word[::-1]
        length = tf.shape(words)[0]

        def step(place, outputs, state, carry):
            gates = words[place] + tf.matmul(state, recurrent_kernel)
            write, keep, new, read = tf.split(gates, 4, axis=1)
            new_carry = tf.sigmoid(keep) * carry + tf.sigmoid(write) * tf.tanh(new)
            new_state = tf.sigmoid(read) * tf.tanh(new_carry)
            if is_word is not None:
                new_carry = tf.where(is_word[place], new_carry, carry)
                new_state = tf.where(is_word[place], new_state, state)
            return place + 1, outputs.write(place, new_state), new_state, new_carry

        outputs = tf.TensorArray(words.dtype, length, element_shape=(None, self.units))
        _, outputs, state, carry = tf.while_loop(
            lambda place, *_: place < length, step, (0, outputs, *initial_state)
        )
        return state, tf.transpose(outputs.stack(), (1, 0, 2)), [state, carry]

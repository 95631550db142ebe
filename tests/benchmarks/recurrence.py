"""How long does the LSTM of the towers take, beside `keras.layers.LSTM` with the same weights?

    python tests/benchmarks/recurrence.py
    taskset -c 1 python tests/benchmarks/recurrence.py    # on one core

Both take turns, with the sizes of one member of the recipe for Flickr8k: a training step, forwards
and backwards, over 256 captions of many lengths, whose padding is masked; and one text of 12 words.
Prints medians and their ratio.
"""

import argparse
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from mmret_tf.models.towers.recurrence import LSTM

WORD_DIM, UNITS = 300, 512
CAPTIONS, LONGEST, MEAN, QUERY = 256, 24, 11, 12  # captions of a batch, and words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    lengths = np.clip(random.poisson(MEAN, CAPTIONS), 1, LONGEST)
    lengths[0] = LONGEST
    mask = tf.sequence_mask(lengths, LONGEST)
    words = random.normal(scale=0.1, size=(*mask.shape, WORD_DIM)).astype("float32")
    query = tf.constant(words[:1, :QUERY])
    print(f"{CAPTIONS} captions of {lengths.mean():.1f} words, at most {LONGEST}")
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        layers = [cls(UNITS, return_sequences=True) for cls in (LSTM, keras.layers.LSTM)]
        for layer in layers:
            layer.build((None, None, WORD_DIM))
        layers[0].set_weights(layers[1].get_weights())
        steps = [training_step(layer, words, mask) for layer in layers]
        show(f"{policy}: a training step", steps, options.turns)
        queries = [tf.function(lambda layer=layer: layer(query)) for layer in layers]
        show(f"{policy}: a text of {QUERY} words", queries, 10 * options.turns)


def training_step(layer: keras.layers.Layer, words: np.ndarray, mask: tf.Tensor) -> Callable:
    """Computes the gradients of the maxima of the states, as in the text tower."""
    words = tf.Variable(words)
    lowest = -1e4 * tf.cast(~mask, layer.compute_dtype)[..., None]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            states = layer(tf.cast(words, layer.compute_dtype), mask=mask, training=True)
            loss = tf.reduce_sum(tf.reduce_max(states + lowest, axis=1))
        return tape.gradient(loss, [words, *layer.trainable_weights])

    return step


def show(name: str, runs: list[Callable], turns: int) -> None:
    """Print the medians of both, which take turns, and their ratio."""
    seconds = np.empty((2, turns))
    for turn in range(-1, turns):  # the first traces the graphs, and the last takes its place
        for place, run in enumerate(runs):
            started = time.perf_counter()
            tf.nest.map_structure(lambda each: each.numpy(), run())
            seconds[place, turn] = time.perf_counter() - started
    ours, theirs = 1000 * np.median(seconds, axis=1)
    print(f"{name:<40} {ours:8.2f} ms, Keras {theirs:8.2f} ms: {ours / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()

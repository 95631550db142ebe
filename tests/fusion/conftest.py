"""What the tests of fusions share: inputs of three modalities, and layers with moved weights."""

import keras
import numpy as np
import pytest

DIM = 8
NAMES = ("audio", "image", "text")


@pytest.fixture(scope="session")
def vectors():
    """A function that draws unit rows of three modalities, `{name: [batch, 8]}`."""

    def draw(batch=5, seed=0):
        rows = np.random.default_rng(seed).normal(size=(3, batch, DIM)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return dict(zip(NAMES, rows, strict=True))

    return draw


@pytest.fixture(scope="session")
def sequences():
    """A function that draws sequences of three modalities, of different lengths and widths; those
    of every second row end in zeros."""

    def draw(batch=5, seed=0):
        generator = np.random.default_rng(seed)
        inputs = {}
        for name, length, width in zip(NAMES, (2, 4, 6), (3, 8, 5), strict=True):
            inputs[name] = generator.normal(size=(batch, length, width)).astype(np.float32)
            inputs[name][::2, length // 2 :] = 0
        return inputs

    return draw


@pytest.fixture(scope="session")
def moved():
    """A function that builds a layer by a call and moves its weights away from their start."""

    def move(make, inputs):
        keras.utils.set_random_seed(0)
        layer = make()
        layer(inputs)
        generator = np.random.default_rng(1)
        layer.set_weights([w + 0.3 * generator.normal(size=w.shape) for w in layer.get_weights()])
        return layer

    return move

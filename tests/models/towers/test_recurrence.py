"""The LSTM with a leaner loop gives what Keras' gives, forwards and backwards, masked or not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.models.towers.recurrence import LSTM
from mmret_tf.models.towers.text import SentenceReader, text_tower, without_padding

WORDS = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
# Of five, two and no words.
MASK = tf.sequence_mask([5, 2, 0], 5)
GAPS = tf.constant([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]) == 1
MASKS = pytest.mark.parametrize("mask", [None, MASK, GAPS], ids=["whole", "masked", "with gaps"])


def both(**settings):
    """The layer and Keras', with the same weights."""
    layers = [cls(6, bias_initializer="uniform", **settings) for cls in (LSTM, keras.layers.LSTM)]
    for layer in layers:
        layer.build((None, None, 4))
    layers[0].set_weights(layers[1].get_weights())
    return layers


@MASKS
@pytest.mark.parametrize(
    "settings", [{}, {"return_sequences": True}, {"go_backwards": True}, {"return_state": True}]
)
def test_it_gives_what_keras_gives(settings, mask):
    ours, theirs = (layer(WORDS, mask=mask) for layer in both(**settings))
    for one, other in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@MASKS
def test_its_gradients_are_those_of_keras(mask):
    gradients = []
    for layer in both(return_sequences=True):
        words = tf.Variable(WORDS)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(words, mask=mask) ** 2)
        gradients.append(tape.gradient(loss, [words, *layer.trainable_weights]))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@MASKS
def test_bidirectional_takes_it(mask):
    keras.utils.set_random_seed(0)
    ours, theirs = (keras.layers.Bidirectional(cls(3)) for cls in (LSTM, keras.layers.LSTM))
    ours.build((None, None, 4)), theirs.build((None, None, 4))
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(WORDS, mask=mask), theirs(WORDS, mask=mask), atol=1e-6)


@pytest.mark.parametrize(("has_gpu", "is_masked"), [(False, True), (True, False)])
def test_a_pooled_reader_gives_a_mask_to_the_leaner_loop_alone(has_gpu, is_masked, monkeypatch):
    """cuDNN refuses a text without words, and a pooling needs no mask."""
    devices = tf.config.list_physical_devices
    gpus = ["a GPU"] if has_gpu else []
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: gpus if kind == "GPU" else devices(kind),
    )
    reader = SentenceReader(word_dim=4, units=6, pooling="max")
    masks, call = [], reader.network.call

    def note(*args, mask=None, **kwargs):
        masks.append(mask is not None)
        return call(*args, mask=mask, **kwargs)

    monkeypatch.setattr(reader.network, "call", note)
    assert reader(WORDS, mask=MASK).shape == (3, 6) and masks == [is_masked]


def test_padding_behind_the_longest_text_is_cut():
    cut = without_padding(tf.constant([[5, 0, 6, 0, 0], [7, 8, 0, 0, 0]]))
    assert cut.numpy().tolist() == [[5, 0, 6], [7, 8, 0]]
    assert without_padding(tf.zeros((2, 5), tf.int64)).shape == (2, 1)


@pytest.fixture
def in_float64():
    """Layers compute in float64: how a processor rounds float32 is not the question."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("rnn", ["lstm", "gru", "bilstm", "transformer"])
def test_a_text_has_the_same_embedding_beside_a_longer_one(
    rnn, pooling, text_preprocessor, in_float64
):
    keras.utils.set_random_seed(0)
    settings = {"rnn": rnn, "pooling": pooling, "units": 8, "embedding_dim": 4}
    tower = text_tower(text_preprocessor, bag_of_words=True, **settings)
    texts = ["a red circle", "a", "", "a red circle a red circle"]
    ids = text_preprocessor(texts)
    together = tower(ids).numpy()
    for row in range(4):
        np.testing.assert_allclose(tower(ids[row : row + 1])[0], together[row], atol=1e-6)


def test_only_training_computes_in_the_lower_precision(text_preprocessor):
    towers = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        try:
            towers.append(text_tower(text_preprocessor, word_dim=8, units=8, embedding_dim=4))
        finally:
            keras.config.set_dtype_policy("float32")
        table = towers[-1].words.embeddings  # words that bfloat16 can hold
        table.assign(tf.cast(tf.cast(table.value, "bfloat16"), "float32"))
    ids = text_preprocessor(["a red circle"])
    float32, mixed = towers
    states = tf.cast(tf.cast(float32.features(ids), "bfloat16"), "float32")
    np.testing.assert_allclose(mixed(ids), float32.head(states), atol=1e-6)
    assert 1e-4 < np.abs(mixed(ids, training=True) - mixed(ids)).max() < 0.1

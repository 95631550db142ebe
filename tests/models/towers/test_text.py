"""The text tower: padding, pooling, bag of words, members, frozen words, round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_text

from mmret_tf.data import TextPreprocessor
from mmret_tf.models import TextTower, text_tower
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.towers.text import RNNS, TEXT_POOLINGS
from mmret_tf.similarity import unit_length

OPTIONS = [{"rnn": rnn, "pooling": pooling} for rnn in RNNS for pooling in TEXT_POOLINGS]
OPTIONS += [{"bag_of_words": True, "pooling": "max"}, {"members": 2}]
SIZES = {"word_dim": 8, "units": 8, "embedding_dim": 4}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_is_ignored_and_order_matters(options, text_preprocessor):
    tower = text_tower(text_preprocessor, **SIZES, **options)
    # The empty caption is embedded as well, as some unit vector.
    rows = tower(np.array([[5, 6, 7, 0, 0], [7, 6, 5, 0, 0], [0, 0, 0, 0, 0]])).numpy()
    assert np.allclose(rows[:1], tower(np.array([[5, 6, 7]])), atol=1e-5)
    assert not np.allclose(rows[0], rows[1], atol=1e-3)
    assert np.isfinite(rows).all()
    assert np.allclose(np.linalg.norm(rows[:2], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rnn": "gru", "pooling": "last"},
        {"rnn": "bilstm", "pooling": "mean", "members": 2},
        {"rnn": "transformer", "pooling": "max", "bag_of_words": True},
    ],
    ids=str,
)
def test_a_tower_round_trips_with_its_vocabulary(options, tmp_path):
    tower = text_tower(make_text(), **SIZES, **options)
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(TextTower, tmp_path / "tower.keras")
    tokens = loaded.preprocess(tf.constant(CAPTIONS))
    assert np.array_equal(tokens, tower.text_preprocessor(CAPTIONS))
    assert np.array_equal(loaded(tokens), tower(tokens))
    assert loaded.settings == tower.settings
    assert [tuple(each.shape) for each in loaded.weights] == [
        tuple(each.shape) for each in tower.weights
    ]


def test_encode_agrees_with_call(text_preprocessor, shared_model):
    tower = shared_model.text_tower
    expected = tower(text_preprocessor(CAPTIONS))
    assert np.allclose(shared_model.encode_texts(CAPTIONS), expected, atol=1e-6)
    assert tower.tables == [text_preprocessor]


def test_the_sequence_has_word_vectors_and_zeros_for_padding(text_preprocessor):
    tower = text_tower(text_preprocessor, **SIZES)
    vectors, mask = tower.sequence(np.array([[5, 6, 0], [7, 0, 0]]))
    table = tower.words.get_weights()[0]
    zeros = np.zeros(8)
    expected = [[table[5], table[6], zeros], [table[7], zeros, zeros]]
    assert np.allclose(vectors, expected)
    assert np.asarray(mask).tolist() == [[True, True, False], [True, False, False]]


def test_the_bag_of_words_is_the_mean_of_the_word_vectors(text_preprocessor):
    tower = text_tower(text_preprocessor, word_dim=3, units=2, embedding_dim=4, bag_of_words=True)
    table = tower.words.get_weights()[0]
    [projection] = tower.head.projections
    kernel, bias = projection.get_weights()
    kernel[:2] = 0  # ignores the state of the LSTM, so that only the words are left
    projection.set_weights([kernel, bias])
    expected = unit_length(table[[5, 6, 9]].mean(axis=0, keepdims=True) @ kernel[2:] + bias)
    assert np.allclose(tower(np.array([[5, 6, 9, 0, 0]])), expected, atol=1e-5)


def test_each_member_reads_and_projects_by_itself(text_preprocessor):
    tower = text_tower(text_preprocessor, **SIZES, members=2)
    tokens = np.array([[5, 6, 7]])
    before = tower(tokens).numpy()
    for weight in tower.backbone[1].weights:
        weight.assign(weight + 1)
    after = tower(tokens).numpy()
    assert np.array_equal(after[:, :2], before[:, :2])
    assert not np.allclose(after[:, 2:], before[:, 2:])


def test_each_member_has_word_vectors_of_its_own(text_preprocessor):
    tower = text_tower(text_preprocessor, **SIZES, members=2)
    tokens = np.array([[5, 6, 7]])
    before, words = tower(tokens).numpy(), tower.sequence(tokens)[0].numpy()
    tower.more_words_0.set_weights([tower.words.get_weights()[0] + 1])
    after = tower(tokens).numpy()
    assert np.array_equal(after[:, :2], before[:, :2])
    assert not np.allclose(after[:, 2:], before[:, 2:])
    assert np.array_equal(tower.sequence(tokens)[0], words)  # those of the first


def test_word_vectors_and_state_are_dropped_in_training_alone(text_preprocessor):
    tower = text_tower(text_preprocessor, **SIZES, dropout=0.5)
    tokens = np.array([[5, 6, 7]])
    assert np.array_equal(tower(tokens), tower(tokens))
    assert not np.allclose(tower.features(tokens, training=True), tower.features(tokens))
    assert tower.head.dropout.rate == 0.5


def test_frozen_words_stay_frozen(tmp_path):
    tower = text_tower(make_text(), **SIZES)
    tower.words.trainable = False
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(TextTower, tmp_path / "tower.keras")
    assert not loaded.words.trainable
    assert len(loaded.trainable_variables) == len(tower.trainable_variables) == 5


def test_all_layers_compute_by_the_policy_that_the_tower_was_made_under(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tower = text_tower(make_text(), **SIZES, rnn="transformer", bag_of_words=True, members=2)
    finally:
        keras.config.set_dtype_policy("float32")
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(TextTower, tmp_path / "tower.keras")
    assert loaded.head.compute_dtype == "float32"  # converting its weights would cost more
    for each in [loaded.words, *loaded.backbone]:
        assert {layer.compute_dtype for layer in each._flatten_layers()} == {"bfloat16"}
    tokens = np.array([[5, 6, 0]])
    assert loaded(tokens).dtype == "float32" and np.array_equal(loaded(tokens), tower(tokens))


def test_a_tower_can_be_summarised(shared_model, capsys):
    shared_model.text_tower.summary()
    assert "reader_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rnn": "rnn"}, "rnn must be one of lstm, gru, bilstm, transformer; got 'rnn'"),
        ({"pooling": "first"}, "pooling must be one of last, mean, max; got 'first'"),
        ({"units": 0}, "units must be at least 1; got 0"),
        ({"word_dim": 0}, "word_dim must be at least 1; got 0"),
        ({"rnn": "transformer", "units": 6}, "units must be a multiple of 4; got 6"),
        ({"embedding_dim": 5, "members": 2}, "must be a multiple of members.*; got 5 and 2"),
        ({"members": 0}, "must be a multiple of members.*; got 256 and 0"),
        ({"text": TextPreprocessor()}, r"has no vocabulary yet: call its adapt\(captions\)"),
        ({"text": 8000}, "text must be an adapted TextPreprocessor; got 8000"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message, text_preprocessor):
    with pytest.raises(ValueError, match=message):
        text_tower(**{"text": text_preprocessor, **arguments})


@pytest.mark.parametrize(
    ("query", "remark"),
    [
        ("a red circle", ""),
        ("zebra 红 🐶 斑马 Zebra", "The model does not know: zebra, 斑, 马."),
        ("红" * 6 + "zebra", ""),  # which is cut off, as any word behind the sixth
        ("zebra " * 6 + "红", "The model knows no word of the query: the ranking means nothing."),
        ("zebra", "The model knows no word of the query: the ranking means nothing."),
        ("🐶🐶", "The model knows no word of the query: the ranking means nothing."),
        (" \n", "The model was given an empty query: the ranking means nothing."),
    ],
)
def test_a_query_with_unknown_words_has_a_remark(query, remark, text_preprocessor):
    tower = text_tower(text_preprocessor, units=4, embedding_dim=4)
    assert tower.remarks([query, "a red circle"]) == [remark, ""]

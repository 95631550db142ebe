"""Captions to words and token ids, texts as sources, and captions that name a side."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_text

from mmret_tf.data.decoders.text import (
    TextPreprocessor,
    check_text,
    names_a_side,
    standardize_text,
    text_source,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A Red CIRCLE.", "a red circle"),
        ("the dog's ball, and   more!", "the dogs ball and more"),
        ("ＲＥＤ　circle", "red circle"),
        ("红色的圆，在左边。", "红 色 的 圆 在 左 边"),
        ("a 红色 circle", "a 红 色 circle"),
        ("Café CAFE\u0301", "café café"),
        ("", ""),
        ("... !", ""),
    ],
)
def test_standardize_text(text, tokens):
    assert standardize_text([text]).numpy()[0].decode() == tokens


def test_standardize_text_keeps_the_shape():
    assert standardize_text([["A", "B"], ["C", "红"]]).shape == (2, 2)
    assert standardize_text("A B").numpy() == b"a b"


def test_text_preprocessor_by_eye():
    text = make_text(["red red red circle circle", "圆"], length=3)
    assert text.get_vocabulary() == ["", "[UNK]", "red", "circle", "圆"]
    assert text.vocabulary_size() == 5
    ids = text(["circle red", "unknown 圆 red red", ""])
    assert ids.numpy().tolist() == [[3, 2, 0], [1, 4, 2], [0, 0, 0]]


def test_the_vocabulary_keeps_the_most_frequent_words():
    text = TextPreprocessor(max_tokens=4)
    text.adapt(tf.data.Dataset.from_tensor_slices(["a a a b b c"]).batch(1))
    assert text.get_vocabulary() == ["", "[UNK]", "a", "b"]


def test_text_preprocessor_round_trips_in_a_keras_file(tmp_path):
    text = make_text(["a red circle", "红色的圆"], length=3)
    model = keras.Sequential([keras.Input((), dtype="string"), text])
    model.save(tmp_path / "text.keras")
    loaded = keras.saving.load_model(tmp_path / "text.keras")
    queries = tf.constant(["a 红 circle", "圆"])
    assert np.array_equal(loaded(queries), text(queries))
    assert loaded.layers[-1].sequence_length == 3


@pytest.mark.parametrize("separator", ["\0", "\x07", "\u202e", "\u2028"])
def test_control_characters_part_words(separator):
    text = make_text(["red circle"], length=3)
    assert np.array_equal(text([f"red{separator}circle"]), text(["red circle"]))


def test_captions_that_are_cut_are_counted():
    text = make_text(["a b c d"], length=3)
    assert text.count_cut(["a b c", "a b c d", "红红红红", ""]) == 2


def test_without_a_vocabulary_there_are_no_ids():
    with pytest.raises(ValueError, match=r"no vocabulary yet: call adapt\(captions\)"):
        TextPreprocessor()(["red"])
    assert TextPreprocessor().vocabulary_size() == 2


@pytest.mark.parametrize("captions", [[], [1, 2], ["a", None], "one caption"])
def test_adapt_takes_strings(captions):
    with pytest.raises(ValueError, match="non-empty list of captions"):
        TextPreprocessor().adapt(captions)


def test_captions_that_name_a_side_or_a_sense_of_rotation():
    free = ["a red ball", "一个球", "an upright", "bright", ""]
    bound = ["to the LEFT", "right-handed", "up\nthe right", "猫在左边", "狗在右侧"]
    bound += ["it circles clockwise", "goes counterclockwise", "顺时针转动", "逆时针转圈"]
    assert not names_a_side(tf.constant(free)).numpy().any()
    assert names_a_side(tf.constant(bound)).numpy().all()


def test_a_text_is_its_own_source():
    source = text_source("红色的圆")
    assert source.read() == "红色的圆".encode() and source.record == "红色的圆"
    assert source.name == "the text '红色的圆'"
    assert text_source("\ud800").read() == b"?"  # half a character cannot be encoded
    for wrong in (3, None, b"red", ["red"]):
        with pytest.raises(ValueError, match="a text must be a string; got"):
            text_source(wrong)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"caf\xe9", "not UTF-8: byte 0xe9"),
        (b"", "empty text"),
        (" \u3000\n".encode(), "empty text"),
    ],
)
def test_text_that_cannot_be_used(contents, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_text(contents)
    check_text("红".encode())

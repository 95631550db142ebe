"""Normal form KC compared with Python's own, for every character."""

import unicodedata

import tensorflow as tf

from mmret_tf.data.decoders.normalization import nfkc


def test_every_code_point():
    points = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    expected = [unicodedata.normalize("NFKC", point) for point in points]
    assert [text.decode() for text in nfkc(tf.constant(points)).numpy()] == expected


def test_separate_accents_are_composed():
    letters = [chr(code) for code in range(0xC0, 0x2000)]
    apart = [unicodedata.normalize("NFD", letter) for letter in letters]
    expected = [unicodedata.normalize("NFKC", letter) for letter in letters]
    assert [text.decode() for text in nfkc(tf.constant(apart)).numpy()] == expected


def test_texts_keep_their_places():
    texts = ["", "e\u0301", "\u0301e", "ＲＥＤ ﬁ", "红色"]
    expected = [unicodedata.normalize("NFKC", text) for text in texts]
    assert [text.decode() for text in nfkc(tf.constant(texts)).numpy()] == expected
    assert nfkc(tf.constant([], tf.string)).shape == (0,)

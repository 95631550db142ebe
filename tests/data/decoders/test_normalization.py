"""Normal form KC compared with Python's own: every character, and marks in any order."""

import random
import unicodedata

import tensorflow as tf

from mmret_tf.data.decoders.normalization import END, _is_plain, nfkc

CHARACTERS = [chr(code) for code in range(1, END) if not 0xD800 <= code < 0xE000]
MARKS = [each for each in CHARACTERS if unicodedata.combining(each)]
PARTS = [each for each in CHARACTERS if not unicodedata.is_normalized("NFKC", each)]


def agrees(texts):
    expected = [unicodedata.normalize("NFKC", text) for text in texts]
    found = [text.decode() for text in nfkc(tf.constant(texts)).numpy()]
    different = [each for each in zip(texts, expected, found, strict=True) if each[1] != each[2]]
    return not different, different[:3]


def test_every_character():
    is_right, different = agrees(CHARACTERS)
    assert is_right, different


def test_every_decomposition_is_composed_again():
    for form in ("NFD", "NFKD"):
        is_right, different = agrees([unicodedata.normalize(form, each) for each in CHARACTERS])
        assert is_right, different


def test_marks_in_any_order_behind_any_letter():
    """As Unicode's own conformance test: a letter, and marks of lower, equal and higher classes."""
    chosen = random.Random(0)
    letters = [*"aeo ", "\u1100", "\uac00", "\u1161", "\u11a8", "ក", "\u09c7", "\u0bc6", "ê", "ộ"]
    texts = []
    for _ in range(20_000):
        pools = chosen.choices([MARKS, letters, PARTS], weights=[5, 3, 1], k=chosen.randint(1, 7))
        texts.append("".join(chosen.choice(pool) for pool in pools))
    is_right, different = agrees(texts)
    assert is_right, different


def test_vietnamese_of_code_page_1258():
    text = b"m\xf4\xf2t b\xf4\xf2".decode("cp1258")  # the dot below comes after the circumflex
    assert nfkc(tf.constant([text])).numpy()[0].decode() == unicodedata.normalize("NFKC", text)


def test_texts_keep_their_places():
    is_right, different = agrees(
        ["", "e\u0301", "\u0301e", "", "\u0301", "ＲＥＤ ﬁ", "红色", "\u0301"]
    )
    assert is_right, different
    assert nfkc(tf.constant([], tf.string)).shape == (0,)


def test_plain_characters_are_their_own_normal_form_and_none_is_a_mark():
    plain = [each for each in CHARACTERS if _is_plain(ord(each))]
    assert len(plain) == 0x7F + 0xA000 - 0x4E00
    assert not set(plain) & {*MARKS, *PARTS}
    text = "".join(plain)
    assert unicodedata.normalize("NFKC", text) == text
    assert nfkc(tf.constant([text, "", "é", "e\u0301红"])).numpy()[3].decode() == "é红"

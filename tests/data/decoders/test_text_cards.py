"""Texts drawn as square pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmret_tf.data.decoders.text_cards import SIZE, draw_line, text_thumbnail

SIDE = 160


def inked_rows(text):
    """The rows of a card in which something is drawn."""
    card = text_thumbnail(text.encode("utf-8", "surrogatepass"), SIDE)
    assert card.size == (SIDE, SIDE) and card.mode == "RGB"
    return (np.asarray(card.convert("L")) < 128).any(axis=1)


def test_a_card_shows_the_text_from_the_top_and_breaks_its_lines():
    assert not inked_rows("").any() and not inked_rows("  ").any()
    one, many = inked_rows("red"), inked_rows("a red circle " * 50)
    assert one[:40].any() and not one[40:].any()
    assert many[:40].any() and many[-40:].any()
    assert (inked_rows("红色的圆" * 12) != one).any()


def test_no_line_reaches_the_right_edge():
    for text in ("a red circle " * 9, "x" * 500):
        card = np.asarray(text_thumbnail(text.encode(), SIDE).convert("L"))
        assert (card < 128).any() and not (card[:, -7:] < 128).any()


@pytest.mark.parametrize("text", ["two\nlines\t\0", "\udc80", "🦊", "x" * 10_000, " \u2028 "])
def test_strange_texts_are_drawn_somehow(text):
    inked_rows(text)


def test_bytes_that_are_not_utf8_are_drawn_somehow():
    assert text_thumbnail(b"\xff\xfe red", SIDE).size == (SIDE, SIDE)


def drawn(text):
    """The pixels of a line, and where it ends."""
    image = Image.new("L", (120, 30), 255)
    end = draw_line(ImageDraw.Draw(image), (0, 0), text)
    return np.asarray(image), end


def test_chinese_characters_have_glyphs_of_their_own():
    characters = "红色的圆在左边蓝方块"
    pictures = {drawn(each)[0].tobytes() for each in characters}
    assert len(pictures) == len(characters)  # where a font lacks them, they are one empty box
    assert drawn("红")[0].min() < 128


def test_a_line_mixes_latin_and_chinese_characters():
    mixed, end = drawn("红ab色")
    (han, han_end), (latin, latin_end) = drawn("红"), drawn("ab")
    assert han_end == SIZE and end == pytest.approx(2 * SIZE + latin_end)
    assert np.array_equal(mixed[:, :SIZE], han[:, :SIZE])
    between = slice(SIZE, SIZE + int(latin_end) - 1)
    assert np.array_equal(mixed[:, between], latin[:, : int(latin_end) - 1])
    assert drawn("")[1] == 0

"""Texts drawn as square pictures."""

import numpy as np
import pytest

from mmret_tf.data.decoders import text_cards
from mmret_tf.data.decoders.text_cards import font_for, text_thumbnail

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


def test_letters_beyond_latin_ask_for_a_chinese_font(monkeypatch):
    asked = []

    def truetype(name, size):
        asked.append(name)
        raise OSError("cannot open resource")

    monkeypatch.setattr(text_cards.ImageFont, "truetype", truetype)
    monkeypatch.setattr(text_cards.ImageFont, "load_default", lambda size: "Pillow's own")
    assert font_for("a red circle") == "Pillow's own" and asked == []
    assert font_for("红") == "Pillow's own" and asked == list(text_cards.CHINESE_FONTS)
    monkeypatch.setattr(text_cards.ImageFont, "truetype", lambda name, size: name)
    assert font_for("红") == text_cards.CHINESE_FONTS[0]

"""Text in pictures: a caption as a square card, and lines that mix Latin and Chinese characters.

Chinese characters come from a font of the package (汉字字体), so they show on every machine.
"""

import functools
import itertools
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Droid Sans Fallback (Apache-2.0), subset to the characters of GB 2312; see han.LICENSE.
HAN_FONT_FILE = Path(__file__).with_name("han.ttf")

# A Chinese character: a text with one is taken to be Chinese.
HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

# Where a line may break: after a Chinese character, and after a word; a long one, anywhere.
PIECES = re.compile(r"[\u2e80-\uffff]\s*|[^\s\u2e80-\uffff]{1,12}\s*")

SIZE = 18  # pixels


@functools.cache
def _font(is_han: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(HAN_FONT_FILE, SIZE) if is_han else ImageFont.load_default(SIZE)


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> float:
    """Draw a line of text from its upper left corner, each character in a font that has it.

    Args:
        draw: Of the picture.
        place: Left and top, in pixels.
        text: One line.

    Returns:
        The right end, in pixels.

    >>> draw = ImageDraw.Draw(Image.new("RGB", (200, 30)))
    >>> draw_line(draw, (0, 0), "红色") == 2 * SIZE
    True
    """
    left, top = place
    for is_han, run in itertools.groupby(text, lambda character: character >= "\u2e80"):
        word, font = "".join(run), _font(is_han)
        draw.text((left, top + SIZE), word, fill="black", font=font, anchor="ls")
        left += draw.textlength(word, font)
    return left


def text_thumbnail(contents: bytes, side: int) -> Image.Image:
    """A square picture of UTF-8 text, its lines broken to fit; the end is cut if it does not."""
    text = " ".join(contents.decode("utf-8", "replace").split())
    card, ruler = Image.new("RGB", (side, side), "whitesmoke"), Image.new("RGB", (1, 1))
    lines = [""]
    for piece in PIECES.findall(text):
        if draw_line(ImageDraw.Draw(ruler), (0, 0), lines[-1] + piece.rstrip()) > side - 16:
            lines.append("")
        lines[-1] += piece
    for number, line in enumerate(lines[:7]):
        draw_line(ImageDraw.Draw(card), (8, 6 + number * (SIZE + 3)), line)
    return card

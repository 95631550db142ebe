"""A text drawn as a square picture, and the fonts that show it: for result galleries."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw, ImageFont

# Where a line may break: after a Chinese character, and after a word; a long one, anywhere.
PIECES = re.compile(r"[\u2e80-\uffff]\s*|[^\s\u2e80-\uffff]{1,12}\s*")

# Fonts with Chinese glyphs, as Debian, Fedora, macOS and Windows name their files.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "simsun.ttc",
)


def text_thumbnail(contents: bytes, side: int) -> Image.Image:
    """A square picture of UTF-8 text, its lines broken to fit; the end is cut if it does not."""
    text = " ".join(contents.decode("utf-8", "replace").split())
    blank = Image.new("RGB", (side, side), "whitesmoke")
    draw, font = ImageDraw.Draw(blank), font_for(text)
    lines = [""]
    for piece in PIECES.findall(text):
        if draw.textlength(lines[-1] + piece.rstrip(), font) > side - 16:
            lines.append("")
        lines[-1] += piece
    draw.multiline_text((8, 6), "\n".join(lines[:7]), fill="black", font=font)
    return blank


def font_for(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; for text beyond Latin letters, a Chinese font of the system, if any."""
    if not text.isascii():
        for name in CHINESE_FONTS:
            try:
                return ImageFont.truetype(name, 18)
            except OSError:
                continue
    return ImageFont.load_default(18)

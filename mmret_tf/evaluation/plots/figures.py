"""Figures (图): made and saved without pyplot's global state, and shown in Jupyter.

matplotlib comes with the extra `notebooks`. Without it, every function that draws raises an
ImportError that says so.
"""

import io
import os
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from mmret_tf._checks import printable
from mmret_tf._files import replaced_file
from mmret_tf.data.decoders.text_cards import HAN_FONT_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_DOTS, SAVED_DOTS = 100, 150  # an inch: 9 inches are as wide as a cell of a notebook
SHOWN_WIDTH = 800  # pixels


def new_figure(width: float, height: float) -> "Figure":
    """An empty white figure, sizes in inches, that Jupyter shows as a PNG picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "mmret_tf[notebooks]"') from None
    size, layout = (width, height), "constrained"
    figure = Figure(size, dpi=SHOWN_DOTS, layout=layout, facecolor="white")
    # Without this method, Jupyter shows no figure before the first one of pyplot.
    figure._repr_png_ = lambda: _png_of(figure)
    return figure


def font_families() -> list[str]:
    """Matplotlib's own font, and the package's for the Chinese characters that it lacks."""
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(HAN_FONT_FILE)
    return ["DejaVu Sans", FontProperties(fname=HAN_FONT_FILE).get_name()]


def shortened(text: str, width: int) -> str:
    """The start of a caption. Characters that cannot be printed become spaces.

    Args:
        text: The caption.
        width: In letters; a Chinese character counts as two.

    >>> print(shortened("a black dog", 8), shortened("黑色的狗在跑", 8))
    a black… 黑色的狗…
    """
    words = printable(text)
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words]
    fitting = int(np.searchsorted(np.cumsum(widths), width, side="right"))
    return words if fitting == len(words) else words[:fitting].rstrip() + "…"


def save_figure(figure: "Figure", path: str | os.PathLike) -> Path:
    """Write the PNG, whole or not at all."""
    with replaced_file(path) as temporary:
        _write_png(figure, temporary, SAVED_DOTS)
    return Path(path)


def shown(picture: "str | os.PathLike | Figure", width: int = SHOWN_WIDTH) -> Image.Image:
    """A picture file or a figure, made small enough for the output of a notebook.

    Args:
        picture: The path of a file, as the `draw_...` functions return it, or a figure.
        width: In pixels.

    Returns:
        The picture with a palette of 256 colours, in a quarter of the bytes.

    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/white.png"
    >>> Image.new("RGB", (1600, 600), "white").save(path)
    >>> shown(path).size
    (800, 300)
    """
    source = picture if isinstance(picture, str | os.PathLike) else io.BytesIO(_png_of(picture))
    with Image.open(source) as file:
        image = file.convert("RGB")
    image = image.resize((width, width * image.height // image.width))
    return image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _png_of(figure: "Figure") -> bytes:
    file = io.BytesIO()
    _write_png(figure, file, SHOWN_DOTS)
    return file.getvalue()


def _write_png(figure: "Figure", file: Path | BinaryIO, dots: int) -> None:
    with warnings.catch_warnings():
        # One warning for each character without a glyph; the picture shows a box there.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=dots)

"""Pictures in Python: paths, bytes, PIL images and arrays as encoded bytes, and thumbnails.

Pillow and NumPy alone, so that the serving client runs without TensorFlow. `upright_rgb` is the
truth that the decoder in `image` follows.
"""

import io
import os
import warnings
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from mmret_tf.data.sources import InlineSource, Source, file_or_bytes

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image | Source

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")

# A picture of more pixels than this is refused before it is decoded (8192 x 8192: 192 MiB).
MAX_PIXELS = 2**26

LEVELS = "an image array must hold levels from 0 to 255"


def picture_source(picture: ImageSource) -> Source:
    """Turn any kind of picture into a source of encoded bytes.

    Args:
        picture: A path, encoded bytes, a PIL image, or an array of levels, see `encode_png`.

    Raises:
        ValueError: `picture` is something else, or an array that is not a picture.
    """
    if isinstance(picture, Source):
        return picture
    if isinstance(picture, str | bytes | os.PathLike):
        return file_or_bytes(picture)
    if isinstance(picture, Image.Image):
        picture = np.asarray(upright_rgb(picture))
    return InlineSource(encode_png(picture), "the image")


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as RGB: upright by its EXIF orientation, over white, 16 bits scaled to 8.

    Args:
        image: Of any mode. Numbers of the modes I and F must be levels from 0 to 255.

    Raises:
        ValueError: The mode I or F holds other numbers.

    >>> upright_rgb(Image.new("RGBA", (1, 1), (200, 30, 30, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_levels(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def encode_png(pixels: npt.ArrayLike) -> bytes:
    """Encode an array of levels as PNG.

    Args:
        pixels: `[height, width]`, `[height, width, 1]`, `[..., 3]` or `[..., 4]`, levels 0 to 255.

    Raises:
        ValueError: The array has another shape or other numbers.

    >>> Image.open(io.BytesIO(encode_png(np.zeros((2, 3))))).size
    (3, 2)
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            "an image array must have shape [height, width], [height, width, 1], [..., 3] or "
            f"[..., 4]; got {pixels.shape}"
        )
    levels = _levels(pixels)
    file = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def read_picture(contents: bytes, side: int) -> tuple[str, tuple[int, int], Image.Image]:
    """Decode a picture once for a report: its format, its size and a thumbnail.

    Args:
        contents: Encoded bytes.
        side: Side of the thumbnail, in pixels.

    Returns:
        The format, one of `FORMATS` (or "MPO", a JPEG of several pictures); width and height of the
        upright picture, in pixels; the central square of the picture, RGB, resized.

    Raises:
        ValueError: The bytes cannot be decoded, or the picture has more than `MAX_PIXELS`.

    >>> read_picture(encode_png(np.zeros((2, 3))), side=8)[:2]
    ('PNG', (3, 2))
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is lower
            image = Image.open(io.BytesIO(contents), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"too large: more than {MAX_PIXELS} pixels")
        upright = upright_rgb(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a whole image: {error}") from None
    return image.format, upright.size, ImageOps.fit(upright, (side, side))


def picture_thumbnail(contents: bytes, side: int) -> Image.Image:
    """A square RGB picture of encoded bytes; a grey one if they cannot be decoded."""
    try:
        return read_picture(contents, side)[2]
    except ValueError:
        grey = Image.new("RGB", (side, side), "lightgrey")
        ImageDraw.Draw(grey).text((8, side // 2), "not readable", fill="black")
        return grey


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Levels as uint8; ValueError for other numbers, fractions from 0 to 1 among them."""
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"{LEVELS}; got {pixels.dtype}")
    low, high = np.min(pixels), np.max(pixels)
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise ValueError(f"{LEVELS}; got {low} to {high}")
    if pixels.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(f"{LEVELS}; got {low:g} to {high:g}: multiply fractions of 0 to 1 by 255")
    return np.rint(pixels).astype(np.uint8)

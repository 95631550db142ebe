"""Pictures in Python: paths, bytes, PIL images and arrays as encoded bytes, and thumbnails.

Pillow and NumPy alone, so that the serving client runs without TensorFlow.
"""

import io
import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from mmret_tf.data.sources import InlineSource, Source, file_or_bytes

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image | Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


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
        channels = "RGBA" if picture.has_transparency_data else "RGB"
        picture = np.asarray(ImageOps.exif_transpose(picture).convert(channels))
    return InlineSource(encode_png(picture), "the image")


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
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"an image array must hold levels from 0 to 255; got {pixels.dtype}")
    low, high = np.min(pixels), np.max(pixels)
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise ValueError(f"an image array must hold levels from 0 to 255; got {low} to {high}")
    levels = np.rint(pixels).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def picture_thumbnail(contents: bytes, side: int) -> Image.Image:
    """A square RGB picture of encoded bytes; a grey one if they cannot be decoded."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        return ImageOps.fit(upright, (side, side))
    except OSError:
        grey = Image.new("RGB", (side, side), "lightgrey")
        ImageDraw.Draw(grey).text((8, side // 2), "not readable", fill="black")
        return grey

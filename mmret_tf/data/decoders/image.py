"""From encoded pictures to uint8 RGB tensors (图像预处理), in TensorFlow ops.

One definition serves `tf.data` in training, `encode` in Python, and the graph that is exported to
TF Serving.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from mmret_tf.data.decoders.image_headers import (
    integer,
    read_jpeg_header,
    read_webp_header,
    starts_with,
)
from mmret_tf.data.decoders.pictures import ImageSource, picture_source

# A picture of more pixels than this is refused before it is decoded (8192 x 8192: 192 MiB).
MAX_PIXELS = 2**26


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """Decode JPEG, PNG, GIF (first frame), BMP or still WebP bytes to RGB. Section 3.1(1).

    Transparent pictures are laid over white, and a JPEG is turned upright by its EXIF orientation.
    The size is read from the header and checked before the picture is decoded.

    Args:
        contents: Encoded bytes, a scalar string.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not a whole image in one of these formats, or
            the picture has more than `MAX_PIXELS` pixels.

    >>> png = tf.io.encode_png(tf.zeros((2, 3, 4), tf.uint8))  # transparent all over
    >>> decode_image(png).shape, decode_image(png)[0, 0].numpy().tolist()
    (TensorShape([2, 3, 3]), [255, 255, 255])
    """
    tf.debugging.Assert(tf.strings.length(contents) > 0, ["empty file"])
    # With zeros after the end, the header can be read without a bounds check at every byte.
    data = tf.pad(tf.io.decode_raw(contents, tf.uint8), [[0, 64]])
    is_jpeg = starts_with(data, 0, b"\xff\xd8\xff")
    is_png = starts_with(data, 0, b"\x89PNG\r\n\x1a\n")
    is_gif = starts_with(data, 0, b"GIF8")
    is_bmp = starts_with(data, 0, b"BM")
    is_webp = starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WEBP")
    tf.debugging.Assert(
        is_jpeg | is_png | is_gif | is_bmp | is_webp,
        ["not an image: expected JPEG, PNG, GIF, BMP or WebP"],
    )
    # TensorFlow 2.20 writes past its buffer when it decodes an animated WebP.
    is_animated = starts_with(data, 12, b"VP8X") & (data[20] // 2 % 2 == 1)
    tf.debugging.Assert(
        ~(is_webp & is_animated), ["an animated WebP: save its first frame as a picture"]
    )

    orientation = tf.constant(1)
    if is_jpeg:
        height, width, orientation = read_jpeg_header(data)
    elif is_png:
        height, width = integer(data, 20, 4), integer(data, 16, 4)
    elif is_gif:
        height, width = integer(data, 8, 2, "little"), integer(data, 6, 2, "little")
    elif is_bmp:  # the height is negative if the rows are stored from top to bottom
        height, width = tf.abs(integer(data, 22, 4, "little")), integer(data, 18, 4, "little")
    else:
        height, width = read_webp_header(data)
    has_size = tf.debugging.Assert(
        (height > 0) & (width > 0), ["not a whole image: it ends in its header"]
    )
    is_small = tf.debugging.Assert(
        tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= MAX_PIXELS,
        [tf.strings.format("too large: {} x {} pixels, at most 2**26 in all", (width, height))],
    )
    with tf.control_dependencies([has_size, is_small]):  # check before decoding
        contents = tf.identity(contents)

    if is_jpeg:
        image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    elif is_png:
        image = _over_white(tf.io.decode_png(contents, channels=4))
    elif is_webp:
        image = tf.io.decode_webp(contents)[0]  # four channels only if the file has alpha
        if tf.shape(image)[2] == 4:
            image = _over_white(image)
    elif is_gif:
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
    else:
        image = tf.io.decode_bmp(contents)  # the fourth channel of a BMP is unused, not alpha
        if tf.shape(image)[2] == 1:
            image = tf.image.grayscale_to_rgb(image)
        image = image[:, :, :3]
    return _upright(tf.ensure_shape(image, (None, None, 3)), orientation)


def crop_and_resize(
    image: tf.Tensor,
    size: int,
    seed: tf.Tensor | None = None,
    mirror: bool | tf.Tensor = False,
    min_crop: float = 0.8,
) -> tf.Tensor:
    """Crop a picture to a square and resize it; the aspect ratio is kept. Section 3.1(1).

    Args:
        image: uint8 `[height, width, 3]`.
        size: Side of the result, in pixels.
        seed: `[2]` integers for a random crop, as in training; `None` for the centre square.
        mirror: Whether to exchange left and right.
        min_crop: Smallest fraction of the shorter side that a random crop keeps, above 0, up to 1.

    Returns:
        uint8 `[size, size, 3]`.

    >>> crop_and_resize(tf.zeros((20, 30, 3), tf.uint8), 8).shape
    TensorShape([8, 8, 3])
    """
    shape = tf.shape(image)[:2]
    side = tf.reduce_min(shape)
    if seed is None:
        top_left = (shape - side) // 2
    else:
        scale, top, left = tf.unstack(tf.random.stateless_uniform([3], seed))
        scale = min_crop + (1 - min_crop) * scale
        side = tf.maximum(1, tf.cast(tf.round(tf.cast(side, tf.float32) * scale), tf.int32))
        room = tf.cast(shape - side + 1, tf.float32)
        top_left = tf.cast(tf.stack([top, left]) * room, tf.int32)
    image = image[top_left[0] : top_left[0] + side, top_left[1] : top_left[1] + side]
    image = tf.cond(
        side == size,  # already the right size, as drawn scenes may be
        lambda: image,
        lambda: _to_levels(tf.image.resize(image, (size, size), antialias=True)),
    )
    image = tf.cond(tf.cast(mirror, tf.bool), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.ensure_shape(image, (size, size, 3))


def _to_levels(image: tf.Tensor) -> tf.Tensor:
    """Round to uint8."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def load_image(source: ImageSource, image_size: int) -> np.ndarray:
    """Load any kind of picture as the square array that a tower takes. Section 3.1(1).

    A picture that is not square is cropped to its central square.

    Args:
        source: A path, encoded bytes, a PIL image, or an array `[height, width]`,
            `[height, width, 1]`, `[..., 3]` or `[..., 4]` of levels 0 to 255.
        image_size: Side of the result, in pixels.

    Returns:
        uint8 `[image_size, image_size, 3]`.

    Raises:
        ValueError: The file is missing or not a picture, or the array has another shape or levels
            outside 0 to 255.

    >>> grey = np.array([[0, 10, 20, 30], [0, 10, 20, 30]])  # 2 pixels high, 4 wide
    >>> load_image(grey, image_size=2)[:, :, 0].tolist()  # of [2, 2, 3], red
    [[10, 20], [10, 20]]
    """
    source = picture_source(source)
    try:
        return square_decoder(image_size)([source.read()])[0].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{source.name}: {decode_failure(error)}") from None


@functools.cache
def square_decoder(image_size: int) -> tf.types.experimental.PolymorphicFunction:
    """Encoded pictures `[n]` to uint8 `[n, image_size, image_size, 3]`: traced once a size."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def squares(contents):
        return tf.map_fn(
            lambda each: crop_and_resize(decode_image(each), image_size),
            contents,
            fn_output_signature=tf.TensorSpec((image_size, image_size, 3), tf.uint8),
        )

    return squares


def check_image(contents: bytes) -> None:
    """Refuse bytes that `decode_image` cannot decode; ValueError with the reason."""
    try:
        decode_image(contents)
    except tf.errors.OpError as error:
        raise ValueError(decode_failure(error)) from None


def decode_failure(error: tf.errors.OpError) -> str:
    """The reason why `decode_image` refused some bytes, without TensorFlow's stack trace."""
    said = re.search(r"assertion failed: \[(.*?)\]", error.message)
    return said[1] if said else "not a whole image: truncated or damaged"


def _over_white(rgba: tf.Tensor) -> tf.Tensor:
    """Lay a picture with alpha over white: uint8 `[height, width, 4]` -> `[height, width, 3]`."""
    levels = tf.cast(rgba, tf.float32)
    alpha = levels[:, :, 3:] / 255
    return tf.cast(tf.round(levels[:, :, :3] * alpha + 255 * (1 - alpha)), tf.uint8)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a picture upright by its EXIF orientation, 1 (upright) to 8."""
    if orientation >= 5:
        image = tf.transpose(image, (1, 0, 2))
    if tf.reduce_any(orientation == tf.constant([2, 3, 6, 7])):
        image = tf.reverse(image, [1])
    if tf.reduce_any(orientation == tf.constant([3, 4, 7, 8])):
        image = tf.reverse(image, [0])
    return tf.ensure_shape(image, (None, None, 3))

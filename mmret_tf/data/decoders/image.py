"""From encoded pictures to uint8 RGB tensors (图像预处理), in TensorFlow ops.

One definition serves `tf.data` in training, `encode` in Python, and the graph that is exported to
TF Serving.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from mmret_tf.data.decoders.formats import bmp, gif, jpeg, png, webp
from mmret_tf.data.decoders.formats.binary import (
    PADDING,
    exif_orientation,
    over_white,
    plain,
    required,
    starts_with,
)
from mmret_tf.data.decoders.pictures import ImageSource, picture_source


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """Decode JPEG, PNG, GIF (first frame), BMP or still WebP bytes to RGB. Section 3.1(1).

    Transparent pictures are laid over white, and pictures are turned upright by their EXIF
    orientation. The size is read from the header and checked before the picture is decoded.

    Args:
        contents: Encoded bytes, a scalar string.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not a whole image in one of these formats, or
            the picture has more than 2**26 pixels.

    >>> png_bytes = tf.io.encode_png(tf.zeros((2, 3, 4), tf.uint8))  # transparent all over
    >>> decode_image(png_bytes).shape, decode_image(png_bytes)[0, 0].numpy().tolist()
    (TensorShape([2, 3, 3]), [255, 255, 255])
    """
    contents = required(contents, tf.strings.length(contents) > 0, "empty file")
    # Joined as strings: bytes that were padded later would be kept beside the result.
    data = tf.io.decode_raw(tf.strings.join([contents, bytes(PADDING)]), tf.uint8)
    is_webp = starts_with(data, 0, webp.MAGIC) & starts_with(data, 8, b"WEBP")
    if starts_with(data, 0, jpeg.MAGIC):
        image, exif = jpeg.decode(contents, data)
    elif starts_with(data, 0, png.MAGIC):
        image, exif = png.decode(contents, data)
    elif starts_with(data, 0, gif.MAGIC):
        image, exif = gif.decode(contents, data)
    elif starts_with(data, 0, bmp.MAGIC):
        image, exif = bmp.decode(contents, data)
    else:
        reason = "not an image: expected JPEG, PNG, GIF, BMP or WebP"
        contents = required(contents, is_webp, reason)
        image, exif = webp.decode(contents, data)
    return _upright(over_white(image), exif_orientation(data, exif))


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
    if isinstance(mirror, tf.Tensor):  # with a constant condition, TensorFlow logs a warning
        image = tf.cond(tf.cast(mirror, tf.bool), lambda: tf.reverse(image, [1]), lambda: image)
    elif mirror:
        image = tf.reverse(image, [1])
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
        # TensorFlow takes bytes as they are through three copies, and an object through none.
        decode_image(tf.constant(np.array(contents, object)))
    except tf.errors.OpError as error:
        raise ValueError(decode_failure(error)) from None


def decode_failure(error: tf.errors.OpError) -> str:
    """The reason why `decode_image` refused some bytes, without TensorFlow's stack trace."""
    said = re.search(r"assertion failed: \[(.*?)\]", error.message)
    return said[1] if said else "not a whole image: truncated or damaged"


@plain
def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a picture upright by its EXIF orientation, 1 (upright) to 8."""
    image = tf.transpose(image, tf.where(orientation >= 5, (1, 0, 2), (0, 1, 2)))
    is_flipped = tf.reduce_any(orientation == [[3, 4, 7, 8], [2, 3, 6, 7]], axis=1)
    steps = tf.where(is_flipped, -1, 1)
    return tf.ensure_shape(image[:: steps[0], :: steps[1]], (None, None, 3))

"""WebP: TensorFlow's decoder knows it but for the EXIF orientation."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    ENDLESS,
    MOST_STEPS,
    PADDING,
    checked,
    exif_orientation,
    format_decoder,
    integer,
    over_white,
    required,
    starts_with,
)

MAGIC = b"RIFF"

ANIMATION, EXIF = 2, 8  # bits of the flags of an extended file


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture, uint8 `[height, width, 3]`, and its orientation."""
    orientation = tf.constant(1)
    if starts_with(data, 12, b"VP8X"):
        flags = tf.cast(data[20], tf.int32)
        # TensorFlow 2.20 writes past its buffer when it decodes an animated WebP.
        is_still = flags // ANIMATION % 2 == 0
        reason = "an animated WebP: save its first frame as a picture"
        contents = required(contents, is_still, reason)
        height, width = 1 + integer(data, 27, 3, "little"), 1 + integer(data, 24, 3, "little")
        if flags // EXIF % 2 == 1:
            orientation = _orientation(data)
    elif starts_with(data, 12, b"VP8L"):
        bits = integer(data, 21, 4, "little")  # 14 bits of width, then 14 bits of height
        height, width = 1 + tf.bitwise.right_shift(bits, 14) % 2**14, 1 + bits % 2**14
    else:
        # The decoder would take whatever follows an unknown chunk for a picture of its own size.
        is_known = starts_with(data, 12, b"VP8 ")
        contents = required(contents, is_known, "not a whole image: a WebP without a picture")
        # The upper two bits are a display scale.
        height, width = (
            integer(data, 28, 2, "little") % 2**14,
            integer(data, 26, 2, "little") % 2**14,
        )
    contents = checked(contents, height, width)
    return over_white(tf.io.decode_webp(contents)[0]), orientation


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation in the chunk EXIF; 1 if it has none."""
    end = tf.size(data) - PADDING
    at, orientation, steps = tf.constant(12), tf.constant(1), 0
    while at < end and steps < MOST_STEPS:
        length = integer(data, at + 4, 4, "little")
        if starts_with(data, at, b"EXIF"):
            orientation = exif_orientation(data, at + 8)
        # Chunks have an even number of bytes.
        is_whole = tf.logical_and(length >= 0, length < end - at)
        at = tf.where(is_whole, at + 8 + length + length % 2, end)
        steps += 1
    return required(orientation, at >= end, ENDLESS)

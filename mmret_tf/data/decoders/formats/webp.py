"""WebP: TensorFlow's decoder knows it but for the EXIF orientation."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    ENDLESS,
    MOST_STEPS,
    NO_EXIF,
    PADDING,
    checked,
    format_decoder,
    integer,
    required,
    starts_with,
)

MAGIC = b"RIFF"

ANIMATION, EXIF = 2, 8  # bits of the flags of an extended file


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture and the position of its EXIF block."""
    is_extended = starts_with(data, 12, b"VP8X")
    is_lossless = starts_with(data, 12, b"VP8L")
    # The decoder would take whatever follows an unknown chunk for a picture of its own size.
    is_known = is_extended | is_lossless | starts_with(data, 12, b"VP8 ")
    contents = required(contents, is_known, "not a whole image: a WebP without a picture")
    flags = tf.where(is_extended, tf.cast(data[20], tf.int32), 0)
    # TensorFlow 2.20 writes past its buffer when it decodes an animated WebP.
    is_still = flags // ANIMATION % 2 == 0
    reason = "an animated WebP: save its first frame as a picture"
    contents = required(contents, is_still, reason)
    sizes = tf.stack([_extended_size(data), _lossless_size(data), _lossy_size(data)])
    height, width = tf.unstack(sizes[tf.where(is_extended, 0, tf.where(is_lossless, 1, 2))])
    contents = checked(contents, height, width)
    return tf.io.decode_webp(contents)[0], _find_exif(data, flags // EXIF % 2 == 1)


def _extended_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return 1 + integer(data, 27, 3, "little"), 1 + integer(data, 24, 3, "little")


def _lossless_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    bits = integer(data, 21, 4, "little")  # 14 bits of width, then 14 bits of height
    return 1 + tf.bitwise.right_shift(bits, 14) % 2**14, 1 + bits % 2**14


def _lossy_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # The upper two bits are a display scale.
    return integer(data, 28, 2, "little") % 2**14, integer(data, 26, 2, "little") % 2**14


def _find_exif(data: tf.Tensor, is_announced: tf.Tensor) -> tf.Tensor:
    """The position of EXIF, where the header announces it."""
    end = tf.size(data) - PADDING
    at, exif, steps = tf.where(is_announced, 12, end), tf.constant(NO_EXIF), 0
    while (at < end) & (steps < MOST_STEPS):
        length = integer(data, at + 4, 4, "little")
        exif = tf.where(starts_with(data, at, b"EXIF"), at + 8, exif)
        # Chunks have an even number of bytes.
        is_whole = (length >= 0) & (length < end - at)
        at = tf.where(is_whole, at + 8 + length + length % 2, end)
        steps += 1
    return required(exif, at >= end, ENDLESS)

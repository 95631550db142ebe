"""JPEG: TensorFlow's decoder knows all of it but the EXIF orientation."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    PADDING,
    checked,
    exif_orientation,
    integer,
    starts_with,
)

MAGIC = b"\xff\xd8\xff"

# Markers without a length: stuffed zeros, TEM and restarts. After the last two, no header follows.
BARE, LAST = (0x00, 0x01, *range(0xD0, 0xD8)), (0xD9, 0xDA)
EXIF, ADOBE = 0xE1, 0xEE
ADOBE_SEGMENT = b"\xff\xee\0\x0eAdobe\0\x64" + bytes(5)
# The headers of a frame, of every process.
FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))


def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture, uint8 `[height, width, 3]`, and its orientation."""
    height, width, orientation, is_plain_cmyk = read_header(data)
    contents = checked(contents, height, width)
    if is_plain_cmyk:  # TensorFlow would invert it; Pillow takes every CMYK file for Adobe's
        contents = tf.strings.join([b"\xff\xd8", ADOBE_SEGMENT, tf.strings.substr(contents, 2, -1)])
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    return image, orientation


def read_header(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Height (0 without a frame), width, EXIF orientation, and whether it is CMYK without Adobe's
    marker.

    Markers are found as the decoder finds them, so that the frame that is read is the one that is
    decoded: what stands between two segments is skipped.
    """
    end = tf.size(data) - PADDING
    at, height, width, orientation = tf.constant(2), tf.constant(0), tf.constant(0), tf.constant(1)
    is_cmyk, is_adobe = tf.constant(False), tf.constant(False)
    while at < end:
        marker, length = tf.cast(data[at + 1], tf.int32), integer(data, at + 2, 2)
        if data[at] != 0xFF or marker == 0xFF:  # no marker, or a fill byte before one
            at += 1
        elif tf.reduce_any(marker == tf.constant(BARE)):
            at += 2
        elif tf.reduce_any(marker == tf.constant(LAST)):
            at = end
        else:
            if height == 0 and tf.reduce_any(marker == tf.constant(FRAMES)):
                height, width = integer(data, at + 5, 2), integer(data, at + 7, 2)
                is_cmyk = data[at + 9] == 4
            elif marker == EXIF and starts_with(data, at + 4, b"Exif\0\0"):
                orientation = exif_orientation(data, at + 4)
            elif marker == ADOBE and starts_with(data, at + 4, b"Adobe") and length >= 14:
                is_adobe = tf.constant(True)
            at += 2 + tf.maximum(length, 2)
    return height, width, orientation, is_cmyk & ~is_adobe

"""PNG: TensorFlow's decoder knows it but for a transparent colour and the EXIF orientation."""

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

MAGIC = b"\x89PNG\r\n\x1a\n"

NONE = -1  # no colour is transparent
CHUNK = 12  # bytes of a chunk besides its content: length, name and checksum


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture, uint8 `[height, width, 3]`, and its orientation."""
    is_first = starts_with(data, 12, b"IHDR")
    contents = required(contents, is_first, "not a whole image: its header does not come first")
    contents = checked(contents, integer(data, 20, 4), integer(data, 16, 4))
    # As it is stored: asked for four channels, the decoder gets alpha wrong below 8 bits.
    image, orientation = tf.io.decode_png(contents), tf.constant(1)
    # Most have neither chunk, nor their names by chance, and are not walked through.
    without = tf.strings.regex_replace(contents, "tRNS|eXIf", "")
    if tf.strings.length(without) < tf.strings.length(contents):
        transparent, orientation = _read_chunks(data)
        depth, channels = tf.cast(data[24], tf.int32), tf.shape(image)[2]
        # As Pillow has it: unscaled, except for black and white, and not at 16 bits.
        if transparent[0] != NONE and depth <= 8 and (channels == 1 or channels == 3):
            levels = transparent[:channels] * tf.where(depth == 1, 255, 1)
            is_clear = tf.reduce_all(image == tf.cast(levels, tf.uint8), axis=2, keepdims=True)
            image = tf.where(is_clear, tf.constant(255, tf.uint8), image)
    return over_white(image), orientation


def _read_chunks(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The transparent colour, int32 `[3]`, `NONE` without one; and the orientation."""
    end = tf.size(data) - PADDING
    at, is_before_pixels, steps = tf.constant(8), tf.constant(True), 0
    transparent, orientation = tf.fill([3], NONE), tf.constant(1)
    while at < end and steps < MOST_STEPS:
        length, content = integer(data, at, 4), at + 8
        if starts_with(data, at + 4, b"IDAT"):
            is_before_pixels = tf.constant(False)
        elif starts_with(data, at + 4, b"tRNS") and is_before_pixels:
            transparent = tf.stack([integer(data, content + 2 * each, 2) for each in range(3)])
        elif starts_with(data, at + 4, b"eXIf"):
            orientation = exif_orientation(data, content)
        # A negative length is one above 2**31: the file ends in this chunk.
        at = tf.where(tf.logical_and(length >= 0, length < end - at), at + CHUNK + length, end)
        steps += 1
    return transparent, required(orientation, at >= end, ENDLESS)

"""PNG: TensorFlow's decoder knows it but for a transparent colour and the EXIF orientation."""

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

MAGIC = b"\x89PNG\r\n\x1a\n"

NO_COLOUR = 0  # the position of a transparent colour in a file without it
CHUNK = 12  # bytes of a chunk besides its content: length, name and checksum


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture and the position of its EXIF block."""
    is_first = starts_with(data, 12, b"IHDR")
    contents = required(contents, is_first, "not a whole image: its header does not come first")
    contents = checked(contents, integer(data, 20, 4), integer(data, 16, 4))
    # As it is stored: asked for four channels, the decoder gets alpha wrong below 8 bits.
    image, exif = tf.io.decode_png(contents), tf.constant(NO_EXIF)
    # Most have neither chunk, nor their names by chance, and are not walked through.
    without = tf.strings.regex_replace(contents, "tRNS|eXIf", "")
    if tf.strings.length(without) < tf.strings.length(contents):
        colour, exif = _read_chunks(data)
        depth, channels = tf.cast(data[24], tf.int32), tf.shape(image)[2]
        # As Pillow has it: unscaled, except for black and white, and not at 16 bits.
        if (colour != NO_COLOUR) & (depth <= 8) & (channels % 2 == 1):
            levels = tf.stack([integer(data, colour + 2 * each, 2) for each in range(3)])
            levels = levels[:channels] * tf.where(depth == 1, 255, 1)
            is_clear = tf.reduce_all(image == tf.cast(levels, tf.uint8), axis=2, keepdims=True)
            image = tf.where(is_clear, tf.constant(255, tf.uint8), image)
    return image, exif


def _read_chunks(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The positions of the transparent colour and of EXIF."""
    end = tf.size(data) - PADDING
    at, is_before_pixels, steps = tf.constant(8), tf.constant(True), 0
    colour, exif = tf.constant(NO_COLOUR), tf.constant(NO_EXIF)
    while (at < end) & (steps < MOST_STEPS):
        length, content = integer(data, at, 4), at + 8
        is_before_pixels &= ~starts_with(data, at + 4, b"IDAT")
        is_colour = starts_with(data, at + 4, b"tRNS") & is_before_pixels
        colour = tf.where(is_colour, content, colour)
        exif = tf.where(starts_with(data, at + 4, b"eXIf"), content, exif)
        # A negative length is one above 2**31: the file ends in this chunk.
        at = tf.where((length >= 0) & (length < end - at), at + CHUNK + length, end)
        steps += 1
    return colour, required(exif, at >= end, ENDLESS)

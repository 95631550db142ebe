"""JPEG: TensorFlow's decoder knows all of it but the EXIF orientation."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    ENDLESS,
    MOST_STEPS,
    NO_EXIF,
    PADDING,
    checked,
    format_decoder,
    required,
    starts_with,
)

MAGIC = b"\xff\xd8\xff"

# What a reader does at each marker: it passes over a segment, or over a marker without a length,
# such as a stuffed zero or a restart; it ends; it reads a frame, EXIF, or Adobe's segment; it skips
# a byte that is no marker.
PASS, BARE, LAST, FRAME, EXIF, ADOBE, SKIP = range(7)
ACTIONS = [PASS] * 256
ACTIONS[0x00] = ACTIONS[0x01] = BARE
ACTIONS[0xD0:0xD8] = [BARE] * 8
ACTIONS[0xC0:0xD0] = [FRAME] * 16
ACTIONS[0xC4] = ACTIONS[0xC8] = ACTIONS[0xCC] = PASS  # tables and extensions
ACTIONS[0xD9] = ACTIONS[0xDA] = LAST  # the end, or the pixels
ACTIONS[0xE1], ACTIONS[0xEE] = EXIF, ADOBE

ADOBE_SEGMENT = b"\xff\xee\0\x0eAdobe\0\x64" + bytes(5)


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture and the position of its EXIF block."""
    height, width, exif, is_plain_cmyk = read_header(data)
    contents = checked(contents, height, width)
    if is_plain_cmyk:  # TensorFlow would invert it; Pillow takes every CMYK file for Adobe's
        contents = tf.strings.join([b"\xff\xd8", ADOBE_SEGMENT, tf.strings.substr(contents, 2, -1)])
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    return image, exif


def read_header(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Height (0 without a frame), width, position of EXIF, and whether it is CMYK without Adobe's
    marker.

    Markers are found as the decoder finds them, so that the frame that is read is the one that is
    decoded: what stands between two segments is skipped.
    """
    end = tf.size(data) - PADDING
    at, height, width, exif = tf.constant(2), tf.constant(0), tf.constant(0), tf.constant(NO_EXIF)
    is_cmyk, is_adobe, steps = tf.constant(False), tf.constant(False), 0
    while (at < end) & (steps < MOST_STEPS):
        # 0xFF, the marker, two bytes of length; a frame continues with depth, size and components.
        segment = tf.unstack(tf.cast(tf.slice(data, [at], [10]), tf.int32))
        is_marker = (segment[0] == 0xFF) & (segment[1] != 0xFF)  # a fill byte may stand before one
        action = tf.where(is_marker, tf.gather(ACTIONS, segment[1]), SKIP)
        length = 256 * segment[2] + segment[3]
        is_frame = (action == FRAME) & (height == 0)
        height = tf.where(is_frame, 256 * segment[5] + segment[6], height)
        width = tf.where(is_frame, 256 * segment[7] + segment[8], width)
        is_cmyk = tf.where(is_frame, segment[9] == 4, is_cmyk)
        is_exif = (action == EXIF) & starts_with(data, at + 4, b"Exif\0\0")
        exif = tf.where(is_exif, at + 4, exif)
        is_named = (action == ADOBE) & starts_with(data, at + 4, b"Adobe")
        is_adobe = tf.where(is_named, length >= 14, is_adobe)
        whole = tf.maximum(2 + length, 4)
        # In the order of the actions.
        at += tf.gather(tf.stack([whole, 2, end - at, whole, whole, whole, 1]), action)
        steps += 1
    height = required(height, at >= end, ENDLESS)
    return height, width, exif, is_cmyk & ~is_adobe

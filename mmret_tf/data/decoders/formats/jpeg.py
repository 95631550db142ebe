"""JPEG: TensorFlow's decoder knows all of it but the EXIF orientation."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    ENDLESS,
    MOST_STEPS,
    PADDING,
    checked,
    exif_orientation,
    format_decoder,
    required,
    starts_with,
)

MAGIC = b"\xff\xd8\xff"

# What a reader does at each marker: it passes over a segment, or over a marker without a length,
# such as a stuffed zero or a restart; it ends; it reads a frame, EXIF, or Adobe's segment.
PASS, BARE, LAST, FRAME, EXIF, ADOBE = range(6)
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
    is_cmyk, is_adobe, steps = tf.constant(False), tf.constant(False), 0
    while at < end and steps < MOST_STEPS:
        # 0xFF, the marker, two bytes of length; a frame continues with depth, size and components.
        segment = tf.unstack(tf.cast(tf.slice(data, [at], [10]), tf.int32))
        action = tf.gather(ACTIONS, segment[1])
        length = 256 * segment[2] + segment[3]
        step = tf.where(action == BARE, 2, tf.maximum(2 + length, 4))
        if segment[0] != 0xFF or segment[1] == 0xFF:  # no marker, or a fill byte before one
            step = tf.constant(1)
        elif action >= LAST:
            if action == LAST:
                step = end - at
            elif action == FRAME and height == 0:
                height, width = 256 * segment[5] + segment[6], 256 * segment[7] + segment[8]
                is_cmyk = segment[9] == 4
            elif action == EXIF and starts_with(data, at + 4, b"Exif\0\0"):
                orientation = exif_orientation(data, at + 4)
            elif action == ADOBE and starts_with(data, at + 4, b"Adobe"):
                is_adobe = length >= 14
        at += step
        steps += 1
    height = required(height, at >= end, ENDLESS)
    return height, width, orientation, is_cmyk & ~is_adobe

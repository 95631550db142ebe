"""GIF: the first frame on its screen, or all frames of an animation.

TensorFlow's decoder paints black what is transparent in the first frame, and never clears a frame.
"""

import numpy as np
import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    ENDLESS,
    MOST_STEPS,
    NO_EXIF,
    PADDING,
    checked,
    format_decoder,
    integer,
    plain,
    required,
)
from mmret_tf.data.decoders.pictures import MAX_PIXELS

MAGIC = b"GIF8"

EXTENSION, CONTROL, FRAME, TRAILER = 0x21, 0xF9, 0x2C, 0x3B
NOT_SIMPLE = "an animation with a transparent first frame or cleared frames: save it without"
NONE = -1  # no colour is transparent
HAS_PALETTE, INTERLACED = 128, 64  # flags; the lowest three bits are the size of the palette

# Blocks of up to 255 bytes, of some 7 microseconds each.
MOST_BLOCKS = 2**18

# Every byte as a string: pieces of a file are joined as strings.
BYTES = [bytes([value]) for value in range(256)]

BLACK, WHITE = np.uint8([0, 0, 0]), np.uint8([255, 255, 255])

# The palette of a file without one.
GREYS = bytes(value // 3 for value in range(768))


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture and the position of its EXIF block.

    The first frame is decoded as a file of its own, whose palette has white for the transparent
    colour. So the other frames take no memory, whatever their sizes. The screen around a frame has
    the first colour of the palette, or is transparent.
    """
    width, height = integer(data, 6, 2, "little"), integer(data, 8, 2, "little")
    contents = checked(contents, height, width)
    flags, palette = tf.cast(data[10], tf.int32), tf.constant(13)
    at, transparent = _find_frame(data, palette + _palette_size(flags))
    at = required(at, data[at] == FRAME, "not a whole image: it has no frame")
    left, top = integer(data, at + 1, 2, "little"), integer(data, at + 3, 2, "little")
    columns, rows = integer(data, at + 5, 2, "little"), integer(data, at + 7, 2, "little")
    is_inside = (left + columns <= width) & (top + rows <= height)
    at = required(at, is_inside, "a GIF whose frame exceeds its screen: save it again")
    frame_flags = tf.cast(data[at + 9], tf.int32)
    pixels = at + 10 + _palette_size(frame_flags)
    is_local = frame_flags >= HAS_PALETTE
    flags, palette = tf.where(is_local, frame_flags, flags), tf.where(is_local, at + 10, palette)
    has_palette = flags >= HAS_PALETTE
    flags = tf.where(has_palette, flags, HAS_PALETTE + 7)  # greys are 256
    size = _palette_size(flags)
    colours = tf.where(has_palette, tf.strings.substr(contents, palette, size), GREYS)
    fill = tf.where(has_palette, data[palette : palette + 3], BLACK)
    before = tf.strings.substr(colours, 0, tf.minimum(3 * transparent, size))
    after = tf.strings.substr(colours, tf.minimum(3 * transparent + 3, size), size)
    cleared = tf.strings.substr(tf.strings.join([before, WHITE.tobytes(), after]), 0, size)
    is_clear = transparent != NONE
    colours, fill = tf.where(is_clear, cleared, colours), tf.where(is_clear, WHITE, fill)
    extent = tf.strings.substr(contents, at + 5, 4)
    end = _skip_blocks(data, pixels + 1)
    file = [
        b"GIF89a",
        extent,
        tf.gather(BYTES, HAS_PALETTE + flags % 8),
        b"\0\0",
        colours,
        b"\x2c\0\0\0\0",
        extent,
        tf.gather(BYTES, frame_flags // INTERLACED % 2 * INTERLACED),
        tf.strings.substr(contents, pixels, end - pixels),
        b";",
    ]
    frame = tf.io.decode_gif(tf.strings.join(file))[0]
    around = [[top, height - top - rows], [left, width - left - columns]]
    is_frame = tf.pad(tf.ones_like(frame[:, :, :1]), [*around, [0, 0]]) == 1
    image = tf.where(is_frame, tf.pad(frame, [*around, [0, 0]]), fill)
    return image, tf.constant(NO_EXIF)


@format_decoder
def decode_frames(contents: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """All frames of an animation: uint8 `[n, height, width, 3]`.

    Of animations with a transparent first frame, and of those that clear a frame before the next,
    TensorFlow would show something else: they are refused. Pillow decodes them, see `as_frames`.
    """
    width, height = integer(data, 6, 2, "little"), integer(data, 8, 2, "little")
    contents = checked(contents, height, width)
    frames, is_simple = _survey(data, width, height)
    contents = required(contents, frames > 0, "not a whole image: it has no frame")
    contents = required(contents, is_simple, NOT_SIMPLE)
    pixels = tf.cast(frames, tf.int64) * tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    said = "too large: {} frames of {} x {} pixels, at most 2**26 in all"
    said = tf.strings.format(said, (frames, width, height))
    return tf.io.decode_gif(required(contents, pixels <= MAX_PIXELS, said))


@format_decoder
def is_simple(contents: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Whether `decode_frames` takes an animation, a boolean scalar."""
    width, height = integer(data, 6, 2, "little"), integer(data, 8, 2, "little")
    frames, is_simple = _survey(data, width, height)
    return is_simple & (frames > 0)


def _survey(data: tf.Tensor, width: tf.Tensor, height: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The number of frames, and whether TensorFlow decodes them right."""
    end, frames, steps = tf.size(data) - PADDING, tf.constant(0), 0
    at = 13 + _palette_size(tf.cast(data[10], tf.int32))
    is_simple, control, last_control = tf.constant(True), tf.constant(0), tf.constant(0)
    while (at < end) & (data[at] != TRAILER) & (steps < MOST_STEPS):
        is_frame = data[at] == FRAME
        is_extension = data[at] == EXTENSION
        is_control = is_extension & (data[at + 1] == CONTROL)
        control = tf.where(is_control, tf.cast(data[at + 3], tf.int32), control)
        is_whole = (integer(data, at + 1, 4, "little") == 0) & (control % 2 == 0)
        is_whole &= integer(data, at + 5, 2, "little") == width
        is_whole &= integer(data, at + 7, 2, "little") == height
        stays = tf.where(frames > 0, last_control // 4 % 8 <= 1, is_whole)
        is_simple &= ~is_frame | stays
        frames += tf.cast(is_frame, tf.int32)
        last_control = tf.where(is_frame, control, last_control)
        control = tf.where(is_frame, 0, control)
        pixels = at + 10 + _palette_size(tf.cast(data[at + 9], tf.int32))
        blocks = tf.where(is_frame, pixels + 1, at + 2)
        behind = _skip_blocks(data, tf.where(is_frame | is_extension, blocks, end))
        at = tf.where(is_frame | is_extension, behind, at + 1)  # as in `_find_frame`
        steps += 1
    is_whole = (at < end) & (data[tf.minimum(at, end)] == TRAILER)
    return required(frames, is_whole, "not a whole image: frames are missing"), is_simple


@plain
def _palette_size(flags: tf.Tensor) -> tf.Tensor:
    """Bytes of the palette that some flags announce, 0 if they announce none."""
    return tf.where(flags >= HAS_PALETTE, 3 * tf.bitwise.left_shift(2, flags % 8), 0)


def _find_frame(data: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The position of the first frame, and its transparent colour or `NONE`."""
    end, transparent, steps = tf.size(data) - PADDING, tf.constant(NONE), 0
    kind = data[at]
    while (at < end) & (kind != FRAME) & (kind != TRAILER) & (steps < MOST_STEPS):
        is_extension = kind == EXTENSION
        colour = tf.where(data[at + 3] % 2 == 1, tf.cast(data[at + 6], tf.int32), NONE)
        transparent = tf.where(is_extension & (data[at + 1] == CONTROL), colour, transparent)
        behind = _skip_blocks(data, tf.where(is_extension, at + 2, end))
        at = tf.where(is_extension, behind, at + 1)  # other bytes are skipped, as by Pillow
        kind = data[tf.minimum(at, end)]
        steps += 1
    return at, transparent


def _skip_blocks(data: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """The position behind some blocks, each of which starts with its length; the last is empty."""
    blocks = 0
    while (data[at] > 0) & (blocks < MOST_BLOCKS):
        at = tf.minimum(at + 1 + tf.cast(data[at], tf.int32), tf.size(data) - 1)
        blocks += 1
    return required(at + 1, data[at] == 0, ENDLESS)

"""BMP of every depth, decoded here: TensorFlow knows neither its palettes nor its masks."""

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    NO_EXIF,
    PADDING,
    checked,
    format_decoder,
    in_blocks,
    integer,
    laid_over_white,
    plain,
    required,
)

MAGIC = b"BM"

CORE_HEADER = 12  # bytes of the oldest header; the others have 40 or more
RAW, MASKS = 0, 3  # kinds of compression

# Masks of red, green and blue in 16 and in 32 bits, and of alpha.
MASKS_555, MASKS_565 = (0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F)
MASKS_888, ALPHA = (0xFF0000, 0xFF00, 0xFF), -0x1000000


@format_decoder
def decode(contents: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The picture and the position of its EXIF block."""
    header = integer(data, 14, 4, "little")
    is_core = header == CORE_HEADER
    width = tf.where(is_core, integer(data, 18, 2, "little"), integer(data, 18, 4, "little"))
    height = tf.where(is_core, integer(data, 20, 2, "little"), integer(data, 22, 4, "little"))
    bits = tf.where(is_core, integer(data, 24, 2, "little"), integer(data, 28, 2, "little"))
    kind = tf.where(is_core, RAW, integer(data, 30, 4, "little"))
    is_bottom_up = height > 0
    row_step, height = tf.where(is_bottom_up, -1, 1), tf.abs(height)
    is_masked = kind == MASKS
    is_known = (kind == RAW) | (is_masked & (bits % 16 == 0))
    with tf.control_dependencies([checked(contents, height, width)]):
        data = required(data, is_known, "a compressed BMP: save it without compression")
    start, stride = _find_rows(data, height, width, header, bits)

    def colours(first, behind):
        if is_bottom_up:
            first, behind = height - behind, height - first
        first, behind = tf.cast(first, tf.int64), tf.cast(behind, tf.int64)
        rows = data[start + first * stride : start + behind * stride]
        rows = tf.reshape(rows, (behind - first, stride))
        if bits <= 8:
            image = _by_palette(data, _indices(rows, width, bits), header, bits)
        elif bits == 16:
            image = _from_16_bits(data, rows, width, is_masked)
        else:
            image = _from_bytes(data, rows, width, header, bits, is_masked)
            if tf.shape(image)[2] == 4:
                image = laid_over_white(image)
        return image[::row_step]

    return in_blocks(colours, height, width), tf.constant(NO_EXIF)


@plain
def _find_rows(
    data: tf.Tensor, height: tf.Tensor, width: tf.Tensor, header: tf.Tensor, bits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The position of the pixels, and the bytes of a row, which fill whole groups of four."""
    is_known = tf.reduce_any(bits == tf.constant([1, 4, 8, 16, 24, 32]))
    bits = required(bits, is_known, "a BMP with an unknown number of bits a pixel")
    stride = (tf.cast(width, tf.int64) * tf.cast(bits, tf.int64) + 31) // 32 * 4
    start = tf.cast(integer(data, 10, 4, "little"), tf.int64)
    is_on_palette = (bits <= 8) & (start == tf.cast(14 + header, tf.int64))  # it was forgotten
    start += tf.where(is_on_palette, 4 * tf.cast(_count_colours(data, header, bits), tf.int64), 0)
    end = start + stride * tf.cast(height, tf.int64)
    # The last row may lack the bytes that fill its group.
    needed = end - stride + (tf.cast(width, tf.int64) * tf.cast(bits, tf.int64) + 7) // 8
    is_whole = (start > 0) & (needed <= tf.size(data, tf.int64) - PADDING)
    return required(start, is_whole, "not a whole image: truncated or damaged"), stride


@plain
def _indices(rows: tf.Tensor, width: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Numbers of 1, 4 or 8 bits, highest bits first: uint8 `[height, width]`."""
    shifts = tf.cast(tf.range(8 - bits, -1, -bits), tf.uint8)
    highest = tf.cast(tf.bitwise.left_shift(1, bits) - 1, tf.uint8)
    parts = tf.bitwise.bitwise_and(tf.bitwise.right_shift(rows[:, :, None], shifts), highest)
    return tf.reshape(parts, (tf.shape(rows)[0], -1))[:, :width]


@plain
def _count_colours(data: tf.Tensor, header: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """The number of colours in the palette."""
    count = tf.where(header == CORE_HEADER, 0, integer(data, 46, 4, "little"))
    return tf.where(count == 0, tf.bitwise.left_shift(1, bits), count)


@plain
def _by_palette(
    data: tf.Tensor, indices: tf.Tensor, header: tf.Tensor, bits: tf.Tensor
) -> tf.Tensor:
    """Colours of the palette behind the header, uint8 `[height, width, 3]`."""
    count, entry = _count_colours(data, header, bits), tf.where(header == CORE_HEADER, 3, 4)
    is_enough = tf.cast(tf.reduce_max(indices), tf.int32) < count
    indices = required(indices, is_enough, "a BMP with colours outside of its palette")
    start = 14 + header
    # At most 256 can be named, whatever the header says.
    palette = data[start : start + entry * tf.minimum(count, 256)]
    palette = tf.reshape(palette, (-1, entry))[:, 2::-1]
    return tf.gather(palette, tf.cast(indices, tf.int32))


@plain
def _from_16_bits(
    data: tf.Tensor, rows: tf.Tensor, width: tf.Tensor, is_masked: tf.Tensor
) -> tf.Tensor:
    """Colours of 5 or 6 bits, scaled to 8: uint8 `[height, width, 3]`."""
    masks = tf.where(is_masked, _masks(data)[:3], MASKS_555)
    is_known = tf.reduce_all(masks == MASKS_555) | tf.reduce_all(masks == MASKS_565)
    rows = required(rows, is_known, "a BMP with unusual colour masks")
    pixels = tf.cast(rows[:, : 2 * width], tf.int32)
    pixels = pixels[:, 0::2, None] + 256 * pixels[:, 1::2, None]
    lowest = tf.bitwise.bitwise_and(masks, -masks)
    levels = tf.bitwise.bitwise_and(pixels, masks) // lowest * 255 // (masks // lowest)
    return tf.cast(levels, tf.uint8)


@plain
def _from_bytes(
    data: tf.Tensor,
    rows: tf.Tensor,
    width: tf.Tensor,
    header: tf.Tensor,
    bits: tf.Tensor,
    is_masked: tf.Tensor,
) -> tf.Tensor:
    """Three or four bytes a pixel, blue, green, red and unused, or as the masks say: uint8
    `[height, width, 3]`, or 4 with alpha."""
    masks = tf.where(header < 56, _masks(data) * [1, 1, 1, 0], _masks(data))  # 56: knows alpha
    masks = tf.where(tf.reduce_all(masks == 0), [*MASKS_888, ALPHA], masks)
    masks = tf.where(is_masked, masks, [*MASKS_888, 0])
    is_byte = masks[:, None] == [*MASKS_888[::-1], ALPHA]
    is_known = tf.reduce_all(tf.reduce_any(is_byte, axis=1) | [False, False, False, masks[3] == 0])
    rows = required(rows, is_known, "a BMP with unusual colour masks")
    pixels = tf.reshape(rows[:, : width * bits // 8], (-1, width, bits // 8))
    places = tf.argmax(tf.cast(is_byte, tf.int32), axis=1)
    return tf.gather(pixels, places[: tf.where(masks[3] == 0, 3, 4)], axis=2)


@plain
def _masks(data: tf.Tensor) -> tf.Tensor:
    """The bits of red, green, blue and alpha, int32 `[4]`."""
    return tf.stack([integer(data, 54 + 4 * each, 4, "little") for each in range(4)])

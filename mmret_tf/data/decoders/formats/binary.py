"""What all formats share: integers in bytes, limits, EXIF, and transparency over white.

`data` is uint8 `[n]` in all functions: the bytes of the file and `PADDING` zeros. Because of the
zeros, a truncated header can be read without a bounds check at every byte.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from mmret_tf.data.decoders.pictures import MAX_PIXELS

PADDING = 64

# Steps through a header, of some 30 microseconds each; a file that needs more is refused.
MOST_STEPS = 2**14
ENDLESS = "not a whole image: its header does not end"

# The position of EXIF in a file without it.
NO_EXIF = 0

# An entry of EXIF starts with its tag, its type and its count: the orientation is 0x0112, and one
# number of two bytes.
ENTRY = 12
ORIENTATION_LITTLE = (0x12, 0x01, 3, 0, 1, 0, 0, 0)
ORIENTATION_BIG = (0x01, 0x12, 0, 3, 0, 0, 0, 1)

# Pixels that are computed at once, in wider numbers than bytes.
BLOCK_PIXELS = 2**19


# A format's decoder is a function of its own, called and not copied into its caller: a graph passes
# through every operation of the branches that it does not take.
format_decoder = functools.partial(
    tf.function,
    input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec([None], tf.uint8)],
    experimental_attributes={"_noinline": True},
)


# For functions without tests of tensors: AutoGraph would take up to half a second for each.
plain = tf.autograph.experimental.do_not_convert


@plain
def starts_with(data: tf.Tensor, start: int | tf.Tensor, magic: bytes) -> tf.Tensor:
    """Whether `magic` is at position `start`, a boolean scalar.

    >>> bool(starts_with(tf.constant([66, 77, 0], tf.uint8), 0, b"BM"))
    True
    """
    return tf.reduce_all(data[start : start + len(magic)] == tf.constant(list(magic), tf.uint8))


@plain
def integer(
    data: tf.Tensor, start: int | tf.Tensor, length: int, order: str | tf.Tensor = "big"
) -> tf.Tensor:
    """The integer in `length` bytes, int32. `order` may be a boolean: True means "little".

    >>> int(integer(tf.constant([1, 2], tf.uint8), 0, 2))
    258
    """
    places = [256**power for power in range(length)]
    if isinstance(order, str):
        places = tf.constant(places if order == "little" else places[::-1], tf.int64)
    else:
        places = tf.where(order, tf.constant(places, tf.int64), tf.constant(places[::-1], tf.int64))
    value = tf.reduce_sum(tf.cast(data[start : start + length], tf.int64) * places)
    return tf.bitcast(tf.cast(value, tf.uint32), tf.int32)


@plain
def required(value: tf.Tensor, is_right: tf.Tensor, reason: str | tf.Tensor) -> tf.Tensor:
    """The value, or an error with the reason. What needs the value is not computed before."""
    with tf.control_dependencies([tf.debugging.Assert(is_right, [reason])]):
        return tf.identity(value)


@plain
def checked(contents: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The contents, once the size is known to be neither empty nor above `MAX_PIXELS`."""
    contents = required(
        contents, (height > 0) & (width > 0), "not a whole image: it ends in its header"
    )
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    reason = tf.strings.format("too large: {} x {} pixels, at most 2**26 in all", (width, height))
    return required(contents, pixels <= MAX_PIXELS, reason)


def in_blocks(colours: Callable, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Compute the rows of a picture some at a time, to keep the numbers in between few.

    Args:
        colours: Function of the first row and of the one behind the last: uint8
            `[rows, width, channels]`.
        height, width: Size of the picture.

    Returns:
        uint8 `[height, width, channels]`.
    """
    step = tf.maximum(BLOCK_PIXELS // tf.maximum(width, 1), 1)
    blocks = tf.TensorArray(tf.uint8, 0, dynamic_size=True, infer_shape=False)
    for first in tf.range(0, height, step):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # or memory is for ten
        blocks = blocks.write(blocks.size(), colours(first, tf.minimum(first + step, height)))
    return blocks.concat()


def over_white(image: tf.Tensor) -> tf.Tensor:
    """Colours of a picture with transparency over white.

    Args:
        image: uint8 `[height, width, channels]`: grey, grey and alpha, RGB, or RGB and alpha.

    Returns:
        uint8 `[height, width, 3]`.

    >>> over_white(tf.constant([[[10, 20, 30, 0], [10, 20, 30, 255]]], tf.uint8)).numpy().tolist()
    [[[255, 255, 255], [10, 20, 30]]]
    """
    shape = tf.shape(image)
    if shape[2] % 2 == 0:
        image = in_blocks(
            lambda first, behind: laid_over_white(image[first:behind]), shape[0], shape[1]
        )
    image = tf.broadcast_to(image, (shape[0], shape[1], 3))
    return tf.ensure_shape(image, (None, None, 3))


@plain
def laid_over_white(image: tf.Tensor) -> tf.Tensor:
    """The colours, uint8, of a picture whose last channel is alpha."""
    levels = tf.cast(image, tf.float32)
    alpha = levels[:, :, -1:] / 255
    laid = levels[:, :, :-1] * alpha + 255 * (1 - alpha)
    return tf.cast(tf.round(laid), tf.uint8)


@plain
def exif_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation, 1 (upright) to 8, in the EXIF block at a position; 1 if it has none."""
    start += 6 * tf.cast(starts_with(data, start, b"Exif\0\0"), tf.int32)
    is_little = starts_with(data, start, b"II*\0")
    is_known = is_little | starts_with(data, start, b"MM\0*")
    end = tf.size(data) - PADDING
    directory = start + integer(data, start + 4, 4, is_little)
    is_inside = is_known & (directory > start) & (directory < end)
    directory = tf.where(is_inside, directory, 0)
    count = tf.minimum(integer(data, directory, 2, is_little), (end - directory) // ENTRY)
    entries = data[directory + 2 : directory + 2 + ENTRY * tf.where(is_inside, count, 0)]
    entries = tf.cast(tf.reshape(entries, (-1, ENTRY)), tf.int32)
    expected = tf.where(is_little, ORIENTATION_LITTLE, ORIENTATION_BIG)
    values = tf.reduce_sum(entries[:, 8:10] * tf.where(is_little, [1, 256], [256, 1]), axis=1)
    found = values[tf.reduce_all(entries[:, :8] == expected, axis=1)]
    orientation = tf.concat([[1], found], axis=0)[-1]
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)

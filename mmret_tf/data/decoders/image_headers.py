"""Size and orientation of a picture from its header, in TensorFlow ops, before it is decoded.

`data` is uint8 `[n]` in all functions: the bytes of the file and 64 zeros. Because of the zeros, a
truncated header can be read without a bounds check at every byte.
"""

import tensorflow as tf


def starts_with(data: tf.Tensor, start: int | tf.Tensor, magic: bytes) -> tf.Tensor:
    """Whether `magic` is at position `start`, a boolean scalar.

    >>> bool(starts_with(tf.constant([66, 77, 0], tf.uint8), 0, b"BM"))
    True
    """
    return tf.reduce_all(data[start : start + len(magic)] == tf.constant(list(magic), tf.uint8))


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


def read_jpeg_header(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Height, width and EXIF orientation of a JPEG file; height 0 without a frame header."""
    end = tf.size(data) - 64
    at, height, width, orientation = tf.constant(2), tf.constant(0), tf.constant(0), tf.constant(1)
    while at < end and height == 0:
        # 0xFF, the marker, two bytes of length; a frame header continues with depth and size.
        segment = tf.unstack(tf.cast(tf.slice(data, [at], [9]), tf.int32))
        marker = segment[1]
        if marker == 0xFF:  # a fill byte
            at += 1
        else:
            is_frame = (marker >= 0xC0) & (marker <= 0xCF)
            is_frame &= (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
            if is_frame:
                height, width = 256 * segment[5] + segment[6], 256 * segment[7] + segment[8]
                at = end
            elif marker == 0xE1 and starts_with(data, at + 4, b"Exif\0\0"):
                orientation = _read_orientation(data, at + 10)
            at += 2 + tf.maximum(256 * segment[2] + segment[3], 2)
    return height, width, orientation


def _read_orientation(data: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """The orientation in the EXIF block at position `tiff`, or 1."""
    is_little = starts_with(data, tiff, b"II")
    end = tf.size(data) - 64
    directory = tiff + integer(data, tiff + 4, 4, is_little)
    orientation = tf.constant(1)
    if directory > tiff and directory < end:
        count = tf.minimum(integer(data, directory, 2, is_little), (end - directory) // 12)
        for entry in tf.range(count):
            at = directory + 2 + 12 * entry
            if integer(data, at, 2, is_little) == 0x0112:
                orientation = integer(data, at + 8, 2, is_little)
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def read_webp_header(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width of a lossy, lossless or extended WebP file."""
    if starts_with(data, 12, b"VP8X"):
        return 1 + integer(data, 27, 3, "little"), 1 + integer(data, 24, 3, "little")
    elif starts_with(data, 12, b"VP8L"):
        bits = integer(data, 21, 4, "little")  # 14 bits of width, then 14 bits of height
        return 1 + bits // 2**14 % 2**14, 1 + bits % 2**14
    else:
        height, width = integer(data, 28, 2, "little"), integer(data, 26, 2, "little")
        return height % 2**14, width % 2**14  # the upper two bits are a display scale

"""Sizes and orientations read from headers alone, compared with what Pillow wrote."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmret_tf.data.decoders.image_headers import (
    integer,
    read_jpeg_header,
    read_webp_header,
    starts_with,
)


def padded(contents):
    """A file as the functions take it: its bytes, and 64 zeros."""
    return tf.constant(np.frombuffer(contents + bytes(64), np.uint8))


def numbers(tensors):
    return [int(each) for each in tensors]


def test_magic_bytes():
    data = padded(b"..RIFF")
    assert starts_with(data, 2, b"RIFF") and not starts_with(data, 1, b"RIFF")


def test_integers_of_either_order():
    data = padded(bytes([1, 2, 3, 4, 255, 255, 255, 255]))
    assert int(integer(data, 0, 2)) == 0x0102
    assert int(integer(data, 1, 3, "little")) == 0x040302
    assert int(integer(data, 0, 4, tf.constant(True))) == 0x04030201
    assert int(integer(data, 0, 4, tf.constant(False))) == 0x01020304
    assert int(integer(data, 4, 4)) == -1  # as the negative height of a BMP


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 300}])
def test_jpeg_size(options, picture, encoded):
    contents = encoded(picture(30, 50), "JPEG", **options)
    assert numbers(read_jpeg_header(padded(contents))) == [30, 50, 1]
    filled = contents[:2] + b"\xff\xff" + contents[2:]  # fill bytes before a marker
    assert numbers(read_jpeg_header(padded(filled))) == [30, 50, 1]


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, 1), (6, 6), (8, 8), (9, 1), (0, 1)])
def test_jpeg_orientation(endian, orientation, expected, picture, encoded):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0112] = "camera", orientation
    contents = encoded(picture(30, 50), "JPEG", exif=exif.tobytes())
    assert numbers(read_jpeg_header(padded(contents))) == [30, 50, expected]


def test_a_jpeg_that_ends_before_its_frame_has_no_size(picture, encoded):
    contents = encoded(picture(), "JPEG")
    for length in (0, 3, 20, 100):
        assert numbers(read_jpeg_header(padded(contents[:length])))[:2] == [0, 0]


def test_webp_sizes_of_the_three_kinds(picture, encoded):
    image = picture(30, 50)
    clear = image.copy()
    clear.putalpha(Image.new("L", image.size, 9))
    for contents, kind in (
        (encoded(image, "WEBP"), b"VP8 "),
        (encoded(image, "WEBP", lossless=True), b"VP8L"),
        (encoded(clear, "WEBP"), b"VP8X"),
    ):
        assert contents[12:16] == kind
        assert numbers(read_webp_header(padded(contents))) == [30, 50]

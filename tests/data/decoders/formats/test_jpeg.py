"""JPEG headers, with markers and bytes that other readers stumble over."""

import numpy as np
import pytest
import tensorflow as tf
from data.decoders.picture_files import by_pillow, exif_block

from mmret_tf.data.decoders.formats.binary import PADDING, exif_orientation
from mmret_tf.data.decoders.formats.jpeg import read_header
from mmret_tf.data.decoders.image import check_image, decode_image

READ = tf.function(read_header, input_signature=[tf.TensorSpec([None], tf.uint8)])


def header(contents):
    """Height, width, orientation, and whether it is CMYK without Adobe's marker."""
    data = tf.constant(np.frombuffer(contents + bytes(PADDING), np.uint8))
    height, width, exif, is_plain_cmyk = READ(data)
    found = height, width, exif_orientation(data, exif), is_plain_cmyk
    return [int(each) for each in found]


def frame(height, width):
    """A frame header of these sizes, and of one component."""
    sizes = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return b"\xff\xc0\0\x0b\x08" + sizes + b"\1\1\x11\0"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 300}])
def test_sizes(options, picture, encoded):
    assert header(encoded(picture(30, 50), "JPEG", **options)) == [30, 50, 1, 0]


@pytest.mark.parametrize(
    "between",
    [b"\xff\xff", b"\xff\x01", b"\xff\xd3", b"\xff\x00", b"garbage"],
    ids=["fill", "TEM", "restart", "zero", "garbage"],
)
def test_what_stands_between_segments_is_skipped(between, picture, encoded):
    contents = encoded(picture(30, 50), "JPEG")
    start, rest = contents[:20], contents[20:]  # behind the first segment
    changed = start + between + rest
    # A forged frame that a reader finds if it takes the marker for one with a length.
    forged = start + between + b"\xff\xe0\0\x10" + frame(1, 1) + b"\0" + rest
    for each in (changed, forged):
        assert header(each) == [30, 50, 1, 0]
        assert np.array_equal(decode_image(each), decode_image(contents))


def test_a_file_that_ends_before_its_frame_has_no_size(picture, encoded):
    contents = encoded(picture(), "JPEG")
    for length in (3, 20, 100):
        assert header(contents[:length])[:2] == [0, 0]
    bomb = contents[:2] + b"\xff\x01" + frame(8200, 8200) + contents[2:]
    with pytest.raises(ValueError, match="too large: 8200 x 8200 pixels"):
        check_image(bomb)


def test_orientation_and_adobe_marker(picture, encoded):
    contents = encoded(picture(30, 50), "JPEG", exif=b"Exif\0\0" + exif_block(6))
    assert header(contents) == [30, 50, 6, 0] and decode_image(contents).shape == (50, 30, 3)
    inks = encoded(picture(30, 50).convert("CMYK"), "JPEG")
    plain = inks.replace(b"Adobe", b"Other")
    assert header(inks)[3] == 0 and header(plain)[3] == 1
    for each in (inks, plain):
        assert np.abs(decode_image(each).numpy() - by_pillow(each)).max() <= 1

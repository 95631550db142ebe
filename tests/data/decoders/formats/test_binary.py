"""Integers, EXIF blocks and transparency, by eye."""

import numpy as np
import pytest
import tensorflow as tf
from data.decoders.picture_files import exif_block

from mmret_tf.data.decoders.formats import binary
from mmret_tf.data.decoders.formats.binary import (
    PADDING,
    checked,
    exif_orientation,
    integer,
    over_white,
    starts_with,
)


def padded(contents):
    """A file as the functions take it: its bytes, and zeros."""
    return tf.constant(np.frombuffer(contents + bytes(PADDING), np.uint8))


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


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("is_little", [True, False])
@pytest.mark.parametrize(("orientation", "expected"), [(1, 1), (6, 6), (8, 8), (9, 1), (0, 1)])
def test_orientations(prefix, is_little, orientation, expected):
    data = padded(prefix + exif_block(orientation, is_little))
    assert int(exif_orientation(data, tf.constant(0))) == expected


@pytest.mark.parametrize(
    ("at", "byte"),
    [(2, 4), (4, 200), (4, 0), (8, 0), (10, 0x13), (12, 4), (14, 2)],
    ids=["magic", "far", "near", "empty", "tag", "type", "count"],
)
def test_an_exif_block_that_says_something_else_is_upright(at, byte):
    block = bytearray(exif_block(6))
    block[at] = byte
    assert int(exif_orientation(padded(bytes(block)), tf.constant(0))) == 1


def test_grey_and_alpha_become_rgb_over_white(monkeypatch):
    monkeypatch.setattr(binary, "BLOCK_PIXELS", 3)  # a row at a time
    image = np.array([[[100, 0], [100, 255]], [[100, 51], [0, 51]]], np.uint8)
    found = tf.function(over_white)(tf.constant(image)).numpy()
    assert found[:, :, 0].tolist() == [[255, 100], [224, 204]]  # 51 is a fifth of 255
    assert np.array_equal(found, np.repeat(found[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    ("height", "width", "reason"),
    [(0, 5, "ends in its header"), (-1, 5, "ends in its header"), (2**14, 2**12 + 1, "too large")],
)
def test_sizes_out_of_the_limits_are_refused(height, width, reason):
    contents = tf.constant(b"abc")
    assert checked(contents, tf.constant(2**14), tf.constant(2**12)).numpy() == b"abc"
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        checked(contents, tf.constant(height), tf.constant(width))

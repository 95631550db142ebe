"""PNG of every colour type and depth, with and without a transparent colour, against Pillow."""

import struct
import zlib

import numpy as np
import pytest
from data.decoders.picture_files import PNG_KINDS, by_pillow, png_file

from mmret_tf.data.decoders.image import check_image, decode_image


@pytest.mark.parametrize(("kind", "depth"), PNG_KINDS)
@pytest.mark.parametrize("is_clear", [False, True])
def test_every_kind_is_as_pillow_has_it(kind, depth, is_clear):
    random = np.random.default_rng(depth)
    for orientation, late in ((None, False), (6, False), (3, True)):
        contents = png_file(random, kind, depth, is_clear, orientation, late)
        expected = by_pillow(contents)
        assert np.abs(decode_image(contents).numpy() - expected).max() <= 1


def test_sixteen_bits_are_scaled():
    random = np.random.default_rng(0)
    contents = png_file(random, 0, 16)
    levels = decode_image(contents).numpy()
    assert levels.min() < 40 and levels.max() > 200  # noise of 16 bits, not clipped to white
    assert np.abs(levels - by_pillow(contents)).max() <= 1


def test_a_header_that_does_not_come_first_is_refused():
    contents = png_file(np.random.default_rng(0), 2, 8)
    private = b"prVt" + struct.pack(">II", 1, 1) + bytes(5)
    chunk = struct.pack(">I", 13) + private + struct.pack(">I", zlib.crc32(private))
    with pytest.raises(ValueError, match="its header does not come first"):
        check_image(contents[:8] + chunk + contents[8:])

"""BMP of every depth, header and mask, against Pillow."""

import numpy as np
import pytest
from data.decoders.picture_files import MASKS_16, MASKS_32, bmp_file, by_pillow

from mmret_tf.data.decoders.image import check_image, decode_image

KINDS = [(bits, header, None) for bits in (1, 4, 8, 24) for header in (12, 40, 108, 124)]
KINDS += [(bits, header, None) for bits in (16, 32) for header in (40, 108)]
KINDS += [(16, header, masks) for header in (40, 124) for masks in MASKS_16]
KINDS += [(32, 40, MASKS_32[0]), *((32, 124, masks) for masks in MASKS_32)]


@pytest.mark.parametrize(("bits", "header", "masks"), KINDS)
def test_every_kind_is_as_pillow_has_it(bits, header, masks):
    random = np.random.default_rng(bits)
    for is_top_down in (False, header > 12):
        contents = bmp_file(random, bits, header, is_top_down, masks)
        assert np.abs(decode_image(contents).numpy() - by_pillow(contents)).max() <= 1


def test_a_short_palette():
    contents = bmp_file(np.random.default_rng(0), 8, colours=3)
    assert np.array_equal(decode_image(contents), by_pillow(contents))
    pixels = contents[10]
    with pytest.raises(ValueError, match="outside of its palette"):
        check_image(contents[:pixels] + b"\x03" + contents[pixels + 1 :])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_pixels_that_are_said_to_start_at_the_palette_start_behind_it(bits):
    contents = bmp_file(np.random.default_rng(0), bits)
    wrong = contents[:10] + bytes([14 + 40, 0, 0, 0]) + contents[14:]
    assert np.array_equal(decode_image(wrong), by_pillow(contents))
    assert np.array_equal(decode_image(wrong), by_pillow(wrong))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (30, 1, "a compressed BMP"),
        (28, 2, "unknown number of bits"),
        (10, 255, "truncated or damaged"),
        (18, 0, "ends in its header"),
    ],
)
def test_what_cannot_be_decoded_is_refused(at, value, reason):
    contents = bytearray(bmp_file(np.random.default_rng(0), 8))
    contents[at] = value
    with pytest.raises(ValueError, match=reason):
        check_image(bytes(contents))


def test_unusual_masks_are_refused():
    for bits, masks in ((16, (0xF000, 0xF00, 0xF0, 0xF)), (32, (0xFFF, 0xFF00, 0xFF0000, 0))):
        with pytest.raises(ValueError, match="unusual colour masks"):
            check_image(bmp_file(np.random.default_rng(0), bits, 124, masks=masks))

"""GIF: transparency, palettes, and frames beside, within and outside of their screens."""

import numpy as np
import pytest
from data.decoders.picture_files import by_pillow, gif_file

from mmret_tf.data.decoders.image import check_image, decode_image


@pytest.mark.parametrize("is_clear", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize("is_small", [False, True])
@pytest.mark.parametrize("is_interlaced", [False, True])
def test_every_kind_is_as_pillow_has_it(is_clear, is_local, is_small, is_interlaced):
    random = np.random.default_rng(0)
    for frames in (1, 2):
        contents = gif_file(random, is_clear, is_local, is_small, is_interlaced, frames)
        assert np.abs(decode_image(contents).numpy() - by_pillow(contents)).max() <= 1


def test_without_a_palette_numbers_are_greys():
    contents = gif_file(np.random.default_rng(1), is_local=False)
    colours = 2 ** (contents[10] % 8 + 1)
    plain = contents[:10] + b"\0" + contents[11:13] + contents[13 + 3 * colours :]
    assert np.array_equal(decode_image(plain), by_pillow(plain))


def screen(contents, width, height):
    """The same file with another size of its screen."""
    return contents[:6] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + contents[10:]


def test_a_frame_that_exceeds_its_screen_is_refused():
    contents = gif_file(np.random.default_rng(0))
    height, width, _ = decode_image(contents).shape
    assert height > 1 and width > 1
    for size in ((width - 1, height), (width, height - 1)):
        with pytest.raises(ValueError, match="whose frame exceeds its screen"):
            check_image(screen(contents, *size))
    with pytest.raises(ValueError, match="too large: 8200 x 8200"):
        check_image(screen(contents, 8200, 8200))


def test_a_large_second_frame_is_not_decoded():
    contents = gif_file(np.random.default_rng(3), frames=2)
    at = contents.rindex(b"\x2c\0\0\0\0")
    bomb = contents[: at + 5] + (65535).to_bytes(2, "little") * 2 + contents[at + 9 :]
    assert np.array_equal(decode_image(bomb), decode_image(contents))

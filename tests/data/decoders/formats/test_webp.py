"""WebP of the three kinds, its orientation, and what is no picture."""

import numpy as np
import pytest
from data.decoders.picture_files import by_pillow, exif_block
from PIL import Image

from mmret_tf.data.decoders.image import check_image, decode_image


@pytest.fixture(params=["VP8 ", "VP8L", "VP8X"])
def contents(request, picture, encoded):
    image = picture(30, 50)
    if request.param == "VP8X":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    contents = encoded(image, "WEBP", lossless=request.param == "VP8L")
    assert contents[12:16] == request.param.encode()
    return contents


def test_every_kind_is_as_pillow_has_it(contents):
    assert np.abs(decode_image(contents).numpy() - by_pillow(contents)).max() <= 1


def test_a_chunk_that_is_not_known_is_not_decoded(contents):
    with pytest.raises(ValueError, match="a WebP without a picture"):
        check_image(contents[:12] + b"JUNK" + contents[16:])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("lossless", [False, True])
def test_it_is_turned_upright(orientation, lossless, picture, encoded):
    exif = b"Exif\0\0" + exif_block(orientation)
    contents = encoded(picture(30, 50), "WEBP", lossless=lossless, exif=exif)
    assert np.abs(decode_image(contents).numpy() - by_pillow(contents)).max() <= 1

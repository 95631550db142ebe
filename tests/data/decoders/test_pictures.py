"""Pictures that a user may hold as encoded bytes, and their thumbnails."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.decoders.image import load_image
from mmret_tf.data.decoders.pictures import (
    encode_png,
    picture_source,
    picture_thumbnail,
    upright_rgb,
)
from mmret_tf.data.sources import FileSource, InlineSource


def pixels(contents):
    return np.asarray(Image.open(io.BytesIO(contents)))


def test_paths_bytes_and_sources_are_not_decoded(tmp_path):
    assert isinstance(picture_source("a.png"), FileSource)
    assert picture_source(tmp_path / "a.png").path == tmp_path / "a.png"
    assert picture_source(b"abc").read() == b"abc"
    source = InlineSource(b"abc")
    assert picture_source(source) is source


def test_arrays_and_pillow_images_become_png_without_loss(picture):
    array = np.asarray(picture(5, 7))
    for held in (array, array.tolist(), array.astype(float) + 0.2, Image.fromarray(array)):
        assert np.array_equal(pixels(picture_source(held).read()), array)
    assert picture_source(array).name == "the image"
    assert pixels(encode_png(np.full((2, 3, 1), 9))).tolist() == [[9] * 3] * 2


def test_a_pillow_image_is_turned_upright():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert pixels(picture_source(image).read()).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("RGBA", None), ("LA", None), ("P", 0), ("L", 0), ("RGB", (0, 0, 0))]
)
def test_clear_pillow_images_lie_over_white(mode, transparent):
    image = Image.new(mode, (4, 4))  # all zeros: clear where there is an alpha channel, else black
    if transparent is not None:
        assert load_image(image, 4).max() == 0
        image.info["transparency"] = transparent
    assert load_image(image, 4).min() == 255


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2)), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"got \(0, 4, 3\)"),
        (np.zeros(3), r"must have shape \[height, width\], .* got \(3,\)"),
        (np.full((4, 4), 256.0), "levels from 0 to 255; got 256.0 to 256.0"),
        (np.full((4, 4), -1), "levels from 0 to 255; got -1 to -1"),
        (np.full((4, 4), np.nan), "levels from 0 to 255"),
        (np.full((4, 4), 0.5), "got 0.5 to 0.5: multiply fractions of 0 to 1 by 255"),
        (np.full((4, 4), "a"), "levels from 0 to 255; got <U1"),
        (np.full((4, 4), True), "levels from 0 to 255; got bool"),
    ],
)
def test_arrays_that_are_not_pictures(array, message):
    with pytest.raises(ValueError, match=message):
        picture_source(array)


def test_black_and_small_levels_are_no_fractions():
    for array in (np.zeros((2, 2)), np.ones((2, 2), np.uint8)):
        assert np.array_equal(pixels(picture_source(array).read()), array)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pillow_images_of_more_than_eight_bits(mode):
    deep = np.array([[0, 257], [2570, 65535]])  # 0, 1, 10 and 255 times 257
    if mode == "I;16":
        image = Image.fromarray(deep.astype(np.uint16))
        assert upright_rgb(image).getchannel(0).get_flattened_data() == (0, 1, 10, 255)
        return
    image = Image.fromarray(deep.astype("int32" if mode == "I" else "float32"))
    assert image.mode == mode
    with pytest.raises(ValueError, match="levels from 0 to 255; got 0.* to 65535"):
        picture_source(image)
    levels = Image.fromarray((deep // 257).astype("int32" if mode == "I" else "float32"))
    assert upright_rgb(levels).getpixel((0, 1)) == (10, 10, 10)


def test_a_thumbnail_of_a_bomb_is_grey():
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    bomb += struct.pack(">I", zlib.crc32(header))
    assert np.asarray(picture_thumbnail(bomb, 96))[0, 0].tolist() == [211, 211, 211]


def test_thumbnails_are_square_cropped_and_upright(encoded):
    image = Image.new("RGB", (30, 10), "blue")
    image.paste("red", (10, 0, 20, 10))  # the middle third is red
    small = picture_thumbnail(encoded(image, "PNG"), 8)
    assert small.size == (8, 8) and small.mode == "RGB"
    assert np.asarray(small)[4, 4].tolist() == [255, 0, 0]

    turned = Image.new("RGB", (10, 10), "red")
    turned.paste("blue", (0, 0, 5, 10))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: blue belongs on the right
    upright = np.asarray(picture_thumbnail(encoded(turned, "PNG", exif=exif), 10))
    assert upright[5, 1].tolist() == [255, 0, 0] and upright[5, 8].tolist() == [0, 0, 255]


@pytest.mark.parametrize("contents", [b"", b"hello"])
def test_a_picture_that_cannot_be_read_has_a_grey_thumbnail_that_says_so(contents):
    grey = np.asarray(picture_thumbnail(contents, 96))
    assert grey.shape == (96, 96, 3)
    assert grey[0, 0].tolist() == [211, 211, 211] and grey.min() < 50  # light grey, black letters

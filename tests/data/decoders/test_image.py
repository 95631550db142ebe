"""Decoding compared with Pillow, crops, and one definition for every path."""

import io

import numpy as np
import pytest
import tensorflow as tf
from data.decoders import picture_memory
from data.decoders.picture_files import crafted, exif_block, tried
from PIL import Image, ImageOps

from mmret_tf.data.decoders.image import (
    check_image,
    crop_and_resize,
    decode_failure,
    decode_image,
    load_image,
)

KINDS = ["JPEG", "PNG", "GIF", "BMP", "WEBP"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_agrees_with_pillow(kind, mode, picture, encoded):
    contents = encoded(picture().convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"), int)
    assert np.abs(decode_image(contents).numpy() - expected).max() <= 1


def test_palette_cmyk_and_sixteen_bits_become_rgb(picture, encoded):
    deep = Image.fromarray(np.full((3, 4), 65535, np.uint16))
    for contents in (
        encoded(picture().convert("P"), "PNG"),
        encoded(picture().convert("CMYK"), "JPEG"),
        encoded(picture().convert("1"), "PNG"),
    ):
        assert decode_image(contents).shape == (30, 50, 3)
    assert decode_image(encoded(deep, "PNG")).numpy().min() == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_over_white(kind, encoded):
    clear, half, solid = (0, 0, 0, 0), (0, 0, 0, 51), (10, 20, 30, 255)
    image = Image.new("RGBA", (3, 1))
    for x, colour in enumerate([clear, half, solid]):
        image.putpixel((x, 0), colour)
    expected = [[255, 255, 255], [204, 204, 204], [10, 20, 30]]  # 51 is a fifth of 255
    assert decode_image(encoded(image, kind, lossless=True)).numpy()[0].tolist() == expected


def test_the_first_frame_of_an_animation(encoded):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    contents = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(contents).numpy()[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["II", "MM"])
def test_exif_orientation_is_applied(orientation, order, picture, encoded):
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x010F], exif[0x0112] = "camera", orientation
    contents = encoded(picture(), "JPEG", exif=exif.tobytes(), quality=95)
    assert order.encode() in contents[:40]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    difference = np.abs(decode_image(contents).numpy() - np.asarray(expected, int))
    assert difference.max() <= 4  # chroma is smoothed before the turn there, and after it here


def bad_images(picture, encoded):
    """Bytes that are not an image, and why."""
    frames = [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")]
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    yield b"", "empty file"
    yield b"hello world", "not an image: expected JPEG, PNG, GIF, BMP or WebP"
    for kind, cut in (("JPEG", 400), ("PNG", 40), ("GIF", 400), ("BMP", 40), ("WEBP", 40)):
        yield encoded(picture(), kind)[:-cut], "not a whole image: truncated or damaged"
    yield b"\xff\xd8\xff", "not a whole image: it ends in its header"
    yield b"RIFF....WEBP", "not a whole image: a WebP without a picture"
    yield png + (20_000).to_bytes(4, "big") * 2, "too large: 20000 x 20000 pixels"
    yield (
        encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "an animated WebP: save its first frame",
    )


def test_bytes_that_are_not_an_image_are_refused_with_a_reason(picture, encoded, tmp_path):
    for contents, reason in bad_images(picture, encoded):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            decode_image(contents)
        assert decode_failure(caught.value).startswith(reason)
        with pytest.raises(ValueError, match="^" + reason):
            check_image(contents)
        (tmp_path / "bad.png").write_bytes(contents)
        with pytest.raises(ValueError, match="bad.png: " + reason) as caught:
            load_image(tmp_path / "bad.png", 8)
        assert "\n" not in str(caught.value)
    check_image(encoded(picture(), "PNG"))


def test_crafted_and_mutated_pictures_are_refused_or_as_pillow_has_them():
    """The script `picture_files.py` tries many more."""
    whole, changed = tried(n_crafted=50, n_mutated=200)
    assert not whole.wrong and not changed.wrong, f"{whole}\n{changed}"
    assert not whole.reasons and whole.taken == 50
    assert changed.taken > 20 and changed.refused > 50


def test_every_way_in_gives_the_same_picture(tmp_path):
    random = np.random.default_rng(0)
    for number in range(20):
        name, contents = crafted(random)
        path = tmp_path / str(number)
        path.write_bytes(contents)
        decoded = load_image(contents, 8)
        assert np.array_equal(load_image(path, 8), decoded), name
        with Image.open(path) as image:
            assert np.abs(load_image(image, 8).astype(int) - decoded).max() <= 1, name


ENDLESS = {
    "JPEG": lambda file: file[:20] + bytes(20_000) + file[20:],
    "PNG": lambda file: file[:33] + b"\0\0\0\0eXIfcrc." * 20_000 + file[33:],
    "WEBP": lambda file: file + b"JUNK\0\0\0\0" * 20_000,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_header_without_an_end_is_refused_after_some_steps(kind, picture, encoded):
    exif = b"Exif\0\0" + exif_block(6)  # so that a WebP is searched for it
    with pytest.raises(ValueError, match="its header does not end"):
        check_image(ENDLESS[kind](encoded(picture(), kind, exif=exif)))


def test_blocks_without_an_end_are_refused_after_some_steps(picture, encoded):
    contents = encoded(picture(), "GIF")
    at = contents.index(b"\x2c\0\0\0\0")
    blocks = b"\x21\xfe" + b"\1a" * 300_000 + b"\0"
    with pytest.raises(ValueError, match="its header does not end"):
        check_image(contents[:at] + blocks + contents[at:])


def test_no_cut_of_a_jpeg_header_crashes(picture, encoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = encoded(picture(), "JPEG", exif=exif.tobytes())
    for length in range(0, 300, 7):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_image(contents[:length])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        load_image(tmp_path / "gone.png", 8)


def test_centre_crop_keeps_the_aspect():
    # Columns 10 20 30 40 of a 2 x 4 picture: the centre square has columns 20 and 30.
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :] = np.array([10, 20, 30, 40])[None, :, None]
    assert crop_and_resize(image, 2).numpy()[:, :, 0].tolist() == [[20, 30], [20, 30]]
    mirrored = crop_and_resize(image, 2, mirror=True).numpy()
    assert mirrored[:, :, 0].tolist() == [[30, 20], [30, 20]]


def test_random_crops_follow_the_seed_and_mirroring_its_argument(picture):
    image = np.asarray(picture(40, 40))
    crops = [crop_and_resize(image, 16, seed=(seed, 0)).numpy() for seed in range(10)]
    assert np.array_equal(crops[0], crop_and_resize(image, 16, seed=(0, 0)))
    assert len({crop.tobytes() for crop in crops}) == 10
    for seed, crop in enumerate(crops):
        assert crop[0, 0, 0] < crop[0, -1, 0]  # red grows to the right
        mirrored = crop_and_resize(image, 16, seed=(seed, 0), mirror=tf.constant(True))
        assert np.array_equal(mirrored, crop[:, ::-1])


def test_a_crop_keeps_the_share_that_is_asked_for(picture):
    image = np.asarray(picture(40, 40))
    whole = crop_and_resize(image, 40)
    for seed in range(5):
        assert np.array_equal(crop_and_resize(image, 40, seed=(seed, 0), min_crop=1.0), whole)
    # Levels 0 to 39, one a column: the last minus the first tells how many columns were kept.
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (40, 40, 3))
    crops = [crop_and_resize(ramp, 40, seed=(seed, 0), min_crop=0.5) for seed in range(40)]
    kept = [int(crop[0, -1, 0]) - int(crop[0, 0, 0]) + 1 for crop in crops]
    assert 20 <= min(kept) < 25 and 35 < max(kept) <= 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Decoding and cropping in a SavedModel that was loaded again."""

    class Exported(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
        def __call__(self, contents):
            return crop_and_resize(decode_image(contents), 16)

    folder = str(tmp_path_factory.mktemp("export"))
    tf.saved_model.save(Exported(), folder)
    return tf.saved_model.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_one_definition_serves_every_path(kind, picture, encoded, exported, tmp_path):
    """The same picture in tf.data, in Python, and in an exported graph, within one level."""
    contents = encoded(picture(), kind)
    (tmp_path / "picture").write_bytes(contents)
    in_graph = exported(contents).numpy()
    dataset = tf.data.Dataset.from_tensors(str(tmp_path / "picture"))
    dataset = dataset.map(lambda path: crop_and_resize(decode_image(tf.io.read_file(path)), 16))
    opened = Image.open(io.BytesIO(contents)).convert("RGB")
    for other in (
        next(iter(dataset)).numpy(),
        load_image(tmp_path / "picture", 16),
        load_image(str(tmp_path / "picture"), 16),
        load_image(contents, 16),
        load_image(opened, 16),
        load_image(np.asarray(opened), 16),
    ):
        assert other.dtype == np.uint8 and other.shape == (16, 16, 3)
        assert np.abs(other - in_graph.astype(int)).max() <= 1


def test_grey_and_transparent_arrays():
    grey = np.full((4, 4, 3), 7).tolist()
    assert load_image(np.full((4, 4), 7), 4).tolist() == grey
    assert load_image(np.full((4, 4, 1), 7.2), 4).tolist() == grey
    clear = np.zeros((4, 4, 4), np.uint8)
    assert load_image(clear, 4).tolist() == np.full((4, 4, 3), 255).tolist()


def test_decoding_takes_at_most_16_bytes_a_pixel():
    """Every format, at the largest size, by the script itself."""
    assert picture_memory.main(side=2048, names=["16_bits.bmp"]) == []

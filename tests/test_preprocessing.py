"""Decoding against Pillow, the one definition in every path, and captions to tokens."""

import io
import unicodedata

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from mmret_tf.normalization import nfkc
from mmret_tf.preprocessing import (
    TextPreprocessor,
    crop_and_resize,
    decode_failure,
    decode_image,
    load_image,
    standardize_text,
)


def picture(height=30, width=50):
    """A smooth picture that differs in all four corners, so that turns and flips show."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]] * 255
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_agrees_with_pillow(kind, mode):
    contents = encoded(picture().convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"), int)
    assert np.abs(decode_image(contents).numpy() - expected).max() <= 1


def test_palette_cmyk_and_sixteen_bits_become_rgb():
    deep = Image.fromarray(np.full((3, 4), 65535, np.uint16))
    for contents in (
        encoded(picture().convert("P"), "PNG"),
        encoded(picture().convert("CMYK"), "JPEG"),
        encoded(picture().convert("1"), "PNG"),
    ):
        assert decode_image(contents).shape == (30, 50, 3)
    assert decode_image(encoded(deep, "PNG")).numpy().min() == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_over_white(kind):
    clear, half, solid = (0, 0, 0, 0), (0, 0, 0, 51), (10, 20, 30, 255)
    image = Image.new("RGBA", (3, 1))
    for x, colour in enumerate([clear, half, solid]):
        image.putpixel((x, 0), colour)
    expected = [[255, 255, 255], [204, 204, 204], [10, 20, 30]]  # 51 is a fifth of 255
    assert decode_image(encoded(image, kind, lossless=True)).numpy()[0].tolist() == expected


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    contents = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(contents).numpy()[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["II", "MM"])
def test_exif_orientation_is_applied(orientation, order):
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x010F], exif[0x0112] = "camera", orientation
    contents = encoded(picture(), "JPEG", exif=exif.tobytes(), quality=95)
    assert order.encode() in contents[:40]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    difference = np.abs(decode_image(contents).numpy() - np.asarray(expected, int))
    assert difference.max() <= 4  # chroma is smoothed before the turn there, and after it here


PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
ANIMATED = encoded(
    Image.new("RGB", (4, 4)), "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "empty file"),
        (b"hello world", "not an image: expected JPEG, PNG, GIF, BMP or WebP"),
        (encoded(picture(), "JPEG")[:-400], "not a whole image: truncated or damaged"),
        (encoded(picture(), "PNG")[:-40], "not a whole image: truncated or damaged"),
        (encoded(picture(), "GIF")[:-400], "not a whole image: truncated or damaged"),
        (encoded(picture(), "BMP")[:-40], "not a whole image: truncated or damaged"),
        (encoded(picture(), "WEBP")[:-40], "not a whole image: truncated or damaged"),
        (b"\xff\xd8\xff", "not a whole image: it ends in its header"),
        (b"RIFF....WEBP", "not a whole image: it ends in its header"),
        (PNG_HEADER + (20_000).to_bytes(4, "big") * 2, "too large: 20000 x 20000 pixels"),
        (ANIMATED, "an animated WebP"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(contents, reason, tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        decode_image(contents)
    assert decode_failure(caught.value).startswith(reason)
    (tmp_path / "bad.png").write_bytes(contents)
    with pytest.raises(ValueError, match="bad.png: " + reason) as caught:
        load_image(tmp_path / "bad.png", 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", range(0, 300, 7))
def test_no_cut_of_a_jpeg_header_crashes(length):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = encoded(picture(), "JPEG", exif=exif.tobytes())[:length]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(contents)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        load_image(tmp_path / "gone.png", 8)


def test_centre_crop_keeps_the_aspect():
    # Columns 0 1 2 3 of a 2 x 4 picture: the centre square holds columns 1 and 2.
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :] = np.array([10, 20, 30, 40])[None, :, None]
    assert crop_and_resize(image, 2).numpy()[:, :, 0].tolist() == [[20, 30], [20, 30]]


def test_random_crops_follow_the_seed_and_flips_can_be_forbidden():
    image = np.asarray(picture(40, 40))
    crops = [crop_and_resize(image, 16, seed=(seed, 0)).numpy() for seed in range(40)]
    assert np.array_equal(crops[0], crop_and_resize(image, 16, seed=(0, 0)))
    assert not np.array_equal(crops[0], crops[1])
    # Red grows to the right: where it falls, the picture was mirrored.
    mirrored = [bool(crop[0, 0, 0] > crop[0, -1, 0]) for crop in crops]
    assert 10 < sum(mirrored) < 30
    straight = [crop_and_resize(image, 16, seed=(seed, 0), flip=False) for seed in range(40)]
    assert all(crop[0, 0, 0] < crop[0, -1, 0] for crop in straight)


def test_a_crop_keeps_the_share_that_is_asked_for():
    image = np.asarray(picture(40, 40))
    whole = crop_and_resize(image, 40)
    for seed in range(10):
        assert np.array_equal(
            crop_and_resize(image, 40, seed=(seed, 0), flip=False, min_crop=1.0), whole
        )
    # One level a column, 0 to 39: the last minus the first tells how many were kept.
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (40, 40, 3))
    crops = [
        crop_and_resize(ramp, 40, seed=(seed, 0), flip=False, min_crop=0.5) for seed in range(40)
    ]
    kept = [int(crop[0, -1, 0]) - int(crop[0, 0, 0]) + 1 for crop in crops]
    assert 20 <= min(kept) < 25 and 35 < max(kept) <= 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_one_definition_serves_every_path(kind, tmp_path):
    """The same picture in tf.data, in Python, and in an exported graph, within one level."""
    contents = encoded(picture(), kind)
    (tmp_path / "picture").write_bytes(contents)

    class Exported(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
        def __call__(self, contents):
            return crop_and_resize(decode_image(contents), 16)

    tf.saved_model.save(Exported(), str(tmp_path / "export"))
    in_graph = tf.saved_model.load(str(tmp_path / "export"))(contents).numpy()
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
        assert other.dtype == np.uint8
        assert np.abs(other - in_graph.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2)), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"got \(0, 4, 3\)"),
        (np.full((4, 4), 256.0), "levels from 0 to 255; got 256.0 to 256.0"),
        (np.full((4, 4), np.nan), "levels from 0 to 255"),
        (np.full((4, 4), "a"), "levels from 0 to 255"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ValueError, match=message):
        load_image(array, 4)


def test_grey_and_transparent_arrays():
    assert load_image(np.full((4, 4), 7), 4).tolist() == np.full((4, 4, 3), 7).tolist()
    clear = np.zeros((4, 4, 4), np.uint8)
    assert load_image(clear, 4).tolist() == np.full((4, 4, 3), 255).tolist()


@pytest.mark.parametrize(
    ("mode", "transparent"), [("RGBA", None), ("LA", None), ("P", 0), ("L", 0), ("RGB", (0, 0, 0))]
)
def test_clear_pillow_images_lie_over_white(mode, transparent):
    image = Image.new(mode, (4, 4))  # all zeros: clear where there is an alpha channel, else black
    if transparent is not None:
        assert load_image(image, 4).max() == 0
        image.info["transparency"] = transparent
    assert load_image(image, 4).min() == 255


def test_nfkc_of_every_code_point():
    points = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    expected = [unicodedata.normalize("NFKC", point) for point in points]
    assert [text.decode() for text in nfkc(tf.constant(points)).numpy()] == expected


def test_nfkc_composes_separate_accents():
    letters = [chr(code) for code in range(0xC0, 0x2000)]
    apart = [unicodedata.normalize("NFD", letter) for letter in letters]
    expected = [unicodedata.normalize("NFKC", letter) for letter in letters]
    assert [text.decode() for text in nfkc(tf.constant(apart)).numpy()] == expected


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A Red CIRCLE.", "a red circle"),
        ("the dog's ball, and   more!", "the dogs ball and more"),
        ("ＲＥＤ　circle", "red circle"),
        ("红色的圆，在左边。", "红 色 的 圆 在 左 边"),
        ("a 红色 circle", "a 红 色 circle"),
        ("Café CAFE\u0301", "café café"),
        ("", ""),
        ("... !", ""),
    ],
)
def test_standardize_text(text, tokens):
    assert standardize_text([text]).numpy()[0].decode() == tokens


def test_standardize_text_keeps_the_shape():
    assert standardize_text([["A", "B"], ["C", "红"]]).shape == (2, 2)
    assert standardize_text("A B").numpy() == b"a b"


def test_text_preprocessor_by_eye():
    text = TextPreprocessor(max_tokens=10, sequence_length=3)
    text.adapt(["red red red circle circle", "圆"])
    assert text.get_vocabulary() == ["", "[UNK]", "red", "circle", "圆"]
    assert text.vocabulary_size() == 5
    ids = text(["circle red", "unknown 圆 red red", ""])
    assert ids.numpy().tolist() == [[3, 2, 0], [1, 4, 2], [0, 0, 0]]


def test_text_preprocessor_round_trips_in_a_keras_file(tmp_path):
    text = TextPreprocessor(max_tokens=10, sequence_length=3)
    text.adapt(["a red circle", "红色的圆"])
    model = keras.Sequential([keras.Input((), dtype="string"), text])
    model.save(tmp_path / "text.keras")
    loaded = keras.saving.load_model(tmp_path / "text.keras")
    queries = tf.constant(["a 红 circle", "圆"])
    assert np.array_equal(loaded(queries), text(queries))
    assert loaded.layers[-1].sequence_length == 3


@pytest.mark.parametrize("captions", [[], [1, 2], ["a", None], "one caption"])
def test_adapt_takes_strings(captions):
    with pytest.raises(ValueError, match="non-empty list of captions"):
        TextPreprocessor().adapt(captions)

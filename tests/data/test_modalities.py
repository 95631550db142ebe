"""The registry of modalities, and what each knows of its content."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data import Collection, Modality, get_modality, register_modality
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.data.sources import FileSource, InlineSource


@pytest.fixture
def number(monkeypatch):
    """A modality of numbers in text files; forgotten after the test."""
    monkeypatch.setattr("mmret_tf.data.modalities.MODALITIES", dict(MODALITIES))
    return register_modality(
        Modality("number", (".num",), int, lambda contents, side: Image.new("RGB", (side, side)))
    )


def test_image_and_text_are_known():
    image, text = get_modality("image"), get_modality("text")
    assert image.name == "image" and image.is_file and ".png" in image.suffixes
    assert text.name == "text" and not text.is_file and text.suffixes == ()
    # Other tests may have registered more.
    with pytest.raises(ValueError, match="no modality 'smell'; there are: .*image, .*text"):
        get_modality("smell")


def test_a_registered_modality_is_known_by_its_name(number):
    assert get_modality("number") is number and number.is_file
    [source] = number.sources(["a/3.num"])
    assert source == FileSource(Path("a/3.num"))
    assert Collection(["a"], {"number": [[b"3"]]}).sources["number"][0][0].read() == b"3"
    with pytest.raises(ValueError, match="there are: .*image, .*number, .*text"):
        get_modality("smell")
    other = register_modality(Modality("number", (), int, number.thumbnail))
    assert get_modality("number") is other and not other.is_file


def test_values_become_sources():
    pixels = np.zeros((2, 3, 3), np.uint8)
    given = ["a.png", Path("b.png"), b"abc", pixels, Image.fromarray(pixels)]
    path, other, content, array, image = get_modality("image").sources(given)
    assert (path, other) == (FileSource(Path("a.png")), FileSource(Path("b.png")))
    assert content == InlineSource(b"abc")
    assert array.read() == image.read() == encode_png(pixels)
    assert [each.read() for each in get_modality("text").sources(["red", "红"])] == [
        b"red",
        "红".encode(),
    ]
    many = get_modality("image").sources(np.zeros((2, 4, 4, 3)))  # a batch of pictures
    assert len(many) == 2 and many[0] == many[1]


def test_sources_stay_as_they_are():
    source = InlineSource(b"abc")
    for name in ("image", "text"):
        assert get_modality(name).sources((source,))[0] is source


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("text", "a red circle"),
        ("image", "a.png"),
        ("image", Path("a.png")),
        ("image", b"abc"),
        ("image", Image.new("L", (2, 2))),
        ("image", (path for path in ["a.png"])),
        ("text", 3),
    ],
)
def test_one_value_in_the_place_of_a_list(name, values):
    with pytest.raises(ValueError, match=f"expected a list of {name}s; for one {name}, give a"):
        get_modality(name).sources(values)


def test_values_of_the_wrong_kind():
    with pytest.raises(ValueError, match="a text must be a string; got 3"):
        get_modality("text").sources(["a", 3])
    with pytest.raises(ValueError, match="an image array must have shape"):
        get_modality("image").sources([np.zeros(3)])


def test_checks_and_thumbnails_go_by_modality():
    red = encode_png(np.full((4, 4, 3), (255, 0, 0)))
    get_modality("image").check(red)
    with pytest.raises(ValueError, match="not an image"):
        get_modality("image").check(b"a red circle")
    get_modality("text").check(b"a red circle")
    with pytest.raises(ValueError, match="not UTF-8"):
        get_modality("text").check(red)
    thumbnail = get_modality("image").thumbnail(red, 8)
    assert thumbnail.size == (8, 8) and thumbnail.getpixel((4, 4)) == (255, 0, 0)
    assert get_modality("text").thumbnail(b"a red circle", 64).size == (64, 64)

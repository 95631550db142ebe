"""Copies across splits: the search for close hashes, and what counts as a copy."""

import io

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.decoders.pictures import read_picture
from mmret_tf.evaluation import copies
from mmret_tf.evaluation.copies import (
    SIDE,
    Looks,
    close_pairs,
    copies_across_splits,
    difference_hashes,
    mean_colours,
    nearest_copies,
)


def encoded(picture, form="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def looks_of(*contents):
    """The looks of encoded pictures; their digests are their own bytes."""
    cells = [mean_colours(read_picture(each, SIDE)[2]) for each in contents]
    return Looks(np.array(contents, object), np.array(cells))


def photograph(seed, width=200, height=150):
    """A smooth picture of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("block", [1, 7, 2**18])
@pytest.mark.parametrize("seed", range(3))
def test_close_pairs_are_those_of_comparing_all(block, seed, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK_PAIRS", block)
    random = np.random.default_rng(seed)
    first = random.integers(0, 2**64, 40, dtype=np.uint64)
    # Some bits of each are flipped, about 0 to 20.
    flips = [sum(1 << int(bit) for bit in {*random.integers(0, 64, n)}) for n in range(20)]
    second = first[random.integers(0, 40, 20)] ^ np.array(flips, np.uint64)
    expected = {
        (row, other, (int(a) ^ int(b)).bit_count())
        for row, a in enumerate(first)
        for other, b in enumerate(second)
        if (int(a) ^ int(b)).bit_count() <= 8
    }
    found = [
        (int(row), int(other), int(bits))
        for rows, others, distances in close_pairs(first, second, 8)
        for row, other, bits in zip(rows, others, distances, strict=True)
    ]
    assert len(found) == len(expected) >= 5 and set(found) == expected


def test_no_pictures_have_no_copies():
    none, one = looks_of(encoded(photograph(0))).subset([]), looks_of(encoded(photograph(0)))
    assert nearest_copies(none, one)[0].tolist() == [] == nearest_copies(none, none)[0].tolist()
    assert nearest_copies(one, none)[0].tolist() == [-1]


@pytest.mark.parametrize(("scale", "quality"), [(1, 75), (1, 30), (0.5, 75), (0.5, 30), (2, 75)])
def test_a_picture_that_is_encoded_again_is_a_copy_and_another_is_not(scale, quality):
    originals = [photograph(seed) for seed in range(20)]
    again = [each.resize((int(200 * scale), int(150 * scale))) for each in originals]
    gallery = looks_of(*(encoded(each, "PNG") for each in originals))
    queries = looks_of(*(encoded(each, quality=quality) for each in [*again, photograph(99)]))
    rows, distances = nearest_copies(queries, gallery)
    assert rows.tolist() == [*range(20), -1] and distances.max() <= 8


def test_the_nearest_of_several_copies_is_found_and_the_first_of_equal_ones():
    cells = np.broadcast_to(20 * np.arange(9, dtype=np.uint8)[:, None], (8, 9, 3))
    one_bit, two_bits = cells.copy(), cells.copy()
    one_bit[0, 0] = cells[0, 1]
    two_bits[:2, 0] = cells[0, 1]
    gallery = Looks(np.array(["2", "1", "1 again"]), np.array([two_bits, one_bit, one_bit]))
    query = Looks(np.array(["0"]), cells[None])
    rows, distances = nearest_copies(query, gallery)
    assert (rows.tolist(), distances.tolist()) == ([1], [1])
    rows, distances = nearest_copies(query, gallery.subset([0]))
    assert (rows.tolist(), distances.tolist()) == ([0], [2])


def test_flat_pictures_are_copies_only_of_the_same_content():
    white, snow = (encoded(Image.new("RGB", (30, 30), level)) for level in ("white", "snow"))
    noise = np.random.default_rng(0).integers(250, 256, (30, 30, 3), dtype=np.uint8)
    nearly = encoded(Image.fromarray(noise))
    assert looks_of(white, snow, nearly, encoded(photograph(0))).are_flat.tolist() == [1, 1, 1, 0]
    rows, _ = nearest_copies(looks_of(white, snow, nearly), looks_of(white))
    assert rows.tolist() == [0, -1, -1]


def test_the_same_drawing_in_another_colour_is_no_copy():
    contents = []
    for colour in ("red", "blue"):
        drawing = Image.new("RGB", (90, 90), "white")
        drawing.paste(colour, (30, 30, 60, 60))
        contents.append(encoded(drawing, "PNG"))
    red, blue = looks_of(contents[0]), looks_of(contents[1])
    assert difference_hashes(red.cells) == difference_hashes(blue.cells)
    assert nearest_copies(red, blue)[0].tolist() == [-1]


def test_only_different_splits_are_compared_from_train_to_test():
    contents = [encoded(photograph(seed)) for seed in (0, 0, 1, 0, 0, 0)]
    contents[4] = encoded(photograph(0), quality=40)
    splits = ["test", "train", "dev", "train", "dev", ""]
    found = copies_across_splits(looks_of(*contents), list("abcdef"), splits)
    facts = [(p["split"], p["id"], p["other_split"], p["other_id"], p["is_exact"]) for p in found]
    assert facts == [
        ("dev", "e", "train", "b", False),
        ("test", "a", "train", "b", True),
        ("test", "a", "dev", "e", False),
    ]

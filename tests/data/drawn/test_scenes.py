"""Drawn scenes: which are chosen for a split, and pictures that show what the attributes say."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import ImageColor

from mmret_tf.data.drawn import arrangements
from mmret_tf.data.drawn.arrangements import (
    COLOURS,
    OBJECTS,
    SHAPES,
    SIZES,
    SPLITS,
    SceneObject,
    split_of,
)
from mmret_tf.data.drawn.scenes import Scene, draw_scenes


def arrangement(scene):
    return scene.objects, scene.relation


@pytest.fixture(scope="module")
def train():
    return draw_scenes("train", size=600, seed=0)


def test_scenes_stay_as_they_are():
    # In every process, on every machine and in every release of Python.
    assert draw_scenes("dev", size=9, seed=0)[-1] == Scene(
        "dev-0-00008",
        (SceneObject("cross", "orange", "large"), SceneObject("square", "blue", "large")),
        "left of",
        (
            "a large orange cross with a large blue square on its right",
            "a large orange cross to the left of a large blue square",
            "蓝色的大正方形的左侧有一个橙色的大十字形",
            "橙色的大十字形在蓝色的大正方形的左边",
        ),
    )


# --- splits --------------------------------------------------------------------------------------


def test_no_size_and_no_seed_brings_an_arrangement_into_two_splits():
    seen = {
        split: {
            arrangement(scene)
            for size, seed in [(1, 5), (30, 0), (30, 1), (900, 2), (1500, 2**32 - 1)]
            for scene in draw_scenes(split, size, seed)
        }
        for split in SPLITS
    }
    assert all(len(arrangements) > 1500 for arrangements in seen.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


@pytest.mark.parametrize("split", SPLITS)
def test_no_two_scenes_of_a_split_are_alike(split):
    drawn = draw_scenes(split, size=1500, seed=0)
    assert len({arrangement(scene) for scene in drawn}) == 1500
    assert len({scene.id for scene in drawn}) == 1500
    for scene in drawn:
        kinds = {(thing.shape, thing.colour) for thing in scene.objects}
        assert len(kinds) == len(scene.objects)


def test_a_small_world_is_divided_completely_among_the_three_splits(monkeypatch):
    # Two colours of two shapes in two sizes: 8 things, and 6 of another kind for each, then 4.
    words = itertools.product(["circle", "star"], ["red", "blue"], ["small", "large"])
    world = tuple(itertools.starmap(SceneObject, words))
    by_hand = 8 + 2 * 8 * 6 + 2 * 8 * 6 * 4
    monkeypatch.setattr(arrangements, "OBJECTS", world)
    drawn = []
    for split in SPLITS:
        with pytest.raises(ValueError, match="size must be at most") as caught:
            draw_scenes(split, size=by_hand + 1)
        possible = int(re.search(r"at most (\d+)", str(caught.value))[1])
        assert str(caught.value) == (
            f"size must be at most {possible}, the number of different scenes in "
            f"the split '{split}'; got {by_hand + 1}"
        )
        drawn += map(arrangement, draw_scenes(split, size=possible))
    assert len(drawn) == len(set(drawn)) == by_hand


@pytest.mark.parametrize(
    ("split", "size", "expected"),
    [
        ("train", 1, {2: 1}),
        ("train", 100, {1: 15, 2: 60, 3: 25}),
        ("test", 20, {1: 3, 2: 12, 3: 5}),
    ],
)
def test_most_scenes_have_two_objects(split, size, expected):
    lengths = [len(scene.objects) for scene in draw_scenes(split, size)]
    assert Counter(lengths) == expected
    assert size == 1 or lengths != sorted(lengths)


def test_larger_scenes_replace_small_ones_that_run_out():
    possible = Counter(split_of(((thing,), None)) for thing in OBJECTS)
    drawn = draw_scenes("test", size=500)
    counts = Counter(len(scene.objects) for scene in drawn)
    assert 0 < possible["test"] < 75
    assert counts == {1: possible["test"], 2: 375 - possible["test"], 3: 125}


def test_every_word_of_the_test_occurs_in_training(train):
    def words(drawn):
        return {word for scene in drawn for thing in scene.objects for word in str(thing).split()}

    assert words(train) == words(draw_scenes("test", size=100)) == {*SHAPES, *COLOURS, *SIZES}


def test_other_arguments_give_other_scenes():
    drawn = [
        draw_scenes(*arguments)
        for arguments in [("dev", 50, 0), ("dev", 50, 1), ("test", 50, 0), ("train", 50, 0)]
    ]
    for one, other in itertools.combinations(drawn, 2):
        assert not {scene.id for scene in one} & {scene.id for scene in other}
        # A few arrangements may be common by chance, but their pictures differ.
        assert len(set(map(arrangement, one)) & set(map(arrangement, other))) < 10
        pictures = [{scene.draw().tobytes() for scene in scenes} for scenes in (one, other)]
        assert not pictures[0] & pictures[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of train, dev, test; got 'val'"),
        ({"split": None}, "split must be one of train, dev, test; got None"),
        ({"size": 0}, "size must be a whole number, at least 1; got 0"),
        ({"size": 2.5}, "size must be a whole number, at least 1; got 2.5"),
        ({"size": "7"}, "size must be a whole number, at least 1; got '7'"),
        ({"seed": -1}, "seed must be an integer from 0 to 2**32 - 1; got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 2**32 - 1; got 4294967296"),
    ],
)
def test_bad_arguments_are_a_value_error_of_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw_scenes(**arguments)


# --- pictures ------------------------------------------------------------------------------------

# Area as a fraction of width times height, and distance of the centre of mass below the middle as
# a fraction of the height: circle pi/4 and 0, square 1 and 0, triangle 1/2 and 1/6, cross 0.55 and
# 0, star 0.39 and 0.05. Pixels blur the tips, so areas may be larger; no two ranges overlap.
FORMS = {
    "circle": [(0.74, 0.83), (-0.02, 0.02)],
    "square": [(0.98, 1.02), (-0.02, 0.02)],
    "triangle": [(0.50, 0.62), (0.13, 0.17)],
    "star": [(0.39, 0.56), (0.025, 0.08)],
    "cross": [(0.54, 0.61), (-0.02, 0.02)],
}


# The longer side of an object in pixels, by number of objects: 1.8 to 2 times its radius.
EXTENTS = {
    1: {"small": (10, 14.5), "large": (19, 24.5)},
    2: {"small": (10, 14.5), "large": (19, 24.5)},
    3: {"small": (8, 12.5), "large": (13.5, 18.5)},
}


def look(scene):
    """Find the objects of a picture by their pixels alone.

    Returns, for each from left to right or from top to bottom, its colour (24 bits) and the part
    of each pixel that it covers, `[64, 64]`.
    """
    pixels = np.asarray(scene.draw(), dtype=int)
    codes = pixels @ [65536, 256, 1]
    background = most_common(codes)
    is_upright = scene.relation in ("above", "column")
    line = np.flatnonzero((codes != background).any(axis=1 if is_upright else 0))
    found = []
    for part in np.split(line, np.flatnonzero(np.diff(line) > 1) + 1):  # apart by an empty line
        window = (part, slice(None)) if is_upright else (slice(None), part)
        colour = most_common(codes[window][codes[window] != background])
        before, after = (pixels[codes == code][0] for code in (background, colour))
        channel = np.abs(after - before).argmax()  # where the object is seen best
        covered = np.zeros((64, 64))
        covered[window] = ((pixels - before) / (after - before)[channel])[window][..., channel]
        found.append((colour, covered))
    return found


def most_common(codes):
    values, counts = np.unique(codes, return_counts=True)
    return values[counts.argmax()]


def middle_and_length(covered, axis):
    """Of the extent along one axis, in pixels; pixels at the edge count for a part."""
    profile = covered.max(axis=1 - axis)
    return profile @ np.arange(64) / profile.sum(), profile.sum()


def test_pictures_show_what_the_attributes_say(train):
    for scene in train[:400]:
        found = look(scene)
        assert len(found) == len(scene.objects), scene
        middles = []
        for thing, (colour, covered) in zip(scene.objects, found, strict=True):
            assert tuple(int(colour).to_bytes(3, "big")) == ImageColor.getrgb(thing.colour), scene

            middle_row, height = middle_and_length(covered, axis=0)
            middle_column, width = middle_and_length(covered, axis=1)
            middles.append((middle_row, middle_column))
            low, high = EXTENTS[len(found)][thing.size]
            assert low < max(height, width) < high, scene

            centre_of_mass = covered.sum(axis=1) @ np.arange(64) / covered.sum()
            form = covered.sum() / (height * width), (centre_of_mass - middle_row) / height
            for value, (low, high) in zip(form, FORMS[thing.shape], strict=True):
                assert low < value < high, scene

        for down, right in np.diff(middles, axis=0):  # from each object to the next
            is_upright = scene.relation in ("above", "column")
            along, across = (down, right) if is_upright else (right, down)
            assert along > 1.5 * abs(across), scene


def test_objects_keep_away_from_the_edge(train):
    for scene in train[:300]:
        pixels = np.array(scene.draw())
        background = pixels[0, 0]
        pixels[3:-3, 3:-3] = background
        assert (pixels == background).all(), scene


def test_pictures_differ_in_place_and_background():
    red = SceneObject("circle", "red", "large")
    pictures = [np.asarray(Scene(str(i), (red,), None, ()).draw()) for i in range(20)]
    backgrounds = np.array([picture[0, 0] for picture in pictures], dtype=int)
    assert len(np.unique(backgrounds, axis=0)) > 15
    assert np.ptp(backgrounds, axis=1).max() <= 12  # all of them are greys,
    assert np.ptp(backgrounds.mean(axis=1)) > 20  # some lighter, some darker
    middles = [np.argwhere((picture == (255, 0, 0)).all(2)).mean(axis=0) for picture in pictures]
    assert np.ptp(middles, axis=0).min() > 2  # of 4 pixels, both ways,
    assert np.abs(np.array(middles) - 31.5).max() < 3  # around the middle of the picture

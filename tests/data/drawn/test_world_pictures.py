"""Pictures of the worlds: other options give another picture, and colours are those named."""

import itertools
import random

import numpy as np
import pytest
from PIL import ImageColor

from mmret_tf.data.drawn.world_pictures import (
    CANVAS,
    DRAWINGS,
    HEIGHTS,
    IMAGE_SIZE,
    draw_figure,
    draw_good,
    draw_news,
    draw_scan,
)
from mmret_tf.data.drawn.worlds import COMBINATIONS


def pixels(draw, *options, seed=0):
    return np.asarray(draw(*options, random.Random(seed)), int)


def share(picture, colour):
    """The share of the pixels that have a colour."""
    return np.mean(np.abs(picture - ImageColor.getrgb(colour)).max(axis=2) < 8)


@pytest.mark.parametrize("world", DRAWINGS)
def test_other_options_give_another_picture(world):
    combinations = COMBINATIONS[world]
    pictures = [pixels(DRAWINGS[world], *options) for options in combinations]
    assert {picture.shape for picture in pictures} == {(IMAGE_SIZE, IMAGE_SIZE, 3)}
    assert len({picture.tobytes() for picture in pictures}) == len(combinations)


@pytest.mark.parametrize("world", DRAWINGS)
def test_chance_details_are_those_of_the_generator(world):
    options = COMBINATIONS[world][0]
    first, again, other = (pixels(DRAWINGS[world], *options, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_goods_have_their_colours():
    assert share(pixels(draw_good, "bag", "red", "plain", ""), "red") > 0.2
    for pattern in ("stripes", "dots"):
        bag = pixels(draw_good, "bag", "red", pattern, "blue")
        assert share(bag, "red") > share(bag, "blue") > 0.02


def test_more_things_cover_more_and_nights_are_dark():
    counts = [
        share(pixels(draw_news, number, "balloon", "sea", "clear sky", "day"), "crimson")
        for number in ("one", "two", "three")
    ]
    assert 0 < 1.5 * counts[0] < counts[1] < counts[2]
    day, night = (
        pixels(draw_news, "one", "kite", "city", "rain", time) for time in ("day", "night")
    )
    assert night.mean() < 0.6 * day.mean()


def test_a_spot_is_where_the_words_say():
    for height, side in itertools.product(HEIGHTS, ("left", "right")):
        options = (f"{height} {side}", "large", "round", "no fluid", "normal heart")
        y, x = np.nonzero(pixels(draw_scan, *options).min(axis=2) > 200)
        assert abs(y.mean() - HEIGHTS[height] * IMAGE_SIZE / CANVAS) < 8
        assert (x.mean() < IMAGE_SIZE / 2) == (side == "left")


def test_figures_have_the_named_inside_and_lines():
    options = "a circle inside", "bare corners"
    shaded, white, thick = (
        pixels(draw_figure, "square", options[0], inside, options[1], lines)
        for inside, lines in (
            ("shaded", "thin lines"),
            ("white", "thin lines"),
            ("white", "thick lines"),
        )
    )
    assert share(shaded, "darkgrey") > 0.15 > share(white, "darkgrey")
    assert share(thick, "black") > 1.5 * share(white, "black")

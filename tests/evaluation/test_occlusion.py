"""Occlusion: for towers that look at a known part, the map and the words show that part."""

import numpy as np
import pytest

from mmret_tf.evaluation import occlusion_map, word_drops
from mmret_tf.evaluation.occlusion import GREY

TARGET = [1.0, 0.0]


def looks_at(rows, columns):
    """A tower whose embedding turns towards the target, the brighter a part of the picture is."""

    def encode(pictures):
        bright = np.array([each[rows, columns].mean() for each in pictures]) / 255
        return np.stack([bright, 1 - bright], axis=1)

    return encode


def bag_of_words(texts):
    """A tower that counts "red" and "zebra"; an empty text has zeros."""
    return np.array([[text.split().count(word) for word in ("red", "zebra")] for text in texts])


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32), (40, 32, 3)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 16), (16, 0), (16, 16)])
def test_the_map_is_highest_in_the_quadrant_that_counts(shape, corner):
    rows, columns = (slice(start, start + 16) for start in corner)
    picture = np.full(shape, 255, np.uint8)
    drops = occlusion_map(looks_at(rows, columns), picture, TARGET)
    assert drops.shape == shape[:2]
    row, column = np.unravel_index(drops.argmax(), drops.shape)
    assert row in range(32)[rows] and column in range(32)[columns]
    inside = np.zeros(drops.shape, bool)
    inside[rows, columns] = True
    assert drops[inside].min() > 0
    near = 8  # no square that covers these pixels reaches into the quadrant
    far = np.ones(drops.shape, bool)
    far[max(0, corner[0] - near) : corner[0] + 16 + near, :] = False
    assert not drops[far].any()
    assert (picture == 255).all()  # the picture is as it was


def test_one_square_drops_as_computed_by_hand():
    """A square of 2 x 2 over a picture of 4 x 4, in steps of 2: four squares that do not overlap.
    The tower sees the first alone: it is white, cos = 1, or grey."""
    seen = looks_at(slice(0, 2), slice(0, 2))
    drops = occlusion_map(seen, np.full((4, 4), 255), TARGET, window=2, step=2)
    bright = GREY / 255
    expected = 1 - bright / np.hypot(bright, 1 - bright)
    assert drops[:2, :2] == pytest.approx(expected)
    assert not drops[2:].any() and not drops[:, 2:].any()


def test_a_part_that_speaks_against_the_target_has_a_negative_drop():
    drops = occlusion_map(looks_at(slice(0, 8), slice(0, 8)), np.zeros((16, 16, 3)), TARGET)
    assert drops.min() < 0 and drops.max() == 0


def test_squares_cover_the_last_pixels_of_odd_sizes():
    everywhere = looks_at(slice(None), slice(None))
    drops = occlusion_map(everywhere, np.full((7, 10), 255), TARGET, window=3, step=2)
    assert drops.min() > 0


@pytest.mark.parametrize(
    ("picture", "options", "message"),
    [
        ("a.png", {}, "picture must be an array .* got 'a.png': load it first"),
        (np.zeros(4), {}, r"got shape \(4,\)"),
        (np.zeros((4, 9)), {"window": 5}, "window must fit into the picture of 4 x 9; got 5"),
        (np.zeros((4, 4)), {"step": -1}, "step must be an integer of at least 1"),
        (np.zeros((4, 4)), {"window": 0}, "window must be an integer of at least 1"),
    ],
)
def test_what_is_no_picture_or_square_is_refused(picture, options, message):
    with pytest.raises(ValueError, match=message):
        occlusion_map(looks_at(slice(2), slice(2)), picture, TARGET, **options)


def test_the_words_that_count_have_the_drops():
    drops = word_drops(bag_of_words, ["a", "red", "zebra"], TARGET)
    whole = 0.5**0.5
    assert drops.tolist() == pytest.approx([0, whole, whole - 1])


def test_a_single_word_is_left_out_too():
    assert word_drops(bag_of_words, ["red"], TARGET).tolist() == [1]


def test_a_real_tower_sees_words_of_both_languages(model):
    target = model.encode_images([np.zeros((16, 16, 3))])[0]
    for words in (["a", "red", "circle"], list("红色的圆")):
        drops = word_drops(model.encode_texts, words, target)
        without = [words[1:], words[:1] + words[2:]]
        cosines = model.encode_texts([" ".join(each) for each in (words, *without)]) @ target
        assert drops[:2] == pytest.approx(cosines[0] - cosines[1:], abs=1e-5)
    assert occlusion_map(model.encode_images, np.zeros((16, 16, 3)), target).shape == (16, 16)


@pytest.mark.parametrize("words", ["red", []])
def test_what_is_no_list_of_words_is_refused(words):
    with pytest.raises(ValueError, match="words must be a list of at least one word"):
        word_drops(bag_of_words, words, TARGET)


def test_a_target_of_another_width_is_refused():
    with pytest.raises(ValueError, match="target must have width 2; got 3"):
        word_drops(bag_of_words, ["red"], [1, 0, 0])

"""Arrangements: splits that share nothing, and captions that state all that is in a scene."""

import itertools
import random
import re
from collections import Counter

import pytest

from mmret_tf.data.drawn import arrangements
from mmret_tf.data.drawn.arrangements import (
    OBJECTS,
    PHRASINGS,
    SPLITS,
    SceneObject,
    shuffled_arrangements,
    split_of,
)
from mmret_tf.data.drawn.scenes import draw_scenes

ENGLISH_THING = re.compile(r"(small|large) (\w+) (\w+)")
CHINESE_THING = re.compile(r"(?:([小大])的(.色)|(.色)的([小大]))(圆形|正方形|三角形|五角星|十字形)")
ENGLISH_OF = {chinese: english for english, chinese in PHRASINGS["chinese words"].items()}

# Captions with letters for the objects: A is the leftmost or topmost, C the last one.
SENTENCES = {
    None: """a single A | there is only a A in the picture | one A and nothing else |
        图中只有一个A | 单独一个A | 一个A，没有别的图形""",
    "left of": """a A to the left of a B | there is a B on the right of a A |
        a B with a A on its left | a A with a B on its right |
        A在B的左边 | B在A的右边 | B的左侧有一个A | 图中有一个A，它的右边是一个B""",
    "above": """a A above a B | there is a B below a A |
        a B with a A above it | a A with a B under it |
        A在B的上面 | B在A的下面 | B的上方有一个A | 图中有一个A，它的下面是一个B""",
    "row": """a A, a B and a C in a row from left to right |
        from left to right there are a A, a B and a C |
        a B between a A on the left and a C on the right |
        从左到右依次是A、B和C | A、B和C从左到右排成一行 | B在中间，左边是A，右边是C""",
    "column": """a A, a B and a C in a column from top to bottom |
        from top to bottom there are a A, a B and a C |
        a B between a A above and a C below |
        从上到下依次是A、B和C | A、B和C从上到下排成一列 | B在中间，上面是A，下面是C""",
}
SENTENCES = {relation: re.split(r"\s*\|\s*", text) for relation, text in SENTENCES.items()}


def read(caption):
    """Understand a caption without the module: its sentence, and the arrangement it states."""
    things = []
    for size, colour, shape in ENGLISH_THING.findall(caption):
        things.append(SceneObject(shape, colour, size))
    for size, colour, colour_first, size_last, shape in CHINESE_THING.findall(caption):
        words = shape, colour or colour_first, size or size_last
        things.append(SceneObject(*(ENGLISH_OF[word] for word in words)))
    rest = CHINESE_THING.sub("?", ENGLISH_THING.sub("?", caption))
    for relation, sentences in SENTENCES.items():
        for sentence in sentences:
            if re.sub("[ABC]", "?", sentence) == rest:
                named = dict(zip(re.findall("[ABC]", sentence), things, strict=True))
                return sentence, (tuple(named[letter] for letter in sorted(named)), relation)
    raise AssertionError(f"not an expected sentence: {caption}")


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_states_all_that_is_in_the_scene(split):
    for scene in draw_scenes(split, size=300, seed=1):
        assert len(set(scene.captions)) == 4
        is_english = [caption.isascii() for caption in scene.captions]
        assert is_english == [True, True, False, False]
        for caption in scene.captions:
            assert read(caption)[1] == (scene.objects, scene.relation), caption


def test_every_phrasing_is_used():
    captions = [caption for scene in draw_scenes("train", 600) for caption in scene.captions]
    assert {read(caption)[0] for caption in captions} == set(itertools.chain(*SENTENCES.values()))
    assert any("红色的大圆形" in caption for caption in captions)
    assert any("大的红色圆形" in caption for caption in captions)


def test_all_arrangements_come_once_in_random_order(monkeypatch):
    # Two colours of one shape in two sizes: 4 things, 2 of the other colour beside each.
    words = itertools.product(["circle"], ["red", "blue"], ["small", "large"])
    world = tuple(itertools.starmap(SceneObject, words))
    monkeypatch.setattr(arrangements, "OBJECTS", world)
    pairs = list(shuffled_arrangements(2, random.Random(0)))
    assert len(pairs) == len(set(pairs)) == 4 * 2 * 2
    assert pairs == list(shuffled_arrangements(2, random.Random(0)))
    assert pairs != list(shuffled_arrangements(2, random.Random(1)))
    expected = {
        ((one, other), relation)
        for one, other in itertools.product(world, repeat=2)
        for relation in ("left of", "above")
        if one.colour != other.colour
    }
    assert set(pairs) == expected


def test_nearly_all_arrangements_are_for_training():
    pairs = itertools.product(OBJECTS, repeat=2)
    splits = Counter(split_of(((left, right), "left of")) for left, right in pairs)
    # 6,400 pairs: one standard deviation is 0.5 % of them for train, 0.4 % for dev and test.
    assert splits["train"] / 6400 == pytest.approx(0.8, abs=0.02)
    assert splits["dev"] / 6400 == pytest.approx(0.1, abs=0.02)
    assert splits["test"] / 6400 == pytest.approx(0.1, abs=0.02)

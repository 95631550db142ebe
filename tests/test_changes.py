"""Composed queries on scenes: one right answer each, in its own split, and a text that says it."""

import pytest

from mmret_tf.changes import CHANGES_OF_A_SCENE, draw_changes
from mmret_tf.scenes import CHINESE_WORDS, split_of


def test_source_and_target_differ_in_one_value_which_every_text_names():
    for change in draw_changes("train", scenes=60):
        assert change.source.relation == change.target.relation
        differences = [
            (name, new)
            for old_thing, new_thing in zip(
                change.source.attributes["objects"],
                change.target.attributes["objects"],
                strict=True,
            )
            for name, new in new_thing.items()
            if old_thing[name] != new
        ]
        [(_, value)] = differences
        english, chinese = change.texts[:2], change.texts[2:]
        assert all(value in text and text.isascii() for text in english)
        assert all(CHINESE_WORDS[value] in text for text in chinese)
        assert len(set(change.texts)) == 4


def test_texts_say_which_object_where_there_are_several():
    for change in draw_changes("train", scenes=60):
        things = change.source.objects
        changed = next(
            old for old, new in zip(things, change.target.objects, strict=True) if old != new
        )
        if len(things) > 1:
            shapes = [thing.shape for thing in things]
            named = changed.shape
            if shapes.count(changed.shape) > 1:
                named = f"{changed.colour} {changed.shape}"
            assert all(f"the {named} " in f"{text} " for text in change.texts[:2])


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_all_lies_in_one_split_and_no_arrangement_comes_twice(split):
    changes = draw_changes(split, scenes=40, seed=3)
    sources = {change.source.id: change.source for change in changes}
    scenes = [*sources.values(), *(change.target for change in changes)]
    arrangements = {(scene.objects, scene.relation) for scene in scenes}
    assert len(arrangements) == len(scenes) == len({scene.id for scene in scenes})
    assert {split_of(arrangement) for arrangement in arrangements} == {split}
    counts = [sum(change.source.id == key for change in changes) for key in sources]
    assert len(sources) == 40
    assert min(counts) >= 2 and max(counts) == CHANGES_OF_A_SCENE


def test_the_same_arguments_give_the_same_changes():
    assert draw_changes("dev", 10, seed=1) == draw_changes("dev", 10, seed=1)
    assert draw_changes("dev", 10, seed=1) != draw_changes("dev", 10, seed=2)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="split must be one of train, dev, test; got 'all'"):
        draw_changes("all")
    with pytest.raises(ValueError, match="scenes must be at least 1; got 0"):
        draw_changes("dev", scenes=0)

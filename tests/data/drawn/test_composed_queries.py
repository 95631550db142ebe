"""Composed queries: one right answer each, in its own split, and texts that name the change."""

import pytest

from mmret_tf.data.drawn.arrangements import PHRASINGS, split_of
from mmret_tf.data.drawn.composed_queries import CHANGES_OF_A_SCENE, draw_changes


@pytest.fixture(scope="module")
def changes():
    return draw_changes("train", scenes=60)


def changed_values(change):
    """(attribute, new value) of every difference between source and target."""
    sides = (change.source.attributes["objects"], change.target.attributes["objects"])
    for old_thing, new_thing in zip(*sides, strict=True):
        yield from new_thing.items() - old_thing.items()


def test_source_and_target_differ_in_one_value_which_every_text_names(changes):
    for change in changes:
        assert change.source.relation == change.target.relation
        [(_, value)] = changed_values(change)
        english, chinese = change.texts[:2], change.texts[2:]
        assert all(value in text and text.isascii() for text in english)
        assert all(PHRASINGS["chinese words"][value] in text for text in chinese)
        assert len(set(change.texts)) == 4


def test_texts_say_which_object_if_there_are_several(changes):
    for change in changes:
        things = change.source.objects
        pairs = zip(things, change.target.objects, strict=True)
        [changed] = [old for old, new in pairs if old != new]
        if len(things) > 1:
            is_only_shape = [thing.shape for thing in things].count(changed.shape) == 1
            named = changed.shape if is_only_shape else f"{changed.colour} {changed.shape}"
            assert all(f"the {named} " in f"{text} " for text in change.texts[:2])


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_all_scenes_are_in_one_split_and_no_arrangement_comes_twice(split):
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


def test_bad_arguments_are_explained():
    with pytest.raises(ValueError, match="split must be one of train, dev, test; got 'all'"):
        draw_changes("all")
    with pytest.raises(ValueError, match="scenes must be at least 1; got 0"):
        draw_changes("dev", scenes=0)

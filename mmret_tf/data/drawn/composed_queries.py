"""Composed queries (组合查询) over drawn scenes: a picture, and words that change one thing in it.

"The same, but blue" (换成蓝色) has one right answer, which a scene knows: the picture in which just
that is different. Section 6 of the document searches by image and text at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmret_tf.data.drawn.arrangements import (
    COLOURS,
    PHRASINGS,
    SHAPES,
    SIZES,
    SPLITS,
    Arrangement,
    SceneObject,
    caption_arrangement,
    shuffled_arrangements,
    split_of,
)
from mmret_tf.data.drawn.scenes import Scene

VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}

# Right answers to one picture, each to other words: the picture alone cannot tell which is meant.
CHANGES_OF_A_SCENE = 4


@dataclass(frozen=True)
class Change:
    """One composed query and its answer.

    Attributes:
        source: the scene that is shown.
        texts: what to change, two phrasings in English, then two in Chinese.
        target: the scene that is meant; it differs in the shape, colour or size of one object.
    """

    source: Scene
    texts: tuple[str, ...]
    target: Scene


def draw_changes(split: str = "train", scenes: int = 500, seed: int = 0) -> list[Change]:
    """Choose scenes at random, and for each up to four changes, all within one split. Section 6.

    No arrangement comes twice, as a source or as a target. A third of the scenes each have one
    object, two and three, as far as the split has so many; two changes at least lie in the split.

    Args:
        split: "train", "dev" or "test", as for `draw_scenes`.
        scenes: number of sources.
        seed: the same arguments give the same changes.

    Returns:
        `Change` objects, two to four in a row for each source: `source` and `target` are scenes,
        whose `draw()` gives the picture, and `texts` say in four ways what to change.

    Raises:
        ValueError: no such split, no scenes, or more than the split has.

    >>> change = draw_changes("dev", scenes=1)[0]
    >>> [str(thing) for thing in change.source.objects]
    ['small white circle', 'small black star', 'large white square']
    >>> print(change.texts[0], "/", change.texts[2])
    the same, but the star is large / 其他不变，五角星是大的
    >>> [str(thing) for thing in change.target.objects]
    ['small white circle', 'large black star', 'large white square']
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if scenes < 1:
        raise ValueError(f"scenes must be at least 1; got {scenes}")
    generator = random.Random(f"changes {split} {scenes} {seed}")
    taken: set[Arrangement] = set()
    changes: list[Change] = []
    sources = 0
    for n_objects in (1, 2, 3):
        quota = scenes * n_objects // 3
        for arrangement in shuffled_arrangements(n_objects, generator):
            if sources >= quota:
                break
            if split_of(arrangement) != split or arrangement in taken:
                continue
            variants = [
                variant
                for variant in _variants(arrangement)
                if split_of(variant[-1]) == split and variant[-1] not in taken
            ]
            if len(variants) < 2:
                continue
            chosen = generator.sample(variants, min(len(variants), CHANGES_OF_A_SCENE))
            name = f"{split}-{seed}-changes-{sources:05}"
            source = _scene(name, arrangement, generator)
            for number, (place, attribute, variant) in enumerate(chosen):
                target = _scene(f"{name}-{number}", variant, generator)
                texts = _texts(source.objects, place, attribute, target.objects[place], generator)
                changes.append(Change(source, texts, target))
            taken |= {arrangement, *(variant for *_, variant in chosen)}
            sources += 1
    if sources < scenes:
        raise ValueError(
            f"scenes must be at most {sources}, of which the split {split!r} has two changes each; "
            f"got {scenes}"
        )
    return changes


def _scene(name: str, arrangement: Arrangement, generator: random.Random) -> Scene:
    return Scene(name, *arrangement, caption_arrangement(arrangement, generator))


def _variants(arrangement: Arrangement) -> Iterator[tuple[int, str, Arrangement]]:
    """Each arrangement with one value changed: which object, which attribute, and the result."""
    objects, relation = arrangement
    for place, thing in enumerate(objects):
        for attribute, values in VALUES.items():
            for value in values:
                changed = replace(thing, **{attribute: value})
                others = objects[:place] + objects[place + 1 :]
                is_distinct = all(
                    (changed.shape, changed.colour) != (other.shape, other.colour)
                    for other in others
                )
                if changed != thing and is_distinct:
                    all_objects = (*objects[:place], changed, *objects[place + 1 :])
                    yield place, attribute, (all_objects, relation)


def _texts(
    objects: tuple[SceneObject, ...],
    place: int,
    attribute: str,
    changed: SceneObject,
    generator: random.Random,
) -> tuple[str, ...]:
    """What to say for one object to become another: all phrasings, in a new order each time."""
    thing, new = objects[place], getattr(changed, attribute)
    is_only_shape = [each.shape for each in objects].count(thing.shape) == 1
    english = thing.shape if is_only_shape else f"{thing.colour} {thing.shape}"
    chinese = thing.chinese("{shape}" if is_only_shape else "{colour}的{shape}")
    kind = " alone" if len(objects) == 1 else ""
    texts = []
    for name, value, language in (
        (english, new, "english"),
        (chinese, PHRASINGS["chinese words"][new], "chinese"),
    ):
        for phrasing in generator.sample(PHRASINGS["changes"][language + kind][attribute], 2):
            texts.append(phrasing.format(thing=name, new=value))
    return tuple(texts)

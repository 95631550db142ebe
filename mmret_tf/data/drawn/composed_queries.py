"""Composed queries (组合查询) over drawn scenes: a picture, and words that change one thing in it.

"The same, but blue" (换成蓝色) has exactly one right answer: the scene that differs in this alone.
Searches by image and text at once belong to section 6 of the document.
"""

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

# Changes of one scene, at most. With several, the picture alone does not give the answer away.
CHANGES_OF_A_SCENE = 4


@dataclass(frozen=True)
class Change:
    """One composed query and its answer.

    Attributes:
        source: Scene that is shown.
        texts: Descriptions of the change: two phrasings in English, then two in Chinese.
        target: Scene that is asked for; it differs in the shape, colour or size of one object.
    """

    source: Scene
    texts: tuple[str, ...]
    target: Scene


def draw_changes(split: str = "train", scenes: int = 500, seed: int = 0) -> list[Change]:
    """Draw scenes at random, each with two to four changes, all in one split. Section 6.

    Every arrangement occurs once at most, as a source or as a target. One third of the sources have
    one object, one third two, and one third three. If a split has too few of a kind, scenes with
    more objects take their place.

    Args:
        split: "train", "dev" or "test", as for `draw_scenes`.
        scenes: Number of sources.
        seed: The same arguments give the same changes.

    Returns:
        `Change` objects; those of one source follow each other.

    Raises:
        ValueError: The split is unknown, or `scenes` is below 1 or above the number in the split.

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
            f"scenes must be at most {sources}, the number of scenes with two changes in the split "
            f"{split!r}; got {scenes}"
        )
    return changes


def _scene(name: str, arrangement: Arrangement, generator: random.Random) -> Scene:
    return Scene(name, *arrangement, caption_arrangement(arrangement, generator))


def _variants(arrangement: Arrangement) -> Iterator[tuple[int, str, Arrangement]]:
    """Arrangements that differ in one value: number of the object, attribute, arrangement."""
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
    """Descriptions of one change: two phrasings in English, then two in Chinese."""
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

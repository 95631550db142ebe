"""Contents of scenes: objects, their relations, and captions in two languages.

An arrangement is a list of objects and their relation. A hash of it decides its split, so no
arrangement of the test occurs in training (section 2.1 of the document). The phrasings are in
`phrasings.json`.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

PHRASINGS = json.loads(Path(__file__).with_name("phrasings.json").read_text(encoding="utf-8"))

SPLITS = ("train", "dev", "test")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
# As Pillow and CSS know them.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")

# By number of objects. The first object is always the leftmost or the topmost one, so that
# "A left of B" and "B right of A" are one scene.
RELATIONS = {1: (None,), 2: ("left of", "above"), 3: ("row", "column")}


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene, with one of `SHAPES`, `COLOURS` and `SIZES` each.

    >>> thing = SceneObject("circle", "red", "large")
    >>> print(thing, thing.chinese("{colour}的{size}{shape}"))
    large red circle 红色的大圆形
    """

    shape: str
    colour: str
    size: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    def chinese(self, pattern: str) -> str:
        """Its name in Chinese, by a pattern such as "{size}的{colour}{shape}"."""
        words = PHRASINGS["chinese words"]
        return pattern.format(**{key: words[word] for key, word in asdict(self).items()})


OBJECTS = tuple(itertools.starmap(SceneObject, itertools.product(SHAPES, COLOURS, SIZES)))

# Scenes with the same objects and relation are alike.
Arrangement: TypeAlias = tuple[tuple[SceneObject, ...], str | None]


def shuffled_arrangements(n_objects: int, generator: random.Random) -> Iterator[Arrangement]:
    """Yield all arrangements of this number of objects in random order.

    Three objects have a million arrangements, and a call needs a few hundred. This Fisher-Yates
    shuffle therefore stores only the numbers that have moved.
    """
    relations = RELATIONS[n_objects]
    moved: dict[int, int] = {}
    for last in reversed(range(len(relations) * len(OBJECTS) ** n_objects)):
        place = generator.randint(0, last)
        number = moved.get(place, place)
        moved[place] = moved.pop(last, last)
        number, relation = divmod(number, len(relations))
        objects = []
        for _ in range(n_objects):
            number, thing = divmod(number, len(OBJECTS))
            objects.append(OBJECTS[thing])
        if len({(thing.shape, thing.colour) for thing in objects}) == n_objects:
            yield tuple(objects), relations[relation]


def split_of(arrangement: Arrangement) -> str:
    """The split of an arrangement, by a hash that is the same in every process and release."""
    objects, relation = arrangement
    canonical = f"{relation}: {', '.join(map(str, objects))}"
    tenth = int.from_bytes(hashlib.sha256(canonical.encode()).digest(), "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def caption_arrangement(arrangement: Arrangement, generator: random.Random) -> tuple[str, ...]:
    """Caption an arrangement in two English phrasings, then in two Chinese ones."""
    objects, relation = arrangement
    known = PHRASINGS["scenes"]
    phrasings = generator.sample(known["english"][relation or "alone"], 2)
    captions = [phrasing.format(*objects) for phrasing in phrasings]
    for phrasing in generator.sample(known["chinese"][relation or "alone"], 2):
        pattern = generator.choice(known["chinese objects"])
        captions.append(phrasing.format(*(thing.chinese(pattern) for thing in objects)))
    return tuple(captions)

"""A picture set drawn on demand: one to three plain shapes with captions in English and Chinese.

It needs no download, has any size, and knows the right answer to every question, so a model can
be trained and tested on it anywhere (section 2.1 of the tutorial document, 数据集).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import numbers
import os
import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

# Part of the cache's folder names: raise it with every change to what is drawn or written.
DRAWING_VERSION = 2

SPLITS = ("train", "dev", "test")
IMAGE_SIZE = 64  # pixels, as are the next four
# By number of objects, for three stand side by side only if they are smaller. In every scene a
# radius of up to 7 is small, and one from 8 is large.
RADII = {
    1: {"small": (6, 7), "large": (11, 12)},
    2: {"small": (6, 7), "large": (11, 12)},
    3: {"small": (5, 6), "large": (8, 9)},
}
MARGIN = 3  # between an object and the edge of the picture
GAP = 2  # between two objects, along the line on which they stand
WOBBLE = 2  # how far an object may stand off its place, along the line and across it
OVERSAMPLING = 4  # edges are smooth because four by four drawn pixels make one

SIZES = ("small", "large")
# As Pillow and CSS know them.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")


def _around(radii: list[float]) -> list[tuple[float, float]]:
    """Corners at these distances from the centre, at equal angles, clockwise from the top."""
    turn = 2 * math.pi / len(radii)
    return [(r * math.sin(i * turn), -r * math.cos(i * turn)) for i, r in enumerate(radii)]


# Corners of each shape for a radius of 1, y downwards; none lies outside of -1 to 1.
_ARM = (-0.33 - 1j, 0.33 - 1j, 0.33 - 0.33j)  # of the cross; times 1j is a quarter turn
SHAPES = {
    "circle": _around([1.0] * 48),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -0.87), (1, 0.87), (-1, 0.87)],
    "star": [(x, y + 0.1) for x, y in _around([1.05, 0.48] * 5)],
    "cross": [((z * 1j**turn).real, (z * 1j**turn).imag) for turn in range(4) for z in _ARM],
}

# By number of objects. The first object is always the leftmost or the topmost one, so that
# "A left of B" and "B right of A" are one scene.
RELATIONS = {1: (None,), 2: ("left of", "above"), 3: ("row", "column")}

ENGLISH_PHRASINGS = {
    None: ("a single {0}", "there is only a {0} in the picture", "one {0} and nothing else"),
    "left of": (
        "a {0} to the left of a {1}",
        "there is a {1} on the right of a {0}",
        "a {1} with a {0} on its left",
        "a {0} with a {1} on its right",
    ),
    "above": (
        "a {0} above a {1}",
        "there is a {1} below a {0}",
        "a {1} with a {0} above it",
        "a {0} with a {1} under it",
    ),
    "row": (
        "a {0}, a {1} and a {2} in a row from left to right",
        "from left to right there are a {0}, a {1} and a {2}",
        "a {1} between a {0} on the left and a {2} on the right",
    ),
    "column": (
        "a {0}, a {1} and a {2} in a column from top to bottom",
        "from top to bottom there are a {0}, a {1} and a {2}",
        "a {1} between a {0} above and a {2} below",
    ),
}
CHINESE_PHRASINGS = {
    None: ("图中只有一个{0}", "单独一个{0}", "一个{0}，没有别的图形"),
    "left of": (
        "{0}在{1}的左边",
        "{1}在{0}的右边",
        "{1}的左侧有一个{0}",
        "图中有一个{0}，它的右边是一个{1}",
    ),
    "above": (
        "{0}在{1}的上面",
        "{1}在{0}的下面",
        "{1}的上方有一个{0}",
        "图中有一个{0}，它的下面是一个{1}",
    ),
    "row": (
        "从左到右依次是{0}、{1}和{2}",
        "{0}、{1}和{2}从左到右排成一行",
        "{1}在中间，左边是{0}，右边是{2}",
    ),
    "column": (
        "从上到下依次是{0}、{1}和{2}",
        "{0}、{1}和{2}从上到下排成一列",
        "{1}在中间，上面是{0}，下面是{2}",
    ),
}
# 的 parts colour and size, for 大红色 is a colour of its own, bright red.
CHINESE_OBJECTS = ("{colour}的{size}{shape}", "{size}的{colour}{shape}")
CHINESE_WORDS = {
    **{"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "五角星"},
    **{"cross": "十字形", "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色"},
    **{"blue": "蓝色", "purple": "紫色", "black": "黑色", "white": "白色"},
    **{"small": "小", "large": "大"},
}


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene: one each of `SHAPES`, `COLOURS` and `SIZES`.

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
        """Its name in Chinese, after one of `CHINESE_OBJECTS`."""
        return pattern.format(**{key: CHINESE_WORDS[word] for key, word in asdict(self).items()})


OBJECTS = tuple(itertools.starmap(SceneObject, itertools.product(SHAPES, COLOURS, SIZES)))

# What makes two scenes alike: objects and relation.
Arrangement: TypeAlias = tuple[tuple[SceneObject, ...], "str | None"]


@dataclass(frozen=True)
class Scene:
    """One to three objects, how they stand to each other, and what is said about them.

    Attributes:
        id: names the split, the seed and a number: "train-0-00012".
        objects: from left to right, or from top to bottom; no two agree in shape and colour.
        relation: `None` for one object, "left of" or "above" for two, "row" or "column" for three.
        captions: two in English, then two in Chinese. Each states every attribute.
    """

    id: str
    objects: tuple[SceneObject, ...]
    relation: str | None
    captions: tuple[str, ...]

    @property
    def attributes(self) -> dict:
        """What is in the scene, ready for JSON.

        >>> Scene("x", (SceneObject("star", "blue", "small"),), None, ()).attributes
        {'objects': [{'shape': 'star', 'colour': 'blue', 'size': 'small'}], 'relation': None}
        """
        return {"objects": [asdict(thing) for thing in self.objects], "relation": self.relation}

    def draw(self) -> Image.Image:
        """The picture: RGB, 64 x 64 pixels, the same at every call.

        >>> draw_scenes("dev", size=1)[0].draw().size
        (64, 64)
        """
        generator = random.Random(self.id)
        grey = generator.randint(145, 185)
        background = tuple(grey + generator.randint(-6, 6) for _ in "RGB")
        side = IMAGE_SIZE * OVERSAMPLING
        image = Image.new("RGB", (side, side), background)
        pencil = ImageDraw.Draw(image)

        radii = [generator.uniform(*RADII[len(self.objects)][thing.size]) for thing in self.objects]
        places = _places(radii, generator)
        for thing, radius, (x, y) in zip(self.objects, radii, places, strict=True):
            if self.relation in ("above", "column"):
                x, y = y, x
            corners = [
                ((x + radius * dx) * OVERSAMPLING, (y + radius * dy) * OVERSAMPLING)
                for dx, dy in SHAPES[thing.shape]
            ]
            pencil.polygon(corners, fill=thing.colour)
        return image.reduce(OVERSAMPLING)


def draw_scenes(split: str = "train", size: int = 2000, seed: int = 0) -> list[Scene]:
    """Choose `size` different scenes of one split at random, with captions. Section 2.1.

    15 % of the scenes have one object, 60 % two, 25 % three; where a split has not so many
    different ones, those with more objects take their place. The attributes of a scene alone
    decide its split (80 % of all combinations are in "train", 10 % each in "dev" and "test"), so
    no size and no seed brings a combination of the test into training.

    Args:
        split: "train", "dev" or "test".
        size: number of scenes.
        seed: 0 to 2**32 - 1. The same three arguments give the same scenes, others give others.

    Returns:
        `Scene` objects: `captions` are two in English and two in Chinese; `draw()` gives the
        picture, RGB, 64 x 64 pixels.

    Raises:
        ValueError: an argument is not one of these, or the split has fewer different scenes.

    >>> scene = draw_scenes("dev", size=4)[0]
    >>> [str(thing) for thing in scene.objects], scene.relation
    (['small orange circle', 'large black triangle'], 'left of')
    >>> print(scene.captions[1])
    there is a large black triangle on the right of a small orange circle
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if not isinstance(size, numbers.Integral) or size < 1:
        raise ValueError(f"size must be a whole number of scenes, at least 1; got {size!r}")
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; got {seed!r}")
    generator = random.Random(f"{split} {size} {seed}")
    chosen: list[Arrangement] = []
    for n_objects, share in ((1, 15), (2, 75), (3, 100)):  # per cent of scenes with so many or less
        quota = (share * size + 50) // 100
        for arrangement in shuffled_arrangements(n_objects, generator):
            if len(chosen) >= quota:
                break
            if split_of(arrangement) == split:
                chosen.append(arrangement)
    if len(chosen) < size:
        raise ValueError(
            f"size must be at most {len(chosen)}, the number of different scenes in "
            f"the split {split!r}; got {size}"
        )
    generator.shuffle(chosen)
    return [
        Scene(f"{split}-{seed}-{i:05}", *arrangement, caption_arrangement(arrangement, generator))
        for i, arrangement in enumerate(chosen)
    ]


def write_scenes(
    folder: str | os.PathLike[str], split: str = "train", size: int = 2000, seed: int = 0
) -> Path:
    """Draw scenes as PNG files, with `captions.jsonl` beside them, into a new folder. Section 2.1.

    Each line of `captions.jsonl` (UTF-8) is an object with `id`, `image` (the name of the file),
    `captions`, `split` and `attributes`. Everything is drawn into a temporary folder beside the
    new one, which gets its name at the end: it is there as a whole or not at all.

    Args:
        folder: does not exist yet, or is empty (it is replaced then).
        split, size, seed: as for `draw_scenes`.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: the folder holds something already, or as for `draw_scenes`.
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> folder = write_scenes(Path(tempfile.mkdtemp()) / "scenes", "test", size=2)
    >>> sorted(path.name for path in folder.iterdir())
    ['0000.png', '0001.png', 'captions.jsonl']
    """
    folder = Path(folder).resolve()
    _check_free(folder)
    scenes = draw_scenes(split, size, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        with open(temporary / "captions.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for i, scene in enumerate(scenes):
                name = f"{i:04}.png"
                scene.draw().save(temporary / name, compress_level=1)
                line = {"id": scene.id, "image": name, "captions": scene.captions, "split": split}
                line["attributes"] = scene.attributes
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with contextlib.suppress(OSError):  # Windows renames over no folder, not even an empty one
            folder.rmdir()
        try:
            temporary.rename(folder)
        except OSError:
            _check_free(folder)  # someone else may have filled it in the meantime
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
    return folder


def cached_scenes(split: str = "train", size: int = 2000, seed: int = 0) -> Path:
    """The folder of `write_scenes` in the Keras home, drawn at the first call and then used again.

    It lies under `$KERAS_HOME` (`~/.keras` by default), and may be deleted at any time. Two
    processes may ask for the same scenes at once: the first to finish wins, both use its folder.

    Raises:
        ValueError: as for `draw_scenes`, or someone put other files into the folder.
        OSError: the Keras home cannot be written.

    >>> cached_scenes("dev", size=2, seed=7).name
    'v2-dev-2-7'
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").resolve()
    name = f"v{DRAWING_VERSION}-{split}-{size}-{seed}"
    folder = home / "datasets" / "mmret_scenes" / name
    try:
        write_scenes(folder, split, size, seed)
    except ValueError:  # the scenes are there already, perhaps since a moment ago
        if not (folder / "captions.jsonl").is_file():
            raise
    return folder


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "holds files already" if folder.is_dir() else "is a file"
        raise ValueError(f"folder must be new or empty; {folder} {problem}, choose another")


def shuffled_arrangements(n_objects: int, generator: random.Random) -> Iterator[Arrangement]:
    """All arrangements of so many objects in random order, made as they are asked for.

    Three objects have a million of them, and a call needs a few hundred: this shuffle (Fisher and
    Yates) keeps only the numbers that are not in their own places any more.
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
    """The split it belongs to, by a hash that is the same in every process and release."""
    objects, relation = arrangement
    canonical = f"{relation}: {', '.join(map(str, objects))}"
    tenth = int.from_bytes(hashlib.sha256(canonical.encode()).digest(), "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def caption_arrangement(arrangement: Arrangement, generator: random.Random) -> tuple[str, ...]:
    """Two of the phrasings in each language."""
    objects, relation = arrangement
    phrasings = generator.sample(ENGLISH_PHRASINGS[relation], 2)
    captions = [phrasing.format(*objects) for phrasing in phrasings]
    for phrasing in generator.sample(CHINESE_PHRASINGS[relation], 2):
        pattern = generator.choice(CHINESE_OBJECTS)
        captions.append(phrasing.format(*(thing.chinese(pattern) for thing in objects)))
    return tuple(captions)


def _places(radii: list[float], generator: random.Random) -> list[tuple[float, float]]:
    """Centres (along, across), in pixels, of objects that stand in line without overlap.

    The line runs through the middle of the picture, and space to spare on it is the same before,
    between and after the objects. Each then wobbles a little, so that no two pictures are alike,
    yet objects keep to places that a network of ResNet50's coarse steps (32 pixels) finds soon.
    """
    taken = 2 * MARGIN + GAP * (len(radii) - 1) + 2 * sum(radii)
    space = (IMAGE_SIZE - taken) / (len(radii) + 1)
    along = min(WOBBLE, space / 2)  # two neighbours that come closer still keep the gap
    places = []
    edge: float = MARGIN
    for radius in radii:
        centre = edge + space + radius
        places.append(
            (
                centre + generator.uniform(-along, along),
                IMAGE_SIZE / 2 + generator.uniform(-WOBBLE, WOBBLE),
            )
        )
        edge = centre + radius + GAP
    return places

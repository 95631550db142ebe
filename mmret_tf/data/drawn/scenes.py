"""Scenes (场景): one to three plain shapes, drawn on demand, with captions in English and Chinese.

A picture set of any size that needs no download. The right answer to every query is known, so a
model can be trained and tested on it anywhere (section 2.1 of the document).
"""

import io
import math
import random
from dataclasses import asdict, dataclass

from PIL import Image, ImageDraw

from mmret_tf.data.drawn.arrangements import (
    Arrangement,
    SceneObject,
    caption_arrangement,
    shuffled_arrangements,
    split_of,
)
from mmret_tf.data.drawn.combinations import check_request

IMAGE_SIZE = 64  # pixels, as are the next four
# By number of objects: three fit side by side only if they are smaller. In all scenes, radii up to
# 7 are small and radii from 8 are large.
RADII = {
    1: {"small": (6, 7), "large": (11, 12)},
    2: {"small": (6, 7), "large": (11, 12)},
    3: {"small": (5, 6), "large": (8, 9)},
}
MARGIN = 3  # between an object and the edge of the picture
GAP = 2  # between two objects, along their line
WOBBLE = 2  # largest distance of an object from its place, along the line and across it
OVERSAMPLING = 4  # for smooth edges, 4 x 4 drawn pixels make one pixel


def _around(radii: list[float]) -> list[tuple[float, float]]:
    """Corners at these distances from the centre, at equal angles, clockwise from the top."""
    turn = 2 * math.pi / len(radii)
    return [(r * math.sin(i * turn), -r * math.cos(i * turn)) for i, r in enumerate(radii)]


# Corners of each shape for a radius of 1, with y pointing down; all are within -1 to 1.
_ARM = (-0.33 - 1j, 0.33 - 1j, 0.33 - 0.33j)  # of the cross; times 1j is a quarter turn
SHAPES = {
    "circle": _around([1.0] * 48),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -0.87), (1, 0.87), (-1, 0.87)],
    "star": [(x, y + 0.1) for x, y in _around([1.05, 0.48] * 5)],
    "cross": [((z * 1j**turn).real, (z * 1j**turn).imag) for turn in range(4) for z in _ARM],
}


@dataclass(frozen=True)
class Scene:
    """One to three objects, their relation, and captions.

    Attributes:
        id: Split, seed and number: "train-0-00012".
        objects: From left to right, or from top to bottom; no two agree in shape and colour.
        relation: `None` for one object, "left of" or "above" for two, "row" or "column" for three.
        captions: Two in English, then two in Chinese; each states all attributes.
    """

    id: str
    objects: tuple[SceneObject, ...]
    relation: str | None
    captions: tuple[str, ...]

    @property
    def attributes(self) -> dict:
        """Objects and relation, as JSON values.

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

    def encode(self) -> bytes:
        """The picture as a PNG file."""
        file = io.BytesIO()
        self.draw().save(file, "PNG", compress_level=1)
        return file.getvalue()


def draw_scenes(split: str = "train", size: int = 2000, seed: int = 0) -> list[Scene]:
    """Choose `size` different scenes of one split at random, with captions. Section 2.1.

    15 % of the scenes have one object, 60 % two, and 25 % three; if a split has too few of a kind,
    scenes with more objects take their place. The attributes of a scene decide its split: 80 % of
    all combinations are in "train", 10 % each in "dev" and "test". No combination of the test
    occurs in training, whatever the size and the seed.

    Args:
        split: "train", "dev" or "test".
        size: Number of scenes.
        seed: 0 to 2**32 - 1. The same three arguments give the same scenes.

    Returns:
        `Scene` objects: `captions` are two in English and two in Chinese; `draw()` gives the
        picture, RGB, 64 x 64 pixels.

    Raises:
        ValueError: An argument is out of range, or the split has fewer different scenes.

    >>> scene = draw_scenes("dev", size=4)[0]
    >>> [str(thing) for thing in scene.objects], scene.relation
    (['small orange circle', 'large black triangle'], 'left of')
    >>> print(scene.captions[1])
    there is a large black triangle on the right of a small orange circle
    """
    check_request(split, size, seed)
    generator = random.Random(f"{split} {size} {seed}")
    chosen: list[Arrangement] = []
    for n_objects, share in ((1, 15), (2, 75), (3, 100)):  # per cent with at most this number
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


def _places(radii: list[float], generator: random.Random) -> list[tuple[float, float]]:
    """Centres (along, across), in pixels, of objects in a line that do not overlap.

    The line runs through the middle of the picture, with equal space before, between and after the
    objects. Each object then moves a little at random, so that pictures differ. The moves are small
    enough for a network with a coarse grid, such as ResNet50 (32 pixels), to learn the places soon.
    """
    taken = 2 * MARGIN + GAP * (len(radii) - 1) + 2 * sum(radii)
    space = (IMAGE_SIZE - taken) / (len(radii) + 1)
    along = min(WOBBLE, space / 2)  # neighbours that move towards each other keep the gap
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

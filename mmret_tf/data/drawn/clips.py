"""Clips (短片): one or two shapes that move, with captions in English and Chinese.

One frame shows what is there, but not how it moves: whoever tells "from left to right" (从左向右)
from "from right to left" (从右向左) has seen several. Sections 1.1 and 2.1 of the document.
"""

import io
import itertools
import math
import random
from dataclasses import asdict, dataclass

from PIL import Image, ImageDraw

from mmret_tf.data.drawn.arrangements import COLOURS, PHRASINGS, SHAPES
from mmret_tf.data.drawn.combinations import check_request, choose_combinations
from mmret_tf.data.drawn.scenes import IMAGE_SIZE, MARGIN, OVERSAMPLING
from mmret_tf.data.drawn.scenes import SHAPES as CORNERS

FRAMES = 13  # of each clip: an odd number, so that the one in the middle tells no direction
FRAME_MS = 100  # time that each is shown
RADII = (6, 8)  # pixels, of shapes that keep their size
SMALLEST, LARGEST = 4, 13  # pixels, of shapes that grow or shrink
ORBIT = (11, 13)  # pixels, radius of a circling shape's path
WOBBLE = 3  # pixels, largest distance of a path from its place, in each direction
# Share of the clips with one shape, and with two.
SHARES = (0.15, 0.85)

CROSSINGS = {  # the direction of a shape that crosses the picture, y pointing down
    "left to right": (1, 0),
    "right to left": (-1, 0),
    "top to bottom": (0, 1),
    "bottom to top": (0, -1),
}
MOTIONS = (*CROSSINGS, "clockwise", "counterclockwise", "grows", "shrinks", "stands still")


@dataclass(frozen=True)
class Mover:
    """One shape and its motion, with one of `SHAPES`, `COLOURS` and `MOTIONS` each.

    >>> print(Mover("circle", "red", "left to right"))
    red circle, left to right
    """

    shape: str
    colour: str
    motion: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}, {self.motion}"

    def caption(self, language: str, generator: random.Random) -> str:
        """A clause in English or Chinese."""
        words = PHRASINGS["chinese words"]
        name = f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"
        if language == "chinese":
            name = f"{words[self.colour]}的{words[self.shape]}"
        return generator.choice(PHRASINGS["clips"][language][self.motion]).format(name)


MOVERS = tuple(Mover(*each) for each in itertools.product(SHAPES, COLOURS, MOTIONS))


@dataclass(frozen=True)
class Clip:
    """One or two shapes that move, and captions.

    Attributes:
        id: Split, seed and number: "train-0-00012".
        movers: The shapes. Where they meet, the first is in front.
        captions: Two in English, then two in Chinese; each states all attributes.
    """

    id: str
    movers: tuple[Mover, ...]
    captions: tuple[str, ...]

    @property
    def attributes(self) -> dict:
        """The shapes, as JSON values.

        >>> Clip("x", (Mover("star", "blue", "grows"),), ()).attributes
        {'movers': [{'shape': 'star', 'colour': 'blue', 'motion': 'grows'}]}
        """
        return {"movers": [asdict(mover) for mover in self.movers]}

    def draw(self) -> list[Image.Image]:
        """The frames: RGB, 64 x 64 pixels, the same at every call.

        >>> frames = draw_clips("dev", size=1)[0].draw()
        >>> len(frames), frames[0].size
        (13, (64, 64))
        """
        generator = random.Random(self.id)
        grey = generator.randint(145, 185)
        background = tuple(grey + generator.randint(-6, 6) for _ in "RGB")
        lanes = [IMAGE_SIZE / 2] if len(self.movers) == 1 else [IMAGE_SIZE / 3, IMAGE_SIZE * 2 / 3]
        generator.shuffle(lanes)
        paths = [
            _Path(mover.motion, lane, generator)
            for mover, lane in zip(self.movers, lanes, strict=True)
        ]
        frames = []
        for number in range(FRAMES):
            side = IMAGE_SIZE * OVERSAMPLING
            frame = Image.new("RGB", (side, side), background)
            pencil = ImageDraw.Draw(frame)
            for mover, path in reversed([*zip(self.movers, paths, strict=True)]):
                x, y, radius = path.at(number / (FRAMES - 1))
                corners = [
                    ((x + radius * dx) * OVERSAMPLING, (y + radius * dy) * OVERSAMPLING)
                    for dx, dy in CORNERS[mover.shape]
                ]
                pencil.polygon(corners, fill=mover.colour)
            frames.append(frame.reduce(OVERSAMPLING))
        return frames

    def encode(self) -> bytes:
        """An animated GIF of the frames, which repeats for ever."""
        first, *others = self.draw()
        file = io.BytesIO()
        first.save(
            file, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0, disposal=1
        )
        return file.getvalue()


class _Path:
    """The place and size of a moving shape over the time.

    Args:
        motion: One of `MOTIONS`.
        lane: Coordinate of the middle of its path, in pixels, that motion leaves free.
        generator: Decides the rest.
    """

    def __init__(self, motion: str, lane: float, generator: random.Random):
        self.motion = motion
        self.x, self.y = (lane + generator.uniform(-WOBBLE, WOBBLE) for _ in "xy")
        self.radius = generator.uniform(*RADII)
        self.orbit, self.start = generator.uniform(*ORBIT), generator.uniform(0, math.tau)

    def at(self, time: float) -> tuple[float, float, float]:
        """Centre and radius in pixels at a time from 0 to 1."""
        if self.motion in CROSSINGS:
            reach = IMAGE_SIZE / 2 - MARGIN - self.radius
            along = IMAGE_SIZE / 2 + reach * (2 * time - 1) * sum(CROSSINGS[self.motion])
            is_level = CROSSINGS[self.motion][0] != 0
            return (along, self.y, self.radius) if is_level else (self.x, along, self.radius)
        if self.motion in ("clockwise", "counterclockwise"):
            turn = math.tau * time * (1 if self.motion == "clockwise" else -1)  # y points down
            dx, dy = math.cos(self.start + turn), math.sin(self.start + turn)
            return self.x + self.orbit * dx, self.y + self.orbit * dy, self.radius
        if self.motion in ("grows", "shrinks"):
            share = time if self.motion == "grows" else 1 - time
            return self.x, self.y, SMALLEST + (LARGEST - SMALLEST) * share
        return self.x, self.y, self.radius


def draw_clips(split: str = "train", size: int = 2000, seed: int = 0) -> list[Clip]:
    """Choose `size` different clips of one split at random, with captions. Section 2.1.

    The movers decide the split, as the objects of scenes do: none of the test occurs in training.

    Args:
        split: "train", "dev" or "test".
        size: Number of clips.
        seed: 0 to 2**32 - 1. The same three arguments give the same clips.

    Returns:
        `Clip` objects: `captions` are two in English and two in Chinese; `draw()` gives the frames.

    Raises:
        ValueError: An argument is out of range, or the split has fewer different clips.

    >>> clip = draw_clips("dev", size=4)[0]
    >>> len(clip.captions), len(clip.draw())
    (4, 13)
    """
    check_request(split, size, seed)
    generator = random.Random(f"clips {split} {size} {seed}")
    return [
        Clip(f"{split}-{seed}-{number:05}", movers, _captions(movers, generator))
        for number, movers in enumerate(choose_combinations(MOVERS, SHARES, split, size, generator))
    ]


def _captions(movers: tuple[Mover, ...], generator: random.Random) -> tuple[str, ...]:
    """Two captions in English, then two in Chinese."""
    captions = []
    for language in ("english", "chinese"):
        joints = PHRASINGS["clips"][language]["together" if len(movers) == 2 else "alone"]
        for joint in generator.sample(joints, 2):
            captions.append(joint.format(*(each.caption(language, generator) for each in movers)))
    return tuple(captions)

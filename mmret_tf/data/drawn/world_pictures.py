"""Pictures of the worlds: goods, news, scans of a chest, and geometric figures, drawn by options.

Each function takes the options of its world, as `phrasings.json` lists them, and a generator for
chance details: the same things are never drawn quite alike.
"""

import math
import random

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

CANVAS = 200  # pixels, side of a drawing
IMAGE_SIZE = 96  # pixels, side of the picture that is made of it
SMALLEST_WINDOW = 176  # pixels of the drawing that a picture shows, at least

GOODS = {  # outlines
    "cup": "45 55 135 55 127 160 53 160",
    "shirt": "70 45 90 55 110 55 130 45 175 75 155 105 138 92 138 165 62 165 62 92 45 105 25 75",
    "hat": "15 155 15 138 55 138 65 60 135 60 145 138 185 138 185 155",
    "bag": "40 85 160 85 172 165 28 165",
    "sock": "75 35 125 35 125 110 165 140 155 168 120 168 75 125",
    "lamp": "75 35 125 35 160 115 106 115 106 165 94 165 94 115 40 115",
}
HANDLES = {"cup": (105, 72, 168, 132), "bag": (62, 35, 138, 135)}
PERIOD = 30  # pixels from one stripe or dot to the next

COUNTS = {"one": 1, "two": 2, "three": 3}
GROUNDS = {  # colour of the ground, and outline of a house, hill, wave or tree
    "city": ("dimgrey", "0 0 30 0 30 60 0 60"),
    "mountains": ("rosybrown", "-25 50 20 -10 65 50"),
    "sea": ("royalblue", "0 60 20 40 40 60"),
    "desert": ("burlywood", "-40 60 20 30 80 60"),
    "forest": ("darkgreen", "0 60 18 0 36 60"),
}
FLYING = {  # colour and outline
    "balloon": ("crimson", "-7 20 -20 0 -14 -18 0 -24 14 -18 20 0 7 20 7 32 -7 32"),
    "plane": ("white", "-36 -14 -24 2 -2 0 -16 -16 8 0 28 4 8 8 -18 28 -6 8 -26 8"),
    "kite": ("orange", "0 -26 18 0 2 26 10 44 -2 26 -18 0"),
    "bird": ("black", "-30 -10 -12 -8 0 4 12 -8 30 -10 14 0 0 18 -14 0"),
}
LIGHTNING = "0 0 -20 40 -3 37 -15 75 20 27 3 29"

LUNGS = {"left": (22, 22, 88, 182), "right": (112, 22, 178, 182)}  # boxes
HEIGHTS = {"upper": 55, "middle": 92, "lower": 128}  # of a spot
RADII = {"small": 7, "medium": 12, "large": 19}  # of a spot

FIGURES = {  # outlines
    "acute triangle": "90 40 160 155 40 155",
    "right triangle": "45 40 160 155 45 155",
    "obtuse triangle": "30 65 170 150 80 150",
    "square": "48 48 152 48 152 152 48 152",
    "rhombus": "100 25 155 100 100 175 45 100",
    "parallelogram": "75 60 180 60 125 145 20 145",
    "trapezium": "75 60 125 60 170 145 30 145",
    "hexagon": "100 30 160 65 160 135 100 170 40 135 40 65",
}

Point = tuple[float, float]


def draw_good(
    kind: str, colour: str, pattern: str, second: str, generator: random.Random
) -> Image.Image:
    """An article of the shop. The pattern has a second colour; "plain" has none, "".

    >>> draw_good("hat", "red", "dots", "white", random.Random(0)).size
    (96, 96)
    """
    image, pencil = _canvas(_grey(150, 214, generator))
    if kind in HANDLES:
        pencil.arc(HANDLES[kind], 0, 360, colour, width=12)
    cloth, needle = _canvas(colour)
    start = generator.randint(12, 29)
    for x in range(start, CANVAS, PERIOD):
        if pattern == "stripes":
            needle.rectangle((0, x, CANVAS, x + 11), second)
        for y in range(start, CANVAS, PERIOD) if pattern == "dots" else ():
            _disc(needle, x, y, 8, second)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).polygon(_points(GOODS[kind]), 255)
    image.paste(cloth, mask=mask)
    return _window(image, generator)


def draw_news(
    number: str, thing: str, place: str, weather: str, time: str, generator: random.Random
) -> Image.Image:
    """One to three things that fly over a place.

    >>> draw_news("two", "kite", "sea", "snow", "night", random.Random(0)).size
    (96, 96)
    """
    image, pencil = _canvas("steelblue" if time == "night" else "lightskyblue")
    colour, outline = GROUNDS[place]
    pencil.rectangle((0, 165, CANVAS, CANVAS), colour)
    for x in range(generator.randint(-20, -1), CANVAS, 40):
        pencil.polygon(_points(outline, x, generator.randint(115, 139)), colour, "black")
    _draw_weather(pencil, weather, generator.randint(40, 159), generator)
    colour, outline = FLYING[thing]
    gap = CANVAS // (COUNTS[number] + 1)
    for x in range(gap, gap * COUNTS[number] + 1, gap):
        corners = _points(outline, x + generator.randint(-8, 8), generator.randint(75, 109))
        pencil.polygon(corners, colour, "black")
    if time == "night":
        image = ImageEnhance.Brightness(image).enhance(0.5)
    return _window(image, generator)


def _draw_weather(
    pencil: ImageDraw.ImageDraw, weather: str, x: int, generator: random.Random
) -> None:
    """The sun, or clouds and what falls from them."""
    if weather == "clear sky":
        _disc(pencil, x, 25, 17, "gold")
        return
    for shift in (-22, 0, 22):
        _disc(pencil, x + shift, 25, 18, "white" if weather == "clouds" else "grey")
    if weather == "lightning":
        pencil.polygon(_points(LIGHTNING, x, 35), "yellow")
    for _ in range(40):
        left, top = generator.randrange(190), generator.randrange(190)
        if weather == "rain":
            pencil.line((left, top, left - 6, top + 20), "mediumblue", 3)
        if weather == "snow":
            _disc(pencil, left, top, 4, "white")


def draw_scan(
    side: str, size: str, edge: str, fluid: str, heart: str, generator: random.Random
) -> Image.Image:
    """A chest with a spot in one lung, fluid below, and the heart. The left is on the left.

    >>> draw_scan("upper left", "large", "round", "no fluid", "large heart", random.Random(0)).size
    (96, 96)
    """
    image, pencil = _canvas(_grey(90, 119, generator))
    for name, lung in LUNGS.items():
        pencil.ellipse(lung, (35, 35, 35))
        if name in fluid or "both" in fluid:
            pencil.chord(lung, 30, 150, (130, 130, 130))
    width = 46 if heart == "large heart" else 24
    pencil.ellipse((100 - width, 85, 100 + width, 155), (150, 150, 150))
    height, lung = side.split()
    x = (55 if lung == "left" else 145) + generator.randint(-5, 5)
    y = HEIGHTS[height] + generator.randint(-4, 4)
    radius = RADII[size]
    if edge == "round":
        _disc(pencil, x, y, radius, "white")
    for turn in range(4) if edge == "spiky" else ():
        dx = 1.4 * radius * math.cos(turn * math.pi / 4)
        dy = 1.4 * radius * math.sin(turn * math.pi / 4)
        pencil.line((x - dx, y - dy, x + dx, y + dy), "white", 4)
    return _window(image.filter(ImageFilter.GaussianBlur(1)), generator)


def draw_figure(
    figure: str, part: str, inside: str, corners: str, lines: str, generator: random.Random
) -> Image.Image:
    """A geometric figure with an added part.

    >>> options = ("a circle inside", "shaded", "bare corners", "thin lines")
    >>> draw_figure("square", *options, random.Random(0)).size
    (96, 96)
    """
    image, pencil = _canvas(_grey(225, 255, generator))
    points = _points(FIGURES[figure], generator.uniform(-4, 4), generator.uniform(-4, 4))
    around = [*points, points[0]]
    middles = [
        ((x + next_x) / 2, (y + next_y) / 2)
        for (x, y), (next_x, next_y) in zip(points, around[1:], strict=True)
    ]
    pencil.polygon(points, "darkgrey" if inside == "shaded" else "white")
    pencil.line(around, "black", 9 if lines == "thick lines" else 3, "curve")
    if part == "its midpoints joined":
        pencil.polygon(middles, None, "black", 3)
    elif part == "a line from a corner":
        pencil.line([points[0], middles[1]], "black", 3)
    else:
        x, y = (sum(each) / len(points) for each in zip(*points, strict=True))
        _disc(pencil, x, y, 24 if part == "a circle inside" else 88, None, "black", 3)
    for x, y in points if corners == "dots at the corners" else ():
        _disc(pencil, x, y, 9, "black")
    return _window(image, generator)


DRAWINGS = {
    "shop": draw_good,
    "news": draw_news,
    "medicine": draw_scan,
    "education": draw_figure,
}


def _canvas(colour: str | tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A drawing in one colour, and a pencil for it."""
    image = Image.new("RGB", (CANVAS, CANVAS), colour)
    return image, ImageDraw.Draw(image)


def _grey(darkest: int, lightest: int, generator: random.Random) -> tuple[int, int, int]:
    return (generator.randint(darkest, lightest),) * 3


def _points(outline: str, x: float = 0, y: float = 0) -> list[Point]:
    """The corners of an outline that is moved by (x, y)."""
    numbers = [*map(int, outline.split())]
    return [(x + dx, y + dy) for dx, dy in zip(numbers[::2], numbers[1::2], strict=True)]


def _disc(
    pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, *colours: str | int | None
) -> None:
    pencil.ellipse((x - radius, y - radius, x + radius, y + radius), *colours)


def _window(image: Image.Image, generator: random.Random) -> Image.Image:
    """A random window of the drawing, as a photographer would choose one."""
    side = generator.randint(SMALLEST_WINDOW, CANVAS)
    left, top = (generator.randint(0, CANVAS - side) for _ in "xy")
    box = (left, top, left + side, top + side)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box)

"""Worlds (应用场景): drawn items for the uses of section 6, with captions in two languages.

Goods of a shop (电商), articles of the news (新闻), cases of medicine (医学), figures of education
(教育), and users of a social network (社交媒体).
"""

import functools
import io
import itertools
import random
import re
from dataclasses import dataclass

from PIL import Image

from mmret_tf.data.drawn.arrangements import PHRASINGS
from mmret_tf.data.drawn.combinations import check_request
from mmret_tf.data.drawn.world_pictures import DRAWINGS
from mmret_tf.data.splits import hash_split

WORDS = PHRASINGS["worlds"]
INTERESTS = tuple(WORDS["users"]["interests"])  # of users: kinds of goods, and what flies in news
MOST_POSTS = 4  # pictures of a user
HIGHEST_PRICE, MOST_STOCK = 59, 4  # of goods
# A gallery needs more items for the test than `hash_split` gives it.
SHARES = (*["train"] * 14, "dev", *["test"] * 5)
# News of the test: what an article has, and its number of pictures.
ARTICLES = (("one picture", 1), ("three pictures", 3), ("no picture", 0), ("no text", 1))

Options = tuple[str, ...]


def _is_possible(world: str, options: Options) -> bool:
    """Whether goods with these options exist: a pattern has a second colour, "plain" has none."""
    if world != "shop":
        return True
    _, colour, pattern, second = options
    return (pattern == "plain") == (second == "") and colour != second


COMBINATIONS: dict[str, list[Options]] = {
    world: [
        options
        for options in itertools.product(*WORDS[world]["options"].values())
        if _is_possible(world, options)
    ]
    for world in DRAWINGS
}
COMBINATIONS["users"] = [
    options for count in (1, 2) for options in itertools.combinations(INTERESTS, count)
]


@dataclass(frozen=True)
class WorldItem:
    """An item of a world: an article, a case, a figure or a user, with captions.

    Attributes:
        id: World, seed and number of the combination: "shop-0-0421".
        captions: Two in English, then two in Chinese. News of the test have one of each or none,
            and users have one of each.
        attributes: JSON values. "world" and "options" are always there, and each option under its
            name, such as "colour"; a user has "interests". Goods have "price" and "stock". News of
            the test have "kind" (one of `ARTICLES`), "headlines", which are not among the captions,
            and "illustrated".
        pictures: What each picture shows: a world, and options.
    """

    id: str
    captions: tuple[str, ...]
    attributes: dict
    pictures: tuple[tuple[str, Options], ...]

    def draw(self) -> list[Image.Image]:
        """The pictures: RGB, 96 x 96 pixels, the same at every call.

        >>> [picture.size for picture in draw_worlds("dev", size=1)[0].draw()]
        [(96, 96)]
        """
        return [
            DRAWINGS[world](*options, random.Random(f"{self.id}-{number}"))
            for number, (world, options) in enumerate(self.pictures)
        ]

    def encode(self) -> list[bytes]:
        """The pictures as PNG files."""
        files = [io.BytesIO() for _ in self.pictures]
        for file, picture in zip(files, self.draw(), strict=True):
            picture.save(file, "PNG", compress_level=1)
        return [file.getvalue() for file in files]


def draw_worlds(split: str = "train", size: int = 2000, seed: int = 0) -> list[WorldItem]:
    """Draw the items of all worlds in one split, with captions. Section 6.

    Every combination of a world's options is one item. The combination decides the split: 70 % are
    "train", 5 % "dev" and 25 % "test"; a kind of goods with its pattern goes as a whole, in all its
    colours. Users are in the test alone, and post what other worlds show there.

    Args:
        split: "train", "dev" or "test".
        size: Largest number of items. If the split has more, `size` of them are chosen at random;
            if it has fewer, all are there.
        seed: 0 to 2**32 - 1. It decides details of the drawings, prices, and the posts of users,
            but not the combinations.

    Returns:
        `WorldItem` objects, world by world; `draw()` gives the pictures.

    Raises:
        ValueError: An argument is out of range.

    >>> [len(draw_worlds(split)) for split in ("train", "dev", "test")]
    [1265, 91, 563]
    >>> article = draw_worlds("test")[100]
    >>> article.captions[::2], article.attributes["price"]
    (('a purple hat, plain', '紫色的帽子，纯色'), 46)
    """
    check_request(split, size, seed)
    items = [item for world in COMBINATIONS for item in _draw_world(world, split, seed)]
    generator = random.Random(f"worlds {split} {size} {seed}")
    rows = generator.sample(range(len(items)), min(size, len(items)))
    return [items[row] for row in sorted(rows)]


def split_of(world: str, options: Options) -> str:
    """The split of a combination, the same in every process and release.

    Args:
        world: Its name.
        options: The combination.

    >>> split_of("users", ("hat", "kite"))
    'test'
    """
    if world == "users":
        return "test"
    if world == "shop":
        kind, _, *pattern = options
        options = (kind, *pattern)
    return hash_split(" | ".join((world, *options)), SHARES)


@functools.cache
def _of_split(world: str, split: str) -> dict[int, Options]:
    """The combinations of one split by their numbers."""
    numbered = enumerate(COMBINATIONS[world])
    return {number: options for number, options in numbered if split_of(world, options) == split}


def _draw_world(world: str, split: str, seed: int) -> list[WorldItem]:
    """The items of one world in one split."""
    items = []
    for place, (number, options) in enumerate(_of_split(world, split).items()):
        key = f"{world}-{seed}-{number:04}"
        generator = random.Random(key)
        known = {"world": world, "options": list(options)}
        if world == "users":
            known["interests"] = list(options)
            items.append(WorldItem(key, _bio(options), known, _posts(options, generator)))
            continue
        captions, pictures = _captions(world, options), 1
        known |= dict(zip(WORDS[world]["options"], options, strict=True))
        if world == "shop":
            known["price"] = generator.randint(5, HIGHEST_PRICE)
            known["stock"] = generator.randint(0, MOST_STOCK)
        if world == "news" and split == "test":
            kind, pictures = ARTICLES[place % len(ARTICLES)]
            known |= {"kind": kind, "headlines": list(captions[1::2]), "illustrated": pictures > 0}
            captions = () if kind == "no text" else captions[::2]
        items.append(WorldItem(key, captions, known, ((world, options),) * pictures))
    return items


def _captions(world: str, options: Options) -> tuple[str, ...]:
    """Two captions in English, then two in Chinese."""
    words = WORDS[world]
    english = dict(zip(words["options"], options, strict=True))
    chinese = {name: words["options"][name][option] for name, option in english.items()}
    if english.get("number", "one") != "one":
        english["thing"] += "s"
    captions = []
    for pattern in words["english"]:
        text = " ".join(pattern.format(**english).split())  # goods of one colour lack a word
        captions.append(re.sub(r"\ba (?=[aeiou])", "an ", text))
    return (*captions, *(pattern.format(**chinese) for pattern in words["chinese"]))


def _bio(interests: Options) -> tuple[str, ...]:
    """How users describe themselves: a line in English, and one in Chinese."""
    words, count = WORDS["users"], str(len(interests))
    names = [words["interests"][each] for each in interests]
    return words["english"][count].format(*interests), words["chinese"][count].format(*names)


def _posts(interests: Options, generator: random.Random) -> tuple[tuple[str, Options], ...]:
    """What a user shows: one to four pictures, at least one for each interest."""
    posts = []
    for number in range(generator.randint(len(interests), MOST_POSTS)):
        interest = interests[number % len(interests)]
        world = "shop" if interest in WORDS["shop"]["options"]["kind"] else "news"
        shown = [options for options in _of_split(world, "test").values() if interest in options]
        posts.append((world, generator.choice(shown)))
    return tuple(posts)

"""Inspection of a collection (数据集检查): what it holds, and what of it would spoil an evaluation.

Section 2.1 of the document. `copies` finds the pictures that two splits have in common.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmret_tf._checks import checked_count
from mmret_tf._machine import cores
from mmret_tf.data.collection import Collection
from mmret_tf.data.decoders.pictures import read_picture
from mmret_tf.data.decoders.text import split_words
from mmret_tf.data.decoders.text_cards import HAN
from mmret_tf.data.progress import Progress
from mmret_tf.data.sources import Source
from mmret_tf.evaluation.copies import (
    COLUMNS,
    ROWS,
    SIDE,
    Looks,
    copies_across_splits,
    mean_colours,
)

LATIN = re.compile("[A-Za-z]")

# Examples of each reason for which entries were set aside.
EXAMPLES = 3

# Pictures that wait for a thread at once, and captions that are split at once.
QUEUED, CAPTIONS_AT_ONCE = 1024, 2**16

# Reading more pictures than this shows its progress.
PROGRESS_FROM = 1000

# What a reason says of one entry alone: names in quotes, and numbers.
DETAILS = re.compile(r"(?<!\w)'[^']*'(?!\w)|\d+")


class Picture(NamedTuple):
    """What one picture tells: its format, upright size, content's digest and mean colours."""

    format: str
    width: int
    height: int
    digest: str
    cells: np.ndarray


def inspect_collection(collection: Collection, samples: int = 12) -> dict[str, Any]:
    """Report what a collection holds. Sections 2.1 and 3.1(1).

    Every picture is read and decoded once, in several threads.

    Args:
        collection: The items. `Pairs` count a row for each picture.
        samples: Number of items that are shown, evenly spaced over the collection.

    Returns:
        Values that JSON can hold. A spread is {"min", "median", "mean", "max"}, or `None` of
        nothing.

        - "layout": form of the files, such as "Flickr8k: captions.txt"; "" in memory.
        - "items": their number; "splits": the number of items in each.
        - "modalities": for each, the number of "items" that have it and of "sources".
        - "captions_per_image": spread over the items that have an image.
        - "languages": number of captions in "chinese" (Han characters), "english" (Latin letters),
          "both", and "other" (neither).
        - "caption_words": spread of the lengths of captions in words, as the text tower counts
          them: each Chinese character is one.
        - "pictures": the number that was "read" and that was "unreadable"; "formats" with counts;
          spreads of "width" and "height" in pixels, upright; the number of "flat" pictures, which
          have nearly one colour and are copies only if their files are the same.
        - "set_aside": for each reason, most frequent first, the "count" and "examples" as [place,
          reason in full].
        - "copies": pictures of one split that another has as well, see `copies_across_splits`;
          "leaks": their number for each two splits, and of those that are "exact".
        - "samples": items as {"id", "split", "image", "captions"}, with the first caption in each
          language.

    Raises:
        ValueError: `samples` is below 1.

    >>> import numpy as np
    >>> from mmret_tf.data.decoders.pictures import encode_png
    >>> steps = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8), (20, 50))  # 50 wide, 20 high
    >>> sources = {"image": [[encode_png(steps)]] * 2, "text": [["a ramp", "斜坡"], ["a ramp"]]}
    >>> report = inspect_collection(Collection(["a", "b"], sources, splits=["train", "test"]))
    >>> report["splits"], report["languages"], report["pictures"]["width"]["max"]
    ({'train': 1, 'test': 1}, {'english': 2, 'chinese': 1}, 50)
    >>> report["leaks"]
    [{'split': 'test', 'other_split': 'train', 'pictures': 1, 'exact': 1}]
    """
    samples = checked_count(samples, "samples")
    images = _images_of(collection)
    owners = [row for row, each in enumerate(images) for _ in each]
    found = _read([source for each in images for source in each])
    rows = [row for row, picture in zip(owners, found, strict=True) if picture]
    pictures = [picture for picture in found if picture]
    looks = Looks(
        np.array([picture.digest for picture in pictures], object),
        np.array([picture.cells for picture in pictures], np.uint8).reshape(-1, ROWS, COLUMNS, 3),
    )
    copies = copies_across_splits(
        looks,
        [collection.ids[row] for row in rows],
        [collection.splits[row] for row in rows],
    )
    sizes = {
        "read": len(pictures),
        "unreadable": found.count(None),
        "flat": int(looks.are_flat.sum()),
        "formats": _counts(picture.format for picture in pictures),
        "width": _spread([picture.width for picture in pictures]),
        "height": _spread([picture.height for picture in pictures]),
    }
    return {
        "layout": collection.layout,
        "items": len(collection),
        "splits": _counts(collection.splits),
        "modalities": {
            name: {"items": sum(map(bool, each)), "sources": sum(map(len, each))}
            for name, each in collection.sources.items()
        },
        **_texts(collection),
        "pictures": sizes,
        "set_aside": _by_reason(collection.quarantined),
        "leaks": _leaks(copies),
        "copies": copies,
        "samples": _samples(collection, samples),
    }


def language_of(caption: str) -> str:
    """Language of a caption by its characters: "chinese", "english", "both" or "other".

    >>> [language_of(text) for text in ("a dog", "一只狗", "一件 T 恤", "собака")]
    ['english', 'chinese', 'both', 'other']
    """
    has_han, has_latin = bool(HAN.search(caption)), bool(LATIN.search(caption))
    if has_han:
        return "both" if has_latin else "chinese"
    return "english" if has_latin else "other"


def _images_of(collection: Collection) -> list[list[Source]]:
    return collection.sources.get("image", [[]] * len(collection))


def _read(sources: Sequence[Source]) -> list[Picture | None]:
    """Read and decode pictures in several threads; `None` for one that cannot be decoded."""
    progress = Progress(len(sources), "picture") if len(sources) > PROGRESS_FROM else None
    pictures: list[Picture | None] = []
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(sources), QUEUED):
            pictures += pool.map(_picture_of, sources[start : start + QUEUED])
            if progress is not None:
                progress.update(len(pictures))
    return pictures


def _picture_of(source: Source) -> Picture | None:
    try:
        contents = source.read()
        kind, (width, height), thumbnail = read_picture(contents, SIDE)
    except ValueError:
        return None
    digest = hashlib.sha256(contents).hexdigest()
    return Picture(kind, width, height, digest, mean_colours(thumbnail))


def _texts(collection: Collection) -> dict[str, Any]:
    """Number, languages and lengths of captions."""
    has_image = list(map(bool, _images_of(collection)))
    of_items = collection.captions
    captions = [caption for each in of_items for caption in each]
    lengths: list[int] = []
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        words = split_words(tf.constant(captions[start : start + CAPTIONS_AT_ONCE], tf.string))
        lengths += words.row_lengths().numpy().tolist()
    counts = [len(each) for each, is_used in zip(of_items, has_image, strict=True) if is_used]
    return {
        "captions_per_image": _spread(counts),
        "languages": _counts(map(language_of, captions)),
        "caption_words": _spread(lengths),
    }


def _by_reason(quarantined: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The entries that were set aside, by reason."""
    groups = defaultdict(list)
    for place, reason in quarantined:
        groups[_kind(reason)].append([place, reason])
    return [
        {"reason": kind, "count": len(each), "examples": each[:EXAMPLES]}
        for kind, each in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _kind(reason: str) -> str:
    """What reasons of one kind have in common: no names, numbers, places or values."""
    kind = re.split(r": | \(|[,;] got ", reason)[0]
    return DETAILS.sub("…", kind)


def _leaks(copies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The number of copies of each two splits."""
    counts = Counter((copy["split"], copy["other_split"]) for copy in copies)
    exact = Counter((copy["split"], copy["other_split"]) for copy in copies if copy["is_exact"])
    return [
        {"split": split, "other_split": other, "pictures": count, "exact": exact[split, other]}
        for (split, other), count in counts.items()
    ]


def _samples(collection: Collection, n: int) -> list[dict[str, Any]]:
    """Evenly spaced items, each with its first caption in each language; those with an image and a
    caption, if there are any."""
    images, captions = _images_of(collection), collection.captions
    both = [row for row in range(len(collection)) if images[row] and captions[row]]
    rows = np.array(both or range(len(collection)), np.int64)
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64)
    return [
        {
            "id": collection.ids[row],
            "split": collection.splits[row],
            "image": images[row][0].record if images[row] else None,
            "captions": _first_in_each_language(captions[row]),
        }
        for row in rows[places]
    ]


def _first_in_each_language(captions: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for caption in captions:
        first.setdefault(language_of(caption), caption)
    return list(first.values())


def _counts(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(Counter(values).most_common())


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    """Smallest, median, mean and largest of some numbers."""
    if not values:
        return None
    return {
        "min": min(values),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "max": max(values),
    }

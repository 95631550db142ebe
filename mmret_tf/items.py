"""Collections whose items have images, texts, or both, any number of each (异构数据).

Section 7.2 of the tutorial document. An item is what a search finds; a `PairDataset` is made of
those that have both, and is what a `DualEncoder` trains on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmret_tf.datasets import PairDataset, check_lists, image_rows
from mmret_tf.loading import load_columns
from mmret_tf.splits import count_splits, rows_of_split


@dataclass(repr=False)
class ItemDataset:
    """Items and what each has; all lists have one entry an item, and pixels stay on disk.
    Section 7.2.

    Args:
        ids: unique names.
        image_paths: for each item its image files; an empty list for one of text alone.
        captions: for each item its texts; an empty list for one of images alone.
        attributes: for each item what else is known of it, often `{}`.
        splits: "train", "dev" or "test"; "" for an item in no split.
        quarantined: what was put aside on loading: (path or place, reason).

    Raises:
        ValueError: the lists differ in length, an id comes twice, or an item has neither an image
            nor a caption.

    >>> files = [[Path("a.png"), Path("b.png")], []]
    >>> items = ItemDataset(["a", "b"], files, [["red"], ["蓝"]], [{}, {}], ["dev", "dev"])
    >>> items
    ItemDataset(2 items, 2 images, 2 captions, splits: dev (2), 0 put aside)
    >>> items.has_pairs, items.is_plain  # "a" is a pair, "b" is not
    (True, False)
    >>> items.pairs().ids, items.subset([1]).captions, len(items.split("dev"))
    (['a#0', 'a#1'], [['蓝']], 2)
    """

    ids: list[str]
    image_paths: list[list[Path]]
    captions: list[list[str]]
    attributes: list[dict[str, Any]]
    splits: list[str]
    quarantined: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_lists(
            [self.ids, self.image_paths, self.captions, self.attributes, self.splits],
            "ids, image_paths, captions, attributes and splits must have one entry an item",
        )
        for key, *parts in zip(self.ids, self.image_paths, self.captions, strict=True):
            if any(isinstance(part, (str, os.PathLike)) for part in parts):
                raise ValueError(f"images and captions of an item must be lists; {key!r} has one")
            if not any(parts):
                raise ValueError(f"every item must have an image or a caption; {key!r} has none")

    def __len__(self) -> int:
        """The number of items."""
        return len(self.ids)

    def __repr__(self) -> str:
        images, captions = (sum(map(len, each)) for each in (self.image_paths, self.captions))
        return (
            f"ItemDataset({len(self)} items, {images} images, {captions} captions, "
            f"splits: {count_splits(self.splits)}, {len(self.quarantined)} put aside)"
        )

    @property
    def has_pairs(self) -> bool:
        """Whether an item has both an image and a caption."""
        return any(map(all, zip(self.image_paths, self.captions, strict=True)))

    @property
    def is_plain(self) -> bool:
        """Whether every item is one image with captions: `pairs` has a row an item then."""
        return all(self.captions) and all(len(paths) == 1 for paths in self.image_paths)

    def subset(self, rows: Iterable[int]) -> ItemDataset:
        """The items of these rows, in this order. `quarantined` stays that of the whole.

        Args:
            rows: row numbers from 0.

        Raises:
            IndexError: there is no such row.
        """
        rows = list(rows)
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            image_paths=[self.image_paths[row] for row in rows],
            captions=[self.captions[row] for row in rows],
            attributes=[self.attributes[row] for row in rows],
            splits=[self.splits[row] for row in rows],
        )

    def split(self, name: str) -> ItemDataset:
        """The items of one split.

        Args:
            name: "train", "dev" (or "val", "validation") or "test".

        Raises:
            ValueError: there are none; the message names the splits that there are.
        """
        return self.subset(rows_of_split(self.splits, name, "items"))

    def pairs(self) -> PairDataset:
        """The images of the items that have captions, a row each; what a `DualEncoder` trains on.

        The images of one item are one group, with the ids "item#0", "item#1" and so on; an item of
        one image keeps its id.

        Raises:
            ValueError: no item has both an image and a caption.
        """
        if not self.has_pairs:
            raise ValueError(
                f"none of the {len(self)} items has both an image and a caption: there is nothing "
                "to learn from how they belong together"
            )
        return image_rows(
            self.ids,
            self.image_paths,
            self.captions,
            self.attributes,
            self.splits,
            self.quarantined,
        )


def load_items(
    source: str | os.PathLike[str],
    split: str | None = None,
    size: int = 2000,
    seed: int = 0,
) -> ItemDataset:
    """Load a collection in which not every item has both an image and a text. Section 7.2.

    It knows the layouts of `load_pairs`. In `captions.jsonl` a row may also be

    - an item of several images: `{"id": "dog", "images": ["1.png", "2.png"], "captions": ["a
      dog"]}`;
    - one of text alone, which needs an id: `{"id": "note", "captions": ["a dog", "一只狗"]}`;
    - one of images alone: `{"image": "3.png"}`, or the same with `images`.

    What cannot be used is put aside in `quarantined`, with its reason, and a warning counts it. Of
    several images the others stay; an item whose images are all unusable is put aside whole, and
    does not become one of text. So are image files that no row names.

    Args:
        source, split, size, seed: as for `load_pairs`.

    Returns:
        An `ItemDataset`; its `pairs()` are what a `DualEncoder` trains on.

    Raises:
        ValueError: as for `load_pairs`.

    >>> items = load_items("scenes", split="dev", size=3)
    >>> len(items), items.is_plain, len(items.pairs())
    (3, True, 3)
    """
    return ItemDataset(**load_columns(source, split, size, seed, needs_both=False))


def caption_items(pairs: PairDataset) -> ItemDataset:
    """Each caption as an item of text alone: a gallery for image-to-text and text-to-text search.
    Section 6.

    Args:
        pairs: images with captions; where several show one item, its captions count once.

    Returns:
        Items with the ids "image#0", "image#1" and so on, by the captions of each image, and the
        attributes and split of their image.

    >>> pairs = PairDataset(["a"], [Path("a.png")], [["red", "红"]], [{}], ["dev"])
    >>> caption_items(pairs).ids, caption_items(pairs).captions
    (['a#0', 'a#1'], [['red'], ['红']])
    """
    of_items = pairs.subset(pairs.first_rows())
    rows = of_items.caption_to_image().tolist()
    texts = [
        (f"{key}#{number}", caption)
        for key, captions in zip(of_items.ids, of_items.captions, strict=True)
        for number, caption in enumerate(captions)
    ]
    return ItemDataset(
        ids=[key for key, _ in texts],
        image_paths=[[] for _ in texts],
        captions=[[caption] for _, caption in texts],
        attributes=[of_items.attributes[row] for row in rows],
        splits=[of_items.splits[row] for row in rows],
        quarantined=pairs.quarantined,
    )

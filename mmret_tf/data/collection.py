"""A collection (数据集): items with any number of sources in each modality. Content stays on disk.

Sections 2.1 and 7.2 of the document. A search finds items; an encoder trains on the `pairs` that
are drawn from them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmret_tf._checks import one_line
from mmret_tf.data.cleaning import check_sources
from mmret_tf.data.items import Item, item_of
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import Source
from mmret_tf.data.splits import count_splits, rows_of_split

if TYPE_CHECKING:
    from mmret_tf.data.pairs import Pairs


class Collection:
    """Items and their sources; all lists have one entry for each item. Sections 2.1 and 7.2.

    Args:
        ids: Unique names.
        sources: For each modality, a list of sources for each item: paths, texts, or any `Source`.
            It is empty for an item that lacks the modality.
        attributes: Further facts about each item, as JSON values; `{}` by default.
        splits: "train", "dev" or "test" for each item, or "" by default.
        quarantined: Entries that were set aside on loading, as (path or place, reason).

    Attributes:
        layout: Form of the files that were loaded, such as "Flickr8k: captions.txt"; else "".
        is_checked: False if files were not decoded on loading, and some may be damaged.

    Raises:
        ValueError: The lists differ in length, an id occurs twice, an item has no source at all,
            or a modality is unknown.

    >>> files = [["a.png", "b.png"], []]
    >>> items = Collection(["a", "b"], {"image": files, "text": [["red"], ["蓝"]]})
    >>> items
    Collection(2 items, 2 image, 2 text, splits: no split (2), 0 set aside)
    >>> items.captions, items.subset([1]).ids
    ([['red'], ['蓝']], ['b'])
    >>> items.pairs().ids  # a row for each image that has a caption
    ['a#0', 'a#1']
    """

    def __init__(
        self,
        ids: Sequence[str],
        sources: Mapping[str, Iterable[Sequence[Any]]],
        attributes: Sequence[dict[str, Any]] | None = None,
        splits: Sequence[str] | None = None,
        quarantined: Sequence[tuple[str, str]] = (),
    ):
        self.ids = list(ids)
        n = len(self.ids)
        self.sources: dict[str, list[list[Source]]] = {
            name: [get_modality(name).sources(each) for each in given]
            for name, given in sources.items()
        }
        self.attributes = [{} for _ in self.ids] if attributes is None else list(attributes)
        self.splits = [""] * n if splits is None else list(splits)
        self.quarantined = list(quarantined)
        self.layout = ""
        self.is_checked = True
        lists = {**self.sources, "attributes": self.attributes, "splits": self.splits}
        if wrong := {name: len(each) for name, each in lists.items() if len(each) != n}:
            raise ValueError(f"there are {n} ids, and every list must have as many; got {wrong}")
        if len(set(self.ids)) != n:
            twice = Counter(self.ids).most_common(1)[0][0]
            raise ValueError(f"ids must be unique; {twice!r} occurs more than once")
        for key, *each in zip(self.ids, *self.sources.values(), strict=True):
            if not any(each):
                names = " or ".join(self.sources) or "source"
                raise ValueError(f"every item must have a source; {key!r} has no {names}")

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[Mapping[str, Any]], image_column: str = "", caption_column: str = ""
    ) -> "Collection":
        """The items of a dataset in memory. Section 2.1.

        Args:
            dataset: Rows as dicts: a `tf.data.Dataset` (TensorFlow Datasets gives such), a Hugging
                Face `Dataset`, or a list. A row has an image (PIL image, array or encoded bytes),
                a caption or a list of them, or both; "id" and "split" are known, and other numbers
                and texts are attributes.
            image_column: Column of the images, if its name is unusual.
            caption_column: Column of the captions, if its name is unusual.

        Returns:
            The usable items; rows that cannot be used are in `quarantined`.

        Raises:
            ValueError: No row is usable.

        >>> import numpy as np
        >>> rows = [{"image": np.zeros((2, 2, 3), np.uint8), "caption": "black", "year": 2019}]
        >>> items = Collection.from_dataset(rows)
        >>> items.ids, items.captions, items.attributes
        (['0'], [['black']], [{'year': 2019}])
        """
        from mmret_tf.data.loading import collect

        return collect(dataset, image_column, caption_column)

    def __len__(self) -> int:
        """The number of items."""
        return len(self.ids)

    def __repr__(self) -> str:
        counts = "".join(f"{sum(map(len, s))} {name}, " for name, s in self.sources.items())
        return (
            f"{type(self).__name__}({len(self)} items, {counts}"
            f"splits: {count_splits(self.splits)}, {len(self.quarantined)} set aside)"
        )

    @property
    def captions(self) -> list[list[str]]:
        """The texts of each item."""
        texts = self.sources.get("text", [[]] * len(self))
        return [[source.record for source in each] for each in texts]

    @property
    def image_paths(self) -> list[list[Path]]:
        """The image files of each item."""
        images = self.sources.get("image", [[]] * len(self))
        return [[Path(source.name) for source in each] for each in images]

    def sources_of(self, row: int) -> dict[str, list[Source]]:
        """The sources of one item, by modality.

        Args:
            row: Its place, from 0.
        """
        return {name: each[row] for name, each in self.sources.items()}

    def records(self) -> list[Item]:
        """The record of each item, as a search result carries it."""
        return [
            item_of(key, self.sources_of(row), self.attributes[row])
            for row, key in enumerate(self.ids)
        ]

    def first_rows(self) -> list[int]:
        """One row an item: all of them here, and the first of each group in `Pairs`."""
        return list(range(len(self)))

    def subset(self, rows: Iterable[int]) -> "Collection":
        """The items of these rows, in this order. `quarantined` stays that of the whole.

        Args:
            rows: Row numbers from 0.

        Raises:
            IndexError: A row is out of range.
        """
        return self._rows(list(rows))

    def _rows(self, rows: list[int], **more: Any) -> "Collection":
        chosen = type(self)(
            [self.ids[row] for row in rows],
            {name: [each[row] for row in rows] for name, each in self.sources.items()},
            [self.attributes[row] for row in rows],
            [self.splits[row] for row in rows],
            self.quarantined,
            **more,
        )
        chosen.layout, chosen.is_checked = self.layout, self.is_checked
        return chosen

    def checked(self, rows: Iterable[int] | None = None) -> "Collection":
        """The items with those of their files that can be decoded; the others are set aside.

        For a collection that was loaded with `check=False`, or whose files may have changed.

        Args:
            rows: Rows whose files are decoded, if the others are known to be whole; all by default.

        Returns:
            The usable items. An item that had files, and has none left, is set aside as a whole.

        Raises:
            ValueError: No item is usable.

        >>> Collection(["a", "b"], {"image": [["gone.png"], []], "text": [[], ["red"]]}).checked()
        Collection(1 items, 0 image, 1 text, splits: no split (1), 1 set aside)
        """
        files = [
            (row, name, source)
            for row in (range(len(self)) if rows is None else rows)
            for name, each in self.sources.items()
            if get_modality(name).is_file
            for source in each[row]
        ]
        reasons = check_sources([(name, source) for _, name, source in files], len(files))
        broken = {file: why for file, why in zip(files, reasons, strict=True) if why}
        left = {
            row: {
                name: [each for each in sources if (row, name, each) not in broken]
                for name, sources in self.sources_of(row).items()
            }
            for row, _, _ in broken
        }
        kept = [row for row in range(len(self)) if row not in left or self._is_usable(left[row])]
        if not kept:
            raise ValueError(f"nothing usable: all {len(self)} items were set aside")
        chosen = self.subset(kept)
        for place, row in enumerate(kept):
            for name, sources in left.get(row, {}).items():
                chosen.sources[name][place] = sources
        chosen.quarantined += [
            (one_line(each.name), one_line(why)) for (*_, each), why in broken.items()
        ]
        chosen.is_checked = True
        return chosen

    def _is_usable(self, sources: Mapping[str, list[Source]]) -> bool:
        """Whether an item that lost a file can stay with these sources."""
        return any(each for name, each in sources.items() if get_modality(name).is_file)

    def split(self, name: str) -> "Collection":
        """The items of one split.

        Args:
            name: "train", "dev" (or "val", "validation") or "test".

        Raises:
            ValueError: The split has no items. The message lists the splits that exist.
        """
        return self.subset(rows_of_split(self.splits, name, "items"))

    def of_modalities(self, *names: str) -> "Collection":
        """The items that have files of some modalities, without their other files; texts stay.

        Args:
            names: Of the modalities.

        Raises:
            ValueError: No item has any of them.

        >>> sources = {"image": [["a.png"], ["b.png"]], "audio": [["a.wav"], []]}
        >>> sounds = Collection(["a", "b"], sources).of_modalities("audio")
        >>> sounds.ids, list(sounds.sources)
        (['a'], ['audio'])
        """
        given = [self.sources[name] for name in names if name in self.sources]
        rows = [row for row, each in enumerate(zip(*given, strict=True)) if any(each)]
        if not rows:
            raise ValueError(f"none of the {len(self)} items has {' or '.join(names)}")
        kept = self.subset(rows)
        for name in list(kept.sources):
            if get_modality(name).is_file and name not in names:
                del kept.sources[name]
        return kept

    def has_pairs(self, first: str = "image", second: str = "text") -> bool:
        """Whether an item has both modalities.

        Args:
            first, second: Names of the modalities.
        """
        both = (self.sources.get(name, [[]] * len(self)) for name in (first, second))
        return any(map(all, zip(*both, strict=True)))

    def pairs(self, first: str = "image", second: str = "text") -> "Pairs":
        """A row for each source of one modality with the item's sources of another (图文对).

        The rows of one item are a group, with the ids "item#0", "item#1" and so on; the row of an
        item with a single source keeps its id. Items that lack one of the two are set aside.

        Args:
            first, second: Names of the modalities.

        Raises:
            ValueError: No item has both.
        """
        from mmret_tf.data.pairs import draw_pairs

        return draw_pairs(self, first, second)


def caption_items(collection: Collection) -> Collection:
    """Each caption as an item of text alone: a gallery for image-to-text and text-to-text search.
    Section 6.

    Args:
        collection: Items with captions. In `Pairs`, the rows of one item count once.

    Returns:
        Items with the ids "item#0", "item#1" and so on, and the attributes and split of their item.

    >>> pairs = Collection(["a"], {"image": [["a.png"]], "text": [["red", "红"]]}).pairs()
    >>> caption_items(pairs).ids, caption_items(pairs).captions
    (['a#0', 'a#1'], [['red'], ['红']])
    """
    of_items = collection.subset(collection.first_rows())
    texts = [
        (row, f"{key}#{number}", source)
        for row, key in enumerate(of_items.ids)
        for number, source in enumerate(of_items.sources.get("text", [[]] * len(of_items))[row])
    ]
    return Collection(
        [key for _, key, _ in texts],
        {"text": [[source] for *_, source in texts]},
        [of_items.attributes[row] for row, *_ in texts],
        [of_items.splits[row] for row, *_ in texts],
        collection.quarantined,
    )

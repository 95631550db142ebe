"""What the service answers (服务): a searcher that follows the gallery on disk."""

import functools
import io
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mmret_tf._checks import printable
from mmret_tf.data.decoders.text_cards import HAN
from mmret_tf.data.items import Item
from mmret_tf.data.modalities import file_modalities, get_modality
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.gallery import playable, thumbnail
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.ranking.results import SearchResults
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.searcher import Searcher

# An attribute with more values than this is no filter of the page.
MOST_VALUES = 50
# Example queries of each kind, with and without Han characters.
EXAMPLES = 3
# Thumbnails that are kept, about 10 KB each.
KEPT_THUMBNAILS = 1000
# Sounds and clips that are kept, up to 320 KB each.
KEPT_MEDIA = 64


class SearchService:
    """A searcher, its items and their thumbnails, for any number of threads.

    Args:
        searcher: What answers.
        name: Name of the gallery.

    Attributes:
        searcher, name: As given; the service of a run replaces the searcher.
        problem: Why the gallery on disk could not be opened, and the older one is kept; or "".
    """

    def __init__(self, searcher: Searcher, name: str = "gallery"):
        self.searcher = searcher
        self.name = name
        self.problem = ""
        self._run: Run | None = None
        self._stamp: tuple = ()
        self._opening = threading.Lock()
        self._described: tuple[Mapping | None, dict[str, Any]] = (None, {})
        self._thumbnail = functools.lru_cache(KEPT_THUMBNAILS)(_jpeg)
        self._media = functools.lru_cache(KEPT_MEDIA)(_played)

    @classmethod
    def open(
        cls, run: Run, encoder: Encoder | None = None, reranker: Reranker | None = None
    ) -> "SearchService":
        """The service of a run.

        Another gallery in its folder, as `mmret sync` makes it, is opened before the next answer.

        Args:
            run, encoder, reranker: As for `Run.open_searcher`, also for the errors.
        """
        stamp = run.gallery_stamp()
        service = cls(run.open_searcher(encoder, reranker), run.folder.resolve().name)
        service._run, service._stamp = run, stamp
        return service

    def warm_up(self) -> None:
        """Let TensorFlow prepare its graphs, so that the first visitor does not wait for that."""
        for name in self.searcher.encoder.modalities:
            if (sample := get_modality(name).sample) is not None:
                self.searcher.search(**{name: sample}, k=1)

    def answer(self, queries: Sequence[Mapping[str, Any]]) -> list[SearchResults | ValueError]:
        """Search for several queries at once.

        Args:
            queries: As for `Searcher.search_batch`.

        Returns:
            The results of each query, or what is wrong with it.
        """
        self.follow()
        searcher = self.searcher
        try:
            return searcher.search_batch(queries)
        except ValueError as error:
            if len(queries) == 1:
                return [error]
        return [answer for query in queries for answer in self.answer([query])]

    def follow(self) -> None:
        """Open the gallery on disk if it is another than the present one."""
        if self._run is None or self._run.gallery_stamp() == self._stamp:
            return
        with self._opening:
            stamp = self._run.gallery_stamp()
            if stamp == self._stamp:  # another thread opened it
                return
            try:
                last = self.searcher
                self.searcher = self._run.open_searcher(last.encoder, last.reranker)
                self.problem = ""
            except ValueError as error:
                self.problem = printable(str(error))
            self._stamp = stamp
            self._thumbnail.cache_clear()
            self._media.cache_clear()

    def item(self, key: str) -> Item:
        """The item with an id, also if the ids are integers; KeyError if there is none."""
        items = self.searcher.items
        return items[int(key) if key not in items and key.isdecimal() else key]

    def thumbnail(self, item: Item, side: int) -> bytes:
        """The picture of an item as a JPEG file, a square of `side` pixels."""
        return self._thumbnail(_hashable(item), side)

    def media(self, item: Item, modality: str | None = None) -> tuple[str, bytes] | None:
        """What plays of an item, as `mmret_tf.ranking.gallery.playable`."""
        return self._media(_hashable(item), modality)

    @property
    def files(self) -> list[str]:
        """The modalities of files that the encoder embeds."""
        known = self.searcher.encoder.modalities
        return [each.name for each in file_modalities() if each.name in known]

    def describe(self) -> dict[str, Any]:
        """What the page shows before a search: size, modalities, filters and example queries."""
        searcher = self.searcher
        items, description = self._described
        if items is not searcher.items:  # looking at 100,000 items takes 0.3 seconds
            items = searcher.items
            description = {
                "run": self.name,
                "size": len(searcher.index),
                "modalities": searcher.encoder.modalities,
                "suffixes": {name: get_modality(name).suffixes for name in self.files},
                "attributes": filters_of([item["attributes"] for item in items.values()]),
                "examples": examples_of(
                    caption for item in items.values() for caption in item["captions"]
                ),
            }
            self._described = items, description
        return description


def filters_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The attributes by which a gallery can be filtered.

    Args:
        records: The attributes of each item.

    Returns:
        A "name", and "min" and "max" if all values are numbers, or the different "values" if they
        are few. An attribute that holds objects is no filter.

    >>> filters_of([{"colour": "red", "price": 2}, {"colour": ["blue", "red"], "price": 1.5}])
    [{'name': 'colour', 'values': ['blue', 'red']}, {'name': 'price', 'min': 1.5, 'max': 2}]
    """
    values: dict[str, set] = {}
    is_nested = set()
    for record in records:
        for name, value in record.items():
            given = value if isinstance(value, list) else [value]
            given = [each for each in given if each is not None]
            if all(isinstance(each, str | int | float) for each in given):
                values.setdefault(name, set()).update(given)
            else:
                is_nested.add(name)
    filters = []
    for name, given in sorted(values.items()):
        if name in is_nested:
            continue
        if not any(isinstance(each, str | bool) for each in given):
            filters.append({"name": name, "min": min(given), "max": max(given)})
        elif len(given) <= MOST_VALUES:
            filters.append({"name": name, "values": sorted(given, key=str)})
    return filters


def examples_of(captions: Any) -> list[str]:
    """A few captions to search for, with and without Han characters; short ones.

    >>> examples_of(["a red circle", "红色的圆", "a red circle"])
    ['a red circle', '红色的圆']
    """
    short = list(dict.fromkeys(each for each in itertools.islice(captions, 1000) if len(each) < 60))
    has_han = [bool(HAN.search(each)) for each in short]
    others = [each for each, is_han in zip(short, has_han, strict=True) if not is_han]
    chinese = [each for each, is_han in zip(short, has_han, strict=True) if is_han]
    return others[:EXAMPLES] + chinese[:EXAMPLES]


def _hashable(item: Item) -> tuple:
    """The sources of an item as a key of a cache."""
    return tuple((name, tuple(each)) for name, each in item["sources"].items())


def _record(sources: tuple) -> dict[str, Any]:
    """A record with the sources that `_hashable` gave."""
    return {"id": "", "sources": {name: list(each) for name, each in sources}}


def _jpeg(sources: tuple, side: int) -> bytes:
    """The thumbnail of an item."""
    file = io.BytesIO()
    thumbnail(_record(sources), side).save(file, "JPEG", quality=85)
    return file.getvalue()


def _played(sources: tuple, modality: str | None) -> tuple[str, bytes] | None:
    """What plays of an item."""
    return playable(_record(sources), modality)

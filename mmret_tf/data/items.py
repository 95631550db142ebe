"""The record of an item (条目): what a search result carries, and what a store writes as JSON."""

from collections.abc import Mapping
from typing import Any

from mmret_tf.data.sources import Source

KEYS = ("id", "sources", "attributes")


class Item(dict):
    """`{"id", "sources": {modality: [...]}, "attributes"}`: paths, and texts as they are.

    Two short forms can be read as well: "image" is the first image or `None`, and "captions" is
    the list of texts.

    >>> item = Item.of({"id": "a", "image": "a.png", "captions": ["a dog", "狗"]})
    >>> item["sources"]
    {'image': ['a.png'], 'text': ['a dog', '狗']}
    >>> item["image"], item["captions"], item["attributes"]
    ('a.png', ['a dog', '狗'], {})
    """

    def __missing__(self, key: str) -> Any:
        if key == "image":
            return next(iter(self["sources"].get("image", [])), None)
        if key == "captions":
            return self["sources"].get("text", [])
        raise KeyError(key)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Item":
        """Turn a record, in the general or the short form, into an item.

        Args:
            record: With "sources", or with "image" (or "images") and "captions".

        Raises:
            KeyError: It has no "id".
        """
        if isinstance(record, cls):
            return record
        sources = record.get("sources")
        if sources is None:
            images = record.get("images") or [record.get("image")]
            images = [image for image in images if image is not None]
            sources = {"image": images, "text": list(record.get("captions", []))}
            sources = {name: each for name, each in sources.items() if each}
        return cls(id=record["id"], sources=sources, attributes=record.get("attributes", {}))


def item_of(key: str, sources: Mapping[str, list[Source]], attributes: dict) -> Item:
    """The record of an item with these sources; modalities that it lacks are left out."""
    records = {name: [each.record for each in given] for name, given in sources.items() if given}
    return Item(id=key, sources=records, attributes=attributes)


def source_ids(item_id: str, n: int) -> list[str]:
    """Names for the n sources of an item: its id, with numbers if there are several."""
    return [item_id] if n == 1 else [f"{item_id}#{number}" for number in range(n)]

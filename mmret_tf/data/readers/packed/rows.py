"""A row as a dict of columns, turned into an item: what packed formats have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmret_tf.data.readers.reading import Reading, Record, TableForm, caption_column, image_column
from mmret_tf.data.sources import Source
from mmret_tf.data.splits import normal_split


def required_columns(
    form: TableForm, columns: Sequence[str], pictures: Sequence[str] | None = None
) -> tuple[str | None, str | None]:
    """The columns of images and of captions among some; `None` for one of them that is missing.

    Args:
        form: Names of the columns, where they are unusual.
        columns: Names of all columns.
        pictures: Those that may hold images, unless `form` names one; by default all.

    Raises:
        ValueError: Both are missing, or one that `form` names.
    """
    is_named = form.image_column or pictures is None
    image = image_column(form, columns if is_named else pictures)
    caption = caption_column(form, [name for name in columns if name != image])
    asked = {image: form.image_column, caption: form.caption_column}
    if image is caption is None or asked.get(None):
        raise ValueError(
            f"no column of images or captions among {', '.join(columns)}: name them with "
            "image_column and caption_column"
        )
    return image, caption


def add_item(
    reading: Reading,
    record: Record,
    image: Source | str | None,
    caption: Any,
    others: Mapping[str, Any],
    id_columns: Sequence[str] = ("id",),
) -> None:
    """Add one row as an item.

    Args:
        reading: Gets the item.
        record: The item as far as the row's file decides it: its place, its split, and an id for a
            row that has none of its own.
        image: The picture, or its path in the collection, or `None`.
        caption: The captions as `texts_of` takes them.
        others: The other columns. "split" is known; numbers and texts are attributes.
        id_columns: Columns that may hold the id; the first of them that has a value does.
    """
    others = {name: plain(each) for name, each in others.items()}
    split = others.pop("split", None)
    if not isinstance(split, str | None):
        raise ValueError(f"`split` must be a string, got {split!r}")
    texts = texts_of(caption)
    named = next((name for name in id_columns if others.get(name) not in (None, "")), None)
    if named is not None:
        record.id = others.pop(named)
        if not isinstance(record.id, str | int | float):
            raise ValueError(f"`{named}` must be a string or a number, got {record.id!r:.40}")
        record.id = str(record.id)
    record.split = normal_split(split or "") or record.split
    record.attributes = {name: each for name, each in others.items() if _is_attribute(each)}
    if isinstance(image, Source):
        reading.parts[record.place] = image
        record.sources["image"] = [record.place]
    elif image is not None:
        record.sources["image"] = [image]
    reading.records.append(record)
    reading.add_texts(record, texts, record.place)


def texts_of(value: Any) -> list[Any]:
    """One caption, a list of captions, or one of dicts with the captions under "text" or "raw"."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("raw"))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    apart = [texts_of(each) if isinstance(each, Mapping) else [_text(each)] for each in values]
    return [text for each in apart for text in each if text is not None]


def plain(value: Any) -> Any:
    """A value of NumPy as Python's own; bytes as text, if they are text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _text(value: Any) -> Any:
    """A caption; ValueError for bytes that are not UTF-8."""
    value = plain(value)
    return value.decode() if isinstance(value, bytes) else value


def _is_attribute(value: Any) -> bool:
    """Whether a value can be an attribute. NaN is how tables spell a missing number."""
    is_missing = isinstance(value, float) and not math.isfinite(value)
    return isinstance(value, str | int | float | bool) and not is_missing

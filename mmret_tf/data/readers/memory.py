"""Datasets in memory: rows as dicts, from `tf.data`, TensorFlow Datasets or Hugging Face."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf.data.decoders.pictures import picture_source
from mmret_tf.data.readers.reading import Reading, Record, TableForm, chosen_columns


def read_dataset(dataset: Iterable[Mapping[str, Any]], form: TableForm) -> Reading:
    """Read the rows of a dataset; one that cannot be used is set aside by its number.

    Args:
        dataset: Rows with a picture (PIL image, array, encoded bytes, or Hugging Face's dict of
            "bytes" and "path"), a caption or several, or both. "id" and "split" are known; other
            numbers and texts are attributes.
        form: Names of the columns, where they are unusual.
    """
    reading = Reading(Path(), "the dataset", base=None, form=form)
    rows = dataset.as_numpy_iterator() if hasattr(dataset, "as_numpy_iterator") else dataset
    for number, row in enumerate(rows):
        place = f"row {number}"
        with reading.set_aside(place):
            if not isinstance(row, Mapping):
                raise ValueError(f"a row must be a dict of columns; got a {type(row).__name__}")
            _add_row(reading, row, place, str(number))
    return reading


def _add_row(reading: Reading, row: Mapping[str, Any], place: str, number: str) -> None:
    """Add one row as an item."""
    image, caption = chosen_columns(reading.form, list(row))
    asked = {image: reading.form.image_column, caption: reading.form.caption_column}
    if image is caption is None or asked.get(None):
        raise ValueError(
            f"no column of images or captions among {', '.join(row)}: name them with image_column "
            "and caption_column"
        )
    others = {name: _plain(each) for name, each in row.items() if name not in (image, caption)}
    record = Record(str(others.pop("id", number)), {}, place)
    split = others.pop("split", None)
    if not isinstance(split, str | None):
        raise ValueError(f"`split` must be a string, got {split!r}")
    record.set_split(split)
    record.attributes = {
        name: each for name, each in others.items() if isinstance(each, str | int | float | bool)
    }
    if image is not None and row[image] is not None:
        reading.parts[place] = picture_source(_picture(row[image]))
        record.sources["image"] = [place]
    reading.records.append(record)
    if caption is not None:
        reading.add_texts(record, _texts(row[caption]), place)


def _picture(value: Any) -> Any:
    """A picture as `picture_source` takes it."""
    if isinstance(value, Mapping):  # as Hugging Face has it, not decoded
        value = value.get("bytes") or value.get("path")
    return value


def _texts(value: Any) -> list[Any]:
    """One caption, a list of captions, or one of dicts with the captions under "text" or "raw"."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("raw"))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    apart = [_texts(each) if isinstance(each, Mapping) else [_plain(each)] for each in values]
    return [text for each in apart for text in each if text is not None]


def _plain(value: Any) -> Any:
    """A value of NumPy as Python's own; bytes as text, if they are text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value

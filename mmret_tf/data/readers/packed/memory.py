"""Datasets in memory: rows as dicts, from `tf.data`, TensorFlow Datasets or Hugging Face."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmret_tf.data.decoders.pictures import picture_source
from mmret_tf.data.readers.packed.rows import add_item, required_columns
from mmret_tf.data.readers.reading import Reading, Record, TableForm
from mmret_tf.data.sources import Source


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
            image, caption = required_columns(form, list(row))
            others = {name: row[name] for name in row if name not in (image, caption)}
            record = Record(str(number), {}, place)
            add_item(reading, record, _picture(row.get(image)), row.get(caption), others)
    return reading


def _picture(value: Any) -> Source | None:
    """The picture of a row, if it has one."""
    if isinstance(value, Mapping):  # as Hugging Face has it, not decoded
        value = value.get("bytes") or value.get("path")
    return None if value is None else picture_source(value)

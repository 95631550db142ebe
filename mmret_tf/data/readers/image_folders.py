"""Hugging Face's `imagefolder`: a `metadata.jsonl` or `metadata.csv` beside the images."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import join
from typing import Any

from mmret_tf.data.readers.paths import find_file
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, Record, TableForm, caption_column
from mmret_tf.data.readers.tables import table_rows
from mmret_tf.data.splits import split_of_path

FILES = re.compile(r"(.+_)?file_names?")
NUMBER = re.compile(r"-?(0|[1-9]\d{0,15})(\.\d+)?")


class ImageFolder(Reader):
    """A row for each item: `file_name`, or several columns `..._file_name`, a text, attributes.
    Rows of the same files are captions of one item.

    Paths are relative to the metadata file, of which each split's folder may have one.
    """

    names = ("metadata.jsonl", "metadata.csv")
    takes = ("caption_column", "separator", "encoding")
    precedence = 0.5

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        places = ("", "*/", "data/*/")
        found = [file for each in places for name in cls.names for file in folder.glob(each + name)]
        return sorted(
            file
            for file in found
            if file.parent == folder or split_of_path(file.relative_to(folder).as_posix())
        )

    def read(self, reading: Reading, file: Path) -> None:
        parent = file.parent.relative_to(reading.folder).as_posix()
        rows = list(_json_rows(reading, file) if file.suffix == ".jsonl" else _rows(reading, file))
        names = dict.fromkeys(name for _, row in rows for name in row)
        texts = [
            name
            for name in names
            if not FILES.fullmatch(name) and any(_is_text(row.get(name)) for _, row in rows)
        ]
        caption = caption_column(reading.form, texts)
        asked = reading.form.caption_column
        if caption is None and (asked or len(texts) > 1):
            found = f"{len(texts)} columns of text ({', '.join(texts)})"
            raise ValueError(
                f"{file} has {found}: name that of the captions with caption_column; got {asked!r}"
            )
        caption = caption or next(iter(texts), None)
        items: dict[tuple[str, ...], Record] = {}
        for place, row in rows:
            with reading.set_aside(place):
                _add_item(reading, items, place, row, parent, caption)


def _add_item(
    reading: Reading,
    items: dict[tuple[str, ...], Record],
    place: str,
    row: dict,
    parent: str,
    caption: str | None,
) -> None:
    """Add one row as an item, or its captions to the item of the same files."""
    named = [row[name] for name in row if FILES.fullmatch(name)]
    files = [file for each in named for file in (each if isinstance(each, list) else [each])]
    if not files or not all(isinstance(file, str) and file.strip() for file in files):
        raise ValueError(f"`file_name` must be a string, got {json.dumps(named)[:40]}")
    paths = [find_file(reading.folder, join(parent, file)) for file in files]
    texts = row.get(caption) if caption else None
    texts = texts if isinstance(texts, list) else [texts] if texts is not None else []
    attributes = {
        name: value
        for name, value in row.items()
        if name != caption and not FILES.fullmatch(name) and value not in (None, "")
    }
    record = Record(paths[0], {"image": paths}, place, attributes=attributes)
    if texts:
        record = items.setdefault(tuple(paths), record)
    if record.place == place:
        reading.records.append(record)
    reading.add_texts(record, texts, place)


def _json_rows(reading: Reading, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each line."""
    for place, line in reading.lines(file):
        if line.strip():
            with reading.set_aside(place):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, got {json.dumps(row)[:40]}")
                json.dumps(row, ensure_ascii=False).encode()  # fails if it is not valid Unicode
                yield place, row


def _rows(reading: Reading, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the cells of each row of a table; numbers as numbers."""
    columns, rows = table_rows(reading, file)
    for place, row in rows:
        values = [json.loads(cell) if NUMBER.fullmatch(cell) else cell for cell in row]
        yield place, dict(zip(columns, values, strict=True))


def _is_text(value: object) -> bool:
    """Whether a value may be a caption, or a list of captions."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(each, str) and each.strip() for each in texts)

"""Results of readers: records, and problems with their places.

Readers do not open pictures. A row that cannot be understood becomes a `Problem`, and reading
continues.
"""

import codecs
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmret_tf.data.modalities import get_modality
from mmret_tf.data.readers.paths import IMAGE_FOLDERS, find_file, is_inside, relative_name
from mmret_tf.data.sources import Source, path_source
from mmret_tf.data.splits import normal_split

# Captions files are read whole; all captions of MS-COCO take 0.1 GiB.
MAX_CAPTIONS_BYTES = 2**30


# Names of columns by which images and captions are found, in the order of preference.
IMAGE_COLUMNS = (
    *("image", "image/encoded", "file_name", "filename", "filepath", "file_path"),
    *("image_name", "image_path", "image_file", "img", "path", "file"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "image/caption", "captions/text", "text", "title", "comment"),
    *("description", "sentence"),
)


@dataclass(frozen=True)
class TableForm:
    """The form of a table, where it is unusual; what is left out is found by itself.

    Args:
        image_column: Column of the images, or of their files, in a table.
        caption_column: Column of the captions in a table; "label" for folders of classes.
        separator: Separator of a table: a comma, a semicolon, a tab ("tab") or |.
        encoding: Encoding of captions files, such as gbk; by default UTF-8, or UTF-16 if its mark
            says so.
    """

    image_column: str = ""
    caption_column: str = ""
    separator: str = ""
    encoding: str = ""


USUAL_FORM = TableForm()


class Problem(NamedTuple):
    """An entry that is set aside; `record_id` is the record that it belongs to, if known."""

    place: str
    reason: str
    record_id: str | None = None


@dataclass(slots=True)  # a collection may have millions
class Record:
    """One item as a captions file describes it.

    Attributes:
        id: Its name.
        sources: By modality, paths relative to the collection, with "/"; texts as they are.
        place: Position in the captions files, such as "captions.jsonl line 3".
        split: Its split, if the file names one.
        attributes: Further facts, as JSON values.
    """

    id: str
    sources: dict[str, list[str]]
    place: str
    split: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def set_split(self, split: str | None) -> None:
        """Set the split; ValueError if the record is in another one already."""
        split = normal_split(split or "") or self.split
        if self.split not in (None, split):
            raise ValueError(f"split {split!r}, but {self.id} is in {self.split!r} already")
        self.split = split

    @property
    def paths(self) -> list[str]:
        """Paths of all its files."""
        files = [each for name, each in self.sources.items() if get_modality(name).is_file]
        return [path for each in files for path in each]

    def with_files(self, kept: set[str]) -> "Record":
        """The record with these of its files alone, each once; other content stays."""
        paths = self.paths
        if len(set(paths)) == len(paths) and kept.issuperset(paths):
            return self
        sources = {
            name: [path for path in dict.fromkeys(each) if path in kept]
            if get_modality(name).is_file
            else each
            for name, each in self.sources.items()
        }
        return replace(self, sources=sources)


@dataclass
class Reading:
    """Content of the captions files of one folder.

    Attributes:
        folder: The collection.
        source: Names of the captions files, for messages.
        problems: Entries that were set aside.
        records: Items that were read.
        base: Folder below which all pictures belong to the collection; `None` for the folders of
            the records.
        parts: Sources that are not files of their own, by the path that records give them.
        form: How to read tables, as the user said.
        is_hashed: Whether the layout names no splits, so that a hash of the id decides them.
        layout: Names of the reader and of its captions files, for a report.
    """

    folder: Path
    source: str
    problems: list[Problem] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    base: str | None = "."
    parts: dict[str, Source] = field(default_factory=dict)
    form: TableForm = USUAL_FORM
    is_hashed: bool = False
    layout: str = ""
    _table: dict[str, Record] = field(default_factory=dict)  # the records that `add_row` made
    _real: dict[str, str] = field(default_factory=dict)  # folders with their links followed

    def real_path(self, path: str) -> str | None:
        """The file of a record's path with links followed; `None` if it is outside the folder."""
        if os.path.isabs(path) or "\0" in path:
            return None
        parent, name = os.path.split(path)
        for each in ("", parent):  # each folder once
            if each not in self._real:
                self._real[each] = os.path.realpath(os.path.join(self.folder, each))
        real = os.path.join(self._real[parent], name)
        if name in (os.curdir, os.pardir) or os.path.islink(real):
            real = os.path.realpath(real)
        return real if os.path.commonpath([self._real[""], real]) == self._real[""] else None

    def source_of(self, path: str) -> Source:
        """The source of a record's path."""
        return self.parts.get(path) or path_source(self.folder / path)

    def take(self, path: str) -> Source:
        """The source of a record's path, for the last time: it is not kept."""
        return self.parts.pop(path, None) or path_source(self.folder / path)

    @contextmanager
    def set_aside(self, place: str, record_id: str | None = None) -> Iterator[None]:
        """Turn an error in one row into a problem, and continue."""
        try:
            yield
        except (ValueError, OSError, RecursionError, csv.Error) as error:
            self.problems.append(Problem(place, _reason(error), record_id))

    def add_row(
        self, place: str, image: str, caption: str | None = None, split: str | None = None
    ) -> None:
        """Add one row of a table to the record of its image."""
        name = relative_name(self.folder, image)
        if name not in self._table:
            path = find_file(self.folder, name, (self.base, *IMAGE_FOLDERS))
            record = Record(name, {"image": [path]}, place)
            self._table[name] = record
            self.records.append(record)
        with self.set_aside(place, name):
            self._table[name].set_split(split)
            self.add_texts(self._table[name], [] if caption is None else [caption], place)

    def add_texts(
        self, record: Record, texts: Iterable[Any], place: str, modality: str = "text"
    ) -> None:
        """Add captions to a record; anything but a string, and a blank one, is set aside."""
        for text in texts:
            with self.set_aside(place, record.id):
                if not isinstance(text, str):
                    got = json.dumps(text, default=repr)[:40]
                    raise ValueError(f"a caption must be a string, got {got}")
                if not text.strip():
                    raise ValueError("empty caption")
                text.encode()  # fails if it is not valid Unicode
                record.sources.setdefault(modality, []).append(text.strip())

    def may_open(self, file: Path) -> bool:
        """Whether a packed file is a regular file in the folder; it is set aside otherwise."""
        name = os.path.relpath(file, self.folder)
        with self.set_aside(name):
            if not is_inside(self.folder, name):
                raise ValueError("leads outside the collection")
            if not file.is_file():  # a pipe, say, would wait for a writer
                raise ValueError("not a regular file")
            return True
        return False

    def read_bytes(self, file: Path) -> bytes:
        """Content of a captions file in UTF-8: a regular file in the folder, not above a limit."""
        if not is_inside(self.folder, os.path.relpath(file, self.folder)):
            raise ValueError(f"{file} is a link that leads outside the collection")
        try:
            if not file.is_file() or file.stat().st_size > MAX_CAPTIONS_BYTES:
                raise ValueError(f"{file} is not a file of at most {MAX_CAPTIONS_BYTES} bytes")
            contents = file.read_bytes()
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror or error}") from None
        is_utf_16 = contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = self.form.encoding or ("utf-16" if is_utf_16 else "")
        if not encoding:
            return contents
        try:
            return contents.decode(encoding).encode()
        except (LookupError, ValueError) as error:
            raise ValueError(f"{file} is not in the encoding {encoding!r}: {error}") from None

    def lines(self, file: Path) -> Iterator[tuple[str, str]]:
        """The place and text of each line that is UTF-8."""
        name = file.relative_to(self.folder).as_posix()
        for number, line in enumerate(self.read_bytes(file).splitlines(keepends=True), 1):
            text = None
            with self.set_aside(f"{name} line {number}"):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text is not None:
                yield f"{name} line {number}", text

    def json_lists(self, file: Path, *keys: str) -> list[list[tuple[str, Any]]]:
        """Lists that a JSON file holds under these keys, each item with its place."""
        name = file.relative_to(self.folder).as_posix()
        contents = self.read_bytes(file)
        try:
            content = json.loads(contents)
            lists = [get_field(content, key, list) for key in keys]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {_reason(error)}") from None
        return [
            [(f"{name} {key}[{number}]", item) for number, item in enumerate(items)]
            for key, items in zip(keys, lists, strict=True)
        ]


def get_field(row: object, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """A field of a JSON object, with its type checked; it is required if it has no default."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {json.dumps(row)[:40]}")
    value = row.get(key)
    if value is None and default is not ...:
        return default
    if not isinstance(value, kind) or value == "":
        name = {str: "a string", list: "a list", dict: "an object"}.get(kind, "a string or number")
        raise ValueError(f"`{key}` must be {name}, got {json.dumps(value)[:40]}")
    return value


def chosen_columns(form: TableForm, columns: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of images and of captions among some; `None` for one that there is not."""
    image = image_column(form, columns)
    return image, caption_column(form, [name for name in columns if name != image])


def image_column(form: TableForm, columns: Sequence[str]) -> str | None:
    """The column of images among some, or `None`."""
    return _first(columns, [form.image_column.lower()] if form.image_column else IMAGE_COLUMNS)


def caption_column(form: TableForm, columns: Sequence[str]) -> str | None:
    """The column of captions among some, or `None`."""
    asked = [form.caption_column.lower()] if form.caption_column else CAPTION_COLUMNS
    return _first(columns, asked)


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of some names that a column has, upper and lower case aside."""
    spelled = {column.lower(): column for column in reversed(columns)}
    return next((spelled[name] for name in names if name in spelled), None)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}, line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start + 1}"
    if isinstance(error, csv.Error):
        return f"not CSV: {error}"
    if isinstance(error, UnicodeEncodeError):
        return "not valid Unicode: half a character (a lone surrogate)"
    return "JSON nested too deeply" if isinstance(error, RecursionError) else str(error)

"""Parquet: columns of pictures and captions, as Hugging Face distributes data sets."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from posixpath import dirname, join
from typing import Any

from mmret_tf.data.readers.packed.parquet_pictures import (
    ParquetSource,
    import_parquet,
    open_parquet,
    picture_batches,
)
from mmret_tf.data.readers.packed.rows import add_item, required_columns
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, Record, TableForm, find_file
from mmret_tf.data.sources import Source
from mmret_tf.data.splits import split_of_file

# Rows that are read at once, without their pictures.
ROWS = 256


class Parquet(Reader):
    """A row for each item: a picture or its path, a caption or a list of them, attributes.

    Paths are relative to the Parquet file. The folder of a file, or its name as in
    `train-00000-of-00002.parquet`, may be that of a split.
    """

    names = ("*.parquet", "*/*.parquet")
    takes = ("image_column", "caption_column")
    precedence = 7.1

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        return sorted(file for name in cls.names for file in folder.glob(name))

    def read(self, reading: Reading, file: Path) -> None:
        import_parquet()  # without it no file can be read
        reading.base = None
        if not reading.may_open(file):
            return
        name = file.relative_to(reading.folder).as_posix()
        with reading.set_aside(name), open_parquet(file) as table:
            columns = _Columns(reading.form, table.schema_arrow)
            for number, (group, row, batch, at, has_bytes) in enumerate(_rows(table, columns)):
                place = f"{name} row {number}"
                with reading.set_aside(place):
                    cells = _cells(batch, at)
                    path = columns.pop_path(cells)
                    image: Source | str | None = None
                    if has_bytes:
                        image = ParquetSource(file, columns.image, group, row)
                    elif path:
                        image = find_file(reading.folder, join(dirname(name), path))
                    caption = cells.pop(columns.caption, None)
                    record = Record(f"{name}/{number}", {}, place, split_of_file(file.name))
                    add_item(reading, record, image, caption, cells)


class _Columns:
    """The columns of a Parquet file that are read.

    Attributes:
        image: Column of the pictures, or `None`.
        content: Column of their bytes, as the file's metadata names it; `None` if there are none.
        caption: Column of the captions, or `None`.
        read: Columns that are read at once: captions, attributes and paths of pictures.
    """

    def __init__(self, form: TableForm, schema: Any):
        names = schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"several columns have the same name: {', '.join(names)}")
        kinds = {name: schema.field(name).type for name in names}
        pictures = [name for name in names if _content_column(name, kinds[name])]
        if not form.image_column and len(pictures) == 1:
            form = replace(form, image_column=pictures[0])
        self.image, self.caption = required_columns(form, names, pictures or None)
        self.content = self.image and _content_column(self.image, kinds[self.image])
        others = [name for name in names if name != self.image]
        self.read = [name for name in others if name == self.caption or _is_plain(kinds[name])]
        if self.image is not None:
            self.read += _path_columns(self.image, kinds[self.image])

    def pop_path(self, cells: dict[str, Any]) -> str | None:
        """Take the path of the picture out of a row."""
        value = cells.pop(self.image, None)
        return value.get("path") if isinstance(value, dict) else value


def _content_column(name: str, kind: Any) -> str | None:
    """The column that holds the bytes of pictures, or `None`."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _content_column(f"{name}.bytes", kind.field("bytes").type)
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return name if is_binary else None


def _path_columns(name: str, kind: Any) -> list[str]:
    """The column that holds the paths of pictures, if there is one."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        has_path = kind.get_field_index("path") >= 0
        return _path_columns(f"{name}.path", kind.field("path").type) if has_path else []
    if _content_column(name, kind):
        return []
    if not _is_text(kind):
        raise ValueError(
            f"column {name} must hold pictures (bytes, or structs of bytes and path) or paths; it "
            f"holds {kind}: name another one with image_column"
        )
    return [name]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_plain(kind: Any) -> bool:
    """Whether values of a column can be attributes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return is_number or _is_text(kind)


def _rows(table: Any, columns: _Columns) -> Iterator[tuple[int, int, Any, int, bool]]:
    """For each row its row group, its number there, a batch, its number there, and whether it has
    the bytes of a picture. Batches have no pictures."""
    for group in range(table.num_row_groups):
        have_bytes = _have_bytes(table, group, columns)
        cells: Iterable[tuple[Any, int]] = repeat((None, 0))
        if columns.read:
            batches = table.iter_batches(ROWS, [group], columns.read)
            cells = ((batch, at) for batch in batches for at in range(batch.num_rows))
        for row, ((batch, at), has_bytes) in enumerate(zip(cells, have_bytes, strict=False)):
            yield group, row, batch, at, has_bytes


def _have_bytes(table: Any, group: int, columns: _Columns) -> Iterable[bool]:
    """Whether rows have the bytes of a picture, by the file's counts of nulls if these say so."""
    if columns.content is None:
        return repeat(False)
    metadata = table.metadata.row_group(group)
    chunks = [metadata.column(number) for number in range(metadata.num_columns)]
    chunk = next(each for each in chunks if each.path_in_schema == columns.content)
    if columns.read and chunk.statistics is not None and chunk.statistics.has_null_count:
        nulls = chunk.statistics.null_count
        if nulls in (0, metadata.num_rows):
            return repeat(nulls == 0)
    batches = picture_batches(table, columns.image, group)
    return (is_valid.as_py() for batch in batches for is_valid in batch.is_valid())


def _cells(batch: Any, at: int) -> dict[str, Any]:
    """One row as Python's values."""
    if batch is None:
        return {}
    try:
        return {name: batch.column(name)[at].as_py() for name in batch.schema.names}
    except (ArithmeticError, LookupError, TypeError, UnicodeError) as error:
        raise ValueError(f"a value cannot be read: {error}") from None

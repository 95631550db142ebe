"""Parquet: columns of pictures and captions, as Hugging Face distributes data sets."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from posixpath import dirname, join
from typing import Any

from mmret_tf.data.readers.packed.parquet_pictures import (
    PARQUET_ROWS,
    ParquetSource,
    import_parquet,
    open_parquet,
)
from mmret_tf.data.readers.packed.rows import add_item, required_columns
from mmret_tf.data.readers.paths import find_file
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import Reading, Record, TableForm
from mmret_tf.data.sources import Source
from mmret_tf.data.splits import split_of_file


class Parquet(Reader):
    """A row for each item: a picture or its path, a caption or a list of them, attributes.

    Paths are relative to the Parquet file. The folder of a file, or its name as in
    `train-00000-of-00002.parquet`, may be that of a split.
    """

    names = ("*.parquet", "*/*.parquet")
    has_all_names = True
    takes = ("image_column", "caption_column")
    precedence = 7.1

    def read(self, reading: Reading, file: Path) -> None:
        import_parquet()  # without it no file can be read
        reading.base = None
        if not reading.may_open(file):
            return
        name = file.relative_to(reading.folder).as_posix()
        split = split_of_file(file.name)
        with reading.set_aside(name), open_parquet(file) as table:
            columns = _Columns(reading.form, table.schema_arrow)
            for number, (group, row, batch, at) in enumerate(_rows(table, columns.read)):
                place = f"{name} row {number}"
                with reading.set_aside(place):
                    has_bytes, path = columns.picture(batch, at)
                    image: Source | str | None = None
                    if has_bytes:
                        image = ParquetSource(file, columns.image, group, row)
                    elif path:
                        image = find_file(reading.folder, join(dirname(name), path))
                    cells = columns.cells(batch, at)
                    caption = cells.pop(columns.caption, None)
                    record = Record(f"{name}/{number}", {}, place, split)
                    add_item(reading, record, image, caption, cells)


def _rows(table: Any, names: list[str]) -> Iterator[tuple[int, int, Any, int]]:
    """For each row its row group, its number there, its batch, and its number there."""
    for group in range(table.num_row_groups):
        rows = 0
        for batch in table.iter_batches(PARQUET_ROWS, [group], names):
            for at in range(batch.num_rows):
                yield group, rows + at, batch, at
            rows += batch.num_rows


class _Columns:
    """The columns of a Parquet file.

    Attributes:
        image: Column of the pictures, or `None`.
        caption: Column of the captions, or `None`.
        others: Columns of captions and attributes.
        read: All of these.
    """

    def __init__(self, form: TableForm, schema: Any):
        names = schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"several columns have the same name: {', '.join(names)}")
        kinds = {name: schema.field(name).type for name in names}
        pictures = [name for name in names if _holds_bytes(kinds[name])]
        if not form.image_column and len(pictures) == 1:
            form = replace(form, image_column=pictures[0])
        self.image, self.caption = required_columns(form, names, pictures or None)
        if self.image and not (_holds_bytes(kinds[self.image]) or _is_text(kinds[self.image])):
            raise ValueError(
                f"column {self.image} must hold pictures (bytes, or structs of bytes and path) or "
                f"paths; it holds {kinds[self.image]}: name another one with image_column"
            )
        others = [name for name in names if name != self.image]
        self.others = [name for name in others if name == self.caption or _is_plain(kinds[name])]
        self.read = [*self.others, *([self.image] if self.image else [])]

    def picture(self, batch: Any, at: int) -> tuple[bool, str | None]:
        """Whether a row holds the bytes of a picture, which are not copied; and a path of one."""
        if self.image is None:
            return False, None
        cell = batch.column(self.image)[at]
        if not cell.is_valid:
            return False, None
        if hasattr(cell.type, "get_field_index"):  # a struct
            path = cell["path"].as_py() if cell.type.get_field_index("path") >= 0 else None
            return cell["bytes"].is_valid, path
        return (False, cell.as_py()) if _is_text(cell.type) else (True, None)

    def cells(self, batch: Any, at: int) -> dict[str, Any]:
        """The captions and attributes of a row."""
        try:
            return {name: batch.column(name)[at].as_py() for name in self.others}
        except (ArithmeticError, LookupError, TypeError) as error:
            raise ValueError(f"a value cannot be read: {error}") from None


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of this type may hold encoded pictures."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_plain(kind: Any) -> bool:
    """Whether values of this type can be attributes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return is_number or _is_text(kind)

"""Pictures in Parquet files, decoded when they are read. Needs pyarrow, imported on first use."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmret_tf._checks import one_line
from mmret_tf.data.sources import Source, stamp_of

# Pictures of Parquet files are decoded in batches of as many rows. Decoded ones are kept up to a
# number of bytes. A number of row groups is kept open; pyarrow holds a page of each, which may have
# a thousand pictures.
PARQUET_ROWS = 16
KEPT_BYTES = 2**26
OPEN_GROUPS = 2

# A Parquet file is read in steps of as many bytes, or a whole row group would be read at once.
PARQUET_BUFFER = 2**20

# The name of a picture: its column, row group and row.
MEMBER = re.compile(r"(.+)/(\d{1,9})/(\d{1,18})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """One picture in a Parquet file; needs pyarrow.

    Attributes:
        path: Path of the file.
        column: Column of bytes, or of structs with the field "bytes" as Hugging Face has them.
        group: Number of the row group.
        row: Number of the row in the group.
    """

    path: Path
    column: str
    group: int
    row: int

    @property
    def record(self) -> str:
        member = f"{self.column}/{self.group}/{self.row}"
        return os.path.join(os.path.abspath(self.path), member)

    def stamp(self) -> tuple[int, int] | None:
        return stamp_of(self.path)

    def read(self) -> bytes:
        try:
            content = _decoded.read(self)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{self.record}: {reason}") from None
        if not isinstance(content, bytes):
            raise ValueError(f"{self.record}: the row has no picture")
        return content


def parquet_source(path: Path, member: str) -> ParquetSource:
    """The source whose record is `path/member`.

    Args:
        path: A Parquet file.
        member: `column/row group/row`.

    Raises:
        ValueError: `member` has another form.
    """
    part = MEMBER.fullmatch(member)
    if part is None:
        raise ValueError(f"{path} has no {member!r}: a picture is named by column/row group/row")
    return ParquetSource(path, part[1], int(part[2]), int(part[3]))


def import_parquet() -> Any:
    """The module `pyarrow`, with `pyarrow.parquet`; ValueError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError('Parquet files need pyarrow: pip install "mmret_tf[parquet]"') from None
    return pyarrow


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`. What pyarrow raises becomes a ValueError.

    Args:
        path: The file.

    Raises:
        ValueError: pyarrow is not installed, or the file is damaged.
    """
    pyarrow = import_parquet()
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"not a whole Parquet file: {one_line(str(error))}") from None


class _DecodedPictures:
    """Pictures of Parquet files, which can only be decoded from the front of a row group on.

    The last ones are kept, so that reading rows in about their order, in any number of threads,
    decodes each row group once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By row group: the number of the next batch, and the batches from it on.
        self._groups: OrderedDict[tuple, tuple[int, Iterator[Any]]] = OrderedDict()
        # By row group and number.
        self._batches: OrderedDict[tuple, Any] = OrderedDict()
        self._bytes = 0

    def read(self, source: ParquetSource) -> bytes | None:
        state = os.stat(source.path)
        group = (source.path, state.st_size, state.st_mtime_ns, source.column, source.group)
        number, row = divmod(source.row, PARQUET_ROWS)
        with self._lock:
            if (group, number) not in self._batches:
                self._decode(group, source, number)
            self._batches.move_to_end((group, number))
            batch = self._batches[group, number]
        return batch[row].as_py() if row < len(batch) else None

    def _decode(self, group: tuple, source: ParquetSource, number: int) -> None:
        """Decode the batches of a row group up to one; from the front if it has been passed."""
        first, batches = self._groups.pop(group, (0, None))
        if batches is None or first > number:
            first, batches = 0, _batches_of(source)
        for found in range(first, number + 1):
            batch = next(batches, None)
            if batch is None:
                raise ValueError("there is no such row")
            self._keep((group, found), batch)
        if len(batch) == PARQUET_ROWS:  # a shorter one is the last
            self._groups[group] = (number + 1, batches)
            if len(self._groups) > OPEN_GROUPS:
                self._groups.popitem(last=False)

    def _keep(self, key: tuple, batch: Any) -> None:
        if key not in self._batches:
            self._batches[key] = batch
            self._bytes += batch.nbytes
        while len(self._batches) > 1 and self._bytes > KEPT_BYTES:
            _, oldest = self._batches.popitem(last=False)
            self._bytes -= oldest.nbytes


_decoded = _DecodedPictures()


def _batches_of(source: ParquetSource) -> Iterator[Any]:
    """The pictures of a source's row group, in batches."""
    with open_parquet(source.path) as file:
        yield from picture_batches(file, source.column, source.group)


def picture_batches(file: Any, column: str, group: int) -> Iterator[Any]:
    """The encoded pictures of a row group, as arrays of `PARQUET_ROWS` of them.

    Args:
        file: A `ParquetFile`.
        column: Column of bytes, or of structs with the field "bytes".
        group: Number of the row group.

    Raises:
        ValueError: There is no such column or row group.
    """
    if column not in file.schema_arrow.names or group >= file.num_row_groups:
        raise ValueError("there is no such column or row group")
    is_struct = hasattr(file.schema_arrow.field(column).type, "get_field_index")
    names = [f"{column}.bytes" if is_struct else column]
    rows = 0
    for number, batch in enumerate(file.iter_batches(PARQUET_ROWS, [group], names)):
        if rows != number * PARQUET_ROWS:
            raise ValueError("the pictures of the row group are too large")
        rows += batch.num_rows
        yield batch.column(0).flatten()[0] if is_struct else batch.column(0)

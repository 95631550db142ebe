"""Layouts of tables: CSV and TSV of any columns, and Flickr8k's and Flickr30k's captions files."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from mmret_tf.data.readers.paths import IMAGE_FOLDERS
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, TableForm, chosen_columns
from mmret_tf.data.splits import is_split

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}

TAKES = tuple(field.name for field in fields(TableForm))

# In Flickr30k's results.csv, one row lacks the second separator: "name.jpg| 4   A dog ...".
WITHOUT_SEPARATOR = re.compile(r"\s*(\d+)\s+(\S.*)", re.DOTALL)


class Csv(Reader):
    """A row for each caption, in a table that is named for it."""

    names = ("captions.csv", "captions.tsv")
    takes = TAKES
    precedence = 1

    def read(self, reading: Reading, file: Path) -> None:
        read_table(reading, file)


class AnyTable(Reader):
    """A row for each caption, in the only table of a folder or in one table for each split."""

    names = ("*.csv", "*.tsv")
    has_all_names = True
    takes = TAKES
    precedence = 6

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        tables = super().find(folder, form)
        tables = [file for file in tables if all(_columns_of(Reading(folder, "", form=form), file))]
        if len(tables) > 1 and not all(is_split(file.stem) for file in tables):
            names = ", ".join(file.name for file in tables[:5])
            raise ValueError(f"{folder} has several tables ({names}): give the path of one")
        return tables

    def read(self, reading: Reading, file: Path) -> None:
        read_table(reading, file, file.stem if is_split(file.stem) else None)


class Flickr8k(Reader):
    """Flickr8k as it is distributed: captions in one file, a list of image names for each split.
    Flickr30k's captions file has the same form."""

    names = ("captions.txt", "Flickr8k.token.txt", "results_*.token")
    takes = TAKES
    precedence = 4

    def read(self, reading: Reading, file: Path) -> None:
        folders = [name for name in IMAGE_FOLDERS if (reading.folder / name).is_dir()]
        reading.base = (folders or ["."])[0]
        if file.name == "captions.txt":
            read_table(reading, file)
        else:
            for place, line in reading.lines(file):
                with reading.set_aside(place):
                    if row := re.fullmatch(r"(.+)#\d+\t([^\t]*)", line.strip("\r\n")):
                        reading.add_row(place, row[1], row[2])
                    elif line.strip():
                        raise ValueError("expected name.jpg#number, a tab and the caption")
        for split in ("train", "dev", "test"):
            file = reading.folder / f"Flickr_8k.{split}Images.txt"
            for place, line in reading.lines(file) if file.is_file() else ():
                if line.strip():
                    reading.add_row(place, line, split=split)


def read_table(reading: Reading, file: Path, split: str | None = None) -> None:
    """A column of images and one of captions, perhaps one of splits; others are ignored. A row has
    a caption in each column of that name.

    Args:
        reading: Gets the rows.
        file: The table; the first row names the columns.
        split: Of all rows that name none.
    """
    columns, rows = table_rows(reading, file)
    image, caption = chosen_columns(reading.form, columns)
    if not image or not caption:
        raise ValueError(
            f"{file} must begin with a header that names a column of images and one of captions "
            f"(such as image,caption); got {','.join(columns)[:80]!r}: name them with "
            "image_column and caption_column"
        )
    if columns.count(image) > 1 or columns.count("split") > 1:
        raise ValueError(f"{file} has more than one column {image} or split")
    for place, row in rows:
        with reading.set_aside(place):
            cell = dict(zip(columns, row, strict=True))
            captions = [text for name, text in zip(columns, row, strict=True) if name == caption]
            if len(captions) > 1:  # an image may have fewer than there are columns
                captions = [text for text in captions if text.strip()] or captions[:1]
            for each in captions:
                reading.add_row(place, cell[image], each, cell.get("split") or split)


def table_rows(reading: Reading, file: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The names of the columns, in lower case, and the place and cells of each row.

    A row with another number of cells is set aside.
    """
    lines = list(reading.lines(file))
    header = next((line for _, line in lines if line.strip()), "")
    separator = _separator(reading.form, header)
    quotes = {"quoting": csv.QUOTE_NONE} if separator == "|" else {"strict": True}

    def cells(lines):
        return csv.reader(lines, delimiter=separator, **quotes)

    try:
        columns = [name.strip().lower() for name in next(cells([header]), [])]
    except csv.Error as error:
        raise ValueError(f"{file} must begin with a header: {error}") from None

    def rows():
        for place, row in _parsed(reading, lines, cells):
            if separator == "|" and len(row) == len(columns) - 1:
                row = _with_separator(row)
            with reading.set_aside(place):
                if len(row) != len(columns):
                    named = ",".join(columns)
                    raise ValueError(f"expected {len(columns)} fields ({named}), got {len(row)}")
                yield place, row

    found = rows()
    next(found, None)  # the header
    return columns, found


def _parsed(reading: Reading, lines: Sequence[tuple[str, str]], cells) -> Iterator:
    """The place and fields of each row. Rows are parsed one by one, so an unclosed quote spoils
    only its own line."""
    at = 0
    while at < len(lines):
        place, length, row = lines[at][0], 1, []
        reader = cells(lines[i][1] for i in range(at, len(lines)))
        with reading.set_aside(place):
            row = next(reader)
            length = reader.line_num
        if row:  # not a blank line
            yield place, row
        at += length


def _columns_of(reading: Reading, file: Path) -> tuple[str | None, str | None]:
    """The columns of images and captions in the header of a table; `None` for what is missing."""
    header = next((line for _, line in reading.lines(file) if line.strip()), "")
    columns = header.split(_separator(reading.form, header))
    return chosen_columns(reading.form, [name.strip(' \r\n"').lower() for name in columns])


def _separator(form: TableForm, header: str) -> str:
    """The separator that was asked for, or the one with which the header makes most sense."""
    asked = form.separator
    if asked:
        separator = SEPARATORS.get(asked, asked.replace("\\t", "\t"))
        if separator not in SEPARATORS.values():
            raise ValueError(f"separator must be one of , ; | and tab; got {asked!r}")
        return separator

    def sense(separator: str) -> tuple[int, int]:
        columns = [name.strip().lower() for name in header.split(separator)]
        known = sum(bool(each) for each in chosen_columns(form, columns))
        return known, len(columns)

    return max(SEPARATORS.values(), key=sense)


def _with_separator(row: list[str]) -> list[str]:
    """A row whose last cell holds a number and a text, with these apart."""
    apart = WITHOUT_SEPARATOR.fullmatch(row[-1])
    return [*row[:-1], *apart.groups()] if apart else row

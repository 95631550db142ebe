"""Layouts of tables: `captions.csv`, and Flickr8k's `captions.txt` and `Flickr8k.token.txt`."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import IMAGE_FOLDERS, Reading


class Csv(Reader):
    """A row for each caption."""

    names = ("captions.csv",)
    precedence = 1

    def read(self, reading: Reading, file: Path) -> None:
        read_table(reading, file)


class Flickr8k(Reader):
    """Flickr8k as it is distributed: captions in one file, a list of image names for each split."""

    names = ("captions.txt", "Flickr8k.token.txt")
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


def read_table(reading: Reading, file: Path) -> None:
    """Columns image and caption, perhaps split; others are ignored. A row has a caption in each
    column of that name."""
    rows = _csv_rows(reading, file)
    header = next(rows, ("", []))[1]
    columns = [column.strip().lower() for column in header]
    if not {"image", "caption"} <= set(columns):
        raise ValueError(
            f"{file} must begin with a header that names the columns image and caption; "
            f"got {','.join(header)[:80]!r}"
        )
    if columns.count("image") > 1 or columns.count("split") > 1:
        raise ValueError(f"{file} has more than one column image or split")
    for place, row in rows:
        with reading.set_aside(place):
            if len(row) != len(columns):
                raise ValueError(
                    f"expected {len(columns)} fields ({','.join(columns)}), got {len(row)}"
                )
            cell = dict(zip(columns, row, strict=True))
            captions = [text for name, text in zip(columns, row, strict=True) if name == "caption"]
            if len(captions) > 1:  # an image may have fewer than there are columns
                captions = [text for text in captions if text.strip()] or captions[:1]
            for caption in captions:
                reading.add_row(place, cell["image"], caption, cell.get("split"))


def _csv_rows(reading: Reading, file: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and fields of each row. Rows are parsed one by one, so an unclosed quote spoils
    only its own line."""
    lines = list(reading.lines(file))
    at = 0
    while at < len(lines):
        place, length, row = lines[at][0], 1, []
        reader = csv.reader((lines[i][1] for i in range(at, len(lines))), strict=True)
        with reading.set_aside(place):
            row = next(reader)
            length = reader.line_num
        if row:  # not a blank line
            yield place, row
        at += length

"""The interface of readers: each knows one family of layouts. To add one, add a file beside this.

`read_layout` recognises the layout of a folder, or of one captions file.
"""

import abc
import dataclasses
import difflib
import itertools
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from mmret_tf._lazy import import_modules
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, TableForm
from mmret_tf.data.splits import hash_split, split_of_path

LAYOUTS = (
    "captions.jsonl, metadata.jsonl or metadata.csv (Hugging Face's imagefolder), any .csv or .tsv "
    "with a column of images and one of captions, Flickr8k-CN, Flickr30k-CN, COCO-CN, AIC-ICC, "
    "ESC-50, AudioCaps, Clotho, MSVD, MSR-VTT, "
    "dataset_*.json (Karpathy), captions_*.json or annotations/captions_*.json (MS-COCO), "
    "captions.txt or Flickr8k.token.txt (Flickr8k, images in Images/), .tar shards (WebDataset), "
    ".parquet files, .tfrecord files, the stamps of Tux Paint, pairs of a.jpg and a.txt, pictures "
    "alone"
)


# A range of numbers in a path, as WebDataset has it, and the most files that such a path may name.
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_FILES = 2**20

# A folder in the pattern of a captions file that has a name of its own.
NAMED_FOLDER = re.compile(r"[^*/]/")


class Reader(abc.ABC):
    """Reads one family of layouts. Direct subclasses are found automatically.

    Attributes:
        names: Patterns of the names of captions files, relative to the folder; none for a layout
            without a captions file.
        has_all_names: Whether the files of all patterns belong together; otherwise those of the
            first pattern that has any do.
        takes: What of a `TableForm` applies to the layout.
        precedence: Order in which readers are tried, the lowest number first.
    """

    names: ClassVar[tuple[str, ...]] = ()
    has_all_names: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ("encoding",)
    precedence: ClassVar[int] = 5

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        """The captions files of this layout in a folder, or the folder itself if the layout has no
        captions file; empty if the folder has another layout.

        Args:
            folder: The collection.
            form: How to read a table whose form is unusual.
        """
        found = [list(filter(cls.has_layout, sorted(folder.glob(name)))) for name in cls.names]
        if cls.has_all_names:
            return sorted(itertools.chain(*found))
        return next(filter(None, found), [])

    @classmethod
    def has_layout(cls, file: Path) -> bool:
        """Whether a file with one of the names has this layout; a reader of files with common names
        looks into them.

        Args:
            file: The captions file.
        """
        return True

    @abc.abstractmethod
    def read(self, reading: Reading, file: Path) -> None:
        """Read one `file` that `find` found: add its records and problems to `reading`."""

    def complete(self, reading: Reading) -> None:  # noqa: B027  most layouts have nothing more
        """Read what else belongs to a folder, behind all files: add to `reading`."""


def all_readers() -> list[type[Reader]]:
    """The readers below this folder and those defined elsewhere, in the order of precedence."""
    import_modules(__package__)
    return sorted(Reader.__subclasses__(), key=lambda reader: reader.precedence)


def read_layout(source: Path, form: TableForm = USUAL_FORM) -> Reading:
    """Recognise the layout of a folder, or of one captions file, and read it.

    Args:
        source: The folder or the file.
        form: How to read a table whose form is unusual.

    Raises:
        ValueError: The path does not exist, the layout is unknown, the form does not apply to it,
            or a captions file is unreadable.
    """
    if source.is_dir():
        folder = source
        reader, files = _reader_of_folder(folder, form)
    else:
        files = _named_files(source)
        reader, folder = _reader_of_file(files[0])
    if "dataset_*.json" in reader.names and len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several dataset_*.json ({names}): give the path of one")

    for name, value in dataclasses.asdict(form).items():
        if value and name not in reader.takes:
            raise ValueError(
                f"{name} does not apply to {source}, which is read by {reader.__name__}"
            )

    named = [file.name for file in files[:3]] + ["..."] * (len(files) > 3)
    reading = Reading(folder, " and ".join(named), form=form)
    reading.layout = reader.__name__ + (f": {reading.source}" if files != [folder] else "")
    for file in files:
        reader().read(reading, file)
    if source.is_dir():
        reader().complete(reading)
    if all(record.split is None for record in reading.records):
        for record in reading.records:
            record.split = split_of_path(next(iter(record.paths), ""))
    reading.is_hashed = all(record.split is None for record in reading.records)
    for record in reading.records:
        record.split = hash_split(record.id) if reading.is_hashed else record.split or ""
    return reading


def _named_files(source: Path) -> list[Path]:
    """The file of a path, or the files of one with ranges of numbers, as in `{000..123}.tar`."""
    files = [source]
    while ranges := [RANGE.search(str(file)) for file in files if RANGE.search(str(file))]:
        first, last = ranges[0].groups()
        numbers = range(int(first), int(last) + 1)
        if len(ranges) * len(numbers) > MOST_FILES:
            raise ValueError(f"{source} names more than {MOST_FILES} files")
        files = [
            Path(RANGE.sub(f"{number:0{len(first)}}", str(file), count=1))
            for file in files
            for number in numbers
        ]
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"there is no folder or captions file {missing[0]}")
    if not files or len({file.parent for file in files}) > 1:
        raise ValueError(f"{source} must name files of one folder")
    return files


def _reader_of_folder(folder: Path, form: TableForm) -> tuple[type[Reader], list[Path]]:
    """The first reader whose layout a folder has, and its files."""
    for reader in all_readers():
        if files := reader.find(folder, form):
            return reader, files
    names = sorted(os.listdir(folder))
    held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
    raise ValueError(
        f"{folder} has none of the layouts known: {LAYOUTS}; it holds {held}{_hint(names)}"
    )


def _hint(names: list[str]) -> str:
    """The known captions file whose name is nearest to one of these, in words; or ""."""
    known = sorted({each for reader in all_readers() for each in reader.names})
    for name in names[:100]:
        if close := difflib.get_close_matches(name, known, 1, 0.75):
            return f"; {name} is close to {close[0]}"
    return ""


def _reader_of_file(file: Path) -> tuple[type[Reader], Path]:
    """The reader of a captions file that was named directly, and the collection's folder: that of
    the file, or the one above `annotations/` and the like."""
    readers = all_readers()
    for reader in readers:
        for known in filter(NAMED_FOLDER.search, reader.names):
            depth = known.count("/")
            is_known = fnmatchcase("/".join(file.parts[-depth - 1 :]), known)
            if is_known and reader.has_layout(file):
                return reader, file.parents[depth]
    # The suffix of a file of JSON lines is enough.
    for name in (file.name, *(["captions.jsonl"] if file.suffix == ".jsonl" else [])):
        for reader in readers:
            is_known = any(fnmatchcase(name, known) for known in reader.names)
            if is_known and reader.has_layout(file):
                return reader, file.parent
    raise ValueError(f"{file} has none of the layouts known: {LAYOUTS}{_hint([file.name])}")

"""Cleaning (数据清洗): find the files that a collection names, check each once, set aside the rest.

Between the readers and `Collection`. A collection is not trusted: files outside its folder and
files above a size limit are not opened.
"""

import itertools
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from posixpath import dirname, join, normpath

import numpy as np

from mmret_tf._checks import one_line, printable
from mmret_tf._machine import cores
from mmret_tf.data.items import source_ids
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.progress import Progress
from mmret_tf.data.readers.paths import files_below, is_inside
from mmret_tf.data.readers.reading import Problem, Reading, Record
from mmret_tf.data.sources import Source
from mmret_tf.data.splits import hash_split

# Larger files are not read. The largest picture that is decoded takes half of this as a BMP.
MAX_FILE_BYTES = 2**29

# Files that wait for a thread at once: each takes a kilobyte.
QUEUED = 1024

# A scan of more files shows its progress.
PROGRESS_FROM = 5000


def usable_records(reading: Reading, split: str | None, check: bool) -> list[Record]:
    """The usable records of a split, with their usable files; everything else becomes a problem.

    Args:
        reading: Result of a reader; problems are added to it.
        split: Name of a split, or `None` for all. Files of other splits are not checked.
        check: Whether the files are decoded.
    """
    found = [each for each in _find_files(reading) if split in (None, each.split)]
    return _check_files(reading, found) if check else found


def problems_of(reading: Reading, split: str | None) -> list[tuple[str, str]]:
    """The problems of one split and those of unknown splits, as (place, reason)."""
    split_of = {record.id: record.split for record in reversed(reading.records)}

    def concerns(problem: Problem) -> bool:
        if split is None or problem.record_id is None:
            return True
        if reading.is_hashed:
            return hash_split(problem.record_id) == split
        return split_of.get(problem.record_id, split) == split

    return [
        (one_line(problem.place), one_line(problem.reason))
        for problem in reading.problems
        if concerns(problem)
    ]


def _find_files(reading: Reading) -> list[Record]:
    """The records with a source and an id of their own, with their existing files."""
    found, ids, files = [], set(), set()
    for record in reading.records:
        existing = _distinct_files(reading, record, files)
        if record.paths and not existing:
            continue
        with reading.set_aside((record.paths or [record.place])[0], record.id):
            record.id.encode()  # fails if it is not valid Unicode
            record = record.with_files(set(existing.values()))
            if not any(record.sources.values()):
                raise ValueError("neither a file nor a caption")
            names = [source_ids(record.id, len(each)) for each in record.sources.values()]
            taken = {record.id, *(name for each in names for name in each)}
            if taken & ids:
                raise ValueError(_duplicate(record))
            ids |= taken
            files.update(each for each in existing if each not in reading.parts)
            found.append(record)

    named = {
        path for record in reading.records for path in record.paths if path not in reading.parts
    }
    for record_id, path in _image_files(reading, named):
        if path not in named:
            reading.problems.append(Problem(path, "image without a caption", record_id))
    return found


def _distinct_files(reading: Reading, record: Record, files: set[str]) -> dict[str, str]:
    """The usable paths of a record, by real path; `files` are those of earlier records."""
    found = {}
    of_folders = [each for name, each in record.sources.items() if get_modality(name).takes_folders]
    folders = set(itertools.chain(*of_folders))
    for path in record.paths:
        if path in reading.parts:  # has a name of its own, unlike a file, which links may name
            found[path] = path
            continue
        with reading.set_aside(path, record.id):
            if (real := reading.real_path(path)) is None:
                raise ValueError(f"leads outside the collection ({record.place})")
            is_right = os.path.isfile(real) or (path in folders and os.path.isdir(real))
            if not is_right:  # also if its name is too long
                raise ValueError(f"the file does not exist ({record.place})")
            path.encode()  # fails if it is not valid Unicode
            if real in files or real in found:
                raise ValueError(_duplicate(record))
            found[real] = path
    return found


def _duplicate(record: Record) -> str:
    return f"duplicate id or file: {record.id!r} ({record.place})"


def _image_files(reading: Reading, named: set[str]) -> Iterator[tuple[str, str]]:
    """The id and the path of every image file in the folders of a collection.

    Args:
        reading: The collection.
        named: The files that its records name.
    """
    folders = {dirname(path) for path in named}
    for parent in sorted(folders) if reading.base is None else [reading.base]:
        if is_inside(reading.folder, parent):
            for name in files_below(reading.folder / parent, get_modality("image").suffixes):
                yield name, normpath(join(parent, name))


def _check_files(reading: Reading, records: list[Record]) -> list[Record]:
    """The records with those of their files that can be decoded; at least one, if they had any."""

    def files() -> Iterator[tuple[Record, str, str]]:
        for record in records:
            for name, paths in record.sources.items():
                for path in paths if get_modality(name).is_file else ():
                    yield record, name, path

    n = sum(len(record.paths) for record in records)
    sources = ((name, reading.source_of(path)) for _, name, path in files())
    broken = set()
    for (record, _, path), reason in zip(files(), check_sources(sources, n), strict=True):
        if reason is not None:
            broken.add(path)
            reading.problems.append(Problem(path, reason, record.id))
    if not broken:
        return records
    checked = [(record, record.with_files(set(record.paths) - broken)) for record in records]
    return [whole for record, whole in checked if whole.paths or not record.paths]


def check_sources(sources: Iterable[tuple[str, Source]], n: int) -> Iterator[str | None]:
    """The reason why each source cannot be used, or `None`; many show their progress.

    Args:
        sources: The modality of each, and the source, which is decoded once.
        n: Their number.
    """
    progress = Progress(n, "file") if n > PROGRESS_FROM else None
    sources, done = iter(sources), 0
    with ThreadPoolExecutor(cores()) as pool:
        while block := list(itertools.islice(sources, QUEUED)):
            yield from pool.map(lambda named: problem_of_source(*named), block)
            done += len(block)
            if progress is not None:
                progress.update(done)


class WholeRows:
    """The rows of unchecked items that can be used; each is decoded once, when it comes first.

    Args:
        sources: Those of each row, by modality.
        quarantined: Gets what is damaged.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Sequence[Source]]],
        quarantined: list[tuple[str, str]],
    ):
        self._sources, self._quarantined = sources, quarantined
        self._n = len(next(iter(sources.values())))
        self._is_whole: dict[int, bool] = {}
        self._lock = threading.Lock()  # several threads decode

    def first_from(self, row: np.ndarray) -> np.int64:
        """The first usable row from this one on."""
        rows = range(int(row), int(row) + self._n)
        usable = (each % self._n for each in rows if self._check(each % self._n))
        if (found := next(usable, None)) is None:
            last = self._quarantined[-1]
            raise ValueError(f"none of the {self._n} rows can be used: {last}")
        return np.int64(found)

    def _check(self, row: int) -> bool:
        if row not in self._is_whole:
            problems = [
                (one_line(source.name), one_line(reason))
                for name, each in self._sources.items()
                if get_modality(name).is_file
                for source in each[row]
                if (reason := problem_of_source(name, source))
            ]
            with self._lock:
                if row not in self._is_whole and problems:
                    self._quarantined += problems
                    warnings.warn("set aside: " + printable(": ".join(problems[0])), stacklevel=2)
                self._is_whole[row] = not problems
        return self._is_whole[row]


def problem_of_source(modality: str, source: Source) -> str | None:
    """The reason why a source cannot be used, or `None`.

    Args:
        modality: Its modality.
        source: Is read and decoded.
    """
    try:
        if source.size() > MAX_FILE_BYTES:
            return f"too large: more than {MAX_FILE_BYTES} bytes"
        content = source.read()
    except (OSError, ValueError) as error:
        return f"unreadable: {getattr(error, 'strerror', None) or error}"
    try:
        get_modality(modality).check(content)
    except ValueError as error:
        return str(error)
    return None

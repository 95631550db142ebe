"""Cleaning (数据清洗): find the files that a collection names, check each once, set aside the rest.

Between the readers and `Collection`. A collection is not trusted: no file outside its folder is
opened, and none beyond a size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from posixpath import dirname, join, normpath

from mmret_tf._machine import cores
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.pairs import source_ids
from mmret_tf.data.progress import Progress
from mmret_tf.data.readers.reading import Problem, Reading, Record, files_below, is_inside
from mmret_tf.data.splits import hash_split

# A larger file is not even read. The largest picture that is decoded has half of this as a BMP.
MAX_FILE_BYTES = 2**29

# A scan of more files shows its progress.
PROGRESS_FROM = 5000


def usable_records(reading: Reading, split: str | None) -> list[Record]:
    """The records of a split that can be used, with the files that can; problems are noted.

    Args:
        reading: What a reader read.
        split: Name of a split, or `None` for all. Files of other splits are not checked.
    """
    found = _find_files(reading)
    return _check_files(reading, [each for each in found if split in (None, each.split)])


def problems_of(reading: Reading, split: str | None) -> list[tuple[str, str]]:
    """The problems of one split, and those whose split is unknown: (place, reason)."""
    split_of = {record.id: record.split for record in reversed(reading.records)}

    def concerns(problem: Problem) -> bool:
        if split is None or problem.record_id is None:
            return True
        if reading.is_hashed:
            return hash_split(problem.record_id) == split
        return split_of.get(problem.record_id, split) == split

    return [
        (_one_line(problem.place), _one_line(problem.reason))
        for problem in reading.problems
        if concerns(problem)
    ]


def _find_files(reading: Reading) -> list[Record]:
    """The records that are distinct and have a source, with the files that exist."""
    found, ids, files = [], set(), set()
    for record in reading.records:
        existing = _distinct_files(reading, record, files)
        if record.paths and not existing:
            continue
        with reading.set_aside((record.paths or [record.place])[0], record.id):
            record.id.encode()  # fails if it is not valid Unicode
            if not existing and not record.sources.get("text"):
                raise ValueError("neither a file nor a caption")
            kept = set(existing.values())
            sources = {
                name: each
                if not get_modality(name).is_file
                else [path for path in each if path in kept]
                for name, each in record.sources.items()
            }
            names = [source_ids(record.id, len(each)) for each in sources.values()]
            taken = {record.id, *(name for each in names for name in each)}
            if taken & ids:
                raise ValueError(_duplicate(record))
            ids |= taken
            files |= set(existing)
            found.append(replace(record, sources=sources))

    named = {path for record in reading.records for path in record.paths}
    for record_id, path in _image_files(reading):
        if path not in named:
            reading.problems.append(Problem(path, "image without a caption", record_id))
    return found


def _distinct_files(reading: Reading, record: Record, files: set[str]) -> dict[str, str]:
    """The paths of a record, by their files, that exist, lie inside and are not in `files`."""
    found = {}
    for path in record.paths:
        with reading.set_aside(path, record.id):
            if not is_inside(reading.folder, path):
                raise ValueError(f"leads outside the collection ({record.place})")
            if not (file := reading.folder / path).is_file():
                raise ValueError(f"the file does not exist ({record.place})")
            path.encode()  # fails if it is not valid Unicode
            real = os.path.realpath(file)
            if real in files or real in found:
                raise ValueError(_duplicate(record))
            found[real] = path
    return found


def _duplicate(record: Record) -> str:
    return f"duplicate id or file: {record.id!r} ({record.place})"


def _image_files(reading: Reading) -> Iterator[tuple[str, str]]:
    """The image files that lie in a collection: the id that each would have, and its path."""
    folders = {dirname(path) for record in reading.records for path in record.paths}
    for parent in sorted(folders) if reading.base is None else [reading.base]:
        if is_inside(reading.folder, parent):
            for name in files_below(reading.folder / parent, get_modality("image").suffixes):
                yield name, normpath(join(parent, name))


def _check_files(reading: Reading, records: list[Record]) -> list[Record]:
    """The records with the files that can be decoded; without those that have lost all of theirs."""
    files = [
        (record, name, path)
        for record in records
        for name, paths in record.sources.items()
        if get_modality(name).is_file
        for path in paths
    ]
    progress = Progress(len(files), "file") if len(files) > PROGRESS_FROM else None
    broken = set()

    def problem_of(file: tuple[Record, str, str]) -> str | None:
        _, modality, path = file
        return _problem_of_file(reading.folder / path, modality)

    with ThreadPoolExecutor(cores()) as pool:
        reasons = pool.map(problem_of, files)
        for number, ((record, _, path), reason) in enumerate(zip(files, reasons, strict=True), 1):
            if reason is not None:
                broken.add(path)
                reading.problems.append(Problem(path, reason, record.id))
            if progress is not None:
                progress.update(number)
    checked = []
    for record in records:
        sources = {
            name: each
            if not get_modality(name).is_file
            else [path for path in each if path not in broken]
            for name, each in record.sources.items()
        }
        whole = replace(record, sources=sources)
        if whole.paths or not record.paths:
            checked.append(whole)
    return checked


def _problem_of_file(file: Path, modality: str) -> str | None:
    """The reason why a file cannot be used, if there is one."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return f"too large: more than {MAX_FILE_BYTES} bytes"
        get_modality(modality).check(file.read_bytes())
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return None


def _one_line(text: str) -> str:
    """A name from an untrusted collection, fit for a message."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())

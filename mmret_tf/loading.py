"""What is usable in a collection: its images found and decoded once, the rest put aside and told.

Between the captions file, which `layouts` reads, and the loaders `load_pairs` and `load_items`. A
collection is not trusted: no image outside its folder is opened, and none of any size.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from posixpath import dirname, join, normpath

import keras
import tensorflow as tf

from mmret_tf.layouts import (
    IMAGE_SUFFIXES,
    Collection,
    Problem,
    Record,
    files_below,
    is_inside,
    read_layout,
)
from mmret_tf.preprocessing import decode_failure, decode_image
from mmret_tf.scenes import cached_scenes
from mmret_tf.splits import count_splits, hash_split, normal_split

# A larger image file is not even read. The largest picture that is decoded, as a BMP, has half.
MAX_IMAGE_BYTES = 2**29

# A scan of more images shows its progress.
PROGRESS_FROM = 5000


def load_columns(
    source: str | os.PathLike[str],
    split: str | None,
    size: int,
    seed: int,
    needs_both: bool,
) -> dict[str, list]:
    """Read a collection, decode its images once, and warn of what is put aside.

    Args:
        source, split, size, seed: as for `load_pairs`.
        needs_both: whether an item without an image, or without a caption, is put aside.

    Returns:
        The fields of an `ItemDataset`, by name: lists with one entry an item, and "quarantined".

    Raises:
        ValueError: as for `load_pairs`.
    """
    split = None if split is None else normal_split(split)
    if source == "scenes":
        source = cached_scenes(split or "train", size, seed)
    collection = read_layout(Path(source))
    splits = [record.split for record in collection.records]
    if collection.records and split is not None and split not in splits:
        kind = "images" if needs_both else "items"
        raise ValueError(
            f"{source} has no {kind} of split {split!r}; it has {count_splits(splits)}"
        )

    found = _find_images(collection, needs_both)
    records = _decode_images(collection, [r for r in found if split is None or r.split == split])
    quarantined = [
        (_one_line(problem.place), _one_line(problem.reason))
        for problem in _problems_of(collection, split)
    ]
    some = "; ".join(": ".join(each) for each in quarantined[:3])
    some += "; ..." if len(quarantined) > 3 else ""
    if not records:
        images = sum(len(record.paths) for record in collection.records)
        raise ValueError(
            f"nothing usable in {source}: {collection.source} names {images} images; "
            f"{len(quarantined)} entries were put aside: {some or 'none'}"
        )
    if quarantined:
        total = len(records) + len(quarantined)
        warnings.warn(
            f"{len(quarantined)} of {total} entries were put aside (see .quarantined): {some}",
            stacklevel=3,  # the line that calls the loader
        )
    return {
        "ids": [record.id for record in records],
        "image_paths": [[collection.folder / path for path in r.paths] for r in records],
        "captions": [record.captions for record in records],
        "attributes": [record.attributes for record in records],
        "splits": [record.split for record in records],
        "quarantined": quarantined,
    }


def image_ids(item_id: str, n: int) -> list[str]:
    """Names for the n images of an item: its id, or numbers behind it where they are several."""
    return [item_id] if n == 1 else [f"{item_id}#{number}" for number in range(n)]


def _find_images(collection: Collection, needs_both: bool) -> list[Record]:
    """The records that are distinct and have what they need, with the images that exist."""
    found, ids, files = [], set(), set()
    for record in collection.records:
        images = _distinct_files(collection, record, files)
        if record.paths and not images:
            continue
        with collection.put_aside((record.paths or [record.place])[0], record.id):
            record.id.encode()  # an error if it is not valid Unicode
            if not images and not record.captions:
                raise ValueError("neither an image nor a caption")
            if needs_both and not images:
                raise ValueError("text without an image: load_items takes it, load_pairs cannot")
            if needs_both and not record.captions:
                raise ValueError("image without a caption")
            taken = {record.id, *image_ids(record.id, len(images))}
            if taken & ids:
                raise ValueError(_duplicate(record))
            ids |= taken
            files |= set(images)
            found.append(replace(record, paths=list(images.values())))

    named = {path for record in collection.records for path in record.paths}
    for record_id, path in _image_files(collection):
        if path not in named:
            collection.problems.append(Problem(path, "image without a caption", record_id))
    return found


def _distinct_files(collection: Collection, record: Record, files: set[str]) -> dict[str, str]:
    """The images of a record, by their files, that exist, lie inside and are not in `files`."""
    images = {}
    for path in record.paths:
        with collection.put_aside(path, record.id):
            if not is_inside(collection.folder, path):
                raise ValueError(f"leads outside the collection ({record.place})")
            if not (file := collection.folder / path).is_file():
                raise ValueError(f"the image does not exist ({record.place})")
            path.encode()  # an error if it is not valid Unicode
            real = os.path.realpath(file)
            if real in files or real in images:
                raise ValueError(_duplicate(record))
            images[real] = path
    return images


def _duplicate(record: Record) -> str:
    return f"duplicate id or image: {record.id!r} ({record.place})"


def _image_files(collection: Collection) -> Iterator[tuple[str, str]]:
    """The image files that lie in a collection: the id that each would have, and its path."""
    folders = {dirname(path) for record in collection.records for path in record.paths}
    for parent in sorted(folders) if collection.base is None else [collection.base]:
        if is_inside(collection.folder, parent):
            for name in files_below(collection.folder / parent, IMAGE_SUFFIXES):
                yield name, normpath(join(parent, name))


def _decode_images(collection: Collection, records: list[Record]) -> list[Record]:
    """The records with the images that decode; without those that have lost all of theirs."""
    images = [(record.id, path) for record in records for path in record.paths]
    bar = None
    if len(images) > PROGRESS_FROM:
        bar = keras.utils.Progbar(len(images), unit_name="image")
    broken = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda image: _try_to_decode(collection.folder / image[1]), images)
        for number, ((record_id, path), reason) in enumerate(zip(images, reasons, strict=True), 1):
            if reason is not None:
                broken.add(path)
                collection.problems.append(Problem(path, reason, record_id))
            if bar is not None:
                bar.update(number)
    whole = [[path for path in record.paths if path not in broken] for record in records]
    return [
        replace(record, paths=paths)
        for record, paths in zip(records, whole, strict=True)
        if paths or not record.paths
    ]


def _try_to_decode(file: Path) -> str | None:
    """The reason why an image cannot be used, if there is one."""
    try:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            return f"too large: more than {MAX_IMAGE_BYTES} bytes"
        decode_image(file.read_bytes())
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except tf.errors.OpError as error:
        return decode_failure(error)
    return None


def _problems_of(collection: Collection, split: str | None) -> list[Problem]:
    """The problems of one split, and those of which nobody can tell the split."""
    split_of = {record.id: record.split for record in reversed(collection.records)}

    def concerns(problem: Problem) -> bool:
        if split is None or problem.record_id is None:
            return True
        if collection.is_hashed:
            return hash_split(problem.record_id) == split
        return split_of.get(problem.record_id, split) == split

    return [problem for problem in collection.problems if concerns(problem)]


def _one_line(text: str) -> str:
    """A name from an untrusted collection, fit for a message."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())

"""How captions lie on disk: each reader turns one layout into records, and opens no image.

What cannot be understood becomes a `Problem` with its place; a reader never stops halfway.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from posixpath import join, normpath
from typing import Any, NamedTuple

from mmret_tf.splits import hash_split, normal_split

LAYOUTS = (
    "captions.jsonl, captions.csv (header image,caption), dataset_*.json (Karpathy), "
    "captions_*.json or annotations/captions_*.json (MS-COCO), captions.txt or "
    "Flickr8k.token.txt (Flickr8k, images in Images/), pairs of a.jpg and a.txt"
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")

# A captions file is read whole; all captions of MS-COCO take 0.1 GiB.
MAX_CAPTIONS_BYTES = 2**30


class Problem(NamedTuple):
    """Something put aside; `record_id` where it is known which record it belongs to."""

    place: str
    reason: str
    record_id: str | None = None


@dataclass
class Record:
    """One item, as the captions file speaks of it: an image in most layouts."""

    id: str
    paths: list[str]  # of its images, relative to the collection, with "/"
    place: str  # "captions.jsonl line 3"
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    def set_split(self, split: str | None) -> None:
        """A record is in one split: the first that is named for it."""
        split = normal_split(split or "") or self.split
        if self.split not in (None, split):
            raise ValueError(f"split {split!r}, but {self.id} is in {self.split!r} already")
        self.split = split


@dataclass
class Collection:
    """What the captions file of one folder says."""

    folder: Path
    source: str  # the captions files, for messages
    problems: list[Problem] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    base: str | None = "."  # images are anywhere below it; None: in the folders of the records
    is_hashed: bool = False  # the layout names no splits, so `hash_split` makes them
    table: dict[str, Record] = field(default_factory=dict)  # the records that `add_row` made

    @contextmanager
    def put_aside(self, place: str, record_id: str | None = None) -> Iterator[None]:
        """Turn what goes wrong with one row into a problem, and go on."""
        try:
            yield
        except (ValueError, RecursionError, csv.Error) as error:
            self.problems.append(Problem(place, _reason(error), record_id))

    def add_row(
        self, place: str, image: str, caption: str | None = None, split: str | None = None
    ) -> None:
        """Add one row of a table to the record of its image."""
        name = normpath(image.strip())
        if name not in self.table:
            self.table[name] = Record(name, [normpath(join(self.base, name))], place)
            self.records.append(self.table[name])
        with self.put_aside(place, name):
            self.table[name].set_split(split)
            self.add_captions(self.table[name], [] if caption is None else [caption], place)

    def add_captions(self, record: Record, captions: list, place: str) -> None:
        for caption in captions:
            with self.put_aside(place, record.id):
                if not isinstance(caption, str):
                    raise ValueError(f"a caption must be a string, got {json.dumps(caption)[:40]}")
                if not caption.strip():
                    raise ValueError("empty caption")
                caption.encode()  # an error if it is not valid Unicode
                record.captions.append(caption.strip())


def is_inside(folder: Path, path: str) -> bool:
    """Whether a path relative to `folder` stays in it, links followed."""
    root = os.path.realpath(folder)
    try:
        real = os.path.realpath(os.path.join(root, path))
    except ValueError:  # a zero byte in the name
        return False
    return not os.path.isabs(path) and os.path.commonpath([root, real]) == root


def _read_jsonl(collection: Collection, file: Path) -> None:
    """One object a line: image or images, captions (or one caption), and perhaps id, split,
    attributes. Images may come without captions, and captions with an id may come without images.
    Lines with one `caption` each are joined where they speak of the same item."""
    joined: dict[tuple[str, ...], Record] = {}
    for place, line in _lines(collection, file):
        if not line.strip():
            continue
        with collection.put_aside(place):
            row = json.loads(line.strip())
            paths = _image_paths(row)
            record = Record(str(_get(row, "id", (str, int), *paths[:1])), paths, place)
            split = _get(row, "split", str, None)
            attributes = _get(row, "attributes", dict, {})
            json.dumps(attributes, ensure_ascii=False).encode()
            captions = _get(row, "captions", list, None)
            if captions is None:
                captions = [_get(row, "caption", str)] if "caption" in row or not paths else []
                record = joined.setdefault((record.id, *paths), record)
            record.set_split(split)
            record.attributes.update(attributes)
            if record.place == place:
                collection.records.append(record)
            collection.add_captions(record, captions, place)


def _read_csv(collection: Collection, file: Path) -> None:
    """Columns image and caption, perhaps split; others are not used. A row is one caption."""
    rows = _csv_rows(collection, file)
    header = next(rows, ("", []))[1]
    columns = [column.strip().lower() for column in header]
    if not {"image", "caption"} <= set(columns):
        raise ValueError(
            f"{file} must begin with a header that names the columns image and caption; "
            f"got {','.join(header)[:80]!r}"
        )
    for place, row in rows:
        with collection.put_aside(place):
            if len(row) != len(columns):
                raise ValueError(
                    f"expected {len(columns)} fields ({','.join(columns)}), got {len(row)}"
                )
            cell = dict(zip(columns, row, strict=True))
            collection.add_row(place, cell["image"], cell["caption"], cell.get("split"))


def _read_flickr8k(collection: Collection, file: Path) -> None:
    """As distributed: captions in one file, images in a folder, a list of names for each split."""
    folders = [name for name in IMAGE_FOLDERS if (collection.folder / name).is_dir()]
    collection.base = (folders or ["."])[0]
    if file.name == "captions.txt":
        _read_csv(collection, file)
    else:
        for place, line in _lines(collection, file):
            with collection.put_aside(place):
                if row := re.fullmatch(r"(.+)#\d+\t([^\t]*)", line.strip("\r\n")):
                    collection.add_row(place, row[1], row[2])
                elif line.strip():
                    raise ValueError("expected name.jpg#number, a tab and the caption")
    for split in ("train", "dev", "test"):
        file = collection.folder / f"Flickr_8k.{split}Images.txt"
        for place, line in _lines(collection, file) if file.is_file() else ():
            if line.strip():
                collection.add_row(place, line, split=split)


def _read_karpathy(collection: Collection, file: Path) -> None:
    """{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""
    collection.base = None
    [images] = _load(collection, file, "images")
    for place, row in images:
        with collection.put_aside(place):
            name = normpath(join(_get(row, "filepath", str, "."), _get(row, "filename", str)))
            path = _locate(collection.folder, name, (".", *IMAGE_FOLDERS))
            record = Record(name, [path], place)
            record.set_split(_get(row, "split", str, None))
            sentences = _get(row, "sentences", list)
            collection.records.append(record)
            raw = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
            collection.add_captions(record, raw, place)


def _read_coco(collection: Collection, file: Path) -> None:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    collection.base = None
    part = file.stem.removeprefix("captions_")  # "train2017", which is also the images' folder
    split = re.match("train|val|dev|test", part)
    places = (part, ".", "images", join("images", part))
    images, annotations = _load(collection, file, "images", "annotations")
    records: dict[str, Record] = {}
    for place, row in images:
        with collection.put_aside(place):
            image_id = str(_get(row, "id", (str, int)))
            name = normpath(_get(row, "file_name", str))
            if image_id in records:
                raise ValueError(f"duplicate id {image_id}, that of {records[image_id].id}")
            record = Record(name, [_locate(collection.folder, name, places)], place)
            record.set_split(split and split[0])
            records[image_id] = record
    collection.records.extend(records.values())
    for place, row in annotations:
        with collection.put_aside(place):
            image_id = str(_get(row, "image_id", (str, int)))
            if image_id not in records:
                raise ValueError(f"image_id {image_id} is not among the images")
            collection.add_captions(records[image_id], [row.get("caption")], place)


def _read_pairs(collection: Collection, folder: Path) -> None:
    """a.jpg and a.txt, in any subfolder; each line of the text is a caption."""
    images = defaultdict(list)
    for image in files_below(folder, IMAGE_SUFFIXES):
        images[os.path.splitext(image)[0] + ".txt"].append(image)
    for text in files_below(folder, (".txt",)):
        with collection.put_aside(text):
            if text not in images:
                raise ValueError("no image of this name")
            for place, line in _lines(collection, folder / text):
                for image in images[text] if line.strip() else ():
                    collection.add_row(place, image, line)


# The first that a folder has is its layout. A file that is named directly needs the ending alone.
READERS = {
    "captions.jsonl": _read_jsonl,
    "captions.csv": _read_csv,
    "dataset_*.json": _read_karpathy,
    "annotations/captions_*.json": _read_coco,
    "captions_*.json": _read_coco,
    "captions.txt": _read_flickr8k,
    "Flickr8k.token.txt": _read_flickr8k,
}


def read_layout(source: Path) -> Collection:
    """Recognise the layout of a folder, or of one captions file, and read it.

    Raises:
        ValueError: nothing is there, no layout is recognised, or a captions file is unreadable.
    """
    folder = source
    if source.is_dir():
        matches = ((reader, sorted(source.glob(name))) for name, reader in READERS.items())
        reader, files = next((match for match in matches if match[1]), (_read_pairs, [source]))
    elif source.is_file():
        folder, files = source.parent, [source]
        name = f"captions{source.suffix}" if source.suffix in (".jsonl", ".csv") else source.name
        if fnmatchcase(name, "captions_*.json") and folder.name == "annotations":
            folder, name = folder.parent, f"annotations/{name}"
        reader = next((READERS[known] for known in READERS if fnmatchcase(name, known)), None)
        if reader is None:
            raise ValueError(f"{source} is none of the layouts known: {LAYOUTS}")
    else:
        raise ValueError(f"there is no folder or captions file {source}")
    if reader is _read_karpathy and len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several dataset_*.json ({names}): give the path of one")

    collection = Collection(folder, " and ".join(file.name for file in files))
    for file in files:
        reader(collection, file)
    if reader is _read_pairs and not collection.records:
        names = sorted(os.listdir(folder))
        held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise ValueError(f"{folder} has none of the layouts known: {LAYOUTS}; it holds {held}")
    collection.is_hashed = all(record.split is None for record in collection.records)
    for record in collection.records:
        record.split = hash_split(record.id) if collection.is_hashed else record.split or ""
    return collection


def _lines(collection: Collection, file: Path) -> Iterator[tuple[str, str]]:
    """The place and text of each line that is UTF-8."""
    name = file.relative_to(collection.folder).as_posix()
    for number, line in enumerate(_read(collection, file).splitlines(keepends=True), 1):
        text = None
        with collection.put_aside(f"{name} line {number}"):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if text is not None:
            yield f"{name} line {number}", text


def _csv_rows(collection: Collection, file: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and fields of each row. Each is parsed by a reader of its own, so that a quote
    which is never closed costs its own line and not all that follow."""
    lines = list(_lines(collection, file))
    at = 0
    while at < len(lines):
        place, length, row = lines[at][0], 1, []
        reader = csv.reader((lines[i][1] for i in range(at, len(lines))), strict=True)
        with collection.put_aside(place):
            row = next(reader)
            length = reader.line_num
        if row:  # not a blank line
            yield place, row
        at += length


def _load(collection: Collection, file: Path, *keys: str) -> list[list[tuple[str, Any]]]:
    """Lists that a JSON file holds under these keys, each item with its place."""
    name = file.relative_to(collection.folder).as_posix()
    contents = _read(collection, file)
    try:
        content = json.loads(contents)
        lists = [_get(content, key, list) for key in keys]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {_reason(error)}") from None
    return [
        [(f"{name} {key}[{number}]", item) for number, item in enumerate(items)]
        for key, items in zip(keys, lists, strict=True)
    ]


def _get(row: object, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """A field of a JSON object, its type checked. Without a default it must be there."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {json.dumps(row)[:40]}")
    value = row.get(key)
    if value is None and default is not ...:
        return default
    if not isinstance(value, kind) or value == "":
        name = {str: "a string", list: "a list", dict: "an object"}.get(kind, "a string or number")
        raise ValueError(f"`{key}` must be {name}, got {json.dumps(value)[:40]}")
    return value


def _image_paths(row: object) -> list[str]:
    """The images that a row of JSON names; none if it is text alone."""
    image, images = _get(row, "image", str, None), _get(row, "images", list, None)
    if image is None and images is None:
        if _get(row, "id", (str, int), None) is None:
            raise ValueError("`image` must be a string, got null (text alone needs an `id`)")
        return []
    if image is not None and images is not None:
        raise ValueError("a row has `image` or `images`, not both")
    images = [image] if images is None else images
    if not images or not all(isinstance(each, str) and each for each in images):
        got = json.dumps(images)[:40]
        raise ValueError(f"`images` must be a list of strings, at least one; got {got}")
    return [normpath(each) for each in images]


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


def _read(collection: Collection, file: Path) -> bytes:
    """A captions file as bytes; only a regular file in the folder, of a size that fits."""
    if not is_inside(collection.folder, os.path.relpath(file, collection.folder)):
        raise ValueError(f"{file} is a link that leads outside the collection")
    try:
        if not file.is_file() or file.stat().st_size > MAX_CAPTIONS_BYTES:
            raise ValueError(f"{file} is no file, or has more than {MAX_CAPTIONS_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None


def _locate(folder: Path, name: str, places: tuple[str, ...]) -> str:
    """The path of an image that may lie in several places; the first place if it is in none."""
    paths = [normpath(join(place, name)) for place in places]
    return next((path for path in paths if os.path.isfile(join(folder, path))), paths[0])


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names of the files with such a suffix below a folder, sorted; hidden ones are passed over."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent, name).relative_to(folder).as_posix()

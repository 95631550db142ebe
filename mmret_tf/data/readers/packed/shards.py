"""WebDataset: shards of tar files, which stay packed; members of one name are an item."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from mmret_tf.data.decoders.pictures import SUFFIXES
from mmret_tf.data.readers.folders import LABEL
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import (
    Reading,
    Record,
    caption_column,
)
from mmret_tf.data.sources import RangeSource, tar_members
from mmret_tf.data.splits import split_of_file

TEXTS = ("txt", "text", "caption")

# A larger member is no caption and no description.
MAX_TEXT_BYTES = 2**20


class Shards(Reader):
    """0001.jpg, 0001.txt (a caption a line), 0001.json (a caption, attributes), 0001.cls (a class).

    The folder of a shard, or the beginning of its name, may be that of a split.
    """

    names = ("*.tar", "*/*.tar")
    has_all_names = True
    takes = ("caption_column",)
    precedence = 7

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        if not reading.may_open(file):
            return
        shard = file.relative_to(reading.folder).as_posix()
        split = split_of_file(file.name)
        with reading.set_aside(shard):
            for key, members in groupby(tar_members(file), lambda each: _apart(each.member)[0]):
                name = f"{shard}/{key}"
                record = Record(name, {}, name, split)
                for member in members:
                    with reading.set_aside(f"{shard}/{member.member}", record.id):
                        _add_member(reading, record, shard, member)
                if "text" in record.sources:  # a caption may be in two members
                    record.sources["text"] = list(dict.fromkeys(record.sources["text"]))
                reading.records.append(record)


def _apart(name: str) -> tuple[str, str]:
    """The key and the extension of a member: what stands before and behind the first dot."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _add_member(reading: Reading, record: Record, shard: str, member: RangeSource) -> None:
    """Add one member to its item; members of other kinds are ignored."""
    _, extension = _apart(member.member)
    place = f"{shard}/{member.member}"
    if f".{extension.rpartition('.')[2]}" in SUFFIXES:
        reading.parts[place] = member
        record.sources.setdefault("image", []).append(place)
        return
    if extension not in (*TEXTS, "json", "cls"):
        return
    if member.length > MAX_TEXT_BYTES:
        raise ValueError(f"has {member.length} bytes, at most {MAX_TEXT_BYTES} are read")
    text = member.read().decode()
    if extension == "cls":
        record.attributes[LABEL] = text.strip()
    elif extension == "json":
        _add_description(reading, record, place, json.loads(text))
    else:
        reading.add_texts(record, filter(str.strip, text.split("\n")), place)


def _add_description(reading: Reading, record: Record, place: str, row: Any) -> None:
    """Add the caption and the attributes of an object."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {json.dumps(row)[:40]}")
    json.dumps(row, ensure_ascii=False).encode()  # fails if it is not valid Unicode
    name = caption_column(reading.form, list(row))
    captions = row.pop(name) if name else []
    record.attributes.update({key: each for key, each in row.items() if each is not None})
    reading.add_texts(record, captions if isinstance(captions, list) else [captions], place)

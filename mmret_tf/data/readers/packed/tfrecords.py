"""TFRecord: `tf.train.Example`s with an encoded picture and captions, which stay in their files."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from mmret_tf.data.readers.packed.rows import add_item, required_columns
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import Problem, Reading, Record
from mmret_tf.data.sources import RangeSource
from mmret_tf.data.splits import split_of_file

IMAGE_FEATURES = ("image", "image/encoded")
ID_FEATURES = ("id", "image/id", "image/filename")

# A record is its length (uint64), a checksum of it, its bytes, and a checksum of them (uint32).
LENGTH = struct.Struct("<QI")
CHECKSUM_BYTES = 4

# A longer record is taken for damage.
MAX_RECORD_BYTES = 2**29


class TfRecords(Reader):
    """An Example for each item: the features image, caption and id, perhaps split, attributes.

    The folder of a file, or its name as in `train-00000-of-00002.tfrecord` or
    `photos-train.tfrecord-00000-of-00002`, may be that of a split.
    """

    names = tuple(
        folder + name
        for folder in ("", "*/")
        for name in ("*.tfrecord", "*.tfrecords", "*.tfrecord.gz", "*.tfrecord-*-of-*")
    )
    has_all_names = True
    takes = ("image_column", "caption_column")
    precedence = 7.2

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        name = file.relative_to(reading.folder).as_posix()
        if not reading.may_open(file):
            return
        if _is_compressed(file):
            raise ValueError(f"{file} is compressed with GZIP, so it cannot be read: unpack it")
        split = split_of_file(file.name)
        for number, (start, content) in enumerate(_records(reading, file, name)):
            place = f"{name} record {number}"
            with reading.set_aside(place):
                row = _features(content)
                pictures = [each for each in row if each in IMAGE_FEATURES]
                image, caption = required_columns(reading.form, list(row), pictures)
                source = None
                if image is not None:
                    first, length = _find_picture(content, image, row.pop(image))
                    source = _range_source(file, number, start + first, length)
                texts = row.pop(caption, None)
                record = Record(f"{name}/{number}", {}, place, split)
                add_item(reading, record, source, texts, row, ID_FEATURES)


def _is_compressed(file: Path) -> bool:
    """Whether a file is compressed with GZIP."""
    try:
        with gzip.open(file) as stream:
            stream.read(1)
    except (OSError, EOFError, zlib.error):
        return False
    return file.stat().st_size > 0


def _records(reading: Reading, file: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """The first byte and the content of each record; a damaged one ends the file.

    TensorFlow compares the checksums. It gives no positions, which the lengths do.
    """
    number = 0
    try:
        contents = tf.data.TFRecordDataset(os.fspath(file)).as_numpy_iterator()
        for start, content in zip(_starts(file), contents, strict=False):
            yield start, content
            number += 1
    except (ValueError, OSError) as error:
        reason = str(error)
    except tf.errors.OpError:
        reason = "its checksum is wrong"
    else:
        return
    reason = f"{reason}; the rest of the file is not read"
    reading.problems.append(Problem(f"{name} record {number}", reason))


def _starts(file: Path) -> Iterator[int]:
    """The first byte of the content of each record; ValueError for a damaged length."""
    size, at = file.stat().st_size, 0
    with open(file, "rb") as stream:
        while at < size:
            stream.seek(at)
            header = stream.read(LENGTH.size)
            if len(header) < LENGTH.size:
                raise ValueError("the file ends within it")
            length, _ = LENGTH.unpack(header)
            if length > MAX_RECORD_BYTES:
                raise ValueError(f"its length is damaged, or above {MAX_RECORD_BYTES} bytes")
            start = at + LENGTH.size
            at = start + length + CHECKSUM_BYTES
            if at > size:
                raise ValueError("the file ends within it")
            yield start


def _features(content: bytes) -> dict[str, Any]:
    """The features of an Example: a value, or a list of several; empty ones are left out."""
    try:
        example = tf.train.Example.FromString(content)
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None
    row = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if values:
            row[name] = values[0] if len(values) == 1 else values
    return row


def _find_picture(content: bytes, name: str, value: Any) -> tuple[int, int]:
    """The first byte in a record and the length of a picture."""
    if not isinstance(value, bytes):
        got = f"{len(value)} values" if isinstance(value, list) else f"a {type(value).__name__}"
        raise ValueError(f"`{name}` must hold the bytes of one encoded picture, got {got}")
    return content.find(value), len(value)


def _range_source(file: Path, number: int, start: int, length: int) -> RangeSource:
    """The source of a picture; its name tells where it is, see `member_of_archive`."""
    name = f"record-{number}/bytes-{start}-{start + length - 1}"
    return RangeSource(file, name, start, length)

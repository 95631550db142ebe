"""Sources (数据来源): the origin of one picture, text or other content, and how to read it."""

import abc
import functools
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmret_tf._machine import cores

# The name of a range of bytes in a TFRecord file.
BYTES_PART = re.compile(r"record-\d+/bytes-(\d{1,18})-(\d{1,18})")


# Two changes of a file within this time, in nanoseconds, may leave the same time behind.
FRESH_NS = 2 * 10**9


class Source(abc.ABC):
    """One picture, text or other content, with a name and an identity; read only when needed."""

    __slots__ = ("_identity", "_identity_stamp")  # a collection may have millions

    @property
    @abc.abstractmethod
    def record(self) -> str:
        """The string that stands for the source in an item's record: a path, or the text itself."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The encoded content; ValueError if it cannot be read."""

    def size(self) -> int:
        """Number of bytes of the content; of a file, without reading it.

        Raises:
            OSError: The file is missing.
        """
        return len(self.read())

    @property
    def identity(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits; computed once."""
        if not self.is_identified:
            before, now = self.stamp(), time.time_ns()
            identity = hashlib.sha256(self.read()).hexdigest()
            is_settled = before is not None and before[1] < now - FRESH_NS
            self.remember(identity, before if is_settled else None)
        return self._identity

    @property
    def is_identified(self) -> bool:
        """Whether the identity is known, so that nothing is read for it."""
        return hasattr(self, "_identity")

    @property
    def identity_stamp(self) -> tuple[int, int] | None:
        """The stamp of the content that has the identity; `None` if there is none, or if the file
        had just changed, and so may have changed again without another stamp."""
        self.identity  # noqa: B018  is computed with it
        return self._identity_stamp

    def remember(self, identity: str, stamp: tuple[int, int] | None) -> None:
        """Take the identity as known.

        Args:
            identity: What `identity` is to be.
            stamp: What `identity_stamp` is to be.
        """
        object.__setattr__(self, "_identity", identity)  # subclasses are frozen
        object.__setattr__(self, "_identity_stamp", stamp)

    def stamp(self) -> tuple[int, int] | None:
        """Size in bytes and time of the last change in nanoseconds of the file that holds the
        content; `None` if there is no such file. The content has not changed if this has not."""
        return None

    @property
    def name(self) -> str:
        """Name in error messages."""
        return self.record


@dataclass(frozen=True, slots=True)
class FileSource(Source):
    """A file.

    Attributes:
        path: Path of the file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "abc"
    >>> _ = file.write_bytes(b"abc")
    >>> FileSource(file).identity[:8]  # of NIST's test vector
    'ba7816bf'
    """

    path: Path

    @property
    def record(self) -> str:
        return os.path.abspath(self.path)

    @property
    def name(self) -> str:
        return os.fspath(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    def stamp(self) -> tuple[int, int] | None:
        return stamp_of(self.path)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except NotADirectoryError:  # a member of an archive, perhaps
            return member_of_archive(self.path).read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{self.name}: {reason}") from None


@dataclass(frozen=True, slots=True)
class RangeSource(Source):
    """A range of a file's bytes, such as a member of a tar file, which stays packed.

    Attributes:
        path: Path of the file.
        member: Name of the part in it.
        start: Its first byte.
        length: Number of its bytes.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "abc"
    >>> _ = file.write_bytes(b"abc")
    >>> RangeSource(file, "b", 1, 1).read()
    b'b'
    """

    path: Path
    member: str
    start: int
    length: int

    @property
    def record(self) -> str:
        return os.path.join(os.path.abspath(self.path), self.member)

    def size(self) -> int:
        return self.length

    def stamp(self) -> tuple[int, int] | None:
        return stamp_of(self.path)

    def read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                content = file.read(self.length)
        except OSError as error:
            raise ValueError(f"{self.record}: {error.strerror or error}") from None
        if len(content) < self.length:
            raise ValueError(f"{self.record}: the archive ends within it")
        return content


@dataclass(frozen=True, slots=True)
class FolderSource(FileSource):
    """The files in a folder, such as the frames of a clip, as an uncompressed tar.

    The same content gives the same bytes. Hidden files, links and folders are left out.

    Args:
        path: Of the folder.
    """

    def size(self) -> int:
        return sum(each.stat().st_size for each in self._files())

    def stamp(self) -> None:
        """Nothing: a file may change without a trace in the folder's own time."""
        return None

    def read(self) -> bytes:
        packed = io.BytesIO()
        try:
            if not (files := self._files()):
                raise ValueError(f"{self.name}: the folder holds no files")
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for number, file in enumerate(files):
                    content = file.read_bytes()
                    member = tarfile.TarInfo(f"{number:08}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        except OSError as error:
            raise ValueError(f"{self.name}: {error.strerror or error}") from None
        return packed.getvalue()

    def _files(self) -> list[Path]:
        """Its files, by their names."""
        return sorted(
            each
            for each in self.path.iterdir()
            if each.is_file() and not each.is_symlink() and not each.name.startswith(".")
        )


def stamp_of(path: Path) -> tuple[int, int] | None:
    """`Source.stamp` of content in a file.

    Args:
        path: The file.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def tar_members(path: Path) -> Iterator[RangeSource]:
    """The files in a tar file that is not compressed, in their order.

    Args:
        path: The file.

    Raises:
        ValueError: It is not such a file, or it is cut off. What comes before can be used.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield RangeSource(path, member.name, member.offset_data, member.size)
                archive.members = []  # or it keeps them all
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path}: not a whole, uncompressed tar file: {error}") from None


def member_of_archive(path: Path) -> Source:
    """The source whose record is this path, as in `shard.tar/member`.

    Raises:
        ValueError: No parent of the path is a packed file, or it has no such member.
    """
    archive = next((each for each in path.parents if each.is_file()), None)
    if archive is None:
        raise ValueError(f"{path}: none of its folders is a folder or a packed file")
    name = path.relative_to(archive).as_posix()
    size, changed = archive.stat().st_size, archive.stat().st_mtime_ns
    if archive.suffix == ".parquet":
        from mmret_tf.data.readers.packed.parquet_pictures import parquet_source

        return parquet_source(archive, name)
    if ".tfrecord" in archive.name and (part := BYTES_PART.fullmatch(name)):
        first, last = map(int, part.groups())
        if first <= last < size:
            return RangeSource(archive, name, first, last - first + 1)
    found = _members(archive, size, changed).get(name)
    if found is None:
        raise ValueError(f"{path}: {archive.name} has no such member")
    return found


@functools.lru_cache(maxsize=8)
def _members(path: Path, size: int, changed: int) -> dict[str, RangeSource]:
    """The members of an archive by name; read again when the file changes."""
    return {source.member: source for source in tar_members(path)}


@dataclass(frozen=True, slots=True)
class InlineSource(Source):
    """Content in memory: a text, or a picture that is not a file.

    Attributes:
        content: Encoded bytes.
        name: Name in error messages.

    >>> InlineSource("红".encode()).record
    '红'
    """

    content: bytes
    name: str = "the source"

    @property
    def record(self) -> str:
        try:
            return self.content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # a picture in memory has no path
            return self.name

    def read(self) -> bytes:
        return self.content


def path_source(path: str | os.PathLike[str]) -> FileSource:
    """The source of a file, or of a folder of files.

    Args:
        path: Its path; the file need not exist.
    """
    path = Path(path)
    return FolderSource(path) if path.is_dir() else FileSource(path)


def file_or_bytes(value: Any) -> Source:
    """Turn a path or encoded bytes into a source.

    Args:
        value: A path, as a string or `os.PathLike`, or bytes.

    Raises:
        ValueError: `value` is something else.
    """
    if isinstance(value, bytes):
        return InlineSource(value)
    if isinstance(value, str | os.PathLike):
        return FileSource(Path(value))
    raise ValueError(f"expected a path or encoded bytes; got a {type(value).__name__}")


def identities(sources: Iterable[Source]) -> list[str]:
    """Content digests of many sources; those that are not known yet are read in several threads."""
    sources = list(sources)
    with ThreadPoolExecutor(cores()) as pool:
        unknown = [source for source in sources if not source.is_identified]
        list(pool.map(lambda source: source.identity, unknown))
    return [source.identity for source in sources]

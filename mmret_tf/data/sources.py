"""Sources (数据来源): the origin of one picture, text or other content, and how to read it."""

import abc
import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmret_tf._machine import cores


class Source(abc.ABC):
    """One picture, text or other content, with a name and an identity; read only when needed."""

    @property
    @abc.abstractmethod
    def record(self) -> str:
        """The string that stands for the source in an item's record: a path, or the text itself."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The encoded content; ValueError if it cannot be read."""

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits."""
        return hashlib.sha256(self.read()).hexdigest()

    @property
    def name(self) -> str:
        """Name in error messages."""
        return self.record


@dataclass(frozen=True)
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

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{self.name}: {reason}") from None


@dataclass(frozen=True)
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
    """Content digests of many sources, read in several threads."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda source: source.identity, sources))

"""A shard (分片): a part of a gallery, in a process of its own.

A change makes a new version of it, and the older ones stay for a while, for searches that began
before. A shard that was lost starts again from the newest version on disk.
"""

import copy
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import file_sha256
from mmret_tf.ranking.index import Index, build_index, load_index
from mmret_tf.ranking.indexes.snapshot import Found
from mmret_tf.scale.distributed.cluster import use_cores

# Versions that a shard keeps.
KEPT_VERSIONS = 4


class Behind(Exception):
    """A shard that started again has only older versions; the argument lists them."""


@dataclass(frozen=True)
class Part:
    """Facts about a version of a shard.

    Attributes:
        n: Number of items.
        dim: Width of the embeddings.
        metric: "cosine" or "euclidean".
        names: The attributes that items have.
        has_strings: Whether ids are strings.
        stats: See `Index.stats`.
        pid, host: The process and its machine.
    """

    n: int
    dim: int
    metric: str
    names: frozenset[str]
    has_strings: bool
    stats: dict[str, Any]
    pid: int
    host: str


class Shard:
    """One part of a gallery, in a process of its own: the last versions of an index.

    Args:
        folder: A saved index, version 0.
        sha256: Of its manifest: if the folder is replaced, the shard does not start again from it.
        newer: Folder for newer versions, each in a folder with its number as the name.
        share: Number of cores.
    """

    def __init__(self, folder: Path, sha256: str, newer: Path, share: float):
        use_cores(share)
        self._folder, self._sha256, self._newer = folder, sha256, newer
        self._versions: dict[int, Index] = {}
        self._changing = threading.RLock()  # searches go on in other threads

    def ping(self) -> None:
        """Answer."""

    def about(self, version: int) -> Part:
        """Facts about a version."""
        index = self._at(version)
        contents = index.snapshot
        return Part(
            len(index),
            index.dim,
            index.metric,
            frozenset(contents.names),
            contents.ids.dtype == object,
            index.stats,
            os.getpid(),
            os.uname().nodename,
        )

    def search(
        self,
        version: int,
        queries: np.ndarray,
        k: int,
        where: dict | None,
        exclude: Sequence,
        names: frozenset[str] | None,
    ) -> Found:
        """As `Index.search`, for checked arguments; `names` are the attributes in all shards."""
        contents = self._at(version).snapshot
        return contents.nearest(queries, k, contents.allowed(where, exclude, names))

    def exact_scores(self, version: int, queries: np.ndarray, k: int) -> np.ndarray:
        """The k highest scores, `[n_queries, k]`, or all if there are fewer."""
        return self._at(version).snapshot.base.nearest(queries, k)[1]

    def ids(self, version: int) -> list:
        """See `Index.ids`."""
        return self._at(version).ids

    def vectors(self, version: int) -> np.ndarray:
        """See `Index.vectors`."""
        return np.asarray(self._at(version).vectors)

    def find(self, version: int, ids: Sequence, with_vectors: bool) -> tuple[list, Any]:
        """Which places in a list have ids of this shard, and perhaps the embeddings of these."""
        contents = self._at(version).snapshot
        places = [place for place, key in enumerate(ids) if contents.row_of(key) is not None]
        if not with_vectors:
            return places, None
        return places, contents.vectors_at(contents.rows_of([ids[place] for place in places]))

    def build(self, version: int, options: dict[str, Any]) -> Part:
        """Make a version by indexing the items of version 0, and save it. See `build_index`."""
        contents = self._at(0).snapshot.base
        records = contents.attributes.records
        index = build_index(
            contents.vectors,
            contents.ids,
            metric=contents.metric,
            attributes=records if any(records) else None,
            **options,
        )
        self._versions = {version: index}
        self.keep(version)
        return self.about(version)

    def change(self, version: int, base: int, changes: Sequence[tuple]) -> Part:
        """Make a version from another by changes: the name of a method of `Index`, arguments."""
        with self._changing:
            changed = copy.copy(self._at(base))
            for name, *arguments in changes:
                getattr(changed, name)(*arguments)
            # Versions above the base were not made by all shards, and are given up.
            versions = {number: each for number, each in self._versions.items() if number <= base}
            versions[version] = changed
            self._versions = dict(sorted(versions.items())[-KEPT_VERSIONS:])
        return self.about(version)

    def save(self, version: int, folder: Path) -> None:
        """See `Index.save`; into a folder for all shards."""
        self._at(version).save(folder / self._folder.name)

    def keep(self, version: int) -> None:
        """Save a version to start again from."""
        self._at(version).save(self._newer / str(version))
        for each in self._newer.iterdir():
            if each.name.isdecimal() and int(each.name) < version:
                shutil.rmtree(each, ignore_errors=True)

    def _at(self, version: int) -> Index:
        versions = self._versions
        if version > max(versions, default=-1):
            with self._changing:
                number, index = self._open()
                if number > max(self._versions, default=-1):
                    self._versions = {number: index}
                versions = self._versions
        if version in versions:
            return versions[version]
        if version > max(versions):
            raise Behind(sorted(versions))
        # Old versions are dropped: a search that outlasts several changes sees a newer gallery.
        return versions[min(each for each in versions if each > version)]

    def _open(self) -> tuple[int, Index]:
        """The newest version on disk."""
        saved = self._newer.iterdir() if self._newer.is_dir() else []
        newest = max((int(each.name) for each in saved if each.name.isdecimal()), default=0)
        if newest:
            return newest, load_index(self._newer / str(newest))
        index = load_index(self._folder)
        if file_sha256(self._folder / "manifest.json") != self._sha256:
            raise ValueError(f"{self._folder} was replaced by another index: open it again")
        return 0, index

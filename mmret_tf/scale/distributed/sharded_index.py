"""An index in parts (分片索引): every shard searches its own items, and the best of all are kept.

For galleries that one machine cannot hold. Section 8.3 of the document.
"""

import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import Ids, checked_count, checked_ids, checked_queries
from mmret_tf._files import replace_folder
from mmret_tf.ranking.filters import check_condition
from mmret_tf.ranking.index import FORMAT, VERSION, Index
from mmret_tf.ranking.indexes.scann_engine import (
    Goal,
    ScannConfig,
    enough_of,
    perturbed_rows,
    sample,
)
from mmret_tf.ranking.indexes.scann_index import TUNING_SECONDS
from mmret_tf.ranking.indexes.snapshot import Found, Segment, check_known, checked_segment
from mmret_tf.ranking.indexes.tuning import silent
from mmret_tf.ranking.indexes.updates import CHANGED_SHARE, FEW_CHANGES
from mmret_tf.scale.distributed.cluster import connect
from mmret_tf.scale.distributed.shards import Contents, ShardLost, Shards, divide, shard_name


class PartialFound(tuple):
    """Ids and scores, as `Index.search` returns them, of the shards that answered.

    Args:
        found: Both.
        missing: Numbers of the shards that did not answer.
        n_shards: Number of all shards.

    Attributes:
        missing: As given.
        remark: A sentence for the user.

    >>> ids, scores = found = PartialFound(([["a"]], [[0.9]]), missing=[1], n_shards=4)
    >>> ids, found.remark
    ([['a']], '1 of 4 shards did not answer.')
    """

    def __new__(cls, found: Found, missing: list[int], n_shards: int):
        return super().__new__(cls, found)

    def __init__(self, found: Found, missing: list[int], n_shards: int):
        self.missing = missing
        self.remark = f"{len(missing)} of {n_shards} shards did not answer."


class ShardedIndex(Index):
    """An index whose items are divided among processes, on any machines. Section 8.3.

    Made by `build`, or opened by `load_index`. Each shard is a `ScannIndex` of consecutive items.
    It answers like `ScannIndex`, with three differences: a query costs some milliseconds on its
    way, items with equal scores come in the order of their shards, and new items are spread over
    all shards.

    A shard that is lost comes back by itself, from its files, with all changes. Until then a search
    raises `ShardLost` or, if the index is `partial`, returns what the other shards found as a
    `PartialFound`. A change is made by all shards or by none. `save` lets each shard write its
    part, so that all machines need the folder.

    Args:
        shards: The processes.
        contents: What they hold.
        partial: Whether to answer without the shards that are lost.
        measured: See `stats`.

    Attributes:
        partial: Whether to answer without the shards that are lost.

    >>> index = ShardedIndex.build(np.eye(4), ["a", "b", "c", "d"], shards=2)
    >>> index.search([[0, 3, 0, 0], [0, 0, 0, 1]], k=1)[0].tolist()
    [['b'], ['d']]
    """

    prepare = None  # the shards prepare their engines themselves

    def __init__(
        self, shards: Shards, contents: Contents, partial: bool, measured: Mapping[str, Any]
    ):
        # Not `Index.__init__`: the shards hold what an index of one process has in a snapshot.
        self._shards, self._contents, self._measured = shards, contents, measured
        self._change = shards.lock
        self.partial = partial

    @classmethod
    def build(
        cls,
        embeddings: npt.ArrayLike,
        ids: Ids,
        recall_target: float = 0.95,
        queries: npt.ArrayLike | None = None,
        k: int = 10,
        metric: str = "cosine",
        *,
        shards: int = 2,
        replicas: int = 1,
        partial: bool = False,
        directory: str | os.PathLike | None = None,
        address: str | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        config: ScannConfig | None = None,
        seconds: float = TUNING_SECONDS,
        progress: Callable[[str], None] = silent,
    ) -> "ShardedIndex":
        """Divide some embeddings among shards, and index each.

        The shards are tuned together: each finds its share of the k nearest items of the whole
        gallery, which is easier than its own k nearest.

        Args:
            embeddings, ids, recall_target, queries, k, metric, attributes, config, seconds,
                progress: As for `ScannIndex.build`. `config` is for each shard.
            shards: Number of parts.
            replicas: Number of processes for each part, which take turns.
            partial: Whether to answer without the shards that are lost.
            directory: Where a temporary folder for the shards is made, on a file system that all
                machines share; by default where this machine makes such folders.
            address: Of a Ray cluster that is running, see `connect`.

        Raises:
            ValueError: As for `ScannIndex.build`; or there are fewer items than shards.
            ImportError: Ray is not installed.
        """
        shards, replicas = checked_count(shards, "shards"), checked_count(replicas, "replicas")
        items = checked_segment(embeddings, ids, metric, attributes)
        asked = perturbed_rows(items) if queries is None else queries
        asked = sample(checked_queries(asked, items.vectors.shape[1], metric))
        goal = Goal(recall_target, min(checked_count(k, "k"), len(items)), asked)
        if len(items) < shards:
            raise ValueError(f"there are only {len(items)} items for {shards} shards")
        connect(address)
        progress(f"dividing {len(items):,} items among {shards} shards")
        group = divide(items, shards, replicas, directory)
        progress("partitioning and tuning the shards")
        goal = replace(goal, kth=_kth(group, goal))
        contents = group.build({"config": config, "seconds": seconds, **vars(goal)})
        index = cls(group, contents, partial, {})
        index._measured = index._measure(goal)
        return index

    def _measure(self, goal: Goal) -> dict[str, Any]:
        """See `stats`."""
        _, scores = self.search(goal.queries, goal.k)
        is_exact = all(part.stats["mode"] == "exact" for part in self._contents.parts)
        return {
            "mode": "sharded, exact" if is_exact else "sharded",
            "recall": float(np.mean(scores >= enough_of(goal.kth, self.metric))),
            "recall_target": goal.recall_target,
            "k": goal.k,
            "n_measured": len(goal.queries),
        }

    @property
    def stats(self) -> dict[str, Any]:
        """How the index searches.

        - "mode": "sharded", or "sharded, exact".
        - "recall", "recall_target", "k" and "n_measured": as for `ScannIndex.stats`, of the whole.
        - "shards": the `stats` of each shard, with its number of items "n", and the process "pid"
          on the machine "host" that made the last change.
        """
        shards = [
            {"n": part.n, "pid": part.pid, "host": part.host, **part.stats}
            for part in self._contents.parts
        ]
        return self._measured | {"shards": shards}

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def dim(self) -> int:
        return self._contents.parts[0].dim

    @property
    def metric(self) -> str:
        return self._contents.parts[0].metric

    @property
    def ids(self) -> list[str] | list[int]:
        """The ids of all items, shard by shard."""
        return [key for ids in self._shards.ask_all("ids", self._contents.version) for key in ids]

    @property
    def vectors(self) -> np.ndarray:
        """One embedding for each id, `[n, dim]` float32; copied to this process."""
        return np.concatenate(self._shards.ask_all("vectors", self._contents.version))

    def vectors_of(self, ids: Ids) -> np.ndarray:
        names = checked_ids(list(ids)).tolist() if len(ids) else []
        found = np.zeros((len(ids), self.dim), np.float32)
        shard_of = np.full(len(ids), -1)
        for shard, (places, vectors) in enumerate(self._find(names, True)):
            found[places], shard_of[places] = vectors, shard
        check_known(names, shard_of >= 0)
        return found

    def _search(
        self, queries: np.ndarray, k: int, where: Mapping[str, Any] | None, exclude_ids: Collection
    ) -> Found:
        contents, names = self._contents, None
        if where is not None:
            names = contents.names
            check_condition(where, names)
        answers = self._shards.ask(
            "search", contents.version, queries, k, where, list(exclude_ids), names
        )
        missing = [number for number, each in enumerate(answers) if isinstance(each, ShardLost)]
        found = [each for each in answers if not isinstance(each, ShardLost)]
        if missing and not (self.partial and found):
            raise answers[missing[0]]
        ids, scores = (np.hstack(each) for each in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = (np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))
        return PartialFound(best, missing, len(answers)) if missing else best

    def _upsert(self, new: Segment, keep_attributes: bool) -> None:
        names = new.ids.tolist()
        shard_of = self._shards_of(names)
        added = np.flatnonzero(shard_of < 0)
        for shard, rows in enumerate(np.array_split(added, len(self._shards))):
            shard_of[rows] = shard
        changes: list[list[tuple]] = []
        for shard in range(len(self._shards)):
            rows = np.flatnonzero(shard_of == shard)
            records = [new.attributes.records[row] for row in rows]
            records = None if keep_attributes else records
            change = ("upsert", [names[row] for row in rows], new.vectors[rows], records)
            changes.append([change] if len(rows) else [])
        self._apply_all(changes)

    def _delete(self, names: list) -> None:
        shard_of = self._shards_of(names)
        check_known(names, shard_of >= 0)
        of_shards = [
            [names[row] for row in np.flatnonzero(shard_of == shard)]
            for shard in range(len(self._shards))
        ]
        self._apply_all([[("delete", each)] if each else [] for each in of_shards])

    def rebalance(self) -> None:
        with self._change:
            self._apply_all([[("rebalance",)]] * len(self._shards))
            self._shards.keep(self._contents.version)

    def save(self, directory: str | os.PathLike) -> None:
        manifest = {"format": FORMAT, "version": VERSION, "class": type(self).__name__}
        manifest |= {"shards": len(self._shards), "replicas": self._shards.replicas}
        manifest |= {"partial": self.partial, "measured": self._measured}
        with self._change, replace_folder(Path(directory).absolute(), manifest) as new:
            version = self._contents.version
            self._shards.ask_all("save", version, new)

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any]) -> "ShardedIndex":
        folder = folder.absolute()
        shards, replicas = (checked_count(manifest[each], each) for each in ("shards", "replicas"))
        if set(manifest["files"]) != {shard_name(number) for number in range(shards)}:
            raise ValueError(f"it must hold {shards} shards")
        newer = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        group = Shards([folder / shard_name(number) for number in range(shards)], replicas, newer)
        weakref.finalize(group, shutil.rmtree, newer, ignore_errors=True)
        parts = group.ask_all("about", 0)
        if len({(part.dim, part.metric) for part in parts}) > 1:
            raise ValueError("its shards do not fit together")
        return cls(group, Contents(0, parts), manifest["partial"], manifest["measured"])

    @property
    def _has_strings(self) -> bool:
        return any(part.has_strings for part in self._contents.parts)  # some may be empty

    def _find(self, names: list, with_vectors: bool) -> list[tuple]:
        """See `Shard.find`, for each shard."""
        return self._shards.ask_all("find", self._contents.version, names, with_vectors)

    def _shards_of(self, names: list) -> np.ndarray:
        """The shard that has each id, or -1: `[n]`."""
        shard_of = np.full(len(names), -1)
        for shard, (places, _) in enumerate(self._find(names, False)):
            shard_of[places] = shard
        return shard_of

    def _apply_all(self, changes: list[list[tuple]]) -> None:
        """Make a version with these changes of each shard; the caller holds `_change`."""
        self._contents = self._shards.change(self._contents.version, changes)
        if self._shards.n_logged > max(FEW_CHANGES, CHANGED_SHARE * len(self)):
            self._shards.keep(self._contents.version)


def _kth(shards: Shards, goal: Goal) -> np.ndarray:
    """The score of the k-th nearest item of the whole gallery for each query, `[n_queries, 1]`."""
    scores = shards.ask_all("exact_scores", 0, goal.queries, goal.k)
    return -np.partition(-np.hstack(scores), goal.k - 1, axis=1)[:, goal.k - 1 : goal.k]

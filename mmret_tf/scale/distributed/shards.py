"""The shards of an index, and how to ask all of them for the same version.

A shard that was lost comes back with the newest version on disk; the versions since then are made
again from a log.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import file_sha256
from mmret_tf.ranking.filters import AttributeTable
from mmret_tf.ranking.indexes.brute_force import BruteForceIndex
from mmret_tf.ranking.indexes.snapshot import Segment, Snapshot
from mmret_tf.scale.distributed.cluster import connect, cores_of_each
from mmret_tf.scale.distributed.shard import Behind, Part, Shard

# Searches that a shard answers at the same time.
SEARCHES_AT_ONCE = 8
# A shard that takes longer for an answer counts as lost.
ANSWER_SECONDS = 60
# Larger arrays are stored once for all shards.
SHARED_BYTES = 100_000


class ShardLost(ConnectionError):
    """A shard does not answer.

    >>> raise ShardLost("shard 1 of 4 does not answer")
    Traceback (most recent call last):
    mmret_tf.scale.distributed.shards.ShardLost: shard 1 of 4 does not answer
    """


@dataclass(frozen=True)
class Contents:
    """What one version of all shards holds.

    Attributes:
        version: Its number.
        parts: Facts about each shard.
    """

    version: int
    parts: list[Part]

    def __len__(self) -> int:
        """Number of items."""
        return sum(part.n for part in self.parts)

    @property
    def names(self) -> frozenset[str]:
        """The attributes that items have."""
        return frozenset().union(*(part.names for part in self.parts))


class Shards:
    """All shards of an index, asked together.

    Args:
        folders: The saved index of each shard.
        replicas: Number of processes for each shard, which take turns.
        newer: Folder for newer versions, on a file system that all machines share. It need not
            exist; who makes the shards deletes it.
    """

    def __init__(self, folders: Sequence[Path], replicas: int, newer: Path):
        self.replicas = replicas
        self.lock = threading.RLock()  # held throughout a change
        self._ray = connect()
        share = cores_of_each(len(folders) * replicas)
        # Ray does not spread what needs no core at all.
        options = {"num_cpus": 0.001, "scheduling_strategy": "SPREAD", "max_restarts": -1}
        options["max_concurrency"] = SEARCHES_AT_ONCE
        actor = self._ray.remote(Shard).options(**options)
        self._actors = [
            [
                actor.remote(
                    folder, file_sha256(folder / "manifest.json"), newer / folder.name, share
                )
                for _ in range(replicas)
            ]
            for folder in folders
        ]
        self._pings: dict[Any, Any] = {}  # to processes that were lost, until they answer
        self._turns = itertools.count()
        self._numbers = itertools.count(1)  # of versions, never used twice
        self._newest = 0
        # Changes since the versions on disk: number, base, and the changes of each shard.
        self._log: list[tuple[int, int, list[list[tuple]]]] = []

    def __len__(self) -> int:
        """Number of shards."""
        return len(self._actors)

    def ask(self, method: str, *arguments: Any, seconds: float | None = ANSWER_SECONDS) -> list:
        """Call a method of all shards; one replica of each answers.

        Args:
            method: Name of a method of `Shard`.
            arguments: Its arguments, the version first.
            seconds: How long to wait for a shard; `None` for as long as it takes.

        Returns:
            The answer of each shard, or a `ShardLost`.

        Raises:
            ValueError, and others: As the method.
        """
        ray, first = self._ray, next(self._turns) % self.replicas
        arguments = tuple(
            ray.put(each) if isinstance(each, np.ndarray) and each.nbytes > SHARED_BYTES else each
            for each in arguments
        )
        orders = [actors[first:] + actors[:first] for actors in self._actors]
        sent = [self._send(actors[0], method, arguments, seconds) for actors in orders]
        return [
            self._answer(shard, actors, result, method, arguments, seconds)
            for shard, (actors, result) in enumerate(zip(orders, sent, strict=True))
        ]

    def _send(self, actor: Any, method: str, arguments: tuple, seconds: float | None) -> Any:
        """The reference of the result; `None` for a lost process, if it is not to be waited for."""
        if seconds is not None and actor in self._pings and not self._is_back(actor):
            return None
        return getattr(actor, method).remote(*arguments)

    def _is_back(self, actor: Any) -> bool:
        """Whether a process that was lost answers again. Ray lets a call wait for seconds."""
        if (ping := self._pings.get(actor)) is None:
            return True
        if not self._ray.wait([ping], timeout=0)[0]:
            return False
        try:
            self._get(ping, 0)
        except ShardLost:
            self._pings[actor] = actor.ping.remote()
            return False
        self._pings.pop(actor, None)
        return True

    def _answer(
        self,
        shard: int,
        actors: Sequence,
        result: Any,
        method: str,
        arguments: tuple,
        seconds: float | None,
    ) -> Any:
        """The answer of the first replica, or of the next one that answers."""
        reason = "it is starting again"
        for number, actor in enumerate(actors):
            if number:
                result = self._send(actor, method, arguments, seconds)
            if result is None:
                continue
            try:
                return self._get(result, seconds)
            except ShardLost as error:
                reason = str(error)
                self._pings[actor] = actor.ping.remote()
            except Behind as behind:
                self._catch_up(shard, actor, behind.args[0])
                with contextlib.suppress(ShardLost, Behind):
                    return self._get(getattr(actor, method).remote(*arguments), seconds)
        return ShardLost(f"shard {shard} of {len(self)} does not answer: {reason}")

    def _get(self, result: Any, seconds: float | None) -> Any:
        """A result, or the error that the shard raised."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(result, timeout=seconds)
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.RayActorError, errors.GetTimeoutError) as error:
            raise ShardLost(str(error).splitlines()[0]) from None

    def _catch_up(self, shard: int, actor: Any, has: Sequence[int]) -> None:
        """Make the versions again that a shard missed while it was lost."""
        with self.lock:
            for version, base, changes in self._log:
                if version > max(has):
                    self._get(actor.change.remote(version, base, changes[shard]), None)

    def ask_all(self, method: str, *arguments: Any) -> list:
        """As `ask`, however long it takes; `ShardLost` if a shard does not answer."""
        answers = self.ask(method, *arguments, seconds=None)
        for each in answers:
            if isinstance(each, ShardLost):
                raise each
        return answers

    def build(self, options: dict[str, Any]) -> Contents:
        """Index the items of version 0 in all shards, see `Shard.build`. The other replicas open
        what is saved."""
        with self.lock:
            version = next(self._numbers)
            building = [actors[0].build.remote(version, options) for actors in self._actors]
            parts = [self._get(each, None) for each in building]
            self._newest = version
        return Contents(version, parts)

    def change(self, base: int, changes: list[list[tuple]]) -> Contents:
        """Make a new version of all shards, or of none.

        Args:
            base: The present version.
            changes: For each shard a list of changes, see `Shard.change`.

        Raises:
            ShardLost: No replica of a shard answers.
            ValueError: The changes are not valid, or `base` was changed already.
        """
        with self.lock:
            if base != self._newest:
                raise ValueError("another copy of this index was changed: only the newest can be")
            version = next(self._numbers)
            made = [
                [actor.change.remote(version, base, each) for actor in actors]
                for actors, each in zip(self._actors, changes, strict=True)
            ]
            parts = []
            for shard, (actors, results) in enumerate(zip(self._actors, made, strict=True)):
                answers = []
                for actor, result in zip(actors, results, strict=True):
                    with contextlib.suppress(ShardLost):  # it catches up later
                        answers.append(self._changed(shard, actor, result, version, base, changes))
                if not answers:
                    raise ShardLost(f"shard {shard} of {len(self)} does not answer: no change made")
                parts.append(answers[0])
            self._log.append((version, base, changes))
            self._newest = version
        return Contents(version, parts)

    def _changed(
        self, shard: int, actor: Any, result: Any, version: int, base: int, changes: list
    ) -> Part:
        try:
            return self._get(result, None)
        except Behind as behind:
            self._catch_up(shard, actor, behind.args[0])
            return self._get(actor.change.remote(version, base, changes[shard]), None)

    def keep(self, version: int) -> None:
        """Save a version of all shards to start again from, and forget how it was made."""
        with self.lock:
            answers = self.ask("keep", version, seconds=None)
            if not any(isinstance(each, ShardLost) for each in answers):
                self._log = [each for each in self._log if each[0] > version]

    @property
    def n_logged(self) -> int:
        """Number of changed rows since the versions on disk."""
        return sum(
            len(arguments[0])
            for _, _, of_shards in self._log
            for changes in of_shards
            for _, *arguments in changes
            if arguments  # "rebalance" has none
        )


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:04}"


def divide(
    items: Segment, shards: int, replicas: int, directory: str | os.PathLike | None
) -> Shards:
    """Start shards of consecutive items, which are searched exactly.

    Args:
        items: All items.
        shards: Number of parts.
        replicas: As for `Shards`.
        directory: Where to make a folder, on a file system that all machines share; it is deleted
            when the shards end. By default where this machine makes temporary folders.
    """
    folder = Path(tempfile.mkdtemp(prefix=".mmret-shards-", dir=directory)).absolute()
    bounds = np.linspace(0, len(items), shards + 1).astype(int)
    parts = [folder / "items" / shard_name(number) for number in range(shards)]
    try:
        for number, part in enumerate(parts):
            rows = slice(*bounds[number : number + 2])  # without a copy
            records = AttributeTable(items.attributes.records[rows])
            segment = Segment(items.vectors[rows], items.ids[rows], records, items.metric)
            BruteForceIndex(Snapshot.of(segment)).save(part)
        group = Shards(parts, replicas, folder / "shards")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(group, shutil.rmtree, folder, ignore_errors=True)
    return group

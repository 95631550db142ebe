"""What an index holds: rows of numbers with ids and attributes, checked, and never changed.

A change makes a new `Snapshot`, so that a search that has begun sees the gallery as it was.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.checks import Ids, checked_ids, checked_rows
from mmret_tf.exact import METRICS, nearest, square_norms
from mmret_tf.filters import AttributeTable, check_condition, check_records
from mmret_tf.folders import open_array

Found = tuple[np.ndarray, np.ndarray]  # rows and scores, both [n_queries, k]


@dataclass(frozen=True)
class Segment:
    """Rows that are never changed.

    Attributes:
        vectors: `[n, dim]` float32, of unit length if the metric is cosine.
        ids: `[n]`, int64, or strings as objects.
        attributes: a record a row.
        metric: "cosine" or "euclidean".
    """

    vectors: np.ndarray
    ids: np.ndarray
    attributes: AttributeTable
    metric: str

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """Squared lengths of the rows; `[n]` float32."""
        return square_norms(self.vectors)

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The best k rows, or all that are allowed, by exact search."""
        k = min(k, len(self) if allowed is None else np.count_nonzero(allowed))
        if k == 0:
            return nothing(queries)
        norms = self.norms if self.metric == "euclidean" else None
        return nearest(self.vectors, queries, k, self.metric, allowed, norms)

    def part(self, rows: slice | np.ndarray) -> Segment:
        """Some of the rows: a slice, or a mask of bool `[n]`."""
        records = self.attributes.records
        some = records[rows] if isinstance(rows, slice) else list(itertools.compress(records, rows))
        return Segment(self.vectors[rows], self.ids[rows], AttributeTable(some), self.metric)


@dataclass(frozen=True)
class Snapshot:
    """What an index holds at one moment. Rows are counted through both segments.

    Attributes:
        base: what was built.
        fresh: what was added since.
        dead: bool `[rows]`, what was deleted or replaced since.
        engine: what finds rows of `base` faster than exact search does, if anything.
    """

    base: Segment
    fresh: Segment
    dead: np.ndarray
    engine: Any = None

    @classmethod
    def of(cls, base: Segment, engine: Any = None) -> Snapshot:
        """An index that was just built."""
        return cls(base, base.part(slice(0)), np.zeros(len(base), bool), engine)

    def __len__(self) -> int:
        """The number of items, without dead rows."""
        return self.n_rows - self.n_dead

    @property
    def n_rows(self) -> int:
        """The number of rows, dead ones too."""
        return len(self.base) + len(self.fresh)

    @functools.cached_property
    def n_dead(self) -> int:
        """The number of dead rows."""
        return int(np.count_nonzero(self.dead))

    @property
    def id_dtype(self) -> np.dtype:
        """int64, or object for strings."""
        return (self.fresh if len(self.fresh) else self.base).ids.dtype

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """Ids of rows, in their shape: int64, or strings."""
        n = len(self.base)
        if len(self.fresh):
            ids = self.fresh.ids[np.maximum(rows - n, 0)]
            is_base = rows < n
            ids[is_base] = self.base.ids[rows[is_base]]
        else:
            ids = self.base.ids[rows]
        return ids if ids.dtype == np.int64 else ids.astype(str)

    def record_of(self, row: int) -> Mapping[str, Any]:
        """The attributes of a row."""
        n = len(self.base)
        return (self.base if row < n else self.fresh).attributes.records[row - n * (row >= n)]

    def allowed(self, where: Mapping[str, Any] | None, excluded: list[int]) -> np.ndarray | None:
        """The rows that may be found, bool `[rows]`; None for all of them.

        Raises:
            ValueError: `where` is no condition on the attributes that items have.
        """
        if where is None and not excluded and not self.n_dead:
            return None
        allowed = ~self.dead
        if where is not None:
            tables = [self.base.attributes, self.fresh.attributes]
            check_condition(where, tables[0].names | tables[1].names)
            allowed &= np.concatenate([table.mask(where) for table in tables])
        allowed[excluded] = False
        return allowed

    def changed(self, new: Segment, dead: list[int]) -> Snapshot:
        """What it is with some rows more at the end, and some dead."""
        mask = np.concatenate([self.dead, np.zeros(len(new), bool)])
        mask[dead] = True
        return Snapshot(self.base, joined(self.fresh, new), mask, self.engine)

    def compact(self) -> Segment:
        """All items as one segment, without dead rows; `base` itself where nothing has changed."""
        alive, n = ~self.dead, len(self.base)
        base = self.base.part(alive[:n]) if self.dead[:n].any() else self.base
        fresh = self.fresh.part(alive[n:])
        return joined(base, fresh) if len(fresh) else base

    def write(self, folder: Path) -> None:
        """Files for `read_snapshot`: all but the engine."""
        ids = [*self.base.ids.tolist(), *self.fresh.ids.tolist()]
        records = [*self.base.attributes.records, *self.fresh.attributes.records]
        for row in np.flatnonzero(self.dead):
            ids[row], records[row] = None, {}
        (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
        if any(records):
            text = json.dumps([dict(record) for record in records], default=_plain)
            (folder / "attributes.json").write_text(text, encoding="utf-8")
        np.save(folder / "dataset.npy", self.base.vectors, allow_pickle=False)
        if len(self.fresh):
            np.save(folder / "fresh.npy", self.fresh.vectors, allow_pickle=False)


def read_snapshot(folder: Path, n: int, n_fresh: int, dim: int, metric: str) -> Snapshot:
    """Open what `Snapshot.write` wrote; the embeddings stay on disk.

    Raises:
        ValueError: the files do not fit each other.
    """
    vectors = open_array(folder / "dataset.npy", (n, dim))
    fresh = open_array(folder / "fresh.npy", (n_fresh, dim)) if n_fresh else vectors[:0]
    ids = _read_json(folder / "ids.json")
    records = [{}] * len(ids)
    if (folder / "attributes.json").exists():
        records = _read_json(folder / "attributes.json")
    if not len(ids) == len(records) == n + n_fresh:
        raise ValueError(
            f"{folder} is damaged: it holds {n + n_fresh} embeddings, {len(ids)} ids and "
            f"attributes of {len(records)} items"
        )
    dead = np.array([key is None for key in ids], bool)
    alive = [key for key in ids if key is not None]
    try:
        names = checked_ids(alive)
        check_records(records)
    except ValueError as error:
        raise ValueError(f"{folder} is damaged: {error}") from None
    ids = np.zeros(len(ids), names.dtype)  # those of dead rows are never given back
    ids[~dead] = names
    return Snapshot(
        Segment(vectors, ids[:n], AttributeTable(records[:n]), metric),
        Segment(fresh, ids[n:], AttributeTable(records[n:]), metric),
        dead,
    )


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"attributes can be saved if JSON can hold them; got {value!r:.80}")


def _read_json(path: Path) -> list:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, list):
        raise ValueError(f"{path} is damaged: it must hold a list")
    return value


def joined(first: Segment, second: Segment) -> Segment:
    """The rows of two segments, one after the other."""
    if not len(first) or not len(second):
        return first if len(first) else second
    return Segment(
        np.concatenate([first.vectors, second.vectors]),
        np.concatenate([first.ids, second.ids]),
        AttributeTable([*first.attributes.records, *second.attributes.records]),
        first.metric,
    )


def nothing(queries: np.ndarray) -> Found:
    """What is found where nothing can be."""
    return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)


def merged(first: Found, second: Found, k: int) -> Found:
    """The best k of two rankings; of equal scores the lower row comes first."""
    rows, scores = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def checked_segment(
    embeddings: npt.ArrayLike,
    ids: Ids,
    metric: str,
    attributes: Sequence[Mapping[str, Any]] | None,
) -> Segment:
    """What an index is built from, checked, and copied unless it is a file that fits as it is.

    Raises:
        ValueError: no embeddings, NaN or infinity in them, ids that come twice or do not fit,
            attributes that do not fit, or another metric.
    """
    if metric not in METRICS:
        raise ValueError(f'metric must be "cosine" or "euclidean"; got {metric!r}')
    vectors = checked_rows(embeddings, "embeddings", metric)
    ids = checked_ids(ids, len(vectors))
    records = [{}] * len(ids) if attributes is None else list(attributes)
    if len(records) != len(ids):
        raise ValueError(
            f"attributes must have one dictionary an id; there are {len(ids)} ids and "
            f"{len(records)} dictionaries"
        )
    check_records(records)
    return Segment(vectors, ids, AttributeTable(records), metric)

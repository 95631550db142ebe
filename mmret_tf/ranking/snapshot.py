"""The contents of an index at one moment: checked vectors, ids and attributes that never change.

A change to an index makes a new `Snapshot`, so that a running search keeps the gallery it began
with.
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

from mmret_tf._checks import Ids, checked_ids, checked_rows
from mmret_tf._files import open_array
from mmret_tf.ranking.filters import AttributeTable, check_records
from mmret_tf.similarity.nearest import METRICS, nearest, square_norms

Found = tuple[np.ndarray, np.ndarray]  # rows and scores, both [n_queries, k]

# The files that `Snapshot.write` makes.
SNAPSHOT_FILES = frozenset({"ids.json", "attributes.json", "dataset.npy", "fresh.npy"})


@dataclass(frozen=True)
class Segment:
    """Rows of an index.

    Attributes:
        vectors: `[n, dim]` float32, of unit length for the metric "cosine".
        ids: `[n]`, int64, or strings as objects.
        attributes: One record for each row.
        metric: "cosine" or "euclidean".
    """

    vectors: np.ndarray
    ids: np.ndarray
    attributes: AttributeTable
    metric: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """Squared lengths of the rows; `[n]` float32."""
        return square_norms(self.vectors)

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The k best of the allowed rows by exact search; all of them if there are fewer.

        Args:
            queries: `[n_queries, dim]`, checked by `checked_queries`.
            k: Number of rows.
            allowed: bool `[n]`; all rows by default.
        """
        k = min(k, len(self) if allowed is None else np.count_nonzero(allowed))
        if k == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        norms = self.norms if self.metric == "euclidean" else None
        return nearest(self.vectors, queries, k, self.metric, allowed, norms)

    def part(self, rows: slice | np.ndarray) -> Segment:
        """Some of the rows, chosen by a slice or a mask (bool `[n]`)."""
        records = self.attributes.records
        some = records[rows] if isinstance(rows, slice) else list(itertools.compress(records, rows))
        return Segment(self.vectors[rows], self.ids[rows], AttributeTable(some), self.metric)

    def joined(self, other: Segment) -> Segment:
        """The rows of this segment, then those of another."""
        if not len(self) or not len(other):
            return self if len(self) else other
        return Segment(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.ids, other.ids]),
            AttributeTable([*self.attributes.records, *other.attributes.records]),
            self.metric,
        )


@dataclass(frozen=True)
class Snapshot:
    """The contents of an index at one moment. Row numbers run through `base`, then `fresh`.

    Attributes:
        base: The rows that the index was built from.
        fresh: The rows that were added since.
        dead: bool `[n_rows]`, the rows that were deleted or replaced since.
        engine: Finds rows of `base`, see `UpdatableItems.prepare`.
    """

    base: Segment
    fresh: Segment
    dead: np.ndarray
    engine: Any

    @classmethod
    def of(cls, base: Segment, engine: Any = None) -> Snapshot:
        """The snapshot of an index that was just built; searched exactly without an engine."""
        engine = base if engine is None else engine
        return cls(base, base.part(slice(0)), np.zeros(len(base), bool), engine)

    def __len__(self) -> int:
        """Number of items; dead rows do not count."""
        return self.n_rows - self.n_dead

    @property
    def n_rows(self) -> int:
        """Number of rows, including dead ones."""
        return len(self.base) + len(self.fresh)

    @functools.cached_property
    def n_dead(self) -> int:
        """Number of dead rows."""
        return int(np.count_nonzero(self.dead))

    @property
    def id_dtype(self) -> np.dtype:
        """int64, or object for strings."""
        return (self.fresh if len(self.fresh) else self.base).ids.dtype

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows, in an array of the same shape: int64 or strings."""
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
        segment, row = (self.base, row) if row < n else (self.fresh, row - n)
        return segment.attributes.records[row]

    def allowed(self, where: Mapping[str, Any] | None, excluded: list[int]) -> np.ndarray | None:
        """The rows that a search may return, bool `[n_rows]`; None if it may return all.

        Raises:
            ValueError: `where` is not a valid condition on the attributes that items have.
        """
        if where is None and not excluded and not self.n_dead:
            return None
        allowed = ~self.dead
        if where is not None:
            tables = [self.base.attributes, self.fresh.attributes]
            names = tables[0].names | tables[1].names
            allowed &= np.concatenate([table.mask(where, names) for table in tables])
        allowed[excluded] = False
        return allowed

    def changed(self, new: Segment, dead: list[int]) -> Snapshot:
        """A snapshot with more rows at the end and more dead rows."""
        mask = np.concatenate([self.dead, np.zeros(len(new), bool)])
        mask[dead] = True
        return Snapshot(self.base, self.fresh.joined(new), mask, self.engine)

    def compact(self) -> Segment:
        """All items as one segment without dead rows; `base` itself if nothing has changed."""
        alive, n = ~self.dead, len(self.base)
        base = self.base.part(alive[:n]) if self.dead[:n].any() else self.base
        return base.joined(self.fresh.part(alive[n:])) if len(self.fresh) else base

    def write(self, folder: Path) -> None:
        """Write all but the engine, for `read_snapshot`."""
        ids = [*self.base.ids.tolist(), *self.fresh.ids.tolist()]
        records = [*self.base.attributes.records, *self.fresh.attributes.records]
        for row in np.flatnonzero(self.dead):
            ids[row], records[row] = None, {}
        (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
        if any(records):
            text = json.dumps([dict(record) for record in records], default=_json_number)
            (folder / "attributes.json").write_text(text, encoding="utf-8")
        np.save(folder / "dataset.npy", self.base.vectors, allow_pickle=False)
        if len(self.fresh):
            np.save(folder / "fresh.npy", self.fresh.vectors, allow_pickle=False)


def read_snapshot(folder: Path, manifest: Mapping[str, Any]) -> Snapshot:
    """Open the files of `Snapshot.write`; the embeddings stay on disk, and are searched exactly.

    Args:
        folder: Where the files are.
        manifest: Its "n", "n_fresh", "dim" and "metric" say what the files must hold.

    Raises:
        ValueError: The files do not match the manifest. Damaged files raise other errors as well.
    """
    n, n_fresh, dim, metric = (manifest.get(name) for name in ("n", "n_fresh", "dim", "metric"))
    if metric not in METRICS:
        raise ValueError(f"its metric is {metric!r:.80}")
    vectors = open_array(folder / "dataset.npy", (n, dim))
    fresh = open_array(folder / "fresh.npy", (n_fresh, dim)) if n_fresh else vectors[:0]
    ids = json.loads((folder / "ids.json").read_bytes())
    path = folder / "attributes.json"
    records = json.loads(path.read_bytes()) if path.exists() else [{}] * len(ids)
    if not len(ids) == len(records) == len(vectors) + len(fresh):
        raise ValueError(
            f"it holds {len(vectors) + len(fresh)} embeddings, {len(ids)} ids and the attributes "
            f"of {len(records)} items"
        )
    check_records(records)
    dead = np.array([key is None for key in ids], bool)
    alive = checked_ids([key for key in ids if key is not None])
    ids = np.zeros(len(ids), alive.dtype)  # dead rows are never returned
    ids[~dead] = alive
    n = len(vectors)
    base = Segment(vectors, ids[:n], AttributeTable(records[:n]), metric)
    fresh = Segment(fresh, ids[n:], AttributeTable(records[n:]), metric)
    return Snapshot(base, fresh, dead, engine=base)


def _json_number(value: Any) -> Any:
    """A NumPy number as JSON holds it."""
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"attributes can be saved only as JSON; got {value!r:.80}")


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
    """Check the arguments of `Index.build`; copy them, except for a mapped file that fits.

    Raises:
        ValueError: See `Index.build`.
    """
    if metric not in METRICS:
        raise ValueError(f'metric must be "cosine" or "euclidean"; got {metric!r}')
    vectors = checked_rows(embeddings, "embeddings", metric)
    ids = checked_ids(ids, len(vectors))
    records = [{}] * len(ids) if attributes is None else list(attributes)
    if len(records) != len(ids):
        raise ValueError(
            f"attributes must have one dictionary for each id; there are {len(ids)} ids and "
            f"{len(records)} dictionaries"
        )
    check_records(records)
    return Segment(vectors, ids, AttributeTable(records), metric)

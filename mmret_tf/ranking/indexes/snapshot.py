"""The contents of an index at one moment: checked vectors, ids and attributes that never change.

A change to an index makes a new `Snapshot`, so that a running search keeps the gallery it began
with.
"""

import functools
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import Ids, checked_ids, checked_rows
from mmret_tf._files import open_array
from mmret_tf.ranking.filters import AttributeTable, checked_records
from mmret_tf.similarity.nearest import METRICS, best, nearest, square_norms

Found = tuple[np.ndarray, np.ndarray]  # rows and scores, both [n_queries, k]


@dataclass(frozen=True)
class Segment:
    """Rows of an index.

    Attributes:
        vectors: `[n, dim]` float32, of unit length for the metric "cosine".
        ids: `[n]`, int64, or strings as objects.
        attributes: One record for each row.
        metric: "cosine" or "euclidean".

    Raises:
        ValueError: The metric is unknown, or there are more of one than of another.
    """

    vectors: np.ndarray
    ids: np.ndarray
    attributes: AttributeTable
    metric: str

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f'metric must be "cosine" or "euclidean"; got {self.metric!r:.80}')
        if len({n := len(self.vectors), len(self.ids), len(self.attributes)}) > 1:
            raise ValueError(
                f"ids and attributes must have one entry for each of {n} embeddings; got "
                f"{len(self.ids)} ids and the attributes of {len(self.attributes)} items"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """Squared lengths of the rows; `[n]` float32."""
        return square_norms(self.vectors)

    @functools.cached_property
    def row_of(self) -> dict[str | int, int]:
        """The row of each id; the last one if it was replaced."""
        return {key: row for row, key in enumerate(self.ids.tolist())}

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

    def part(self, rows: np.ndarray) -> "Segment":
        """Some of the rows, chosen by a mask (bool `[n]`)."""
        records = list(itertools.compress(self.attributes.records, rows))
        return Segment(self.vectors[rows], self.ids[rows], AttributeTable(records), self.metric)

    def joined(self, other: "Segment") -> "Segment":
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
        engine: Finds rows of `base`, see `Index.prepare`.
    """

    base: Segment
    fresh: Segment
    dead: np.ndarray
    engine: Any

    @classmethod
    def of(cls, base: Segment, engine: Any = None) -> "Snapshot":
        """The snapshot of an index that was just built; searched exactly without an engine."""
        none = np.zeros(len(base), bool)
        return cls(base, base.part(none), none, base if engine is None else engine)

    def __len__(self) -> int:
        """Number of items; dead rows do not count."""
        return len(self.dead) - self.n_dead

    @functools.cached_property
    def n_dead(self) -> int:
        """Number of dead rows."""
        return int(np.count_nonzero(self.dead))

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """The id of each row."""
        return np.concatenate([self.base.ids, self.fresh.ids])

    def row_of(self, key: str | int) -> int | None:
        """The row of the item with an id; None if there is no such item."""
        row = self.fresh.row_of.get(key)
        row = self.base.row_of.get(key) if row is None else len(self.base) + row
        return None if row is None or self.dead[row] else row

    def rows_of(self, ids: Ids) -> list[int]:
        """The rows of the items with some ids; ValueError if there is no such item."""
        rows = [self.row_of(key) for key in ids]
        check_known(ids, [row is not None for row in rows])
        return rows

    def vectors_at(self, rows: list[int]) -> np.ndarray:
        """The embeddings in some rows, `[n_rows, dim]`."""
        n = len(self.base)
        vectors = [self.base.vectors[r] if r < n else self.fresh.vectors[r - n] for r in rows]
        return np.array(vectors, np.float32).reshape(len(rows), self.base.vectors.shape[1])

    def record_of(self, row: int) -> Mapping[str, Any]:
        """The attributes of a row."""
        old, new = self.base.attributes.records, self.fresh.attributes.records
        return old[row] if row < len(old) else new[row - len(old)]

    @property
    def names(self) -> set[str]:
        """The attributes that at least one row has."""
        return self.base.attributes.names | self.fresh.attributes.names

    def allowed(
        self,
        where: Mapping[str, Any] | None,
        exclude: Collection,
        names: Collection[str] | None = None,
    ) -> np.ndarray | None:
        """The rows that a search may return, bool `[n_rows]`; None if it may return all.

        Args:
            where: A condition on the attributes that items have; None for all items.
            exclude: Ids of items that it may not return.
            names: The attributes that the condition may name; by default those of the rows.

        Raises:
            ValueError: The condition is not valid.
        """
        excluded = [row for key in exclude if (row := self.row_of(key)) is not None]
        if where is None and not excluded and not self.n_dead:
            return None
        allowed = ~self.dead
        if where is not None:
            tables = [self.base.attributes, self.fresh.attributes]
            names = self.names if names is None else names
            allowed &= np.concatenate([table.mask(where, names) for table in tables])
        allowed[excluded] = False
        return allowed

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        """As `Segment.nearest`, for ids instead of rows; by the engine, and exactly in `fresh`."""
        n = len(self.base)
        old, new = (None, None) if allowed is None else (allowed[:n], allowed[n:])
        rows, scores = self.engine.nearest(queries, k, old)
        if len(self.fresh):
            others, other_scores = self.fresh.nearest(queries, k, new)
            rows, scores = np.hstack([rows, n + others]), np.hstack([scores, other_scores])
            rows, scores = best(rows, scores, k)
        ids = self.ids[rows]
        return ids if ids.dtype == np.int64 else ids.astype(str), scores

    def changed(self, new: Segment | None, dead: list[int]) -> "Snapshot":
        """A snapshot with more rows at the end and more dead rows."""
        fresh = self.fresh.joined(new) if new else self.fresh
        mask = np.zeros(len(self.base) + len(fresh), bool)
        mask[: len(self.dead)] = self.dead
        mask[dead] = True
        return Snapshot(self.base, fresh, mask, self.engine)

    def compact(self) -> Segment:
        """All items as one segment without dead rows; `base` itself if nothing has changed."""
        alive, n = ~self.dead, len(self.base)
        base = self.base if alive[:n].all() else self.base.part(alive[:n])
        return base.joined(self.fresh.part(alive[n:]))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write all but the engine; return the entries of a manifest that `read_snapshot` needs."""
        records = [*self.base.attributes.records, *self.fresh.attributes.records]
        items = {
            "ids": self.ids.tolist(),
            "dead": np.flatnonzero(self.dead).tolist(),
            "attributes": [dict(record) for record in records] if any(records) else None,
        }
        text = json.dumps(items, default=_json_number)
        (folder / "items.json").write_text(text, encoding="utf-8")
        np.save(folder / "dataset.npy", self.base.vectors, allow_pickle=False)
        if len(self.fresh):
            np.save(folder / "fresh.npy", self.fresh.vectors, allow_pickle=False)
        n, dim = self.base.vectors.shape
        return {"n": n, "n_fresh": len(self.fresh), "dim": dim, "metric": self.base.metric}


def read_snapshot(folder: Path, manifest: Mapping[str, Any]) -> Snapshot:
    """Open the files of `Snapshot.write`; the embeddings stay on disk, and are searched exactly.

    Args:
        folder: Where the files are.
        manifest: Its "n", "n_fresh", "dim" and "metric" say what the files must hold.

    Raises:
        ValueError: The files do not match the manifest. Damaged files raise other errors as well.
    """
    n, n_fresh, dim, metric = (manifest.get(name) for name in ("n", "n_fresh", "dim", "metric"))
    vectors = open_array(folder / "dataset.npy", (n, dim))
    fresh = open_array(folder / "fresh.npy", (n_fresh, dim)) if n_fresh else vectors[:0]
    items = json.loads((folder / "items.json").read_bytes())
    ids = items["ids"]
    dead = np.zeros(len(ids), bool)
    dead[items["dead"]] = True
    ids = np.array(ids, checked_ids(list(itertools.compress(ids, ~dead))).dtype)
    records = checked_records(items["attributes"], len(ids))
    base = Segment(vectors, ids[:n], AttributeTable(records[:n]), metric)
    fresh = Segment(fresh, ids[n:], AttributeTable(records[n:]), metric)
    return Snapshot(base, fresh, dead, engine=base)


def check_known(ids: Ids, is_known: Sequence[bool]) -> None:
    """ValueError if one of some ids is not in the index."""
    if unknown := [key for key, known in zip(ids, is_known, strict=True) if not known]:
        raise ValueError(
            f"{len(unknown)} ids are not in the index, the first is {unknown[0]!r:.80}"
        )


def _json_number(value: Any) -> Any:
    """A NumPy number as JSON holds it."""
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"attributes can be saved only as JSON; got {value!r:.80}")


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
    vectors = checked_rows(embeddings, "embeddings", metric)
    ids = checked_ids(ids, len(vectors))
    records = checked_records(attributes, len(ids))
    return Segment(vectors, ids, AttributeTable(records), metric)

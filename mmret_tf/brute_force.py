"""Exact search (精确检索): ids and embeddings in, the k best ids and their scores out.

Every query is compared with every embedding, which makes `BruteForceIndex` the oracle of any other
index, and the right one for small galleries. Arrays and ids, never models. Sections 2.4 and 3.1(5)
of the document.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf.checks import Ids, checked_count, checked_ids, checked_queries
from mmret_tf.filters import AttributeTable
from mmret_tf.folders import replace_folder
from mmret_tf.segments import Found, Segment, Snapshot, checked_segment, merged

FORMAT = "mmret_tf index"
VERSION = 2

# Added, replaced and deleted items are put up with until there are so many, or this share of all.
FEW_CHANGES = 1000
CHANGED_SHARE = 0.1


class Index:
    """What both indexes have: search among the items that are allowed, changes, and files.

    Any number of threads may search while others change the index: a search answers for the items
    that were there when it began, and sees every change that had returned by then.
    """

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._row_of: dict[str | int, int] | None = None
        # The first is held for moments, to exchange the two above; the second throughout a change.
        self._exchange, self._change = threading.Lock(), threading.RLock()

    def __len__(self) -> int:
        """The number of items."""
        return len(self._snapshot)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, dim {self.dim}, {self.metric!r})"

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._snapshot.base.vectors.shape[1]

    @property
    def metric(self) -> str:
        """ "cosine" or "euclidean"."""
        return self._snapshot.base.metric

    @property
    def ids(self) -> list[str] | list[int]:
        """The ids of all items, in the order in which they were added."""
        return self._snapshot.compact().ids.tolist()

    @property
    def vectors(self) -> np.ndarray:
        """`[n, dim]` float32, an embedding an id; of unit length if the metric is cosine."""
        return self._snapshot.compact().vectors

    @property
    def stats(self) -> dict[str, Any]:
        """How the index searches: "mode" and "recall"."""
        return {"mode": "exact", "recall": 1.0}

    def search(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude_ids: Collection[str] | Collection[int] = (),
    ) -> Found:
        """The k items with the highest scores, for each query, best first. Section 3.1(5).

        The score is the cosine similarity (余弦相似度) for the metric "cosine"; queries need not
        be of unit length, and one of length 0 has cosine 0 with everything. For "euclidean"
        (欧氏距离) it is the NEGATIVE of the document's distance, the sum of squared differences:
        larger is better in both. Of items with one score, the one added first comes first.

        Args:
            queries: `[n_queries, dim]`, or `[dim]` for one.
            k: how many; all are returned where fewer items may be.
            where: a condition on the items' attributes (属性过滤), as
                `{"colour": "red", "price": {"$gte": 10, "$lt": 20}}`; see
                `mmret_tf.filters.check_condition`.
            exclude_ids: items not to return, such as the query's own; others than the index has do
                not matter.

        Returns:
            Ids `[n_queries, min(k, n)]`, strings or int64 as they were given, and scores, float32
            of the same shape; n is the number of items that fulfil the condition.

        Raises:
            ValueError: k is below 1; queries are empty, of another width, or hold NaN or infinity;
                the condition is none, or on an attribute that no item has.

        >>> index = BruteForceIndex.build([[1, 0], [0, 1]], ["a", "b"], attributes=[{}, {"red": 1}])
        >>> index.search([1, 0], where={"red": 1})[0].tolist(), index.search([1, 0], 1)[0].tolist()
        ([['b']], [['a']])
        """
        k = checked_count(k, "k")
        queries = checked_queries(queries, self.dim, self.metric)
        if isinstance(exclude_ids, (str, bytes)) or not isinstance(exclude_ids, Collection):
            raise ValueError(f"exclude_ids must be a list of ids; got {exclude_ids!r:.80}")
        self._check_kind(exclude_ids, "exclude_ids")
        with self._exchange:
            snapshot = self._snapshot
            excluded = self._rows_of(exclude_ids) if len(exclude_ids) else []
        allowed = snapshot.allowed(where, [row for row in excluded if row is not None])
        rows, scores = self._nearest(snapshot, queries, k, allowed)
        return snapshot.ids_of(rows), scores

    def upsert(
        self,
        ids: Ids,
        embeddings: npt.ArrayLike,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add items, and replace those with ids that the index has. Searches see them at once.

        What was added is searched exactly, beside what was built. When so much has changed that
        searches would become slow (1,000 items and a tenth of all), the call also does what
        `rebalance` does.

        Args:
            ids: `[n]`, of the kind that the index has.
            embeddings: `[n, dim]`.
            attributes: for each what `where` may ask for. By default a replaced item keeps its
                attributes, and a new one has none.

        Raises:
            ValueError: as for `build`; nothing is changed then.
        """
        new = checked_segment(embeddings, ids, self.metric, attributes)
        if new.vectors.shape[1] != self.dim:
            raise ValueError(f"embeddings must have width {self.dim}; got {new.vectors.shape[1]}")
        names = new.ids.tolist()
        with self._change:
            snapshot = self._snapshot
            self._check_kind(names, "ids")
            with self._exchange:
                rows = self._rows_of(names)
            if attributes is None:
                records = [{} if row is None else snapshot.record_of(row) for row in rows]
                new = replace(new, attributes=AttributeTable(records))
            changed = snapshot.changed(new, [row for row in rows if row is not None])
            with self._exchange:
                self._snapshot = changed
                self._row_of.update(zip(names, range(snapshot.n_rows, changed.n_rows), strict=True))
            self._rebalance_if_due()

    def delete(self, ids: Ids) -> None:
        """Remove items. Searches see it at once; see `upsert` for what it costs.

        Args:
            ids: different ids that the index has.

        Raises:
            ValueError: an id comes twice, or the index does not have it; nothing is removed then.
        """
        names = checked_ids(ids).tolist()
        with self._change:
            snapshot = self._snapshot
            with self._exchange:
                rows = self._rows_of(names)
            if unknown := [name for name, row in zip(names, rows, strict=True) if row is None]:
                raise ValueError(
                    f"{len(unknown)} ids are not in the index, the first is {unknown[0]!r:.80}"
                )
            changed = snapshot.changed(snapshot.base.part(slice(0)), rows)
            with self._exchange:
                self._snapshot = changed
                for name in names:
                    del self._row_of[name]
            self._rebalance_if_due()

    def rebalance(self) -> None:
        """Build anew from the items that there are now, so that search is as fast as it can be.

        `upsert` and `delete` do so by themselves when much has changed. Searches go on meanwhile.
        """
        with self._change:
            snapshot = self._rebuilt(self._snapshot.compact())
            with self._exchange:
                self._snapshot, self._row_of = snapshot, None

    def save(self, directory: str | os.PathLike) -> None:
        """Write the index as a folder, whole or not at all; it may be moved afterwards.

        Searches go on meanwhile, and changes wait.

        Args:
            directory: does not exist, is empty, or holds an older index, which is replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        with self._change:
            snapshot = self._snapshot
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "class": type(self).__name__,
                "metric": self.metric,
                "n": len(snapshot.base),
                "n_fresh": len(snapshot.fresh),
                "dim": self.dim,
                **self._description(),
            }
            with replace_folder(Path(directory), manifest) as new:
                snapshot.write(new)
                self._write_more(new)

    def _check_kind(self, ids: Collection, name: str) -> None:
        """Refuse strings where ids are integers, and the other way."""
        snapshot = self._snapshot
        kind = str if snapshot.id_dtype.kind == "O" else (int, np.integer)
        if len(snapshot) and (bad := [key for key in ids if not isinstance(key, kind)]):
            expected = "strings" if kind is str else "integers"
            raise ValueError(f"{name} must be {expected}, as in the index; got {bad[0]!r:.80}")

    def _rows_of(self, ids: Collection) -> list[int | None]:
        """The row of each id, None where the index has none; `_exchange` must be held."""
        if self._row_of is None:
            snapshot = self._snapshot
            rows = np.flatnonzero(~snapshot.dead)
            self._row_of = dict(zip(snapshot.ids_of(rows).tolist(), rows.tolist(), strict=True))
        return [self._row_of.get(key) for key in ids]

    def _rebalance_if_due(self) -> None:
        snapshot = self._snapshot
        changes = len(snapshot.fresh) + snapshot.n_dead
        if changes > max(FEW_CHANGES, CHANGED_SHARE * snapshot.n_rows):
            self.rebalance()

    def _nearest(
        self, snapshot: Snapshot, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> Found:
        """The best k of both segments."""
        n = len(snapshot.base)
        old, new = (None, None) if allowed is None else (allowed[:n], allowed[n:])
        base = snapshot.engine or snapshot.base
        found = base.nearest(queries, k, old)
        if not len(snapshot.fresh):
            return found
        rows, scores = snapshot.fresh.nearest(queries, k, new)
        return merged(found, (rows + n, scores), k)

    # What `ScannIndex` does in ways of its own.

    def _rebuilt(self, items: Segment) -> Snapshot:
        return Snapshot.of(items)

    def _description(self) -> dict[str, Any]:
        return {}

    def _write_more(self, folder: Path) -> None:
        pass


class BruteForceIndex(Index):
    """Exact search: every query is compared with every embedding. Section 2.4.

    Made by `build`, or read by `load_index`; they give the constructor its `snapshot`.

    >>> index = BruteForceIndex.build([[1, 0], [0, 1], [1, 1]], ["a", "b", "c"])
    >>> ids, scores = index.search([2, 0], k=2)
    >>> ids.tolist(), scores.round(3).tolist()
    ([['a', 'c']], [[1.0, 0.7070000171661377]])
    >>> index.upsert(["d"], [[1, 0.1]])
    >>> index.delete(["a"])
    >>> index.search([2, 0], k=1)[0].tolist(), index
    ([['d']], BruteForceIndex(3 items, dim 2, 'cosine'))
    """

    @classmethod
    def build(
        cls,
        embeddings: npt.ArrayLike,
        ids: Ids,
        metric: str = "cosine",
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> BruteForceIndex:
        """Index some embeddings; they are copied, and normalised in the copy for "cosine".

        Float32 numbers that NumPy maps from a file (`numpy.load(path, mmap_mode="r")`) are
        searched where they are, without a copy, unless "cosine" finds rows that have another
        length than 1.

        Args:
            embeddings: `[n, dim]`.
            ids: `[n]` different strings, or different integers.
            metric: "cosine" or "euclidean".
            attributes: for each item a dictionary `{name: value}` that `search(where=...)` may ask
                for. A value is a string, number or boolean, or a list of these.

        Raises:
            ValueError: no embeddings, NaN or infinity in them, ids that come twice or do not fit,
                attributes that do not fit, or another metric.
        """
        return cls(Snapshot.of(checked_segment(embeddings, ids, metric, attributes)))

"""Changes to an index (增量更新): items come and go while threads search."""

import abc
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import Ids, checked_ids
from mmret_tf.ranking.filters import AttributeTable
from mmret_tf.ranking.indexes.snapshot import Segment, Snapshot, checked_segment

# An index is built again once more items than both of these have changed: a number, and a share.
FEW_CHANGES = 1000
CHANGED_SHARE = 0.1


class UpdatableItems(abc.ABC):
    """The items of an `Index`. Any number of threads may search while others change them.

    A search answers for the items that were there when it began, and sees every change that had
    returned by then.

    Args:
        snapshot: The items, with the engine that `prepare` made.
    """

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot  # a search takes it once, and a change replaces it whole
        self._change = threading.RLock()  # held throughout a change

    @abc.abstractmethod
    def prepare(self, items: Segment) -> Any:
        """Build an engine that finds the nearest items. For a subclass to define.

        Called by `build` and `rebalance`, while searches among the older items go on.

        Args:
            items: The rows: `vectors`, `ids`, `attributes` and `metric`.

        Returns:
            An object whose `nearest(queries, k, allowed)` finds rows as `Segment.nearest` does;
            `items` itself for exact search.
        """

    def __len__(self) -> int:
        """Number of items."""
        return len(self._snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """The contents at this moment, which never change."""
        return self._snapshot

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
        """One embedding for each id, `[n, dim]` float32; of unit length for "cosine"."""
        return self._snapshot.compact().vectors

    def vectors_of(self, ids: Ids) -> np.ndarray:
        """The embeddings of some items, `[n, dim]` float32.

        Args:
            ids: `[n]` ids that the index has.

        Raises:
            ValueError: An id is not in the index.
        """
        snapshot = self._snapshot
        return snapshot.vectors_at(snapshot.rows_of(ids))

    @property
    def engine(self) -> Any:
        """The result of `prepare` for the items that were there when the index was built."""
        return self._snapshot.engine

    def upsert(
        self,
        ids: Ids,
        embeddings: npt.ArrayLike,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add items, and replace those that the index already has. Searches see them at once.

        New items are searched exactly, beside the built ones. The update that crosses the limit of
        changes (1,000 items and a tenth of all) also calls `rebalance`.

        Args:
            ids: `[n]`, of the kind that the index has.
            embeddings: Array `[n, dim]`.
            attributes: A dictionary for each item. By default a replaced item keeps its attributes,
                and a new item has none.

        Raises:
            ValueError: As for `build`; nothing is changed then.
        """
        new = checked_segment(embeddings, ids, self.metric, attributes)
        if new.vectors.shape[1] != self.dim:
            raise ValueError(f"embeddings must have width {self.dim}; got {new.vectors.shape[1]}")
        with self._change:
            self._check_kind(new.ids.tolist(), "ids")
            self._upsert(new, keep_attributes=attributes is None)

    def _upsert(self, new: Segment, keep_attributes: bool) -> None:
        """`upsert` for checked items; the caller holds `_change`."""
        snapshot = self._snapshot
        rows = [snapshot.row_of(name) for name in new.ids.tolist()]
        if keep_attributes:
            records = [{} if row is None else snapshot.record_of(row) for row in rows]
            new = replace(new, attributes=AttributeTable(records))
        self._apply(new, [row for row in rows if row is not None])

    def delete(self, ids: Ids) -> None:
        """Remove items. Searches see it at once; see `upsert` for the cost.

        Args:
            ids: Different ids that the index has.

        Raises:
            ValueError: An id occurs twice or is not in the index; nothing is removed then.
        """
        names = checked_ids(ids).tolist()
        with self._change:
            self._delete(names)

    def _delete(self, names: list) -> None:
        """`delete` for checked ids; the caller holds `_change`."""
        self._apply(None, self._snapshot.rows_of(names))

    def rebalance(self) -> None:
        """Build again from the present items, which makes searches as fast as they can be.

        Searches go on meanwhile. `upsert` and `delete` call it after many changes.
        """
        with self._change:
            items = self._snapshot.compact()
            self._snapshot = Snapshot.of(items, self.prepare(items))

    @property
    def _has_strings(self) -> bool:
        """Whether ids are strings."""
        return self._snapshot.ids.dtype == object

    def _check_kind(self, ids: Collection, name: str) -> None:
        """Refuse strings if the ids are integers, and integers if they are strings."""
        kind = str if self._has_strings else (int, np.integer)
        if len(self) and (bad := [key for key in ids if not isinstance(key, kind)]):
            expected = "strings" if kind is str else "integers"
            raise ValueError(f"{name} must be {expected}, as in the index; got {bad[0]!r:.80}")

    def _apply(self, new: Segment | None, dead: list[int]) -> None:
        """Add rows and mark others as dead; the caller holds `_change`."""
        self._snapshot = changed = self._snapshot.changed(new, dead)
        n_changes, n_base = len(changed.fresh) + changed.n_dead, len(changed.base)
        is_many = n_changes > max(FEW_CHANGES, CHANGED_SHARE * len(changed.dead))
        if is_many or changed.dead[:n_base].all():  # nothing is left of the base
            self.rebalance()

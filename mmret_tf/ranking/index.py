"""The index (索引): from ids and embeddings to the k best ids and their scores.

`Index` has what all indexes share: search among the allowed items, changes (`indexes/updates`) and
files. Its subclasses find the nearest rows. It takes arrays and ids, never models. Sections 2.4 and
3.1(5) of the document.
"""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import Ids, check_collection, checked_count, checked_queries
from mmret_tf._files import read_manifest, replace_folder
from mmret_tf._lazy import import_modules
from mmret_tf.ranking.indexes.snapshot import Found, Snapshot, checked_segment, read_snapshot
from mmret_tf.ranking.indexes.updates import UpdatableItems

FORMAT = "mmret_tf index"
VERSION = 3

# Packages name their subclasses of `Index` here, for `load_index` to import.
ENTRY_POINTS = "mmret_tf.indexes"

# The subclasses of `Index` by name, for `load_index`.
_classes: dict[str, type["Index"]] = {}


class Index(UpdatableItems):
    """A gallery's ids, embeddings and attributes, which can be searched, changed and saved.

    A subclass defines `prepare`, which builds an engine that finds the nearest items;
    `BruteForceIndex` is the shortest. If it has files of its own, it also defines `write` and
    `read`. `load_index` opens the folders of every subclass that is defined at that moment, or is
    an entry point of an installed package in the group "mmret_tf.indexes".

    Args:
        snapshot: The items, with the engine that `prepare` made.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        _classes[cls.__name__] = cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, dim {self.dim}, {self.metric!r})"

    @classmethod
    def build(
        cls,
        embeddings: npt.ArrayLike,
        ids: Ids,
        metric: str = "cosine",
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> "Index":
        """Index some embeddings. They are copied; for "cosine" the copy is scaled to unit length.

        A float32 array that is mapped from a file (`numpy.load(path, mmap_mode="r")`) is searched
        in place, without a copy, unless the metric is "cosine" and a row has another length than 1.

        Args:
            embeddings: Array `[n, dim]`.
            ids: `[n]` different strings, or different integers.
            metric: "cosine" or "euclidean".
            attributes: A dictionary `{name: value}` for each item, for `search(where=...)`. A value
                is a string, a number, a boolean, or a list of these.

        Raises:
            ValueError: There are no embeddings; they hold NaN or infinity; an id occurs twice; the
                ids or attributes do not match the rows; the metric is unknown.
        """
        index = cls(Snapshot.of(checked_segment(embeddings, ids, metric, attributes)))
        index.rebalance()
        return index

    @property
    def stats(self) -> dict[str, Any]:
        """How the index searches: "mode" and "recall". For exact search; others override it."""
        return {"mode": "exact", "recall": 1.0}

    def search(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude_ids: Collection[str] | Collection[int] = (),
    ) -> Found:
        """Find the k items with the highest scores for each query, best first. Section 3.1(5).

        For "cosine" the score is the cosine similarity (余弦相似度); queries need not be of unit
        length, and a query of length 0 has cosine 0 with everything. For "euclidean" (欧氏距离) it
        is the negative of the document's distance, the sum of squared differences (2.4). Larger is
        better in both. Of items with equal scores, the one that was added first comes first.

        Args:
            queries: Array `[n_queries, dim]`, or `[dim]` for one query.
            k: Number of results; all items are returned if there are fewer.
            where: A condition on the items' attributes (属性过滤), as
                `{"colour": "red", "price": {"$gte": 10, "$lt": 20}}`; see `check_condition`.
            exclude_ids: Items not to return, such as the query's own. Unknown ids are ignored.

        Returns:
            Ids `[n_queries, min(k, n)]`, strings or int64, and scores, float32 of the same shape; n
            is the number of items that fulfil the condition and are not excluded.

        Raises:
            ValueError: k is below 1; queries are empty, of another width, or hold NaN or infinity;
                `where` is not a valid condition, or names an attribute that no item has.

        >>> from mmret_tf.ranking import BruteForceIndex
        >>> index = BruteForceIndex.build([[1, 0], [0, 1]], ["a", "b"], attributes=[{}, {"red": 1}])
        >>> index.search([1, 0], where={"red": 1})[0].tolist(), index.search([1, 0], 1)[0].tolist()
        ([['b']], [['a']])
        """
        k = checked_count(k, "k")
        queries = checked_queries(queries, self.dim, self.metric)
        check_collection(exclude_ids, "exclude_ids")
        self._check_kind(exclude_ids, "exclude_ids")
        return self._search(queries, k, where, exclude_ids)

    def _search(
        self, queries: np.ndarray, k: int, where: Mapping[str, Any] | None, exclude_ids: Collection
    ) -> Found:
        """`search` for checked arguments."""
        snapshot = self._snapshot
        return snapshot.nearest(queries, k, snapshot.allowed(where, exclude_ids))

    def save(self, directory: str | os.PathLike) -> None:
        """Write the index as a folder, whole or not at all; the folder may be moved afterwards.

        Searches go on meanwhile; changes wait.

        Args:
            directory: A folder that does not exist, is empty, or holds an older index, which is
                replaced.

        Raises:
            ValueError: The folder holds something else, or attributes are not JSON.
        """
        with self._change:
            manifest = {"format": FORMAT, "version": VERSION, "class": type(self).__name__}
            with replace_folder(Path(directory), manifest) as new:
                manifest.update(self._snapshot.write(new))
                manifest.update(self.write(new))

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any]) -> "Index":
        """Open a saved index, for `load_index`.

        Args:
            folder: Has the files of its manifest.
            manifest: Its `manifest.json`.
        """
        snapshot = read_snapshot(folder, manifest)
        try:
            return cls.read(folder, manifest, snapshot)
        except ImportError as error:
            return _exact_instead(error, stacklevel=4)(snapshot)

    def write(self, folder: Path) -> dict[str, Any]:
        """Save the `engine`. For a subclass with files or settings of its own.

        Args:
            folder: Where to write the files.

        Returns:
            Entries for the folder's `manifest.json`, which `read` will get.
        """
        return {}

    @classmethod
    def read(cls, folder: Path, manifest: Mapping[str, Any], snapshot: Snapshot) -> "Index":
        """Open a saved index; the counterpart of `write`. By default the engine is built again.

        Args:
            folder: Holds the files of `write`, with the content that they had, and no others.
            manifest: Its `manifest.json`.
            snapshot: The contents. Its `engine` is exact search, to be replaced.
        """
        index = cls(snapshot)
        index._snapshot = replace(snapshot, engine=index.prepare(snapshot.base))
        return index


def build_index(
    embeddings: npt.ArrayLike,
    ids: Ids,
    recall_target: float = 0.95,
    queries: npt.ArrayLike | None = None,
    k: int = 10,
    metric: str = "cosine",
    **options: Any,
) -> Index:
    """Build a `ScannIndex`, or a `BruteForceIndex` with a warning if ScaNN cannot be imported.
    Sections 3.1(5) and 8.3.

    Args:
        embeddings, ids, recall_target, queries, k, metric: As for `ScannIndex.build`.
        options: Its other arguments: `attributes`, `config`, `seconds`, `progress`.

    Raises:
        ValueError: As for `ScannIndex.build`.

    >>> index = build_index([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [10, 20, 30])
    >>> index.search([0, 0, 1], k=2)[0].tolist()
    [[30, 10]]
    """
    from mmret_tf.ranking.indexes.scann_index import ScannIndex

    try:
        return ScannIndex.build(embeddings, ids, recall_target, queries, k, metric, **options)
    except ImportError as error:
        exact = _exact_instead(error)
        return exact.build(embeddings, ids, metric, options.get("attributes"))


def load_index(directory: str | os.PathLike) -> Index:
    """Open a saved index after checking that it is whole; embeddings stay on disk. Section 8.3.

    Nothing in the folder is unpickled, and its manifest never decides what is imported. The folder
    must hold exactly the files of its manifest. An index that needs a missing package (ScaNN) is
    opened as a `BruteForceIndex`, with a warning.

    Args:
        directory: A folder that `save` wrote; it may have been moved since.

    Raises:
        ValueError: There is no index, or it is damaged, or it is of another version of mmret_tf, or
            its class is not defined.

    >>> import tempfile
    >>> from mmret_tf.ranking import BruteForceIndex
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> BruteForceIndex.build([[1, 0], [0, 1]], ["007", "红"]).save(folder)
    >>> load_index(folder).search([0, 1], k=1)[0].tolist()
    [['红']]
    """
    try:
        folder, manifest = read_manifest(Path(directory), FORMAT, VERSION)
        return _class_of(str(manifest.get("class"))).open(folder, manifest)
    except (LookupError, TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        again = "`mmret index` builds a run's index again"
        raise ValueError(f"cannot open the index {directory}: {reason}; {again}") from None


def _class_of(name: str) -> type[Index]:
    """The subclass of `Index` with this name."""
    import_modules(f"{__package__}.indexes")
    if name not in _classes:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            entry.load()  # of an installed package; importing the class registers it
    if name not in _classes:
        known = ", ".join(sorted(_classes))
        raise ValueError(f"the index's class {name!r:.80} is not defined here; there are: {known}")
    return _classes[name]


def _exact_instead(error: ImportError, stacklevel: int = 3) -> type[Index]:
    """`BruteForceIndex`, after a warning, of that place in the stack, that says why."""
    from mmret_tf.ranking.indexes.brute_force import BruteForceIndex

    warnings.warn(
        f"{error}; BruteForceIndex is used instead: exact, but slower", stacklevel=stacklevel
    )
    return BruteForceIndex

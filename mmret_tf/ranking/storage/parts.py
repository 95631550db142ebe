"""Regions and words of a gallery (图像区域与词), which a re-ranker compares: on disk, in one byte a
number.

They are an embedding store: its rows are sources, and an "embedding" is a sequence of vectors.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmret_tf.data.collection import Collection
from mmret_tf.data.items import Item, source_ids
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.reranker import Reranker, gallery_modality
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore


class StoredParts(Mapping):
    """The regions or words of each item, float32 `[n_sources, length, dim]`, by its id.

    Args:
        store: Made by `export`.
        items: The items of the gallery.
        reranker: What made them.

    Raises:
        ValueError: Another model made them, or an item is missing.
    """

    def __init__(self, store: EmbeddingStore, items: Sequence[Item], reranker: Reranker):
        encoder = _PartEncoder(reranker)
        if (store.fingerprint, store.made_by["recipe"]) != (encoder.fingerprint, encoder.recipe):
            raise ValueError(
                f"{store.directory} was made by another model: run `mmret embed` again"
            )
        self._store, self._dim = store, reranker.dim
        self._lengths = {name: length for name, (length, _) in reranker.shapes.items()}
        row_of = {key: row for row, key in enumerate(store.ids)}
        self._rows = {}
        for item in items:
            name = gallery_modality(reranker.encoder, item["sources"])
            names = source_ids(item["id"], len(item["sources"][name]))
            if missing := [key for key in names if key not in row_of]:
                raise ValueError(f"{store.directory} lacks {missing[0]!r}: run `mmret embed` again")
            self._rows[item["id"]] = name, [row_of[key] for key in names]

    def __getitem__(self, key: str) -> np.ndarray:
        name, rows = self._rows[key]
        length = self._lengths[name]
        parts = self._store.rows(rows)[:, : length * self._dim]  # the rest is padding
        return parts.reshape(len(rows), length, self._dim)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @classmethod
    def export(
        cls,
        reranker: Reranker,
        collection: Collection,
        directory: str | os.PathLike,
        known: EmbeddingStore | None = None,
    ) -> "StoredParts":
        """Read the regions or words of a gallery and write them to a folder.

        Args:
            reranker: Reads them.
            collection: The gallery.
            directory, known: As for `EmbeddingStore.export`, also for the errors.
        """
        rows: dict[str, list] = {name: [] for name in reranker.encoder.modalities}
        ids: list[str] = []
        for row, key in enumerate(collection.ids):
            sources = {name: each[row] for name, each in collection.sources.items()}
            name = gallery_modality(reranker.encoder, sources)
            ids += source_ids(key, len(sources[name]))
            for each in sources[name]:
                for other, column in rows.items():
                    column.append([each] if other == name else [])
        by_source = Collection(ids, rows)
        encoder = _PartEncoder(reranker)
        store = EmbeddingStore.export(encoder, by_source, directory, dtype="int8", known=known)
        return cls(store, collection.records(), reranker)


class _PartEncoder(Encoder):
    """What reads regions or words, as an encoder: those of a source, one after another in a row."""

    def __init__(self, reranker: Reranker):
        self.towers, self.recipe = reranker.encoder.towers, reranker.recipe
        self.embedding_dim = max(length for length, _ in reranker.shapes.values()) * reranker.dim
        self._reranker = reranker

    @property
    def fingerprint(self) -> str:
        return self._reranker.fingerprint

    def encode(
        self, modality: str, sources: Sequence[Any], batch_size: int | None = None
    ) -> np.ndarray:
        parts = self._reranker.encode(modality, sources).reshape(len(sources), -1)
        return np.pad(parts, ((0, 0), (0, self.embedding_dim - parts.shape[1])))

    def encode_items(self, sources: Mapping[str, Sequence[Sequence[Any]]]) -> np.ndarray:
        """Each item has one source."""
        n = len(next(iter(sources.values())))
        rows = np.zeros((n, self.embedding_dim), np.float32)
        for name, column in sources.items():
            if used := [row for row, each in enumerate(column) if each]:
                rows[used] = self.encode(name, [column[row][0] for row in used])
        return rows

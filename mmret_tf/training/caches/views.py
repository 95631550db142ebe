"""What all caches share: what frozen layers give of the views of a source, by its content."""

import abc
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import tensorflow as tf

from mmret_tf.data.collection import Collection
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import Source, identities
from mmret_tf.models.encoder import Encoder
from mmret_tf.models.fingerprint import weights_digest
from mmret_tf.models.towers.tower import Tower, encode_sources
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore

Items = TypeVar("Items", bound=Collection)

# Sources that are computed at once.
BATCH = 64

# Parts of a tower's configuration that are not those of its frozen layers.
IGNORED = ("head", "name", "trainable", "frozen", "region_layers", "region_pool")


@dataclass(frozen=True, slots=True)
class CachedSource(Source):
    """A source that reads as the digest of the original: the key of what is cached."""

    origin: Source

    @property
    def identity(self) -> str:  # what is embedded is the content of the original
        return self.origin.identity

    @property
    def record(self) -> str:
        return self.origin.record

    @property
    def name(self) -> str:
        return self.origin.name

    @property
    def is_identified(self) -> bool:
        return self.origin.is_identified

    @property
    def identity_stamp(self) -> tuple[int, int] | None:
        return self.origin.identity_stamp

    def read(self) -> bytes:
        return self.origin.identity.encode()


class ViewCache(abc.ABC):
    """What frozen layers give of each source, and of its views (视图), on disk. Section 8.1.

    It is named after the content of a source and all that is done with it, so a cache is never
    stale. It is read again where the folder holds it, and an interrupted computation resumes.

    A subclass says what is kept: it defines `compute` and `shape`.

    Args:
        tower: The tower of the layers.
        sources: Its sources; views are computed for those in `augmented`.
        directory: Folder of the cache; it is made, or brought up to date.
        augmented: Sources that training augments.
        views: Number of views of each of these, the plain one included. Views with odd numbers are
            mirrored. Of pictures, the first two are whole and the others crops.

    Attributes:
        tower, views: As given.
        dtype: How it is stored, see `EmbeddingStore.export`.

    Raises:
        ValueError: The layers are not frozen, a source cannot be used, or the folder holds
            something else.
    """

    dtype: ClassVar[str] = "float32"

    def __init__(
        self,
        tower: Tower,
        sources: Iterable[Source],
        directory: str | os.PathLike,
        augmented: Iterable[Source] = (),
        views: int = 1,
    ):
        self.tower, self.views = tower, views
        self._stores = [self._stored([0], sources, Path(directory) / "plain")]
        if views > 1:
            numbers = list(range(1, views))
            self._stores.append(self._stored(numbers, augmented, Path(directory) / "views"))
        self._rows = [{key: row for row, key in enumerate(store.ids)} for store in self._stores]

    @abc.abstractmethod
    def compute(self, sources: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
        """What is kept of a view, in TensorFlow ops.

        Args:
            sources, seeds, view: As for `Tower.view_inputs`.

        Returns:
            `[batch, *shape]`.
        """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of a view."""

    @property
    def said(self) -> list:
        """All that decides `compute` besides the tower, as JSON values."""
        return []

    def _stored(self, views: list[int], sources: Iterable[Source], folder: Path) -> EmbeddingStore:
        """A store with one row for each content that there is; its ids are the content digests."""
        sources, encoder = list(sources), _ViewEncoder(self, views)
        source_of = dict(zip(identities(sources), sources, strict=True))
        try:
            store = EmbeddingStore.open(folder)
            found = store.fingerprint, store.made_by["dtype"], store.ids
            if found == (encoder.fingerprint, self.dtype, list(source_of)):
                return store
        except ValueError:  # none yet, or one that was interrupted
            pass
        rows = {self.tower.modality: [[each] for each in source_of.values()]}
        items = Collection(list(source_of), rows)
        return EmbeddingStore.export(encoder, items, folder, self.dtype)

    def cached(self, collection: Items) -> Items:
        """The same items; the sources of the tower's modality read as their digests.

        Args:
            collection: Items, or `Pairs`, whose sources are in the cache.
        """
        same, name = collection.subset(range(len(collection))), self.tower.modality
        if name in same.sources:
            same.sources[name] = [
                [CachedSource(source) for source in each] for each in collection.sources[name]
            ]
        return same

    def look_up(self, digests: np.ndarray, views: np.ndarray) -> np.ndarray:
        """What is kept of some sources.

        Args:
            digests: Content digests, bytes `[batch]`.
            views: Number of a view for each, `[batch]`.

        Returns:
            float32 `[batch, *shape]`.
        """
        width = int(np.prod(self.shape))
        found = np.empty((len(digests), width), np.float32)
        for place, (digest, view) in enumerate(zip(digests, views, strict=True)):
            number, start = (0, 0) if view == 0 else (1, (view - 1) * width)
            row = self._rows[number][digest.decode()]
            found[place] = self._stores[number].rows(row, slice(start, start + width))
        return found.reshape(-1, *self.shape)


class CachedViews(Tower):
    """A tower over a cache: its sources are content digests.

    Args:
        cache: What it reads.
    """

    def __init__(self, cache: ViewCache):
        super().__init__(cache.tower.head, name=f"cached_{cache.tower.name}")
        self.modality, self.is_ordered = cache.tower.modality, cache.tower.is_ordered
        self.batch_size = cache.tower.batch_size
        self._cache = cache

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return self._look_up(sources, tf.zeros_like(sources, tf.int64))

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        """One of the views, drawn by the seeds; a mirrored one, with an odd number, if asked."""
        half = (self._cache.views + 1) // 2
        views = 2 * (seeds[:, 0] % half) + tf.cast(mirror, tf.int64)
        return self._look_up(sources, tf.where(views < self._cache.views, views, 0))

    def _look_up(self, digests: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(self._cache.look_up, [digests, views], tf.float32, stateful=False)
        return tf.ensure_shape(found, [None, *self._cache.shape])


class _ViewEncoder(Encoder):
    """Frozen layers as an encoder: what they give of some views is stored like embeddings."""

    def __init__(self, cache: ViewCache, views: list[int]):
        tower = cache.tower
        self.towers = {tower.modality: tower}
        config = tower.get_config()
        config = {name: config[name] for name in config if name not in IGNORED}
        layers = [layer for layer in tower.layers if layer is not tower.head]
        if any(layer.trainable_weights for layer in layers):
            raise ValueError(
                f"the features of {tower.name} change in training: freeze its backbone"
            )
        weights = [weight for layer in layers for weight in layer.weights]
        # What is done to a source counts like a weight.
        said = json.dumps([config, [*cache.said, *views]], sort_keys=True, default=str)
        self._fingerprint = weights_digest(said, weights)
        self.embedding_dim = int(np.prod(cache.shape)) * len(views)
        self._compiled = [_compiled_view(cache.compute, view) for view in views]

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(
        self, modality: str, sources: Sequence[Source], batch_size: int | None = None
    ) -> np.ndarray:
        rows = []
        for start in range(0, len(sources), BATCH):
            block = sources[start : start + BATCH]
            contents = tf.constant([get_modality(modality).read(source) for source in block])
            # A crop follows from the content, so that a cache is the same on every machine.
            digests = tf.constant([int(source.identity[:14], 16) for source in block], tf.int64)
            try:
                views = [compiled(contents, digests) for compiled in self._compiled]
            except tf.errors.OpError:
                encode_sources(self.towers[modality], block)  # names the source that is damaged
                raise
            rows.append(np.concatenate([np.reshape(each, (len(block), -1)) for each in views], 1))
        return np.concatenate(rows)


def _compiled_view(compute: Callable, view: int) -> tf.types.experimental.ConcreteFunction:
    """A view as a graph that is traced once for all batch sizes."""

    @tf.function
    def compiled(contents, digests):
        seeds = tf.stack([digests, tf.fill(tf.shape(digests), tf.constant(view, tf.int64))], axis=1)
        return compute(contents, seeds, view)

    specs = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)
    return compiled.get_concrete_function(*specs)  # or TensorFlow warns of as many traces as views

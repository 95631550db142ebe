"""The region cache (区域缓存): regions of pictures, computed once and kept on disk.

A re-ranker reads them in every epoch, and the backbone that made them is frozen. As in `features`,
a cached form of the model has a tower whose sources are content digests.
"""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from mmret_tf.data.sources import Source
from mmret_tf.fusion.fusion import presence
from mmret_tf.models.encoder import Encoder
from mmret_tf.models.towers.tower import Tower, input_batches
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.training.caches.contents import frozen_digest, store_by_content


class RegionCache:
    """Regions of the sources of one modality, by content, in two bytes a number. Section 8.1.

    Args:
        tower: The tower of a re-ranker's encoder.
        sources: Its sources.
        directory: Folder of the cache; it is made, or brought up to date.

    Attributes:
        tower: As given.
        shape: Number and width of the regions.

    Raises:
        ValueError: The tower is not frozen, has no regions or any number of them, a source cannot
            be used, or the folder holds something else.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> from mmret_tf.training.caches.contents import as_cached
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=8)
    >>> reranker = mm.Reranker(mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8)), dim=8)
    >>> cache = RegionCache(image, pairs.first_sources, tempfile.mkdtemp())
    >>> cached = as_cached(pairs, "image").first_sources
    >>> cache.reranker(reranker).features("image", cached).shape
    (4, 4, 256)
    """

    def __init__(self, tower: Tower, sources: Iterable[Source], directory: str | os.PathLike):
        self.tower, self.shape = tower, tower.sequence_shape
        encoder = _RegionEncoder(tower, self.shape)
        self._store = store_by_content(encoder, tower.modality, sources, directory, "float16")
        self._row_of = {key: row for row, key in enumerate(self._store.ids)}

    def look_up(self, digests: Sequence[bytes]) -> np.ndarray:
        """Regions of some sources.

        Args:
            digests: Content digests.

        Returns:
            float32 `[n, length, width]`.
        """
        rows = [self._row_of[digest.decode()] for digest in digests]
        return self._store.rows(rows).reshape(-1, *self.shape)

    def reranker(self, reranker: Reranker) -> Reranker:
        """A re-ranker whose sources of this modality are content digests; it shares all weights.

        Args:
            reranker: The re-ranker of the tower.
        """
        return reranker.with_towers({self.tower.modality: CachedRegions(self)})


class CachedRegions(Tower):
    """Cached regions as a tower: its sources are content digests.

    Args:
        cache: The regions.
    """

    def __init__(self, cache: RegionCache):
        super().__init__(cache.tower.head, name=f"cached_{cache.tower.name}")
        self.modality, self.is_ordered = cache.tower.modality, cache.tower.is_ordered
        self._cache = cache

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(self._cache.look_up, [sources], tf.float32, stateful=False)
        return tf.ensure_shape(found, [None, *self._cache.shape])

    def features(self, inputs, training: bool = False):
        raise NotImplementedError("cached regions have no embedding")

    def sequence(self, inputs):
        return inputs, presence(inputs)


class _RegionEncoder(Encoder):
    """A frozen tower as an encoder of its regions, one after another in a row."""

    def __init__(self, tower: Tower, shape: tuple[int, int]):
        self.towers = {tower.modality: tower}
        self.embedding_dim = int(np.prod(shape))
        self._fingerprint = frozen_digest(tower, ["regions", tower.sequence_settings])
        compiled = tf.function(tower.padded_sequence, autograph=False)
        self._regions = compiled.get_concrete_function(tower.input_specs())

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(
        self, modality: str, sources: Sequence[Source], batch_size: int | None = None
    ) -> np.ndarray:
        batches = input_batches(self.towers[modality], sources, batch_size)
        rows = [self._regions(each).numpy() for each in batches]
        return np.concatenate(rows).reshape(len(sources), -1)

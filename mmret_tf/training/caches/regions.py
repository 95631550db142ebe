"""The region cache (区域缓存): regions of pictures, computed once and kept on disk.

A re-ranker reads them in every epoch, and the backbone that made them is frozen. As in `features`,
a cached form of the model has a tower whose sources are content digests.
"""

import functools

import tensorflow as tf

from mmret_tf.fusion.fusion import presence
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.training.caches.views import CachedViews, ViewCache


class RegionCache(ViewCache):
    """Regions of the sources of one modality, by content, in two bytes a number. Section 8.1.

    Args:
        tower, sources, directory, augmented, views: As for `ViewCache`, also for the errors.

    Raises:
        ValueError: The tower has no regions, or any number of them.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=8)
    >>> reranker = mm.Reranker(mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8)), dim=8)
    >>> cache = RegionCache(image, pairs.first_sources, tempfile.mkdtemp())
    >>> cached = cache.cached(pairs)  # its pictures read as keys
    >>> cache.reranker(reranker).encode("image", cached.first_sources).shape
    (4, 4, 8)
    """

    dtype = "float16"

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        return self.tower.sequence_shape()

    @property
    def said(self) -> list:
        return ["regions", self.tower.sequence_settings]

    def compute(self, sources: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
        return self.tower.padded_sequence(self.tower.view_inputs(sources, seeds, view))

    def reranker(self, reranker: Reranker) -> Reranker:
        """A re-ranker whose sources of this modality are content digests; it shares all weights.

        Args:
            reranker: The re-ranker of the tower.
        """
        return reranker.with_towers({self.tower.modality: CachedRegions(self)})


class CachedRegions(CachedViews):
    """Cached regions as a tower: its sources are content digests."""

    def features(self, inputs, training: bool = False):
        raise ValueError("cached regions have no embedding: ask the tower that made them")

    def sequence(self, inputs):
        return inputs, presence(inputs)

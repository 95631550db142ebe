"""The region cache (区域缓存): regions of pictures, computed once and kept on disk.

A re-ranker reads them in every epoch, and the backbone that made them is frozen. As in `features`,
a cached form of the model has a tower whose sources are content digests.
"""

import os
from collections.abc import Iterable

import tensorflow as tf

from mmret_tf.data.sources import Source
from mmret_tf.fusion.fusion import presence
from mmret_tf.models.towers.tower import Tower
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.training.caches.views import CachedViews, ViewCache


class RegionCache(ViewCache):
    """Regions of the sources of one modality, by content, in two bytes a number. Section 8.1.

    Args:
        tower: The tower of a re-ranker's encoder.
        sources, directory, augmented, views: As for `FeatureCache`.

    Raises:
        ValueError: As for `ViewCache`; or the tower has no regions, or any number of them.

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

    def __init__(
        self,
        tower: Tower,
        sources: Iterable[Source],
        directory: str | os.PathLike,
        augmented: Iterable[Source] = (),
        views: int = 1,
    ):
        def regions(contents: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
            return tower.padded_sequence(tower.view_inputs(contents, seeds, view))

        what = tower, regions, tower.sequence_shape, ["regions", tower.sequence_settings]
        super().__init__(*what, sources, directory, augmented, views, "float16")

    def reranker(self, reranker: Reranker) -> Reranker:
        """A re-ranker whose sources of this modality are content digests; it shares all weights.

        Args:
            reranker: The re-ranker of the tower.
        """
        return reranker.with_towers({self.tower.modality: CachedRegions(self)})


class CachedRegions(CachedViews):
    """Cached regions as a tower: its sources are content digests."""

    def features(self, inputs, training: bool = False):
        raise NotImplementedError("cached regions have no embedding")

    def sequence(self, inputs):
        return inputs, presence(inputs)

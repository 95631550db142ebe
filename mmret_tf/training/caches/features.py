"""The feature cache (特征缓存): a frozen backbone's features, computed once and kept on disk.

Every epoch gives the same features, so training needs the heads alone. `FeatureCache.encoder` is
an encoder of the heads, which shares their weights; its sources are content digests.
"""

import tensorflow as tf

from mmret_tf.models.encoder import MultiEncoder
from mmret_tf.ranking.run import Run
from mmret_tf.training.caches.views import CachedViews, ViewCache
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.splits import Splits


class FeatureCache(ViewCache):
    """Features of the sources of one modality, by content. Section 5.

    Args:
        tower, sources, directory, augmented, views: As for `ViewCache`, also for the errors.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, trainable=False)
    >>> model = mm.DualEncoder(image, mm.text_tower(text))
    >>> cache = FeatureCache(image, pairs.first_sources, tempfile.mkdtemp())
    >>> heads, cached = cache.encoder(model), cache.cached(pairs)
    >>> heads.encode("image", cached.first_sources).shape
    (4, 256)
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tower.head.width,)

    def compute(self, sources: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
        return self.tower.view_features(sources, seeds, view)

    def encoder(self, model: MultiEncoder) -> MultiEncoder:
        """The heads of a model and its other towers as an encoder; all weights are shared.

        Args:
            model: The model of the tower.
        """
        return model.with_towers({self.tower.modality: CachedTower(self)})


class CachedTower(CachedViews):
    """A head over cached features: a tower whose sources are content digests."""

    def features(self, inputs, training: bool = False):
        return inputs


def with_cache(
    config: TrainConfig, run: Run, model: MultiEncoder, splits: Splits
) -> tuple[MultiEncoder, Splits]:
    """The heads of a run's model, and its splits with cached features.

    Args:
        config: The recipe.
        run: Its folder has the cache.
        model: Its backbone is frozen.
        splits: Their files were checked.
    """
    tower, views = model.image_tower, config.feature_views
    sources, training = splits.all_sources("image"), splits.training.first_sources
    cache = FeatureCache(tower, sources, run.features, training, views)
    return cache.encoder(model), splits.each(cache.cached)

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
    """A run's model and splits with cached features, where backbones are frozen; otherwise both as
    they are.

    Args:
        config: The recipe.
        run: Its folder has the caches.
        model: Its model.
        splits: Those of the recipe.
    """
    frozen = [name for name in splits.modalities if not model.towers[name].backbone.trainable]
    if frozen:
        splits = splits.checked()
    encoder = model
    for number, name in enumerate(splits.modalities):
        if name in frozen:
            training = splits.training[number].first_sources
            folder = run.features if name == "image" else run.features / name
            cache = FeatureCache(
                model.towers[name], splits.all_sources(name), folder, training, config.feature_views
            )
            encoder, splits = cache.encoder(encoder), splits.each(cache.cached)
    return encoder, splits

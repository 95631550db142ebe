"""The feature cache (特征缓存): a frozen backbone's features, computed once and kept on disk.

Every epoch gives the same features, so training needs the heads alone. `FeatureCache.encoder` is
an encoder of the heads, which shares their weights; its sources are content digests.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from mmret_tf.data.sources import Source
from mmret_tf.models.encoder import Encoder, MultiEncoder
from mmret_tf.models.towers.tower import Tower, encode_sources
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.training.caches.contents import frozen_digest, store_by_content
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.splits import Splits

# Sources whose features are computed at once.
BATCH = 64


class FeatureCache:
    """Features of the sources of one modality, by content. Section 5.

    What is kept is named after the content and all that the backbone does with it, so a cache is
    never stale.

    Args:
        tower: The tower with the frozen backbone.
        sources: Its sources; views are computed for those in `augmented`.
        directory: Folder of the cache; it is made, or brought up to date.
        augmented: Sources that training augments.
        views: Number of views (视图) of each augmented source, the plain one included. Views with
            odd numbers are mirrored. Of pictures, the first two are whole and the others crops.

    Raises:
        ValueError: The backbone is not frozen, a source cannot be used, or the folder holds
            something else.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> from mmret_tf.training.caches.contents import as_cached
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, trainable=False)
    >>> model = mm.DualEncoder(image, mm.text_tower(text))
    >>> cache = FeatureCache(image, pairs.first_sources, Path(tempfile.mkdtemp()) / "features")
    >>> heads, cached = cache.encoder(model), as_cached(pairs, "image")
    >>> heads.encode("image", cached.first_sources).shape
    (4, 256)
    """

    def __init__(
        self,
        tower: Tower,
        sources: Sequence[Source],
        directory: str | os.PathLike,
        augmented: Sequence[Source] = (),
        views: int = 1,
    ):
        def stored(numbers: Sequence[int], some: Sequence[Source], name: str) -> EmbeddingStore:
            encoder = _FeatureEncoder(tower, numbers)
            return store_by_content(encoder, tower.modality, some, Path(directory) / name)

        stores = [stored([0], sources, "plain")]
        if views > 1:
            stores.append(stored(list(range(1, views)), augmented, "views"))
        self.tower, self.views, self.width = tower, views, tower.head.width
        self._rows = [{key: row for row, key in enumerate(store.ids)} for store in stores]
        self._features = [store.embeddings for store in stores]

    def look_up(self, digests: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Features of some sources.

        Args:
            digests: Content digests, bytes `[batch]`.
            views: Number of a view for each, `[batch]`.

        Returns:
            float32 `[batch, width]`.
        """
        found = np.empty((len(digests), self.width), np.float32)
        for place, (digest, view) in enumerate(zip(digests, views, strict=True)):
            store, start = (0, 0) if view == 0 else (1, (view - 1) * self.width)
            row = self._rows[store][digest.decode()]
            found[place] = self._features[store][row, start : start + self.width]
        return found

    def encoder(self, model: MultiEncoder) -> MultiEncoder:
        """The heads of a model and its other towers as an encoder; all weights are shared.

        Args:
            model: The model of the tower.
        """
        return model.with_towers({self.tower.modality: CachedTower(self)})


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
    return cache.encoder(model), splits.cached("image")


class CachedTower(Tower):
    """A head over cached features: a tower whose sources are content digests.

    Args:
        cache: The features.
    """

    def __init__(self, cache: FeatureCache):
        super().__init__(cache.tower.head, name=f"cached_{cache.tower.name}")
        self.modality = cache.tower.modality
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
        return tf.ensure_shape(found, [None, self._cache.width])

    def features(self, inputs, training: bool = False):
        return inputs


class _FeatureEncoder(Encoder):
    """A frozen backbone as an encoder: its features of some views are stored like embeddings."""

    def __init__(self, tower: Tower, views: Sequence[int]):
        self.towers = {tower.modality: tower}
        self._fingerprint = frozen_digest(tower, list(views))
        self.embedding_dim = tower.head.width * len(views)
        self._compiled = [_compiled_view(tower, view) for view in views]

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(
        self, modality: str, sources: Sequence[Source], batch_size: int | None = None
    ) -> np.ndarray:
        rows = []
        for start in range(0, len(sources), BATCH):
            block = sources[start : start + BATCH]
            contents = tf.constant([source.read() for source in block])
            # A crop follows from the content, so that a cache is the same on every machine.
            digests = tf.constant([int(source.identity[:14], 16) for source in block], tf.int64)
            try:
                views = [compiled(contents, digests) for compiled in self._compiled]
            except tf.errors.OpError:
                encode_sources(self.towers[modality], block)  # names the source that is damaged
                raise
            rows.append(np.concatenate(views, axis=1))
        return np.concatenate(rows)


def _compiled_view(tower: Tower, view: int) -> tf.types.experimental.ConcreteFunction:
    """`tower.view_features` as a graph that is traced once for all batch sizes."""

    @tf.function
    def features(contents, digests):
        seeds = tf.stack([digests, tf.fill(tf.shape(digests), tf.constant(view, tf.int64))], axis=1)
        return tower.view_features(contents, seeds, view)

    specs = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)
    return features.get_concrete_function(*specs)  # or TensorFlow warns of as many traces as views

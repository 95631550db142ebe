"""Training (训练; section 5): the configuration, the recipe, callbacks, the feature cache (8.1).

    compile(optimizer, loss) -> fit(dataset, epochs) -> the best epoch

Read `trainer` first.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.training.caches.features import FeatureCache
    from mmret_tf.training.callbacks import RetrievalMetrics
    from mmret_tf.training.config import TrainConfig
    from mmret_tf.training.reranking import fit_reranker
    from mmret_tf.training.small_model import scenes_model
    from mmret_tf.training.trainer import build_model, train

__getattr__, __dir__, __all__ = attach(__name__, __file__)

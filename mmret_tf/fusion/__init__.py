"""Step 3.1(3), modality fusion (模态融合): early, late, hybrid and score fusion (2.3, 8.2).

    late: fuse(f(image), g(text)); early: f(regions and words); hybrid: both

Read `late` first, then `fused_encoder`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.fusion.fused_encoder import FusedEncoder, item_examples, load_fused_encoder
    from mmret_tf.fusion.fusion import Fusion
    from mmret_tf.fusion.imputers import (
        ConstantImputer,
        Imputer,
        MeanImputer,
        ModalityPredictor,
        NearestImputer,
    )
    from mmret_tf.fusion.late import Concatenate, GatedFusion, WeightedSum
    from mmret_tf.fusion.matching import CrossAttentionMatch, PartReader
    from mmret_tf.fusion.missing import EnsembleFusion, ModalityDropout
    from mmret_tf.fusion.scores import ReciprocalRankFusion, WeightedScores
    from mmret_tf.fusion.sequences import EarlyFusion, HybridFusion

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Step 3.1(4), similarity (相似性度量): losses, unit vectors, exact nearest neighbours (2.4, 4.3).

    similarity(x, y) = x . y / (|x| |y|)

Pure functions of arrays. Read `losses` first, from `ContrastiveCosine`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.similarity.losses import (
        ContrastiveCosine,
        ContrastiveTargets,
        CosineSimilarityLoss,
        EuclideanContrastive,
        TripletCosine,
    )
    from mmret_tf.similarity.vectors import mean_vectors, row_cosines, unit_length

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Efficiency (提高检索效率; sections 7.2 and 8.3): compression, distillation, distribution.

    int8: w = scale * q, q an integer from -128 to 127

Read `compression` first.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.scale.compression import (
        CompressedEncoder,
        choose_encoder,
        compress_image_tower,
        compression_report,
    )
    from mmret_tf.scale.distillation import distill_image_tower
    from mmret_tf.scale.distributed.cluster import connect
    from mmret_tf.scale.distributed.embedding import embed
    from mmret_tf.scale.distributed.sharded_index import PartialFound, ShardedIndex
    from mmret_tf.scale.distributed.shards import ShardLost
    from mmret_tf.scale.distributed.training import distributed_train
    from mmret_tf.scale.mixed_precision import bfloat16_encoder, images_per_second

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Step 3.1(2), model building (模型构建): a tower for each modality, and the encoder (2.2, 5).

    source -> tower = backbone + head -> unit vector; DualEncoder = two towers and a loss

Read `towers/image` and `towers/text` first, then `encoder` and `dual_encoder`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.models.backbones import load_backbone, register_backbone, small_cnn
    from mmret_tf.models.document_model import (
        MultimodalRetrievalModel,
        item_labels,
        rank_items,
        top_k_images,
    )
    from mmret_tf.models.dual_encoder import DualEncoder, load_model
    from mmret_tf.models.encoder import Encoder, MultiEncoder, VariantEncoder
    from mmret_tf.models.fine_tuning import TwoRateAdam, thaw
    from mmret_tf.models.hub.encoder import hub_encoder
    from mmret_tf.models.towers.audio import AudioTower, audio_tower
    from mmret_tf.models.towers.head import Head
    from mmret_tf.models.towers.image import ImageTower, image_tower
    from mmret_tf.models.towers.text import TextTower, text_tower
    from mmret_tf.models.towers.tower import Tower
    from mmret_tf.models.towers.video import VideoTower, video_tower

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Step 3.1(1), data preprocessing (数据预处理): from files to items, pairs and tensors (2.1).

    files -> reader -> cleaning -> Collection -> Pairs -> tf.data

Read `decoders/image` and `decoders/text` first, then `pairs`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.data.collection import Collection, caption_items
    from mmret_tf.data.decoders.image import crop_and_resize, decode_image, load_image
    from mmret_tf.data.decoders.text import TextPreprocessor, standardize_text
    from mmret_tf.data.drawn.clips import draw_clips
    from mmret_tf.data.drawn.composed_queries import draw_changes
    from mmret_tf.data.drawn.files import write_drawn
    from mmret_tf.data.drawn.scenes import draw_scenes
    from mmret_tf.data.drawn.sounds import draw_sounds
    from mmret_tf.data.drawn.worlds import draw_worlds
    from mmret_tf.data.items import Item
    from mmret_tf.data.loading import load, load_items, load_pairs
    from mmret_tf.data.modalities import Modality, get_modality, register_modality
    from mmret_tf.data.pairs import Pairs, joint_dataset
    from mmret_tf.data.readers.reader import Reader
    from mmret_tf.data.sources import FileSource, InlineSource, Source

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Towers from KerasHub: CLIP and SigLIP (arXiv 2103.00020, 2303.15343). Section 2.2.

KerasHub is imported when a tower is made or loaded; it is an extra of this package.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mmret_tf.data.decoders.image import crop_and_resize, decode_image
from mmret_tf.models.hub.text import HubTextPreprocessor, load_keras_hub, settings_of
from mmret_tf.models.layers import TEMPERATURE_RANGE, Temperature
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.text import empty_remark, without_padding
from mmret_tf.models.towers.tower import Tower

if TYPE_CHECKING:
    import keras_hub

# Lowest first temperature, in shares of the lowest at all, where the gradient ends.
INSIDE = 1.01


class HubTower(Tower):
    """What both towers share: an encoder of KerasHub and a head.

    Args:
        backbone: The encoder. CLIP's gives a sequence, `[batch, length, width]`; SigLIP's pools it
            to `[batch, width]`.
        head: Maps features to the embedding.
    """

    def __init__(self, backbone: "keras_hub.models.Backbone", head: Head, **kwargs):
        super().__init__(head, **kwargs)
        self.backbone = backbone
        self.is_pooled = len(backbone.output.shape) == 2
        unpooled = backbone
        if self.is_pooled:
            unpooled = keras.Model(backbone.input, backbone.post_layer_norm.output)
        # Inside a function, or Keras would save it as a part of the tower.
        self._unpooled = functools.partial(unpooled, training=False)

    def get_config(self) -> dict:
        # The configuration of an encoder does not say which of its layers are frozen, and their
        # names may change when it is loaded.
        layers = enumerate(self.backbone.layers)
        frozen = [place for place, layer in layers if not layer.trainable]
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "frozen_in_backbone": frozen,
        }

    @classmethod
    def from_config(cls, config: dict) -> "HubTower":
        load_keras_hub()  # registers its classes
        config = dict(config)
        frozen = config.pop("frozen_in_backbone")
        tower = super().from_config(config)
        for place in frozen:
            tower.backbone.layers[place].trainable = False
        return tower


@keras.saving.register_keras_serializable("mmret_tf")
class HubImageTower(HubTower):
    """The vision encoder of a CLIP or SigLIP, and a head. Made by `hub_encoder`.

    Call: pictures `[batch, image_size, image_size, 3]`, scaled as the encoder expects -> float32
    `[batch, embedding_dim]`, unit rows.

    Args:
        backbone: The vision encoder.
        converter: Resizes and scales pictures.
        head: Maps features to the embedding.
    """

    modality = "image"
    is_ordered = False

    def __init__(
        self,
        backbone: "keras_hub.models.Backbone",
        converter: "keras_hub.layers.ImageConverter",
        head: Head,
        **kwargs,
    ):
        super().__init__(backbone, head, **kwargs)
        self.converter = converter

    @property
    def image_size(self) -> int:
        """Side in pixels of the encoder's pictures."""
        return self.converter.image_size[0]

    @property
    def settings(self) -> list:
        return [settings_of(self.converter)]

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return self._converted(decode_image, sources)

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        def crop(each):
            return crop_and_resize(decode_image(each[0]), self.image_size, *each[1:])

        return self._converted(crop, (sources, seeds, mirror))

    def _converted(self, picture, sources) -> tf.Tensor:
        """A function from each source to uint8 `[height, width, 3]`, then the converter."""

        def convert(each):
            # KerasHub rounds to levels in eager mode, and not in a graph. Pillow rounds, too, with
            # which the models were trained.
            levels = tf.saturate_cast(tf.round(self.converter.resizing(picture(each))), tf.uint8)
            return tf.cast(self.converter(levels), tf.float32)

        shape = (self.image_size, self.image_size, 3)
        return tf.map_fn(convert, sources, fn_output_signature=tf.TensorSpec(shape, tf.float32))

    def features(self, inputs, training: bool = False):
        encoded = self.backbone({"images": inputs}, training=training)
        # CLIP's first vector is that of the whole picture.
        return ops.cast(encoded if self.is_pooled else encoded[:, 0], "float32")

    def sequence(self, inputs):
        """A vector for each patch."""
        patches = self._unpooled({"images": inputs})
        if not self.is_pooled:
            patches = patches[:, 1:]
        return patches, ops.ones(ops.shape(patches)[:2], "bool")

    def get_config(self) -> dict:
        converter = keras.saving.serialize_keras_object(self.converter)
        return {**super().get_config(), "converter": converter}


@keras.saving.register_keras_serializable("mmret_tf")
class HubTextTower(HubTower):
    """The text encoder of a CLIP or SigLIP, and a head. Made by `hub_encoder`.

    Call: token ids `[batch, length]` -> float32 `[batch, embedding_dim]`, unit rows.

    Args:
        backbone: The text encoder.
        text: Makes the token ids; it is saved with the tower.
        head: Maps features to the embedding.
    """

    modality = "text"
    needs_ops = "tensorflow_text"

    def __init__(
        self,
        backbone: "keras_hub.models.Backbone",
        text: HubTextPreprocessor,
        head: Head,
        **kwargs,
    ):
        super().__init__(backbone, head, **kwargs)
        self.text_preprocessor = text

    @property
    def settings(self) -> list:
        return self.text_preprocessor.settings

    @property
    def tables(self) -> list[keras.layers.Layer]:
        return [self.text_preprocessor]

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return self.text_preprocessor(sources)

    def remarks(self, sources: Sequence[str]) -> list[str]:
        return [empty_remark(source) for source in sources]  # every word has tokens

    def features(self, inputs, training: bool = False):
        if self.is_pooled:
            return ops.cast(self.backbone({"token_ids": inputs}, training=training), "float32")
        # No word of CLIP sees a later one, and its last token, the highest id, stands for the text.
        ids = without_padding(inputs)
        words = self.backbone({"token_ids": ids}, training=training)
        last = ops.argmax(ids, axis=1)[:, None, None]
        return ops.cast(ops.take_along_axis(words, last, axis=1)[:, 0], "float32")

    def sequence(self, inputs):
        """A vector for each token, up to the first that ends the text."""
        words = self._unpooled({"token_ids": inputs})
        end = self.text_preprocessor.preprocessor.tokenizer.end_token_id
        is_end = ops.cast(ops.equal(inputs, end), "int32")
        return words, ops.equal(ops.cumsum(is_end, axis=1) - is_end, 0)

    def get_config(self) -> dict:
        text = keras.saving.serialize_keras_object(self.text_preprocessor)
        return {**super().get_config(), "text": text}


def hub_towers(
    backbone: "keras_hub.models.Backbone", preprocessor: "keras_hub.models.Preprocessor"
) -> tuple[HubImageTower, HubTextTower, Temperature]:
    """The towers and the temperature of a CLIP or SigLIP; see `hub_encoder`.

    Args:
        backbone, preprocessor: As for `hub_encoder`.
    """
    models = load_keras_hub().models
    is_clip = isinstance(backbone, models.CLIPBackbone)
    is_clip &= isinstance(preprocessor, models.CLIPPreprocessor)
    is_siglip = isinstance(backbone, models.SigLIPBackbone)
    is_siglip &= isinstance(preprocessor, models.SigLIPPreprocessor)
    if not is_clip and not is_siglip:
        raise ValueError(
            "expected a CLIPBackbone and its CLIPPreprocessor, or a SigLIPBackbone and its "
            f"SigLIPPreprocessor; got {type(backbone).__name__} and {type(preprocessor).__name__}"
        )
    vision, words = backbone.vision_encoder, backbone.text_encoder
    converter, length = preprocessor.image_converter, preprocessor.sequence_length
    size = tuple(vision.image_shape[:2])
    if converter is None or converter.image_size != size:
        got = converter and converter.image_size
        raise ValueError(
            f"the preprocessor needs an image converter with image_size={size}; got {got}"
        )
    # SigLIP adds a vector to each of its positions.
    longest = words.max_sequence_length
    if length > longest or (is_siglip and length < longest):
        raise ValueError(
            f"the preprocessor must have sequence_length={longest}, as the text encoder; "
            f"got {length}"
        )
    if is_clip:
        logits = backbone.clip_head
        kernels = backbone.vision_projection.kernel, backbone.text_projection.kernel
    else:
        logits = backbone.siglip_head
        # SigLIP ends without a projection. One that changes nothing can still be trained.
        kernels = np.eye(vision.hidden_dim), np.eye(words.projection_dim)
    heads = [Head(*kernel.shape, name="head") for kernel in kernels]
    for head, kernel in zip(heads, kernels, strict=True):
        head.projections[0].kernel.assign(kernel)
    temperature, (low, high) = Temperature(name="temperature"), TEMPERATURE_RANGE
    start = np.clip(np.exp(-ops.convert_to_numpy(logits.logit_scale)), INSIDE * low, high)
    temperature.log_temperature.assign(np.log(start))
    text = HubTextPreprocessor(preprocessor, name="text_preprocessor")
    return (
        HubImageTower(vision, converter, heads[0], name="image_tower"),
        HubTextTower(words, text, heads[1], name="text_tower"),
        temperature,
    )

"""Dual encoders from KerasHub: CLIP and SigLIP, trained on pictures of the web. Section 2.2."""

import os
from typing import TYPE_CHECKING

import keras

from mmret_tf.models.dual_encoder import DualEncoder
from mmret_tf.models.hub.text import load_keras_hub
from mmret_tf.models.hub.towers import hub_towers

if TYPE_CHECKING:
    import keras_hub


def hub_encoder(
    backbone: "str | os.PathLike | keras_hub.models.Backbone",
    preprocessor: "keras_hub.models.Preprocessor | None" = None,
    trainable: bool = False,
) -> DualEncoder:
    """Make a dual encoder of a CLIP or SigLIP from KerasHub. Sections 2.2 and 5.

    `hub_encoder("clip_vit_base_patch32")` downloads the preset once, and searches without training.
    The embeddings are KerasHub's own, scaled to unit length. Each head starts as the projection of
    CLIP, or as the identity for SigLIP, and the temperature as the model's own.

    In an export, the text tower needs the ops of `tensorflow_text`. TensorFlow Serving has them; a
    Python program imports the package before it loads the export.

    Args:
        backbone: Name of a preset, or its folder; or a `CLIPBackbone` or `SigLIPBackbone`, whose
            encoders the model shares.
        preprocessor: The preprocessor of a backbone that is not a preset.
        trainable: Whether training changes the encoders, too, besides heads and temperature. To
            train one of them, or its last layers, set `model.text_tower.backbone.trainable`, say,
            or use `thaw`.

    Returns:
        A `DualEncoder`.

    Raises:
        ImportError: KerasHub or `tensorflow_text` is not installed.
        ValueError: The backbone is neither of CLIP nor of SigLIP, or the preprocessor does not fit.
        ConnectionError: The preset could not be downloaded.

    >>> from keras_hub import layers, models
    >>> size = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "intermediate_dim": 8}
    >>> vision = models.CLIPVisionEncoder(patch_size=8, image_shape=(16, 16, 3), **size)
    >>> words = models.CLIPTextEncoder(9, 8, max_sequence_length=8, **size)
    >>> small = models.CLIPBackbone(vision, words, projection_dim=4)  # random weights
    >>> vocabulary = ["", "r", "e", "d</w>", "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    >>> ids = {word: place for place, word in enumerate(vocabulary)}
    >>> tokenizer = models.CLIPTokenizer(ids, ["r e", "re d</w>"])
    >>> converter = layers.CLIPImageConverter(image_size=(16, 16), scale=1 / 255)
    >>> model = hub_encoder(small, models.CLIPPreprocessor(tokenizer, converter, sequence_length=8))
    >>> model.text_preprocessor(["Red"]).numpy().tolist()
    [[6, 5, 7, 0, 0, 0, 0, 0]]
    >>> model.encode_texts(["red"]).shape
    (1, 4)
    """
    if not isinstance(backbone, keras.Model):
        backbone, preprocessor = load_preset(backbone)
    image, text, temperature = hub_towers(backbone, preprocessor)
    image.backbone.trainable = text.backbone.trainable = trainable
    return DualEncoder(image, text, temperature)


def load_preset(
    preset: str | os.PathLike,
) -> "tuple[keras_hub.models.Backbone, keras_hub.models.Preprocessor]":
    """A backbone and its preprocessor; see `hub_encoder`.

    Args:
        preset: Name of a preset, or its folder.
    """
    models = load_keras_hub().models
    preset = os.fspath(preset)
    try:
        # The preprocessor first: it is small, and it tells the family.
        preprocessor = models.CausalLMPreprocessor.from_preset(preset)
        if not isinstance(preprocessor, models.CLIPPreprocessor | models.SigLIPPreprocessor):
            raise ValueError(
                f"expected a preset of CLIP or SigLIP; {preset} has a {type(preprocessor).__name__}"
            )
        return models.Backbone.from_preset(preset), preprocessor
    except OSError as error:
        raise ConnectionError(
            f"{preset} could not be loaded. Without a network, give a folder that save_to_preset "
            f"of its backbone and its preprocessor wrote. The reason: {error}"
        ) from None

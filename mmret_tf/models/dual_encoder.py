"""The dual encoder (双编码器): an image tower and a text tower, trained to share one space.

The model of the document's section 5 joins the two feature vectors. This one compares them, so that
images can be embedded and indexed before any query is known.
"""

import os
from typing import Any

import keras

from mmret_tf._lazy import import_modules
from mmret_tf.data.decoders.text import TextPreprocessor
from mmret_tf.models.backbones import read_keras_file
from mmret_tf.models.encoder import MultiEncoder
from mmret_tf.models.fine_tuning import TwoRateAdam  # noqa: F401  a saved model names its optimizer
from mmret_tf.models.hub import towers  # noqa: F401  a saved model names its towers
from mmret_tf.models.layers import Temperature
from mmret_tf.models.towers.image import ImageTower
from mmret_tf.models.towers.text import TextTower

import_modules("mmret_tf.models.towers")  # a saved model names its towers


@keras.saving.register_keras_serializable("mmret_tf")
class DualEncoder(MultiEncoder):
    """An image tower and a text tower with one embedding space. Section 5; arXiv 2103.00020.

    It is `MultiEncoder` for two modalities, which describes the call, the loss and `fit`.

    Args:
        image_tower: Made by `image_tower`.
        text_tower: Made by `text_tower`.
        temperature, name, dtype: As for `MultiEncoder`.

    Raises:
        ValueError: The towers differ in `embedding_dim` or `members`.

    >>> import numpy as np
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor(max_tokens=100, sequence_length=8)
    >>> text.adapt(["a red circle", "红色的圆"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> model.encode_texts(["a red circle", "红色的圆"]).shape
    (2, 8)
    >>> red = np.full((20, 30, 3), [255, 0, 0], np.uint8)  # or a path
    >>> model.encode_images([red]).shape
    (1, 8)
    >>> model.encode_items({"image": [[red, red], []], "text": [[], ["红色的圆"]]}).shape
    (2, 8)

    For training, see `Pairs.as_dataset` and `RetrievalMetrics`.
    """

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        temperature: Temperature | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__([image_tower, text_tower], temperature, name, dtype)

    @property
    def image_tower(self) -> ImageTower:
        """The tower of images."""
        return self.towers["image"]

    @property
    def text_tower(self) -> TextTower:
        """The tower of texts."""
        return self.towers["text"]

    @property
    def text_preprocessor(self) -> TextPreprocessor:
        """The preprocessor of the text tower."""
        return self.text_tower.text_preprocessor

    @property
    def image_size(self) -> int:
        """Side in pixels of the image tower's pictures."""
        return self.image_tower.image_size

    def get_config(self) -> dict:
        config = super().get_config()
        config["image_tower"], config["text_tower"] = config.pop("towers")
        return config


def load_model(path: str | os.PathLike) -> MultiEncoder:
    """Load an encoder from a `.keras` file: towers, weights, vocabulary, loss and optimizer.

    Keras' safe mode stays on: a file cannot contain code. Section 5.

    Args:
        path: A file that `model.save` wrote, such as a run's `model.keras`.

    Returns:
        A `DualEncoder` or `MultiEncoder` with the same embeddings.

    Raises:
        ValueError: The file is missing, damaged, not a `.keras` file, of mmret_tf 0.1, or holds
            another model.

    >>> import tempfile
    >>> import numpy as np
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> path = f"{tempfile.mkdtemp()}/model.keras"
    >>> model.save(path)
    >>> texts = ["a red circle"]
    >>> np.allclose(model.encode_texts(texts), load_model(path).encode_texts(texts))
    True
    """
    return load_as(MultiEncoder, path)


def load_as(kind: type[keras.Model], path: str | os.PathLike, compile: bool = True) -> keras.Model:
    """Load a `.keras` file; ValueError if it does not hold a model of this class.

    Args:
        kind: The class.
        path: The file.
        compile: Whether to restore the loss and the optimizer too.
    """
    model = read_keras_file(path, compile)
    if not isinstance(model, kind):
        raise ValueError(f"{os.fspath(path)} holds a {type(model).__name__}, not a {kind.__name__}")
    return model

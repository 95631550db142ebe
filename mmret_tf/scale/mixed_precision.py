"""The image tower in bfloat16 (混合精度), and the clock by which forms of a tower are compared.

Section 8.3 of the document. `compression` makes smaller forms.
"""

import json
import time

import numpy as np
import tensorflow as tf

from mmret_tf._machine import cpu_features
from mmret_tf.models.encoder import MultiEncoder, VariantEncoder
from mmret_tf.models.towers.image import ImageTower
from mmret_tf.models.towers.tower import TowerForm


def bfloat16_encoder(model: MultiEncoder) -> VariantEncoder:
    """The same encoder; the backbone of its image tower computes in bfloat16 (混合精度).

    This is Keras' mixed precision: weights stay in float32. It is faster where the processor has
    instructions for bfloat16.

    Args:
        model: The encoder; it is not changed.

    Returns:
        An encoder of the form "bfloat16".

    Raises:
        ValueError: The image tower was not made by `image_tower`.

    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> faster = bfloat16_encoder(model)
    >>> faster.form, faster.encode_images([np.zeros((16, 16, 3))]).dtype
    ('bfloat16', dtype('float32'))
    """
    tower = known_image_tower(model)
    config = tower.get_config()
    config["backbone"] = json.loads(json.dumps(config["backbone"]), object_hook=_mixed)
    faster = ImageTower.from_config(config)
    faster.set_weights(tower.get_weights())
    return VariantEncoder(model, {"image": faster}, "bfloat16")


def has_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16, as recent server CPUs and GPUs do."""
    on_cpu = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    return bool(on_cpu or tf.config.list_physical_devices("GPU"))


def images_per_second(tower: TowerForm, inputs: np.ndarray) -> tuple[np.ndarray, float]:
    """Time a tower on one batch: the fastest of three runs, after one to warm up.

    Args:
        tower: Anything with `predict_on_batch`.
        inputs: Ready inputs of the tower, `[n, ...]`.

    Returns:
        The embeddings `[n, dim]`, and the number of inputs a second.

    >>> from types import SimpleNamespace
    >>> embeddings, speed = images_per_second(SimpleNamespace(predict_on_batch=np.sqrt), np.ones(4))
    >>> embeddings.tolist(), speed > 0
    ([1.0, 1.0, 1.0, 1.0], True)
    """
    embeddings = tower.predict_on_batch(inputs)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        tower.predict_on_batch(inputs)
        seconds.append(time.perf_counter() - started)
    return embeddings, len(inputs) / min(seconds)


def known_image_tower(model: MultiEncoder) -> ImageTower:
    """The image tower of an encoder; ValueError if its parts are not known."""
    tower = model.towers.get("image")
    if not isinstance(tower, ImageTower):
        raise ValueError(f"expected a tower that image_tower made; got a {type(tower).__name__}")
    return tower


def _mixed(part: dict) -> dict:
    """A part of a serialized Keras object, with the mixed policy if it is one of float32."""
    is_policy = part.get("class_name") == "DTypePolicy"
    return part | {"config": {"name": "mixed_bfloat16"}} if is_policy else part

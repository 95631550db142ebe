"""bfloat16 and the clock: computed in the right precision, timed by the fastest run."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.scale import bfloat16_encoder, choose_encoder, images_per_second, mixed_precision
from mmret_tf.similarity.vectors import row_cosines


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(faster, wide_model, photos, exact):
    names = [weight.path for weight in wide_model.weights]
    tower = faster.towers["image"]
    convolutions = [
        layer for layer in tower.backbone.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    assert [layer.compute_dtype for layer in convolutions] == ["bfloat16"] * 2
    assert {weight.dtype for weight in tower.weights} == {"float32"}
    found = faster.encode_images(photos.image_paths)
    assert found.dtype == np.float32
    assert row_cosines(found, exact).min() > 0.999 and (found != exact).any()
    assert (faster.form, faster.fingerprint) == ("bfloat16", wide_model.fingerprint)
    assert [weight.path for weight in wide_model.weights] == names


def test_bfloat16_is_found_in_the_processor_or_the_gpu(monkeypatch):
    monkeypatch.setattr(mixed_precision, "cpu_features", lambda: ["avx2"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert not mixed_precision.has_bfloat16()
    monkeypatch.setattr(mixed_precision, "cpu_features", lambda: ["avx2", "avx512_bf16"])
    assert mixed_precision.has_bfloat16()
    monkeypatch.setattr(mixed_precision, "cpu_features", lambda: [])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU"])
    assert mixed_precision.has_bfloat16()


def test_the_speed_is_that_of_the_fastest_of_three_runs(monkeypatch):
    clock = iter([0, 1, 10, 10.5, 20, 24])
    monkeypatch.setattr(mixed_precision.time, "perf_counter", lambda: next(clock))
    tower = SimpleNamespace(predict_on_batch=lambda inputs: 2 * inputs)
    embeddings, speed = images_per_second(tower, np.ones(4))
    assert embeddings.tolist() == [2, 2, 2, 2] and speed == 4 / 0.5


def test_only_a_tower_of_image_tower_has_known_parts():
    other = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="tower that image_tower made; got a Sequential"):
        bfloat16_encoder(SimpleNamespace(towers={"image": other}))
    with pytest.raises(ValueError, match="got a NoneType"):
        choose_encoder(SimpleNamespace(towers={}), ["a.png"])

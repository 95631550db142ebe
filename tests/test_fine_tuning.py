"""Fine-tuning: what is thawed, at which rate it learns, and that it works through `fit` and
`train` with gradient accumulation and mixed precision.
"""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import CAPTIONS
from test_training import make_config

from mmret_tf.backbones import thaw
from mmret_tf.dual_encoder import DualEncoder, load_model
from mmret_tf.losses import ContrastiveCosine
from mmret_tf.optimizers import TwoRateAdam
from mmret_tf.towers import image_tower, text_tower
from mmret_tf.training import build_model, train


def make_deep_backbone():
    """Two blocks of convolution and batch normalization."""
    images = keras.Input((None, None, 3))
    hidden = keras.layers.Rescaling(1 / 255)(images)
    for name in ("first", "last"):
        hidden = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name=f"{name}_conv")(hidden)
        hidden = keras.layers.BatchNormalization(name=f"{name}_bn")(hidden)
        hidden = keras.layers.ReLU(name=f"{name}_relu")(hidden)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(hidden), name="deep")


def make_model(text, **options):
    keras.utils.set_random_seed(0)
    images = image_tower(make_deep_backbone(), image_size=16, embedding_dim=4)
    texts = text_tower(50, word_dim=8, units=8, embedding_dim=4)
    return DualEncoder(images, texts, text, **options)


def test_only_kernels_from_that_layer_on_are_trained(text_preprocessor, batch, tmp_path):
    model = make_model(text_preprocessor)
    backbone = model.image_tower.backbone
    thaw(backbone, "last_conv")
    assert [each.path for each in backbone.trainable_variables] == ["last_conv/kernel"]
    before = {each.path: each.numpy() for each in backbone.variables}
    model.compile(keras.optimizers.Adam(0.01), loss=ContrastiveCosine())
    model.fit(batch, epochs=2, verbose=0)
    changed = {each.path for each in backbone.variables if np.any(each != before[each.path])}
    assert changed == {"last_conv/kernel"}

    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    again = loaded.image_tower.backbone.trainable_variables
    assert [each.path for each in again] == ["last_conv/kernel"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv5", r"deep has no layer 'conv5' to thaw from; its last layers are .*last_conv"),
        ("last_relu", "deep has no weights to train from 'last_relu' on"),
    ],
)
def test_what_cannot_be_thawed(layer, message):
    with pytest.raises(ValueError, match=message):
        thaw(make_deep_backbone(), layer)


def test_slow_variables_take_steps_of_their_share():
    """Beside two plain Adams, one for each rate, over several steps of different gradients."""
    start, gradients = np.array([1.0, -2.0], np.float32), [[0.3, -0.1], [0.2, 0.5], [-1.0, 0.1]]
    fast, slow, fast_alone, slow_alone = (keras.Variable(start) for _ in range(4))
    optimizer = TwoRateAdam(0.1, slow=[1], slow_share=0.25)
    alone = [keras.optimizers.Adam(0.1), keras.optimizers.Adam(0.025)]
    for gradient in gradients:
        gradient = keras.ops.convert_to_tensor(gradient, "float32")
        optimizer.apply([gradient, gradient], [fast, slow])
        alone[0].apply([gradient], [fast_alone])
        alone[1].apply([gradient], [slow_alone])
    assert np.allclose(fast, fast_alone, atol=1e-7) and np.allclose(slow, slow_alone, atol=1e-7)
    restored = TwoRateAdam.from_config(optimizer.get_config())
    assert (restored.slow, restored.slow_share) == ([1], 0.25)
    with pytest.raises(ValueError, match="slow_share must be above 0; got 0"):
        TwoRateAdam(slow=[0], slow_share=0)


@pytest.fixture
def config(tmp_path):
    make_deep_backbone().save(tmp_path / "deep.keras")
    return dataclasses.replace(make_config(tmp_path), backbone=str(tmp_path / "deep.keras"))


def test_a_finished_run_is_fine_tuned(config, tmp_path):
    first = train(config, tmp_path / "first")
    tuned = dataclasses.replace(
        config,
        initial_model=str(tmp_path / "first" / "model.keras"),
        thaw_from="last_conv",
        thawed_rate=0.5,
        weight_decay=0.1,
        epochs=1,
    )
    report = train(tuned, tmp_path / "tuned")
    before, after = (
        {each.path: each.numpy() for each in load_model(tmp_path / run / "model.keras").weights}
        for run in ("first", "tuned")
    )
    assert np.any(before["last_conv/kernel"] != after["last_conv/kernel"])
    assert np.all(before["first_conv/kernel"] == after["first_conv/kernel"])
    script = f"from mmret_tf import load_model; load_model({str(tmp_path / 'tuned/model.keras')!r})"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not (tmp_path / "tuned" / "features").exists()  # they change with every step
    assert report["history"][0]["loss"] < first["history"][0]["loss"]  # it did not start anew


def test_thawed_layers_are_slow_and_do_not_decay(config):
    changed = dataclasses.replace(config, thaw_from="last_conv", weight_decay=0.1)
    model = build_model(changed, CAPTIONS, steps=10)
    variables = model.trainable_variables
    assert [variables[place].path for place in model.optimizer.slow] == ["last_conv/kernel"]
    thawed = model.image_tower.backbone.get_layer("last_conv").kernel
    others = model.image_tower.projection.kernel
    before = thawed.numpy(), others.numpy()
    model.optimizer.build(variables)
    for _ in range(3):  # the first has a rate of 0: it warms up
        model.optimizer.apply([keras.ops.zeros_like(each) for each in variables], variables)
    assert np.array_equal(thawed, before[0]) and np.all(np.abs(others) < np.abs(before[1]))


def test_gradients_of_several_batches_make_one_step(config):
    """The weights change with every second batch."""
    changed = dataclasses.replace(config, accumulation_steps=2)
    model = build_model(changed, CAPTIONS, steps=10)
    variables = model.trainable_variables
    before = [each.numpy() for each in variables]
    model.optimizer.build(variables)
    ones = [keras.ops.ones_like(each) for each in variables]
    model.optimizer.apply(ones, variables)
    assert all(np.array_equal(each, old) for each, old in zip(variables, before, strict=True))
    model.optimizer.apply(ones, variables)
    assert not any(np.array_equal(each, old) for each, old in zip(variables, before, strict=True))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_and_round_trips(precision, config, batch, tmp_path):
    changed = dataclasses.replace(
        config, precision=precision, weight_averaging=0.5, learning_rate=0.01
    )
    model = build_model(changed, CAPTIONS, steps=40)
    assert keras.config.dtype_policy().name == "float32"  # of everything else
    assert model.image_tower.projection.compute_dtype == precision.removeprefix("mixed_")
    inputs = batch | {"text": model.text_preprocessor(CAPTIONS).numpy()}
    losses = model.fit(inputs, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]

    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == precision
    expected, again = model.predict(inputs, verbose=0), loaded.predict(inputs, verbose=0)
    for name in ("image", "text"):
        assert again[name].dtype == np.float32 and np.array_equal(again[name], expected[name])


def test_a_run_in_mixed_precision_is_complete(config, tmp_path):
    changed = dataclasses.replace(config, precision="mixed_float16", weight_averaging=0.5)
    report = train(changed, tmp_path / "run")
    assert report["epochs_completed"] == 2 and np.isfinite(report["history"][1]["loss"])

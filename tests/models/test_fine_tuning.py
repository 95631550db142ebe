"""Fine-tuning: what `thaw` thaws, and the steps of `TwoRateAdam`."""

import keras
import numpy as np
import pytest
from conftest import make_model

from mmret_tf.models import TwoRateAdam, load_model, thaw


def make_deep_backbone():
    """Two blocks of convolution and batch normalization."""
    images = keras.Input((None, None, 3))
    hidden = keras.layers.Rescaling(1 / 255)(images)
    for name in ("first", "last"):
        hidden = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name=f"{name}_conv")(hidden)
        hidden = keras.layers.BatchNormalization(name=f"{name}_bn")(hidden)
        hidden = keras.layers.ReLU(name=f"{name}_relu")(hidden)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(hidden), name="deep")


def test_only_kernels_from_that_layer_on_are_trained(batch, tmp_path):
    model = make_model(backbone=make_deep_backbone(), trainable=False)
    backbone = model.image_tower.backbone
    thaw(backbone, "last_conv")
    assert [each.path for each in backbone.trainable_variables] == ["last_conv/kernel"]
    before = {each.path: each.numpy() for each in backbone.variables}
    model.compile(TwoRateAdam(0.01, slow=[0]), model.loss, run_eagerly=True)
    model.fit(batch, epochs=2, verbose=0)
    changed = {each.path for each in backbone.variables if np.any(each != before[each.path])}
    assert changed == {"last_conv/kernel"}

    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    again = loaded.image_tower.backbone
    assert [each.path for each in again.trainable_variables] == ["last_conv/kernel"]
    loaded(batch, training=True)  # batch normalization keeps its statistics
    assert all(
        np.array_equal(a, b) for a, b in zip(again.variables, backbone.variables, strict=True)
    )
    assert isinstance(loaded.optimizer, TwoRateAdam) and int(loaded.optimizer.iterations) == 2


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
    """Compared with two plain Adams, one for each rate, over steps with different gradients."""
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

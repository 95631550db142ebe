"""Backbones: named, registered, from files, with pooled layers; files that are refused."""

import functools
import json
import zipfile

import keras
import numpy as np
import pytest
from conftest import make_backbone
from keras.layers import BatchNormalization, Conv2D, Flatten, GlobalAveragePooling2D

from mmret_tf.models import Head, load_backbone, register_backbone, small_cnn
from mmret_tf.models.backbones import BACKBONES, read_keras_file
from mmret_tf.models.towers.image import ImageTower

UNPOOLED = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.ReLU()])
IMAGES = keras.Input((8, 8, 3))
TWO_OUTPUTS = keras.Model(IMAGES, [Flatten()(IMAGES[:, :1, :1]), GlobalAveragePooling2D()(IMAGES)])
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@functools.cache
def from_scratch(name):
    """Built once for all tests: a large network takes seconds."""
    return load_backbone(name, weights=None, image_size=32)


def normalizations(name):
    network = from_scratch(name)[0]
    return {each.name: each for each in network.layers if isinstance(each, BatchNormalization)}


def test_resnet50_from_scratch_starts_shallow_and_normalizes_quickly():
    network, scaling, is_new = from_scratch("ResNet50")
    assert network.output_shape == (None, 2048) and scaling == "resnet" and is_new
    found = normalizations("ResNet50")
    assert {layer.momentum for layer in found.values()} == {0.9}
    # 3, 4, 6 and 3 blocks; the first of each stage has a convolution in its shortcut.
    assert {name for name, layer in found.items() if not np.any(layer.gamma)} == {
        f"conv{stage}_block{block}_3_bn"
        for stage, blocks in [(2, 3), (3, 4), (4, 6), (5, 3)]
        for block in range(2, blocks + 1)
    }


def test_only_blocks_with_an_identity_shortcut_start_as_the_identity():
    assert all(np.all(layer.gamma == 1) for layer in normalizations("MobileNetV2").values())


def caffe(levels):
    """Blue, green, red, less their means over ImageNet."""
    return levels[..., ::-1] - np.array([103.939, 116.779, 123.68])


@pytest.mark.parametrize(
    ("name", "scaled"),
    [
        ("ResNet50", caffe),
        ("VGG16", caffe),
        ("MobileNetV2", lambda levels: levels / 127.5 - 1),
        ("MobileNetV3Small", lambda levels: levels),
        ("EfficientNetV2B0", lambda levels: levels),
    ],
)
def test_each_backbone_gets_its_own_input_scaling(name, scaled):
    images = keras.Input((2, 2, 3))
    shows_its_input = keras.Model(images, Flatten()(images))
    tower = ImageTower(shows_its_input, Head(12, 4), image_size=2, scaling=from_scratch(name)[1])
    levels = PICTURES[:, :2, :2].astype(np.float32)
    assert np.allclose(tower.features(levels), scaled(levels).reshape(3, 12), atol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("VGG19", 512), ("MobileNetV3Small", 576)])
def test_other_networks_of_keras_are_backbones(name, width):
    assert from_scratch(name)[0].output_shape == (None, width)


def test_a_model_or_a_keras_file_is_a_backbone(tmp_path):
    backbone = make_backbone()
    backbone.save(tmp_path / "backbone.keras")
    for source in (backbone, tmp_path / "backbone.keras", str(tmp_path / "backbone.keras")):
        network, scaling, is_new = load_backbone(source)
        assert np.array_equal(network(PICTURES), backbone(PICTURES))
        assert scaling is None and not is_new


def test_the_small_cnn_is_four_convolutions_in_strides_of_two(tmp_path):
    network, _, is_new = load_backbone("SmallCNN", weights=None, image_size=32)
    weights = sum(layer.count_params() for layer in network.layers if "conv" in layer.name)
    assert weights == 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256)
    assert network.output_shape == (None, 2 * 2 * 256)  # 32 pixels, halved four times
    assert is_new

    network.save_weights(tmp_path / "small.weights.h5")
    again, _, is_new = load_backbone("SmallCNN", tmp_path / "small.weights.h5", image_size=32)
    assert np.array_equal(again(PICTURES), network(PICTURES))
    assert not is_new


def test_a_backbone_can_be_registered_under_a_name(monkeypatch):
    monkeypatch.setattr("mmret_tf.models.backbones.BACKBONES", dict(BACKBONES))
    calls = []

    def build(weights, image_size):
        calls.append((weights, image_size))
        return make_backbone(width=5, side=image_size)

    register_backbone("Tiny", build)
    network, scaling, is_new = load_backbone("Tiny", weights="my.h5", image_size=16)
    assert network.output_shape == (None, 5) and scaling is None and not is_new
    assert load_backbone("Tiny", weights=None)[2]
    assert calls == [("my.h5", 16), (None, None)]
    with pytest.raises(ValueError, match="SmallCNN, Tiny, a keras.Model"):
        load_backbone("Tinny")


def test_features_may_be_pooled_from_several_layers():
    images = keras.Input((None, None, 3))
    early = Conv2D(5, 3, strides=2, activation="relu", name="early")(images)
    late = Conv2D(7, 3, strides=2, activation="relu", name="late")(early)
    backbone = keras.Model(images, GlobalAveragePooling2D()(late), name="small")
    network, _, _ = load_backbone(backbone, feature_layers=["late", "early"])
    maps = [np.asarray(each) for each in keras.Model(images, [late, early])(PICTURES)]
    pooled = [pool(each, axis=(1, 2)) for each in maps for pool in (np.mean, np.max)]
    assert np.allclose(network(PICTURES), np.concatenate(pooled, axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="small has no feature map 'middle'; its last are .*late"):
        load_backbone(backbone, feature_layers=["middle"])


def backbone_of(*convolution, channels):
    images = keras.Input((8, 8, 3))
    maps = Conv2D(4, *convolution, name="short")(Conv2D(channels, 3)(images))
    return keras.Model(images, GlobalAveragePooling2D()(maps), name="own")


@pytest.mark.parametrize("strides", [2, (1, 3)])
def test_a_layer_whose_gradient_tensorflow_gets_wrong_is_named(strides):
    nested = keras.Sequential([keras.Input((8, 8, 3)), backbone_of(1, strides, channels=15)])
    with pytest.warns(UserWarning, match="short of sequential.* 15 channels.* crash"):
        load_backbone(nested)


@pytest.mark.parametrize(("kernel", "strides", "channels"), [(2, 2, 3), (1, 1, 3), (1, 2, 16)])
def test_nothing_is_said_of_other_convolutions(kernel, strides, channels, recwarn):
    load_backbone(backbone_of(kernel, strides, channels=channels))
    assert not recwarn.list


def test_imagenet_weights_that_cannot_be_fetched(monkeypatch):
    def no_network(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.com: None -- unreachable")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_network)
    with pytest.raises(ConnectionError, match="weights of VGG16") as caught:
        load_backbone("VGG16", image_size=32)
    for way_on in ("--weights none", "a file", "KERAS_HOME"):
        assert way_on in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "ResNet5"}, "no backbone 'ResNet5': expected a name in keras.applications"),
        ({"backbone": "resnet"}, "no backbone 'resnet'"),
        ({"backbone": "gone.keras"}, "no model at gone.keras: expected a .keras file"),
        ({"backbone": "ResNet50", "weights": "gone.h5"}, "no weights at gone.h5"),
        ({"backbone": "SmallCNN", "image_size": 16}, r"starts from scratch .* got 'imagenet'"),
        ({"backbone": "SmallCNN", "weights": None}, "SmallCNN takes pictures of one size"),
        ({"backbone": UNPOOLED}, r"has the shape \(None, 8, 8, 3\)"),
        ({"backbone": keras.Sequential([Flatten()])}, "a keras.Input and .* has the shape None"),
        ({"backbone": TWO_OUTPUTS}, r"has the shape \[\(None, 3\), \(None, 3\)\]"),
    ],
)
def test_backbones_that_do_not_exist_or_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(**arguments)


def test_files_that_are_not_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no model at .*gone.keras"):
        read_keras_file(tmp_path / "gone.keras")
    (tmp_path / "rubbish.keras").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="rubbish.keras is not a .keras file, or is damaged"):
        read_keras_file(tmp_path / "rubbish.keras")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("notes.txt", "an archive of something else")
    with pytest.raises(ValueError, match="other.keras is not a .keras file, .*'config.json'"):
        read_keras_file(tmp_path / "other.keras")
    small_cnn(image_size=16).save(tmp_path / "damaged.keras")
    content = bytearray((tmp_path / "damaged.keras").read_bytes())
    content[len(content) // 2] ^= 1  # one bit of the weights
    (tmp_path / "damaged.keras").write_bytes(content)
    with pytest.raises(
        ValueError, match="damaged.keras is not a .keras file, or is damaged: Bad CRC"
    ):
        read_keras_file(tmp_path / "damaged.keras")


def test_a_model_of_mmret_tf_0_1_is_refused_in_one_line(tmp_path):
    """Its configuration as 0.1 wrote it: flat modules, and the preprocessor beside the towers."""
    parts = {
        "image_tower": ("mmret_tf.towers", "ImageTower"),
        "text_tower": ("keras.src.models.functional", "Functional"),
        "text_preprocessor": ("mmret_tf.preprocessing", "TextPreprocessor"),
    }
    config = {
        "module": "mmret_tf.dual_encoder",
        "class_name": "DualEncoder",
        "registered_name": "mmret_tf>DualEncoder",
        "config": {
            name: {"module": module, "class_name": kind, "config": {}}
            for name, (module, kind) in parts.items()
        },
    }
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.12.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError) as caught:
        read_keras_file(tmp_path / "old.keras")
    expected = f"{tmp_path}/old.keras was made by mmret_tf 0.1: train the model again"
    assert str(caught.value) == expected

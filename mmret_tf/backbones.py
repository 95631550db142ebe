"""Backbones (骨干网络): CNNs that know ImageNet, or start from scratch, as image towers take them.

Section 2.2 of the document: ResNet, VGG, or any other that Keras has.
"""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Sequence

import keras
from keras import layers, ops


def load_backbone(
    backbone: str | os.PathLike | keras.Model,
    weights: str | os.PathLike | None = "imagenet",
    image_size: int | None = None,
    feature_layers: Sequence[str] = (),
) -> tuple[keras.Model, str | None, bool]:
    """A network from images to features, wherever it comes from. Section 2.2.

    Args:
        backbone, weights, feature_layers: see `towers.image_tower`.
        image_size: side of the pictures, in pixels, for a named backbone; `None` for any.

    Returns:
        The network; the `keras.applications` module whose `preprocess_input` belongs to it, or
        `None`; and whether it starts from scratch, and so has to be trained.

    Raises:
        ValueError, ConnectionError: as `towers.image_tower` does.

    >>> network, scaling, is_new = load_backbone("MobileNetV3Small", weights=None, image_size=32)
    >>> network.output_shape, scaling, is_new
    ((None, 576), 'mobilenet_v3', True)
    """
    scaling, is_new = None, False
    if backbone == "SmallCNN":
        network, is_new = small_cnn(weights, image_size), weights is None
    elif isinstance(backbone, str) and not backbone.endswith(".keras"):
        network, scaling = _application(backbone, weights, image_size)
        is_new = weights is None
        if is_new:
            _ease_the_start(network)
    elif isinstance(backbone, keras.Model):
        network = backbone
    else:
        network = read_keras_file(backbone, compile=False)
    if len(network.output_shape) != 2:
        raise ValueError(
            "a backbone must map images to features [batch, features], as average pooling does; "
            f"this one gives shape {network.output_shape}"
        )
    if feature_layers:
        network = _with_pooled_layers(network, feature_layers)
    return network, scaling, is_new


def small_cnn(weights: str | os.PathLike | None = None, image_size: int | None = 48) -> keras.Model:
    """Four convolutions, which learn simple pictures in a minute on two cores. Section 2.2.

    `image_tower("SmallCNN", weights=None, image_size=48)` has it as its backbone. ResNet50 goes
    over a picture in strides of 32 pixels, and from a random start it learns far more slowly.

    Args:
        weights: `None`, or a `.weights.h5` file: there are none to download.
        image_size: side of the pictures, in pixels.

    Returns:
        A model, levels 0 to 255 `[batch, image_size, image_size, 3]` -> `[batch, features]`: the
        last feature map, 16 times smaller than the picture, of 256 channels, laid flat.

    Raises:
        ValueError: no size, or weights that are no file.

    >>> small_cnn(image_size=48).output_shape  # 3 x 3 x 256
    (None, 2304)
    """
    if image_size is None:
        raise ValueError("SmallCNN takes pictures of one size: give no scales, but an image_size")
    if weights is not None and not os.path.isfile(weights):
        raise ValueError(
            f"SmallCNN starts from scratch (weights=None, --weights none) or from a .weights.h5 "
            f"file; got {os.fspath(weights)!r}"
        )
    images = keras.Input((image_size, image_size, 3))
    hidden = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for width in (32, 64, 128, 256):
        hidden = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
    # Where a thing is counts: "left of" is lost in an average.
    network = keras.Model(images, layers.Flatten()(hidden), name="small_cnn")
    if weights is not None:
        network.load_weights(weights)
    return network


def thaw(backbone: keras.Model, first_layer: str) -> None:
    """Make a backbone trainable from one layer on; all before it stay frozen (微调). Section 2.2.

    Batch normalization keeps what it learned in pretraining: statistics of small batches would
    spoil it. Compile the model anew afterwards.

    Args:
        backbone: that of a model, `model.image_tower.backbone`.
        first_layer: name of one of its layers: "conv5_block1_1_conv" begins the last stage of
            ResNet50.

    Raises:
        ValueError: the backbone has no layer of that name, or nothing to train from there on.

    >>> images = keras.Input((None, None, 3))
    >>> maps = layers.Conv2D(4, 3, name="last")(layers.Conv2D(4, 3)(images))
    >>> backbone = keras.Model(images, layers.GlobalAveragePooling2D()(maps))
    >>> thaw(backbone, "last")
    >>> len(backbone.trainable_variables)  # a kernel and a bias
    2
    """
    names = [layer.name for layer in backbone.layers]
    if first_layer not in names:
        raise ValueError(
            f"{backbone.name} has no layer {first_layer!r} to thaw from; its last layers are "
            f"{', '.join(names[-12:])}"
        )
    backbone.trainable = True  # of all layers; then of those that stay frozen no longer
    after = backbone.layers[names.index(first_layer) :]
    for layer in backbone.layers:
        layer.trainable = layer in after and not isinstance(layer, layers.BatchNormalization)
    if not backbone.trainable_variables:
        raise ValueError(f"{backbone.name} has no weights to train from {first_layer!r} on")


def read_keras_file(path: str | os.PathLike, compile: bool = True) -> keras.Model:
    """Load a `.keras` file; ValueError when there is none, or it is damaged."""
    if not os.path.isfile(path):
        raise ValueError(f"no model at {os.fspath(path)}: expected a .keras file")
    try:
        zipfile.ZipFile(path).close()  # Keras would call what is no archive "not found"
        return keras.saving.load_model(path, compile=compile)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{os.fspath(path)} is no .keras file, or damaged: {error}") from None


def _application(
    name: str, weights: str | os.PathLike | None, image_size: int | None
) -> tuple[keras.Model, str]:
    """A network of `keras.applications`, and the module that holds its input scaling."""
    build = getattr(keras.applications, name, None)
    if not inspect.isfunction(build):
        raise ValueError(
            f"no backbone {name!r}: expected a name in keras.applications (ResNet50, VGG16, "
            "MobileNetV3Small, EfficientNetV2B0, ConvNeXtTiny, ...), SmallCNN, a keras.Model or a "
            ".keras file"
        )
    if weights not in (None, "imagenet") and not os.path.isfile(weights):
        raise ValueError(f"no weights at {weights}: expected imagenet, none, or a .weights.h5 file")
    try:
        network = build(
            include_top=False,
            weights=weights,
            pooling="avg",
            input_shape=(image_size, image_size, 3),
        )
    except Exception as error:
        # Keras raises a bare Exception with these words when it cannot fetch a file.
        if weights != "imagenet" or "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be downloaded. Three ways on: start from "
            "scratch (--weights none, weights=None); give a file that you have (--weights FILE, "
            "or a .keras file as the backbone); or put the file that Keras would fetch into "
            "models/ under KERAS_HOME (by default ~/.keras)"
        ) from None
    return network, build.__module__.rsplit(".", 1)[-1]


def _with_pooled_layers(network: keras.Model, names: Sequence[str]) -> keras.Model:
    """The same network; its features are the averages and the maxima of these feature maps."""
    maps = {layer.name: layer.output for layer in network.layers if len(layer.output.shape) == 4}
    features = []
    for name in names:
        if name not in maps:
            raise ValueError(
                f"feature_layers: {network.name} has no feature map {name!r}; its last are "
                f"{', '.join(list(maps)[-8:])}"
            )
        # Names of their own: those that Keras gives differ from model to model.
        average = layers.GlobalAveragePooling2D(dtype="float32", name=f"{name}_average")
        maximum = layers.GlobalMaxPooling2D(dtype="float32", name=f"{name}_maximum")
        features += [average(maps[name]), maximum(maps[name])]
    joined = layers.Concatenate(dtype="float32", name="features")(features)
    return keras.Model(network.input, joined, name=network.name)


def _ease_the_start(network: keras.Model) -> None:
    """Let a network learn from scratch within a short run.

    At Keras' momentum of 0.99 the moving statistics of batch normalization lag hundreds of steps
    behind, and a network that learned well reads as chance in evaluation. And a block of ResNet
    whose shortcut is the identity starts as the identity (its last scale is 0, arXiv 1706.02677,
    section 5.1): the network starts shallow, and grows as deep as the pictures need.
    """
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        if not isinstance(layer, layers.BatchNormalization):
            continue
        layer.momentum = 0.9
        # Of the names in a block, "conv2_block1" say, the convolution "0" is in the shortcut.
        block = layer.name.removesuffix("_3_bn")
        if f"{block}_add" in names and f"{block}_0_conv" not in names:
            layer.gamma.assign(ops.zeros_like(layer.gamma))

"""Backbones (骨干网络): CNNs pretrained on ImageNet or started from scratch. Section 2.2.

An image tower takes any of `keras.applications`, a model, a `.keras` file, or a backbone that was
registered under a name, as `SmallCNN` is below.
"""

import inspect
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import keras
from keras import layers, ops

from mmret_tf.models.layers import output_width

# Takes weights (None, or a file) and the side of the pictures in pixels (None for any).
BackboneBuilder: TypeAlias = Callable[[str | os.PathLike | None, int | None], keras.Model]

BACKBONES: dict[str, BackboneBuilder] = {}

# All modules of mmret_tf 0.1 were in one folder; a saved model names the modules of its classes.
OLD_MODULE = re.compile(rb'"module": *"mmret_tf\.\w+"')

# On a CPU, TensorFlow 2.20 writes outside of its memory when it computes the gradient of a 1x1
# convolution with strides over fewer channels: https://github.com/uxlfoundation/oneDNN/issues/6035
STRIDED_CHANNELS = 16

# A configuration is text, with a vocabulary at most; a larger one is not read into memory.
CONFIG_BYTES = 2**28


def register_backbone(name: str, build: BackboneBuilder) -> None:
    """Make a backbone known under a name, for `image_tower(name)` and `--backbone name`.

    Args:
        name: Its name; it takes precedence over `keras.applications`.
        build: Takes weights (`None` to start from scratch, or what the user gave) and the side of
            the pictures in pixels (`None` for any). Returns a model, levels 0 to 255
            `[batch, side, side, 3]` -> features `[batch, width]`.

    >>> def build(weights, image_size):
    ...     images = keras.Input((image_size, image_size, 3))
    ...     return keras.Model(images, layers.GlobalAveragePooling2D()(images))
    >>> register_backbone("MeanColour", build)
    >>> network, _, is_new = load_backbone("MeanColour", weights=None)
    >>> network.output_shape, is_new
    ((None, 3), True)
    """
    BACKBONES[name] = build


def load_backbone(
    backbone: str | os.PathLike | keras.Model,
    weights: str | os.PathLike | None = "imagenet",
    image_size: int | None = None,
    feature_layers: Sequence[str] = (),
) -> tuple[keras.Model, str | None, bool]:
    """Make or load a network from images to features. Section 2.2.

    Args:
        backbone, weights, feature_layers: As for `image_tower`.
        image_size: Side of the pictures in pixels, for a named backbone; `None` for any.

    Returns:
        The network; the `keras.applications` module whose `preprocess_input` belongs to it, or
        `None`; and whether it starts from scratch, so that it must be trained.

    Raises:
        ValueError, ConnectionError: As for `image_tower`.

    >>> network, scaling, is_new = load_backbone("MobileNetV3Small", weights=None, image_size=32)
    >>> network.output_shape, scaling, is_new
    ((None, 576), 'mobilenet_v3', True)
    """
    scaling, is_new = None, False
    if isinstance(backbone, keras.Model):
        network = backbone
    elif backbone in BACKBONES:
        network, is_new = BACKBONES[backbone](weights, image_size), weights is None
    elif os.fspath(backbone).endswith(".keras"):
        network = read_keras_file(backbone, compile=False)
    else:
        network, scaling = _application(os.fspath(backbone), weights, image_size)
        is_new = weights is None
        if is_new:
            _prepare_for_scratch(network)
    output_width(network, "a backbone")
    if feature_layers:
        network = _with_pooled_layers(network, feature_layers)
    _warn_of_wrong_gradients(network)
    return network, scaling, is_new


def _warn_of_wrong_gradients(network: keras.Model) -> None:
    for layer in _inner_layers(network):
        if not isinstance(layer, layers.Conv2D) or max(layer.strides) == 1:
            continue
        if layer.kernel_size == (1, 1) and layer.kernel.shape[2] < STRIDED_CHANNELS:
            warnings.warn(
                f"{layer.name} of {network.name} is a 1x1 convolution with strides over "
                f"{layer.kernel.shape[2]} channels. When it is trained on a CPU, TensorFlow may "
                "crash or learn nonsense: make its kernel as large as its strides. Frozen, it does "
                "no harm",
                stacklevel=4,  # where the tower is made
            )


def _inner_layers(network: keras.Model) -> Iterator[layers.Layer]:
    """The layers of a network and of the networks in it."""
    for layer in network.layers:
        yield from _inner_layers(layer) if isinstance(layer, keras.Model) else [layer]


def small_cnn(weights: str | os.PathLike | None = None, image_size: int | None = 48) -> keras.Model:
    """Four convolutions that learn simple pictures in a minute on two cores. Section 2.2.

    It is the backbone of `image_tower("SmallCNN", weights=None, image_size=48)`. ResNet50 scans a
    picture in strides of 32 pixels, and from a random start it learns far more slowly.

    Args:
        weights: `None`, or a `.weights.h5` file: none can be downloaded.
        image_size: Side of the pictures in pixels.

    Returns:
        A model, levels 0 to 255 `[batch, image_size, image_size, 3]` -> `[batch, width]`: the last
        feature map, 16 times smaller than the picture and 256 channels deep, flattened.

    Raises:
        ValueError: There is no size, or `weights` is not a file.

    >>> small_cnn(image_size=48).output_shape  # 3 x 3 x 256
    (None, 2304)
    """
    if image_size is None:
        raise ValueError("SmallCNN takes pictures of one size: give image_size and no scales")
    if weights is not None and not os.path.isfile(weights):
        raise ValueError(
            "SmallCNN starts from scratch (weights=None, --weights none) or from a .weights.h5 "
            f"file; got {os.fspath(weights)!r}"
        )
    images = keras.Input((image_size, image_size, 3))
    hidden = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for width in (32, 64, 128, 256):
        hidden = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
    # Flattened, because averaging would lose positions: "left of" could not be learned.
    network = keras.Model(images, layers.Flatten()(hidden), name="small_cnn")
    if weights is not None:
        network.load_weights(weights)
    return network


register_backbone("SmallCNN", small_cnn)


def read_keras_file(path: str | os.PathLike, compile: bool = True) -> keras.Model:
    """Load a `.keras` file in Keras' safe mode.

    Args:
        path: The file.
        compile: Whether to restore the loss and the optimizer too.

    Raises:
        ValueError: The file is missing, damaged, or of mmret_tf 0.1.
        ImportError: Its towers need a package that is not installed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"no model at {path}: expected a .keras file")
    try:
        with zipfile.ZipFile(path) as archive:  # Keras would call a damaged file "not found"
            if archive.getinfo("config.json").file_size > CONFIG_BYTES:
                raise ValueError("its config.json is too large")
            is_old = OLD_MODULE.search(archive.read("config.json"))
        model = None if is_old else keras.saving.load_model(path, compile=compile)
    except ImportError:  # the file is right, and its towers need another package
        raise
    except Exception as error:  # a broken file may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a .keras file, or is damaged: {reason:.300}") from error
    if is_old:
        raise ValueError(f"{path} was made by mmret_tf 0.1: train the model again")
    return model


def _application(
    name: str, weights: str | os.PathLike | None, image_size: int | None
) -> tuple[keras.Model, str]:
    """A network of `keras.applications`, and the module that holds its input scaling."""
    build = getattr(keras.applications, name, None)
    if not inspect.isfunction(build):
        raise ValueError(
            f"no backbone {name!r}: expected a name in keras.applications (ResNet50, VGG16, "
            f"MobileNetV3Small, EfficientNetV2B0, ConvNeXtTiny, ...), {', '.join(BACKBONES)}, a "
            "keras.Model or a .keras file"
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


def layer_maps(network: keras.Model, names: Sequence[str] = ()) -> list[keras.KerasTensor]:
    """The feature maps (特征图) of layers of a network.

    Args:
        network: A backbone.
        names: Names of the layers; by default all that have one, from the input on.

    Returns:
        Outputs `[batch, height, width, channels]`.

    Raises:
        ValueError: The network has no such feature map.

    >>> images = keras.Input((8, 8, 3))
    >>> network = keras.Model(images, layers.Flatten()(layers.Conv2D(4, 3, name="first")(images)))
    >>> [each.shape for each in layer_maps(network, ["first"])]
    [(None, 6, 6, 4)]
    """
    maps = {layer.name: layer.output for layer in network.layers if len(layer.output.shape) == 4}
    for name in names:
        if name not in maps:
            raise ValueError(
                f"{network.name} has no feature map {name!r}; its last are "
                f"{', '.join(list(maps)[-8:])}"
            )
    return [maps[name] for name in names or maps]


def _with_pooled_layers(network: keras.Model, names: Sequence[str]) -> keras.Model:
    """The same network with the averages and maxima of these feature maps as its features."""
    features = []
    for name, feature_map in zip(names, layer_maps(network, names), strict=True):
        # Explicit names: Keras' own numbers differ from model to model.
        average = layers.GlobalAveragePooling2D(dtype="float32", name=f"{name}_average")
        maximum = layers.GlobalMaxPooling2D(dtype="float32", name=f"{name}_maximum")
        features += [average(feature_map), maximum(feature_map)]
    joined = layers.Concatenate(dtype="float32", name="features")(features)
    return keras.Model(network.input, joined, name=network.name)


def _prepare_for_scratch(network: keras.Model) -> None:
    """Let a network learn from scratch within a short run.

    With Keras' momentum of 0.99, the moving statistics of batch normalization lag hundreds of steps
    behind, and a network that learned well is evaluated at chance level. A block of ResNet with an
    identity shortcut starts as the identity, with a last scale of 0 (arXiv 1706.02677, section
    5.1): the network starts shallow and deepens as it learns.
    """
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        if not isinstance(layer, layers.BatchNormalization):
            continue
        layer.momentum = 0.9
        # In block "conv2_block1", say, "conv2_block1_0_conv" is the convolution of the shortcut.
        block = layer.name.removesuffix("_3_bn")
        if f"{block}_add" in names and f"{block}_0_conv" not in names:
            layer.gamma.assign(ops.zeros_like(layer.gamma))

"""The image tower (图像塔): a CNN with average pooling, then a head. Sections 2.2, 3.2(1), 4.1."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import layers, ops

from mmret_tf._checks import checked_count
from mmret_tf.data.decoders.image import crop_and_resize, decode_image, square_decoder
from mmret_tf.models.backbones import layer_maps, load_backbone
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.tower import Tower


@keras.saving.register_keras_serializable("mmret_tf")
class ImageTower(Tower):
    """A CNN and a head. Made by `image_tower`.

    Call: images `[batch, height, width, 3]`, levels 0 to 255 -> float32 `[batch, embedding_dim]`,
    unit rows.

    Args:
        backbone: A model from images to features `[batch, width]`.
        head: Maps features to the embedding.
        image_size: Side of the pictures in pixels.
        scaling: Name of the `keras.applications` module whose `preprocess_input` belongs to the
            backbone; `None` if the backbone takes levels 0 to 255.
        scales: Sides in pixels to which each picture is resized for the backbone (多尺度); the
            features are averaged. By default `image_size` alone.
        min_crop: Smallest share of a picture's shorter side that a random crop keeps in training,
            above 0 and up to 1.
        corner_crops: As for `image_tower`.
        region_layers, region_pool: As for `set_regions`.

    Raises:
        ValueError: `min_crop` or one of `corner_crops` is out of range.
    """

    modality = "image"
    is_ordered = False

    def __init__(
        self,
        backbone: keras.Model,
        head: Head,
        image_size: int = 224,
        scaling: str | None = None,
        scales: Sequence[int] | None = None,
        min_crop: float = 0.8,
        corner_crops: Sequence[float] = (),
        region_layers: Sequence[str] = (),
        region_pool: int = 1,
        **kwargs,
    ):
        super().__init__(head, **kwargs)
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1; got {min_crop}")
        if not all(0 < share < 1 for share in corner_crops):
            raise ValueError(
                f"corner_crops must be shares above 0 and below 1; got {list(corner_crops)}"
            )
        if not isinstance(backbone, keras.Model):
            raise ValueError(f"backbone must be a keras.Model; got a {type(backbone).__name__}")
        self.backbone = backbone
        self.image_size = image_size
        self.scaling = scaling
        self.scales = list(scales or [image_size])
        self.min_crop = min_crop
        self.corner_crops = list(corner_crops)
        self.set_regions(region_layers, region_pool)

    @property
    def settings(self) -> list:
        return [self.image_size, self.scaling, self.scales, self.corner_crops]

    @property
    def sequence_settings(self) -> list:
        return [self.region_layers, self.region_pool]

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return square_decoder(self.image_size)(sources)

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        size = self.image_size
        return tf.map_fn(
            lambda each: crop_and_resize(decode_image(each[0]), size, *each[1:], self.min_crop),
            (sources, seeds, mirror),
            fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
        )

    def features(self, inputs, training: bool = False):
        """Features averaged over all scales, and outside training also over the corner crops:
        images `[batch, height, width, 3]` -> `[batch, width]`."""
        images = ops.cast(inputs, "float32")
        pictures = [self._resized(images, scale) for scale in self.scales]
        if not training:
            pictures += self._corners(images)
        return self._mean_features(pictures, training)

    def _mean_features(self, pictures: list, training: bool = False):
        """Features averaged over several forms of the same pictures."""
        seen = [self.backbone(self._scaled(each), training=training) for each in pictures]
        return sum(ops.cast(each, "float32") for each in seen) / len(seen)

    def _resized(self, images, side: int):
        return images if side == self.image_size else ops.image.resize(images, (side, side))

    def _corners(self, images) -> list:
        """The corner crops, as large as the picture."""
        size, found = (self.image_size, self.image_size), []
        for share in self.corner_crops:
            side = max(1, round(share * self.image_size))
            ends = slice(side), slice(-side, None)
            for rows, columns in itertools.product(ends, ends):
                found.append(ops.image.resize(images[:, rows, columns], size))
        return found

    def view_inputs(self, sources: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
        """Views 0 and 1 are not cropped."""
        if view == 1:
            return tf.reverse(self.preprocess(sources), [2])
        return super().view_inputs(sources, seeds, view)

    def view_features(self, sources: tf.Tensor, seeds: tf.Tensor, view: int):
        """View 0 is as in a search; the other views cycle through the scales."""
        inputs = self.view_inputs(sources, seeds, view)
        if view == 0:
            return self.features(inputs)
        scale = self.scales[view // 2 % len(self.scales)]
        return self._mean_features([self._resized(ops.cast(inputs, "float32"), scale)])

    def _scaled(self, images):
        """Levels 0 to 255, scaled as the backbone expects."""
        if self.scaling:
            images = getattr(keras.applications, self.scaling).preprocess_input(images)
        return images

    def set_regions(self, layers: Sequence[str] = (), pool: int = 1) -> None:
        """Choose what `sequence` returns; the embedding does not depend on it.

        Args:
            layers: Names of layers of the backbone, see `layer_maps`, whose feature maps are as
                large as each other; they are concatenated. By default the last map.
            pool: Side of the squares whose vectors are averaged to one: 2 leaves a quarter.

        Raises:
            ValueError: A layer is missing, the maps differ in size, or `pool` is below 1.
        """
        self.region_layers, self.region_pool = list(layers), checked_count(pool, "pool")
        # A mistake is told here. By default it waits: without regions a tower is of use too.
        self._feature_map = self._region_network() if layers else None

    def sequence(self, inputs):
        """The backbone's feature maps, a vector for each region (图像区域), see `set_regions`."""
        if self._feature_map is None:
            self._feature_map = self._region_network()
        feature_map = self._feature_map(self._scaled(ops.cast(inputs, "float32")), training=False)
        batch, height, width, channels = ops.shape(feature_map)
        regions = ops.reshape(feature_map, (batch, height * width, channels))
        return regions, ops.ones(ops.shape(regions)[:2], "bool")

    def _region_network(self) -> Callable:
        """From images to the feature maps that are the regions."""
        names = self.region_layers
        maps = layer_maps(self.backbone, names)
        if not names:
            if len(maps) < 2:  # the input is one of them
                raise ValueError(f"{self.backbone.name} pools no feature map: it has no regions")
            maps = maps[-1:]
        if len(maps) > 1:
            pictures = (None, self.image_size, self.image_size, 3)
            shapes = keras.Model(self.backbone.input, maps).compute_output_shape(pictures)
            if len({shape[1:3] for shape in shapes}) > 1:
                found = zip(names, shapes, strict=True)
                sides = ", ".join(f"{name} {shape[1]}" for name, shape in found)
                raise ValueError(f"regions need maps of one size; these have the sides {sides}")
            maps = [layers.Concatenate()(maps)]
        if self.region_pool > 1:
            maps = [layers.AveragePooling2D(self.region_pool, padding="same")(maps[0])]
        # Inside a function, or Keras would save it as a part of the tower.
        return functools.partial(keras.Model(self.backbone.input, maps[0]))

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_size": self.image_size,
            "scaling": self.scaling,
            "scales": self.scales,
            "min_crop": self.min_crop,
            "corner_crops": self.corner_crops,
            "region_layers": self.region_layers,
            "region_pool": self.region_pool,
        }


def image_tower(
    backbone: str | os.PathLike | keras.Model = "ResNet50",
    weights: str | os.PathLike | None = "imagenet",
    image_size: int = 224,
    embedding_dim: int = 256,
    trainable: bool | None = None,
    dropout: float = 0.0,
    feature_layers: Sequence[str] = (),
    scales: Sequence[int] | None = None,
    members: int = 1,
    min_crop: float = 0.8,
    corner_crops: Sequence[float] = (),
) -> ImageTower:
    """Make an image tower: a CNN with average pooling, then a projection. Sections 2.2 and 5.

    Args:
        backbone: Name of a model in `keras.applications`, or a registered name such as "SmallCNN"
            (see `register_backbone`); a model from images with levels 0 to 255 to features
            `[batch, width]`; or a `.keras` file that holds one.
        weights: Weights of a named backbone: "imagenet" (downloaded once by Keras), `None` to start
            from scratch, or a `.weights.h5` file. A model or a `.keras` file has its own.
        image_size: Side of the pictures in pixels.
        embedding_dim: Width of the embedding.
        trainable: Whether training changes the backbone. By default it does only if the backbone
            starts from scratch.
        dropout: Fraction of the backbone's features that is dropped in training.
        feature_layers: Names of layers of the backbone. The average and the maximum of each of
            their feature maps, concatenated, replace the backbone's own features. The last layer is
            specialised on ImageNet's classes; earlier layers describe more of the picture. For
            ResNet50, try "conv4_block6_out" and "conv5_block3_out".
        scales: Sides in pixels to which each picture is resized for the backbone, such as
            `[224, 288]`; the features are averaged. By default `image_size` alone.
        members: Number of members of an ensemble, see `MultiEncoder`.
        min_crop: Smallest share of a picture's shorter side that a random crop keeps in training;
            use 1 if captions name things at the edges.
        corner_crops: Shares of a picture's side, such as `[0.8]`. For each, four crops, one in each
            corner, are resized to `image_size`, and their features are averaged with those of the
            scales. Training leaves them out: its crops are random.

    Returns:
        A model, images `[batch, image_size, image_size, 3]` -> float32 `[batch, embedding_dim]`,
        unit rows.

    Raises:
        ValueError: The backbone does not exist, does not return `[batch, width]`, or lacks one of
            `feature_layers`; it cannot take the scales; or a number is out of range.
        ConnectionError: The ImageNet weights could not be downloaded.

    >>> tower = image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> vectors = tower(ops.ones((2, 16, 16, 3)))
    >>> vectors.shape, ops.norm(vectors, axis=1).numpy().round(3).tolist()
    (TensorShape([2, 8]), [1.0, 1.0])
    """
    network, scaling, is_trainable = load_backbone(
        backbone, weights, image_size if scales is None else None, feature_layers
    )
    side = network.input_shape[1]
    if scales is not None and not (
        len(scales) and all(scale > 0 and side in (None, scale) for scale in scales)
    ):
        raise ValueError(
            f"scales must be sides, in pixels, that the backbone takes ({side or 'any'}); "
            f"got {list(scales)}"
        )
    network.trainable = bool(is_trainable if trainable is None else trainable)
    head = Head(
        network.output_shape[-1],
        embedding_dim,
        dropout,
        normalize=not network.trainable,
        members=members,
        name="head",
    )
    return ImageTower(
        network, head, image_size, scaling, scales, min_crop, corner_crops, name="image_tower"
    )

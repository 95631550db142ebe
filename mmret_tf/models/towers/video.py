"""The video tower (视频塔): the document's two networks in one. Sections 1.1, 2.2 and 5.

A CNN sees each frame, an LSTM reads the frames in their order, and a head makes the embedding.
"""

import os

import keras
import tensorflow as tf
from keras import ops

from mmret_tf.data.decoders.video import decode_video, frames_decoder
from mmret_tf.models.backbones import load_backbone
from mmret_tf.models.layers import MaskedPooling
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.recurrence import LSTM
from mmret_tf.models.towers.tower import Tower


@keras.saving.register_keras_serializable("mmret_tf")
class FramesHead(Head):
    """An LSTM over frames, then a head. Section 2.2.

    Call: features `[batch, frames * width]` -> float32 `[batch, embedding_dim]`, unit rows.

    The features of all frames stand side by side, so that a cache keeps them as it keeps those of
    a picture.

    Args:
        frames: Number of frames.
        units: Width of the LSTM's state. Its states are max-pooled.
        width, embedding_dim, dropout, normalize, members: As for `Head`; `width` is that of all
            frames together.

    Raises:
        ValueError: As for `Head`, or `width` is not a multiple of `frames`.

    >>> head = FramesHead(frames=3, units=5, width=6, embedding_dim=4)
    >>> ops.norm(head(ops.ones((2, 6))), axis=1).numpy().round(3).tolist()
    [1.0, 1.0]
    """

    def __init__(self, frames: int, units: int, width: int, **kwargs):
        if frames < 1 or width % frames:
            raise ValueError(f"width must be a multiple of frames; got {width} and {frames}")
        super().__init__(units, **kwargs)
        self.frames = frames
        self.units = units
        self.network = LSTM(
            units,
            return_sequences=True,
            recurrent_initializer="glorot_uniform",  # Orthogonal knows no bfloat16
            dtype=self.dtype_policy,
        )
        self.network.build((None, frames, width // frames))
        self.pool = MaskedPooling("max", dtype=self.dtype_policy)
        self.width = width

    def project(self, features, training: bool = False):
        frames = ops.reshape(features, (-1, self.frames, self.width // self.frames))
        states = self.network(frames, training=training)
        return super().project(self.pool(states), training)

    def get_config(self) -> dict:
        config = super().get_config()
        return {**config, "frames": self.frames, "units": self.units}


@keras.saving.register_keras_serializable("mmret_tf")
class VideoTower(Tower):
    """A CNN over each frame, an LSTM over the frames, and a head. Made by `video_tower`.

    Call: frames `[batch, frames, height, width, 3]`, levels 0 to 255 -> float32 `[batch,
    embedding_dim]`, unit rows.

    Args:
        backbone: A model from images to features `[batch, width]`.
        head: A `FramesHead`; it knows the number of frames.
        image_size: Side of the frames in pixels.
        scaling: As for `ImageTower`.
        min_crop: As for `image_tower`.

    >>> settings = {"frames": 3, "image_size": 16, "embedding_dim": 8}
    >>> tower = video_tower("SmallCNN", weights=None, **settings)
    >>> tower.sequence_shape()[0]  # a vector a frame
    3
    """

    modality = "video"
    batch_size = 16

    def __init__(
        self,
        backbone: keras.Model,
        head: FramesHead,
        image_size: int = 224,
        scaling: str | None = None,
        min_crop: float = 0.8,
        **kwargs,
    ):
        super().__init__(head, **kwargs)
        self.backbone = backbone
        self.image_size = image_size
        self.scaling = scaling
        self.min_crop = min_crop

    @property
    def settings(self) -> list:
        return [self.image_size, self.scaling, self.head.frames]

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return frames_decoder(self.head.frames, self.image_size)(sources)

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        """All frames of a clip are cropped and mirrored alike."""
        frames, size = self.head.frames, self.image_size
        return tf.map_fn(
            lambda each: decode_video(each[0], frames, size, *each[1:], self.min_crop),
            (sources, seeds, mirror),
            fn_output_signature=tf.TensorSpec((frames, size, size, 3), tf.uint8),
        )

    def features(self, inputs, training: bool = False):
        """Those of all frames side by side, `[batch, frames * width]`."""
        return ops.reshape(self._of_frames(inputs, training), (-1, self.head.width))

    def sequence(self, inputs):
        """A vector for each frame."""
        vectors = self._of_frames(inputs, training=False)
        return vectors, ops.ones(ops.shape(vectors)[:2], "bool")

    def _of_frames(self, inputs, training: bool):
        """Features of each frame, `[batch, frames, width]`."""
        side = self.image_size
        pictures = ops.reshape(ops.cast(inputs, "float32"), (-1, side, side, 3))
        if self.scaling:
            pictures = getattr(keras.applications, self.scaling).preprocess_input(pictures)
        features = ops.cast(self.backbone(pictures, training=training), "float32")
        return ops.reshape(features, (-1, self.head.frames, features.shape[-1]))

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_size": self.image_size,
            "scaling": self.scaling,
            "min_crop": self.min_crop,
        }


def video_tower(
    backbone: str | os.PathLike | keras.Model = "ResNet50",
    weights: str | os.PathLike | None = "imagenet",
    frames: int = 8,
    image_size: int = 224,
    units: int = 256,
    embedding_dim: int = 256,
    trainable: bool | None = None,
    dropout: float = 0.0,
    members: int = 1,
    min_crop: float = 0.8,
) -> VideoTower:
    """Make a video tower: a CNN over each frame, an LSTM over the frames, then a projection.
    Sections 1.1, 2.2 and 5.

    Args:
        backbone, weights, image_size, embedding_dim, trainable, dropout, members, min_crop: As for
            `image_tower`.
        frames: Number of frames of each clip, evenly spaced.
        units: Width of the LSTM's state.

    Returns:
        A model, frames `[batch, frames, image_size, image_size, 3]` -> float32 `[batch,
        embedding_dim]`, unit rows.

    Raises:
        ValueError, ConnectionError: As for `image_tower`.

    >>> tower = video_tower("SmallCNN", weights=None, frames=3, image_size=16, embedding_dim=8)
    >>> tower(ops.ones((2, 3, 16, 16, 3))).shape
    TensorShape([2, 8])
    """
    network, scaling, is_new = load_backbone(backbone, weights, image_size)
    network.trainable = bool(is_new if trainable is None else trainable)
    head = FramesHead(
        frames,
        units,
        frames * network.output_shape[-1],
        embedding_dim=embedding_dim,
        dropout=dropout,
        members=members,
        name="head",
    )
    return VideoTower(network, head, image_size, scaling, min_crop, name="video_tower")

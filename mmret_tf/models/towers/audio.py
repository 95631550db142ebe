"""The audio tower (音频塔): a mel spectrogram, a CNN over it, then a head. Sections 1.1 and 2.2."""

import functools
import math
import os

import keras
import tensorflow as tf
from keras import layers, ops

from mmret_tf.data.decoders.audio import decode_audio, window_decoder
from mmret_tf.models.backbones import layer_maps, read_keras_file
from mmret_tf.models.layers import output_width
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.tower import Tower

# Of the spectrogram: 64 ms a window, 16 ms from one to the next, 64 bands.
WINDOW_SECONDS, STEP_SECONDS, BANDS = 0.064, 0.016, 64
QUIETEST = 1e-8  # power; a full scale of 16 bits ends there


@keras.saving.register_keras_serializable("mmret_tf")
class AudioTower(Tower):
    """A CNN over a spectrogram and a head. Made by `audio_tower`.

    Call: samples `[batch, rate * seconds]` -> float32 `[batch, embedding_dim]`, unit rows.

    Args:
        backbone: A model from samples to features `[batch, width]`.
        head: Maps features to the embedding.
        rate: Samples a second.
        seconds: Length of the window of a sound; shorter sounds are followed by silence.

    >>> tower = audio_tower(rate=8000, seconds=1.0, embedding_dim=8)
    >>> tower.sequence_shape()  # four spans of a quarter of a second
    (4, 128)
    """

    modality = "audio"

    def __init__(
        self, backbone: keras.Model, head: Head, rate: int = 16000, seconds: float = 5.0, **kwargs
    ):
        super().__init__(head, **kwargs)
        self.backbone = backbone
        self.rate = rate
        self.seconds = seconds
        self._feature_map = None

    @property
    def settings(self) -> list:
        return [self.rate, self.seconds]

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return window_decoder(self.rate, self.seconds)(sources)

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        """A window anywhere in a longer sound. A sound has no left and right to exchange."""
        return tf.map_fn(
            lambda each: decode_audio(
                each[0], self.rate, self.seconds, tf.random.stateless_uniform([], each[1])
            ),
            (sources, seeds),
            fn_output_signature=tf.TensorSpec((round(self.rate * self.seconds),), tf.float32),
        )

    def features(self, inputs, training: bool = False):
        return ops.cast(self.backbone(inputs, training=training), "float32")

    def sequence(self, inputs):
        """The last feature map, averaged over the bands: a vector for each span of time."""
        if self._feature_map is None:
            network = keras.Model(self.backbone.input, layer_maps(self.backbone)[-1])
            # Inside a function, or Keras would save it as a part of the tower.
            self._feature_map = functools.partial(network, training=False)
        vectors = ops.mean(self._feature_map(inputs), axis=2)
        return vectors, ops.ones(ops.shape(vectors)[:2], "bool")

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "rate": self.rate,
            "seconds": self.seconds,
        }


@keras.saving.register_keras_serializable("mmret_tf")
class LogPower(layers.Layer):
    """Logarithm of powers, as loudness is heard; nothing is quieter than `QUIETEST`.

    Keras' own conversion to decibels cuts off below the loudest of the whole batch: the embedding
    of a sound would depend on what else is in its batch.

    >>> LogPower()(ops.array([[0.0, 1.0]])).numpy().round(2)
    array([[-18.42,   0.  ]], dtype=float32)
    """

    def call(self, powers):
        powers = ops.cast(powers, "float32")  # float16 ends before the quietest power
        return ops.cast(ops.log(ops.maximum(powers, QUIETEST)), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def spectrogram_cnn(rate: int = 16000, seconds: float = 5.0) -> keras.Model:
    """A mel spectrogram (梅尔频谱) and four convolutions, from a random start.

    Args:
        rate: Samples a second.
        seconds: Length of a sound.

    Returns:
        A model, samples `[batch, rate * seconds]` -> `[batch, width]`: the last feature map, a
        quarter of a second a step, flattened, so that the order of what is heard counts.

    >>> spectrogram_cnn(rate=8000, seconds=2.0).output_shape  # 8 steps x 4 bands x 128
    (None, 4096)
    """
    samples = keras.Input((round(rate * seconds),))
    window = 2 ** round(math.log2(rate * WINDOW_SECONDS))
    hidden = layers.MelSpectrogram(
        fft_length=window,
        sequence_stride=round(rate * STEP_SECONDS),
        sequence_length=window,
        sampling_rate=rate,
        num_mel_bins=BANDS,
        power_to_db=False,
        dtype="float32",
    )(samples)
    hidden = layers.Permute((2, 1))(LogPower(dtype="float32")(hidden))  # time comes first
    hidden = layers.Reshape((hidden.shape[1], BANDS, 1))(hidden)
    hidden = layers.BatchNormalization(momentum=0.9)(hidden)
    for width in (16, 32, 64, 128):
        hidden = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
    return keras.Model(samples, layers.Flatten()(hidden), name="spectrogram_cnn")


def audio_tower(
    backbone: str | os.PathLike | keras.Model | None = None,
    rate: int = 16000,
    seconds: float = 5.0,
    embedding_dim: int = 256,
    trainable: bool | None = None,
    dropout: float = 0.0,
    members: int = 1,
) -> AudioTower:
    """Make an audio tower: a mel spectrogram and a CNN, then a projection. Sections 1.1 and 2.2.

    Args:
        backbone: A model from samples `[batch, rate * seconds]` to features `[batch, width]`, or a
            `.keras` file that holds one; by default a new `spectrogram_cnn`.
        rate: Samples a second to which all sounds are brought.
        seconds: Length of what is heard of a sound.
        embedding_dim: Width of the embedding.
        trainable: Whether training changes the backbone; by default it does if that is new.
        dropout: Fraction of the backbone's features that is dropped in training.
        members: Number of members of an ensemble, see `MultiEncoder`.

    Returns:
        A model, samples `[batch, rate * seconds]` -> float32 `[batch, embedding_dim]`, unit rows.

    Raises:
        ValueError: The backbone does not exist, or does not map such samples to `[batch, width]`.

    >>> tower = audio_tower(rate=8000, seconds=1.0, embedding_dim=8)
    >>> tower(ops.zeros((2, 8000))).shape
    TensorShape([2, 8])
    """
    is_new = backbone is None
    if is_new:
        network = spectrogram_cnn(rate, seconds)
    else:
        is_model = isinstance(backbone, keras.Model)
        network = backbone if is_model else read_keras_file(backbone, compile=False)
    width, length = output_width(network, "a backbone"), round(rate * seconds)
    if network.input_shape not in ((None, None), (None, length)):
        raise ValueError(
            f"a backbone must take samples [batch, {length}]; this one takes {network.input_shape}"
        )
    network.trainable = is_new if trainable is None else trainable
    head = Head(
        width,
        embedding_dim,
        dropout,
        normalize=not network.trainable,
        members=members,
        name="head",
    )
    return AudioTower(network, head, rate, seconds, name="audio_tower")

"""From WAV files to mono samples at one rate (音频预处理), in TensorFlow ops.

One definition serves `tf.data` in training, `encode` in Python, and the graph that is exported.
"""

import functools

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from mmret_tf.data.decoders.formats import wav
from mmret_tf.data.decoders.image import decode_failure
from mmret_tf.data.decoders.sounds import SoundSource, as_wav, encode_wav, sound_source

MIDDLE = 0.5  # of a sound that is longer than its window
LONGEST_DRAWN = 60.0  # seconds of a waveform
LONGEST_PLAYED, PLAYED_RATE = 10.0, 16000  # seconds, and Hz, of what a page plays


def decode_audio(
    contents: tf.Tensor, rate: int, seconds: float, place: float | tf.Tensor = MIDDLE
) -> tf.Tensor:
    """Decode a window of a WAV file; a shorter sound is followed by silence. Section 3.1(1).

    Channels are averaged. Another rate is changed to `rate` by the Fourier transform: frequencies
    up to the half of the lower rate stay as they are, higher ones are left out.

    Args:
        contents: Encoded bytes, a scalar string.
        rate: Samples a second of the result.
        seconds: Its length.
        place: Where the window starts in a longer sound: 0 at the beginning, 1 as late as possible.

    Returns:
        float32 `[round(rate * seconds)]`, about -1 to 1.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not a whole WAV file of a known form.

    >>> from mmret_tf.data.decoders.sounds import encode_wav
    >>> content = encode_wav(np.array([0.5, 0.5, -0.5]), rate=4)
    >>> decode_audio(content, rate=4, seconds=1.25).numpy().round(3).tolist()
    [0.5, 0.5, -0.5, 0.0, 0.0]
    """
    length = round(rate * seconds)
    samples, given_rate = wav.decode(contents, tf.constant(seconds, tf.float32), place)
    samples = _resampled(samples, given_rate, rate)[:length]
    samples = tf.pad(samples, [[0, length - tf.size(samples)]])
    return tf.ensure_shape(samples, [length])


def _resampled(samples: tf.Tensor, given_rate: tf.Tensor, rate: int) -> tf.Tensor:
    """The same sound at another rate: its spectrum is cut, or continued with zeros."""

    def resample() -> tf.Tensor:
        n, share = tf.size(samples), rate / tf.cast(given_rate, tf.float64)
        length = tf.maximum(tf.cast(tf.round(tf.cast(n, tf.float64) * share), tf.int32), 1)
        spectrum = tf.signal.rfft(samples)
        kept = tf.minimum(tf.size(spectrum), length // 2 + 1)
        spectrum = tf.pad(spectrum[:kept], [[0, length // 2 + 1 - kept]])
        scale = tf.cast(length, tf.float32) / tf.cast(n, tf.float32)
        return tf.signal.irfft(spectrum, [length]) * scale

    return tf.cond(given_rate == rate, lambda: samples, resample)


def load_audio(source: SoundSource, rate: int, seconds: float) -> np.ndarray:
    """Load any kind of sound as the samples that a tower takes. Section 3.1(1).

    Args:
        source: A path, encoded bytes, or samples with their rate, see `sound_source`.
        rate, seconds: As for `decode_audio`. The middle of a longer sound is taken.

    Returns:
        float32 `[round(rate * seconds)]`.

    Raises:
        ValueError: The file is missing or not a sound that can be read.

    >>> load_audio((np.zeros(8), 4), rate=2, seconds=2).shape
    (4,)
    """
    source = sound_source(source)
    try:
        return window_decoder(rate, seconds)([as_wav(source.read())])[0].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{source.name}: {decode_failure(error)}") from None


@functools.cache
def window_decoder(rate: int, seconds: float) -> tf.types.experimental.PolymorphicFunction:
    """WAV files `[n]` to float32 `[n, rate * seconds]`: traced once a size."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def windows(contents):
        return tf.map_fn(
            lambda each: decode_audio(each, rate, seconds),
            contents,
            fn_output_signature=tf.TensorSpec((round(rate * seconds),), tf.float32),
        )

    return windows


def check_audio(contents: bytes) -> None:
    """Refuse bytes that cannot be read as a sound; ValueError with the reason."""
    _window(contents, 0.01)  # of the rest, the lengths that the file announces are checked


def audio_thumbnail(contents: bytes, side: int) -> Image.Image:
    """The waveform (波形) of a sound as a square picture; a grey one if it cannot be decoded.

    Args:
        contents: Encoded bytes.
        side: Of the picture, in pixels.
    """
    picture = Image.new("RGB", (side, side), "white")
    pencil = ImageDraw.Draw(picture)
    try:
        samples, _ = _window(contents, LONGEST_DRAWN)
    except ValueError:
        pencil.rectangle((0, 0, side, side), "lightgrey")
        pencil.text((8, side // 2), "not readable", fill="black")
        return picture
    for x, part in enumerate(np.array_split(samples, min(side, len(samples)))):
        top, bottom = ((1 - level) * side / 2 for level in (part.max(), part.min()))
        pencil.line((x, top, x, max(bottom, top + 1)), "steelblue")
    return picture


def playable_audio(contents: bytes) -> tuple[str, bytes]:
    """The beginning of a sound as a page plays it: 10 seconds at most, at 16 kHz at most.

    Args:
        contents: Encoded bytes.

    Returns:
        The media type, and a WAV file.

    Raises:
        ValueError: The bytes cannot be decoded.
    """
    samples, rate = _window(contents, LONGEST_PLAYED)
    played_rate = min(rate, PLAYED_RATE)
    samples = _resampled(tf.constant(samples), tf.constant(rate), played_rate).numpy()
    return "audio/wav", encode_wav(np.clip(samples, -1, 1), played_rate)


def _window(contents: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """Samples of a sound in any format, from its beginning, and their own rate."""
    try:
        # TensorFlow takes bytes as they are through three copies, and an object through none.
        encoded = tf.constant(np.array(as_wav(contents), object))
        samples, rate = wav.decode(encoded, seconds, 0.0)
        return samples.numpy(), int(rate)
    except tf.errors.OpError as error:
        raise ValueError(decode_failure(error)) from None

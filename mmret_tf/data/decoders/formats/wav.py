"""WAV of every depth, decoded here: TensorFlow knows 16 bits alone, and decodes the whole file."""

import functools

import tensorflow as tf

from mmret_tf.data.decoders.formats.binary import (
    MOST_STEPS,
    PADDING,
    integer,
    plain,
    required,
    starts_with,
)
from mmret_tf.data.decoders.sounds import OTHERS

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # what a "fmt " chunk says of its samples
CHUNK_HEADER = 8  # bytes: a name and a length
FIRST_CHUNK = 12  # position: behind RIFF, a length, and WAVE
SUBFORMAT = 24  # position in an extensible "fmt " chunk
UNKNOWN_LENGTH = -1  # 0xFFFFFFFF, of a file that was written to a pipe
MOST_CHANNELS, HIGHEST_RATE = 64, 768_000

# A window of more numbers than this is not decoded (256 MiB as float32).
MAX_NUMBERS = 2**26


# As in `binary`, a function of its own.
@functools.partial(
    tf.function,
    input_signature=[
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((), tf.float32),
    ],
    experimental_attributes={"_noinline": True},
)
def decode(
    contents: tf.Tensor, seconds: tf.Tensor, place: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """A window of a sound, its channels averaged; the rest is not decoded.

    Args:
        contents: The bytes of the file, a scalar string.
        seconds: Length of the window, above 0.
        place: Where it starts in a longer sound: 0 at the beginning, 1 as late as possible.

    Returns:
        float32 `[n]`, -1 to 1, at most `seconds` long, and the rate in Hz, int32.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not a whole WAV file with samples of 8, 16, 24
            or 32 bits, or of 32 or 64 bits in floating point.
    """
    data = tf.io.decode_raw(tf.strings.join([contents, bytes(PADDING)]), tf.uint8)
    for name, mark in OTHERS.items():
        said = f"{name} is not decoded in the graph: send it as WAV"
        data = required(data, ~starts_with(data, 0, mark), said)
    is_wav = starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WAVE")
    data = required(data, is_wav, "not a WAV file: save other sounds as WAV")
    form, samples, length = _find_chunks(data)
    kind, channels = integer(data, form, 2, "little"), integer(data, form + 2, 2, "little")
    rate, bits = integer(data, form + 4, 4, "little"), integer(data, form + 14, 2, "little")
    kind = tf.where(kind == EXTENSIBLE, integer(data, form + SUBFORMAT, 2, "little"), kind)
    is_pcm = (kind == PCM) & tf.reduce_any(bits == [8, 16, 24, 32])
    is_float = (kind == FLOAT) & tf.reduce_any(bits == [32, 64])
    said = tf.strings.format("a WAV file of kind {} with {} bits: save it as PCM", (kind, bits))
    data = required(data, is_pcm | is_float, said)
    is_right = (channels > 0) & (channels <= MOST_CHANNELS) & (rate > 0) & (rate <= HIGHEST_RATE)
    said = tf.strings.format("a WAV file of {} channels at {} Hz", (channels, rate))
    data = required(data, is_right, said)
    size = tf.maximum(channels * bits // 8, 1)
    total = length // size
    data = required(data, total > 0, "a WAV file without samples")
    wanted = tf.cast(tf.round(seconds * tf.cast(rate, tf.float32)), tf.int64)
    count = tf.cast(tf.clip_by_value(wanted, 1, tf.cast(total, tf.int64)), tf.int32)
    numbers = tf.cast(count, tf.int64) * tf.cast(channels, tf.int64)
    data = required(data, numbers <= MAX_NUMBERS, "too long: at most 2**26 numbers are decoded")
    first = tf.cast(tf.round(place * tf.cast(total - count, tf.float32)), tf.int32)
    window = data[samples + first * size : samples + (first + count) * size]
    levels = _levels(window, bits, is_float)
    return tf.reduce_mean(tf.reshape(levels, (-1, channels)), axis=1), rate


def _find_chunks(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Positions of the format and of the samples, and the length of the samples in bytes."""
    end, at, steps = tf.size(data) - PADDING, tf.constant(FIRST_CHUNK), 0
    form, samples, length = tf.constant(0), tf.constant(0), tf.constant(0)
    while (at + CHUNK_HEADER <= end) & (samples == 0) & (steps < MOST_STEPS):
        size, inside = integer(data, at + 4, 4, "little"), at + CHUNK_HEADER
        form = tf.where(starts_with(data, at, b"fmt "), inside, form)
        is_samples = starts_with(data, at, b"data")
        samples = tf.where(is_samples, inside, samples)
        length = tf.where(is_samples, tf.where(size == UNKNOWN_LENGTH, end - inside, size), length)
        # Chunks start at even positions. A length above 2**31 is negative here, and ends the file.
        is_inside = (size >= 0) & (size <= end - inside)
        at = tf.where(is_inside, inside + size + size % 2, end)
        steps += 1
    form = required(form, (form > 0) & (samples > 0), "not a whole WAV file: no samples")
    is_whole = (length >= 0) & (length <= end - samples)
    return form, samples, required(length, is_whole, "not a whole WAV file: it ends early")


def _levels(window: tf.Tensor, bits: tf.Tensor, is_float: tf.Tensor) -> tf.Tensor:
    """Numbers from -1 to 1, float32, of the bytes of samples."""
    if is_float:
        levels = _floats(window, bits)
    elif bits == 8:
        levels = (tf.cast(window, tf.float32) - 128) / 128
    else:
        # The bytes are the highest of an integer of 32 bits.
        places = bits // 8
        rows = tf.reshape(window, (-1, places))
        rows = tf.pad(rows, [[0, 0], [4 - places, 0]])
        levels = tf.cast(tf.bitcast(tf.ensure_shape(rows, (None, 4)), tf.int32), tf.float32) / 2**31
    return levels


@plain
def _floats(window: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """float32 of numbers in floating point; others than -1 to 1 are clipped, NaN is 0."""
    levels = tf.cond(
        bits == 32,
        lambda: tf.bitcast(tf.reshape(window, (-1, 4)), tf.float32),
        lambda: tf.cast(tf.bitcast(tf.reshape(window, (-1, 8)), tf.float64), tf.float32),
    )
    return tf.where(tf.math.is_nan(levels), 0.0, tf.clip_by_value(levels, -1.0, 1.0))

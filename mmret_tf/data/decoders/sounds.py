"""Sounds in Python: paths, bytes and samples as WAV bytes.

NumPy alone, so that the serving client runs without TensorFlow. FLAC, OGG and MP3 are
turned into WAV by `soundfile`: `pip install "mmret_tf[audio]"`.
"""

import io
import os
import wave
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mmret_tf.data.sources import InlineSource, Source, file_or_bytes

SoundSource: TypeAlias = str | os.PathLike[str] | bytes | tuple[npt.ArrayLike, int] | Source

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
# How files of the formats begin that `soundfile` turns into WAV. An MP3 starts with ID3, or with
# eleven bits that are set.
OTHERS = {"FLAC": b"fLaC", "OGG": b"OggS", "MP3": b"ID3"}

# A longer sound is not decoded (an hour of two channels at 44.1 kHz is shorter).
MAX_NUMBERS = 2**29

HIGHEST = 2**15 - 1  # level of a sample of 16 bits


def sound_source(sound: SoundSource) -> Source:
    """Turn any kind of sound into a source of encoded bytes.

    Args:
        sound: A path, encoded bytes, or samples and their rate in Hz, see `encode_wav`.

    Raises:
        ValueError: `sound` is something else.
    """
    if isinstance(sound, Source):
        return sound
    if isinstance(sound, tuple) and len(sound) == 2:
        return InlineSource(encode_wav(*sound), "the sound")
    if isinstance(sound, str | bytes | os.PathLike):
        return file_or_bytes(sound)
    raise ValueError(
        f"a sound must be a path, encoded bytes, or (samples, rate); got a {type(sound).__name__}"
    )


def encode_wav(samples: npt.ArrayLike, rate: int) -> bytes:
    """Encode samples as a WAV file of 16 bits.

    Args:
        samples: `[n]` or `[n, channels]`: integers of 16 bits, or fractions from -1 to 1.
        rate: Samples a second.

    Raises:
        ValueError: The array has another shape or other numbers, or the rate is below 1.

    >>> encode_wav([0.0, 0.5], rate=8000)[:4]
    b'RIFF'
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or not samples.size or samples.shape[-1] == 0:
        raise ValueError(f"samples must be [n] or [n, channels], not empty; got {samples.shape}")
    if rate < 1:
        raise ValueError(f"a rate must be at least 1 Hz; got {rate}")
    if samples.dtype.kind == "f":
        if not np.abs(samples).max() <= 1:  # NaN is neither
            raise ValueError("samples in floating point must be from -1 to 1")
        samples = np.rint(samples * HIGHEST).astype(np.int16)
    if samples.dtype != np.int16:
        raise ValueError(f"samples must be fractions or int16; got {samples.dtype}")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def as_wav(contents: bytes) -> bytes:
    """A sound as a WAV file: FLAC, OGG and MP3 are decoded, anything else stays as it is.

    Args:
        contents: Encoded bytes.

    Raises:
        ValueError: The bytes are damaged, the sound is too long, or `soundfile` is not installed.

    >>> wav = encode_wav([0.0, 0.5], rate=8000)
    >>> as_wav(wav) == wav
    True
    """
    is_mp3 = len(contents) > 1 and contents[0] == 0xFF and contents[1] >= 0xE0
    if not (is_mp3 or contents.startswith(tuple(OTHERS.values()))):
        return contents
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: without its C library
        raise ValueError(
            'FLAC, OGG and MP3 need soundfile: pip install "mmret_tf[audio]", or save as WAV'
        ) from None
    try:
        with soundfile.SoundFile(io.BytesIO(contents)) as file:
            if file.frames * file.channels > MAX_NUMBERS:
                raise ValueError(f"too long: more than {MAX_NUMBERS} samples")
            return encode_wav(file.read(dtype="int16"), file.samplerate)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)  # the rest names an object in memory
        raise ValueError(f"not a whole sound: {reason}") from None

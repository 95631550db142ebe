"""WAV files of every depth, and files that are refused before they are decoded."""

import io
import struct
import wave

import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.data.decoders.formats import wav

RATE = 8000
WHOLE = 1e6  # seconds: more than any file here
LEVELS = np.array([[0.0, 0.5], [-1.0, 0.25], [0.75, -0.25]])  # of two channels
MEANS = [0.25, -0.375, 0.25]


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def make_wav(samples, kind=1, bits=16, channels=2, rate=RATE, form=None, before=b"", length=None):
    """A file by hand: `samples` are the bytes, `length` is what the header says of them."""
    if form is None:
        step = channels * bits // 8
        form = struct.pack("<HHIIHH", kind, channels, rate, rate * step, step, bits)
    content = chunk(b"fmt ", form) + before + chunk(b"data", samples)
    if length is not None:
        place = content.rindex(b"data") + 4
        content = content[:place] + struct.pack("<I", length) + content[place + 4 :]
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WAVE" + content


def integers(bits):
    """The levels as integers, little-endian."""
    if bits == 8:
        return (LEVELS * 128 + 128).clip(0, 255).astype(np.uint8).tobytes()
    whole = (LEVELS * 2 ** (bits - 1)).clip(None, 2 ** (bits - 1) - 1).astype("<i4")
    return b"".join(struct.pack("<i", each)[: bits // 8] for each in whole.ravel())


def decode(contents, seconds=WHOLE, place=0.0):
    samples, rate = wav.decode(tf.constant(contents), seconds, place)
    return samples.numpy(), int(rate)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_integers(bits):
    samples, rate = decode(make_wav(integers(bits), bits=bits))
    assert rate == RATE and samples.dtype == np.float32
    assert np.allclose(samples, MEANS, atol=2.0 ** (1 - bits) + 1e-7)


@pytest.mark.parametrize("bits", [32, 64])
def test_floating_point(bits):
    given = LEVELS.copy()
    content = make_wav(given.astype(f"<f{bits // 8}").tobytes(), kind=3, bits=bits)
    assert np.allclose(decode(content)[0], MEANS)
    given[0] = [np.nan, 3.0]  # nothing and the highest level
    content = make_wav(given.astype(f"<f{bits // 8}").tobytes(), kind=3, bits=bits)
    assert np.allclose(decode(content)[0], [0.5, *MEANS[1:]])


def test_an_extensible_header_names_the_kind_in_its_subformat():
    form = struct.pack("<HHIIHH", 0xFFFE, 2, RATE, RATE * 4, 4, 16)
    form += struct.pack("<HHI", 22, 16, 3) + struct.pack("<H", 1) + bytes(14)
    assert np.allclose(decode(make_wav(integers(16), form=form))[0], MEANS, atol=1e-4)


def test_other_chunks_are_skipped_and_odd_ones_are_padded():
    before = chunk(b"LIST", b"abc") + chunk(b"fact", b"data")
    assert np.allclose(decode(make_wav(integers(16), before=before))[0], MEANS, atol=1e-4)


def test_a_file_from_a_pipe_has_no_length():
    content = make_wav(integers(16), length=0xFFFFFFFF)
    assert np.allclose(decode(content)[0], MEANS, atol=1e-4)


def test_it_agrees_with_the_standard_library():
    random = np.random.default_rng(0)
    for channels in (1, 2, 6):
        levels = random.integers(-(2**15), 2**15, (50, channels)).astype("<i2")
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((channels, 2, 44100, 0, "NONE", ""))
            writer.writeframes(levels.tobytes())
        samples, rate = decode(file.getvalue())
        assert rate == 44100
        assert np.allclose(samples, levels.mean(axis=1) / 2**15, atol=1e-6)


@pytest.mark.parametrize(("place", "expected"), [(0.0, [0, 1]), (0.5, [4, 5]), (1.0, [8, 9])])
def test_a_window_of_a_longer_sound(place, expected):
    levels = np.arange(10, dtype="<i2") * 256
    content = make_wav(levels.tobytes(), channels=1, rate=4)
    samples, _ = decode(content, seconds=0.5, place=place)
    assert np.allclose(samples * 128, expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a WAV file: save other sounds as WAV"),
        (b"OggS" + bytes(40), "OGG is not decoded in the graph: send it as WAV"),
        (b"\xff\xfb" + bytes(40), "not a WAV file"),
        (make_wav(integers(16))[:30], "not a whole WAV file: no samples"),
        (make_wav(integers(16))[:-1], "not a whole WAV file: it ends early"),
        (make_wav(integers(16), length=13), "not a whole WAV file: it ends early"),
        (make_wav(integers(16), length=0x80000000), "not a whole WAV file: it ends early"),
        (make_wav(b""), "a WAV file without samples"),
        (make_wav(b"ab"), "a WAV file without samples"),
        (make_wav(integers(16), kind=7), "a WAV file of kind 7 with 16 bits: save it as PCM"),
        (make_wav(integers(16), bits=12), "a WAV file of kind 1 with 12 bits"),
        (make_wav(integers(16), bits=0), "a WAV file of kind 1 with 0 bits"),
        (make_wav(integers(16), form=struct.pack("<HHIIHH", 1, 0, 8, 0, 0, 16)), "of 0 channels"),
        (make_wav(integers(16), rate=0), "at 0 Hz"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 20000, "no samples"),
    ],
)
def test_refused(content, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decode(content)


def test_every_prefix_and_every_changed_byte_is_read_or_refused():
    whole = make_wav(integers(24), bits=24)
    random = np.random.default_rng(0)
    for length in range(len(whole)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(whole[:length])
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] = random.integers(256)
        try:
            samples, rate = decode(bytes(changed))
        except tf.errors.InvalidArgumentError:
            continue
        assert len(samples) and np.abs(samples).max() <= 1 and rate > 0


def test_no_more_than_the_window_is_decoded(monkeypatch):
    content = make_wav(bytes(2 * 64 * 2**10), channels=64, rate=2**10)
    assert len(decode(content, seconds=1)[0]) == 2**10

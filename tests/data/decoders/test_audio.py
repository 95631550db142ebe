"""Sounds as samples at one rate: windows, other rates, other formats, and waveforms."""

import io

import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.data.decoders.audio import (
    audio_thumbnail,
    check_audio,
    decode_audio,
    load_audio,
    window_decoder,
)
from mmret_tf.data.decoders.sounds import SUFFIXES, as_wav, encode_wav, sound_source

TOLERANCE = 2.0**-15  # of 16 bits


def tone(frequency, rate, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def test_at_its_own_rate_a_sound_stays_as_it_is():
    samples = np.random.default_rng(0).uniform(-1, 1, 50)
    assert np.allclose(load_audio((samples, 50), 50, 1), samples, atol=TOLERANCE)


def test_a_short_sound_is_followed_by_silence_and_a_long_one_gives_its_middle():
    samples = np.arange(10) / 10
    short = load_audio((samples, 10), 10, 1.5)
    assert np.allclose(short, [*samples, *[0] * 5], atol=TOLERANCE)
    assert np.allclose(load_audio((samples, 10), 10, 0.4), samples[3:7], atol=TOLERANCE)
    content = encode_wav(samples, 10)
    first = decode_audio(content, 10, 0.4, place=0.0)
    assert np.allclose(first, samples[:4], atol=TOLERANCE)


@pytest.mark.parametrize(("given", "wanted"), [(8000, 16000), (44100, 16000), (16000, 8000)])
def test_another_rate_keeps_low_frequencies_and_drops_high_ones(given, wanted):
    expected = tone(1000, wanted)
    assert np.allclose(load_audio((tone(1000, given), given), wanted, 1), expected, atol=1e-3)
    above = tone(min(given, wanted) * 0.5 + 100, given)
    if given > wanted:
        assert np.abs(load_audio((above, given), wanted, 1)).max() < 1e-3


def test_channels_are_averaged():
    stereo = np.stack([tone(100, 1000), np.zeros(1000)], axis=1)
    assert np.allclose(load_audio((stereo, 1000), 1000, 1), tone(100, 1000) / 2, atol=TOLERANCE)


def test_a_batch_is_decoded_as_one_by_one():
    sounds = [(tone(100, 1000), 1000), (tone(200, 500, 0.3), 500)]
    contents = tf.constant([encode_wav(*each) for each in sounds])
    batch = window_decoder(800, 0.5)(contents)
    assert batch.shape == (2, 400)
    for row, sound in zip(batch, sounds, strict=True):
        assert np.array_equal(row, load_audio(sound, 800, 0.5))


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (3, "a sound must be a path, encoded bytes, or .samples, rate.; got a int"),
        (([2.0], 8), "samples in floating point must be from -1 to 1"),
        (([np.nan], 8), "samples in floating point must be from -1 to 1"),
        (([], 8), r"not empty; got \(0,\)"),
        (([[[0.0]]], 8), r"must be \[n\] or \[n, channels\]"),
        (([1, 2], 8), "samples must be fractions or int16; got int64"),
        (([0.0], 0), "a rate must be at least 1 Hz; got 0"),
        (b"RIFF", "the source: not a WAV file"),
        ("none.wav", "none.wav: No such file"),
    ],
)
def test_what_is_no_sound(sound, message):
    with pytest.raises(ValueError, match=message):
        load_audio(sound, 8, 1)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_other_formats_become_wav(form):
    soundfile = pytest.importorskip("soundfile", reason='needs pip install "mmret_tf[audio]"')
    file = io.BytesIO()
    soundfile.write(file, tone(440, 16000), 16000, format=form)
    content = file.getvalue()
    check_audio(content)
    heard = load_audio(content, 16000, 1)
    loudest = np.argmax(np.abs(np.fft.rfft(heard)))
    assert loudest == 440 and abs(np.abs(heard).max() - 0.5) < 0.05
    with pytest.raises(ValueError, match="not a whole sound"):
        check_audio(content[: len(content) // 100])
    with pytest.raises(tf.errors.InvalidArgumentError, match="as WAV"):
        window_decoder(16000, 1)(tf.constant([content]))  # as a server does


def test_without_soundfile_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ValueError, match=r'pip install "mmret_tf\[audio\]", or save as WAV'):
        as_wav(b"fLaC")


def test_a_source_stays_a_source(tmp_path):
    source = sound_source(([0.5], 8))
    assert sound_source(source) is source and source.read() == encode_wav([0.5], 8)
    (tmp_path / "a.wav").write_bytes(source.read())
    assert sound_source(tmp_path / "a.wav").read() == source.read()
    assert ".wav" in SUFFIXES


def test_a_waveform_shows_where_a_sound_is_loud():
    samples = np.concatenate([np.zeros(500), tone(50, 500)])
    picture = np.asarray(audio_thumbnail(encode_wav(samples, 500), 60))
    is_drawn = np.any(picture != 255, axis=2)
    assert picture.shape == (60, 60, 3)
    assert is_drawn[:, 5:15].sum(axis=0).max() <= 2 and is_drawn[:, 30:50].sum(axis=0).min() >= 25
    grey = np.asarray(audio_thumbnail(b"rubbish", 60))
    assert tuple(grey[0, 0]) == (211, 211, 211)

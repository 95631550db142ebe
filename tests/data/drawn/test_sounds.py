"""Drawn sounds: which are chosen for a split, and samples that hold what the attributes say."""

import io
import itertools
import random
import wave

import numpy as np
import pytest

from mmret_tf.data.drawn.sounds import (
    LOUDNESS,
    PITCHES,
    RATE,
    RHYTHMS,
    SILENCE,
    TIMBRES,
    TONES,
    Sound,
    Tone,
    draw_sounds,
)


def play(**changes):
    tone = Tone(
        **{"timbre": "whistle", "pitch": "low", "rhythm": "long", "loudness": "loud"} | changes
    )
    return Sound("some id", (tone,), ()).play()


def test_sounds_stay_as_they_are():
    # In every process, on every machine and in every release of Python.
    assert draw_sounds("dev", size=9, seed=0)[-1] == Sound(
        "dev-0-00008",
        (Tone("string", "low", "four times", "quiet"), Tone("organ", "high", "twice", "quiet")),
        (
            "first four notes of a quiet low plucked string, "
            "after it a quiet organ of high pitch sounds twice",
            "four notes of a quiet low plucked string, then two notes of a quiet high organ",
            "四声轻的低音拨弦声，然后是两声轻的高音风琴声",
            "先是四声轻的低音拨弦声，后是两声轻的高音风琴声",
        ),
    )


def test_no_sound_is_in_two_splits():
    seen = {
        split: {
            sound.tones
            for size, seed in [(1, 5), (30, 1), (500, 2)]
            for sound in draw_sounds(split, size, seed)
        }
        for split in ("train", "dev", "test")
    }
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other]


@pytest.mark.parametrize("pitch", PITCHES)
def test_the_strongest_frequency_is_the_pitch(pitch):
    spectrum = np.abs(np.fft.rfft(play(pitch=pitch)))
    strongest = np.argmax(spectrum) * RATE / len(play())
    assert abs(strongest / PITCHES[pitch] - 1) < 0.05


@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_a_rhythm_has_its_number_of_notes(rhythm):
    is_loud = np.abs(play(rhythm=rhythm)) > 0.01
    # Louder than that within 20 ms, so that the zeros of a wave are no pauses.
    window = np.ones(RATE // 50)
    notes = np.convolve(is_loud, window, "same") > 0
    assert np.sum(np.diff(notes.astype(int)) == 1) == RHYTHMS[rhythm][1]


@pytest.mark.parametrize("loudness", LOUDNESS)
def test_the_highest_level_is_the_loudness(loudness):
    level = np.abs(play(loudness=loudness)).max()
    assert 0.8 * LOUDNESS[loudness] <= level <= LOUDNESS[loudness]


def test_timbres_have_spectra_of_their_own():
    spectra = [np.abs(np.fft.rfft(play(timbre=timbre))) for timbre in TIMBRES]
    spectra = [each / np.linalg.norm(each) for each in spectra]
    for one, other in itertools.combinations(spectra, 2):
        assert one @ other < 0.95


def test_tones_follow_each_other():
    low, high = (Tone("whistle", pitch, "long", "loud") for pitch in ("low", "high"))
    first, second = (Sound("some id", order, ()).play() for order in ((low, high), (high, low)))
    half = len(first) // 2

    def strongest(samples):
        return np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples)

    assert strongest(first[:half]) < 300 < 800 < strongest(first[half:])
    assert strongest(second[:half]) > 800 > 300 > strongest(second[half:])
    assert not first[: int(SILENCE * RATE)].any()


def test_the_file_is_a_wav_of_16_bits():
    sound = draw_sounds("dev", size=1)[0]
    with wave.open(io.BytesIO(sound.encode())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / (2**15 - 1)
    assert np.abs(samples - sound.play()).max() <= 0.5 / (2**15 - 1) + 1e-9


def test_captions_are_in_two_languages_and_name_everything():
    for sound in draw_sounds("test", size=40):
        english, chinese = sound.captions[:2], sound.captions[2:]
        assert len(set(sound.captions)) == 4
        for tone in sound.tones:
            assert all(tone.loudness in caption for caption in english)
        assert all(caption.isascii() for caption in english)
        assert not any(any(map(str.isascii, caption)) for caption in chinese)
    # Every tone has another clause.
    clauses = {
        tone.caption(language, random.Random(0))
        for tone in TONES
        for language in ("english", "chinese")
    }
    assert len(clauses) == 2 * len(TONES) == 2 * 5 * 4 * 4 * 2


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="size must be at most .* in the split 'dev'"):
        draw_sounds("dev", size=10**6)

"""Sounds (声音): one or two short sounds one after the other, with captions in two languages.

Each is told by timbre (音色), pitch (音高), rhythm (节奏) and loudness (响度), and two by their
order. Sections 1.1 and 2.1 of the document.
"""

import io
import itertools
import random
import wave
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from mmret_tf.data.drawn.arrangements import PHRASINGS
from mmret_tf.data.drawn.combinations import check_request, choose_combinations

RATE = 8000  # samples a second
SECONDS = 0.9  # of one part
SILENCE = 0.1  # seconds before each part
DETUNING = 0.04  # largest share by which a pitch is off
PITCHES = {"very low": 110.0, "low": 220.0, "middle": 440.0, "high": 880.0}  # Hz
LOUDNESS = {"quiet": 0.12, "loud": 0.8}  # highest level, of 1
# Length of each note in seconds, and their number.
RHYTHMS = {"long": (0.8, 1), "twice": (0.3, 2), "three times": (0.2, 3), "four times": (0.12, 4)}
FADE = 0.01  # seconds in which a note sets in and ends, or it would click
# Share of the sounds with one part, and with two.
SHARES = (0.1, 0.9)


def _harmonics(levels: dict[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    """A wave of some multiples of its frequency, by their levels."""

    def wave_of(phase: np.ndarray) -> np.ndarray:
        return sum(level * np.sin(multiple * phase) for multiple, level in levels.items())

    return wave_of


# By its name: the wave of a timbre over its phase, and how fast it dies away (1 / second).
TIMBRES = {
    "whistle": (_harmonics({1: 1.0}), 0.0),
    "buzzer": (_harmonics({n: 1 / n for n in range(1, 9)}), 0.0),
    "organ": (_harmonics({1: 0.6, 2: 1.0, 4: 0.8}), 0.0),
    "bell": (_harmonics({1: 1.0, 2.76: 0.8, 4.3: 0.5}), 6.0),
    "string": (_harmonics({n: 1 / n**1.5 for n in range(1, 7)}), 9.0),
}


@dataclass(frozen=True)
class Tone:
    """One part of a sound, with one of `TIMBRES`, `PITCHES`, `RHYTHMS` and `LOUDNESS` each.

    >>> print(Tone("bell", "high", "twice", "loud"))
    loud high bell, twice
    """

    timbre: str
    pitch: str
    rhythm: str
    loudness: str

    def __str__(self) -> str:
        return f"{self.loudness} {self.pitch} {self.timbre}, {self.rhythm}"

    def caption(self, language: str, generator: random.Random) -> str:
        """A clause in English or Chinese."""
        words = PHRASINGS["sounds"][f"{language} words"]
        pattern = generator.choice(PHRASINGS["sounds"][language][self.rhythm])
        return pattern.format(**{key: words[word] for key, word in asdict(self).items()})

    def play(self, generator: random.Random) -> np.ndarray:
        """The samples, float64 from -1 to 1, `[n]`."""
        wave_of, decay = TIMBRES[self.timbre]
        frequency = PITCHES[self.pitch] * (1 + generator.uniform(-DETUNING, DETUNING))
        length, notes = RHYTHMS[self.rhythm]
        time = np.arange(round(length * RATE)) / RATE
        note = wave_of(2 * np.pi * frequency * time + generator.uniform(0, 2 * np.pi))
        note = note * np.exp(-decay * time)
        note *= np.minimum(1, np.minimum(time, time[::-1]) / FADE)
        note *= LOUDNESS[self.loudness] * generator.uniform(0.85, 1) / np.abs(note).max()
        samples = np.zeros(round((SILENCE + SECONDS) * RATE))
        for start in np.arange(notes) * SECONDS / notes + SILENCE:
            place = round(start * RATE)
            samples[place : place + len(note)] = note[: len(samples) - place]
        return samples


TONES = tuple(Tone(*each) for each in itertools.product(TIMBRES, PITCHES, RHYTHMS, LOUDNESS))


@dataclass(frozen=True)
class Sound:
    """One or two tones, and captions.

    Attributes:
        id: Split, seed and number: "train-0-00012".
        tones: In their order.
        captions: Two in English, then two in Chinese; each states all attributes.
    """

    id: str
    tones: tuple[Tone, ...]
    captions: tuple[str, ...]

    @property
    def attributes(self) -> dict:
        """The tones, as JSON values.

        >>> Sound("x", (Tone("bell", "low", "long", "loud"),), ()).attributes["tones"]
        [{'timbre': 'bell', 'pitch': 'low', 'rhythm': 'long', 'loudness': 'loud'}]
        """
        return {"tones": [asdict(tone) for tone in self.tones]}

    def play(self) -> np.ndarray:
        """The samples, float64 from -1 to 1, `[n]` at `RATE`; the same at every call.

        >>> len(Sound("x", (Tone("bell", "low", "long", "loud"),), ()).play()) / RATE  # seconds
        1.0
        """
        generator = random.Random(self.id)
        return np.concatenate([tone.play(generator) for tone in self.tones])

    def encode(self) -> bytes:
        """A WAV file: mono, 16 bits."""
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(RATE)
            writer.writeframes(np.round(self.play() * (2**15 - 1)).astype("<i2").tobytes())
        return file.getvalue()


def draw_sounds(split: str = "train", size: int = 2000, seed: int = 0) -> list[Sound]:
    """Choose `size` different sounds of one split at random, with captions. Section 2.1.

    The tones and their order decide the split: none of the test occurs in training.

    Args:
        split: "train", "dev" or "test".
        size: Number of sounds.
        seed: 0 to 2**32 - 1. The same three arguments give the same sounds.

    Returns:
        `Sound` objects: `captions` are two in English and two in Chinese; `play()` gives the
        samples.

    Raises:
        ValueError: An argument is out of range, or the split has fewer different sounds.

    >>> sound = draw_sounds("dev", size=4)[0]
    >>> len(sound.captions), len(sound.tones)
    (4, 2)
    """
    check_request(split, size, seed)
    generator = random.Random(f"sounds {split} {size} {seed}")
    return [
        Sound(f"{split}-{seed}-{number:05}", tones, _captions(tones, generator))
        for number, tones in enumerate(choose_combinations(TONES, SHARES, split, size, generator))
    ]


def _captions(tones: tuple[Tone, ...], generator: random.Random) -> tuple[str, ...]:
    """Two captions in English, then two in Chinese."""
    captions = []
    for language in ("english", "chinese"):
        joints = PHRASINGS["sounds"][language]["in turn" if len(tones) == 2 else "alone"]
        for joint in generator.sample(joints, 2):
            captions.append(joint.format(*(each.caption(language, generator) for each in tones)))
    return tuple(captions)

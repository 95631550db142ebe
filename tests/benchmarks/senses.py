"""Items that can be seen, heard, watched and described, and an encoder that learns from them.

A drawn scene of one or two objects gives the picture and the captions. A sound and a clip are made
from the same objects, so the right answer is known between any two modalities. What is drawn at
random, such as the background, is drawn anew for each, or it would give the right answer away.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras

import mmret_tf as mm
from mmret_tf.data.drawn.arrangements import COLOURS, SHAPES, SceneObject
from mmret_tf.data.drawn.clips import Clip, Mover
from mmret_tf.data.drawn.scenes import Scene
from mmret_tf.data.drawn.sounds import TIMBRES, Sound, Tone

DIM = 256
MOTION_OF = {"large": "grows", "small": "shrinks"}
LOUDNESS_OF = {"large": "loud", "small": "quiet"}
TIMBRE_OF = dict(zip(SHAPES, TIMBRES, strict=True))
# Eight of the nine pairs of a pitch and a rhythm.
TUNES = itertools.product(("low", "middle", "high"), ("long", "twice", "four times"))
TUNE_OF = dict(zip(COLOURS, TUNES, strict=False))


def sound_of(scene: Scene) -> Sound:
    """A tone an object, in their order: the shape is told by the timbre, the size by the loudness,
    the colour by pitch and rhythm. The relation is not told."""
    tones = tuple(
        Tone(TIMBRE_OF[thing.shape], *TUNE_OF[thing.colour], LOUDNESS_OF[thing.size])
        for thing in scene.objects
    )
    return Sound(f"{scene.id}-sound", tones, ())


def clip_of(scene: Scene) -> Clip:
    """The objects with their shapes and colours; large ones grow and small ones shrink. Neither
    their order nor their relation is told: their places are random."""

    def mover(thing: SceneObject) -> Mover:
        return Mover(thing.shape, thing.colour, MOTION_OF[thing.size])

    return Clip(f"{scene.id}-clip", tuple(mover(thing) for thing in scene.objects), ())


SOURCES = {
    "image": lambda scene: [scene.encode()],
    "audio": lambda scene: [sound_of(scene).encode()],
    "video": lambda scene: [clip_of(scene).encode()],
    "text": lambda scene: list(scene.captions),
}


def draw_scenes(split: str, size: int, seed: int = 0) -> list[Scene]:
    """Different scenes of one or two objects; about one in a hundred has one.

    Args:
        split, seed: As for `mm.data.draw_scenes`.
        size: Number of scenes, at most about 10,000 in "train", and 1,200 in "dev" and "test".
    """
    # A quarter of what is drawn has three objects.
    drawn = mm.data.draw_scenes(split, size * 7 // 5 + 10, seed)
    scenes = [scene for scene in drawn if len(scene.objects) < 3]
    if len(scenes) < size:
        raise ValueError(f"{split} has only {len(scenes)} scenes of one or two objects")
    return scenes[:size]


def items_of(scenes: Sequence[Scene], modalities: Iterable[str]) -> mm.data.Collection:
    """Items with a picture, a sound, a clip and four captions, or some of them."""
    sources = {name: [SOURCES[name](scene) for scene in scenes] for name in modalities}
    attributes = [scene.attributes for scene in scenes]
    return mm.data.Collection([scene.id for scene in scenes], sources, attributes)


def train_encoder(
    parts: Sequence[mm.data.Pairs],
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    **options: Any,
) -> mm.MultiEncoder:
    """One space for all modalities of the parts, each paired with texts, from scratch.

    Args:
        parts: Pairs of a modality and texts.
        epochs, batch_size: As for `fit`; a batch has so many pairs of each part.
        learning_rate: The highest, after the warm-up.
        options: As for `mm.data.joint_dataset`.
    """
    keras.utils.set_random_seed(0)
    text = mm.TextPreprocessor(max_tokens=1000, sequence_length=32)
    text.adapt([caption for pairs in parts for caption in pairs.all_captions()])
    makers = {
        "image": lambda: mm.image_tower(
            "SmallCNN", None, image_size=64, embedding_dim=DIM, min_crop=1.0
        ),
        "audio": lambda: mm.audio_tower(rate=8000, seconds=2.0, embedding_dim=DIM),
        "video": lambda: mm.video_tower(
            "SmallCNN", None, frames=4, image_size=64, embedding_dim=DIM, min_crop=1.0
        ),
    }
    towers = [makers[pairs.modalities[0]]() for pairs in parts]
    model = mm.MultiEncoder([*towers, mm.text_tower(text, embedding_dim=DIM)])
    dataset = mm.data.joint_dataset(parts, model, batch_size, **options)
    steps = len(dataset)
    model.compile(
        keras.optimizers.Adam(rising_and_falling(epochs * steps, learning_rate)),
        loss=mm.losses.ContrastiveCosine(),
    )
    model.fit(dataset.repeat(), steps_per_epoch=steps, epochs=epochs, verbose=0)
    return model


def rising_and_falling(
    steps: int, highest: float = 1e-3
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A warm-up over a tenth of the steps, then a cosine decay to zero."""
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=highest, warmup_steps=steps // 10
    )

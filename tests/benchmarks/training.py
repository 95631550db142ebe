"""An epoch of training from cached features, compared with a bare Keras loop.

    python tests/benchmarks/training.py

Both train the heads of the default recipe on the same number of pairs in batches of 256. Ours draws
two captions of each image, looks its features up and tokenizes the captions, in `tf.data`; the bare
loop is `fit` on two ready NumPy arrays. They take turns. Features and captions are random, of the
sizes of Flickr8k and EfficientNet-Lite0.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import mmret_tf as mm
from mmret_tf.training import FeatureCache, build_model

CONFIG = mm.TrainConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=46 * CONFIG.batch_size // 2)
    parser.add_argument("--width", type=int, default=1280, help="of the features")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()

    random = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(7000)])
    captions = [
        [" ".join(random.choice(words, length)) for length in random.integers(6, 17, size=5)]
        for _ in range(options.images)
    ]
    # A picture of one colour stands for each image: its features are computed once, and cached.
    pictures = [
        [np.full((1, 1, 3), np.unravel_index(number, (256,) * 3), np.uint8)]
        for number in range(options.images)
    ]
    names = [str(number) for number in range(options.images)]
    pairs = mm.Collection(names, {"image": pictures, "text": captions}).pairs()

    with tempfile.TemporaryDirectory() as folder:
        full = default_model(pairs.all_captions(), options.width, folder)
        cache = FeatureCache(full.image_tower, pairs.first_sources, Path(folder) / "features")
        run(options, full, cache, pairs, captions)


def run(options, full: mm.DualEncoder, cache: FeatureCache, pairs: mm.data.Pairs, captions) -> None:
    """Time both, and print the ratio."""
    model, cached = cache.encoder(full), cache.cached(pairs)
    model.compile(full.optimizer, full.loss)
    dataset = cached.as_dataset(
        model,
        CONFIG.batch_size,
        training=True,
        captions_per_image=CONFIG.captions_per_image,
    )
    features = np.concatenate(
        [model.towers["image"].preprocess(np.array([each.read()])) for each in cached.first_sources]
    )
    groups = np.repeat(np.arange(options.images), CONFIG.captions_per_image)
    chosen = [each for some in captions for each in some[: CONFIG.captions_per_image]]
    arrays = {"image": features[groups], "text": full.text_preprocessor(chosen).numpy()}
    model.fit(dataset, shuffle=False, verbose=0)  # the step is traced
    seconds = np.empty((options.turns, 2))
    for turn in range(options.turns):
        ours, bare = EpochTimer(), EpochTimer()
        model.fit(
            dataset.repeat(),
            steps_per_epoch=len(dataset),
            epochs=3,
            callbacks=[ours],
            shuffle=False,  # the dataset does it
            verbose=0,
        )
        model.fit(
            arrays, groups, batch_size=CONFIG.batch_size, epochs=3, callbacks=[bare], verbose=0
        )
        seconds[turn] = ours.median, bare.median
    ratios = seconds[:, 0] / seconds[:, 1]
    print(
        f"{len(groups)} pairs an epoch, median of {options.turns}: "
        f"ours {np.median(seconds[:, 0]):.2f} s, bare {np.median(seconds[:, 1]):.2f} s, "
        f"ratio {np.median(ratios):.3f} (from {ratios.min():.3f} to {ratios.max():.3f})"
    )


class EpochTimer(keras.callbacks.Callback):
    """The time of an epoch; not of the first, in which `fit` makes its iterator."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds[1:]))


def default_model(captions: list[str], width: int, folder: str) -> mm.DualEncoder:
    """The model of the default recipe, with a backbone of one convolution."""
    images = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(width, 1)(images))
    path = str(Path(folder) / "backbone.keras")
    keras.Model(images, pooled).save(path)
    return build_model(dataclasses.replace(CONFIG, backbone=path), captions, steps=10_000)


if __name__ == "__main__":
    main()

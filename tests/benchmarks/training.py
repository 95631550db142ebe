"""What an epoch of training from cached features costs beside a bare Keras loop over the same.

    python tests/benchmarks/training.py

Both train one and the same model, of the default recipe, on as many pairs in batches of 256. Ours
draws two captions of each image anew, looks its features up and tokenizes them, in `tf.data`; the
bare loop is `fit` on two ready NumPy arrays. They run in turns. Features and captions are random,
of the sizes of Flickr8k and EfficientNet-Lite0.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import mmret_tf as mm
from mmret_tf.datasets import PairDataset
from mmret_tf.training import build_model

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
    names = [f"{number}.jpg" for number in range(options.images)]
    attributes, splits = [{}] * len(names), ["train"] * len(names)
    pairs = PairDataset(names, [Path(name) for name in names], captions, attributes, splits)
    features = random.normal(size=(options.images, options.width)).astype(np.float32)

    with tempfile.TemporaryDirectory() as folder:
        model = default_model(pairs.all_captions(), options.width, folder)
    dataset = pairs.as_dataset(
        model,
        CONFIG.batch_size,
        training=True,
        features=features,
        captions_per_image=CONFIG.captions_per_image,
    )
    groups = np.repeat(np.arange(options.images), CONFIG.captions_per_image)
    chosen = [each for some in captions for each in some[: CONFIG.captions_per_image]]
    arrays = {"image": features[groups], "text": model.text_preprocessor(chosen).numpy()}
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
    """The model of the default recipe; features stand for the backbone, which is never called."""
    images = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(width, 1)(images))
    path = str(Path(folder) / "backbone.keras")
    keras.Model(images, pooled).save(path)
    return build_model(dataclasses.replace(CONFIG, backbone=path), captions, steps=10_000)


if __name__ == "__main__":
    main()

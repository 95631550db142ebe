"""Sounds and pictures of real things: the stamps of Tux Paint, by cross-validation.

    apt-get install tuxpaint-stamps-default      # GPL-2; nothing of it is in this repository
    python tests/benchmarks/tuxpaint.py --backbone efficientnet_lite0.keras

Five times a fifth of the stamps is held out. On the rest a picture tower (a frozen backbone), a
sound tower and a text tower (English and Chinese) learn one space, from every two modalities that a
stamp has. Among the held-out stamps each sound then looks for its picture, and each Chinese caption
for its picture. Stamps with the same English caption are held out together.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np

import mmret_tf as mm
from mmret_tf.data import joint_dataset
from mmret_tf.evaluation.evaluator import HAN

FOLDS, EPOCHS, BATCH = 5, 8, 32
SAMPLES = 2000  # of the bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/usr/share/tuxpaint/stamps", help="the folder of stamps")
    parser.add_argument("--backbone", required=True, help="of pictures, as a .keras file")
    options = parser.parse_args()
    started = time.monotonic()
    stamps = mm.load(options.data)
    numbers = np.array([fold_of(captions[0]) for captions in stamps.captions])
    found: dict[str, list[tuple[np.ndarray, int]]] = {name: [] for name in QUERIES}
    with tempfile.TemporaryDirectory() as cache:
        for fold in range(FOLDS):
            training, held_out = (
                stamps.subset(np.flatnonzero(rows)) for rows in (numbers != fold, numbers == fold)
            )
            model = train(training, stamps, options.backbone, cache)
            for name, query in QUERIES.items():
                found[name].append(query(model, held_out))
    print(f"{len(stamps)} stamps, {FOLDS} folds, {time.monotonic() - started:.0f} s")
    for name, folds in found.items():
        show(name, folds)


def fold_of(caption: str) -> int:
    return int(hashlib.sha256(caption.encode()).hexdigest(), 16) % FOLDS


def train(
    stamps: mm.data.Collection, all_stamps: mm.data.Collection, backbone: str, cache: str
) -> mm.MultiEncoder:
    """A space of pictures, sounds and texts, learned from every two that a stamp has."""
    keras.utils.set_random_seed(0)
    text = mm.TextPreprocessor(max_tokens=4000, sequence_length=32)
    text.adapt([caption for captions in stamps.captions for caption in captions])
    pictures = mm.image_tower(backbone, image_size=224, embedding_dim=256, dropout=0.3)
    sounds = mm.audio_tower(seconds=2.0, embedding_dim=256, dropout=0.3)
    texts = mm.text_tower(text, word_dim=128, units=256, embedding_dim=256, dropout=0.3)
    model = mm.MultiEncoder([pictures, sounds, texts])
    sources = [source for each in all_stamps.sources["image"] for source in each]
    features = mm.training.FeatureCache(pictures, sources, cache)
    heads, stamps = features.encoder(model), features.cached(stamps)
    parts = [stamps.pairs(*names) for names in TRAINED]
    batches = joint_dataset(parts, heads, BATCH, captions_per_image=1)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * len(batches))
    heads.compile(keras.optimizers.Adam(rate), mm.losses.ContrastiveCosine())
    heads.fit(batches.repeat(), steps_per_epoch=len(batches), epochs=EPOCHS, verbose=0)
    return model


TRAINED = (("image", "text"), ("audio", "text"), ("audio", "image"))


def sound_to_picture(model: mm.MultiEncoder, stamps: mm.data.Collection) -> tuple[np.ndarray, int]:
    """The rank of each sound's picture, and the number of pictures."""
    pairs = stamps.pairs("audio", "image")
    pictures = [sources[0] for sources in pairs.sources["image"]]
    return ranks(model.encode("audio", pairs.first_sources), model.encode("image", pictures))


def chinese_to_picture(
    model: mm.MultiEncoder, stamps: mm.data.Collection
) -> tuple[np.ndarray, int]:
    """The rank of each Chinese caption's picture, and the number of pictures."""
    pairs = stamps.pairs("image", "text")
    captions = [[each for each in texts if HAN.search(each)] for texts in pairs.captions]
    rows = [row for row, texts in enumerate(captions) if texts]
    queries = model.encode_texts([captions[row][0] for row in rows])
    return ranks(queries, model.encode("image", pairs.first_sources), rows)


QUERIES: dict[str, Callable] = {
    "sound to picture": sound_to_picture,
    "Chinese caption to picture": chinese_to_picture,
}


def ranks(
    queries: np.ndarray, candidates: np.ndarray, right: list[int] | None = None
) -> tuple[np.ndarray, int]:
    """The rank of the right candidate of each query, the worst on ties; and their number."""
    right = np.arange(len(queries)) if right is None else np.array(right)
    scores = queries @ candidates.T
    own = scores[np.arange(len(queries)), right][:, None]
    return (scores >= own).sum(axis=1), len(candidates)


def show(name: str, folds: list[tuple[np.ndarray, int]]) -> None:
    """Recall over all folds with its 95 % interval, by bootstrap over the queries, and chance."""
    found = np.concatenate([each for each, _ in folds])
    sizes = np.concatenate([np.full(len(each), size) for each, size in folds])
    drawn = np.random.default_rng(0).integers(len(found), size=(SAMPLES, len(found)))
    columns = []
    for k in (1, 5, 10):
        hits = found <= k
        low, high = np.quantile(hits[drawn].mean(axis=1), [0.025, 0.975])
        chance = np.minimum(k / sizes, 1).mean()
        columns.append(f"R@{k} {hits.mean():.1%} ({low:.1%} to {high:.1%}, chance {chance:.1%})")
    sizes = f"{min(size for _, size in folds)} to {max(size for _, size in folds)}"
    print(f"{name}: {len(found)} queries among {sizes}; " + ", ".join(columns))


if __name__ == "__main__":
    main()

"""What each fusion is worth: missing modalities, composed queries, and real photographs.

    python tests/benchmarks/fusion.py
    python tests/benchmarks/fusion.py --run runs/flickr8k --data flickr8k
    python tests/benchmarks/fusion.py --lost audio
    python tests/benchmarks/fusion.py --lost audio video

The first trains a dual encoder on drawn scenes, and prints two tables: recall of each strategy when
items miss a modality, and composed queries, with early, late and hybrid fusion side by side. The
second takes a run of real photographs whose items lose captions, and prints the first table. So do
the others, for items with a picture, a caption and a sound, or a clip as well, that lose one of
those named. Everything is compared over the same embeddings, items and queries; fusions learn from
training items, recall is over others.
"""

import argparse
import json
import time
from collections.abc import Iterable

import keras
import numpy as np
import senses
from senses import rising_and_falling

import mmret_tf as mm
from mmret_tf.data import draw_changes

RATES = (0.0, 0.3, 0.6, 0.9)
DIM = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a run of real photographs, instead of scenes")
    parser.add_argument("--data", help="its collection")
    parser.add_argument(
        "--lost", nargs="+", choices=("audio", "video"), help="items have these too, and lose one"
    )
    parser.add_argument("--json", help="where to write the figures as well")
    options = parser.parse_args()
    if options.run:
        model = mm.load_model(f"{options.run}/model.keras")
        training, items = (mm.load_pairs(options.data, split) for split in ("train", "dev"))
        report = {"missing": missing_modalities(model, training, items, lost=("text",))}
    elif options.lost:
        report = {"missing": missing_senses(tuple(options.lost))}
    else:
        model = train_dual_encoder()
        training = mm.load_pairs("scenes", "train", 4000, seed=1)
        items = mm.load_pairs("scenes", "test", 5000)
        report = {"missing": missing_modalities(model, training, items, lost=("image", "text"))}
        report["composed"] = composed_queries(model)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


def train_dual_encoder(scenes: int = 4000, epochs: int = 12) -> mm.DualEncoder:
    """Four convolutions and an LSTM, on drawn scenes, from scratch."""
    keras.utils.set_random_seed(0)
    pairs = mm.load_pairs("scenes", "train", scenes)
    text = mm.TextPreprocessor(max_tokens=1000, sequence_length=32)
    text.adapt(pairs.all_captions())
    tower = mm.image_tower("SmallCNN", None, image_size=64, embedding_dim=DIM, min_crop=1.0)
    model = mm.DualEncoder(tower, mm.text_tower(text, embedding_dim=DIM))
    dataset = pairs.as_dataset(model, 64, training=True)
    model.compile(
        keras.optimizers.Adam(rising_and_falling(epochs * len(dataset))),
        loss=mm.losses.ContrastiveCosine(),
    )
    model.fit(
        dataset.repeat(), steps_per_epoch=len(dataset), epochs=epochs, verbose=0, shuffle=False
    )
    metrics = mm.evaluate(model, mm.load_pairs("scenes", "test", 500))
    print(f"dual encoder: text to image R@1 {metrics['t2i_R@1']:.1%}")
    return model


def missing_senses(
    lost: tuple[str, ...],
    sizes: tuple[int, int] = (600, 4000),
    items: int = 2000,
    epochs: int = 6,
) -> dict[str, list[float]]:
    """The table for items with a picture, a caption, and what they may lose.

    The encoder learns from each modality with captions, of different items; the fusions learn from
    other items, which have all modalities. The encoder's training is short, so that no modality
    finds everything alone.

    Args:
        lost: Modalities besides pictures and captions; an item misses one of them at most.
        sizes: Number of items of each set that the encoder learns from, and that fusions learn
            from.
        items: Number of unseen items, from the splits "test" and "dev".
        epochs: Passes of the encoder over its items.
    """
    seen = ("image", *lost)
    of_part, complete = sizes
    scenes = senses.draw_scenes("train", len(seen) * of_part + complete)
    parts = [
        senses.items_of(scenes[number * of_part :][:of_part], (name, "text")).pairs(name, "text")
        for number, name in enumerate(seen)
    ]
    model = senses.train_encoder(parts, epochs)
    names = (*seen, "text")
    training = senses.items_of(scenes[len(seen) * of_part :], names)
    unseen = senses.draw_scenes("test", items * 3 // 5)
    unseen += senses.draw_scenes("dev", items - len(unseen))
    return missing_modalities(model, training, senses.items_of(unseen, names), lost)


def fit(fused: mm.FusedEncoder, inputs: dict, targets: np.ndarray, epochs: int = 6) -> float:
    """Train a fusion; the seconds that it took."""
    keras.utils.set_random_seed(0)
    steps = epochs * -(-len(targets) // 128)
    fused.compile(
        keras.optimizers.Adam(rising_and_falling(steps)), loss=mm.losses.ContrastiveTargets()
    )
    started = time.monotonic()
    fused.fit(inputs, targets, batch_size=128, epochs=epochs, verbose=0)
    return time.monotonic() - started


def recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of queries, per cent, whose right item is among the k best; the worst rank on ties."""
    ranks = (scores >= scores[np.arange(len(scores)), right][:, None]).sum(axis=1)
    return 100 * float((ranks <= k).mean())


def missing_modalities(
    model: mm.MultiEncoder,
    training: mm.data.Collection,
    items: mm.data.Collection,
    lost: tuple[str, ...],
    k: int = 10,
) -> dict[str, list[float]]:
    """R@k of each strategy while more and more items miss a modality.

    An item is one source of each modality; its other captions are the queries. At each rate, so
    many items, chosen at random, lose one of `lost`, chosen at random.
    """
    inputs, targets = complete_examples(model, training)
    generator = np.random.default_rng(0)
    own = np.array([generator.integers(len(captions)) for captions in items.captions])
    captions = [texts[number] for texts, number in zip(items.captions, own, strict=True)]
    whole = {
        name: model.encode(name, [source for source, *_ in items.sources[name]])
        for name in perceived(items)
    } | {"text": model.encode_texts(captions)}
    queries = model.encode_texts(
        [
            text
            for texts, number in zip(items.captions, own, strict=True)
            for text in texts[:number] + texts[number + 1 :]
        ]
    )
    right = np.repeat(np.arange(len(items)), [len(texts) - 1 for texts in items.captions])

    strategies = untrained_strategies(model, whole) | trained_strategies(model, inputs, targets)
    table = {name: [] for name in strategies}
    order = generator.permutation(len(items))
    loses = generator.choice(lost, len(items))
    for rate in RATES:
        rows = {name: vectors.copy() for name, vectors in whole.items()}
        for item in order[: round(rate * len(items))]:
            rows[loses[item]][item] = 0
        for name, score in strategies.items():
            table[name].append(recall(score(queries, rows), right, k))
    print(f"\nR@{k} of {len(items)} items, {len(queries)} queries in words, by share that misses")
    print(" or ".join(lost))
    show(table, [f"{rate:.0%}" for rate in RATES])
    return table


def perceived(items: mm.data.Collection) -> list[str]:
    """The modalities of the items other than texts."""
    return [name for name in items.sources if name != "text"]


def complete_examples(
    model: mm.MultiEncoder, training: mm.data.Collection
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of all modalities, and targets, as `item_examples` makes them for two."""
    plain = mm.FusedEncoder(model, mm.fusion.WeightedSum())
    inputs = {}
    for name in perceived(training):
        examples, targets = mm.fusion.item_examples(plain, training.pairs(name, "text"))
        inputs |= examples  # the rows are alike: every item has every modality
    return inputs, targets


def untrained_strategies(model, names: Iterable[str]) -> dict:
    """From queries `[n, dim]` and items `{name: [m, dim]}` to scores `[n, m]`, nothing learnt."""

    def alone(name):
        return lambda queries, rows: queries @ rows[name].T

    def by_modality(queries, rows):
        return {
            name: np.where(vectors.any(axis=1), queries @ vectors.T, np.nan)
            for name, vectors in rows.items()
        }

    plain = mm.FusedEncoder(model, mm.fusion.WeightedSum())
    return {f"{name} only": alone(name) for name in names} | {
        "weighted scores": lambda queries, rows: mm.fusion.WeightedScores()(
            by_modality(queries, rows)
        ).numpy(),
        "reciprocal ranks": lambda queries, rows: mm.fusion.ReciprocalRankFusion()(
            by_modality(queries, rows)
        ).numpy(),
        "weighted sum": scores_of(plain),
    }


def scores_of(fused: mm.FusedEncoder):
    return lambda queries, rows: queries @ fused.predict(rows, batch_size=512, verbose=0).T


def trained_strategies(model, inputs: dict, targets: np.ndarray) -> dict:
    """Imputers before a concatenation that learnt from complete items; an ensemble; and fusions
    that learnt with modality dropout."""
    concatenate = mm.fusion.Concatenate(DIM)
    fit(mm.FusedEncoder(model, concatenate), inputs, targets)
    constant, mean, nearest, predictor = (
        mm.fusion.ConstantImputer(0.0),
        mm.fusion.MeanImputer(),
        mm.fusion.NearestImputer(neighbours=5),
        mm.fusion.ModalityPredictor(),
    )
    distinct = {name: vectors[:: max(1, len(vectors) // 4000)] for name, vectors in inputs.items()}
    for imputer in (mean, nearest, predictor):
        imputer.adapt(distinct)
    imputers = {"constant": constant, "mean": mean, "nearest": nearest, "predicted": predictor}
    strategies = {
        f"{name}, concatenated": scores_of(mm.FusedEncoder(model, concatenate, imputer))
        for name, imputer in imputers.items()
    }

    heads = {}
    for name in inputs:
        alone = mm.FusedEncoder(model, mm.fusion.Concatenate(DIM))
        fit(alone, {name: inputs[name]}, targets)
        vector = keras.Input((DIM,))
        heads[name] = keras.Model(vector, alone.fusion({name: vector}))
    strategies["ensemble"] = scores_of(mm.FusedEncoder(model, mm.fusion.EnsembleFusion(heads)))
    for name, fusion in (
        ("concatenated", mm.fusion.Concatenate(DIM)),
        ("gated", mm.fusion.GatedFusion(DIM)),
    ):
        fused = mm.FusedEncoder(model, fusion, modality_dropout=0.5)
        fit(fused, inputs, targets)
        strategies[f"{name}, modality dropout"] = scores_of(fused)
    return strategies


def composed_queries(model) -> dict[str, dict[str, float]]:
    """A picture and words that change it: which picture of the gallery is meant?

    The gallery holds all sources and targets of the test; the picture that is shown does not count
    as an answer. Several targets of one source are in it, so the picture alone cannot tell them.
    """
    training, test = draw_changes("train", 1500), draw_changes("test", 200)
    gallery = {scene.id: scene for change in test for scene in (change.source, change.target)}
    row_of = {key: row for row, key in enumerate(gallery)}
    embeddings = model.encode_images([scene.draw() for scene in gallery.values()])
    queries = [(change, text) for change in test for text in change.texts]
    shown = np.array([row_of[change.source.id] for change, _ in queries])
    right = np.array([row_of[change.target.id] for change, _ in queries])
    images, texts = [change.source.draw() for change, _ in queries], [text for _, text in queries]

    def measure(vectors: np.ndarray) -> dict[str, float]:
        scores = vectors @ embeddings.T
        scores[np.arange(len(scores)), shown] = -np.inf
        return {f"R@{k}": recall(scores, right, k) for k in (1, 5)}

    image, text = embeddings[shown], model.encode_texts(texts)
    table = {
        "image only": measure(image),
        "text only": measure(text),
        "weighted sum": measure(image + text),
    }
    # Every text of a change is an example: early fusion needs as many to learn at all.
    commands = [[text] for change in training for text in change.texts]
    counts = [len(change.texts) for change in training]
    drawn = [[change.source.draw()] for change in training]
    sources = [drawn[row] for row in np.repeat(np.arange(len(drawn)), counts)]
    targets = model.encode_images([change.target.draw() for change in training])
    targets = np.repeat(targets, counts, axis=0)
    features = {}
    for name, fusion in {
        "late: Concatenate": mm.fusion.Concatenate(DIM),
        "late: GatedFusion": mm.fusion.GatedFusion(DIM),
        "early: EarlyFusion": mm.fusion.EarlyFusion(DIM, units=128),
        "hybrid: HybridFusion": mm.fusion.HybridFusion(DIM),
    }.items():
        fused = mm.FusedEncoder(model, fusion)
        if fusion.takes_sequences not in features:
            features[fusion.takes_sequences] = fused.features({"image": sources, "text": commands})
        seconds = fit(fused, features[fusion.takes_sequences], targets, epochs=4)
        asked = {"image": [[each] for each in images], "text": [[each] for each in texts]}
        found = fused.encode_items(asked)
        table[name] = measure(found) | {"parameters": fusion.count_params(), "seconds": seconds}
    print(f"\ncomposed queries: {len(queries)} over {len(gallery)} pictures")
    show({name: list(row.values()) for name, row in table.items()}, [*table["late: GatedFusion"]])
    return table


def show(table: dict[str, list[float]], columns) -> None:
    print(f"{'':34}" + "".join(f"{column:>12}" for column in columns))
    for name, values in table.items():
        print(f"{name:34}" + "".join(f"{value:12,.1f}" for value in values))


if __name__ == "__main__":
    main()

"""The recipe: from a collection and a TrainConfig to a trained model and a report in a folder.

Sections 3.1(4) and 5 of the document. A frozen backbone gives the same features in every epoch, so
they are computed once and kept on disk; an epoch after that takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder, load_model, mean_vectors
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint
from mmret_tf.evaluation import evaluate_folds, evaluate_retrieval, rank_all
from mmret_tf.items import ItemDataset, load_items
from mmret_tf.losses import ContrastiveCosine
from mmret_tf.preprocessing import ImageSource, TextPreprocessor, load_batches
from mmret_tf.towers import RNNS, ImageTower, image_tower, text_tower

HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run; saved as the run's `config.json`.

    Args:
        data: "scenes", or a collection that `load_items` knows.
        scenes: number of training scenes, where data is "scenes".
        backbone: a name in `keras.applications`, or a `.keras` file.
        weights: "imagenet", "none" or a `.weights.h5` file; of a named backbone.
        image_size: side of the pictures, in pixels.
        embedding_dim, rnn, word_dim, units: see `towers`.
        dropout: in both towers.
        min_crop: see `PairDataset.as_dataset`.
        max_tokens, sequence_length: see `TextPreprocessor`.
        epochs: each shows every training image once, with one of its captions.
        batch_size: pairs a step; every other pair of the batch is a negative.
        learning_rate: the highest; it rises to that for a tenth of the steps, then falls to 0 along
            a cosine.
        weight_decay: of AdamW (arXiv 1711.05101); 0 for plain Adam.
        seed: of the weights, the order, the captions, the crops and the scenes.

    Raises:
        ValueError: a number that is not positive, or an unknown `rnn`.

    >>> TrainConfig(epochs=5).batch_size
    128
    """

    data: str = "scenes"
    scenes: int = 2000
    backbone: str = "ResNet50"
    weights: str = "imagenet"
    image_size: int = 224
    embedding_dim: int = 256
    rnn: str = "lstm"
    word_dim: int = 256
    units: int = 512
    dropout: float = 0.3
    min_crop: float = 0.8
    max_tokens: int = 8000
    sequence_length: int = 32
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self):
        for name in ("scenes", "image_size", "epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: negatives come from the batch; got 1")
        if self.rnn not in RNNS:
            raise ValueError(f"rnn must be one of {', '.join(RNNS)}; got {self.rnn!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1; got {self.dropout}")


def build_model(config: TrainConfig, captions: Sequence[str], steps: int) -> DualEncoder:
    """A compiled dual encoder for these captions.

    Args:
        config: the recipe.
        captions: those of the training split alone; they decide the vocabulary.
        steps: optimizer steps of the whole run, over which the learning rate falls.

    Returns:
        A `DualEncoder`, its weights random from `config.seed` or pretrained.
    """
    keras.utils.set_random_seed(config.seed)
    text = TextPreprocessor(config.max_tokens, config.sequence_length)
    text.adapt(captions)
    images = image_tower(
        config.backbone,
        None if config.weights == "none" else config.weights,
        image_size=config.image_size,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
    )
    texts = text_tower(
        text.vocabulary_size(),
        rnn=config.rnn,
        word_dim=config.word_dim,
        units=config.units,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
    )
    model = DualEncoder(images, texts, text)
    warmup_steps = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, steps - warmup_steps),
    )
    model.compile(
        # Adam with weight decay is AdamW. Without it the first step is compiled sooner: Keras'
        # decay puts the schedule into the graph once more for each variable.
        keras.optimizers.Adam(schedule, weight_decay=config.weight_decay or None),
        loss=ContrastiveCosine(),
    )
    return model


def train(config: TrainConfig, run: str | os.PathLike) -> dict:
    """Train, and leave `config.json`, `model.keras`, `embeddings/` and `report.json` in a folder.

    The model is saved after each epoch. Ctrl-C ends the training and goes on with the model of the
    last epoch that was completed; the report says so.

    Args:
        config: the recipe.
        run: the folder to write; an older run in it is replaced file by file.

    Returns:
        The report, as it is in `report.json`: the configuration, what was put aside on loading,
        the history of the training, the metrics of the development split, and seconds.

    Raises:
        ValueError: nothing usable in the data, or a setting that does not fit.
        KeyboardInterrupt: Ctrl-C before the first epoch was completed.
    """
    started = time.monotonic()
    run = Path(run)
    train_pairs, development, gallery = load_splits(config)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", dataclasses.asdict(config))
    steps = config.epochs * max(1, len(train_pairs) // config.batch_size)
    model = build_model(config, train_pairs.all_captions(), steps)
    features_of = backbone_features(model, [gallery.pairs(), train_pairs], run / "features")

    keep = KeepModel(run / "model.keras")
    callbacks = [keep, keras.callbacks.TerminateOnNaN()]
    if development is not None:
        callbacks.insert(0, RetrievalMetrics(development, features_of(development)))
    dataset = train_pairs.as_dataset(
        model,
        config.batch_size,
        training=True,
        seed=config.seed,
        features=features_of(train_pairs),
        min_crop=config.min_crop,
    )
    fit_started = time.monotonic()
    try:
        # Repeated, one iterator serves all epochs: to make one takes a second or two.
        model.fit(
            dataset.repeat(),
            steps_per_epoch=len(dataset),
            epochs=config.epochs,
            callbacks=callbacks,
            shuffle=False,  # the dataset does it
        )
    except KeyboardInterrupt:
        if not keep.epochs:
            raise
        model = load_model(keep.path)
    fit_seconds = time.monotonic() - fit_started

    if gallery.is_plain:
        pairs = gallery.pairs()
        EmbeddingStore.export(model, pairs, run / "embeddings", features=features_of(pairs))
    else:
        EmbeddingStore.export(model, gallery, run / "embeddings")
    report = {
        "config": dataclasses.asdict(config),
        "train_images": len(train_pairs),
        "development_images": len(development) if development is not None else 0,
        "quarantined": gallery.quarantined,
        "epochs_completed": len(keep.epochs),
        "is_interrupted": len(keep.epochs) < config.epochs,
        "history": keep.epochs,
        "seconds": {"fit": fit_seconds, "all": time.monotonic() - started},
    }
    if development is not None:
        report["development"] = evaluate(model, development, features_of(development))
    write_json(run / "report.json", report)
    return report


def load_splits(config: TrainConfig) -> tuple[PairDataset, PairDataset | None, ItemDataset]:
    """The pairs to train on, those of the development split (if it has any), and the gallery.

    The gallery is the whole collection, with what is no pair; of drawn scenes, the ones never
    trained on.
    """
    if config.data == "scenes":
        gallery = load_items("scenes", "dev", 200, config.seed)
        training = load_items("scenes", "train", config.scenes, config.seed)
    else:
        gallery = load_items(config.data)
        training = gallery.split("train")
    development = gallery.split("dev") if "dev" in gallery.splits else None
    has_pairs = development is not None and development.has_pairs
    return training.pairs(), development.pairs() if has_pairs else None, gallery


class _Backbone:
    """The frozen backbone in the place of the model: what it gives is stored like embeddings."""

    text_preprocessor = None

    def __init__(self, tower: ImageTower):
        self.tower = tower
        self.weights = tower.backbone.weights
        self.image_size = tower.image_size

    def encode_images(self, images: Sequence[ImageSource]) -> np.ndarray:
        batches = load_batches(images, self.image_size)
        return np.concatenate([self.tower.features_on_batch(batch) for batch in batches])


def backbone_features(
    model: DualEncoder, parts: Sequence[PairDataset], directory: str | os.PathLike
) -> Callable[[PairDataset], np.ndarray | None]:
    """Compute a frozen backbone's features of all images, once each, and keep them in a folder.

    They are read again where the folder already holds those of the same backbone and images, and
    an interrupted computation goes on where it stopped.

    Returns:
        A function from rows of `parts` to their features `[n, features]`; it gives `None` where the
        backbone is trained, and its features change with every step.
    """
    tower = model.image_tower
    if tower.backbone.trainable:
        return lambda part: None
    rows = {key: (part, row) for part in parts for row, key in enumerate(part.ids)}
    columns = ("image_paths", "captions", "attributes", "splits")
    taken = {name: [getattr(part, name)[row] for part, row in rows.values()] for name in columns}
    pairs = PairDataset(list(rows), **taken)
    encoder = _Backbone(tower)
    try:
        store = EmbeddingStore.open(directory)
    except ValueError:
        store = None
    if store is None or (store.fingerprint, store.ids) != (model_fingerprint(encoder), pairs.ids):
        store = EmbeddingStore.export(encoder, pairs, directory)
    row_of = {key: row for row, key in enumerate(store.ids)}
    return lambda part: store.embeddings[[row_of[key] for key in part.ids]]


def embed_pairs(
    model: DualEncoder, pairs: PairDataset, features: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, PairDataset]:
    """What an evaluation ranks: the embeddings of the items and of all their captions.

    Args:
        model: the dual encoder.
        pairs: images with any number of captions. Several images of one item count as one, by the
            mean of their embeddings, as in a gallery.
        features: the backbone's features of the images, `[n_images, features]`, if known.

    Returns:
        float32 `[n_items, dim]`, float32 `[n_captions, dim]`, and the first image of each item,
        whose `all_captions()` and `caption_to_image()` belong to the two.
    """
    images = model.encode_images(pairs.image_paths if features is None else features)
    items = {group: [] for group in pairs.groups}
    for group, image in zip(pairs.groups, images, strict=True):
        items[group].append(image)
    images = mean_vectors(np.array, list(items.values()), images.shape[1])
    pairs = pairs.subset(pairs.first_rows())
    return images, model.encode_texts(pairs.all_captions()), pairs


def evaluate(
    model: DualEncoder, pairs: PairDataset, features: np.ndarray | None = None, folds: int = 1
) -> dict:
    """Rank the images and captions of one collection against each other.

    Args:
        model, pairs, features: see `embed_pairs`.
        folds: parts of the collection that are ranked each by itself, see `evaluate_folds`.

    Returns:
        What `measure` returns.
    """
    return measure(*embed_pairs(model, pairs, features), folds)


def measure(images: np.ndarray, texts: np.ndarray, pairs: PairDataset, folds: int = 1) -> dict:
    """The metrics of what `embed_pairs` returned.

    Returns:
        The metrics of `evaluate_retrieval` and the number of "images", "captions" and "folds";
        "intervals": of each recall the 95 % confidence interval, see `Ranks.recall_intervals`.
        Where captions with and without Han characters occur, "chinese" and "english" hold the
        metrics of each apart, the captions of the other left out. Of several folds there are the
        means alone.
    """
    captions, image_of = pairs.all_captions(), pairs.caption_to_image()
    metrics = {"images": len(images), "captions": len(captions), "folds": folds}
    if folds > 1:
        return metrics | evaluate_folds(images, texts, image_of, folds)
    ranks = rank_all(images, texts, image_of)
    metrics |= ranks.metrics() | {"intervals": ranks.recall_intervals()}
    is_chinese = np.array([bool(HAN.search(caption)) for caption in captions])
    if is_chinese.any() and not is_chinese.all():
        for language, chosen in (("english", ~is_chinese), ("chinese", is_chinese)):
            metrics[language] = evaluate_retrieval(images, texts[chosen], image_of[chosen])
    return metrics


class RetrievalMetrics(keras.callbacks.Callback):
    """Report recall on a validation set after each epoch, as `val_t2i_R@10` and so on.

    Args:
        pairs: the validation set.
        features: the backbone's features of its images, if known.

    >>> model.fit(dataset, callbacks=[RetrievalMetrics(development)])  # doctest: +SKIP
    """

    def __init__(self, pairs: PairDataset, features: np.ndarray | None = None):
        super().__init__()
        self.pairs = pairs
        self.features = features

    def on_epoch_end(self, epoch, logs=None):
        images, texts, pairs = embed_pairs(self.model, self.pairs, self.features)
        metrics = evaluate_retrieval(images, texts, pairs.caption_to_image())
        for name in ("i2t_R@1", "i2t_R@10", "t2i_R@1", "t2i_R@10"):
            logs[f"val_{name}"] = metrics[name]


class KeepModel(keras.callbacks.Callback):
    """Save the model after each epoch, whole or not at all, and remember the epoch's metrics."""

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.epochs: list[dict[str, float]] = []

    def on_epoch_end(self, epoch, logs=None):
        temporary = self.path.with_suffix(".partial.keras")
        try:
            self.model.save(temporary)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)  # Ctrl-C may come while it is written
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})


def write_json(path: Path, value: dict) -> None:
    """Write a readable JSON file, whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)

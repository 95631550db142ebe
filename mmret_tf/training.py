"""The recipe: from a collection and a TrainConfig to a trained model and a report in a folder.

Sections 3.1(4) and 5 of the document.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import keras

from mmret_tf.backbones import thaw
from mmret_tf.callbacks import EpochSeeds, KeepBest, RetrievalMetrics
from mmret_tf.config import TrainConfig
from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder, load_model
from mmret_tf.embeddings import EmbeddingStore
from mmret_tf.features import backbone_features, feature_views
from mmret_tf.items import ItemDataset, load_items
from mmret_tf.losses import ContrastiveCosine
from mmret_tf.measuring import embed_pairs, measure
from mmret_tf.optimizers import TwoRateAdam
from mmret_tf.preprocessing import TextPreprocessor
from mmret_tf.projector import write_projector
from mmret_tf.towers import image_tower, text_tower

PROJECTED = 500  # development images in TensorBoard's projector


def build_model(config: TrainConfig, captions: Sequence[str], steps: int) -> DualEncoder:
    """A compiled dual encoder for these captions. Sections 3.1(4) and 5.

    Args:
        config: the recipe.
        captions: those of the training split alone; they decide the vocabulary.
        steps: optimizer steps of the whole run, over which the learning rate falls.

    Returns:
        A `DualEncoder`, its weights random from `config.seed` or pretrained. Its loss is
        `ContrastiveCosine`.

    Raises:
        ValueError: a setting that does not fit the backbone, or no captions.
        ConnectionError: the ImageNet weights could not be downloaded.

    >>> config = TrainConfig(backbone="SmallCNN", weights="none", image_size=16, embedding_dim=8)
    >>> model = build_model(config, ["a red circle", "红色的圆"], steps=10)
    >>> model.text_preprocessor.vocabulary_size()  # a red circle 红 色 的 圆, and two special ids
    9
    """
    keras.utils.set_random_seed(config.seed)
    if config.initial_model:
        model = load_model(config.initial_model)
    else:
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(config.precision)
        try:
            model = _new_model(config, captions)
        finally:
            keras.config.set_dtype_policy(policy)
    if config.thaw_from:
        thaw(model.image_tower.backbone, config.thaw_from)
    model.compile(_optimizer(config, model, steps), loss=ContrastiveCosine())
    return model


def _new_model(config: TrainConfig, captions: Sequence[str]) -> DualEncoder:
    """A dual encoder with the towers of the config."""
    text = TextPreprocessor(config.max_tokens, config.sequence_length)
    text.adapt(captions)
    images = image_tower(
        config.backbone,
        None if config.weights == "none" else config.weights,
        image_size=config.image_size,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
        feature_layers=config.feature_layers,
        scales=config.scales or None,
        members=config.members,
    )
    texts = text_tower(
        text.vocabulary_size(),
        rnn=config.rnn,
        word_dim=config.word_dim,
        units=config.units,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
        pooling=config.pooling,
        bag_of_words=config.bag_of_words,
        members=config.members,
    )
    return DualEncoder(images, texts, text)


def _optimizer(config: TrainConfig, model: DualEncoder, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine decay; thawed layers at their own rate, and without decay."""
    warmup_steps = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, steps - warmup_steps),
    )
    # Adam with weight decay is AdamW. Without it the first step is compiled sooner: Keras' decay
    # puts the schedule into the graph once more for each variable.
    thawed = model.image_tower.backbone.trainable_variables if config.thaw_from else []
    places = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    optimizer = TwoRateAdam(
        schedule,
        slow=[places[id(variable)] for variable in thawed],
        slow_share=config.thawed_rate,
        weight_decay=config.weight_decay or None,
        global_clipnorm=config.clip_norm or None,
        use_ema=config.weight_averaging > 0,
        ema_momentum=config.weight_averaging,
        gradient_accumulation_steps=(
            config.accumulation_steps if config.accumulation_steps > 1 else None
        ),
    )
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(
            [each for each in model.trainable_variables if not is_decayed(each)] + thawed
        )
    return optimizer


def is_decayed(variable: keras.Variable) -> bool:
    """Whether weight decay shrinks it: a kernel is; a bias, a scale and a word's vector are not.

    A word that a batch lacks has no gradient, and decay would wear it away.
    """
    return len(variable.shape) > 1 and variable.name not in ("bias", "embeddings")


def train(config: TrainConfig, run: str | os.PathLike) -> dict:
    """Train, and leave `config.json`, `model.keras`, `embeddings/` and `report.json` in a folder.
    Sections 3.1(4) and 5.

    `model.keras` is the model of the epoch that was best on the development split, and
    `history.csv` has a line an epoch. `tensorboard --logdir RUN` shows `logs/`: the curves, and
    images of the development split in the embedding projector. Ctrl-C ends the training and goes on
    with that model; the report says so. A run that was killed, or interrupted, goes on with the
    next epoch when it is started again with the same configuration.

    Args:
        config: the recipe.
        run: the folder to write; an older run in it is replaced file by file.

    Returns:
        The report, as it is in `report.json`: the configuration, what was put aside on loading,
        the history of the training, the metrics of the development split, and seconds.

    Raises:
        ValueError: nothing usable in the data, or a setting that does not fit.
        ConnectionError: the ImageNet weights could not be downloaded.
        KeyboardInterrupt: Ctrl-C before the first epoch was completed.

    >>> config = TrainConfig(data="photos", epochs=10)  # a folder, see `load_pairs`
    >>> report = train(config, "runs/photos")  # doctest: +SKIP

    Then `report["development"]["t2i_R@10"]` is a share of the captions, 0 to 1.
    """
    started = time.monotonic()
    run = Path(run)
    train_pairs, development, gallery = load_splits(config)
    run.mkdir(parents=True, exist_ok=True)
    history = killed_run(config, run)
    write_json(run / "config.json", dataclasses.asdict(config))
    pairs_an_epoch = len(train_pairs) * config.captions_per_image
    steps = config.epochs * max(1, pairs_an_epoch // config.batch_size)
    model = build_model(config, train_pairs.all_captions(), steps)
    features_of = backbone_features(model, [gallery.pairs(), train_pairs], run / "features")
    features = features_of(train_pairs)
    if features is not None and config.feature_views > 1:
        features = feature_views(
            model, train_pairs, features, run / "views", config.feature_views, config.min_crop
        )

    keep = KeepBest(run / "model.keras", config.patience, history)
    callbacks = [
        EpochSeeds(),
        keep,
        keras.callbacks.CSVLogger(run / "history.csv", append=bool(history)),
        keras.callbacks.TensorBoard(run / "logs", write_graph=False),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.BackupAndRestore(run / "backup"),
    ]
    if development is not None:
        callbacks.insert(1, RetrievalMetrics(development, features_of(development)))
    dataset = train_pairs.as_dataset(
        model,
        config.batch_size,
        training=True,
        seed=config.seed,
        features=features,
        min_crop=config.min_crop,
        captions_per_image=config.captions_per_image,
    )
    fit_started = time.monotonic()
    is_interrupted = False
    try:
        # Repeated, one iterator serves all epochs: to make one takes a second or two. What a killed
        # run has drawn is skipped, so that the rest is the same as without the kill.
        model.fit(
            dataset.repeat().skip(len(history) * len(dataset)),
            steps_per_epoch=len(dataset),
            epochs=len(history) if keep.is_done else config.epochs,
            callbacks=callbacks,
        )
    except KeyboardInterrupt:
        if not keep.epochs:
            raise
        is_interrupted = True
    model = load_model(keep.path)
    fit_seconds = time.monotonic() - fit_started

    if gallery.is_plain:
        pairs = gallery.pairs()
        EmbeddingStore.export(model, pairs, run / "embeddings", features=features_of(pairs))
    else:
        EmbeddingStore.export(model, gallery, run / "embeddings")
    report = {
        "config": json.loads((run / "config.json").read_text(encoding="utf-8")),
        "train_images": len(train_pairs),
        "development_images": len(development) if development is not None else 0,
        "quarantined": gallery.quarantined,
        "epochs_completed": len(keep.epochs),
        "is_interrupted": is_interrupted,
        "best_epoch": keep.best_epoch,
        "history": keep.epochs,
        "seconds": {"fit": fit_seconds, "all": time.monotonic() - started},
    }
    if development is not None:
        images, texts, pairs = embed_pairs(model, development, features_of(development))
        report["development"] = measure(images, texts, pairs)
        write_projector(
            run / "logs",
            images[:PROJECTED],
            pairs.image_paths[:PROJECTED],
            [captions[0] for captions in pairs.captions[:PROJECTED]],
        )
    write_json(run / "report.json", report)
    return report


def killed_run(config: TrainConfig, run: Path) -> list[dict[str, float]]:
    """The epochs that a killed run of this very configuration completed; of any other run none,
    and its backup and logs are deleted, so that nothing stale is gone on with.

    Keras' backup is the truth: it is the last that is written of an epoch.
    """
    log = run / "history.csv"
    try:
        epochs = json.loads((run / "backup" / "training_metadata.json").read_text())["epoch"]
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[: 1 + epochs]
        if TrainConfig.load(run / "config.json") == config and len(lines) == 1 + epochs:
            log.write_text("".join(lines), encoding="utf-8")  # without an epoch that is done again
            return [
                {name: float(value) for name, value in row.items() if name != "epoch"}
                for row in csv.DictReader(lines)
            ]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no killed run, or one that was killed in its first epoch
    for stale in ("backup", "logs"):
        shutil.rmtree(run / stale, ignore_errors=True)
    return []


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


def write_json(path: Path, value: dict) -> None:
    """Write a readable JSON file, whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)

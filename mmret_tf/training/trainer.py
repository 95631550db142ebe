"""The recipe (训练流程): from a collection and a TrainConfig to a trained model and a report.

Section 5 of the document.
"""

import csv
import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mmret_tf._files import write_json
from mmret_tf.data.decoders.text import TextPreprocessor
from mmret_tf.data.pairs import joint_dataset
from mmret_tf.data.progress import is_interactive
from mmret_tf.evaluation.evaluator import embed_pairs, measure_parts
from mmret_tf.models.dual_encoder import DualEncoder, load_model
from mmret_tf.models.encoder import MultiEncoder, VariantEncoder
from mmret_tf.models.fine_tuning import thaw
from mmret_tf.models.towers.audio import audio_tower
from mmret_tf.models.towers.image import image_tower
from mmret_tf.models.towers.text import text_tower
from mmret_tf.models.towers.tower import Tower
from mmret_tf.models.towers.video import video_tower
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.similarity.losses import ContrastiveCosine
from mmret_tf.training.caches.features import with_cache
from mmret_tf.training.callbacks import EpochSeeds, KeepBest, RetrievalMetrics
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.optimizer import make_optimizer
from mmret_tf.training.projector import write_projector
from mmret_tf.training.reranking import has_first_stage, train_reranker
from mmret_tf.training.splits import Splits

PROJECTED = 500  # development images in TensorBoard's projector
SHARED = ("embedding_dim", "dropout", "members")  # settings of both towers


def build_model(
    config: TrainConfig,
    captions: Sequence[str],
    steps: int,
    modalities: Sequence[str] = ("image",),
) -> MultiEncoder:
    """A compiled encoder for these captions. Section 5.

    Args:
        config: The recipe.
        captions: Those of the training split alone; they decide the vocabulary.
        steps: Optimizer steps of the whole run, over which the learning rate falls.
        modalities: What is learned to belong to captions: "image", "audio" and "video".

    Returns:
        A `DualEncoder` for images, otherwise a `MultiEncoder`; its weights are random from
        `config.seed`, or pretrained. Its loss is `ContrastiveCosine`.

    Raises:
        ValueError: A setting that does not fit the backbone, or no captions.
        ConnectionError: The ImageNet weights could not be downloaded.

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
            model = _new_model(config, captions, modalities)
        finally:
            keras.config.set_dtype_policy(policy)
    if missing := [name for name in modalities if name not in model.towers]:
        raise ValueError(f"{config.initial_model} has no tower for {missing[0]}")
    images = model.towers.get("image")
    if images:
        images.set_regions(config.region_layers, config.region_pool)
    elif config.thaw_from or config.region_layers:
        raise ValueError("thaw_from and region_layers are for pictures, which are not learned here")
    if config.thaw_from:
        thaw(images.backbone, config.thaw_from)
    optimizer = make_optimizer(
        model.trainable_variables,
        config.learning_rate,
        steps,
        config.weight_decay,
        images.backbone.trainable_variables if config.thaw_from else (),
    )
    model.compile(optimizer, loss=ContrastiveCosine())
    return model


def _new_model(
    config: TrainConfig, captions: Sequence[str], modalities: Sequence[str]
) -> MultiEncoder:
    """An encoder with the towers of the config."""
    text = TextPreprocessor(config.max_tokens, config.sequence_length)
    text.adapt(captions)

    def given(*names: str) -> dict:
        return {name: getattr(config, name) for name in (*names, *SHARED)}

    network = config.backbone, None if config.weights == "none" else config.weights
    make: dict[str, Callable[[], Tower]] = {
        "image": lambda: image_tower(
            *network,
            scales=config.scales or None,
            **given("image_size", "feature_layers", "min_crop", "corner_crops"),
        ),
        "audio": lambda: audio_tower(**given("rate", "seconds")),
        "video": lambda: video_tower(
            *network, **given("frames", "image_size", "units", "min_crop")
        ),
    }
    towers = [make[name]() for name in modalities]
    towers.append(text_tower(text, **given("rnn", "word_dim", "units", "pooling", "bag_of_words")))
    return DualEncoder(*towers) if tuple(modalities) == ("image",) else MultiEncoder(towers)


def fit_here(
    encoder: MultiEncoder, batches: Callable[[tuple[int, int]], tf.data.Dataset], **options: Any
) -> None:
    """The loop of a single process: Keras' `fit`.

    Args:
        encoder: A compiled encoder.
        batches: Function of `Pairs.as_dataset`'s argument `shard`: the batches without end, from
            the first epoch that is left.
        options: Arguments of `keras.Model.fit`: `epochs`, `initial_epoch`, `steps_per_epoch`,
            `callbacks` and `verbose`.
    """
    encoder.fit(batches((0, 1)), **options)


def train(config: TrainConfig, run: str | os.PathLike, fit: Callable[..., None] = fit_here) -> dict:
    """Train, and leave `config.json`, `model.keras`, `embeddings/` and `report.json` in a folder;
    with `config.reranker` also `reranker.keras` and `parts/`. Section 5.

    `model.keras` is the model after the epoch that was best on the development split, and
    `history.csv` has a line an epoch. `tensorboard --logdir RUN` shows the curves, and images of
    the development split in the embedding projector. Ctrl-C ends the training and keeps the best
    model so far; the report says so. A run that was killed or interrupted resumes with the next
    epoch when it is started again with the same configuration.

    Args:
        config: The recipe.
        run: The folder to write; an older run in it is replaced file by file.
        fit: The loop; another one may spread each batch over several machines.

    Returns:
        The report, as in `report.json`: the configuration, what was set aside on loading, the
        history of the training, the metrics of the development split, and seconds.

    Raises:
        ValueError: Nothing usable in the data, or a setting that does not fit.
        ConnectionError: The ImageNet weights could not be downloaded.
        KeyboardInterrupt: Ctrl-C before the first epoch was completed.

    >>> config = TrainConfig(data="photos", epochs=10)  # a folder, see `load`
    >>> report = train(config, "runs/photos")  # doctest: +SKIP

    Then `report["development"]["t2i_R@10"]` is a share of the captions, 0 to 1.
    """
    started = time.monotonic()
    run, splits = Run(run), Splits.load(config)
    if config.reranker and splits.modalities != ["image"]:
        raise ValueError("a re-ranker reads pictures alone: leave out reranker, or audio and video")
    if not (config.reranker and has_first_stage(config, run)):
        _train_encoder(config, run, splits, fit, started)
    report = run.read_report()  # with lists where Python has tuples
    if config.reranker and not report["is_interrupted"]:
        train_reranker(config, run, splits)
        report = run.read_report()
    return report


def _train_encoder(
    config: TrainConfig, run: Run, splits: Splits, fit: Callable[..., None], started: float
) -> None:
    """Train the first stage, and write the run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.reranker.unlink(missing_ok=True)  # of another encoder
    history = killed_run(config, run)
    write_json(run.config, dataclasses.asdict(config))
    pairs_an_epoch = max(map(len, splits.training)) * config.captions_per_image
    steps = config.epochs * max(1, pairs_an_epoch // config.batch_size)
    captions = splits.captions()
    model = build_model(config, captions, steps, splits.modalities)
    encoder, splits = with_cache(config, run, model, splits)
    if encoder is not model:  # the heads are trained
        encoder.compile(model.optimizer, model.loss)
    checked = (part if part.is_checked else part.checked() for part in splits.development)
    splits = splits._replace(development=tuple(checked))
    keep = KeepBest(model, run.model, history)
    fit_started = time.monotonic()
    is_interrupted = _fit(config, run, encoder, keep, splits, fit)
    fit_seconds = time.monotonic() - fit_started

    model.load_weights(run.model)  # of the best epoch; the cached form shares its heads
    form = VariantEncoder(model, encoder.towers, "float32")
    gallery = splits.gallery if splits.gallery.is_checked else splits.gallery.checked()
    EmbeddingStore.export(form, gallery, run.embeddings)
    report = {
        "config": dataclasses.asdict(config),
        "train_images": sum(map(len, splits.training)),
        "development_images": sum(map(len, splits.development)),
        "quarantined": gallery.quarantined,
        "captions_cut": model.towers["text"].text_preprocessor.count_cut(captions),
        "epochs_completed": len(keep.epochs),
        "is_interrupted": is_interrupted,
        "best_epoch": keep.best_epoch,
        "history": keep.epochs,
        "seconds": {"fit": fit_seconds, "all": time.monotonic() - started},
    }
    if splits.development:
        embedded = [embed_pairs(form, part) for part in splits.development]
        report["development"] = measure_parts(embedded)
        images, _, pairs = embedded[0]
        labels = [captions[0] for captions in pairs.captions[:PROJECTED]]
        sources = pairs.first_sources[:PROJECTED]
        write_projector(run.logs, images[:PROJECTED], pairs.modalities[0], sources, labels)
    write_json(run.report, report)


def _fit(
    config: TrainConfig,
    run: Run,
    encoder: MultiEncoder,
    keep: KeepBest,
    splits: Splits,
    fit: Callable[..., None],
) -> bool:
    """Run the epochs that are left; return whether Ctrl-C ended them."""
    callbacks = [
        EpochSeeds(),
        keep,
        keras.callbacks.CSVLogger(run.history, append=bool(keep.epochs)),
        keras.callbacks.TensorBoard(run.logs, write_graph=False),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.BackupAndRestore(run.backup),
    ]
    if splits.development:
        callbacks.insert(1, RetrievalMetrics(*splits.development))
    make = functools.partial(
        joint_dataset,
        splits.training,
        encoder,
        config.batch_size,
        seed=config.seed,
        captions_per_image=config.captions_per_image,
    )
    whole = make()
    steps = len(whole)

    def batches(shard: tuple[int, int]) -> tf.data.Dataset:
        dataset = whole if shard == (0, 1) else make(shard=shard)
        # Repeated, one iterator serves all epochs: making one takes a second or two. What a killed
        # run has drawn is skipped, so that the rest is the same as without the kill.
        return dataset.repeat().skip(len(keep.epochs) * steps)

    try:
        fit(
            encoder,
            batches,
            epochs=config.epochs,
            initial_epoch=len(keep.epochs),
            steps_per_epoch=steps,
            callbacks=callbacks,
            verbose=1 if is_interactive() else 2,
        )
    except KeyboardInterrupt:
        if not keep.epochs:
            raise
        return True
    return False


def killed_run(config: TrainConfig, run: Run) -> list[dict[str, float]]:
    """The epochs that a killed run of this very configuration completed.

    Of any other run there are none, and its backup and logs are deleted: stale state is never
    resumed. Keras' backup is the truth, because it is written last.
    """
    try:
        epochs = json.loads((run.backup / "training_metadata.json").read_text("utf-8"))["epoch"]
        lines = run.history.read_text(encoding="utf-8").splitlines(keepends=True)[: 1 + epochs]
        if TrainConfig.load(run.config) == config and len(lines) == 1 + epochs:
            run.history.write_text("".join(lines), encoding="utf-8")  # without a repeated epoch
            return [
                {name: float(value) for name, value in row.items() if name != "epoch"}
                for row in csv.DictReader(lines)
            ]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no killed run, or one that was killed in its first epoch
    for stale in (run.backup, run.logs):
        shutil.rmtree(stale, ignore_errors=True)
    return []

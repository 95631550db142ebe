"""Training of the re-ranker (重排序器的训练): batches of what the first stage confuses.

A random batch is easy: its pictures have little in common. The first stage has solved that. The
second stage learns from batches of neighbours (难负样本挖掘), each of which is a hard negative of
the others.
"""

import dataclasses
import time
from typing import Any

import keras
import numpy as np

from mmret_tf._files import replaced_file, write_json
from mmret_tf.data.pairs import Pairs
from mmret_tf.data.progress import is_interactive
from mmret_tf.evaluation.evaluator import embed_pairs, measure
from mmret_tf.evaluation.second_stage import SecondStage, choose_weight
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage.parts import StoredParts
from mmret_tf.training.caches.features import with_cache
from mmret_tf.training.caches.regions import RegionCache
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.optimizer import make_optimizer
from mmret_tf.training.splits import Splits

# Number of rows that are neighbours of each other; a batch holds several such groups.
GROUP = 8

# Share of the rows among which the neighbours are sought, drawn anew for each group: without it
# the same few rows would be together in each epoch.
SOUGHT = 0.5


# Settings that the first stage does not depend on.
OF_SECOND_STAGE = ("reranker", "reranker_epochs", "region_layers", "region_pool", "region_views")


def order_of_neighbours(embeddings: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An order of all rows in which neighbours stand together, in groups of `GROUP`.

    Args:
        embeddings: Those of the first stage, `[n, dim]`, unit rows.
        random: Decides the groups and their order.

    Returns:
        Row numbers, `[n]`.

    >>> corners = np.repeat(np.eye(2), GROUP, axis=0)  # two kinds of pictures
    >>> order = order_of_neighbours(corners, np.random.default_rng(0))
    >>> sorted(order.tolist()) == list(range(16))
    True
    """
    left = np.ones(len(embeddings), bool)
    groups = []
    for row in random.permutation(len(embeddings)):
        if not left[row]:
            continue
        left[row] = False
        others = np.flatnonzero(left)
        if len(others) >= 2 * GROUP / SOUGHT:
            others = others[random.random(len(others)) < SOUGHT]
        count = min(GROUP - 1, len(others))
        cosines = embeddings[others] @ embeddings[row]
        nearest = others[np.argsort(-cosines, kind="stable")[:count]]
        left[nearest] = False
        groups.append([row, *nearest])
    return np.concatenate([groups[number] for number in random.permutation(len(groups))])


def fit_reranker(
    reranker: Reranker,
    pairs: Pairs,
    embeddings: np.ndarray,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> keras.callbacks.History:
    """Train a re-ranker on batches of neighbours. Section 3.1(3).

    Args:
        reranker: A new one. Its cached form (see `RegionCache`) needs no backbone in each epoch.
        pairs: Those that its encoder was trained on, for a cached form with cached sources.
        embeddings: Those of the pairs' first sources in the first stage, `[n, dim]`.
        epochs: Each shows every row once, with one of its captions.
        batch_size: Number of pairs in a batch; each is compared with all others.
        learning_rate: The highest; see `TrainConfig`.
        seed: Of the batches.
        options: As for `keras.Model.fit`.

    Returns:
        What `keras.Model.fit` returns.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=8), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))  # trained, in earnest
    >>> embeddings, reranker = model.encode("image", pairs.first_sources), mm.Reranker(model, dim=8)
    >>> history = fit_reranker(reranker, pairs, embeddings, epochs=2, verbose=0)
    >>> len(history.history["loss"])
    2
    """
    random = np.random.default_rng(seed)
    dataset = pairs.as_dataset(
        reranker.encoder,
        batch_size,
        training=True,
        seed=seed,
        order=lambda: order_of_neighbours(embeddings, random),
    )
    steps, regular = len(dataset), {"weight_decay": 1e-2, "global_clipnorm": 2.0}
    variables = reranker.trainable_variables
    reranker.compile(make_optimizer(variables, learning_rate, epochs * steps, **regular))
    options |= {"epochs": epochs, "steps_per_epoch": steps, "shuffle": False}
    return reranker.fit(dataset.repeat(), **options)


def has_first_stage(config: TrainConfig, run: Run) -> bool:
    """Whether a run of this configuration lacks nothing but the second stage, or has another one.

    A complete run of it lacks nothing: it is trained again from the start, as any other.

    Args:
        config: The recipe.
        run: A folder, perhaps of an older run.
    """
    report = run.read_report()
    if not report or not run.model.is_file():
        return False
    if run.backup.exists():  # a later training of the first stage was killed or interrupted
        return False
    if "reranked" in report and TrainConfig(**report["config"]) == config:
        return False
    of_second = {name: getattr(config, name) for name in OF_SECOND_STAGE}
    return TrainConfig(**report["config"] | of_second) == config


def train_reranker(config: TrainConfig, run: Run, splits: Splits) -> None:
    """Train the second stage of a run: `reranker.keras`, `parts/`, and "reranked" in the report.

    Args:
        config: The recipe.
        run: Its first stage is trained.
        splits: Those of the configuration.

    Raises:
        ValueError: The model has no regions or words.
    """
    started = time.monotonic()
    keras.utils.set_random_seed(config.seed)
    model = run.load_model()
    model.image_tower.set_regions(config.region_layers, config.region_pool)
    splits = splits.checked()
    encoder, cached = with_cache(config, run, model, splits)
    embeddings = encoder.encode("image", cached.training[0].first_sources)
    evaluated = [embed_pairs(encoder, part) for part in cached.development[:1]]
    reranker = Reranker(model)
    cache = RegionCache(
        model.image_tower,
        splits.all_sources("image"),
        run.features / "regions",
        splits.training[0].first_sources,
        config.region_views,
    )
    fast, splits = cache.reranker(reranker), splits.each(cache.cached)
    verbose = 1 if is_interactive() else 2
    epochs, seed = config.reranker_epochs, config.seed
    fit_reranker(fast, splits.training[0], embeddings, epochs, seed=seed, verbose=verbose)
    report = run.read_report() | {"config": dataclasses.asdict(config)}
    reranked = {}
    for images, texts, items in evaluated:
        stage = SecondStage(fast, images, texts, splits.development[0])
        choose_weight(stage)
        reranked = measure(images, texts, items, rerank=stage)
    with replaced_file(run.reranker) as file:
        reranker.save(file)
    StoredParts.export(fast, splits.gallery, run.parts)
    report["seconds"]["reranker"] = time.monotonic() - started
    write_json(run.report, report | {"reranked": reranked})

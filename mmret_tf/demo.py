"""The whole road in one call: drawn scenes, training, unseen scenes, index, queries, a picture."""

import os
import time

from mmret_tf._files import write_json
from mmret_tf.data.loading import load_pairs
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.evaluator import evaluate
from mmret_tf.models.dual_encoder import load_model
from mmret_tf.ranking.gallery import draw_gallery
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.searcher import Searcher
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.trainer import train

TRAIN_SCENES = 2500
TEST_SCENES = 500


def run_demo(run: str | os.PathLike, epochs: int, seed: int) -> dict:
    """Train ResNet50 and an LSTM on scenes from scratch, and search scenes never seen.

    The test scenes show combinations of shapes, colours, sizes and relations that occur in no
    training scene. Leaves the model, the index of the test scenes, `gallery.png` and `report.json`.

    Args:
        run: The folder to write.
        epochs: Passes over 2,500 training scenes.
        seed: Of weights, order and scenes.

    Returns:
        The report: the metrics over the test scenes, "english" and "chinese" apart, the queries
        that were drawn, the report of the training, and seconds.
    """
    started = time.monotonic()
    run = Run(run)
    config = TrainConfig(
        data="scenes",
        scenes=TRAIN_SCENES,
        weights="none",
        image_size=48,
        embedding_dim=256,
        word_dim=128,
        units=256,
        bag_of_words=False,
        captions_per_image=1,
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-3,
        dropout=0.0,
        weight_decay=0.0,
        min_crop=1.0,  # captions name every object, and a crop would cut some off
        seed=seed,
    )
    training = train(config, run.folder)
    model = load_model(run.model)
    pairs = load_pairs("scenes", "test", TEST_SCENES, seed)
    EmbeddingStore.export(model, pairs, run.embeddings)
    run.build_index()
    report = evaluate(model, pairs)
    report["queries"] = _draw_queries(run, run.open_searcher(), pairs)
    report["training"] = training
    report["seconds"] = time.monotonic() - started
    write_json(run.report, report)
    return report


def _draw_queries(run: Run, searcher: Searcher, pairs: Pairs) -> list[dict]:
    """An English and a Chinese caption of each of two scenes, then a picture as the query."""
    chosen = [(row, caption) for row in (0, 1) for caption in (0, -1)]
    texts = [pairs.captions[row][caption] for row, caption in chosen]
    rows = [(text, searcher.search(text=text, k=8)) for text in texts]
    by_image = searcher.search(image=pairs.image_paths[2], k=8)
    rows.append((f"the picture {pairs.ids[2]}", by_image))
    right_ids = [pairs.ids[row] for row, _ in chosen] + [pairs.ids[2]]
    draw_gallery(rows, run.gallery, right_ids)
    return [
        {"query": title, "right": right, "found": [result.id for result in results]}
        for (title, results), right in zip(rows, right_ids, strict=True)
    ]

"""The whole road in one call: drawn scenes, training, unseen scenes, index, queries, a picture."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mmret_tf.config import TrainConfig
from mmret_tf.datasets import load_pairs
from mmret_tf.dual_encoder import load_model
from mmret_tf.embeddings import EmbeddingStore
from mmret_tf.index import build_index
from mmret_tf.measuring import evaluate
from mmret_tf.searcher import Searcher, draw_gallery
from mmret_tf.training import train, write_json

TRAIN_SCENES = 2500
TEST_SCENES = 500


def run_demo(run: str | os.PathLike, epochs: int, seed: int) -> dict:
    """Train ResNet50 and an LSTM on scenes from scratch, and search scenes never seen.

    The test scenes show combinations of shapes, colours, sizes and relations that occur in no
    training scene. Leaves the model, the index of the test scenes, `gallery.png` and `report.json`.

    Args:
        run: the folder to write.
        epochs: passes over 2,500 training scenes.
        seed: of weights, order and scenes.

    Returns:
        The report: the metrics over the test scenes, "english" and "chinese" apart, the queries
        that were drawn, the report of the training, and seconds.
    """
    started = time.monotonic()
    run = Path(run)
    config = TrainConfig(
        data="scenes",
        scenes=TRAIN_SCENES,
        weights="none",
        image_size=48,
        embedding_dim=256,
        word_dim=128,
        units=256,
        pooling="max",
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
    training = train(config, run)

    model = load_model(run / "model.keras")
    pairs = load_pairs("scenes", "test", TEST_SCENES, seed)
    store = EmbeddingStore.export(model, pairs, run / "embeddings")
    attributes = [item["attributes"] for item in store.items]
    index = build_index(store.embeddings, store.ids, attributes=attributes)
    index.save(run / "index")
    searcher = Searcher(model, index, store.items)

    # One English and one Chinese caption of each of two scenes, then a picture as the query.
    chosen = [(row, caption) for row in (0, 1) for caption in (0, -1)]
    queries = [(pairs.captions[row][caption], pairs.ids[row]) for row, caption in chosen]
    rows = [(text, searcher.search(text=text, k=8)) for text, _ in queries]
    by_image = searcher.search(image=pairs.image_paths[2], k=8)
    rows.append((f"the picture {pairs.ids[2]}", by_image))
    right_ids = [right for _, right in queries] + [pairs.ids[2]]
    draw_gallery(rows, run / "gallery.png", right_ids)

    report = evaluate(model, pairs)
    report["queries"] = [
        {"query": title, "right": right, "found": [result.id for result in results]}
        for (title, results), right in zip(rows, right_ids, strict=True)
    ]
    report["training"] = training
    report["seconds"] = time.monotonic() - started
    write_json(run / "report.json", report)
    return report

"""What is a second stage worth on scenes where the order of words decides, and what does it cost?

    python tests/benchmarks/reranking.py --run runs/demo

Trains the demo, unless the run is there, and a re-ranker on the same scenes. The gallery is that of
unseen scenes with a distractor for each that has two or three objects: the first two change places.
Queries are all captions of the scenes themselves.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import mmret_tf as mm
from mmret_tf._files import write_json
from mmret_tf.data.drawn.scenes import Scene, draw_scenes
from mmret_tf.data.pairs import Pairs
from mmret_tf.demo import run_demo
from mmret_tf.ranking import Run
from mmret_tf.training import fit_reranker
from mmret_tf.training.caches.regions import RegionCache

TIMED = 100


def with_distractors(scenes: list[Scene], folder: Path) -> Pairs:
    """The scenes and their distractors; only the scenes have captions that are queries."""
    ids, images, captions = [], [], []
    for scene in scenes:
        swapped = dataclasses.replace(
            scene, id=f"{scene.id}-swapped", objects=scene.objects[1::-1] + scene.objects[2:]
        )
        for each in [scene, swapped] if scene.relation else [scene]:
            each.draw().save(folder / f"{each.id}.png")
            ids.append(each.id)
            images.append([folder / f"{each.id}.png"])
            captions.append(list(scene.captions))
    return Pairs(ids, {"image": images, "text": captions})


def recall_at_1(searcher: mm.Searcher, queries: list[tuple[str, str]]) -> float:
    answers = searcher.search_batch([{"text": text, "k": 1} for text, _ in queries])
    pairs = zip(answers, queries, strict=True)
    return float(np.mean([found[0].id == right for found, (_, right) in pairs]))


def milliseconds(searcher: mm.Searcher, queries: list[tuple[str, str]]) -> float:
    """Median time of a query."""
    seconds = []
    for text, _ in queries[: TIMED + 5]:
        started = time.perf_counter()
        searcher.search(text=text, k=10)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[5:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--epochs", type=int, default=20, help="of the re-ranker")
    parser.add_argument("--scenes", type=int, default=500, help="without distractors")
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    run = Run(options.run)
    if not run.model.is_file():
        run_demo(run.folder, epochs=2, seed=0)
    keras.utils.set_random_seed(0)
    model, training = run.load_model(), mm.load_pairs("scenes", "train", 2500)
    reranker = mm.Reranker(model)
    started = time.monotonic()
    embeddings = model.encode("image", training.first_sources)
    with tempfile.TemporaryDirectory() as temporary:
        cache = RegionCache(model.image_tower, training.first_sources, temporary)
        cached = cache.cached(training)
        fit_reranker(cache.reranker(reranker), cached, embeddings, options.epochs, verbose=2)
    report = {"training s": time.monotonic() - started}
    development = mm.load_pairs("scenes", "dev", 200)
    images, texts, _ = mm.evaluation.embed_pairs(model, development)
    stage = mm.evaluation.SecondStage(reranker, images, texts, development)
    report["sums of recalls by weight"] = mm.evaluation.choose_weight(stage)
    with tempfile.TemporaryDirectory() as temporary:
        gallery = with_distractors(draw_scenes("test", options.scenes), Path(temporary))
        queries = [
            (caption, key)
            for key, captions in zip(gallery.ids, gallery.captions, strict=True)
            if not key.endswith("-swapped")
            for caption in captions
        ]
        index = mm.BruteForceIndex.build(model.encode_items(gallery.sources), gallery.ids)
        for name, second in (("one stage", None), ("two stages", reranker)):
            searcher = mm.Searcher(model, index, gallery.records(), reranker=second)
            report[name] = {
                "R@1": recall_at_1(searcher, queries),
                "median ms": milliseconds(searcher, queries),
            }
    for name, each in report.items():
        print(f"{name}: {each}")
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()

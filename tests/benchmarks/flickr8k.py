"""Train a recipe on Flickr8k, and compare its recall with published results.

    python tests/benchmarks/flickr8k.py --data flickr8k --backbone efficientnet_lite0.keras
    python tests/benchmarks/flickr8k.py --data flickr8k --backbone efficientnet_lite2.keras \
        --config data/flickr8k_two_stage.json
    python tests/benchmarks/flickr8k.py --data flickr8k --backbone efficientnet_lite0.keras \
        --seeds 1 --vary rnn=gru --vary "pooling=last bag_of_words=false"

Each trains three models, from three seeds, and gives the median of each recall on the development
split: of the plain recipe, of another one in data/, and of the recipe with other settings of
`TrainConfig`, a variant each; this made the tables in data/flickr8k.md. A recipe with a re-ranker
has rows for both stages, and the time of a query. `--query-bank` adds rows in which a bank of
queries corrects the scores. Every run is kept, and is not trained again.

The first run computes the features of the frozen backbone, and its time includes that; the others
reuse them.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import mmret_tf as mm
from mmret_tf._files import write_json
from mmret_tf.evaluation import embed_pairs
from mmret_tf.evaluation.metrics import rank_all
from mmret_tf.ranking import EmbeddingStore, Run
from mmret_tf.training import train

RECALLS = [f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]

TIMED = 100  # queries
BANK_SHARPNESS = 20  # of the inverted softmax

RECIPE = Path(__file__).parents[2] / "data" / "flickr8k.json"
# What decides the features of a frozen backbone.
OF_FEATURES = (
    "data",
    "backbone",
    "image_size",
    "feature_layers",
    "scales",
    "feature_views",
    "min_crop",
    "corner_crops",
)

# Recall in per cent on Flickr8k's test split (1,000 images, five captions each), R@1, R@5 and R@10,
# image to text and text to image: one vector an image and one a sentence, from a CNN that knows
# ImageNet.
PUBLISHED = {
    "UVS 2014, VGG + LSTM": (18.0, 40.9, 55.0, 12.5, 37.0, 51.5),
    "m-CNN 2015, VGG, ensemble": (24.8, 53.7, 67.1, 20.3, 47.6, 61.7),
    "ITMeetsAL 2019, MobileNet": (30.9, 58.6, 70.8),
    "FV 2015, VGG + Fisher vectors": (31.0, 59.3, 73.7, 21.2, 50.0, 64.8),
    "MFM, VGG": (35.6, 67.0, 78.6, 28.4, 58.5, 72.3),
    "NAA, ResNet": (37.2, 68.1, 79.1, 27.7, 59.6, 71.8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Flickr8k as it is distributed")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--config", type=Path, default=RECIPE, help="the recipe")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vary", action="append", metavar="NAME=VALUE ...", help="of TrainConfig")
    parser.add_argument("--query-bank", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/flickr8k"))
    options = parser.parse_args()

    pairs = mm.load_pairs(options.data, options.split)
    bank = mm.load_pairs(options.data, "train") if options.query_bank else None
    recipe = dataclasses.replace(
        mm.TrainConfig.load(options.config), data=options.data, backbone=options.backbone
    )
    results: dict[str, list[dict]] = {}
    for variant in options.vary or [""]:
        changed = dataclasses.replace(recipe, **read_settings(variant))
        name = variant or options.config.stem
        for seed in range(options.seeds):
            run = Run(options.runs / name / str(seed))
            report = finished_run(dataclasses.replace(changed, seed=seed), run, options.runs)
            for stage, metrics in measured(run, report, options.split, pairs, bank).items():
                results.setdefault(f"{name}{stage}", []).append(metrics)
    write_json(options.runs / f"{options.split}.json", results)

    print(
        f"{processor()}, {os.cpu_count()} cores; {Path(options.backbone).name}, frozen; "
        f"{options.split} split, {len(pairs)} images"
    )
    table = Table("Recall in %", *RECALLS, "sum", "best epoch", "minutes", "ms a query")
    for variant, runs in results.items():
        for seed, metrics in enumerate(runs):
            others = [
                metrics.get("epoch", ""),
                *map(decimal, (metrics.get("minutes"), metrics.get("ms"))),
            ]
            table.add_row(f"{variant}, seed {seed}", *cells(metrics), *others)
        if len(runs) > 1:
            median = {name: float(np.median([run[name] for run in runs])) for name in RECALLS}
            table.add_row(f"{variant}, median", *cells(median), style="bold")
    for method, recalls in PUBLISHED.items():
        table.add_row(f"published, test split: {method}", *map(decimal, recalls))
    Console(width=150).print(table)


def measured(
    run: Run, report: dict, split: str, pairs: mm.data.Pairs, bank: mm.data.Pairs | None
) -> dict:
    """Metrics of each stage of a run, by what its row is called beside the recipe's name."""
    seconds, found = report["seconds"], {"": report["development"]}
    if "reranked" in report:
        found[", two stages"] = report["reranked"]
    if split != "dev":
        model = run.load_model()
        found[""] = mm.evaluate(model, pairs)
        if "reranked" in report:
            found[", two stages"] = mm.evaluate(model, pairs, reranker=run.load_reranker())
    found[""] |= {"minutes": seconds["all"] / 60, "epoch": str(report["best_epoch"])}
    if "reranked" in report:
        found[", two stages"]["minutes"] = seconds["reranker"] / 60
        for stage, second in (("", None), (", two stages", run.load_reranker())):
            found[stage]["ms"] = milliseconds(run, second, pairs)
    if bank is not None:
        found |= with_query_bank(run, pairs, bank)
    return found


def milliseconds(run: Run, reranker: mm.Reranker | None, pairs: mm.data.Pairs) -> float:
    """Median time of a text query in the gallery of a run."""
    if not run.index.exists():
        run.build_index()
    searcher, seconds = run.open_searcher(reranker=reranker), []
    for caption in pairs.all_captions()[: TIMED + 5]:
        started = time.perf_counter()
        searcher.search(text=caption, k=10)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[5:]))


def with_query_bank(run: Run, pairs: mm.data.Pairs, bank: mm.data.Pairs) -> dict:
    """As `measured`, but each score is divided by what the training split gives to the candidate.

    What is near to all queries, a hub, is found less often: an inverted softmax (arXiv 1702.03859).
    """
    model, stored = run.load_model(), EmbeddingStore.open(run.embeddings)
    row_of = {key: row for row, key in enumerate(stored.ids)}
    of_bank = stored.rows([row_of[key] for key in bank.ids])
    images, texts, items = embed_pairs(model, pairs)
    less_images = hubness(images @ model.encode_texts(bank.all_captions()).T)
    less_texts = hubness(texts @ of_bank.T)

    def ranked(scores, **options):
        def corrected(rows, captions):  # what is taken from the query's score is a constant
            return scores(rows, captions) - less_images[rows] - less_texts[captions]

        return rank_all(images, texts, items.caption_to_image(), corrected, **options).metrics()

    def cosines(rows, captions):
        return np.sum(images[rows] * texts[captions], axis=1)

    found = {", with a bank of queries": ranked(cosines, rerank_k=len(texts))}
    if run.reranker.is_file():
        stage = mm.evaluation.SecondStage(run.load_reranker(), images, texts, pairs)
        found[", two stages, with a bank of queries"] = ranked(stage)
    return found


def hubness(cosines: np.ndarray) -> np.ndarray:
    """Logarithm of the sum over the bank, `[candidates]`."""
    return np.log(np.exp(BANK_SHARPNESS * cosines).sum(axis=1)) / BANK_SHARPNESS


def read_settings(variant: str) -> dict:
    """`rnn=gru epochs=3` as settings; values as in JSON, or else words."""
    settings = {}
    for part in variant.split():
        name, _, value = part.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def finished_run(config: mm.TrainConfig, run: Run, runs: Path) -> dict:
    """The report of a run, which is trained unless it is there."""
    report = run.read_report()
    if report and mm.TrainConfig(**report["config"]) == config:
        return report
    for other in runs.glob("*/*/config.json"):  # with the same features
        found = mm.TrainConfig.load(other)
        if all(getattr(found, name) == getattr(config, name) for name in OF_FEATURES):
            cache = other.parent / "features"
            if cache.is_dir() and not run.features.is_dir():
                shutil.copytree(cache, run.features, copy_function=os.link)
    return train(config, run.folder)


def cells(metrics: dict) -> list[str]:
    recalls = [100 * metrics[name] for name in RECALLS]
    return [decimal(each) for each in (*recalls, sum(recalls))]


def decimal(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

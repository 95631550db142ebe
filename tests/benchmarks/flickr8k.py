"""Train the recipe on Flickr8k, and compare its recall with published results.

    python tests/benchmarks/flickr8k.py --data flickr8k --backbone efficientnet_lite0.keras
    python tests/benchmarks/flickr8k.py --data flickr8k --backbone efficientnet_lite0.keras \
        --seeds 1 --vary rnn=gru --vary "pooling=last bag_of_words=false"

The first trains three models, from three seeds, and gives the median of each recall on the
development split. `--vary` trains the recipe with other settings of `TrainConfig`, a variant each:
this made the tables in data/flickr8k.md. Every run is kept, and is not trained again.

The first run computes the features of the frozen backbone, and its time includes that; the others
reuse them.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import mmret_tf as mm
from mmret_tf._files import write_json
from mmret_tf.training import train

RECALLS = [f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]

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
    parser.add_argument("--runs", type=Path, default=Path("runs/flickr8k"))
    options = parser.parse_args()

    pairs = mm.load_pairs(options.data, options.split)
    recipe = dataclasses.replace(
        mm.TrainConfig.load(options.config), data=options.data, backbone=options.backbone
    )
    results = {}
    for variant in options.vary or [""]:
        changed = dataclasses.replace(recipe, **read_settings(variant))
        for seed in range(options.seeds):
            run = options.runs / (variant or "recipe") / str(seed)
            report = finished_run(dataclasses.replace(changed, seed=seed), run, options.runs)
            metrics = report["development"]
            if options.split != "dev":
                metrics = mm.evaluate(mm.load_model(run / "model.keras"), pairs)
            results.setdefault(variant or "the recipe", []).append(metrics | seconds_of(report))
    write_json(options.runs / f"{options.split}.json", results)

    print(
        f"{processor()}, {os.cpu_count()} cores; {Path(options.backbone).name}, frozen; "
        f"{options.split} split, {len(pairs)} images"
    )
    table = Table("Recall in %", *RECALLS, "sum", "best epoch", "minutes")
    medians = {}
    for variant, runs in results.items():
        for seed, metrics in enumerate(runs):
            minutes = f"{metrics['seconds'] / 60:.1f}"
            table.add_row(f"{variant}, seed {seed}", *cells(metrics), metrics["epoch"], minutes)
        medians[variant] = {name: float(np.median([run[name] for run in runs])) for name in RECALLS}
        if len(runs) > 1:
            table.add_row(f"{variant}, median", *cells(medians[variant]), style="bold")
    for method, recalls in PUBLISHED.items():
        table.add_row(f"published, test split: {method}", *(f"{recall:.1f}" for recall in recalls))
    Console(width=140).print(table)


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


def finished_run(config: mm.TrainConfig, run: Path, runs: Path) -> dict:
    """The report of a run, which is trained unless it is there."""
    try:
        if mm.TrainConfig.load(run / "config.json") == config:
            return json.loads((run / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    for other in runs.glob("*/*/config.json"):  # with the same features
        found = mm.TrainConfig.load(other)
        if all(getattr(found, name) == getattr(config, name) for name in OF_FEATURES):
            cache = other.parent / "features"
            if cache.is_dir() and not (run / "features").is_dir():
                shutil.copytree(cache, run / "features", copy_function=os.link)
    return train(config, run)


def seconds_of(report: dict) -> dict:
    return {"seconds": report["seconds"]["all"], "epoch": str(report["best_epoch"])}


def cells(metrics: dict) -> list[str]:
    recalls = [100 * metrics[name] for name in RECALLS]
    return [f"{recall:.1f}" for recall in recalls] + [f"{sum(recalls):.1f}"]


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

"""Commands that make and measure a model: demo, train, evaluate, compress."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

import mmret_tf as mm
from mmret_tf._checks import printable
from mmret_tf._files import write_json
from mmret_tf._tables import compression_table, metrics_table, metrics_tables
from mmret_tf.cli.common import (
    DEMO,
    Data,
    OneSplit,
    Rerank,
    RunFolder,
    app,
    build_index,
    console,
    given,
    with_settings,
)
from mmret_tf.training.config import FORM, TrainConfig


@app.command(epilog="Example: mmret demo --run runs/demo")
def demo(
    run: RunFolder = DEMO,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training scenes.")] = 2,
    seed: Annotated[int, typer.Option(help="Of weights, order and scenes.")] = 0,
) -> None:
    """Train ResNet50 + LSTM on drawn scenes, test on unseen ones, index, and query."""
    from mmret_tf.demo import run_demo

    report = run_demo(run, epochs, seed)
    console.print(metrics_table(report))
    console.print(f"Ranked results: {run / 'gallery.png'}   report: {run / 'report.json'}")
    console.print(f'Try: mmret search --run {run} "a large red circle above a small blue square"')


@app.command(epilog="Example: mmret train --data photos --weights imagenet --run runs/photos")
@with_settings()
def train(
    run: RunFolder,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings, as a run's config.json; options given here win."),
    ] = None,
    strategy: Annotated[
        Literal["mirrored", "multiworker"] | None,
        typer.Option(help="Share each batch between all GPUs, or between machines (TF_CONFIG)."),
    ] = None,
    **settings,
) -> None:
    """Train on captioned images, sounds or clips; leave model, embeddings, index and report in the
    run."""
    settings = given(settings)
    if config is None and "data" not in settings:
        raise ValueError("give --data, or --config with the settings of a run")
    base = TrainConfig() if config is None else TrainConfig.load(config)
    recipe = dataclasses.replace(base, **settings)
    if strategy is None:
        report = mm.train(recipe, run)
    else:
        report = mm.scale.distributed_train(recipe, run, strategy)
    if report is None:
        console.print(f"This worker has finished; the chief writes {run}.")
        return
    build_index(mm.ranking.Run(run))
    if report["captions_cut"]:
        console.print(
            f"{report['captions_cut']} training captions are longer than --sequence-length and "
            "were cut."
        )
    if report["is_interrupted"]:
        console.print(f"Interrupted: kept the model of epoch {report['best_epoch']}.")
    for place, reason in report["quarantined"]:
        console.print(printable(f"set aside: {place}: {reason}"))
    for table in metrics_tables(report.get("development", {})):
        console.print(table)
    if report.get("reranked"):
        console.print("With the second stage (--rerank):")
        console.print(metrics_table(report["reranked"]))
    console.print(f"Saved in {run}. Try: mmret search --run {run} QUERY")


@app.command(epilog="Example: mmret evaluate --run runs/photos --data photos --split test")
@with_settings(*FORM)
def evaluate(
    run: RunFolder,
    data: Data,
    split: OneSplit = None,
    folds: Annotated[
        int, typer.Option(min=1, help="Parts that are ranked apart and averaged: 5 for MS-COCO.")
    ] = 1,
    rerank: Rerank = False,
    plots: Annotated[
        bool, typer.Option("--plots", help="Also draw curves, similarities, recall and errors.")
    ] = False,
    **form,
) -> None:
    """Rank the images, or other files, and the captions of a collection against each other; write
    evaluation.json."""
    run = mm.ranking.Run(run)
    model, reranker = run.load_model(), run.load_reranker() if rerank else None
    parts = mm.evaluation.pairs_of(model, mm.load(data, split, **given(form)))
    if len(parts) > 1 and (rerank or plots):
        raise ValueError("--rerank and --plots need a model of two modalities")
    embedded = [mm.evaluation.embed_pairs(model, part) for part in parts]
    metrics = mm.evaluation.measure_parts(embedded, folds)
    for table in metrics_tables(metrics):
        console.print(table)
    images, texts, items = embedded[0]
    if reranker is not None:
        stage = mm.evaluation.SecondStage(reranker, images, texts, parts[0])
        metrics["reranked"] = mm.evaluation.measure(images, texts, items, folds, stage)
        console.print("With the second stage:")
        console.print(metrics_table(metrics["reranked"]))
    if plots:
        vocabulary = mm.evaluation.vocabulary_of(model)
        metrics["errors"] = mm.evaluation.analyse_errors(images, texts, items, vocabulary)
    write_json(run.evaluation, {"data": data, "split": split} | metrics)
    if plots:
        history = run.read_report().get("history", [])
        drawn = mm.evaluation.draw_evaluation(images, texts, items, run.plots, history)
        drawn += mm.evaluation.draw_errors(metrics["errors"], items, run.plots)
        for path in drawn:
            console.print(f"Drawn in {path}")


@app.command(epilog="Example: mmret compress --run runs/photos --data photos --split dev")
@with_settings(*FORM)
def compress(
    run: RunFolder,
    data: Data,
    split: OneSplit = None,
    precision: Annotated[Literal["int8", "float16"], typer.Option(help="Of the result.")] = "int8",
    **form,
) -> None:
    """Make a smaller, faster image tower, and report what it saves and costs on a collection."""
    run = mm.ranking.Run(run)
    pairs = mm.load_pairs(data, split, **given(form))
    compressed = mm.scale.compress_image_tower(run.load_model(), pairs.first_sources, precision)
    compressed.save(run.compressed)
    report = mm.scale.compression_report(compressed, pairs)
    write_json(run.compression, {"data": data, "split": split} | report)
    console.print(compression_table(report, precision))
    console.print(
        f"cosine between the embeddings: mean {report['cosine_mean']:.4f}, lowest "
        f"{report['cosine_min']:.4f}. Use it with mmret embed or search --compressed."
    )

"""The `mmret` command: train, evaluate, embed, index and search from the shell.

Each command imports what it needs when it runs, so that `--help` does not wait for TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmret_tf.doctor import examine, keras_problem
from mmret_tf.published import published_results
from mmret_tf.tables import compression_table, metrics_table, published_table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Multimodal (image-text) retrieval: pictures with captions in, ranked results out.",
)
console = Console()


class Split(str, Enum):
    """The names of the splits, for the options that take one."""

    train = "train"
    dev = "dev"
    test = "test"


class Precision(str, Enum):
    """The forms of a compressed image tower."""

    int8 = "int8"
    float16 = "float16"


class Dtype(str, Enum):
    """The forms in which embeddings are stored."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


class Engine(str, Enum):
    """What searches the gallery of an export."""

    brute_force = "brute_force"
    scann = "scann"
    none = "none"


Run = Annotated[Path, typer.Option(help="Folder of the run.")]
Data = Annotated[str, typer.Option(help='A folder or file of images and captions, or "scenes".')]
OneSplit = Annotated[Split | None, typer.Option(help="One split; by default all images.")]
Compressed = Annotated[
    bool, typer.Option("--compressed", help="Use the image tower that `mmret compress` made.")
]
Seed = Annotated[int, typer.Option(help="Of weights, order, crops and scenes.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands. `--debug` is read by `main`."""


@app.command(epilog="Example: mmret demo --run runs/demo")
def demo(
    run: Run = Path("runs/demo"),
    epochs: Epochs = 2,
    seed: Seed = 0,
) -> None:
    """Train ResNet50 + LSTM on drawn scenes, test on unseen ones, index, and query."""
    from mmret_tf.demo import run_demo

    report = run_demo(run, epochs, seed)
    console.print(metrics_table(report))
    console.print(f"Ranked results: {run / 'gallery.png'}   report: {run / 'report.json'}")
    console.print(f'Try: mmret search --run {run} "a large red circle above a small blue square"')


@app.command(epilog="Example: mmret train --data photos --weights imagenet --run runs/photos")
def train(
    context: typer.Context,
    run: Run,
    data: Annotated[
        str | None, typer.Option(help='A folder or file of images and captions, or "scenes".')
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings, as a run's config.json; options given here win."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="A keras.applications name, SmallCNN, or a .keras file.")
    ] = "ResNet50",
    weights: Annotated[
        str, typer.Option(help='Of a named backbone: "imagenet", "none" or a file.')
    ] = "imagenet",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the pictures, pixels.")] = 224,
    rnn: Annotated[str, typer.Option(help="lstm, gru, bilstm or transformer.")] = "lstm",
    embedding_dim: Annotated[int, typer.Option(min=1, help="Width of the embedding.")] = 512,
    epochs: Epochs = 30,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs a step, two of each image.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="The highest, of AdamW.")] = 2e-3,
    scenes: Annotated[int, typer.Option(min=1, help='Training scenes, for "scenes".')] = 2000,
    seed: Seed = 0,
) -> None:
    """Train on captioned images; leave model, embeddings, index and report in the run."""
    from mmret_tf.config import TrainConfig
    from mmret_tf.training import train as run_training

    if data is None and config is None:
        raise ValueError("give --data, or --config with the settings of a run")
    names = {field.name for field in dataclasses.fields(TrainConfig)} & set(context.params)
    given = {
        name: context.params[name]
        for name in names
        if context.get_parameter_source(name).name != "DEFAULT"
    }
    settings = TrainConfig() if config is None else TrainConfig.load(config)
    report = run_training(dataclasses.replace(settings, **given), run)
    build_run_index(run)
    if report["is_interrupted"]:
        console.print(f"Interrupted: kept the model of epoch {report['best_epoch']}.")
    for place, reason in report["quarantined"]:
        console.print(f"put aside: {place}: {reason}", markup=False, highlight=False)
    if "development" in report:
        console.print(metrics_table(report["development"]))
    console.print(f"Saved in {run}. Try: mmret search --run {run} QUERY")


@app.command(epilog="Example: mmret evaluate --run runs/photos --data photos --split test")
def evaluate(
    run: Run,
    data: Data,
    split: OneSplit = None,
    folds: Annotated[
        int, typer.Option(min=1, help="Parts that are ranked apart and averaged: 5 for MS-COCO.")
    ] = 1,
    plots: Annotated[
        bool, typer.Option("--plots", help="Also draw curves, similarities, recall and answers.")
    ] = False,
) -> None:
    """Rank the images and captions of a collection against each other; write evaluation.json."""
    from mmret_tf.datasets import load_pairs
    from mmret_tf.dual_encoder import load_model
    from mmret_tf.measuring import embed_pairs, measure
    from mmret_tf.plots import draw_evaluation
    from mmret_tf.training import write_json

    model = load_model(run / "model.keras")
    images, texts, pairs = embed_pairs(model, load_pairs(data, split and split.value))
    metrics = measure(images, texts, pairs, folds)
    write_json(run / "evaluation.json", {"data": data, "split": split and split.value} | metrics)
    console.print(metrics_table(metrics))
    if results := published_results(pairs.ids):
        console.print(published_table(metrics, results))
    if plots:
        report = run / "report.json"
        saved = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        history = saved.get("history", [])
        for path in draw_evaluation(images, texts, pairs, run / "plots", history):
            console.print(f"Drawn in {path}")


@app.command(epilog="Example: mmret compress --run runs/photos --data photos --split dev")
def compress(
    run: Run,
    data: Data,
    split: OneSplit = None,
    precision: Annotated[Precision, typer.Option(help="Of the result.")] = Precision.int8,
) -> None:
    """Make a smaller, faster image tower, and report what it saves and costs on a collection."""
    from mmret_tf.compression import compress_image_tower, compression_report
    from mmret_tf.datasets import load_pairs
    from mmret_tf.dual_encoder import load_model
    from mmret_tf.training import write_json

    model = load_model(run / "model.keras")
    pairs = load_pairs(data, split and split.value)
    tower = compress_image_tower(model, pairs.image_paths, precision.value)
    tower.save(run / "compressed")
    model.image_encoder = tower
    report = compression_report(model, pairs)
    write_json(run / "compression.json", {"data": data, "split": split and split.value} | report)
    console.print(compression_table(report, precision.value))
    console.print(
        f"cosine between the embeddings: mean {report['cosine_mean']:.4f}, lowest "
        f"{report['cosine_min']:.4f}. Use it with mmret embed or search --compressed."
    )


@app.command(epilog="Example: mmret embed --run runs/photos --data more_photos")
def embed(
    run: Run,
    data: Data,
    split: OneSplit = None,
    compressed: Compressed = False,
    dtype: Annotated[Dtype, typer.Option(help="In which embeddings are stored.")] = Dtype.float32,
) -> None:
    """Embed a collection with the run's model: the gallery that `index` and `search` use."""
    from mmret_tf.compression import CompressedImageTower, choose_image_encoder
    from mmret_tf.dual_encoder import load_model
    from mmret_tf.embeddings import EmbeddingStore
    from mmret_tf.items import load_items

    model = load_model(run / "model.keras")
    if compressed:
        model.image_encoder = CompressedImageTower.load(run / "compressed", model)
        form = model.image_encoder.name
    items = load_items(data, split and split.value)
    images = [path for paths in items.image_paths for path in paths]
    if images and not compressed:
        form = choose_image_encoder(model, images)
    if images:
        console.print(f"Image tower in {form}.")
    store = EmbeddingStore.export(model, items, run / "embeddings", dtype=dtype.value)
    if dtype is not Dtype.float32:
        console.print(
            f"Storing them in {dtype.value} costs {store.loss['mean']:.1e} of the cosine on "
            f"average, {store.loss['max']:.1e} at most."
        )
    console.print(f"{len(store.ids)} embeddings in {run / 'embeddings'}. Next: mmret index")


@app.command(epilog="Example: mmret index --run runs/photos")
def index(
    run: Run,
    recall_target: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of the true neighbours to find.")
    ] = 0.95,
) -> None:
    """Build the ScaNN index over the run's embeddings."""
    build_run_index(run, recall_target)


@app.command(epilog='Example: mmret search --run runs/photos "a dog running on the beach"')
def search(
    query: Annotated[str | None, typer.Argument(help="Words, in any trained language.")] = None,
    run: Run = Path("runs/demo"),
    image: Annotated[Path | None, typer.Option(help="A query picture.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="JSON: a condition on attributes, see README.")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="Also draw the results, as a PNG.")] = None,
    compressed: Compressed = False,
) -> None:
    """Rank the run's gallery for a text, an image (--image), or both."""
    from mmret_tf.searcher import Searcher, draw_gallery

    try:
        condition = None if where is None else json.loads(where)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--where must be JSON; got {where!r:.80}: {error}") from None
    results = Searcher.open(run, compressed).search(query, image, top, where=condition)
    for result in results:
        # Lines, not a table, which would cut paths in a narrow terminal.
        lines = [f"{result.rank:>3}  {result.score:.3f}  {result.item['image'] or result.id}"]
        lines += [" " * 12 + caption for caption in result.item["captions"]]
        for line in lines:
            # A collection is not trusted: no escape sequence of its captions reaches the terminal.
            print("".join(c if c.isprintable() else " " for c in line))
    if gallery is not None:
        draw_gallery([(query or str(image), results)], gallery)
        console.print(f"Drawn in {gallery}")


@app.command(epilog="Example: mmret export --run runs/photos --directory export/photos")
def export(
    run: Run = Path("runs/demo"),
    directory: Annotated[Path, typer.Option(help="The model's folder.")] = Path("export/mmret"),
    version: Annotated[int, typer.Option(min=1, help="Of the model; a new one each time.")] = 1,
    index: Annotated[Engine, typer.Option(help="What searches the gallery.")] = Engine.brute_force,
    top: Annotated[int, typer.Option(min=1, help="How many results a search gives.")] = 10,
) -> None:
    """Write a SavedModel for TensorFlow Serving: towers, preprocessing and gallery in one."""
    from mmret_tf.dual_encoder import load_model
    from mmret_tf.searcher import Searcher
    from mmret_tf.serving import docker_command, export_saved_model

    if index is Engine.none:
        source, engine = load_model(run / "model.keras"), None
    else:
        source, engine = Searcher.open(run), index.value
    folder = export_saved_model(source, directory, version, engine, top)
    print(f"Saved in {folder}. To serve it, with Docker:\n{docker_command(directory)}")
    if index is Engine.scann:
        print("This needs a server with ScaNN's ops in the place of tensorflow/serving.")


@app.command(epilog="Example: mmret doctor")
def doctor() -> None:
    """Say what is installed, and what of it does not fit together."""
    found, problems = examine()
    for name, value in found.items():
        console.print(f"{name:>14}  {value}", markup=False, highlight=False)
    for problem in problems:
        console.print(f"PROBLEM: {problem}", markup=False, highlight=False)
    if problems:
        raise typer.Exit(1)
    console.print("All of it fits together.")


def build_run_index(run: Path, recall_target: float = 0.95) -> None:
    """Index the embeddings of a run, and save the index there."""
    from mmret_tf.dual_encoder import load_model
    from mmret_tf.embeddings import EmbeddingStore
    from mmret_tf.index import build_index
    from mmret_tf.scann_engine import EXACT_BELOW, TUNED_QUERIES

    store = EmbeddingStore.open(run / "embeddings")
    captions = [caption for item in store.items for caption in item["captions"]]
    queries = None
    if captions and len(store.ids) >= EXACT_BELOW:  # below there is nothing to tune
        some = captions[:: -(-len(captions) // TUNED_QUERIES)]
        queries = load_model(run / "model.keras").encode_texts(some)
    built = build_index(
        store.embeddings,
        store.ids,
        recall_target,
        queries,
        attributes=[item["attributes"] for item in store.items],
        progress=lambda line: console.print(line, markup=False, highlight=False),
    )
    built.save(run / "index")
    stats = built.stats
    console.print(
        f"{type(built).__name__} of {len(built)} embeddings in {run / 'index'}: "
        f"{stats['mode']} search, recall {stats['recall']:.3f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command: 0 when all went well, 2 for a user's mistake, 130 for Ctrl-C.

    A mistake is told in one line on stderr; `mmret --debug COMMAND` shows the traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel("ERROR")
    warnings.showwarning = _one_line_warning
    try:
        if "doctor" not in arguments and (problem := keras_problem()):
            raise ValueError(problem)
        app(arguments, standalone_mode=True)
    except KeyboardInterrupt:
        print("mmret: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in arguments:
            raise
        message = " ".join(str(error).split())
        print(f"mmret: {message or type(error).__name__}", file=sys.stderr)
        sys.exit(2)


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"mmret: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()

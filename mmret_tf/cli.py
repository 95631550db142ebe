"""The `mmret` command: train, evaluate, embed, index and search from the shell.

Names of `mm` are imported on first use, so `--help` does not wait for TensorFlow.
"""

import dataclasses
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

import mmret_tf as mm
from mmret_tf._checks import printable
from mmret_tf._files import write_json
from mmret_tf._tables import compression_table, metrics_table
from mmret_tf.doctor import examine, keras_problem
from mmret_tf.training.config import FORM, TrainConfig, setting_help

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Multimodal (image-text) retrieval: pictures with captions in, ranked results out.",
)
console = Console(markup=False, highlight=False)

RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
Data = Annotated[str, typer.Option(help='A folder or file of images and captions, or "scenes".')]
OneSplit = Annotated[
    Literal["train", "dev", "test"] | None, typer.Option(help="One split; by default all images.")
]
Compressed = Annotated[
    bool, typer.Option("--compressed", help="Use the image tower that `mmret compress` made.")
]

DEMO = Path("runs/demo")


def with_settings(*names: str) -> Callable[[Callable], Callable]:
    """Give a command options for these settings of `TrainConfig`, by default for all, in place of
    its `**settings`."""
    # Typer takes no tuple of any length.
    lists = {tuple[int, ...]: list[int], tuple[str, ...]: list[str]}

    def decorate(command):
        signature = inspect.signature(command)
        *parameters, _ = signature.parameters.values()
        for field in dataclasses.fields(TrainConfig):
            if names and field.name not in names:
                continue
            default = field.default if field.default not in ((), "") else "none"
            help_text = f"{setting_help()[field.name]} Default: {default}"
            kind = Annotated[lists.get(field.type, field.type) | None, typer.Option(help=help_text)]
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
                )
            )
        command.__signature__ = signature.replace(parameters=parameters)
        return command

    return decorate


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given as options."""
    return {name: value for name, value in settings.items() if value not in (None, [])}


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option(help="Show tracebacks, and what TensorFlow and ScaNN log.")
    ] = False,
) -> None:
    """Options of all commands. `--debug` is read by `main`."""


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
    **settings,
) -> None:
    """Train on captioned images; leave model, embeddings, index and report in the run."""
    settings = given(settings)
    if config is None and "data" not in settings:
        raise ValueError("give --data, or --config with the settings of a run")
    base = TrainConfig() if config is None else TrainConfig.load(config)
    report = mm.train(dataclasses.replace(base, **settings), run)
    _build_index(mm.ranking.Run(run))
    if report["captions_cut"]:
        console.print(
            f"{report['captions_cut']} training captions are longer than --sequence-length and "
            "were cut."
        )
    if report["is_interrupted"]:
        console.print(f"Interrupted: kept the model of epoch {report['best_epoch']}.")
    for place, reason in report["quarantined"]:
        console.print(printable(f"set aside: {place}: {reason}"))
    if "development" in report:
        console.print(metrics_table(report["development"]))
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
    plots: Annotated[
        bool, typer.Option("--plots", help="Also draw curves, similarities, recall and answers.")
    ] = False,
    **form,
) -> None:
    """Rank the images and captions of a collection against each other; write evaluation.json."""
    run = mm.ranking.Run(run)
    pairs = mm.load_pairs(data, split, **given(form))
    images, texts, pairs = mm.evaluation.embed_pairs(run.load_model(), pairs)
    metrics = mm.evaluation.measure(images, texts, pairs, folds)
    write_json(run.evaluation, {"data": data, "split": split} | metrics)
    console.print(metrics_table(metrics))
    if plots:
        history = run.read_report().get("history", [])
        for path in mm.evaluation.draw_evaluation(images, texts, pairs, run.plots, history):
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


@app.command(epilog="Example: mmret embed --run runs/photos --data more_photos")
@with_settings(*FORM)
def embed(
    run: RunFolder,
    data: Data,
    split: OneSplit = None,
    compressed: Compressed = False,
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="Storage type of the embeddings.")
    ] = "float32",
    **form,
) -> None:
    """Embed a collection as the run's gallery. Run `mmret index` afterwards."""
    run = mm.ranking.Run(run)
    model = run.load_model()
    items = mm.load(data, split, **given(form))
    images = [source for each in items.sources.get("image", []) for source in each]
    encoder, precision = model, None
    if compressed:
        encoder = mm.scale.CompressedEncoder.load(run.compressed, model)
        precision = encoder.form
    elif images:
        encoder, precision = mm.scale.choose_encoder(model, images)
    if images:
        console.print(f"Image tower in {precision}.")
    store = mm.EmbeddingStore.export(encoder, items, run.embeddings, dtype)
    if dtype != "float32":
        console.print(
            f"Storing them in {dtype} costs {store.loss['mean']:.1e} of the cosine on "
            f"average, {store.loss['max']:.1e} at most."
        )
    console.print(f"{len(store.ids)} embeddings in {run.embeddings}. Next: mmret index")


@app.command(epilog="Example: mmret index --run runs/photos")
def index(
    run: RunFolder,
    recall_target: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of the true neighbours to find.")
    ] = 0.95,
) -> None:
    """Build the ScaNN index over the run's embeddings."""
    _build_index(mm.ranking.Run(run), recall_target)


@app.command(epilog='Example: mmret search --run runs/photos "a dog running on the beach"')
def search(
    query: Annotated[str | None, typer.Argument(help="Words, in any trained language.")] = None,
    run: RunFolder = DEMO,
    image: Annotated[Path | None, typer.Option(help="A query picture.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="JSON: a condition on attributes, see README.")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="Also draw the results, as a PNG.")] = None,
    compressed: Compressed = False,
) -> None:
    """Rank the run's gallery for a text, an image (--image), or both."""
    try:
        condition = None if where is None else json.loads(where)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--where must be JSON; got {where!r:.80}: {error}") from None
    run = mm.ranking.Run(run)
    encoder = None
    if compressed:
        encoder = mm.scale.CompressedEncoder.load(run.compressed, run.load_model())
    results = run.open_searcher(encoder).search(query, image, top, where=condition)
    for result in results:
        # Lines, not a table, which would cut paths in a narrow terminal.
        name = printable(str(result.item["image"] or result.id))
        print(f"{result.rank:>3}  {result.score:.3f}  {name}")
        for caption in result.item["captions"]:
            print(" " * 12 + printable(caption))
    if results.remark:
        print(results.remark)
    if gallery is not None:
        mm.ranking.draw_gallery([(query or str(image), results)], gallery)
        console.print(f"Drawn in {gallery}")


@app.command(epilog="Example: mmret export --run runs/photos --directory export/photos")
def export(
    run: RunFolder = DEMO,
    directory: Annotated[Path, typer.Option(help="The model's folder.")] = Path("export/mmret"),
    version: Annotated[int, typer.Option(min=1, help="Of the model; a new one each time.")] = 1,
    index: Annotated[
        Literal["brute_force", "scann", "none"], typer.Option(help="What searches the gallery.")
    ] = "brute_force",
    top: Annotated[int, typer.Option(min=1, help="Number of results of a search.")] = 10,
) -> None:
    """Write a SavedModel for TensorFlow Serving: towers, preprocessing and gallery in one."""
    run = mm.ranking.Run(run)
    is_bare = index == "none"
    source = run.load_model() if is_bare else run.open_searcher()
    folder = mm.export_saved_model(source, directory, version, None if is_bare else index, top)
    print(f"Saved in {folder}. To serve it, with Docker:\n{mm.serving.docker_command(directory)}")
    if index == "scann":
        print("This needs a server with ScaNN's ops in place of tensorflow/serving.")


@app.command(epilog="Example: mmret doctor")
def doctor() -> None:
    """Report what is installed, and what of it does not fit together."""
    found, problems = examine()
    for name, value in found.items():
        console.print(f"{name:>14}  {value}")
    for problem in problems:
        console.print(f"PROBLEM: {problem}")
    if problems:
        raise typer.Exit(1)
    console.print("All of it fits together.")


def _build_index(run: "mm.ranking.Run", recall_target: float = 0.95) -> None:
    """Index the embeddings of a run, and report what was built."""
    built = run.build_index(recall_target, console.print)
    stats = built.stats
    console.print(
        f"{type(built).__name__} of {len(built)} embeddings in {run.index}: "
        f"{stats['mode']} search, recall {stats['recall']:.3f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command: exit code 0 for success, 2 for a user's mistake, 130 for Ctrl-C.

    A mistake is reported in one line on stderr; `mmret --debug COMMAND` shows the traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_debug := "--debug" in arguments:
        # TensorFlow is not loaded yet; its level was set when the package was.
        os.environ.update(MMRET_DEBUG="1", TF_CPP_MIN_LOG_LEVEL="0")
    else:
        logging.getLogger("tensorflow").setLevel("ERROR")
    warnings.showwarning = _one_line_warning
    for stream in (sys.stdout, sys.stderr):  # what their encoding lacks becomes "?"
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        if "doctor" not in arguments and (problem := keras_problem()):
            raise ValueError(problem)
        app(arguments, standalone_mode=True)
    except KeyboardInterrupt:
        print("mmret: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        if is_debug:
            raise
        message = printable(str(error))
        print(f"mmret: {message or type(error).__name__}", file=sys.stderr)
        sys.exit(2)


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"mmret: {printable(str(message))}", file=sys.stderr)

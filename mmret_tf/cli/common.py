"""What all commands share: the application, common options, and how mistakes are reported."""

import dataclasses
import inspect
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
from mmret_tf.data.modalities import file_modalities
from mmret_tf.doctor import keras_problem
from mmret_tf.training.config import TrainConfig, setting_help

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Multimodal (image-text) retrieval: pictures with captions in, ranked results out.",
)
console = Console(markup=False, highlight=False)

RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
Data = Annotated[
    str,
    typer.Option(
        help='A folder or file of captioned files, or "scenes", "clips", "sounds", "worlds".'
    ),
]
OneSplit = Annotated[
    Literal["train", "dev", "test"] | None, typer.Option(help="One split; by default all images.")
]
Compressed = Annotated[
    bool, typer.Option("--compressed", help="Use the image tower that `mmret compress` made.")
]

Rerank = Annotated[
    bool, typer.Option("--rerank", help="Rank the first 50 again by the run's second stage.")
]

RayAddress = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster that is running; by default processes on this machine."),
]

DEMO = Path("runs/demo")


def with_settings(*names: str) -> Callable[[Callable], Callable]:
    """Give a command options for these settings of `TrainConfig`, by default for all, in place of
    its `**settings`."""
    # Typer takes no tuple of any length.
    lists = {tuple[each, ...]: list[each] for each in (int, float, str)}

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


def with_sources(command: Callable) -> Callable:
    """Give a command an option for a file of each modality, in place of its `**sources`."""
    signature = inspect.signature(command)
    *parameters, _ = signature.parameters.values()
    for modality in file_modalities():
        kind = Annotated[Path | None, typer.Option(help=f"A file to search by: {modality.name}.")]
        parameters.append(
            inspect.Parameter(
                modality.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
            )
        )
    command.__signature__ = signature.replace(parameters=parameters)
    return command


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


def build_index(
    run: "mm.ranking.Run", recall_target: float = 0.95, build: Callable | None = None
) -> None:
    """Index the embeddings of a run, and report what was built."""
    built = run.build_index(recall_target, console.print, build)
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

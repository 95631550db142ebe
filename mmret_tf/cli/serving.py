"""Commands around a model in service: export, doctor."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import mmret_tf as mm
from mmret_tf.cli.common import DEMO, RunFolder, app, console
from mmret_tf.doctor import examine


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

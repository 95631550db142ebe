"""Commands around a model in service: serve, export, doctor."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import typer

import mmret_tf as mm
from mmret_tf.cli.common import DEMO, Compressed, Rerank, RunFolder, app, console
from mmret_tf.doctor import examine


@app.command(epilog="Example: mmret serve --run runs/photos")
def serve(
    run: RunFolder = DEMO,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="MMRET_TOKEN", help="Clients must show it; needed for other hosts."),
    ] = None,
    compressed: Compressed = False,
    rerank: Rerank = False,
) -> None:
    """Open a search page and a REST interface over the run's gallery."""
    try:
        from mmret_tf.serving.web import server
        from mmret_tf.serving.web.app import create_app
        from mmret_tf.serving.web.service import SearchService
    except ImportError as error:
        raise ValueError(f'{error}: the service needs pip install "mmret_tf[web]"') from None
    if token is None and not server.is_local(host):
        raise ValueError(
            f"--host {host} lets other machines in: give a token with --token or MMRET_TOKEN"
        )
    run = mm.ranking.Run(run)
    with server.open_socket(host, port) as listening:  # a taken port is reported at once
        encoder = None
        if compressed:
            encoder = mm.scale.CompressedEncoder.load(run.compressed, run.load_model())
        reranker = run.load_reranker() if rerank else None
        service = SearchService.open(run, encoder, reranker)
        service.warm_up()
        application = create_app(service, token, frozenset({host}))
        print(f"Serving {run.folder} at {server.address_of(listening)} until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.make_server(application).run(sockets=[listening])
        print("Stopped.")


@app.command(epilog="Example: mmret export --run runs/photos --directory export/photos")
def export(
    run: RunFolder = DEMO,
    directory: Annotated[Path, typer.Option(help="The model's folder.")] = Path("export/mmret"),
    version: Annotated[int, typer.Option(min=1, help="Of the model; a new one each time.")] = 1,
    index: Annotated[
        Literal["brute_force", "scann", "none"], typer.Option(help="What searches the gallery.")
    ] = "brute_force",
    top: Annotated[int, typer.Option(min=1, help="Number of results of a search.")] = 10,
    rerank: Rerank = False,
) -> None:
    """Write a SavedModel for TensorFlow Serving: towers, preprocessing and gallery in one."""
    run = mm.ranking.Run(run)
    is_bare = index == "none"
    if is_bare and rerank:
        raise ValueError("--rerank ranks a gallery, which --index none leaves out")
    reranker = run.load_reranker() if rerank else None
    source = run.load_model() if is_bare else run.open_searcher(reranker=reranker)
    folder = mm.export_saved_model(source, directory, version, None if is_bare else index, top)
    print(f"Saved in {folder}. To serve it, with Docker:\n{mm.serving.docker_command(directory)}")
    if index == "scann":
        print("This needs a server with ScaNN's ops in place of tensorflow/serving.")
    encoder = source if is_bare else source.encoder
    for package in sorted({tower.needs_ops for tower in encoder.towers.values()} - {""}):
        print(f"This needs the ops of {package}; tensorflow/serving has those of tensorflow_text.")


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

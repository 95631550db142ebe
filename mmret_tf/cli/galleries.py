"""Commands for a gallery: embed, sync, index, search."""

import functools
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

import mmret_tf as mm
from mmret_tf._checks import printable
from mmret_tf.cli.common import (
    DEMO,
    Compressed,
    Data,
    OneSplit,
    RayAddress,
    Rerank,
    RunFolder,
    app,
    build_index,
    console,
    given,
    with_settings,
    with_sources,
)
from mmret_tf.data.modalities import file_modalities
from mmret_tf.training.config import FORM


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
    audio: Annotated[bool, typer.Option("--audio", help="Embed sounds, not other files.")] = False,
    video: Annotated[bool, typer.Option("--video", help="Embed clips, not other files.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Embed in a pool of processes.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray; by default one for each machine.")
    ] = None,
    ray_address: RayAddress = None,
    **form,
) -> None:
    """Embed a collection as the run's gallery, and index it."""
    if not ray and (workers or ray_address):
        raise ValueError("--workers and --ray-address need --ray")
    run = mm.ranking.Run(run)
    model = run.load_model()
    items = mm.load(data, split, **given(form))
    if named := [name for name, is_named in (("audio", audio), ("video", video)) if is_named]:
        items = items.of_modalities(*named)
    encoder = _new_encoder(run, model, items, compressed)
    if ray:
        store = mm.scale.embed(
            encoder, items, run.embeddings, dtype, workers=workers, address=ray_address
        )
    else:
        store = mm.EmbeddingStore.export(encoder, items, run.embeddings, dtype)
    if dtype != "float32":
        console.print(
            f"Storing them in {dtype} costs {store.loss['mean']:.1e} of the cosine on "
            f"average, {store.loss['max']:.1e} at most."
        )
    if run.reranker.is_file():
        run.export_parts(items, run.parts)
    console.print(f"{len(store.ids)} embeddings in {run.embeddings}.")
    build_index(run)


def _new_encoder(run, model, items, compressed: bool) -> "mm.models.Encoder":
    """The form of a model in which a new gallery is embedded."""
    images = items.sources.get("image", []) if "image" in model.modalities else []
    images = [source for each in images for source in each]
    encoder, precision = model, None
    if compressed:
        encoder = mm.scale.CompressedEncoder.load(run.compressed, model)
        precision = encoder.form
    elif images:
        encoder, precision = mm.scale.choose_encoder(model, images)
    if images:
        console.print(f"Image tower in {precision}.")
    return encoder


@app.command(epilog="Example: mmret sync --run runs/photos --data photos")
@with_settings(*FORM)
def sync(
    run: RunFolder,
    data: Data,
    split: OneSplit = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files, also those of known size and time.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove items even if they are more than half.")
    ] = False,
    **form,
) -> None:
    """Bring the run's gallery up to date with a collection, at the cost of the change."""
    run = mm.ranking.Run(run)
    model = run.load_model()
    items = mm.load(data, split, check=False, **given(form))

    def encoder_for(store: "mm.EmbeddingStore | None", checked) -> "mm.models.Encoder":
        if store is None or store.fingerprint != model.fingerprint:
            return _new_encoder(run, model, checked, compressed=False)
        if store.form in ("int8", "float16"):
            return mm.scale.CompressedEncoder.load(run.compressed, model)
        return mm.scale.bfloat16_encoder(model) if store.form == "bfloat16" else model

    changes = mm.ranking.sync_gallery(run, items, encoder_for, verify, yes, console.print)
    for place, reason in changes.quarantined:
        console.print(printable(f"set aside: {place}: {reason}"))
    console.print(
        f"{changes.added} added, {changes.changed} changed, {changes.removed} removed, "
        f"{changes.unchanged} unchanged; {changes.embedded} embedded."
    )


@app.command(epilog="Example: mmret index --run runs/photos --recall-target 0.99")
def index(
    run: RunFolder,
    recall_target: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of the true neighbours to find.")
    ] = 0.95,
    ray: Annotated[bool, typer.Option("--ray", help="Divide it among processes.")] = False,
    shards: Annotated[int, typer.Option(min=1, help="With --ray: number of parts.")] = 2,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: processes for each part.")] = 1,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --ray: answer without parts that are lost.")
    ] = False,
    ray_address: RayAddress = None,
) -> None:
    """Build the index over the run's embeddings again, for another recall or several machines."""
    if not ray and (partial or ray_address or (shards, replicas) != (2, 1)):
        raise ValueError("--shards, --replicas, --partial and --ray-address need --ray")
    build = None
    if ray:
        options = {"shards": shards, "replicas": replicas, "partial": partial}
        options |= {"directory": run, "address": ray_address}  # all machines have the run's folder
        build = functools.partial(mm.scale.ShardedIndex.build, **options)
    build_index(mm.ranking.Run(run), recall_target, build)


@app.command(epilog='Example: mmret search --run runs/photos "a dog running on the beach"')
@with_sources
def search(
    query: Annotated[str | None, typer.Argument(help="Words, in any trained language.")] = None,
    run: RunFolder = DEMO,
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="JSON: a condition on attributes, see README.")
    ] = None,
    rerank: Rerank = False,
    gallery: Annotated[Path | None, typer.Option(help="Also draw the results, as a PNG.")] = None,
    compressed: Compressed = False,
    **sources,
) -> None:
    """Rank the run's gallery for a text, a file (such as --image), or both."""
    sources = given(sources)
    try:
        condition = None if where is None else json.loads(where)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--where must be JSON; got {where!r:.80}: {error}") from None
    run = mm.ranking.Run(run)
    encoder = None
    if compressed:
        encoder = mm.scale.CompressedEncoder.load(run.compressed, run.load_model())
    searcher = run.open_searcher(encoder, run.load_reranker() if rerank else None)
    results = searcher.search(query, k=top, where=condition, **sources)
    for result in results:
        # Lines, not a table, which would cut paths in a narrow terminal.
        files = [result.item["sources"].get(each.name, []) for each in file_modalities()]
        name = printable(str(next(filter(None, files), [result.id])[0]))
        print(f"{result.rank:>3}  {result.score:.3f}  {name}")
        for caption in result.item["captions"]:
            print(" " * 12 + printable(caption))
    if results.remark:
        print(results.remark)
    if gallery is not None:
        title = ", ".join(map(str, filter(None, [query, *sources.values()])))
        mm.ranking.draw_gallery([(title, results)], gallery)
        console.print(f"Drawn in {gallery}")

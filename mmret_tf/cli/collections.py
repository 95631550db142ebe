"""Command for a collection: inspect."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import mmret_tf as mm
from mmret_tf._checks import printable
from mmret_tf._tables import inspection_table, set_aside_table
from mmret_tf.cli.common import OneSplit, app, console, given, with_settings
from mmret_tf.training.config import FORM

# Copies that are printed; --json has all.
SHOWN_COPIES = 10


@app.command(epilog="Example: mmret inspect photos --gallery samples.png")
@with_settings(*FORM)
def inspect(
    data: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder or file of images and captions.")
    ],
    split: OneSplit = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as one JSON object.")
    ] = False,
    gallery: Annotated[
        Path | None, typer.Option(help="Also draw sample pictures with captions, as a PNG.")
    ] = None,
    **form,
) -> None:
    """Say what a collection holds: layout, splits, counts, languages, sizes of pictures, entries
    that are set aside, and pictures that two splits have in common."""
    # Progress does not mix with JSON.
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        report = mm.evaluation.inspect_collection(mm.load(data, split, **given(form)))
        if gallery is not None:
            mm.ranking.draw_items(report["samples"], gallery)
    if as_json:
        print(json.dumps(report))
        return
    _print(report)
    if gallery is not None:
        console.print(f"Drawn in {gallery}")


def _print(report: dict) -> None:
    """Print a report of `inspect_collection`: tables, then lines, which are never cut."""
    console.print(inspection_table(report))
    if report["set_aside"]:
        console.print(set_aside_table(report))
    for line in (*_leaks(report), "Samples:"):
        print(line)
    for sample in report["samples"]:
        print(f"  {printable(sample['id'])}")
        for caption in sample["captions"]:
            print(f"    {printable(caption)}")


def _leaks(report: dict) -> Iterator[str]:
    """Lines that say which splits have pictures in common, and some of these."""
    names = [printable(name) for name in report["splits"] if name]
    if len(names) < 2:
        yield "Copies: there are no two splits to compare."
    elif not report["leaks"]:
        yield f"Copies: no picture is in two of the splits {', '.join(names)}."
    for leak in report["leaks"]:
        count, exact = leak["pictures"], leak["exact"]
        are = "1 picture of {} is" if count == 1 else f"{count} pictures of {{}} are"
        yield (
            f"LEAK: {are.format(printable(leak['split']))} also in "
            f"{printable(leak['other_split'])}: {exact} with the same content, {count - exact} "
            "nearly the same"
        )
    for copy in report["copies"][:SHOWN_COPIES]:
        how = "same content" if copy["is_exact"] else f"{copy['distance']} of 64 bits differ"
        one, other = (f"{copy['split']} {copy['id']}", f"{copy['other_split']} {copy['other_id']}")
        yield f"  {printable(one)} = {printable(other)} ({how})"
    if (more := len(report["copies"]) - SHOWN_COPIES) > 0:
        yield f"  and {more} more, see --json"

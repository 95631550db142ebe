"""Command for a collection: inspect."""

import contextlib
import json
import sys
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
    for leak in report["leaks"]:
        print(
            f"LEAK: {leak['pictures']} pictures of {leak['split']} are also in "
            f"{leak['other_split']} ({leak['exact']} with the same content)"
        )
    for copy in report["copies"][:SHOWN_COPIES]:
        print(
            f"  {copy['split']} {printable(copy['id'])}  is  {copy['other_split']} "
            f"{printable(copy['other_id'])}  "
            + ("same content" if copy["is_exact"] else f"{copy['distance']} of 64 bits differ")
        )
    if (more := len(report["copies"]) - SHOWN_COPIES) > 0:
        print(f"  and {more} more, see --json")
    if not report["leaks"]:
        names = [name for name in report["splits"] if name]
        print(
            f"No picture of one split is in another: {', '.join(names)}."
            if len(names) > 1
            else "There are no two splits to compare."
        )
    print("Samples:")
    for sample in report["samples"]:
        print(f"  {printable(sample['id'])}")
        for caption in sample["captions"]:
            print(f"    {printable(caption)}")

"""Copies the code and the outputs of each notebook into its Chinese edition in `zh/`.

Usage: python notebooks/copy_outputs.py

The Chinese edition has text cells of its own. Cells belong together by their ids: a notebook whose
cells were added, removed or moved needs the same change in the other edition first.
"""

import sys
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parent


def copy_outputs(english: Path, chinese: Path) -> None:
    """Make the code cells of one notebook those of another.

    Args:
        english: The notebook with the code and the outputs.
        chinese: The notebook to change; its text cells stay.

    Raises:
        ValueError: The cells of the two are not the same.
    """
    source, target = (nbformat.read(path, as_version=4) for path in (english, chinese))
    kinds, others = (
        [(cell.id, cell.cell_type) for cell in each.cells] for each in (source, target)
    )
    if kinds != others:
        differ = sorted({key for key, _ in set(kinds) ^ set(others)}) or "their order"
        raise ValueError(f"{english.name}: both editions need the same cells; see {differ}")
    pairs = zip(source.cells, target.cells, strict=True)
    target.cells = [one if one.cell_type == "code" else other for one, other in pairs]
    target.metadata = source.metadata
    nbformat.write(target, chinese)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        try:
            copy_outputs(path, FOLDER / "zh" / path.name)
        except ValueError as error:
            sys.exit(str(error))

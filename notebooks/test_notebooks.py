"""The notebooks run from top to bottom, and are kept with their outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))  # drawn scenes are cached there
    assert path.stat().st_size < 600_000
    notebook = nbformat.read(path, as_version=4)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in kept), "run the notebook and save it with outputs"
    outputs = [output for cell in kept for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    last = notebook.cells[-1].outputs[-1]
    assert "<img" in last["data"]["text/html"]


def test_there_are_notebooks():
    assert NOTEBOOKS

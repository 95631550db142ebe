"""The notebooks run from top to bottom, and are kept with their outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Each half has about the same work, and ends with what is short: two workers end together.
ORDER = "04 05 07 00 01 09 03 06 08 02"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows_a_picture(cell):
    shown = [output.data for output in cell.outputs if "data" in output]
    return any("image/png" in data or "<img" in data.get("text/html", "") for data in shown)


@notebooks
def test_notebook_is_kept_with_its_outputs(path):
    assert path.stat().st_size < 600_000
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells), "run the notebook and save it with outputs"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not re.search(r'"[^"]*/(home|root|tmp|Users)/', path.read_text(encoding="utf-8"))
    assert shows_a_picture(cells[-1])


@notebooks
def test_notebook_tells_where_it_stands_in_the_document(path):
    title, *_ = nbformat.read(path, as_version=4).cells
    assert title.cell_type == "markdown" and re.match(r"# .*[\u4e00-\u9fff]", title.source)
    assert path.stem == "00_quickstart" or re.search(r"Sections? \d", title.source)


@pytest.fixture(scope="session")
def keras_home(tmp_path_factory):
    """Drawn scenes are cached here: not in the home of whoever runs the tests."""
    return tmp_path_factory.mktemp("keras")


@pytest.mark.parametrize(
    "path",
    sorted(NOTEBOOKS, key=lambda path: ORDER.find(path.stem[:2])),
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, keras_home, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    # Notebooks that run side by side would wait for each other's threads.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(max(1, os.cpu_count() // workers)))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert shows_a_picture(code_cells(notebook)[-1])


@pytest.mark.parametrize("readme", ["README.zh-CN.md", "../README.md"])
def test_the_index_names_every_notebook(readme):
    text = (FOLDER / readme).read_text(encoding="utf-8")
    named = re.findall(r"^\| \[(\w+)\]\((?:notebooks/)?\1\.ipynb\) \|", text, flags=re.MULTILINE)
    assert named == [path.stem for path in NOTEBOOKS]

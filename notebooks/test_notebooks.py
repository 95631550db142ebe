"""The notebooks run from top to bottom, keep their outputs, and say the same in both languages."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Each half has about the same work, and ends with what is short: two workers end together.
ORDER = "04 05 07 00 01 09 03 06 08 02"

HAN = re.compile("[\u4e00-\u9fff]")
ANSWER = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
HEADINGS = {"": ("## Exercises", "## Summary"), "zh": ("## 练习", "## 小结")}

# Code, formulas, links and citations have numbers that no output shows.
NOT_PROSE = re.compile(
    r"```.*?```|`(?!\d[\d.,]*`)[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|<details>.*?</details>"
    r"|arXiv[: ]\d+\.\d+|[Ss]ections? [\d.(),\sand]+|(?:第|教程) [\d.()、和 ]+节"
    r"|^#+ .*$|^\s*\d+\. ",
    re.DOTALL | re.MULTILINE,
)
# A number of more than one digit, perhaps with thousands, decimals and a unit.
CLAIM = re.compile(r"(?<![\w.,/-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/])(?:\s*(%))?", re.ASCII)
# Measurements that a notebook may quote: a Markdown file outside of the course.
QUOTED = re.compile(r"\]\(((?:\.\./)+(?:data|tests)/[^)#]*\.md)")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


def read(path):
    return nbformat.read(path, as_version=4)


def cells_of(notebook, kind="code", tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == kind]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def shows_a_picture(cell):
    shown = [output.data for output in cell.outputs if "data" in output]
    return any("image/png" in data or "<img" in data.get("text/html", "") for data in shown)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def answers_of(notebook):
    return [
        answer for cell in cells_of(notebook, "markdown") for answer in ANSWER.findall(cell.source)
    ]


def numbers_of(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def is_shown(digits, decimals, is_share, numbers):
    """Whether a number of the prose is one of these, rounded as the prose rounds it."""
    value = float((digits + (decimals or "")).replace(",", ""))
    whole = digits.replace(",", "")
    zeros = 0 if decimals else len(whole) - len(whole.rstrip("0"))
    half = 0.5 * 10.0 ** (zeros if not decimals else 1 - len(decimals))
    scaled = [100 * number for number in numbers] if is_share else []
    return any(abs(value - number) <= half * 1.001 for number in [*numbers, *scaled])


def shown_by(cell):
    """The numbers in the outputs of a cell."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        html = re.sub(r"<[^>]*>|base64,[^\"']*", " ", data.get("text/html", ""))
        yield from numbers_of(output.get("text", "") + data.get("text/plain", "") + html)


def sections_of(notebook):
    """Lists of cells; one begins with each second-level heading."""
    sections = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE):
            sections.append([])
        sections[-1].append(cell)
    return sections


def unfounded_claims(notebook, folder=FOLDER):
    """Numbers in the prose that nothing shows.

    They may be in outputs of their section, in code anywhere, and in a file that their cell quotes.
    The introduction, and a section without code, may speak of all outputs.
    """
    code = [number for cell in cells_of(notebook) for number in numbers_of(cell.source)]
    whole = [number for cell in notebook.cells for number in shown_by(cell)]
    for place, section in enumerate(sections_of(notebook)):
        own = [number for cell in section for number in shown_by(cell)]
        shown = code + (own if own and place else whole)
        for cell in section:
            if cell.cell_type == "markdown":
                files = [folder / name for name in QUOTED.findall(cell.source)]
                quoted = [numbers_of(file.read_text(encoding="utf-8")) for file in files]
                yield from claims_beyond(sum(quoted, shown), cell.source)


def claims_beyond(shown, prose):
    for digits, decimals, unit in CLAIM.findall(NOT_PROSE.sub(" ", prose)):
        if len(digits) + len(decimals) == 1 and not unit:
            continue  # counts of things: three exercises, 2 towers
        if not is_shown(digits, decimals, bool(unit), shown):
            yield digits + decimals + unit


@notebooks
def test_notebook_is_kept_with_its_outputs(path):
    assert path.stat().st_size < 600_000
    cells = cells_of(read(path))
    assert all(cell.execution_count for cell in cells), "run the notebook and save it with outputs"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not re.search(r'"[^"]*/(home|root|tmp|work|Users)/', path.read_text(encoding="utf-8"))
    assert sum(map(shows_a_picture, cells)) >= 2


@notebooks
def test_notebook_tells_what_it_teaches_and_where_it_stands_in_the_document(path):
    notebook = read(path)
    title, setup = notebook.cells[:2]
    assert title.cell_type == "markdown" and re.match(r"# .*[\u4e00-\u9fff]", title.source)
    assert re.search(r"Sections? \d", title.source)
    for label in ("**You will learn**", "**Time**", "**Before this**"):
        assert label in title.source, label
    assert setup.source == read(NOTEBOOKS[0]).cells[1].source
    headings = re.findall(
        r"^## .*$", "\n".join(c.source for c in cells_of(notebook, "markdown")), re.M
    )
    assert [heading for heading in headings if heading in HEADINGS[""]] == [*HEADINGS[""]]


def test_the_first_cell_can_be_run_again_and_outside_of_the_checkout(tmp_path):
    setup = read(NOTEBOOKS[0]).cells[1].source
    sources = [setup, "folder = Path.cwd()", setup, "print(folder == Path.cwd())"]
    notebook = nbformat.v4.new_notebook(cells=[new_code_cell(source) for source in sources])
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    assert printed(notebook.cells[-1]) == "True\n"


@notebooks
def test_exercises_have_answers(path):
    notebook = read(path)
    exercises, checks = cells_of(notebook, tag="exercise"), cells_of(notebook, tag="check")
    assert 3 <= len(exercises) == len(checks) == len(answers_of(notebook)) <= 5
    assert all("..." in cell.source for cell in exercises)
    assert all(printed(cell).startswith("Not yet") for cell in checks)


@notebooks
def test_numbers_in_the_prose_are_those_of_the_outputs(path):
    assert [*unfounded_claims(read(path))] == []
    chinese = FOLDER / "zh" / path.name
    assert [*unfounded_claims(read(chinese), chinese.parent)] == []


def test_the_check_of_numbers_sees_wrong_ones():
    notebook = nbformat.v4.new_notebook()
    code = new_code_cell("k = 500")
    code.outputs = [nbformat.v4.new_output("stream", text="recall 0.795, 2,041 items, 3.84 s")]
    prose = "Of 500 and of 2,041 items 79.5 %, about 80 %, in 3.8 s, or 4 s; 2,000 is near; `= 17`."
    notebook.cells = [code, nbformat.v4.new_markdown_cell(prose)]
    assert [*unfounded_claims(notebook)] == []
    notebook.cells[1].source = "Of 501 items 79.4 %, `81` %, 占82 %, in 3.9 s; 2,042."
    assert [*unfounded_claims(notebook)] == ["501", "79.4%", "81", "82%", "3.9", "2,042"]


@notebooks
def test_the_chinese_edition_has_the_same_code_and_outputs(path):
    english, chinese = read(path), read(FOLDER / "zh" / path.name)
    assert [cell.id for cell in chinese.cells] == [cell.id for cell in english.cells]
    assert cells_of(chinese) == cells_of(english), "run python notebooks/copy_outputs.py"
    assert answers_of(chinese) == answers_of(english)
    for cell, other in zip(
        cells_of(chinese, "markdown"), cells_of(english, "markdown"), strict=True
    ):
        prose = NOT_PROSE.sub("", cell.source)
        assert not re.search("[A-Za-z]{3,}", prose) or HAN.search(prose), cell.source
        assert cell.source.count("\n#") == other.source.count("\n#")
        # A line break shows as a space, which Chinese has none of.
        assert not re.search("[\u4e00-\u9fff，。；：、]\n[\u4e00-\u9fff“]", cell.source), (
            cell.source
        )
    text = "\n".join(cell.source for cell in cells_of(chinese, "markdown"))
    assert all(heading in text for heading in HEADINGS["zh"])


@pytest.fixture(scope="session")
def keras_home(tmp_path_factory):
    """Scenes and their model are cached here, for all workers: not in the user's home."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "keras"


@pytest.mark.parametrize(
    "path",
    sorted(NOTEBOOKS, key=lambda path: ORDER.find(path.stem[:2])),
    ids=lambda path: path.stem,
)
def test_notebook_runs_and_its_answers_are_right(path, keras_home, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    # Notebooks that run side by side would wait for each other's threads.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(max(1, os.cpu_count() // workers)))
    notebook, before = read(path), sorted(FOLDER.iterdir())
    checks = cells_of(notebook, tag="check")
    answered = [
        new_code_cell(f"{answer}\n{check.source}")
        for answer, check in zip(answers_of(notebook), checks, strict=True)
    ]
    notebook.cells += answered
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    assert any(map(shows_a_picture, cells_of(notebook)))
    assert not any("Right." in printed(check) for check in checks)
    assert [printed(cell).splitlines()[-1:] for cell in answered] == [["Right."]] * len(answered)
    assert sorted(FOLDER.iterdir()) == before, "a notebook leaves nothing beside it"


@pytest.mark.parametrize("readme", ["README.zh-CN.md", "README.md", "../README.md"])
def test_the_index_names_every_notebook(readme):
    text = (FOLDER / readme).read_text(encoding="utf-8")
    named = re.findall(
        r"^\| \[(\w+)\]\((?:notebooks/|zh/)?\1\.ipynb\) \|", text, flags=re.MULTILINE
    )
    assert named == [path.stem for path in NOTEBOOKS]

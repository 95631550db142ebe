"""The package is flat, data flows one way, and its docstrings tell the truth."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import mmret_tf

ORDER = [
    "doctor",
    "checks",
    "normalization",
    "image_headers",
    "preprocessing",
    "scenes",
    "changes",
    "splits",
    "layouts",
    "loading",
    "datasets",
    "items",
    "pooling",
    "transformer",
    "backbones",
    "towers",
    "fusion",
    "score_fusion",
    "missing",
    "losses",
    "optimizers",
    "dual_encoder",
    "fused_encoder",
    "evaluation",
    "published",
    "tables",
    "measuring",
    "callbacks",
    "config",
    "projector",
    "folders",
    "embeddings",
    "compression",
    "distillation",
    "features",
    "training",
    "exact",
    "filters",
    "segments",
    "brute_force",
    "multimodal",
    "tuning",
    "scann_engine",
    "index",
    "searcher",
    "plots",
    "signatures",
    "serving_client",
    "serving",
    "demo",
    "cli",
]
FOLDER = Path(mmret_tf.__file__).parent


def imported_modules(path):
    """Names of the package's own modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "mmret_tf":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmret_tf."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (name[1] for name in names if name[0] == "mmret_tf" and len(name) > 1)


def test_every_module_has_its_place():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted([*ORDER, "__init__"])
    assert not [path for path in FOLDER.iterdir() if path.is_dir() and path.name[0] not in "._"]


def test_modules_import_only_those_above_them():
    for name in ORDER:
        above = set(ORDER[: ORDER.index(name)])
        assert set(imported_modules(FOLDER / f"{name}.py")) <= above, name


def test_the_import_checker_sees_imports(tmp_path):
    (tmp_path / "a.py").write_text(
        "from mmret_tf import index\nimport mmret_tf.cli\nif 1:\n    from mmret_tf.demo import x\n"
    )
    assert set(imported_modules(tmp_path / "a.py")) == {"index", "cli", "demo"}


def test_every_file_says_what_it_is_for():
    for path in [*FOLDER.glob("*.py"), *Path(__file__).parent.glob("*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name


@pytest.mark.parametrize("name", ORDER)
def test_the_examples_of_the_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(f"mmret_tf.{name}")).failed == 0


def test_every_public_name_exists():
    assert all(hasattr(mmret_tf, name) for name in mmret_tf.__all__)

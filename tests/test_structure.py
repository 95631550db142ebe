"""One folder a step, imports that flow one way, short files, and docstrings that hold."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmret_tf

PACKAGE = Path(mmret_tf.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in FILES]

# A module imports from its own folder and from those to the left of it.
ORDER = (
    *("_lazy", "_files", "_checks", "_machine", "similarity", "data", "models", "fusion"),
    *("ranking", "evaluation", "training", "scale", "serving"),
    *("demo", "doctor", "_tables", "cli", "__main__"),
)

MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES = 9, 350, 60
MOST_SKIPS = 3  # examples that are shown and not run, of a server, say

# Tests of the package as a whole.
WHOLE = ("test_structure.py", "test_contracts.py", "test_readme.py", "test_toy_modality.py")
WHOLE += ("test_sections.py", "test_locales.py", "test_wheel.py", "test_photographs.py")

# Keras calls these, or a base class here; their docstrings are there.
HOOKS = {
    *("augment", "compute", "features", "fill", "fuse", "make_weights", "preprocess", "sequence"),
    *("compiled_preprocess", "predict_on_batch", "project", "view_features", "view_inputs"),
    *("build", "build_from_config", "call", "compute_loss", "compute_mask", "compute_output_shape"),
    *("compute_output_spec", "export", "input_specs", "quantize", "remark", "save"),
    *("from_config", "get_build_config", "get_config", "on_epoch_begin", "on_epoch_end"),
    "update_step",
}


def imported(file):
    """What a file imports of the package, as the parts of the module's name, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmret_tf":
            parts = node.module.split(".")[1:]
            yield from ([parts] if parts else ([alias.name] for alias in node.names))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (name[1:] for name in names if name[0] == "mmret_tf" and len(name) > 1)


def place(file):
    """The folder or root module to which a file belongs."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("file", FILES, ids=MODULES)
def test_imports_flow_from_left_to_right(file):
    if file == PACKAGE / "__init__.py":  # it names what is exported, and imports it on first use
        return
    allowed = ORDER[: ORDER.index(place(file)) + 1]
    assert {parts[0] for parts in imported(file)} <= set(allowed)


def test_the_import_checker_sees_imports(tmp_path):
    file = tmp_path / "a.py"
    lines = ["from mmret_tf import index", "import mmret_tf.cli", "if 1:"]
    file.write_text("\n".join([*lines, "    from mmret_tf.data.a import x", ""]))
    assert [*imported(file)] == [["index"], ["cli"], ["data", "a"]]


def test_folders_and_files_are_small_enough_to_read():
    for folder in {file.parent for file in FILES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, folder
    for file in FILES:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, file


def test_functions_fit_on_a_screen():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[ast.get_docstring(node) is not None :]
                lines = node.end_lineno - first[0].lineno + 1 if first else 0
                assert lines <= MOST_FUNCTION_LINES, f"{file}: {node.name}"


def test_tests_mirror_the_package():
    here = Path(__file__).parent
    for test in here.rglob("test_*.py"):
        module = test.relative_to(here).with_name(test.name.removeprefix("test_"))
        private, page = module.with_name(f"_{module.name}"), module.with_suffix(".html")
        found = [PACKAGE / each for each in (module, private, module.with_suffix(""), page)]
        is_whole = test.name in WHOLE
        assert is_whole or any(each.exists() for each in found), test


def test_every_file_says_what_it_is_for():
    for file in [*FILES, *Path(__file__).parent.rglob("*.py")]:
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def test_a_searcher_loads_nothing_of_the_folders_to_its_right_nor_scann():
    code = "import sys, mmret_tf.ranking.searcher; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    right = ("evaluation", "training", "scale", "serving", "demo", "cli")
    assert not loaded & {"scann", *(f"mmret_tf.{name}" for name in right)}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_are_true(name):
    if "distributed" in name:
        pytest.importorskip("ray", reason='needs pip install "mmret_tf[distributed]"')
    if name.endswith(("hub.text", "hub.encoder")):
        pytest.importorskip("keras_hub", reason='needs pip install "mmret_tf[hub]"')
    assert doctest.testmod(importlib.import_module(name.removesuffix(".__init__"))).failed == 0


def packages():
    yield mmret_tf
    yield from (importlib.import_module(f"mmret_tf.{folder}") for folder in mmret_tf._FOLDERS)
    yield importlib.import_module("mmret_tf.evaluation.plots")


def public_things():
    """The classes and functions that the packages export."""
    for package in packages():
        for name in package.__all__:
            thing = getattr(package, name)
            if not inspect.ismodule(thing):
                yield pytest.param(thing, id=f"{package.__name__}.{name}")


def calls(thing):
    """A function, or a class's constructor and methods as far as they are of this package, each
    with the docstring that is to describe it."""
    if not inspect.isclass(thing):
        yield thing, thing.__doc__ or ""
        return
    parents = [each for each in thing.__mro__ if each.__module__.startswith("mmret_tf.")]
    for name in {name: None for each in parents for name in vars(each) if name not in HOOKS}:
        function = getattr(thing, name)
        if name == "__init__":
            yield function, thing.__doc__ or ""
        elif name[0] != "_" and inspect.isfunction(getattr(function, "__func__", function)):
            yield function, inspect.getdoc(function) or ""


def problems(thing):
    """What `help()` of a public class or function does not say."""
    docs = [thing.__doc__ or "", *(doc for _, doc in calls(thing))]
    is_base = inspect.isabstract(thing) or thing.__name__ in BASES
    if not is_base and not any(">>> " in doc for doc in docs):
        yield f"{thing.__name__} has no example"
    for function, doc in calls(thing):
        name, signature = function.__name__, inspect.signature(function)
        for each in signature.parameters.values():
            if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                if not re.search(rf"\b{each.name}\b", doc):
                    yield f"{thing.__name__}: {name} does not describe {each.name}"
                if each.annotation is each.empty and name != "features":
                    yield f"{thing.__name__}: {name} has no type for {each.name}"


# Base classes, and models that only a function makes: their examples are those of what makes them.
BASES = {
    "Fusion",
    "Imputer",
    "Tower",
    "ImageTower",
    "TextTower",
    "Source",
    "Reader",
    "VariantEncoder",
}


@pytest.mark.parametrize("thing", [*public_things()])
def test_every_public_name_is_described_with_types_and_an_example(thing):
    assert [*problems(thing)] == []


def test_the_docstring_checker_sees_what_is_missing():
    class Bad:
        """Made of parts."""

        def __init__(self, part: int):
            pass

        def call(self, inputs):
            """Keras says what it is."""

        def search(self, query, k: int = 10) -> list:
            """The best for a query."""

    Bad.__module__ = "mmret_tf.bad"
    assert set(problems(Bad)) == {
        "Bad has no example",
        "Bad: __init__ does not describe part",
        "Bad: search does not describe k",
        "Bad: search has no type for query",
    }


def test_few_examples_are_not_run():
    texts = [file.read_text(encoding="utf-8") for file in FILES]
    assert sum(text.count("+SKIP") for text in texts) <= MOST_SKIPS


def test_the_top_has_few_names_and_knows_all_of_them():
    names = [name for name in mmret_tf.__all__ if name not in mmret_tf._FOLDERS]
    assert len(names) <= 28
    assert set(mmret_tf.__all__) <= set(dir(mmret_tf))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mmret_tf.nonsense  # noqa: B018

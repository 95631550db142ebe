"""The package is flat, data flows one way, and its docstrings tell the truth."""

import ast
import doctest
import importlib
import inspect
import re
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

# What README and notebooks name beside `mmret_tf.__all__`: all of some modules, some of others.
WHOLE_MODULES = ("losses", "evaluation", "plots", "features")
FUNCTIONS = (
    *("backbones.load_backbone", "backbones.small_cnn", "backbones.thaw", "changes.draw_changes"),
    *("filters.check_condition", "measuring.embed_pairs", "measuring.measure"),
    *("published.published_results", "scenes.draw_scenes", "scenes.write_scenes"),
    *("serving.docker_command", "training.build_model"),
)
# Keras calls these, or a base class here; what they do is said there.
HOOKS = {
    *("fill", "fuse", "make_weights"),
    *("build", "build_from_config", "call", "compute_loss", "compute_mask", "compute_output_shape"),
    *("from_config", "get_build_config", "get_config", "on_epoch_begin", "on_epoch_end"),
}
MOST_SKIPS = 3  # examples that are shown and not run, of a server, say


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


def public_things():
    """The classes and functions that users are pointed to."""
    yield from (getattr(mmret_tf, name) for name in mmret_tf.__all__ if name != "losses")
    for module in (importlib.import_module(f"mmret_tf.{name}") for name in WHOLE_MODULES):
        for name, thing in vars(module).items():
            if name[0] != "_" and getattr(thing, "__module__", None) == module.__name__:
                yield thing
    for module, name in (each.split(".") for each in FUNCTIONS):
        yield getattr(importlib.import_module(f"mmret_tf.{module}"), name)


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
        elif name[0] != "_" and inspect.isroutine(function):
            yield function, inspect.getdoc(function) or ""


def problems(thing):
    """What `help()` of a public class or function does not say."""
    docs = [thing.__doc__ or "", *(doc for _, doc in calls(thing))]
    if not any(">>> " in doc for doc in docs):
        yield f"{thing.__name__} has no example"
    for function, doc in calls(thing):
        name, signature = function.__name__, inspect.signature(function)
        for each in signature.parameters.values():
            if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                if not re.search(rf"\b{each.name}\b", doc):
                    yield f"{thing.__name__}: {name} does not describe {each.name}"
                if each.annotation is each.empty:
                    yield f"{thing.__name__}: {name} has no type for {each.name}"
        if signature.return_annotation is signature.empty and name != "__init__":
            yield f"{thing.__name__}: {name} has no type for what it returns"


def test_every_public_name_is_described_with_types_and_an_example():
    assert [problem for thing in public_things() for problem in problems(thing)] == []


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
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")]
    assert sum(text.count("+SKIP") for text in texts) <= MOST_SKIPS

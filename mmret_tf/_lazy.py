"""Imports that wait: names of a package on first use (PEP 562), and the modules of a folder."""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(
    package: str, file: str, folders: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    The names are those that its `if TYPE_CHECKING:` block imports: one list serves type checkers
    and the running program.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package.
        folders: Its subpackages that are reached as attributes.
    """
    module_of = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                module_of |= {alias.name: each.module for alias in each.names}

    def __getattr__(name: str) -> Any:
        if name in folders:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    names = sorted([*module_of, *folders])
    return __getattr__, lambda: names, names


def import_modules(package: str) -> None:
    """Import every module of a package and of its folders, so that their subclasses are found.

    Args:
        package: Its full name.
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
        if module.ispkg:
            import_modules(f"{package}.{module.name}")

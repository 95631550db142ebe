"""The doctor: whether Python, TensorFlow, Keras, ScaNN and the processor fit together.

Standard library only, because it must work where TensorFlow or Keras do not.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from mmret_tf._machine import cpu_features

# What `setup.cfg` pins. ScaNN's binary is built for one TensorFlow. Older Keras reads local files
# through crafted .keras files.
TENSORFLOW = "2.20"
SCANN = "1.4.2"
KERAS = (3, 15)


def installed_version(package: str) -> str | None:
    """The version of an installed package, or `None`.

    >>> installed_version("no-such-package") is None
    True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def keras_problem() -> str | None:
    """Why this Keras cannot be used, in one line, without importing it; or `None`.

    >>> keras_problem() is None
    True
    """
    version = installed_version("keras") or "none"
    if not KERAS <= tuple(map(int, re.findall(r"\d+", version)[:2])) < (4,):
        return f"mmret_tf needs Keras 3.15 or newer, found {version}: pip install 'keras>=3.15,<4'"
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        return "mmret_tf needs Keras 3: TF_USE_LEGACY_KERAS asks for Keras 2; unset it"
    backend = os.environ.get("KERAS_BACKEND")
    source = "KERAS_BACKEND"
    if backend is None:
        settings = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
        source = str(settings)
        try:
            backend = json.loads(settings.read_text(encoding="utf-8")).get("backend")
        except (OSError, ValueError, AttributeError):
            backend = None
    if backend not in (None, "tensorflow"):
        return (
            f"mmret_tf needs the TensorFlow backend of Keras; {source} says {backend!r}: "
            "set KERAS_BACKEND=tensorflow"
        )
    return None


def examine() -> tuple[dict[str, str], list[str]]:
    """Look at the environment.

    Returns:
        What was found, name to version; and the problems, a sentence each, `[]` where all fits.
    """
    packages = ("tensorflow", "keras", "scann", "numpy", "pillow")
    versions = {name: installed_version(name) for name in packages}
    found = {"Python": platform.python_version(), "platform": platform.platform()}
    found |= {name: version or "not installed" for name, version in versions.items()}
    found["CPU features"] = " ".join(cpu_features()) or "not known on this system"

    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python {found['Python']} is outside 3.11 to 3.13: use one of those.")
    if problem := keras_problem():
        problems.append(problem + ".")
    if not (versions["tensorflow"] or "").startswith(TENSORFLOW + "."):
        problems.append(
            f"TensorFlow {TENSORFLOW} is needed, found {found['tensorflow']}: "
            f"pip install 'tensorflow~={TENSORFLOW}.0'."
        )
    on_linux = sys.platform == "linux"
    if on_linux and versions["scann"] != SCANN:
        problems.append(
            f"ScaNN {SCANN} is the one built for TensorFlow {TENSORFLOW}, found "
            f"{found['scann']}: pip install 'scann[tf]=={SCANN}'."
        )
    if not on_linux:
        found["note"] = "ScaNN has packages for Linux alone; search is exact here"
    for name in ("numpy", "pillow"):
        if versions[name] is None:
            problems.append(f"{name} is not installed: pip install {name}.")
    if not problems:
        problems += _import_problems(["tensorflow", "keras"] + ["scann"] * on_linux)
    return found, problems


def _import_problems(modules: list[str]) -> list[str]:
    """What happens when the packages, whose versions fit, are loaded."""
    problems = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken binary may raise anything, and it must be told
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            problems.append(f"{module} is installed but cannot be loaded: {first_line}")
    return problems

"""The doctor: whether Python, TensorFlow, Keras, ScaNN and the processor fit together.

Standard library only, because it must work where TensorFlow or Keras do not.
"""

import contextlib
import importlib
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from mmret_tf._machine import cpu_features

# How the version of each package starts, and what to install otherwise, as in `setup.cfg`. ScaNN's
# binary is built for one TensorFlow.
NEEDED = {
    "tensorflow": ("2.20.", "tensorflow~=2.20.0"),
    "scann": ("1.4.2", "scann[tf]==1.4.2"),
    "numpy": ("2.", "numpy>=2.1,<3"),
}
KERAS = (3, 15)  # the oldest that is safe, see `setup.cfg`


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
    settings = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    source, backend = "KERAS_BACKEND", os.environ.get("KERAS_BACKEND")
    if backend is None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            source, backend = settings, json.loads(settings.read_text("utf-8")).get("backend")
    if backend not in (None, "tensorflow"):
        return f"mmret_tf needs KERAS_BACKEND=tensorflow; {source} says {backend!r}"
    return None


def examine() -> tuple[dict[str, str], list[str]]:
    """Look at the environment.

    Returns:
        What was found, name to version; and the problems, a sentence each, `[]` where all fits.
    """
    found = {"Python": platform.python_version(), "platform": platform.platform()}
    found |= {name: installed_version(name) or "none" for name in ("keras", *NEEDED)}
    found["CPU features"] = " ".join(cpu_features()) or "not known on this system"

    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python {found['Python']} is outside 3.11 to 3.13: use one of those.")
    if problem := keras_problem():
        problems.append(problem + ".")
    needed = dict(NEEDED)
    if sys.platform != "linux":
        del needed["scann"]
        found["note"] = "ScaNN has packages for Linux alone; search is exact here"
    problems += [
        f"{name} is missing or does not fit, found: {found[name]}. Run pip install '{requirement}'."
        for name, (version, requirement) in needed.items()
        if not found[name].startswith(version)
    ]
    for module in [] if problems else [*needed, "keras"]:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken binary may raise anything, and it must be told
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            problems.append(f"{module} is installed but cannot be loaded: {first_line}")
    return found, problems

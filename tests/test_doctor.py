"""The doctor: what it finds here, and what it says of packages that do not fit together."""

import subprocess
import sys

import pytest

from mmret_tf import doctor
from mmret_tf.doctor import examine, installed_version, keras_problem


def test_this_environment_is_healthy():
    found, problems = examine()
    assert problems == []
    assert {"Python", "platform", "tensorflow", "keras", "numpy", "CPU features"} <= set(found)
    assert found["keras"] == installed_version("keras") and found["scann"].startswith("1.4")


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"tensorflow": "2.21.0"}, "found: 2.21.0. Run pip install 'tensorflow~=2.20.0'"),
        ({"tensorflow": None}, "tensorflow is missing or does not fit, found: none. Run pip"),
        ({"keras": "2.15.0"}, "mmret_tf needs Keras 3.15 or newer, found 2.15.0: pip install"),
        ({"keras": "3.14.2"}, "mmret_tf needs Keras 3.15 or newer, found 3.14.2: pip install"),
        ({"keras": "4.0rc1"}, "found 4.0rc1: pip install 'keras>=3.15,<4'"),
        ({"keras": None}, "mmret_tf needs Keras 3.15 or newer, found none: pip install"),
        ({"scann": None}, "found: none. Run pip install 'scann[tf]==1.4.2'"),
        ({"numpy": "1.26.4"}, "found: 1.26.4. Run pip install 'numpy>=2.1,<3'"),
    ],
)
def test_versions_that_do_not_fit_are_named(monkeypatch, versions, problem):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(
        doctor, "installed_version", lambda name: versions.get(name, installed_version(name))
    )
    _, problems = examine()
    assert len(problems) == 1 and problem in problems[0]


def test_other_systems_do_without_scann(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    found, problems = examine()
    assert problems == [] and "exact" in found["note"]


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert "is outside 3.11 to 3.13" in examine()[1][0]


def test_a_package_that_does_not_load_is_a_problem(monkeypatch):
    def broken(module):
        raise OSError("undefined symbol: _ZN10tensorflow\nand more")

    monkeypatch.setattr("importlib.import_module", broken)
    _, problems = examine()
    assert problems[0] == (
        "tensorflow is installed but cannot be loaded: undefined symbol: _ZN10tensorflow"
    )


def test_another_keras_backend_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert "KERAS_BACKEND says 'jax'" in keras_problem()
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for settings, problem in (('{"backend": "torch"}', "says 'torch'"), ("[]", None), ("{", None)):
        (tmp_path / "keras.json").write_text(settings)
        assert (problem or "None") in str(keras_problem())
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert keras_problem() is None
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert "asks for Keras 2" in keras_problem()


def test_the_package_beside_another_backend_is_a_clear_error():
    script = """
import sys, mmret_tf
try:
    mmret_tf.load
except ImportError as error:
    print(error, "tensorflow" in sys.modules)
"""
    environment = {"KERAS_BACKEND": "jax", "HOME": "/nonexistent", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("mmret_tf needs KERAS_BACKEND=tensorflow; KERAS_BACKEND says")
    assert done.stdout.endswith("False\n")

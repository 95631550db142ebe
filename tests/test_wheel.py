"""A wheel holds every file of the package: modules, pages, fonts and words."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    copy = tmp_path / "copy"  # without what an earlier build left
    shutil.copytree(ROOT / "mmret_tf", copy / "mmret_tf")
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, copy]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mmret_tf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"mmret_tf/serving/web/page.html", "mmret_tf/serving/web/login.html"} <= files
    assert files <= set(zipfile.ZipFile(wheel).namelist())

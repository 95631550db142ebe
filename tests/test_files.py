"""Folders that are replaced whole: one writer at a time, and arrays that are what they say."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import two_writers

from mmret_tf._files import (
    awaited_folder,
    open_array,
    partial_folder,
    read_manifest,
    replace_folder,
    replaced_file,
    write_json,
)

WRITER = """
import sys
from pathlib import Path
from mmret_tf._files import replace_folder
with replace_folder(Path(sys.argv[1]), {"format": "letters", "version": 1}) as new:
    (new / "letter").write_text("A")
    print("half", flush=True)
    sys.stdin.readline()
"""


def write(folder, letter):
    with replace_folder(folder, {"format": "letters", "version": 1}) as new:
        (new / "letter").write_text(letter)


def content(folder):
    folder, _ = read_manifest(folder, "letters", 1)
    return (folder / "letter").read_text()


@pytest.fixture
def writer(tmp_path):
    """Another process that has written half of a folder."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "folder")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "half\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_to_wait(writer, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match="another process is writing .*folder.partial"):
        write(folder, "B")
    assert not folder.exists()
    writer.communicate("go on\n")
    assert content(folder) == "A"
    write(folder, "B")
    assert content(folder) == "B" and not partial_folder(folder).exists()


def test_a_writer_that_was_killed_holds_nothing(writer, tmp_path):
    folder = tmp_path / "folder"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    write(folder, "B")
    assert content(folder) == "B" and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("is_kept", "is_asked", "waits"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_a_folder_is_waited_for_unless_nobody_wants_it_alone(is_kept, is_asked, waits, tmp_path):
    def enter():
        with awaited_folder(tmp_path, exclusive=is_asked):
            entered.set()

    entered, other = threading.Event(), threading.Thread(target=enter)
    with awaited_folder(tmp_path, exclusive=is_kept):
        other.start()
        assert entered.wait(0.2) != waits
    other.join(10)
    assert entered.is_set()


def test_after_an_error_the_old_content_stays_and_nothing_else(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "A")
    with (
        pytest.raises(OSError, match="no space"),
        replace_folder(folder, {"format": "letters", "version": 1}) as new,
    ):
        (new / "letter").write_text("B")
        raise OSError("no space")
    assert content(folder) == "A" and os.listdir(tmp_path) == ["folder"]


def test_an_archive_of_arrays_is_no_array(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((2, 3), np.float32))
    assert open_array(path, (2, 3)).sum() == 6
    with open(path, "wb") as file:
        np.savez(file, np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="a.npy is not a NumPy array: it is an archive"):
        open_array(path, (2, 3))
    for shape, dtype in (((3, 2), "float32"), ((2, 3), "float64")):
        np.save(path, np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match="must hold"):
            open_array(path, shape, dtype)


def test_a_damaged_header_is_no_array(tmp_path):
    path = tmp_path / "a.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,".ljust(118)
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header + bytes(24))
    with pytest.raises(ValueError, match="a.npy is not a NumPy array"):
        open_array(path, (2, 3))


def test_two_writers_leave_one_whole_folder():
    """More rounds by the script itself."""
    assert two_writers.main(rounds=1, kinds=("index", "export")) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"红": 1})
    with pytest.raises(ValueError, match="half"), replaced_file(path) as temporary:
        temporary.write_text("half")
        raise ValueError("half")
    assert path.read_text(encoding="utf-8") == '{\n  "红": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]

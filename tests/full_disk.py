"""Commands on a disk that becomes full: one line on the screen, and what was there before is whole.

    sudo python tests/full_disk.py

Mounts small temporary file systems, which needs root. Each command, with each amount of free space,
must succeed or be refused in one line, and the run must answer as before. Anything else is printed,
and the exit status is 1.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import write_config, write_jsonl
from PIL import Image

import mmret_tf as mm

COLOURS = ("red", "blue", "green", "black", "white")
SIZE = 400  # KiB of the file system
COMMANDS = {
    "train": ("--config", "TEMPORARY/config.json"),  # again, in the same folder
    "embed": ("--data", "TEMPORARY/pictures"),
    "index": (),
    "export": ("--directory", "DISK/export/m"),
}
FREE = (0, 4, 16, 48)  # KiB


def mmret(command, *options):
    arguments = [sys.executable, "-m", "mmret_tf", command, *map(str, options)]
    return subprocess.run(arguments, capture_output=True, text=True)


def make_run(folder):
    """A trained run over sixty pictures; its folder."""
    pictures, rows = folder / "pictures", []
    pictures.mkdir()
    for number in range(60):
        colour = COLOURS[number % 5]
        Image.new("RGB", (20, 20), colour).save(pictures / f"{number}.png")
        split = "train" if number < 40 else "dev"
        rows.append({"image": f"{number}.png", "caption": f"{colour} {number}", "split": split})
    write_jsonl(pictures, *rows)
    config = write_config(folder, pictures, epochs=1, batch_size=8)
    done = mmret("train", "--config", config, "--run", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@contextlib.contextmanager
def disk(folder):
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", folder]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount():
    """Whether this process may mount a file system."""
    try:
        with tempfile.TemporaryDirectory() as folder, disk(Path(folder, "disk")):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fill(folder, free):
    """Fill the disk up to the last `free` KiB."""
    with open(folder / "filler", "wb") as file:
        file.write(bytes(max(shutil.disk_usage(folder).free - 1024 * free, 0)))


def answers(run):
    found = mm.Searcher.open(run).search(text="red 5", k=5)
    return [(result.id, round(result.score, 5)) for result in found]


def main(whole=None, commands=COMMANDS, free=FREE):
    """Print what each command did with a run, by default a new one; return what went wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = whole or make_run(Path(temporary))
        right = answers(whole)
        for command in commands:
            for kilobytes in free:
                with disk(Path(temporary, "disk")) as folder:
                    shutil.copytree(whole, folder / "run")
                    fill(folder, kilobytes)
                    options = [
                        each.replace("DISK", str(folder)).replace("TEMPORARY", str(whole.parent))
                        for each in COMMANDS[command]
                    ]
                    done = mmret(command, "--run", folder / "run", *options)
                    lines = done.stderr.strip().splitlines()
                    is_told = len(lines) == 1 and lines[0].startswith("mmret: ")
                    is_right = done.returncode == 0 or (done.returncode == 2 and is_told)
                    is_right &= answers(folder / "run") == right
                said = "done" if done.returncode == 0 else " ".join(lines)[-150:]
                print(f"{command}, {kilobytes} KiB free: {said}", flush=True)
                if not is_right:
                    wrong.append((command, kilobytes, done.returncode, done.stderr))
    print(*wrong, sep="\n")
    return wrong


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sys.exit(bool(main()))

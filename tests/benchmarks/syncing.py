"""Time `mmret sync` after a few changes, beside `mmret embed`, which embeds everything again.

    python tests/benchmarks/syncing.py --run runs/demo --items 10000 --changes 100

Copies the run, draws pictures of noise, and gives the seconds of each command: half of the changes
are new pictures, a quarter are painted over and a quarter are removed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
FOLDER_SIZE = 1000


def paint(folder, number, seed):
    path = folder / f"{number // FOLDER_SIZE:04}" / f"{number:07}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([number, seed]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def seconds(*arguments):
    started = time.perf_counter()
    command = [sys.executable, "-m", "mmret_tf", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took, said = time.perf_counter() - started, done.stdout.splitlines()[-1]
    print(f"{took:8.1f} s  mmret {arguments[0]}: {said}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run, folder = Path(temporary) / "run", Path(temporary) / "pictures"
        shutil.copytree(arguments.run, run)
        paths = [paint(folder, number, 0) for number in range(arguments.items)]
        time.sleep(3)  # younger files are read again
        options = ("--run", run, "--data", folder)
        seconds("embed", *options)
        seconds("sync", *options)
        quarter = arguments.changes // 4
        for path in paths[:quarter]:
            path.unlink()
        for number in range(quarter, 2 * quarter):
            paint(folder, number, 1)
        for number in range(arguments.changes - 2 * quarter):
            paint(folder, arguments.items + number, 0)
        seconds("sync", *options)
        seconds("embed", *options)
        seconds("search", "--run", run, "a large red circle")


if __name__ == "__main__":
    main()

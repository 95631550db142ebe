"""Load a million captions from a table, and a million items from shards: memory and seconds.

    python tests/benchmarks/loading.py --rows 1000000 --form table
    python tests/benchmarks/loading.py --rows 1000000 --form shards

All pictures are the same small JPEG. Prints the seconds of `load`, and the peak of the process.
"""

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

import mmret_tf as mm

CAPTIONS = 5  # of each picture of the table
LINKS = 50_000  # to one file; a file system has a limit
MEMBERS = 10_000  # items of a shard
TEXT = "a dog runs over the green grass, picture {}"


def picture():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    return file.getvalue()


def make_table(folder, rows):
    """captions.csv with five captions a picture; its pictures are hard links."""
    lines = ["image,caption"]
    for number in range(rows // CAPTIONS):
        name = f"images/{number // 1000:04}/{number:07}.jpg"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % LINKS == 0:
            path.write_bytes(picture())
            origin = path
        else:
            os.link(origin, path)
        lines += [f'{name},"{each} {TEXT.format(number)}"' for each in range(CAPTIONS)]
    (folder / "captions.csv").write_text("\n".join(lines))


def make_shards(folder, rows):
    """Tar files of 10,000 pictures, each with a caption."""
    content = picture()
    for start in range(0, rows, MEMBERS):
        with tarfile.open(folder / f"{start // MEMBERS:06}.tar", "w") as archive:
            for number in range(start, min(start + MEMBERS, rows)):
                parts = {"jpg": content, "txt": TEXT.format(number).encode()}
                for extension, part in parts.items():
                    member = tarfile.TarInfo(f"{number:07}.{extension}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))


FORMS = {"table": make_table, "shards": make_shards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--form", choices=FORMS, default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        FORMS[options.form](Path(folder), options.rows)
        started = time.monotonic()
        items = mm.load(folder)
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{items}\n{seconds:.0f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()

"""What the scripts that damage files share: changes of bytes, of JSON and of archives, and a child
process that opens the result."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np

from mmret_tf._files import _manifest_sha256, _stamp

# The child process prints one of these, or else what went wrong.
FINE = ("opened", "refused")
# Names of parts of an HDF5 file's structure.
HDF5 = (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"FRHP", b"BTHD", b"\x89HDF")


def damaged(name, content, random):
    """Another content for a file of this name: a change of its structure, or of its bytes."""
    if random.random() < 0.3:
        return damaged_bytes(content, random, range(len(content)))
    if name.endswith(".keras"):
        return damaged_archive(content, random)
    if name.endswith((".json", ".jsonl")):
        lines = content.decode().splitlines() if name.endswith("l") else [content.decode()]
        line = random.integers(len(lines))
        lines[line] = json.dumps(changed(json.loads(lines[line]), random))
        return "\n".join(lines).encode()
    if name.endswith(".npy"):
        return damaged_bytes(content, random, range(min(128, len(content))))
    if name.endswith(".h5"):
        starts = [at for at in range(len(content)) if content.startswith(HDF5, at)]
        start = random.choice(starts)
        return damaged_bytes(content, random, range(start, min(start + 64, len(content))))
    return damaged_bytes(content, random, range(len(content)))


def damaged_bytes(content, random, places):
    """Bytes that are cut off, appended, or changed at some of the places."""
    content, kind = bytearray(content), random.integers(5)
    if kind == 0:
        return bytes(content[: random.integers(len(content))])
    if kind == 1:
        return bytes(content) + random.bytes(random.integers(1, 30))
    for at in random.choice(places, size=random.integers(1, 6)):
        content[at] = random.choice([0, 1, 127, 128, 255]) if kind == 2 else random.integers(256)
    return bytes(content)


def damaged_archive(content, random):
    """A zip archive with one of its files damaged or left out; its checksums are right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        names = [each for each in old.namelist() if old.getinfo(each).file_size]
        chosen = random.choice(names)
        for name in names:
            part = old.read(name)
            if name != chosen:
                new.writestr(name, part)
            elif random.random() < 0.9:
                new.writestr(name, damaged(name, part, random))
    return written.getvalue()


def changed(value, random):
    """JSON with one value, somewhere in it, removed or of another kind or size."""
    if isinstance(value, dict) and value and random.random() < 0.95:
        key = random.choice(list(value))
        if random.random() < 0.05:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        place = random.integers(len(value))
        if random.random() < 0.1:
            return value[:place]
        return [*value[:place], changed(value[place], random), *value[place + 1 :]]
    return [extreme(value, random), None, [], {}, "x", 10**30, [value] * 3][random.integers(7)]


def extreme(value, random):
    """A value of the same type at the end of its range."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return float(random.choice([np.nan, np.inf, -1.0, 0.0, 1e38]))
    if isinstance(value, int):
        return int(random.choice([-1, 0, 1, 2, 3, 1000, 2**31 - 1]))
    return f"{value}x"


def stamp_again(path):
    """Mend the checksum of a changed file in the manifest of its folder, if there is one."""
    manifest = path.parent / "manifest.json"
    if not manifest.is_file():
        return
    try:
        written = json.loads(manifest.read_text("utf-8"))
        if path != manifest:
            written["files"][path.name] = _stamp(path)
        written["sha256"] = _manifest_sha256(written)
    except (ValueError, TypeError, LookupError, AttributeError):
        return  # the manifest itself is beyond repair
    manifest.write_text(json.dumps(written), "utf-8")


class Opener:
    """A process that opens what each line names; another one follows where it is killed.

    Args:
        script: Runs `answer_lines` when it is called with `--open`.
    """

    def __init__(self, script):
        self.script, self.process = script, None

    def __call__(self, line):
        """What the process makes of a line: "opened", "refused", or what went wrong."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, self.script, "--open"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        print(line, file=self.process.stdin, flush=True)
        said = self.process.stdout.readline().strip()
        if not said:
            said = f"killed: {self.process.wait()}"
            self.process = None
        return said

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()


def outcome_of(use, line):
    """What a function makes of a line: "opened", "refused", or what went wrong."""
    try:
        use(line)
    except ValueError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error!r}"
    except Exception as error:
        return repr(error)
    return "opened"


def answer_lines(use):
    """Print the outcome of each line of the standard input."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(outcome_of(use, line.rstrip("\n")), file=answers, flush=True)

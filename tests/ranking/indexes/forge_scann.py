"""Forge ScaNN's files in saved indexes, checksums included, and open them in another process.

    python tests/ranking/indexes/forge_scann.py --folders 500

In each folder some bytes of one file are changed, cut off or appended, or a field of a protocol
buffer gets an extreme value or another length. It must open and answer, or be refused with a
ValueError; a crash of the process or another error is printed, and the exit status is 1.
"""

import argparse
import collections
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scann.partitioning.partitioner_pb2 import SerializedPartitioner
from scann.proto.centers_pb2 import CentersForAllSubspaces
from scann.proto.scann_pb2 import ScannConfig as Settings

from mmret_tf._files import _manifest_sha256, _stamp
from mmret_tf.ranking import ScannConfig, ScannIndex, load_index

FORGED = ("scann_config.pb", "serialized_partitioner.pb", "ah_codebook.pb", "scann_assets.pbtxt")
FORGED += ("datapoint_to_token.npy", "hashed_dataset.npy")
MESSAGES = {
    "scann_config.pb": Settings,
    "serialized_partitioner.pb": SerializedPartitioner,
    "ah_codebook.pb": CentersForAllSubspaces,
}
N, DIM, LEAVES = 200, 6, 8


def make_index(folder):
    """A saved index of 200 vectors."""
    rows = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
    config = ScannConfig(leaves=LEAVES)
    ScannIndex.build(rows, range(N), queries=rows[:20], config=config, seconds=0).save(folder)


def forge(folder, random):
    """Damage one file and mend its checksum in the manifest; return the file's name."""
    path = folder / str(random.choice(FORGED))
    content = bytearray(path.read_bytes())
    kind = random.integers(4)
    if path.name in MESSAGES and random.random() < 0.7:
        message = MESSAGES[path.name].FromString(bytes(content))
        change_field(message, random)
        content = message.SerializeToString()
    elif kind == 0:  # cut off
        del content[random.integers(len(content)) :]
    elif kind == 1:  # appended, such as another message's field
        content += random.bytes(random.integers(1, 30))
    else:  # changed, to extremes or at random
        for at in random.integers(len(content), size=random.integers(1, 6)):
            content[at] = (
                random.choice([0, 1, 127, 128, 255]) if kind == 2 else random.integers(256)
            )
    path.write_bytes(content)
    manifest = folder / "manifest.json"
    written = json.loads(manifest.read_text("utf-8"))
    written["files"][path.name] = _stamp(path)
    written["sha256"] = _manifest_sha256(written)
    manifest.write_text(json.dumps(written), "utf-8")
    return path.name


def change_field(message, random):
    """Change one field somewhere in a message."""
    field, value = message.ListFields()[random.integers(len(message.ListFields()))]
    if hasattr(value, "extend"):
        if random.random() < 0.3:
            del value[random.integers(len(value)) :]
        elif random.random() < 0.3:
            value.extend([value[0]] * int(random.integers(1, 1000)))
        elif field.message_type is None:
            value[random.integers(len(value))] = extreme(value[0], random)
        else:
            change_field(value[random.integers(len(value))], random)
    elif field.message_type is None:
        with contextlib.suppress(ValueError):  # an enumeration, or an unsigned number
            setattr(message, field.name, extreme(value, random))
    elif random.random() < 0.2:
        message.ClearField(field.name)
    elif value.ListFields():
        change_field(value, random)


def extreme(value, random):
    if isinstance(value, bool | str):
        return not value if isinstance(value, bool) else value + "x"
    if isinstance(value, float):
        return float(random.choice([np.nan, np.inf, -1.0, 0.0, 1e38]))
    return int(random.choice([-1, 0, 1, 2, 3, 1000, 2**31 - 1]))


class Opener:
    """A process that opens folders; another one follows where it is killed."""

    def __init__(self):
        self.process = None

    def __call__(self, folder):
        """What it makes of a folder: "opened", "refused", or what went wrong."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--open"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        print(folder, file=self.process.stdin, flush=True)
        said = self.process.stdout.readline().strip()
        if not said:
            said = f"killed: {self.process.wait()}"
            self.process = None
        return said

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()


def open_all():
    """Open each folder named on a line, and print a line for it."""
    for line in sys.stdin:
        try:
            ids, scores = load_index(line.strip()).search(np.ones((3, DIM), np.float32), k=5)
            said = "opened" if np.isfinite(scores).all() else f"scores {scores.tolist()}"
        except ValueError as error:
            said = "refused" if "\n" not in str(error) else f"several lines: {error!r}"
        except Exception as error:
            said = repr(error)
        print(said, flush=True)


def main(folders, seed=0):
    """Print how many were opened and refused; return what went wrong."""
    random, counts, wrong = np.random.default_rng(seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as temporary, contextlib.closing(Opener()) as outcome:
        whole = Path(temporary, "whole")
        make_index(whole)
        assert outcome(whole) == "opened"
        for number in range(folders):
            folder = Path(temporary, str(number))
            shutil.copytree(whole, folder)
            name = forge(folder, random)
            said = outcome(folder)
            counts[said if said in ("opened", "refused") else "wrong"] += 1
            if said not in ("opened", "refused"):
                wrong.append(f"{number}, {name}: {said}")
            shutil.rmtree(folder)
    print(f"{folders} forged: {dict(counts)}", *wrong, sep="\n  ")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.exit(open_all() if options.open else bool(main(options.folders, options.seed)))

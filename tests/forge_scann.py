"""Forge ScaNN's files in saved indexes, checksums included, and open them in another process.

    python tests/forge_scann.py --folders 500

In each folder some bytes of one file are changed, cut off or appended, or a field of a protocol
buffer gets an extreme value or another length. It must open and answer, or be refused with a
ValueError; a crash of the process or another error is printed, and the exit status is 1.
"""

import argparse
import collections
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from forging import FINE, Opener, answer_lines, damaged_bytes, extreme, stamp_again
from scann.partitioning.partitioner_pb2 import SerializedPartitioner
from scann.proto.centers_pb2 import CentersForAllSubspaces
from scann.proto.scann_pb2 import ScannConfig as Settings

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
    content = path.read_bytes()
    if path.name in MESSAGES and random.random() < 0.7:
        message = MESSAGES[path.name].FromString(content)
        change_field(message, random)
        path.write_bytes(message.SerializeToString())
    else:
        path.write_bytes(damaged_bytes(content, random, range(len(content))))
    stamp_again(path)
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


def use(folder):
    """Open an index and search it."""
    _, scores = load_index(folder).search(np.ones((3, DIM), np.float32), k=5)
    assert np.isfinite(scores).all(), scores


def main(folders, seed=0):
    """Print how many were opened and refused; return what went wrong."""
    random, counts, wrong = np.random.default_rng(seed), collections.Counter(), []
    with (
        tempfile.TemporaryDirectory() as temporary,
        contextlib.closing(Opener(__file__)) as outcome,
    ):
        whole = Path(temporary, "whole")
        make_index(whole)
        assert outcome(whole) == "opened"
        for number in range(folders):
            folder = Path(temporary, str(number))
            shutil.copytree(whole, folder)
            name = forge(folder, random)
            said = outcome(folder)
            counts[said if said in FINE else "wrong"] += 1
            if said not in FINE:
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
    sys.exit(answer_lines(use) if options.open else bool(main(options.folders, options.seed)))

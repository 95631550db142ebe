"""Two processes write one store, one index and one export at the same time, again and again.

    python tests/two_writers.py --rounds 40

After each round the folder must be whole and hold what a writer that reported success wrote; the
other one must have written before it, or have been told to wait in one line. Anything else is
printed, and the exit status is 1.
"""

import argparse
import collections
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from conftest import CAPTIONS, make_model

import mmret_tf as mm

KINDS = ("store", "index", "export")


def make_writers(name):
    """Functions that write into a folder, and the vectors that each kind then holds."""
    model = make_model()
    if name == "two":
        model.text_tower.set_weights([-weight for weight in model.text_tower.get_weights()])
    collection = mm.Collection(CAPTIONS, {"text": [[caption] for caption in CAPTIONS]})
    vectors = model.encode_texts(CAPTIONS)
    index = mm.BruteForceIndex.build(vectors, CAPTIONS)
    items = [{"id": caption, "captions": [caption]} for caption in CAPTIONS]
    searcher = mm.Searcher(model, index, items)
    return vectors, {
        "store": lambda folder: mm.EmbeddingStore.export(model, collection, folder),
        "index": index.save,
        "export": lambda folder: mm.export_saved_model(searcher, folder, 1),
    }


def read(kind, folder):
    """The vectors in a whole folder."""
    if kind == "store":
        return np.asarray(mm.EmbeddingStore.open(folder).embeddings)
    if kind == "index":
        return np.asarray(mm.load_index(folder).vectors)
    loaded = tf.saved_model.load(str(folder / "1"))
    return loaded.signatures["encode_text"](text=tf.constant(CAPTIONS))["embedding"].numpy()


def attempt(writer, folder):
    """Write, and say how it went: "wrote", "waited", or what went wrong."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            writer(Path(folder))
        return "wrote"
    except ValueError as error:
        is_told = "another process is writing" in str(error) or "1 exists" in str(error)
        return "waited" if is_told and "\n" not in str(error) else repr(error)
    except Exception as error:
        return repr(error)


def write():
    """Write as the second what each line asks for, and print a line for it."""
    _, writers = make_writers("two")
    print("ready", flush=True)
    for line in sys.stdin:
        kind, folder = line.strip().split(maxsplit=1)
        print(attempt(writers[kind], folder), flush=True)


def main(rounds, kinds=KINDS):
    """Print how often both or one of the writers wrote; return what went wrong."""
    command, pipes = [sys.executable, __file__, "--write"], {"text": True}
    pipes |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    counts, wrong = collections.Counter(), []
    with subprocess.Popen(command, **pipes) as other, tempfile.TemporaryDirectory() as temporary:
        vectors, writers = make_writers("one")
        vectors = [vectors, make_writers("two")[0]]
        assert not np.allclose(*vectors, atol=0.1)
        assert other.stdout.readline() == "ready\n"
        for number in range(rounds):
            for kind in kinds:
                folder = Path(temporary, f"{kind}{number if kind == 'export' else ''}")
                print(kind, folder, file=other.stdin, flush=True)
                said = [attempt(writers[kind], folder), other.stdout.readline().strip()]
                wrote = [each for each, word in zip(vectors, said, strict=True) if word == "wrote"]
                is_known = {*said} <= {"wrote", "waited"}
                if not is_known or not any(
                    np.allclose(read(kind, folder), each, atol=1e-6) for each in wrote
                ):
                    wrong.append(f"{number}, {kind}: {said}")
                counts[f"{kind}, {len(wrote)} wrote"] += 1
        other.stdin.close()
    print(f"{rounds} rounds: {dict(sorted(counts.items()))}", *wrong, sep="\n  ")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.exit(write() if options.write else bool(main(options.rounds)))

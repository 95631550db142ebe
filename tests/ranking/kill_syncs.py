"""Kills `sync_gallery` at random moments, and then at each of its steps that changes a name.

    python tests/ranking/kill_syncs.py FOLDER --kills 50

Before each kill some of 100 pictures are added, removed, painted over, renamed and damaged. After
it, what can be opened must be the whole old gallery or the whole new one. After one more call
store, index and folder must agree, and a search must find what an exact index finds that was built
from nothing. Prints how often the old and the new gallery were found, and the number of steps.

Run by `test_sync.py` as a process of its own: after TensorFlow has worked, a process cannot fork.
"""

import argparse
import dataclasses
import itertools
import os
import random
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from mmret_tf._files import file_sha256
from mmret_tf.data.loading import load
from mmret_tf.data.modalities import get_modality, register_modality
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.index import load_index
from mmret_tf.ranking.indexes.brute_force import BruteForceIndex
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.ranking.sync import sync_gallery

DIM = 8
N_PICTURES = 100
KILLED = 9  # exit status


def check(content):
    """In place of a decoder, which would start TensorFlow in each process."""
    if content == b"damaged":
        raise ValueError("not an image")


class Digests(Encoder):
    """Embeds a file as a vector that is drawn from its digest: equal for equal content alone."""

    towers = {"image": None}
    embedding_dim = DIM
    fingerprint = "digests"

    def encode_items(self, sources):
        return np.stack([vector_of(each.identity) for (each,) in sources["image"]])


def vector_of(digest):
    vector = np.random.default_rng(int(digest[:16], 16)).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def paint(path, generator):
    Image.new("RGB", (8, 8), tuple(generator.randrange(256) for _ in range(3))).save(path)


def change(folder, generator, number):
    """Add, remove, paint over, rename, damage and touch some pictures."""
    paths = sorted(folder.glob("*.png"))
    generator.shuffle(paths)
    for each in range(generator.randrange(12)):
        paint(folder / f"{number:03}_{each}.png", generator)
    for path in paths[:5]:
        path.unlink()
    for path in paths[5:10]:
        paint(path, generator)
    for path in paths[10:13]:
        path.rename(folder / f"moved_{number:03}_{path.name[-20:]}")
    paths[13].write_bytes(b"damaged")
    paths[14].touch()


def expected(folder):
    """The digest of each whole picture."""
    files = {path.name: path for path in folder.glob("*.png")}
    return {name: file_sha256(path) for name, path in files.items() if path.stat().st_size > 7}


def synchronise(run, folder):
    sync_gallery(run, load(folder, check=False), lambda *_: Digests())


def in_child(function, *arguments):
    """The process id of a child that calls a function, and exits with 1 if that fails."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def die_at(step, run, folder):
    """Synchronise in this process, which ends at the step of this number, without cleaning up."""
    steps = itertools.count()

    def counted(function):
        def call(*arguments, **options):
            if next(steps) == step:
                os._exit(KILLED)
            return function(*arguments, **options)

        return call

    for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    synchronise(run, folder)


def check_gallery(run):
    """The digests that store and index hold; None if there is no gallery yet."""
    if not run.embeddings.exists():
        return None
    store, index = EmbeddingStore.open(run.embeddings), load_index(run.index)
    digests = [files["image"][0][0] for files in store.files]
    vectors = np.stack([vector_of(digest) for digest in digests])
    np.testing.assert_array_equal(store.embeddings, vectors)
    held = dict(zip(index.ids, index.vectors, strict=True))
    assert held.keys() == set(store.ids)
    for key, vector in zip(store.ids, vectors, strict=True):
        np.testing.assert_allclose(held[key], vector, atol=1e-6)
    return dict(zip(store.ids, digests, strict=True))


def check_searches(run, found):
    """An index that is built from nothing gives the same results."""
    queries = np.random.default_rng(0).standard_normal((20, DIM))
    names = sorted(found)
    oracle = BruteForceIndex.build([vector_of(found[name]) for name in names], names)
    for mine, right in zip(
        load_index(run.index).search(queries), oracle.search(queries), strict=True
    ):
        if mine.dtype == np.float32:
            np.testing.assert_allclose(mine, right, atol=1e-6)
        else:
            np.testing.assert_array_equal(mine, right)


class Kills:
    """A folder of pictures, and its run; each kill is followed by all checks."""

    def __init__(self, parent):
        self.folder, self.run = parent / "pictures", Run(parent / "run")
        self.folder.mkdir(parents=True)
        self.run.folder.mkdir()
        self.generator, self.seen, self.seconds = random.Random(0), Counter(), 0.2
        for number in range(N_PICTURES):
            paint(self.folder / f"{number:03}.png", self.generator)

    def once(self, number, step=None):
        """Change the folder, kill a call, and complete it; whether it was killed."""
        before = check_gallery(self.run)
        change(self.folder, self.generator, number)
        after = expected(self.folder)
        if step is None:
            child = in_child(synchronise, self.run, self.folder)
            time.sleep(self.generator.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
        else:
            child = in_child(die_at, step, self.run, self.folder)
        _, status = os.waitpid(child, 0)
        found = check_gallery(self.run)
        assert found in (before, after), "neither the old gallery nor the new one"
        self.seen["none" if found is None else "new" if found == after else "old"] += 1
        started = time.monotonic()
        _, completed = os.waitpid(in_child(synchronise, self.run, self.folder), 0)
        self.seconds = 1.1 * (time.monotonic() - started)
        assert completed == 0 and check_gallery(self.run) == after
        check_searches(self.run, after)
        left = sorted(path.name for path in self.run.folder.iterdir())
        assert left == ["embeddings", "index"], left
        return status != 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    register_modality(dataclasses.replace(get_modality("image"), check=check))
    kills = Kills(arguments.folder)
    for number in range(arguments.kills):
        kills.once(number)
    steps = 0
    while kills.once(arguments.kills + steps, step=steps):
        steps += 1
    print(dict(kills.seen), f"{steps} steps")


if __name__ == "__main__":
    main()

"""Kill processes of a distributed embedding and of an index in shards, at random moments.

    python tests/scale/distributed/kill_processes.py --kills 20

An embedding must end, at once or when it is called again, with the store of one process. A search
must give the exact answer of all shards, say which are missing, or raise `ShardLost`; in the end
all are back. Anything else is printed, and the exit status is 1.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import numpy as np
from conftest import make_model
from PIL import Image

from mmret_tf.data import load
from mmret_tf.ranking import BruteForceIndex, EmbeddingStore, Run
from mmret_tf.scale import PartialFound, ShardedIndex, ShardLost

# Seconds in which a call starts, embeds and writes.
LIFE = 20
PICTURES = 4000
MARK = "MMRET_TEST_MARK"


def processes_of(mark, name):
    """Processes with a mark in their environment and this in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:  # not a process, or it has ended
            continue
        if f"{MARK}={mark}".encode() in environment and name in command:
            found.append(int(folder.name))
    return found


def make_run(folder):
    """A run with a model, and pictures of 16 pixels."""
    photos, run = folder / "photos", Run(folder / "run")
    photos.mkdir()
    run.folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, 16, 16, 3), np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(photos / f"{number:04}.png")
    make_model().save(run.model)
    return photos, run


def embed_and_kill(photos, run, random):
    """Start an embedding and kill a worker or the whole call; faults, and whether it ended."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "mmret_tf", "embed", "--ray", "--workers", "2"]
    command += ["--data", str(photos), "--run", str(run.folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=os.environ | {MARK: mark}, **pipes)
    time.sleep(random.uniform(0, LIFE))
    if random.integers(2):
        process.kill()
        process.communicate()
        return [], False
    for pid in processes_of(mark, "ray::EncodingWorker")[:1]:
        os.kill(pid, signal.SIGKILL)
    said = process.communicate()[0]
    return [] if process.returncode == 0 else [said[-2000:]], True


def kill_embeds(folder, kills, seed=0):
    """Kill, then let an embedding finish; return what went wrong."""
    (photos, run), random, wrong, ends = make_run(folder), np.random.default_rng(seed), [], 0
    for _ in range(kills):
        faults, has_ended = embed_and_kill(photos, run, random)
        wrong += faults
        ends += has_ended
        if has_ended:  # start from nothing again
            wrong += differences(photos, run, folder)
            for part in (run.embeddings, run.index):
                for path in (*part.glob("*"), part):
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mmret_tf", "embed", "--ray", "--workers", "2"]
    command += ["--data", str(photos), "--run", str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [*wrong, done.stderr[-2000:]]
    print(f"{kills} kills of an embedding; {ends} ended in the same call")
    return wrong + differences(photos, run, folder)


def differences(photos, run, folder):
    """How a store differs from that of one process."""
    alone = folder / "alone"
    if not alone.exists():
        EmbeddingStore.export(run.load_model(), load(photos), alone)
    one, other = EmbeddingStore.open(alone), EmbeddingStore.open(run.embeddings)
    if one.ids != other.ids or one.made_by != other.made_by or one.files != other.files:
        return ["the store has other items"]
    difference = float(np.abs(one.embeddings - other.embeddings).max())
    return [f"embeddings differ by {difference}"] if difference > 1e-6 else []


class Searching(threading.Thread):
    """Searches without a pause, and compares each answer with the exact one.

    The gallery has a marked item, which changes: its version tells which answer is right.
    """

    def __init__(self, index, oracles, queries):
        super().__init__()
        self.index, self.oracles, self.queries = index, oracles, queries
        self.has_ended, self.wrong = threading.Event(), []
        self.counts = {"whole": 0, "partial": 0, "lost": 0}

    def run(self):
        while not self.has_ended.is_set():
            try:
                ids, scores = found = self.index.search(self.queries, 10)
            except ShardLost:
                self.counts["lost"] += 1
                time.sleep(0.05)
                continue
            except Exception as error:  # reported in the end
                self.wrong.append(f"{type(error).__name__}: {error}")
                return
            is_partial = isinstance(found, PartialFound)
            self.counts["partial" if is_partial else "whole"] += 1
            if not is_partial:
                right = [each.search(self.queries, 10) for each in list(self.oracles)]
                if not any(np.array_equal(ids, r) and np.array_equal(scores, s) for r, s in right):
                    self.wrong.append("an answer of all shards is not exact")
            elif not found.remark or not (np.diff(scores) <= 0).all():
                self.wrong.append("a partial answer is not marked, or not in order")


def kill_shards(folder, kills, seed=0, n=3000, shards=3):
    """Kill shards while others search and change the index; return what went wrong."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, 16)).astype(np.float32)
    queries = random.normal(size=(5, 16)).astype(np.float32)
    index = ShardedIndex.build(rows, range(n), shards=shards, directory=folder)
    oracle = BruteForceIndex.build(rows, range(n))
    oracles = [oracle]  # of the version before a change, and after
    searching = Searching(index, oracles, queries)
    searching.start()
    for number in range(kills):
        index.partial = bool(number % 2)
        time.sleep(random.uniform(0, 1))
        victim = random.integers(shards)
        os.kill(index.stats["shards"][victim]["pid"], signal.SIGKILL)
        ids, vectors = [n + number], random.normal(size=(1, 16)).astype(np.float32)
        changed = BruteForceIndex.build(oracle.vectors, oracle.ids)
        changed.upsert(ids, vectors)
        oracles.append(changed)
        while True:
            try:
                index.upsert(ids, vectors)
                break
            except ShardLost:
                time.sleep(0.1)
        oracle = changed
        time.sleep(0.2)  # searches of the version before have ended
        oracles[:] = [oracle]
    searching.has_ended.set()
    searching.join()
    if sorted(index.ids) != list(range(n + kills)):
        searching.wrong.append("items are missing")
    print(f"{kills} kills of shards: answers {searching.counts}")
    return searching.wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        faults = kill_shards(place, options.kills, options.seed)
        faults += kill_embeds(place, options.kills, options.seed)
    print(*faults or ["all as one process"], sep="\n")
    sys.exit(bool(faults))

"""Kill one of two workers that train together, at random moments; start both again each time.

    python tests/scale/distributed/kill_workers.py --kills 20

In the end the run must hold what one process alone trains: the same losses and embeddings. Anything
else is printed, and the exit status is 1.
"""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from conftest import make_backbone, write_jsonl
from PIL import Image

from mmret_tf._files import write_json
from mmret_tf.models import load_model
from mmret_tf.ranking import EmbeddingStore, Run
from mmret_tf.training import TrainConfig, train

COLOURS = ("red", "green", "blue", "white")
# Seconds in which a worker starts, trains and writes what it made.
LIFE = 20


def make_config(folder):
    """16 pictures to train on and 4 of development, and a frozen backbone."""
    photos, rows = folder / "photos", []
    photos.mkdir()
    for number in range(20):
        colour, split = COLOURS[number % 4], "train" if number < 16 else "dev"
        Image.new("RGB", (20, 20), colour).save(photos / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"{colour} {number}", "split": split})
    write_jsonl(photos, *rows)
    keras.utils.set_random_seed(0)
    make_backbone().save(folder / "backbone.keras")
    settings = {"image_size": 16, "embedding_dim": 8, "word_dim": 8, "units": 8, "batch_size": 8}
    settings |= {"feature_views": 2, "epochs": 3, "learning_rate": 1e-3, "dropout": 0.0}
    return TrainConfig(str(photos), backbone=str(folder / "backbone.keras"), **settings)


def start_workers(config_file, run):
    """Two processes of `mmret train`, as on two machines."""
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    command = [sys.executable, "-m", "mmret_tf", "train", "--strategy", "multiworker"]
    command += ["--config", config_file, "--run", run]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "TF_NUM_INTRAOP_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **pipes))
    return workers


def kill_one(workers, random, run):
    """Kill a worker, and wait for the end of the other; return what is wrong with that."""
    started = time.time()
    time.sleep(random.uniform(0, LIFE))
    victim = random.integers(2)
    other = workers[1 - victim]
    workers[victim].kill()
    workers[victim].communicate()
    try:
        said = other.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        other.kill()
        said = other.communicate()[0]
        # Until all have come, a worker waits for those that are still to be started.
        if not run.config.exists() or run.config.stat().st_mtime < started:
            return []
        return [f"worker {1 - victim} waits for ever: {said[-2000:]}"]
    if other.returncode != 0 and "Traceback" in said:
        return [f"worker {1 - victim} ended with {other.returncode}: {said[-2000:]}"]
    return []


def main(folder, kills, seed=0):
    """Kill, then let both finish; return what went wrong."""
    config, run, file = make_config(folder), Run(folder / "run"), folder / "config.json"
    write_json(file, dataclasses.asdict(config))
    random, wrong = np.random.default_rng(seed), []
    for _ in range(kills):
        wrong += kill_one(start_workers(file, run.folder), random, run)
    workers = start_workers(file, run.folder)
    # Without line breaks: where they stand follows from the length of the folder's name.
    said = [" ".join(worker.communicate()[0].split()) for worker in workers]
    if [worker.returncode for worker in workers] != [0, 0]:
        return [*wrong, *said]
    if "Try: mmret search" not in said[0] or "This worker has finished" not in said[1]:
        wrong += said
    if others := list(folder.glob("run.worker*")):
        wrong.append(f"left behind: {others}")
    alone = train(config, folder / "alone")
    losses = [[epoch["loss"] for epoch in each["history"]] for each in (alone, run.read_report())]
    texts = [
        load_model(each).encode_texts(["red 1", "white 3"])
        for each in (Run(folder / "alone").model, run.model)
    ]
    if len(losses[1]) != 3 or not np.allclose(*losses, atol=1e-4):
        wrong.append(f"losses of one process and of two: {losses}")
    if not np.allclose(*texts, atol=1e-3):
        wrong.append(f"embeddings differ by {np.abs(texts[0] - texts[1]).max()}")
    if len(EmbeddingStore.open(run.embeddings)) != 20:
        wrong.append("embeddings are missing")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        faults = main(Path(temporary), options.kills, options.seed)
    print(*faults or ["as one process"], sep="\n")
    sys.exit(bool(faults))

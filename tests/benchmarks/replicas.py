"""Does training on two devices, or in two processes, end as on one?

    python tests/benchmarks/replicas.py --steps 200

Trains the same dual encoder on drawn scenes by SGD, without dropout and batch normalization: in one
process with the whole batch, on two logical devices under `MirroredStrategy`, and in two processes
under `MultiWorkerMirroredStrategy`. Prints the largest difference between their weights, and recall
on unseen scenes. "local" is what the negatives of a replica's own rows give.
"""

import argparse
import contextlib
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
import tensorflow as tf

import mmret_tf as mm
from mmret_tf.models import encoder as encoders
from mmret_tf.scale.distributed.training import fit_on_replicas

KINDS = ("one process", "mirrored", "multiworker", "mirrored, local")
BATCH = 64


def make_model(pairs: mm.data.Pairs, learning_rate: float) -> mm.DualEncoder:
    """A dual encoder of four convolutions and an LSTM.

    Its activation is smooth: where a ReLU meets a number that is nearly 0, as over the even ground
    of a scene, the last bit of a float decides over a gradient.
    """
    keras.utils.set_random_seed(0)
    text = mm.TextPreprocessor(max_tokens=1000, sequence_length=32)
    text.adapt(pairs.all_captions())
    pictures = keras.Input((48, 48, 3))
    hidden = keras.layers.Rescaling(1 / 127.5, offset=-1)(pictures)
    for width in (32, 64, 128, 256):
        settings = {"padding": "same", "activation": "gelu", "kernel_initializer": "he_normal"}
        hidden = keras.layers.Conv2D(width, 3, 2, **settings)(hidden)
    backbone = keras.Model(pictures, keras.layers.Flatten()(hidden))
    settings = {"image_size": 48, "embedding_dim": 128, "min_crop": 1.0, "trainable": True}
    image = mm.image_tower(backbone, **settings)
    model = mm.DualEncoder(image, mm.text_tower(text, units=128, embedding_dim=128))
    model.compile(keras.optimizers.SGD(learning_rate), mm.losses.ContrastiveCosine())
    return model


def train(kind: str, steps: int, learning_rate: float, output: str) -> None:
    """Train in this process, and save the weights and a report."""
    devices = contextlib.nullcontext()
    if kind == "multiworker":
        devices = tf.distribute.MultiWorkerMirroredStrategy().scope()
    elif kind != "one process":
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        devices = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope()
    if kind.endswith("local"):
        encoders.gather_replicas = lambda arrays: arrays
    pairs = mm.load_pairs("scenes", split="train", size=2000, seed=0)
    with devices:
        model = make_model(pairs, learning_rate)
        options = {"epochs": 1, "steps_per_epoch": steps, "verbose": 0}

        def batches(shard: tuple[int, int]) -> tf.data.Dataset:
            return pairs.as_dataset(model, BATCH, training=True, shard=shard).repeat()

        started = time.perf_counter()
        if kind != "one process":
            fit_on_replicas(model, batches, initial_epoch=0, callbacks=[], **options)
        else:
            model.fit(batches((0, 1)), **options)
        seconds = time.perf_counter() - started
        metrics = mm.evaluate(model, mm.load_pairs("scenes", split="test", size=500, seed=0))
    weights = np.concatenate([np.ravel(each) for each in model.get_weights()])
    np.savez(output, weights=weights, seconds=seconds, **metrics_of(metrics))


def metrics_of(metrics: dict) -> dict[str, float]:
    return {name: metrics[f"{name}_R@10"] for name in ("t2i", "i2t")}


def run(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    """Train in a process of its own, or in two."""
    workers = 2 if kind == "multiworker" else 1
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(workers)]
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_NUM_INTRAOP_THREADS": str(2 // workers)}
        if workers > 1:
            environment["TF_CONFIG"] = json.dumps(task)
        command = [sys.executable, __file__, "--kind", kind, "--output", f"{folder}/{index}.npz"]
        command += ["--steps", str(options.steps), "--learning-rate", str(options.learning_rate)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe))
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]
    with np.load(folder / "0.npz") as file:
        return dict(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        return train(options.kind, options.steps, options.learning_rate, options.output)
    print(f"{'':18}{'seconds':>9}{'t2i R@10':>10}{'i2t R@10':>10}{'weights differ by':>19}")
    whole = None
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = run(kind, options, Path(folder))
        whole = found["weights"] if whole is None else whole
        differ = np.abs(found["weights"] - whole).max()
        recalls = "".join(f"{100 * found[name]:10.1f}" for name in ("t2i", "i2t"))
        print(f"{kind:18}{found['seconds']:9.1f}{recalls}{differ:19.1e}", flush=True)


if __name__ == "__main__":
    main()

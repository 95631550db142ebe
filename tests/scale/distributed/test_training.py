"""Training that is shared between processes ends as that of one process, also after a kill."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import make_backbone, write_jsonl
from PIL import Image

from mmret_tf import cli
from mmret_tf._files import write_json
from mmret_tf.models import load_model
from mmret_tf.ranking import EmbeddingStore, Run
from mmret_tf.scale import distributed_train
from mmret_tf.training import TrainConfig, train

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def config(tmp_path):
    """16 pictures to train on and 4 of development; a frozen backbone; two steps an epoch."""
    folder, rows = tmp_path / "photos", []
    folder.mkdir()
    for number in range(20):
        colour, split = COLOURS[number % 4], "train" if number < 16 else "dev"
        Image.new("RGB", (20, 20), colour).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"{colour} {number}", "split": split})
    write_jsonl(folder, *rows)
    keras.utils.set_random_seed(0)
    make_backbone().save(tmp_path / "backbone.keras")
    settings = {"image_size": 16, "embedding_dim": 8, "word_dim": 8, "units": 8, "batch_size": 8}
    settings |= {"feature_views": 2, "epochs": 3, "learning_rate": 1e-3, "dropout": 0.0}
    return TrainConfig(str(folder), backbone=str(tmp_path / "backbone.keras"), **settings)


def start_workers(config_file, folder):
    """Two processes of `mmret train`, as on two machines."""
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    command = [sys.executable, "-m", "mmret_tf", "train", "--strategy", "multiworker"]
    command += ["--config", config_file, "--run", folder]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "TF_NUM_INTRAOP_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **pipes))
    return workers


def test_two_workers_end_as_one_process_although_one_of_them_was_killed(config, tmp_path):
    run, file = Run(tmp_path / "run"), tmp_path / "config.json"
    write_json(file, dataclasses.asdict(config))
    workers = start_workers(file, run.folder)
    while not (run.backup / "training_metadata.json").exists():
        assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0]
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGKILL)
    said = workers[0].communicate()[0]
    assert workers[1].wait() == -signal.SIGKILL and workers[0].returncode != 0, said
    assert not run.report.exists()

    workers = start_workers(file, run.folder)
    chief, other = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], chief + other
    assert "This worker has finished" in other and "Try: mmret search" in chief
    assert not list(tmp_path.glob("run.worker*"))

    alone = train(config, tmp_path / "alone")
    shared = run.read_report()
    assert shared["epochs_completed"] == 3
    for one, other in zip(alone["history"], shared["history"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    models = [load_model(Run(folder).model) for folder in (tmp_path / "alone", run.folder)]
    texts = [model.encode_texts(["red 1", "white 3"]) for model in models]
    np.testing.assert_allclose(*texts, atol=1e-3)
    assert len(EmbeddingStore.open(run.embeddings)) == 20


def test_each_worker_decodes_its_own_rows(shared_model, config):
    from mmret_tf.data import load_pairs

    pairs = load_pairs(config.data, "train")
    whole, first, second = (
        [groups.numpy() for _, groups in pairs.as_dataset(shared_model, 6, True, shard=shard)]
        for shard in ((0, 1), (0, 2), (1, 2))
    )
    assert len(whole) == 2
    for all_rows, one, other in zip(whole, first, second, strict=True):
        assert np.array_equal(all_rows[::2], one) and np.array_equal(all_rows[1::2], other)
    with pytest.raises(ValueError, match="worker 2 of 2 has no rows of 6"):
        pairs.as_dataset(shared_model, 6, shard=(2, 2))


def test_mistakes_are_told(config, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="strategy must be mirrored or multiworker; got 'tpu'"):
        distributed_train(config, tmp_path / "run", "tpu")
    options = ["--data", config.data, "--run", str(tmp_path / "run"), "--strategy", "multiworker"]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *options])
    assert end.value.code == 2 and "needs the environment variable TF_CONFIG" in (
        capsys.readouterr().err.replace("\n", " ")
    )

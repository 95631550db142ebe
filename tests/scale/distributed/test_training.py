"""Training that is shared between processes ends as that of one process."""

import numpy as np
import pytest
from conftest import write_jsonl
from PIL import Image
from scale.distributed import kill_workers

from mmret_tf import cli
from mmret_tf.data import load_pairs
from mmret_tf.scale import distributed_train
from mmret_tf.training import TrainConfig


def test_two_workers_end_as_one_process(tmp_path):
    """Also after kills, by the script itself."""
    assert kill_workers.main(tmp_path, kills=0) == []


def test_each_worker_decodes_its_own_rows(shared_model, tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": str(number)} for number in range(12)]
    write_jsonl(tmp_path, *rows)
    pairs = load_pairs(tmp_path)
    whole, first, second = (
        [groups.numpy() for _, groups in pairs.as_dataset(shared_model, 6, True, shard=shard)]
        for shard in ((0, 1), (0, 2), (1, 2))
    )
    assert len(whole) == 2
    for all_rows, one, other in zip(whole, first, second, strict=True):
        assert np.array_equal(all_rows[::2], one) and np.array_equal(all_rows[1::2], other)
    with pytest.raises(ValueError, match="worker 2 of 2 has no rows of 6"):
        pairs.as_dataset(shared_model, 6, shard=(2, 2))


def test_mistakes_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["127.0.0.1:1"]}}')
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        distributed_train(TrainConfig(data="photos"), tmp_path, "multiworker")
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(ValueError, match="a second stage is trained by one process"):
        distributed_train(TrainConfig(data="photos", reranker=True), tmp_path)
    with pytest.raises(ValueError, match="strategy must be mirrored or multiworker; got 'tpu'"):
        distributed_train(TrainConfig(data="photos"), tmp_path, "tpu")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--data", "x", "--run", str(tmp_path), "--strategy", "multiworker"])
    message = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "needs the environment variable TF_CONFIG" in message

"""Callbacks: recall after each epoch, the best epoch kept, and dropout that resumes exactly."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.training.callbacks import EpochSeeds, KeepBest, RetrievalMetrics


class FakeModel:
    """What it saves is its state."""

    state = "new"

    def save(self, path):
        path.write_text(self.state)
        if self.state == "interrupted":
            raise KeyboardInterrupt


def end_epochs(keep, *all_logs):
    for logs in all_logs:
        keep.saved.state = f"epoch {len(keep.epochs) + 1}"
        keep.on_epoch_end(len(keep.epochs), logs)


def recall(value):
    return {"loss": 0.5, "val_recall_sum": value}


def test_the_model_of_the_best_epoch_is_kept(tmp_path):
    keep = KeepBest(FakeModel(), tmp_path / "model.keras")
    end_epochs(keep, *map(recall, [1.0, 3.0, 2.0, 3.0]))
    assert keep.best_epoch == 2 and keep.path.read_text() == "epoch 2"
    assert keep.epochs[3] == {"loss": 0.5, "val_recall_sum": 3.0}
    end_epochs(keep, recall(4))
    assert keep.best_epoch == 5 and keep.path.read_text() == "epoch 5"


def test_without_a_validation_set_the_last_epoch_is_kept(tmp_path):
    keep = KeepBest(FakeModel(), str(tmp_path / "model.keras"))
    end_epochs(keep, {"loss": 1.0}, {"loss": 2.0}, None)
    assert keep.best_epoch == 3 and keep.path.read_text() == "epoch 3"
    assert keep.epochs == [{"loss": 1.0}, {"loss": 2.0}, {}]


def test_the_epochs_before_a_kill_count(tmp_path):
    keep = KeepBest(FakeModel(), tmp_path / "model.keras", [recall(1.0), recall(3.0)])
    end_epochs(keep, recall(2))
    assert keep.best_epoch == 2 and not keep.path.exists()
    end_epochs(keep, recall(5))
    assert keep.path.read_text() == "epoch 4"


def test_ctrl_c_while_the_model_is_saved_leaves_nothing_half_written(tmp_path):
    keep = KeepBest(FakeModel(), tmp_path / "model.keras")
    end_epochs(keep, recall(1))
    keep.saved.state = "interrupted"
    with pytest.raises(KeyboardInterrupt):
        keep.on_epoch_end(1, recall(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert keep.path.read_text() == "epoch 1" and keep.epochs == [recall(1)]


def test_recall_on_the_validation_set_is_logged():
    """20 items; the first one has two images, of which the mean counts."""
    draw = np.random.default_rng(0).normal
    vectors = {"image": draw(size=(21, 8)), "text": draw(size=(40, 8))}
    vectors = {name: each.astype(np.float32) for name, each in vectors.items()}
    paths = [[f"{number}.png"] for number in range(21)]
    captions = [["a", "b"]] * 21
    groups = [0, *range(20)]
    pairs = Pairs([str(n) for n in range(21)], {"image": paths, "text": captions}, groups=groups)
    callback = RetrievalMetrics(pairs)
    callback.set_model(SimpleNamespace(encode=lambda modality, sources: vectors[modality]))
    logs = {"loss": 0.5}
    callback.on_epoch_end(0, logs)

    images = vectors["image"] / np.linalg.norm(vectors["image"], axis=1, keepdims=True)
    images = np.concatenate([images[:2].sum(axis=0, keepdims=True), images[2:]])
    metrics = evaluate_retrieval(images, vectors["text"], np.repeat(np.arange(20), 2))
    expected = {
        f"val_{way}_R@{k}": metrics[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)
    }
    expected["val_recall_sum"] = sum(expected.values())
    assert logs == pytest.approx({"loss": 0.5, **expected})


def test_dropout_of_an_epoch_does_not_depend_on_the_epochs_before():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5)])
    callback = EpochSeeds()
    callback.set_model(model)

    def epoch(number):
        callback.on_epoch_begin(number)
        return [np.array(model(np.ones((1, 50)), training=True)) for _ in range(2)]

    masks = [epoch(number) for number in (0, 1, 2)]
    again = epoch(1)
    np.testing.assert_array_equal(again, masks[1])
    assert len({mask.tobytes() for step in masks for mask in step}) == 6  # all differ

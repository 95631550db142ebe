"""The recipe on small data: what a run leaves, what it caches, and what interrupts it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_backbone
from PIL import Image

from mmret_tf import training
from mmret_tf.datasets import load_pairs
from mmret_tf.dual_encoder import DualEncoder, load_model
from mmret_tf.embeddings import EmbeddingStore
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.training import KeepModel, RetrievalMetrics, TrainConfig, evaluate, train

COLOURS = {"red": "红色", "blue": "蓝色", "green": "绿色", "black": "黑色", "white": "白色"}


def make_collection(folder):
    """Twenty pictures of plain colours, each with an English and a Chinese caption."""
    folder.mkdir()
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as file:
        for number in range(20):
            name, chinese = list(COLOURS.items())[number % 5]
            Image.new("RGB", (40, 30), name).save(folder / f"{number}.png")
            record = {
                "image": f"{number}.png",
                "captions": [f"picture {number} is {name}", f"{chinese}的图{number}"],
                "split": "train" if number < 14 else "dev",
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return folder


def make_config(folder):
    make_backbone().save(folder / "backbone.keras")
    return TrainConfig(
        data=str(make_collection(folder / "photos")),
        backbone=str(folder / "backbone.keras"),
        image_size=16,
        embedding_dim=8,
        word_dim=8,
        units=8,
        epochs=2,
        batch_size=7,
    )


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A config, its report, and the folder of its run, which tests only read."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(folder)
    return config, train(config, folder / "run"), folder / "run"


def test_a_run_is_complete(finished):
    config, report, run = finished
    assert json.loads((run / "report.json").read_text(encoding="utf-8")) == report
    assert json.loads((run / "config.json").read_text())["batch_size"] == 7
    assert report["train_images"] == 14 and report["development_images"] == 6
    assert report["epochs_completed"] == 2 and not report["is_interrupted"]
    assert 0 <= report["history"][1]["val_t2i_R@10"] <= 1

    model = load_model(run / "model.keras")
    store = EmbeddingStore.open(run / "embeddings")
    assert store.ids == [f"{number}.png" for number in range(20)]
    expected = model.encode_images([item["image"] for item in store.items])
    assert np.allclose(store.embeddings, expected, atol=1e-5)
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "embeddings",
        "features",
        "model.keras",
        "report.json",
    ]
    development = load_pairs(config.data, "dev")
    again = evaluate(model, development)
    for name in ("t2i_R@1", "i2t_R@1", "t2i_meanr", "i2t_meanr"):
        assert again[name] == pytest.approx(report["development"][name])


def test_the_vocabulary_is_that_of_the_training_split(finished):
    _, _, run = finished
    vocabulary = load_model(run / "model.keras").text_preprocessor.get_vocabulary()
    assert "13" in vocabulary and "14" not in vocabulary


def test_a_repeated_run_gives_the_same_model(finished, tmp_path):
    config, report, _ = finished
    reports = [report, train(config, tmp_path / "run")]
    losses = [[epoch["loss"] for epoch in report["history"]] for report in reports]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_features_of_a_frozen_backbone_are_computed_once(finished, tmp_path, monkeypatch):
    config, _, finished_run = finished
    run = shutil.copytree(finished_run, tmp_path / "run")

    def fail(self, images):
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr("mmret_tf.towers.ImageTower.features_on_batch", fail)
    train(config, run)
    other = str(tmp_path / "other.keras")
    make_backbone(width=4).save(other)
    with pytest.raises(AssertionError, match="asked again"):  # another backbone, other features
        train(dataclasses.replace(config, backbone=other), run)


def test_a_frozen_backbone_trains_on_scenes_too(config, tmp_path):
    """Their gallery is not what they train on."""
    scenes = dataclasses.replace(config, data="scenes", scenes=8, epochs=1, batch_size=4)
    report = train(scenes, tmp_path / "run")
    assert report["train_images"] == 8 and report["development_images"] == 200
    assert len(EmbeddingStore.open(tmp_path / "run" / "features")) == 208
    assert len(EmbeddingStore.open(tmp_path / "run" / "embeddings")) == 200


def test_ctrl_c_keeps_the_last_epoch(config, tmp_path, monkeypatch):
    class CtrlC(KeepModel):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "KeepModel", CtrlC)
    report = train(config, tmp_path / "run")
    assert report["is_interrupted"] and report["epochs_completed"] == 1
    assert int(load_model(tmp_path / "run" / "model.keras").optimizer.iterations) == 2


def test_ctrl_c_before_the_first_epoch_ends_leaves_no_model(config, tmp_path, monkeypatch):
    class CtrlC(KeepModel):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "KeepModel", CtrlC)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_ctrl_c_while_the_model_is_saved_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def interrupted(path):
        path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    keep = KeepModel(tmp_path / "model.keras")
    keep.set_model(model)
    keep.on_epoch_end(0)
    monkeypatch.setattr(model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep.on_epoch_end(1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert len(keep.epochs) == 1 and isinstance(load_model(keep.path), DualEncoder)


def test_bad_files_are_named_in_the_report_and_training_goes_on(config, tmp_path):
    collection = Path(config.data)
    Image.new("RGB", (40, 30), "red").save(collection / "whole.jpg")
    cut = (collection / "whole.jpg").read_bytes()[:-200]
    (collection / "whole.jpg").unlink()
    (collection / "truncated.jpg").write_bytes(cut)
    (collection / "empty.png").write_bytes(b"")
    (collection / "text.jpg").write_text("hello")
    Image.new("RGB", (4, 4)).save(collection / "alone.png")
    with open(collection / "captions.jsonl", "a", encoding="utf-8") as file:
        for name in ("truncated.jpg", "empty.png", "text.jpg", "gone.jpg"):
            file.write(json.dumps({"image": name, "caption": "bad", "split": "train"}) + "\n")
    with pytest.warns(UserWarning, match="5 of 25 entries were put aside"):
        report = train(config, tmp_path / "run")
    reasons = {place: reason for place, reason in report["quarantined"]}
    assert "truncated" in reasons["truncated.jpg"]
    assert reasons["empty.png"] == "empty file"
    assert "not an image" in reasons["text.jpg"]
    assert "does not exist" in reasons["gone.jpg"]
    assert reasons["alone.png"] == "image without a caption"
    assert report["epochs_completed"] == 2


def test_evaluate_reports_both_languages_apart(model, tmp_path):
    pairs = load_pairs(make_collection(tmp_path / "photos"), "dev")
    metrics = evaluate(model, pairs)
    images, texts = model.encode_images(pairs.image_paths), model.encode_texts(pairs.all_captions())
    rows = np.arange(6)
    assert metrics["english"] == evaluate_retrieval(images, texts[0::2], rows)
    assert metrics["chinese"] == evaluate_retrieval(images, texts[1::2], rows)
    assert (metrics["images"], metrics["captions"]) == (6, 12)


def test_retrieval_metrics_stand_in_the_history(model, batch, tmp_path):
    callback = RetrievalMetrics(load_pairs(make_collection(tmp_path / "photos"), "dev"))
    history = model.fit(batch, epochs=2, verbose=0, callbacks=[callback]).history
    assert history["val_i2t_R@10"] == [1.0, 1.0]  # there are but six images and twelve captions
    assert len(history["val_t2i_R@1"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0; got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0; got -1.0"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**change)


def test_the_optimizer_is_that_of_the_config():
    settings = {"weights": "none", "backbone": "MobileNetV3Small", "image_size": 32}
    config = TrainConfig(**settings, learning_rate=0.5, weight_decay=0.01)
    optimizer = training.build_model(config, ["a red circle"], steps=20).optimizer
    schedule = keras.saving.deserialize_keras_object(optimizer.get_config()["learning_rate"])
    # Up in 2 steps, then 0.5 (1 + cos(pi t / 18)) / 2: its top, its middle and its end.
    rates = [float(schedule(step)) for step in (0, 1, 2, 11, 20)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-6)
    assert optimizer.weight_decay == 0.01
    config = TrainConfig(**settings, weight_decay=0.0)
    assert training.build_model(config, ["a red circle"], steps=20).optimizer.weight_decay is None

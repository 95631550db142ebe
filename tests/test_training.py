"""The recipe on small data: what a run leaves, what it caches, and what interrupts it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_backbone
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import projector

from mmret_tf import training
from mmret_tf.callbacks import KeepBest, RetrievalMetrics, averaged_weights
from mmret_tf.config import TrainConfig
from mmret_tf.datasets import PairDataset, load_pairs
from mmret_tf.dual_encoder import DualEncoder, load_model
from mmret_tf.embeddings import EmbeddingStore
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.features import backbone_features, feature_views
from mmret_tf.measuring import evaluate
from mmret_tf.preprocessing import load_image
from mmret_tf.towers import ImageTower
from mmret_tf.training import build_model, train

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
        "history.csv",
        "logs",
        "model.keras",
        "report.json",
    ]
    development = load_pairs(config.data, "dev")
    again = evaluate(model, development)
    for name in ("t2i_R@1", "i2t_R@1", "t2i_meanr", "i2t_meanr"):
        assert again[name] == pytest.approx(report["development"][name])


def test_tensorboard_has_the_curves_and_the_development_images(finished):
    _, report, run = finished
    curves = EventAccumulator(str(run / "logs" / "validation")).Reload()
    points = curves.Tensors("epoch_recall_sum")
    values = [tf.make_ndarray(point.tensor_proto).item() for point in points]
    recalls = [epoch["val_recall_sum"] for epoch in report["history"]]
    assert [point.step for point in points] == [0, 1] and values == pytest.approx(recalls)

    model, development = load_model(run / "model.keras"), load_pairs(finished[0].data, "dev")
    vectors = np.loadtxt(run / "logs" / "vectors.tsv", delimiter="\t")
    assert np.allclose(vectors, model.encode_images(development.image_paths), atol=1e-5)
    labels = (run / "logs" / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert labels == [captions[0] for captions in development.captions]
    thumbnails = np.asarray(Image.open(run / "logs" / "thumbnails.png"))
    assert thumbnails.shape == (3 * 48, 3 * 48, 3)  # six pictures
    for place, picture in enumerate(load_image(path, 48) for path in development.image_paths):
        top, left = place // 3 * 48, place % 3 * 48
        assert np.array_equal(thumbnails[top : top + 48, left : left + 48], picture)
    config = projector.ProjectorConfig()
    text_format.Parse((run / "logs" / "projector_config.pbtxt").read_text(), config)
    assert config.embeddings[0].tensor_path == "vectors.tsv"


def test_the_vocabulary_is_that_of_the_training_split(finished):
    _, _, run = finished
    vocabulary = load_model(run / "model.keras").text_preprocessor.get_vocabulary()
    assert "13" in vocabulary and "14" not in vocabulary


def test_a_run_is_repeated_from_its_configuration_bit_for_bit(finished, tmp_path):
    _, report, run = finished
    again = train(TrainConfig.load(run / "config.json"), tmp_path / "run")
    assert again["history"] == report["history"]
    first, second = (load_model(folder / "model.keras") for folder in (run, tmp_path / "run"))
    for one, other in zip(first.weights, second.weights, strict=True):
        assert np.array_equal(one, other)


def test_features_of_a_frozen_backbone_are_computed_once(finished, tmp_path, monkeypatch):
    config, _, finished_run = finished
    run = shutil.copytree(finished_run, tmp_path / "run")

    def fail(self, images, scales):
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr("mmret_tf.towers.ImageTower.features_on_batch", fail)
    train(config, run)
    other = str(tmp_path / "other.keras")
    make_backbone(width=4).save(other)
    with pytest.raises(AssertionError, match="asked again"):  # another backbone, other features
        train(dataclasses.replace(config, backbone=other), run)


def test_models_with_the_same_backbone_share_its_features(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, feature_layers=("convolution",))
    pairs = load_pairs(config.data)
    first = backbone_features(build_model(config, ["x"], 1), [pairs], tmp_path / "features")(pairs)
    monkeypatch.setattr(ImageTower, "features_on_batch", None)  # it is not asked again
    for change in ({}, {"units": 4, "members": 2, "precision": "mixed_bfloat16"}):
        model = build_model(dataclasses.replace(config, **change), ["x"], 1)
        again = backbone_features(model, [pairs], tmp_path / "features")(pairs)
        assert np.array_equal(again, first) and again.shape == (20, 16)


def test_the_cache_knows_pictures_by_their_content(finished, tmp_path, monkeypatch):
    config, _, finished_run = finished
    run = shutil.copytree(finished_run, tmp_path / "run")
    photos = shutil.copytree(config.data, tmp_path / "photos")  # elsewhere, but the same
    moved = dataclasses.replace(config, data=str(photos), epochs=1)
    asked = []
    compute = ImageTower.features_on_batch
    monkeypatch.setattr(
        ImageTower, "features_on_batch", lambda *args: asked.append(0) or compute(*args)
    )
    train(moved, run)
    assert not asked
    Image.new("RGB", (40, 30), "yellow").save(photos / "3.png")  # under the old name
    train(moved, run)
    assert asked
    pairs = load_pairs(photos)
    features = backbone_features(load_model(run / "model.keras"), [pairs], run / "features")
    expected = load_model(run / "model.keras").image_tower.features(
        np.stack([load_image(path, 16) for path in pairs.image_paths])
    )
    assert np.allclose(features(pairs), expected, atol=1e-5)


def test_views_are_the_picture_its_mirror_image_and_crops(config, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "plain.png")
    paths = [tmp_path / "noise.png", tmp_path / "plain.png", tmp_path / "noise.png"]
    pairs = PairDataset(["a", "b", "c"], paths, [["x"]] * 3, [{}] * 3, [""] * 3)
    model = build_model(config, ["x"], steps=1)
    plain = backbone_features(model, [pairs], tmp_path / "features")(pairs)
    views = feature_views(model, pairs, plain, tmp_path / "views", views=4, min_crop=0.5)
    assert views.shape == (3, 4, 8) and np.array_equal(views[:, 0], plain)
    mirrored = model.image_tower.features(noise[None, :, ::-1])
    assert np.allclose(views[0, 1], mirrored[0], atol=1e-5)
    assert len(np.unique(views[0].round(4), axis=0)) == 4  # the crops are other pictures
    assert np.allclose(views[1], views[1, :1], atol=1e-5)  # of one colour: all the same
    assert np.array_equal(views[0], views[2])
    again = feature_views(model, pairs, plain, tmp_path / "again", views=4, min_crop=0.5)
    assert np.array_equal(again, views)
    wider = feature_views(model, pairs, plain, tmp_path / "views", views=4, min_crop=0.9)
    assert not np.allclose(wider[0, 2:], views[0, 2:], atol=1e-3)  # other crops, another cache


def test_views_take_turns_at_the_scales(config, tmp_path, monkeypatch):
    def mean_scale(self, images, scales):
        return np.full((len(images), 1), np.mean(scales))

    monkeypatch.setattr(ImageTower, "features_on_batch", mean_scale)
    pairs = load_pairs(config.data)
    model = build_model(dataclasses.replace(config, scales=(16, 20, 30)), ["x"], steps=1)
    plain = backbone_features(model, [pairs], tmp_path / "features")(pairs)
    views = feature_views(model, pairs, plain, tmp_path / "views", views=7, min_crop=0.5)
    assert views[3, :, 0].tolist() == [22, 16, 20, 20, 30, 30, 16]


def test_a_picture_that_vanished_is_named(config, tmp_path):
    pairs = load_pairs(config.data)
    pairs.image_paths[3].unlink()
    with pytest.raises(ValueError, match=r"3\.png: No such file"):
        backbone_features(build_model(config, ["x"], 1), [pairs], tmp_path / "features")


def test_views_and_several_captions_are_trained_on(config, tmp_path):
    changed = dataclasses.replace(
        config,
        feature_views=3,
        captions_per_image=2,
        pooling="max",
        bag_of_words=True,
        batch_size=14,
        scales=(16, 24),
    )
    report = train(changed, tmp_path / "run")
    assert report["epochs_completed"] == 2
    assert EmbeddingStore.open(tmp_path / "run" / "views").embeddings.shape[1] == 2 * 8
    assert TrainConfig.load(tmp_path / "run" / "config.json") == changed


def test_a_frozen_backbone_trains_on_scenes_too(config, tmp_path):
    """Their gallery is not what they train on."""
    scenes = dataclasses.replace(config, data="scenes", scenes=8, epochs=1, batch_size=4)
    report = train(scenes, tmp_path / "run")
    assert report["train_images"] == 8 and report["development_images"] == 200
    assert len(EmbeddingStore.open(tmp_path / "run" / "features")) == 208
    assert len(EmbeddingStore.open(tmp_path / "run" / "embeddings")) == 200


def test_ctrl_c_keeps_the_last_epoch(config, tmp_path, monkeypatch):
    class CtrlC(KeepBest):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "KeepBest", CtrlC)
    report = train(config, tmp_path / "run")
    assert report["is_interrupted"] and report["epochs_completed"] == 1
    assert int(load_model(tmp_path / "run" / "model.keras").optimizer.iterations) == 4


def test_ctrl_c_before_the_first_epoch_ends_leaves_no_model(config, tmp_path, monkeypatch):
    class CtrlC(KeepBest):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "KeepBest", CtrlC)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_ctrl_c_while_the_model_is_saved_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def interrupted(path):
        path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    keep = KeepBest(tmp_path / "model.keras")
    keep.set_model(model)
    keep.on_epoch_end(0)
    monkeypatch.setattr(model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep.on_epoch_end(1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert len(keep.epochs) == 1 and isinstance(load_model(keep.path), DualEncoder)


def kill_after(epochs, monkeypatch):
    """Let the process die when so many epochs are backed up; `KeyError` stands for it."""

    class Killed(keras.callbacks.BackupAndRestore):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch + 1 == epochs:
                raise KeyError("killed")

    monkeypatch.setattr(keras.callbacks, "BackupAndRestore", Killed)


@pytest.mark.parametrize("weight_averaging", [0.0, 0.5])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    config, tmp_path, monkeypatch, weight_averaging
):
    config = dataclasses.replace(config, epochs=4, weight_averaging=weight_averaging)
    unbroken = train(config, tmp_path / "unbroken")
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        kill_after(2, patched)
        train(config, tmp_path / "killed")
    with open(tmp_path / "killed" / "history.csv", "a", encoding="utf-8") as file:
        file.write("2,0,0,0\n")  # of an epoch that was logged, and not backed up
    resumed = train(config, tmp_path / "killed")
    for name in ("history", "best_epoch", "epochs_completed", "development"):
        assert resumed[name] == unbroken[name]
    logs = [(tmp_path / name / "history.csv").read_text() for name in ("killed", "unbroken")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 5
    assert not (tmp_path / "killed" / "backup").exists()


def test_a_killed_run_of_another_configuration_is_not_gone_on_with(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        kill_after(1, patched)
        train(config, tmp_path / "run")
    report = train(dataclasses.replace(config, seed=1), tmp_path / "run")
    other = train(dataclasses.replace(config, seed=1), tmp_path / "other")
    assert report["history"] == other["history"]


def test_the_model_of_the_best_epoch_is_kept(model, tmp_path):
    keep = KeepBest(tmp_path / "model.keras")
    keep.set_model(model)
    for epoch, recall in enumerate([1.0, 3.0, 2.0, 3.0]):
        model.log_temperature.assign(-epoch)
        keep.on_epoch_end(epoch, {"val_recall_sum": recall})
    assert keep.best_epoch == 2 and len(keep.epochs) == 4
    assert float(load_model(keep.path).log_temperature) == -1


def test_without_a_validation_set_the_last_epoch_is_kept(model, tmp_path):
    keep = KeepBest(tmp_path / "model.keras")
    keep.set_model(model)
    for epoch in range(3):
        model.log_temperature.assign(-epoch)
        keep.on_epoch_end(epoch, {"loss": 1.0 + epoch})
    assert keep.best_epoch == 3 and float(load_model(keep.path).log_temperature) == -2


@pytest.fixture
def scripted_recall(monkeypatch):
    """The second epoch is the best; the fourth is as good, which is not better."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_recall_sum"] = [1.0, 3.0, 2.0, 3.0, 4.0][epoch]

    monkeypatch.setattr(RetrievalMetrics, "on_epoch_end", on_epoch_end)


def test_training_ends_when_recall_no_longer_rises(config, tmp_path, scripted_recall):
    report = train(dataclasses.replace(config, epochs=5, patience=2), tmp_path / "run")
    assert report["best_epoch"] == 2 and report["epochs_completed"] == 4
    assert not report["is_interrupted"]
    report = train(dataclasses.replace(config, epochs=5, patience=3), tmp_path / "run")
    assert report["best_epoch"] == 5


@pytest.mark.parametrize("epochs", [3, 4])
def test_a_killed_run_waits_no_longer_than_an_unbroken_one(
    config, tmp_path, monkeypatch, scripted_recall, epochs
):
    config = dataclasses.replace(config, epochs=5, patience=2)
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        kill_after(epochs, patched)
        train(config, tmp_path / "run")
    report = train(config, tmp_path / "run")
    assert report["best_epoch"] == 2 and report["epochs_completed"] == 4


def test_the_mean_of_the_weights_is_evaluated_and_the_weights_come_back(model, batch):
    """A gradient of 2 takes a weight from 6 to 4 and to 2, where their mean is 3."""
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    weight = model.log_temperature
    weight.assign(6)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    for _ in range(2):
        optimizer.apply_gradients(
            (np.full(each.shape, 2.0 * (each is weight), "f4"), each)
            for each in model.trainable_variables
        )
    assert float(weight) == 2
    with averaged_weights(model):
        assert float(weight) == 3
    assert float(weight) == 2


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
    development = load_pairs(make_collection(tmp_path / "photos"), "dev")
    callback = RetrievalMetrics(development)
    history = model.fit(batch, epochs=2, verbose=0, callbacks=[callback]).history
    metrics = evaluate(model, development)
    for k in (1, 5, 10):
        for name in (f"i2t_R@{k}", f"t2i_R@{k}"):
            assert len(history[f"val_{name}"]) == 2
            assert history[f"val_{name}"][-1] == pytest.approx(metrics[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0; got 0"),
        ({"batch_size": 3}, "batch_size must be at least twice captions_per_image"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0; got -1.0"),
        ({"weight_averaging": 1.0}, "weight_averaging must be from 0 to below 1; got 1.0"),
        ({"clip_norm": -1.0}, "clip_norm must not be below 0; got -1.0"),
        ({"epochs": 2.5}, "epochs must be of type int; got 2.5"),
        ({"epochs": True}, "epochs must be of type int; got True"),
        ({"scales": [224, 0]}, "scales must be sides in pixels, above 0; got [224, 0]"),
        ({"scales": 224}, "scales must be of type tuple[int, ...]; got 224"),
        ({"feature_layers": [1]}, "feature_layers must be of type tuple[str, ...]; got [1]"),
        ({"bag_of_words": 1}, "bag_of_words must be of type bool; got 1"),
        ({"rnn": None}, "rnn must be of type str; got None"),
        ({"dropout": "0.3"}, "dropout must be of type float; got '0.3'"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0; got nan"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown setting 'epoch' in FILE; did you mean 'epochs'?"),
        ('{"xyz": 3}', "unknown setting 'xyz' in FILE; known: data, scenes,"),
        ('{"epochs": "3"}', "epochs must be of type int; got '3'"),
        ("[1]", "FILE must hold a JSON object of settings"),
        ("{", "FILE is no JSON file of settings"),
    ],
)
def test_configurations_that_cannot_be_read(text, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message.replace("FILE", str(file)))):
        TrainConfig.load(file)
    with pytest.raises(ValueError, match="is no JSON file of settings"):
        TrainConfig.load(tmp_path / "gone.json")


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


def test_decay_is_for_kernels_alone():
    settings = {"weights": "none", "backbone": "MobileNetV3Small", "image_size": 32}
    model = training.build_model(TrainConfig(**settings), ["a red circle"], steps=20)
    variables = model.trainable_variables
    model.optimizer.build(variables)
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    for _ in range(2):  # with no gradient there is decay alone; the rate of the first step is 0
        model.optimizer.apply_gradients([(np.zeros(v.shape, "f4"), v) for v in variables])
    shrunk = {v.path.rsplit("/")[-1] for v in variables if np.all(v.numpy() < 1)}
    kept = {v.path.rsplit("/")[-1] for v in variables if np.all(v.numpy() == 1)}
    assert shrunk == {"kernel", "recurrent_kernel"}
    assert kept == {"bias", "gamma", "beta", "embeddings", "log_temperature"}

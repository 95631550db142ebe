"""The recipe on small data: what a run leaves, and what interrupts, resumes and fine-tunes it."""

import dataclasses
import json
import shutil
import warnings
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone, write_jsonl
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmret_tf.data.decoders.clips import encode_frames
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.decoders.sounds import encode_wav
from mmret_tf.data.loading import load_pairs
from mmret_tf.evaluation import evaluate
from mmret_tf.models.dual_encoder import load_model
from mmret_tf.ranking import EmbeddingStore, Run
from mmret_tf.training import trainer
from mmret_tf.training.caches import features as feature_cache
from mmret_tf.training.caches import views as view_cache
from mmret_tf.training.callbacks import KeepBest
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.splits import Splits
from mmret_tf.training.trainer import build_model, killed_run, train

COLOURS = {"red": "红色", "blue": "蓝色", "green": "绿色", "black": "黑色", "white": "白色"}


def draw_photos(folder, n_train, n_dev):
    """Pictures of plain colours with an English and a Chinese caption each."""
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as file:
        for number in range(n_train + n_dev):
            name, chinese = list(COLOURS.items())[number % 5]
            Image.new("RGB", (20, 16), name).save(folder / f"{number}.png")
            row = {
                "image": f"{number}.png",
                "captions": [f"picture {number} is {name}", f"{chinese}的图{number}"],
                "split": "train" if number < n_train else "dev",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    keras.utils.set_random_seed(0)
    backbone = tmp_path_factory.mktemp("backbone") / "backbone.keras"
    make_backbone().save(backbone)
    return TrainConfig(
        data=draw_photos(tmp_path_factory.mktemp("photos"), 14, 6),
        backbone=str(backbone),
        image_size=16,
        embedding_dim=8,
        word_dim=8,
        units=8,
        feature_views=3,
        epochs=2,
        batch_size=14,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A report, and its run, which tests only read."""
    run = Run(tmp_path_factory.mktemp("finished") / "run")
    return train(config, run.folder), run


@pytest.fixture(scope="module")
def finished_model(finished):
    return load_model(finished[1].model)


def test_a_run_is_complete(config, finished, finished_model):
    report, run = finished
    assert run.read_report() == report and TrainConfig.load(run.config) == config
    assert report["train_images"] == 14 and report["development_images"] == 6
    assert report["epochs_completed"] == 2 and not report["is_interrupted"]
    assert 0 <= report["history"][1]["val_t2i_R@10"] <= 1
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.json",
        "embeddings",
        "features",
        "history.csv",
        "logs",
        "model.keras",
        "report.json",
    ]
    store = EmbeddingStore.open(run.embeddings)
    assert store.ids == [f"{number}.png" for number in range(20)]
    assert store.fingerprint == finished_model.fingerprint
    expected = finished_model.encode_images([item["image"] for item in store.items])
    np.testing.assert_allclose(store.embeddings, expected, atol=1e-5)
    views = EmbeddingStore.open(run.features / "views")
    assert views.embeddings.shape == (5, 2 * 8)  # the colours of the training pictures


@pytest.mark.parametrize("backbone", ["frozen", "SmallCNN"])
def test_a_run_without_the_check_sets_damaged_pictures_aside_as_it_meets_them(
    config, backbone, tmp_path
):
    folder = tmp_path / "photos"
    shutil.copytree(config.data, folder)
    for number in (3, 15):  # of training and of development
        (folder / f"{number}.png").write_bytes(b"no picture")
    settings = {"data": str(folder), "check": False, "epochs": 1, "batch_size": 6}
    if backbone != "frozen":
        settings |= {"backbone": backbone, "weights": "none"}
    with warnings.catch_warnings(action="ignore"):  # of each that training meets
        report = train(dataclasses.replace(config, **settings), tmp_path / "run")
    places = [place for place, _ in report["quarantined"]]
    assert places == [str(folder / "3.png"), str(folder / "15.png")]
    assert report["development"]["images"] == 5
    assert len(EmbeddingStore.open(Run(tmp_path / "run").embeddings)) == 18


def test_the_report_is_that_of_the_saved_model(config, finished, finished_model):
    report, _ = finished
    again = evaluate(finished_model, load_pairs(config.data, "dev"))
    for name in ("t2i_R@1", "i2t_R@1", "t2i_meanr", "i2t_meanr"):
        assert again[name] == pytest.approx(report["development"][name])


def test_tensorboard_has_the_curves_and_the_development_images(config, finished, finished_model):
    report, run = finished
    curves = EventAccumulator(str(run.logs / "validation")).Reload()
    points = curves.Tensors("epoch_recall_sum")
    values = [tf.make_ndarray(point.tensor_proto).item() for point in points]
    recalls = [epoch["val_recall_sum"] for epoch in report["history"]]
    assert [point.step for point in points] == [0, 1] and values == pytest.approx(recalls)

    development = load_pairs(config.data, "dev")
    vectors = np.loadtxt(run.logs / "vectors.tsv", delimiter="\t")
    expected = finished_model.encode_images(development.image_paths)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    labels = (run.logs / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert labels == [captions[0] for captions in development.captions]
    thumbnails = np.asarray(Image.open(run.logs / "thumbnails.png"))
    assert thumbnails[5, 5].tolist() == [255, 255, 255]  # the first development picture is white


def test_the_vocabulary_is_that_of_the_training_split(finished_model):
    vocabulary = finished_model.text_preprocessor.get_vocabulary()
    assert "13" in vocabulary and "14" not in vocabulary


def test_an_interrupted_run_resumes_as_if_nothing_had_happened(
    config, finished, finished_model, tmp_path, monkeypatch
):
    class CtrlC(KeepBest):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def fail(*arguments):
        raise AssertionError("features that are in the cache were computed again")

    unbroken, finished_run = finished
    run = Run(tmp_path / "run")
    shutil.copytree(finished_run.features, run.features)
    monkeypatch.setattr(view_cache._ViewEncoder, "encode", fail)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "KeepBest", CtrlC)
        report = train(config, run.folder)
    assert report["is_interrupted"] and report["epochs_completed"] == 1
    assert report["history"] == unbroken["history"][:1]
    assert int(load_model(run.model).optimizer.iterations) == 2

    with open(run.history, "a", encoding="utf-8") as file:
        file.write("1,0,0,0\n")  # of an epoch that was logged when a kill came, and not backed up
    resumed = train(config, run.folder)
    for name in ("history", "best_epoch", "epochs_completed", "development", "is_interrupted"):
        assert resumed[name] == unbroken[name]
    assert run.history.read_text() == finished_run.history.read_text()
    assert load_model(run.model).fingerprint == finished_model.fingerprint  # bit for bit
    assert not run.backup.exists()


@pytest.fixture
def killed(config, tmp_path):
    """The files of a run that was killed in its third epoch, after the line of history.csv."""
    run = Run(tmp_path)
    for folder in (run.backup, run.logs):
        folder.mkdir()
    (run.backup / "training_metadata.json").write_text('{"epoch": 2, "batch": 0}')
    run.config.write_text(json.dumps(dataclasses.asdict(config)))
    run.history.write_text("epoch,loss,spread\n0,3.5,0.5\n1,2.5,0.25\n2,1.5,0.125\n")
    return run


def test_the_epochs_of_a_killed_run_are_those_that_were_backed_up(config, killed):
    epochs = [{"loss": 3.5, "spread": 0.5}, {"loss": 2.5, "spread": 0.25}]
    assert killed_run(config, killed) == epochs
    assert killed.history.read_text() == "epoch,loss,spread\n0,3.5,0.5\n1,2.5,0.25\n"
    assert killed.backup.exists() and killed.logs.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"seed": 1}'),  # another configuration
        ("config.json", "{"),
        ("backup/training_metadata.json", None),
        ("backup/training_metadata.json", "[]"),
        ("history.csv", "epoch,loss\n0,3.5\n"),
        ("history.csv", "epoch,loss\n0,3.5\n1,x\n"),
    ],
)
def test_stale_state_is_never_resumed(config, killed, name, content):
    path = killed.folder / name
    path.unlink() if content is None else path.write_text(content)
    assert killed_run(config, killed) == []
    assert not killed.backup.exists() and not killed.logs.exists()


def run_fit(config, run, fit, epochs=()):
    """Call `_fit` with three batches, numbered, and an encoder that has only this `fit`."""
    training = SimpleNamespace(as_dataset=lambda *arguments, **shard: tf.data.Dataset.range(3))
    splits = Splits((training,), (), None)
    keep = KeepBest(None, run.model, epochs)
    return trainer._fit(config, run, SimpleNamespace(fit=fit), keep, splits, trainer.fit_here)


def test_ctrl_c_before_the_first_epoch_ends_leaves_no_model(config, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fit(config, Run(tmp_path), interrupt)
    assert run_fit(config, Run(tmp_path), interrupt, [{"loss": 1.0}])  # the first epoch is kept


def test_a_resumed_run_skips_the_batches_of_its_epochs(config, tmp_path):
    calls = []
    fit = lambda dataset, **options: calls.append((dataset, options))  # noqa: E731
    assert not run_fit(config, Run(tmp_path), fit, [{"loss": 2.0}])
    [(dataset, options)] = calls
    assert list(dataset.take(4).enumerate().as_numpy_iterator()) == [(0, 0), (1, 1), (2, 2), (3, 0)]
    assert (options["steps_per_epoch"], options["epochs"]) == (3, 2)
    assert options["initial_epoch"] == 1
    assert options["verbose"] == 2  # one line an epoch, in a log file


def test_scenes_train_on_others_than_their_gallery(config, tmp_path, monkeypatch):
    scenes = dataclasses.replace(config, data="scenes", scenes=8)
    splits = Splits.load(scenes)
    sizes = [len(part) for part in (*splits.training, *splits.development, splits.gallery)]
    assert sizes == [8, 200, 200]
    cached = SimpleNamespace(cached=lambda part: part, encoder=lambda model: model)
    given = []
    monkeypatch.setattr(
        feature_cache, "FeatureCache", lambda *arguments: given.append(arguments) or cached
    )
    frozen = SimpleNamespace(backbone=SimpleNamespace(trainable=False))
    model = SimpleNamespace(towers={"image": frozen})
    assert feature_cache.with_cache(scenes, Run(tmp_path), model, splits) == (model, splits)
    [(_, sources, _, augmented, views)] = given
    assert len(sources) == 208 and len(augmented) == 8 and views == 3


def test_a_finished_run_is_fine_tuned(config, finished, finished_model, tmp_path):
    changes = {"initial_model": str(finished[1].model), "thaw_from": "convolution"}
    changes |= {"learning_rate": 1e-5, "epochs": 1}
    run = Run(tmp_path / "tuned")
    train(dataclasses.replace(config, **changes), run.folder)
    tuned = load_model(run.model)
    before, after = (
        model.image_tower.backbone.get_layer("convolution").kernel.numpy()
        for model in (finished_model, tuned)
    )
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(before, after, atol=1e-4)
    before, after = (model.text_tower.get_weights() for model in (finished_model, tuned))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # it did not start anew
    assert not run.features.exists()  # they change with every step


def test_a_frozen_run_in_mixed_precision_without_the_check_and_a_development_split(
    config, tmp_path
):
    (tmp_path / "photos").mkdir()
    data = draw_photos(tmp_path / "photos", 9, 0)
    (tmp_path / "photos" / "4.png").write_bytes(b"no picture")
    changes = {"data": data, "precision": "mixed_float16", "epochs": 1, "batch_size": 8}
    changes |= {"check": False}
    run = Run(tmp_path / "run")
    report = train(dataclasses.replace(config, **changes), run.folder)
    assert report["epochs_completed"] == 1 and np.isfinite(report["history"][0]["loss"])
    assert report["development_images"] == 0 and "development" not in report
    assert [place for place, _ in report["quarantined"]] == [str(tmp_path / "photos" / "4.png")]
    store, loaded = EmbeddingStore.open(run.embeddings), load_model(run.model)
    assert loaded.dtype_policy.name == "mixed_float16"
    images = [item["image"] for item in store.items]
    np.testing.assert_allclose(store.embeddings, loaded.encode_images(images), atol=1e-3)


def test_mixed_precision_learns_and_is_saved(config, batch, tmp_path):
    changed = dataclasses.replace(config, precision="mixed_bfloat16", learning_rate=0.05)
    model = build_model(changed, CAPTIONS, steps=20)
    assert keras.config.dtype_policy().name == "float32"  # of everything else
    assert model.image_tower.head.compute_dtype == "bfloat16"
    inputs = batch | {"text": model.text_preprocessor(CAPTIONS).numpy()}
    losses = model.fit(inputs, epochs=16, verbose=0).history["loss"]
    assert np.mean(losses[-4:]) < 0.6 * losses[0]

    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == "mixed_bfloat16" and loaded.fingerprint == model.fingerprint
    expected, again = model(inputs), loaded(inputs)
    for name in ("image", "text"):
        assert again[name].dtype == "float32" and np.array_equal(again[name], expected[name])


SCRATCH = TrainConfig(
    weights="none", backbone="SmallCNN", image_size=16, embedding_dim=8, word_dim=8, units=8
)


def test_the_optimizer_is_that_of_the_config():
    config = dataclasses.replace(SCRATCH, learning_rate=0.5, weight_decay=0.01)
    optimizer = build_model(config, CAPTIONS, steps=20).optimizer
    schedule = keras.saving.deserialize_keras_object(optimizer.get_config()["learning_rate"])
    # Up in 2 steps, then 0.5 (1 + cos(pi t / 18)) / 2: its top, its middle and its end.
    rates = [float(schedule(step)) for step in (0, 1, 2, 11, 20)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-6)
    assert optimizer.weight_decay == 0.01
    config = dataclasses.replace(SCRATCH, weight_decay=0.0)
    assert build_model(config, CAPTIONS, steps=20).optimizer.weight_decay is None


def decay(model, steps=2):
    """Steps without a gradient, where decay alone acts; the rate of the first step is 0."""
    variables = model.trainable_variables
    model.optimizer.build(variables)
    for _ in range(steps):
        model.optimizer.apply([keras.ops.zeros_like(each) for each in variables], variables)


def test_decay_is_for_kernels_alone():
    model = build_model(SCRATCH, CAPTIONS, steps=20)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    decay(model)
    values = {each.path.rsplit("/")[-1]: each.numpy() for each in model.trainable_variables}
    shrunk = {name for name, value in values.items() if np.all(value < 1)}
    kept = {name for name, value in values.items() if np.all(value == 1)}
    assert shrunk == {"kernel", "recurrent_kernel"}
    assert kept == {"bias", "gamma", "beta", "embeddings", "log_temperature"}


def test_thawed_layers_are_slow_and_do_not_decay(config):
    changed = dataclasses.replace(config, thaw_from="convolution", weight_decay=0.1)
    model = build_model(changed, CAPTIONS, steps=10)
    variables = model.trainable_variables
    slow = [variables[place].path for place in model.optimizer.slow]
    assert slow == ["convolution/kernel", "convolution/bias"]
    assert model.optimizer.slow_share == 0.1
    thawed = model.image_tower.backbone.get_layer("convolution").kernel
    others = model.image_tower.head.projections[0].kernel
    before = thawed.numpy(), others.numpy()
    decay(model)
    assert np.array_equal(thawed, before[0]) and np.all(np.abs(others) < np.abs(before[1]))


def draw_senses(folder, n_train=12, n_dev=4):
    """Items that have a picture, a sound or a clip each in turn, all with captions."""
    rows = []
    for number in range(n_train + n_dev):
        modality = ("image", "audio", "video")[number % 3]
        level = 16 * number
        name, content = {
            "image": (f"{number}.png", encode_png(np.full((16, 16, 3), level))),
            "audio": (f"{number}.wav", encode_wav(np.full(1000, number / 40), 4000)),
            "video": (f"{number}.png", encode_frames(np.full((2, 16, 16, 3), level))),
        }[modality]
        (folder / name).write_bytes(content)
        split = "train" if number < n_train else "dev"
        rows.append({modality: name, "captions": [f"level {number}"], "split": split})
    write_jsonl(folder, *rows)
    return str(folder)


def test_sounds_and_clips_are_learned_where_the_collection_has_them(config, tmp_path):
    sizes = {"frames": 2, "rate": 4000, "seconds": 0.25, "batch_size": 4}
    (tmp_path / "senses").mkdir()
    data = draw_senses(tmp_path / "senses")
    senses = dataclasses.replace(config, data=data, audio=True, video=True, **sizes)
    run = Run(tmp_path / "run")
    report = train(senses, run.folder)
    parts = ["image_and_text", "audio_and_text", "video_and_text"]
    assert list(report["development"]) == parts and report["train_images"] == 12
    assert report["development"]["audio_and_text"]["audio"] == 1
    assert "val_text_to_audio_R@1" in report["history"][0]
    model = load_model(run.model)
    assert model.modalities == ["image", "audio", "video", "text"]
    assert EmbeddingStore.open(run.embeddings).fingerprint == model.fingerprint
    # The frozen backbone of pictures and frames is computed once.
    assert [(run.features / name).is_dir() for name in ("plain", "video/plain")] == [True, True]

    without_clips = dataclasses.replace(senses, data=data, video=False)
    assert Splits.load(without_clips).modalities == ["image", "audio"]


def test_drawn_sounds_need_no_setting_and_pictures_have_no_sounds(config):
    drawn = dataclasses.replace(config, data="sounds", scenes=5)
    assert Splits.load(drawn).modalities == ["audio"]
    worlds = Splits.load(dataclasses.replace(config, data="worlds", scenes=5))
    assert worlds.modalities == ["image"] and len(worlds.training[0]) == 5
    with pytest.raises(ValueError, match="scenes have no audio"):
        Splits.load(dataclasses.replace(config, data="scenes", scenes=5, audio=True))
    with pytest.raises(ValueError, match="has both video and text"):
        Splits.load(dataclasses.replace(config, video=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reranker": True}, "a re-ranker reads pictures alone"),
        ({"thaw_from": "conv"}, "are for pictures, which are not learned here"),
        ({"region_layers": ("conv",)}, "are for pictures, which are not learned here"),
    ],
)
def test_settings_of_pictures_are_refused_before_sounds_are_trained(settings, message, tmp_path):
    config = TrainConfig(data="sounds", scenes=4, batch_size=4, epochs=1, **settings)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()

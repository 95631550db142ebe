"""Training of the second stage: what is in a batch, that it learns, and that a run is completed."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from conftest import make_model, write_config, write_jsonl
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import load_pairs
from mmret_tf.ranking import Run
from mmret_tf.training import TrainConfig, fit_reranker, train
from mmret_tf.training.caches.regions import RegionCache
from mmret_tf.training.reranking import GROUP, order_of_neighbours

COLOURS = ("red", "green", "blue", "white")


def test_neighbours_stand_together():
    random = np.random.default_rng(0)
    embeddings = np.eye(4)[random.permutation(np.repeat(np.arange(4), 8))]
    order = order_of_neighbours(embeddings, random)
    assert sorted(order) == list(range(32))
    for start in range(0, 32, GROUP):
        kinds = embeddings[order[start : start + GROUP]].argmax(axis=1)
        assert np.bincount(kinds).max() >= GROUP // 2
    assert len(order_of_neighbours(np.eye(3), random)) == 3  # fewer than a group
    assert order.tolist() != order_of_neighbours(embeddings, random).tolist()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 pictures of two halves: the captions say what is on the left. One vector for a picture
    of this backbone, an average, does not tell the sides apart."""
    folder, rows = tmp_path_factory.mktemp("halves"), []
    for number in range(24):
        left, right = COLOURS[number % 4], COLOURS[(number + 1 + number // 4 % 3) % 4]
        picture = Image.new("RGB", (16, 16), left)
        picture.paste(right, (8, 0, 16, 16))
        picture.putpixel((0, 0), (number, 0, 0))  # no two are equal
        picture.save(folder / f"{number}.png")
        split = "train" if number < 18 else "dev"
        caption = f"{left} then {right}"
        rows.append({"image": f"{number}.png", "caption": caption, "split": split})
    write_jsonl(folder, *rows)
    return folder


def test_it_learns_what_the_first_stage_cannot(photos, tmp_path):
    pairs = load_pairs(photos, "train")
    text = mm.TextPreprocessor(max_tokens=50, sequence_length=4)
    text.adapt(pairs.all_captions())
    model = make_model(text)
    before = model.fingerprint
    reranker = mm.Reranker(model, dim=16, dropout=0.0)
    cache = RegionCache(model.image_tower, pairs.first_sources, tmp_path / "regions")
    cached = cache.cached(pairs)
    embeddings = model.encode("image", pairs.first_sources)
    options = {"epochs": 25, "batch_size": 18, "learning_rate": 1e-2, "verbose": 0}
    history = fit_reranker(cache.reranker(reranker), cached, embeddings, **options)
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert model.fingerprint == before  # the first stage is frozen
    own = reranker.readers["text"].words.get_weights()[0]
    assert np.abs(own - model.text_tower.words.get_weights()[0]).max() > 1e-3  # from there on


@pytest.fixture(scope="module")
def config(photos):
    path = write_config(photos, photos, epochs=1, batch_size=4, reranker=True, reranker_epochs=1)
    return TrainConfig.load(path)


def test_a_run_gets_its_second_stage(config, tmp_path, monkeypatch):
    report = train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert report["reranked"].keys() == report["development"].keys()
    run.build_index()
    reranker = run.load_reranker()
    found = run.open_searcher(reranker=reranker).search("red then green", k=3)
    assert len(found) == 3 and reranker.encoder.fingerprint == run.load_model().fingerprint

    # A kill in the second stage: the first is not trained again.
    lost = json.loads(run.report.read_text(encoding="utf-8"))
    del lost["reranked"]
    run.report.write_text(json.dumps(lost), encoding="utf-8")
    run.reranker.unlink()
    before = run.model.read_bytes()
    monkeypatch.setattr("mmret_tf.training.trainer._train_encoder", None)
    again = train(config, run.folder)
    assert run.reranker.is_file() and run.model.read_bytes() == before
    assert again["reranked"]["t2i_meanr"] == pytest.approx(report["reranked"]["t2i_meanr"])


def test_a_first_stage_that_was_cut_short_is_resumed_first(config, tmp_path, monkeypatch):
    """A report of an older training does not stand for the model of a later one."""
    train(dataclasses.replace(config, reranker=False), tmp_path / "run")
    run, called = Run(tmp_path / "run"), []
    run.backup.mkdir()  # what a kill leaves

    def interrupted(*_):
        called.append("encoder")
        report = json.loads(run.report.read_text(encoding="utf-8")) | {"is_interrupted": True}
        run.report.write_text(json.dumps(report), encoding="utf-8")

    monkeypatch.setattr("mmret_tf.training.trainer._train_encoder", interrupted)
    assert "reranked" not in train(config, run.folder)  # Ctrl-C ends both stages
    assert called == ["encoder"] and not run.reranker.exists()


def test_a_first_stage_of_another_recipe_is_trained_again(config, tmp_path, monkeypatch):
    first = dataclasses.replace(config, reranker=False)
    train(first, tmp_path / "run")
    called = []
    monkeypatch.setattr(
        "mmret_tf.training.trainer._train_encoder", lambda *_: called.append("encoder")
    )
    monkeypatch.setattr(
        "mmret_tf.training.trainer.train_reranker", lambda *_: called.append("reranker")
    )
    train(config, tmp_path / "run")  # the same, with a second stage
    assert called == ["reranker"]

    run = Run(tmp_path / "run")
    report = run.read_report() | {"config": dataclasses.asdict(config), "reranked": {}}
    run.report.write_text(json.dumps(report), encoding="utf-8")
    train(dataclasses.replace(config, reranker_epochs=2), run.folder)  # another second stage
    assert called[1:] == ["reranker"]
    train(config, run.folder)  # nothing is missing: all is trained again
    assert called[2:] == ["encoder", "reranker"]
    train(dataclasses.replace(config, seed=1), run.folder)
    assert called[4:] == ["encoder", "reranker"]


def test_a_model_without_regions_is_refused(tmp_path):
    images = keras.Input((16, 16, 3))
    flat = keras.Model(images, keras.layers.Flatten()(images))
    with pytest.raises(ValueError, match="it has no regions"):
        mm.Reranker(make_model(backbone=flat))

"""A run's folder: opened as a searcher, indexed, and refused where its parts do not fit."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from mmret_tf import _files
from mmret_tf.fusion import FusedEncoder, GatedFusion
from mmret_tf.models.dual_encoder import DualEncoder, load_model
from mmret_tf.models.encoder import VariantEncoder
from mmret_tf.ranking import Searcher, load_index, run
from mmret_tf.ranking.run import Run
from mmret_tf.similarity import losses


@pytest.fixture
def copied(run_folder, tmp_path):
    """A run that a test may change."""
    return Run(shutil.copytree(run_folder, tmp_path / "copied"))


def make_old(folder):
    """Turn a folder of this version into one of mmret_tf 0.1."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | {"version": 1}
    manifest["sha256"] = _files._manifest_sha256(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_run_knows_its_files(tmp_path):
    paths = vars(Run(tmp_path))
    assert paths.pop("folder") == tmp_path
    assert {path.parent for path in paths.values()} == {tmp_path}
    assert len(set(paths.values())) == len(paths)
    assert Run(str(tmp_path)).report == tmp_path / "report.json"


def test_a_run_is_opened_with_its_model(run_folder, shared_model):
    opened = Run(run_folder)
    assert isinstance(opened.load_model(), DualEncoder)
    searcher = opened.open_searcher()
    assert searcher.encoder.fingerprint == shared_model.fingerprint and len(searcher.index) == 4
    assert opened.read_report() == {}
    variant = VariantEncoder(shared_model, {}, "int8")
    assert Searcher.open(run_folder, variant).encoder is variant


def test_a_run_is_opened_without_the_optimizer(copied, shared_model):
    model = load_model(copied.model)
    model.compile("adam", losses.ContrastiveCosine())
    model.optimizer.build(model.trainable_variables)
    model.save(copied.model)
    assert load_model(copied.model).compiled and not copied.load_model().compiled
    assert copied.open_searcher().encoder.fingerprint == shared_model.fingerprint


def test_the_report_is_read(tmp_path):
    opened = Run(tmp_path)
    opened.report.write_text('{"caption": "红"}', encoding="utf-8")
    assert opened.read_report() == {"caption": "红"}


@pytest.mark.parametrize("content", ["", '{"history": ', "[" * 100_000, "[1]", "\ud800"])
def test_a_damaged_report_is_refused(tmp_path, content):
    Run(tmp_path).report.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="report.json is damaged: "):
        Run(tmp_path).read_report()


def test_a_fusion_of_the_run_embeds_its_queries(copied, shared_model):
    fused = FusedEncoder(load_model(copied.model), GatedFusion(4))
    fused.save(copied.fusion)
    assert isinstance(copied.open_searcher().encoder, FusedEncoder)
    assert copied.open_searcher(shared_model).encoder is shared_model
    model = fused.encoder
    model.set_weights([weight + 1 for weight in model.get_weights()])
    FusedEncoder(model, GatedFusion(4)).save(copied.fusion)
    with pytest.raises(ValueError, match="was made by another model"):
        copied.open_searcher()
    shutil.copy(copied.model, copied.fusion)
    with pytest.raises(ValueError, match="holds a DualEncoder, not a FusedEncoder"):
        copied.open_searcher()


def test_embeddings_of_another_model_are_refused(copied, model):
    model.text_tower.words.embeddings.assign_add(np.ones(model.text_tower.words.embeddings.shape))
    model.save(copied.model)
    with pytest.raises(ValueError, match="made by another model .* `mmret embed`"):
        copied.open_searcher()


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no run at .*gone: expected a folder"):
        Searcher.open(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no model at .*model\.keras"):
        Searcher.open(tmp_path)


def test_runs_of_version_0_1_are_refused_in_one_line(copied):
    def refusal():
        with pytest.raises(ValueError) as caught:
            copied.open_searcher()
        return str(caught.value)

    make_old(copied.index)
    messages = [refusal()]
    make_old(copied.embeddings)
    messages.append(refusal())
    with zipfile.ZipFile(copied.model, "w") as archive:
        archive.writestr("config.json", '{"module": "mmret_tf.dual_encoder"}')
    messages.append(refusal())
    assert "index has version 1" in messages[0] and "embeddings has version 1" in messages[1]
    assert "was made by mmret_tf 0.1: train the model again" in messages[2]
    assert not any("\n" in message for message in messages)


def test_an_index_is_built_over_the_embeddings(copied, shared_model):
    shutil.rmtree(copied.index)
    lines = []
    built = copied.build_index(progress=lines.append)
    assert len(built) == 4 and (built.stats["mode"], built.stats["recall"]) == ("exact", 1.0)
    found = copied.open_searcher(shared_model).search("a red circle", where={"price": {"$gte": 20}})
    assert {result.id for result in found} == {"002", "003"}


def test_a_large_gallery_is_tuned_on_some_of_its_captions(copied, shared_model, pairs, monkeypatch):
    given = []

    def build(embeddings, ids, recall_target, queries, **options):
        given.append((recall_target, queries))
        return load_index(copied.index)

    monkeypatch.setattr(run, "build_index", build)
    monkeypatch.setattr(Run, "load_model", lambda self: shared_model)
    copied.build_index()
    assert given == [(0.95, None)]  # small enough for exact search
    monkeypatch.setattr(run, "EXACT_BELOW", 4)
    for limit, rows in ((4, [0, 1, 2, 3]), (3, [0, 2]), (1, [0])):
        monkeypatch.setattr(run, "TUNED_QUERIES", limit)
        copied.build_index(recall_target=0.9)
        expected = shared_model.encode_texts([pairs.all_captions()[row] for row in rows])
        np.testing.assert_allclose(given[-1][1], expected, atol=1e-6)
        assert given[-1][0] == 0.9

"""What all indexes share: search by eye, files, other classes of indexes, and no ScaNN at all."""

import ast
import builtins
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranking.galleries import BOTH, METRICS, clustered, found

import mmret_tf
from mmret_tf import _files
from mmret_tf.ranking import BruteForceIndex, Index, ScannConfig, ScannIndex
from mmret_tf.ranking.index import build_index, load_index

ROOT = Path(mmret_tf.__file__).parents[1]


@BOTH
def test_cosine_by_eye(kind):
    built = kind.build([[3, 0], [0, 2], [3, 4], [0, 0]], ["east", "north", "between", "nowhere"])
    ids, scores = built.search([[10, 0], [0, 1]], k=4)
    assert ids.tolist() == [
        ["east", "between", "north", "nowhere"],  # cosines 1, 0.6, 0, and 0: the first row first
        ["north", "between", "east", "nowhere"],  # cosines 1, 0.8, 0, 0
    ]
    np.testing.assert_allclose(scores, [[1, 0.6, 0, 0], [1, 0.8, 0, 0]], atol=1e-6)
    assert scores.dtype == np.float32
    assert (len(built), built.dim, built.metric) == (4, 2, "cosine")
    assert built.stats == {"mode": "exact", "recall": 1.0}


@BOTH
def test_euclidean_scores_are_negative_squared_distances(kind):
    built = kind.build([[0, 0], [3, 4], [1, 0]], [10, 20, 30], metric="euclidean")
    ids, scores = built.search([0, 0], k=3)
    assert ids.tolist() == [[10, 30, 20]] and ids.dtype == np.int64
    np.testing.assert_allclose(scores, [[0, -1, -25]])


@BOTH
def test_conditions_and_exclusions_by_eye(kind):
    shoes = [{"price": 50, "tags": ["new"]}, {"price": 80}, {"price": 120, "tags": ["sale"]}]
    index = kind.build([[1, 0], [1, 0.1], [1, 0.2]], [1, 2, 3], attributes=shoes)
    assert found(index, [1, 0], where={"price": {"$gte": 60}}) == [2, 3]
    assert found(index, [1, 0], where={"tags": {"$in": ["new", "sale"]}}, k=1) == [1]
    assert found(index, [1, 0], where={"price": 7}) == []
    assert found(index, [1, 0], exclude_ids=[1, 99]) == [2, 3]
    assert found(index, [1, 0], where={"price": {"$lt": 100}}, exclude_ids={2}) == [1]
    index.upsert([2, 4], [[1, 0.1], [1, 0.3]])  # 2 keeps its attributes, 4 has none
    assert found(index, [1, 0], where={"price": {"$gte": 60}}) == [2, 3]
    assert found(index, [1, 0], where={"price": {"$ne": 80}}) == [1, 3, 4]
    index.upsert([4], [[1, 0.3]], attributes=[{"price": 200, "colour": "蓝色"}])
    assert found(index, [1, 0], where={"colour": "蓝色"}) == [4]


@BOTH
@METRICS
def test_bad_arguments_are_refused(kind, metric):
    with pytest.raises(ValueError, match="ids must be unique; 1 come more than once: 'a'"):
        kind.build(np.eye(2), ["a", "a"], metric=metric)
    built = kind.build(np.eye(2), ["a", "b"], metric=metric, attributes=[{"price": 5}, {}])
    for queries, reason in (
        (np.ones((1, 3)), "queries must have width 2; got 3"),
        ([1.0], "queries must have width 2; got 1"),
        ([], "non-empty"),
        (np.ones((0, 2)), "non-empty"),
        ([[0, np.nan]], "queries holds NaN"),
        ("red", "must be an array of numbers"),
    ):
        with pytest.raises(ValueError, match=reason):
            built.search(queries)
    for k in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="k must be an integer of at least 1; got"):
            built.search([1, 0], k=k)
    for options, reason in (
        ({"where": {"prise": 5}}, "no item has the attribute 'prise'; there are: price"),
        ({"where": "cheap"}, "must be a dictionary"),
        ({"exclude_ids": "a"}, "exclude_ids must be a list of ids; got 'a'"),
        ({"exclude_ids": [1]}, "exclude_ids must be strings, as in the index; got 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            built.search([1, 0], **options)


@BOTH
@METRICS
def test_an_index_is_the_same_after_saving(kind, metric, tmp_path):
    points, queries = clustered(50), clustered(20, seed=1)
    names = ["007", "7", "红色的圆", "a\nb", "\udc80", *map(str, range(100, 145))]
    attributes = [{"even": row % 2 == 0} for row in range(50)]
    built = kind.build(points, names, metric=metric, attributes=attributes)
    built.save(tmp_path / "index")
    loaded = load_index((tmp_path / "index").rename(tmp_path / "索引"))
    assert type(loaded) is kind and isinstance(loaded.vectors, np.memmap)
    assert (loaded.ids, loaded.metric, loaded.dim) == (names, metric, 32)
    for options in ({}, {"where": {"even": True}}):
        expected = built.search(queries, **options)
        for each, right in zip(loaded.search(queries, **options), expected, strict=True):
            np.testing.assert_array_equal(each, right)
    loaded.save(str(tmp_path / "索引"))  # over the files that it reads
    assert load_index(tmp_path / "索引").search(queries)[0].tolist() == (
        built.search(queries)[0].tolist()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["索引"]


@BOTH
def test_an_emptied_index_can_be_saved(kind, tmp_path):
    index = kind.build(np.eye(2), ["a", "b"])
    index.delete([])
    index.delete(["b", "a"])
    for _ in range(2):
        index.save(tmp_path / "index")
        index = load_index(tmp_path / "index")
        assert len(index) == 0 and found(index, [1, 0]) == []
        index.rebalance()
    index.upsert(["c"], [[1, 0]])
    assert found(index, [1, 0]) == ["c"]


def test_only_an_index_is_replaced(tmp_path):
    built = BruteForceIndex.build(np.eye(2), ["a", "b"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no manifest.json"):
        built.save(tmp_path)
    built.save(tmp_path / "index")
    ScannIndex.build(np.eye(3), ["c", "d", "e"]).save(tmp_path / "index")
    assert load_index(tmp_path / "index").ids == ["c", "d", "e"]
    (tmp_path / "index" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        built.save(tmp_path / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "notes.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_saving_leaves_an_index_that_loads_old_or_new(tmp_path):
    script = Path(__file__).with_name("kill_saves.py")
    command = [sys.executable, str(script), str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = ast.literal_eval(done.stdout)
    assert sum(loaded.values()) == 50 and min(loaded.get("old", 0), loaded.get("new", 0)) > 5


class RoundedIndex(Index):
    """An approximate index as a user would write it: ranks by embeddings of one decimal digit."""

    def prepare(self, items):
        return dataclasses.replace(items, vectors=items.vectors.round(1))

    def write(self, folder):
        np.save(folder / "rounded.npy", self.engine.vectors)
        return {"digits": 1}

    @classmethod
    def read(cls, folder, manifest, snapshot):
        assert manifest["digits"] == 1
        rounded = np.load(folder / "rounded.npy", mmap_mode="r")
        engine = dataclasses.replace(snapshot.base, vectors=rounded)
        return cls(dataclasses.replace(snapshot, engine=engine))


def test_an_index_of_another_class_is_searched_changed_saved_and_opened(tmp_path):
    index = RoundedIndex.build([[1, 0.04], [1, 0], [0, 1]], ["a", "b", "c"])
    assert found(index, [1, 0]) == ["a", "b", "c"]  # a is rounded to b
    index.upsert(["d"], [[1, 0.5]], attributes=[{"new": True}])
    index.delete(["b"])
    index.save(tmp_path / "index")
    assert (tmp_path / "index" / "rounded.npy").exists()
    index = load_index(tmp_path / "index")
    assert type(index) is RoundedIndex and isinstance(index.engine.vectors, np.memmap)
    assert found(index, [1, 0]) == ["a", "d", "c"]
    assert found(index, [1, 0], where={"new": True}) == ["d"]
    index.rebalance()
    assert index.ids == ["a", "c", "d"] and len(index.engine.vectors) == 3


def test_an_index_without_files_of_its_own_is_prepared_again_when_it_is_opened(tmp_path):
    class SilentIndex(RoundedIndex):
        write, read = Index.write, Index.__dict__["read"]

    SilentIndex.build([[1, 0.04], [1, 0]], ["a", "b"]).save(tmp_path / "index")
    assert not (tmp_path / "index" / "rounded.npy").exists()
    loaded = load_index(tmp_path / "index")
    assert type(loaded) is SilentIndex and found(loaded, [1, 0]) == ["a", "b"]


def test_an_index_cannot_be_made_without_a_way_to_build():
    class Half(Index):
        pass

    with pytest.raises(TypeError, match="abstract method '?prepare"):
        Half.build(np.eye(2), ["a", "b"])


@pytest.fixture
def without_scann(monkeypatch):
    """As on a machine for which ScaNN has no wheel."""

    def fail(name, *args, real=builtins.__import__, **kwargs):
        if name.startswith("scann"):
            raise ModuleNotFoundError("No module named 'scann'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)


def test_without_scann_all_is_exact_with_one_warning(tmp_path, request):
    points, queries = clustered(100), clustered(10, seed=1)
    built = build_index(points, range(100))
    built.save(tmp_path / "index")
    assert type(built) is ScannIndex
    request.getfixturevalue("without_scann")
    for make in (lambda: build_index(points, range(100)), lambda: load_index(tmp_path / "index")):
        with pytest.warns(
            UserWarning, match="ScaNN cannot be imported .*exact, but slower"
        ) as seen:
            exact = make()
        assert len(seen) == 1 and "\n" not in str(seen[0].message)
        assert seen[0].filename == __file__
        assert type(exact) is BruteForceIndex
        np.testing.assert_array_equal(exact.search(queries)[0], built.search(queries)[0])
    with pytest.raises(ImportError, match=r"ScaNN cannot be imported \(No module named 'scann'\)"):
        ScannIndex.build(points, range(100))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A folder with every file that a partitioned index can have; not to be changed."""
    points, queries = clustered(500), clustered(100, seed=1)
    names = [f"图{row}" for row in range(500)]
    attributes = [{"even": row % 2 == 0} for row in range(500)]
    config = ScannConfig(leaves=22)
    built = ScannIndex.build(points, names, queries=queries, attributes=attributes, config=config)
    built.upsert(["new"], queries[:1])
    folder = tmp_path_factory.mktemp("saved") / "index"
    built.save(folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(saved_once, tmp_path / "index"))


FRESH = """
import sys
import numpy as np
from mmret_tf.ranking.index import build_index, load_index
exact, partitioned, queries = sys.argv[1:]
def loaded():
    right = [f"mmret_tf.{folder}" for folder in ("scale", "serving", "training", "evaluation")]
    return sorted({"scann", "tensorflow", *right} & {*sys.modules})
assert not loaded(), loaded()
assert type(load_index(exact)).__name__ == "BruteForceIndex" and not loaded(), loaded()
index = load_index(partitioned)
assert type(index).__name__ == "ScannIndex" and loaded() == ["scann", "tensorflow"], loaded()
index.rebalance()
print(load_index(partitioned).search(np.load(queries))[0].tolist())
"""


def test_a_fresh_process_imports_scann_for_a_scann_index_alone_and_finds_the_same(saved, tmp_path):
    queries = clustered(20, seed=2)
    np.save(tmp_path / "queries.npy", queries)
    BruteForceIndex.build(np.eye(2), ["a", "b"]).save(tmp_path / "exact")
    command = [sys.executable, "-c", FRESH, tmp_path / "exact", saved, tmp_path / "queries.npy"]
    switches = ("TF_CPP_MIN_LOG_LEVEL", "MMRET_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, "")  # not a line of ScaNN's or TensorFlow's log
    assert ast.literal_eval(done.stdout) == load_index(saved).search(queries)[0].tolist()


def test_a_changed_missing_or_unknown_file_is_found(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names == [
        *("ah_codebook.pb", "datapoint_to_token.npy", "dataset.npy", "fresh.npy"),
        *("hashed_dataset.npy", "items.json", "manifest.json", "queries.npy"),
        *("scann_assets.pbtxt", "scann_config.pb", "serialized_partitioner.pb"),
    ]
    for name in names:
        path, data = saved / name, (saved / name).read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(ValueError, match=r"damaged|manifest"):
            load_index(saved)
        path.write_bytes(data[:middle])
        with pytest.raises(ValueError, match=r"damaged|manifest"):
            load_index(saved)
        path.unlink()
        with pytest.raises(ValueError, match=r"damaged|manifest"):
            load_index(saved)
        path.write_bytes(data)
    load_index(saved)
    manifest = saved / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    assert '"leaves": 22' in text
    manifest.write_text(text.replace('"leaves": 22', '"leaves": 21'), encoding="utf-8")
    with pytest.raises(ValueError, match="manifest.json was changed"):
        load_index(saved)
    manifest.write_text(text, encoding="utf-8")
    (saved / "extra").touch()
    with pytest.raises(ValueError, match="'extra' is missing or unknown"):
        load_index(saved)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def forge(folder, **fields):
    """Write a manifest that fits the files, as an attacker can, with some fields changed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | fields
    if "files" not in fields:
        manifest["files"] = {
            path.name: {"size": path.stat().st_size, "sha256": _files.file_sha256(path)}
            for path in folder.iterdir()
            if path.name != "manifest.json"
        }
    manifest["sha256"] = _files._manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_forged_manifest_unpickles_nothing_and_brings_no_other_file_to_scann(saved):
    pickled = saved / "scann_docids.pkl"
    pickled.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="scann_docids.pkl"):
        load_index(saved)
    forge(saved)
    load_index(saved)  # the file is not read
    pickled.unlink()

    assets = saved / "scann_assets.pbtxt"
    text = assets.read_text()
    for path in ("/etc/passwd", "../dataset.npy", "\\057etc.npy"):
        assets.write_text(text.replace('"dataset.npy"', f'"{path}"'))
        forge(saved)
        with pytest.raises(ValueError, match="names files outside the folder"):
            load_index(saved)
    assets.write_text(text)

    dataset = (saved / "dataset.npy").read_bytes()
    np.save(saved / "dataset.npy", np.array([Bomb()] * 500), allow_pickle=True)
    forge(saved)
    with pytest.raises(ValueError, match="NumPy array"):
        load_index(saved)
    (saved / "dataset.npy").write_bytes(dataset)
    forge(saved)
    load_index(saved)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b", "..", ""])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(name, saved):
    files = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))["files"]
    forge(saved, files={**files, name: files["items.json"]})
    with pytest.raises(ValueError, match=r"name of a file in the folder") as caught:
        load_index(saved)
    assert repr(name) in str(caught.value)


def test_a_manifest_of_another_version_or_with_nonsense_is_refused(saved):
    good = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    stats = good["stats"]
    for fields, reason in (
        ({"version": 4}, "version 4 .* reads version 3: update mmret_tf"),
        ({"version": 1}, "version 1 .* `mmret index` builds a run's index again"),
        ({"format": "mmret_tf embeddings"}, "it is of format"),
        ({"class": "this"}, "class 'this' is not defined here; there are: BruteForceIndex"),
        ({"class": ["this"]}, "is not defined here"),
        ({"metric": "manhattan"}, 'metric must be "cosine" or "euclidean"'),
        ({"n": 501}, r"must hold float32 \[501, 32\]"),
        ({"n": "many"}, r"must hold float32"),
        ({"n_fresh": 2}, r"must hold float32 \[2, 32\]"),
        ({"n_queries": "all"}, "must hold float32"),
        ({"recall_target": 7}, "recall_target must be above 0"),
        ({"k": 0}, "k must be an integer"),
        ({"config": {"leaves": "many"}}, "leaves must be an integer"),
        ({"config": {"trees": 3}}, "TypeError"),
        ({"stats": []}, "TypeError"),
        ({"stats": {}}, "KeyError"),
        ({"stats": {**stats, "reorder": "many"}}, "reorder must be an integer"),
        ({"stats": {**stats, "leaves_to_search": -1}}, "leaves_to_search must be an integer"),
    ):
        forge(saved, **{**good, **fields})
        with pytest.raises(ValueError, match=reason) as caught:
            load_index(saved)
        assert "\n" not in str(caught.value) and "`mmret index`" in str(caught.value)
    assert "this" not in sys.modules  # no name in a manifest is imported
    forge(saved, **good)
    items = json.loads((saved / "items.json").read_bytes())
    for fields in (
        *({"ids": ["a"]}, {"ids": {"a": 1}}, {"ids": ["\0", *items["ids"][1:]]}, {"ids": 5}),
        *({"ids": ["a"] * 501}, {"ids": [1, *items["ids"][1:]]}, {"attributes": [{}]}),
        *({"attributes": [5] * 501}, {"dead": [501]}, {"dead": ["a"]}, {"dead": None}),
    ):
        (saved / "items.json").write_text(json.dumps({**items, **fields}), encoding="utf-8")
        forge(saved)
        with pytest.raises(ValueError, match="cannot open the index"):
            load_index(saved)
    for text in ("[]", "{}", "[" * 9999, "5", ""):
        (saved / "items.json").write_text(text)
        forge(saved)
        with pytest.raises(ValueError, match="cannot open the index"):
            load_index(saved)

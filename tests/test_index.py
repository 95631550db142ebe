"""ScannIndex against BruteForceIndex, and both through their files."""

import builtins
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmret_tf import folders, index
from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.index import ScannIndex, build_index, load_index

BOTH = pytest.mark.parametrize("kind", [BruteForceIndex, ScannIndex])
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])
MODES = ["exact", "hashed", "partitioned"]


def clustered(n, dim=32, spread=0.5):
    """Points around 50 centres, and 100 queries of the same kind."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((50, dim))
    points = centres[random.integers(0, 50, n + 100)]
    points += spread * random.standard_normal(points.shape)
    return points[:n].astype(np.float32), points[n:].astype(np.float32)


@pytest.fixture
def force_mode(monkeypatch):
    """Make ScannIndex.build treat a small gallery as it would a large one."""

    def force(mode):
        monkeypatch.setattr(index, "EXACT_BELOW", 10**6 if mode == "exact" else 0)
        monkeypatch.setattr(index, "HASHED_BELOW", 0 if mode == "partitioned" else 10**6)

    return force


@pytest.fixture
def without_scann(monkeypatch):
    """As on a machine for which ScaNN has no wheel."""

    def fail(name, *args, real=builtins.__import__, **kwargs):
        if name.startswith("scann"):
            raise ModuleNotFoundError("No module named 'scann'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)


def recall(found, right):
    return np.mean([len(set(f) & set(r)) / len(r) for f, r in zip(found, right, strict=True)])


@METRICS
@pytest.mark.parametrize("mode", MODES)
def test_scann_reaches_the_recall_it_states_before_and_after_saving(
    mode, metric, force_mode, tmp_path
):
    force_mode(mode)
    points, queries = clustered(3000)
    names = [f"{i:04}" for i in range(3000)]
    oracle_ids, oracle_scores = BruteForceIndex.build(points, names, metric).search(queries)
    built = ScannIndex.build(points, names, 0.95, metric, queries)
    ids, scores = built.search(queries)

    assert built.stats["mode"] == mode
    if mode == "exact":
        np.testing.assert_array_equal(ids, oracle_ids)
        np.testing.assert_allclose(scores, oracle_scores, rtol=1e-4, atol=1e-5)
    else:
        assert built.stats["recall"] == pytest.approx(recall(ids, oracle_ids))
        assert built.stats["recall"] >= 0.95
        assert (built.stats["recall_target"], built.stats["n_measured"]) == (0.95, 100)
        assert built.stats["measured_on"] == "queries"
    rows = ids[0].astype(int)
    if metric == "euclidean":
        right = -((points[rows] - queries[0]) ** 2).sum(axis=1)
    else:
        lengths = np.linalg.norm(points[rows], axis=1) * np.linalg.norm(queries[0])
        right = points[rows] @ queries[0] / lengths
    np.testing.assert_allclose(scores[0], right, rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()

    built.save(tmp_path / "index")
    loaded = load_index((tmp_path / "index").rename(tmp_path / "索引"))
    assert type(loaded) is ScannIndex and (loaded.metric, loaded.stats) == (metric, built.stats)
    for each, expected in zip(loaded.search(queries), (ids, scores), strict=True):
        np.testing.assert_array_equal(each, expected)
    np.testing.assert_array_equal(loaded.vectors, built.vectors)  # ScaNN's file is ours


@pytest.mark.parametrize("mode", MODES)
def test_scann_never_gives_fewer_answers_nor_padding(mode, force_mode):
    force_mode(mode)
    points, queries = clustered(2000)
    built = ScannIndex.build(points, range(2000), recall_target=0.5)
    for k in (1, 700, 2000, 5000):
        ids, scores = built.search(queries[:5], k)
        assert ids.shape == scores.shape == (5, min(k, 2000))
        assert all(len(set(row)) == len(row) for row in ids.tolist())
        assert np.isfinite(scores).all()
    np.testing.assert_array_equal(
        ids, BruteForceIndex.build(points, range(2000)).search(queries[:5], 5000)[0]
    )


def test_a_higher_target_costs_more_effort(force_mode):
    force_mode("partitioned")
    points, _ = clustered(3000)
    low, high = (ScannIndex.build(points, range(3000), target).stats for target in (0.3, 1.0))
    assert low["leaves_to_search"] < high["leaves_to_search"] <= high["leaves"] == 55
    assert low["reorder"] < high["reorder"] and high["recall"] == 1


def test_scann_is_tuned_on_the_queries_that_are_given(force_mode):
    force_mode("partitioned")
    points, queries = clustered(3000, spread=0.2)
    near = ScannIndex.build(points, range(3000))
    assert (near.stats["measured_on"], near.stats["n_measured"]) == ("perturbed embeddings", 200)
    right = BruteForceIndex.build(points, range(3000)).search(queries)[0]
    assert recall(near.search(queries)[0], right) >= 0.85  # ScaNN's clusters differ each time
    far = np.random.default_rng(1).standard_normal((500, 32))  # unlike any item
    tuned = ScannIndex.build(points, range(3000), queries=far)
    assert (tuned.stats["measured_on"], tuned.stats["n_measured"]) == ("queries", 200)
    assert tuned.stats["leaves_to_search"] >= near.stats["leaves_to_search"]
    unseen = np.random.default_rng(2).standard_normal((200, 32))
    right = BruteForceIndex.build(points, range(3000)).search(unseen)[0]
    assert recall(tuned.search(unseen)[0], right) >= 0.85  # tuned on queries of the same kind
    with pytest.raises(ValueError, match="queries must have width 32; got 31"):
        ScannIndex.build(points, range(3000), queries=far[:, 1:])


def test_recall_holds_for_a_larger_k_than_it_was_tuned_for(force_mode):
    force_mode("hashed")
    points, queries = clustered(3000)
    built = ScannIndex.build(points, range(3000), queries=queries)
    assert built.stats["reorder"] == 50  # five candidates for each of 10 answers
    right = BruteForceIndex.build(points, range(3000)).search(queries, k=50)[0]
    assert recall(built.search(queries, k=50)[0], right) >= 0.95


def test_a_collapsed_gallery_counts_equal_items_as_found(force_mode):
    force_mode("hashed")
    built = ScannIndex.build(np.ones((500, 4)), range(500))
    assert built.stats["recall"] == 1 and built.stats["reorder"] == 50


@BOTH
@METRICS
def test_an_index_is_the_same_after_saving(kind, metric, tmp_path):
    points, queries = clustered(50)
    names = ["007", "7", "红色的圆", "a\nb", "\udc80", *map(str, range(100, 145))]
    built = kind.build(points, names, metric=metric)
    built.save(tmp_path / "index")
    loaded = load_index(str(tmp_path / "index"))
    assert type(loaded) is kind and isinstance(loaded.vectors, np.memmap)
    assert (loaded.ids, loaded.metric, loaded.dim) == (names, metric, 32)
    for each, expected in zip(loaded.search(queries), built.search(queries), strict=True):
        np.testing.assert_array_equal(each, expected)
    loaded.save(tmp_path / "index")  # over the files that it reads
    assert load_index(tmp_path / "index").search(queries)[0].tolist() == (
        built.search(queries)[0].tolist()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_fresh_process_finds_the_same(force_mode, tmp_path):
    force_mode("partitioned")
    points, queries = clustered(2000)
    built = ScannIndex.build(points, [f"图{i}" for i in range(2000)])
    built.save(tmp_path / "index")
    np.save(tmp_path / "queries.npy", queries)
    script = (
        "import json, sys, numpy as np; from mmret_tf.index import load_index; "
        "found = load_index(sys.argv[1]).search(np.load(sys.argv[2]))[0]; "
        "print(json.dumps(found.tolist()))"
    )
    command = [sys.executable, "-c", script, tmp_path / "index", tmp_path / "queries.npy"]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(index.__file__).parents[1]
    ).stdout
    assert json.loads(output.splitlines()[-1]) == built.search(queries)[0].tolist()


def test_without_scann_all_is_exact_with_one_warning(tmp_path, request):
    points, queries = clustered(100)
    built = ScannIndex.build(points, range(100))
    built.save(tmp_path / "index")
    assert type(build_index(points, range(100))) is ScannIndex
    request.getfixturevalue("without_scann")
    for make in (lambda: build_index(points, range(100)), lambda: load_index(tmp_path / "index")):
        with pytest.warns(
            UserWarning, match="ScaNN cannot be imported .*exact, but slower"
        ) as seen:
            exact = make()
        assert len(seen) == 1 and "\n" not in str(seen[0].message)
        assert type(exact) is BruteForceIndex
        np.testing.assert_array_equal(exact.search(queries)[0], built.search(queries)[0])
    with pytest.raises(ImportError, match=r"ScaNN cannot be imported \(No module named 'scann'\)"):
        ScannIndex.build(points, range(100))


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


@pytest.fixture
def saved(force_mode, tmp_path):
    """A folder with every file that an index can have."""
    force_mode("partitioned")
    ScannIndex.build(clustered(500)[0], [str(i) for i in range(500)]).save(tmp_path / "index")
    return tmp_path / "index"


def test_a_changed_missing_or_unknown_file_is_found(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted([*index.SCANN_FILES, "ids.json", "manifest.json"])
    for name in names:
        path, data = saved / name, (saved / name).read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(ValueError, match=r"damaged|no manifest"):
            load_index(saved)
        path.unlink()
        with pytest.raises(ValueError, match=r"missing|no manifest"):
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
    with pytest.raises(ValueError, match="unknown file, 'extra'"):
        load_index(saved)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def forge(folder, **fields):
    """Write a manifest that fits the files, as an attacker can, with some fields changed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | fields
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": folders.file_sha256(path)}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    manifest["sha256"] = folders._manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_forged_manifest_brings_no_pickle_and_no_other_file_to_scann(saved):
    pickled = saved / "scann_docids.pkl"
    pickled.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="unknown file, 'scann_docids.pkl'"):
        load_index(saved)
    forge(saved)
    with pytest.raises(ValueError, match="'scann_docids.pkl', which no index has"):
        load_index(saved)
    pickled.unlink()

    assets = saved / "scann_assets.pbtxt"
    text = assets.read_text()
    for path in ("/etc/passwd", "../dataset.npy", "\\057etc.npy"):
        assets.write_text(text.replace('"dataset.npy"', f'"{path}"'))
        forge(saved)
        with pytest.raises(ValueError, match="names other files"):
            load_index(saved)
    assets.write_text(text)

    dataset = (saved / "dataset.npy").read_bytes()
    np.save(saved / "dataset.npy", np.array([Bomb()] * 500), allow_pickle=True)
    forge(saved)
    with pytest.raises(ValueError, match="no NumPy array"):
        load_index(saved)
    (saved / "dataset.npy").write_bytes(dataset)
    forge(saved)
    load_index(saved)


def test_a_manifest_of_the_future_or_with_nonsense_is_refused(saved):
    good = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    for fields, reason in (
        ({"version": 2}, "version 2 .* reads version 1: update mmret_tf"),
        ({"format": "mmret_tf embeddings"}, "it is of format"),
        ({"class": "OsSystem"}, "class 'OsSystem'"),
        ({"metric": "manhattan"}, "metric 'manhattan'"),
        ({"n": 501}, r"must hold float32 \[501, 32\]"),
        ({"stats": []}, "stats are"),
        ({"stats": {**good["stats"], "mode": "fast"}}, "stats are"),
        ({"stats": {**good["stats"], "reorder": "many"}}, "stats are"),
        ({"stats": {**good["stats"], "leaves_to_search": -1}}, "stats are"),
    ):
        forge(saved, **{**good, **fields})
        with pytest.raises(ValueError, match=reason):
            load_index(saved)
    for ids in ('["a"]', '{"a": 1}', '["\\u0000"]', json.dumps(["a"] * 500), "[" * 9999):
        (saved / "ids.json").write_text(ids)
        forge(saved, **good)
        with pytest.raises(ValueError, match="damaged: ids.json"):
            load_index(saved)

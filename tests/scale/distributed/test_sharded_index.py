"""An index in shards answers as one exact index does, also after a shard was lost."""

import copy
import os
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import make_model
from scale.distributed import kill_processes

from mmret_tf import cli
from mmret_tf.data import Collection
from mmret_tf.ranking import BruteForceIndex, EmbeddingStore, Run, Searcher, load_index
from mmret_tf.ranking.indexes.scann_engine import ScannConfig
from mmret_tf.scale import PartialFound, ShardedIndex, ShardLost

pytest.importorskip("ray", reason='needs pip install "mmret_tf[distributed]"')

DIM, N = 8, 90
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, DIM)).astype(np.float32)
IDS = [f"图{number}" for number in range(N)]
# "rare" is in the first shard only.
ATTRIBUTES = [{"colour": ["red", "蓝"][n % 2]} | ({"rare": n} if n < 5 else {}) for n in range(N)]
QUERIES = RNG.normal(size=(20, DIM)).astype(np.float32)


def exact():
    return BruteForceIndex.build(ROWS, IDS, attributes=ATTRIBUTES)


@pytest.fixture(scope="module")
def built():
    """Three shards; not to be changed."""
    return ShardedIndex.build(ROWS, IDS, shards=3, attributes=ATTRIBUTES)


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory):
    """Folder of the same, saved."""
    folder = tmp_path_factory.mktemp("saved") / "index"
    built.save(folder)
    return folder


def assert_equal(index, oracle, k=10, **options):
    (ids, scores), (right_ids, right_scores) = (
        each.search(QUERIES, k, **options) for each in (index, oracle)
    )
    assert ids.tolist() == right_ids.tolist()
    assert np.array_equal(scores, right_scores)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 1},
        {"k": 200},
        {"where": {"colour": "蓝"}},
        {"where": {"rare": {"$gte": 2}}},
        {"where": {"$not": {"rare": 3}}, "exclude_ids": IDS[:40]},
        {"exclude_ids": [*IDS[10:], "unknown"]},
    ],
)
def test_it_answers_as_one_index(built, options):
    assert_equal(built, exact(), **options)


def test_it_has_the_contents_of_one_index(built):
    assert len(built) == N and built.dim == DIM and built.metric == "cosine"
    assert built.ids == IDS
    assert np.array_equal(built.vectors, exact().vectors)
    assert np.array_equal(built.vectors_of([IDS[80], IDS[3]]), exact().vectors_of([IDS[80], IDS[3]]))
    assert built.stats["mode"] == "sharded, exact" and built.stats["recall"] == 1
    assert [shard["n"] for shard in built.stats["shards"]] == [30, 30, 30]
    assert len({shard["pid"] for shard in built.stats["shards"]}) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(QUERIES, 0), "k must be an integer of at least 1"),
        (lambda index: index.search(QUERIES[:, :3]), "queries must have width 8; got 3"),
        (lambda index: index.search(QUERIES, where={"size": 1}), "no item has the attribute 'size'"),
        (lambda index: index.search(QUERIES, exclude_ids=[1]), "must be strings"),
        (lambda index: index.upsert([1], ROWS[:1]), "ids must be strings"),
        (lambda index: index.upsert(["a"], ROWS[:1, :3]), "must have width 8; got 3"),
        (lambda index: index.delete(["a", IDS[0]]), "1 ids are not in the index, the first is 'a'"),
        (lambda index: index.vectors_of(["a"]), "1 ids are not in the index, the first is 'a'"),
        (lambda _: ShardedIndex.build(ROWS[:2], IDS[:2], shards=3), "only 2 items for 3 shards"),
        (lambda _: ShardedIndex.build(ROWS, IDS, shards=0), "shards must be an integer"),
        (lambda _: ShardedIndex.build(ROWS, IDS, 1.5), "recall_target must be above 0"),
    ],
)
def test_mistakes_are_told_and_nothing_changes(built, call, message):
    with pytest.raises(ValueError, match=message):
        call(built)
    assert_equal(built, exact())


def test_changes_are_those_of_one_index_and_a_copy_keeps_the_older_items(saved):
    index, oracle = load_index(saved), exact()
    before = copy.copy(index)
    for each in (index, oracle):
        each.upsert(["new", IDS[50]], QUERIES[:2])  # the old one keeps its attributes
        each.upsert(["红"], QUERIES[2:3], [{"colour": "红", "only": True}])
        each.delete([IDS[0], IDS[89]])
    assert_equal(index, oracle)
    assert_equal(index, oracle, where={"colour": "蓝"})
    assert_equal(index, oracle, where={"only": True})
    assert sorted(index.ids) == sorted(oracle.ids) and len(index) == N
    assert_equal(before, exact())
    index.rebalance()
    assert_equal(index, oracle)


def test_it_is_opened_with_its_changes_and_refused_if_a_shard_was_exchanged(built, saved, tmp_path):
    loaded = load_index(saved)
    assert type(loaded) is ShardedIndex and loaded.stats["recall"] == 1
    assert_equal(loaded, exact())
    folder = shutil.copytree(saved, tmp_path / "moved")
    shutil.copy(saved / "shard-0001" / "manifest.json", folder / "shard-0002")
    with pytest.raises(ValueError, match="'shard-0002' has another SHA-256"):
        load_index(folder)
    shutil.rmtree(folder / "shard-0002")
    with pytest.raises(ValueError, match="'shard-0002' is missing or unknown"):
        load_index(folder)
    with open(saved / "shard-0000" / "dataset.npy", "rb") as file:
        content = bytearray(file.read())
    folder = shutil.copytree(saved, tmp_path / "damaged")
    content[-1] ^= 1
    (folder / "shard-0000" / "dataset.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot open the index .*'dataset.npy' has another"):
        load_index(folder)


def kill(index, shard):
    os.kill(index.stats["shards"][shard]["pid"], signal.SIGKILL)


def answer_of_all(index):
    """The first answer of all shards."""
    for _ in range(300):
        try:
            found = index.search(QUERIES)
            if not isinstance(found, PartialFound):
                return found
        except ShardLost:
            pass
        time.sleep(0.1)
    raise AssertionError("the shard did not come back")


def test_a_lost_shard_is_an_error_or_marked_and_comes_back_with_its_changes(saved):
    index, oracle = load_index(saved), exact()
    for each in (index, oracle):
        each.upsert([f"new{number}" for number in range(6)], QUERIES[:6])
    kill(index, 1)
    with pytest.raises(ShardLost, match="shard 1 of 3 does not answer"):
        index.search(QUERIES)
    with pytest.raises(ShardLost, match="shard 1 of 3 does not answer"):
        index.delete([IDS[0]])
    index.partial = True
    found = index.search(QUERIES, 100)
    assert found.missing == [1] and found.remark == "1 of 3 shards did not answer."
    rest = exact()
    rest.upsert([f"new{number}" for number in (0, 1, 4, 5)], QUERIES[[0, 1, 4, 5]])
    rest.delete(IDS[30:60])
    assert [sorted(row) for row in found[0].tolist()] == [sorted(rest.ids)] * len(QUERIES)
    answer_of_all(index)
    assert_equal(index, oracle)


def test_the_shards_are_tuned_together_and_a_replica_stands_in():
    rows = np.random.default_rng(1).normal(size=(3000, DIM)).astype(np.float32)
    queries = rows[:400] + 0.3 * np.random.default_rng(2).normal(size=(400, DIM))
    settings = {"config": ScannConfig(leaves=30), "seconds": 0.5, "shards": 2, "replicas": 2}
    index = ShardedIndex.build(rows, range(3000), 0.9, queries, **settings)
    assert index.stats["mode"] == "sharded" and 0.9 <= index.stats["recall"] < 1
    ids, right = (
        each.search(queries)[0] for each in (index, BruteForceIndex.build(rows, range(3000)))
    )
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(ids, right, strict=True)])
    assert recall == pytest.approx(index.stats["recall"], abs=1e-9)
    kill(index, 0)
    for _ in range(10):
        assert np.array_equal(index.search(queries)[0], ids)


def test_a_run_is_indexed_searched_and_changed_in_shards(tmp_path, capsys):
    model, run = make_model(), Run(tmp_path / "run")
    run.folder.mkdir()
    model.save(run.model)
    texts = [["a red circle"], ["红色的圆"], ["a blue square"]]
    EmbeddingStore.export(model, Collection(["a", "b", "c"], {"text": texts}), run.embeddings)
    with pytest.raises(SystemExit) as end:
        cli.main(["index", "--run", str(run.folder), "--ray", "--shards", "2", "--partial"])
    assert end.value.code == 0
    assert "ShardedIndex of 3 embeddings" in " ".join(capsys.readouterr().out.split())
    searcher = Searcher.open(run.folder)
    assert searcher.search("红色的圆", k=1)[0].id == "b"
    searcher.upsert([{"id": "d", "captions": ["蓝色的方块"]}])
    assert searcher.search("蓝色的方块", k=1)[0].id == "d"
    kill(searcher.index, 0)
    assert "1 of 2 shards did not answer." in searcher.search("a red circle").remark
    with pytest.raises(SystemExit) as end:
        cli.main(["index", "--run", str(run.folder), "--shards", "3"])
    assert end.value.code == 2 and "need --ray" in capsys.readouterr().err


def test_what_is_killed_comes_back(tmp_path):
    """Also by the script itself, more often."""
    assert kill_processes.kill_shards(tmp_path, kills=1) == []

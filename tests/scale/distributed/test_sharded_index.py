"""An index in shards answers as one exact index does, also after a shard was lost."""

import copy
import os
import shutil
import signal
import time
from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_model

from mmret_tf import cli
from mmret_tf.data import Collection
from mmret_tf.ranking import BruteForceIndex, EmbeddingStore, Run, Searcher, load_index
from mmret_tf.ranking.index import ENTRY_POINTS
from mmret_tf.ranking.indexes.scann_engine import ScannConfig
from mmret_tf.scale import PartialFound, ShardedIndex, ShardLost
from mmret_tf.scale.distributed import sharded_index

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
    """Two shards; not to be changed."""
    return ShardedIndex.build(ROWS, IDS, shards=2, attributes=ATTRIBUTES)


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
    assert np.array_equal(
        built.vectors_of([IDS[80], IDS[3]]), exact().vectors_of([IDS[80], IDS[3]])
    )
    assert built.stats["mode"] == "sharded, exact" and built.stats["recall"] == 1
    assert [shard["n"] for shard in built.stats["shards"]] == [45, 45]
    assert len({shard["pid"] for shard in built.stats["shards"]}) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(QUERIES, 0), "k must be an integer of at least 1"),
        (lambda index: index.search(QUERIES[:, :3]), "queries must have width 8; got 3"),
        (
            lambda index: index.search(QUERIES, where={"size": 1}),
            "no item has the attribute 'size'",
        ),
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


def test_a_folder_is_refused_if_a_shard_was_exchanged(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "index")
    shutil.copy(saved / "shard-0000" / "manifest.json", folder / "shard-0001")
    with pytest.raises(ValueError, match="'shard-0001' has another SHA-256"):
        load_index(folder)
    shutil.rmtree(folder / "shard-0001")
    with pytest.raises(ValueError, match="'shard-0001' is missing or unknown"):
        load_index(folder)


def kill(index, shard):
    os.kill(index.stats["shards"][shard]["pid"], signal.SIGKILL)


def test_it_is_opened_changed_lost_in_part_and_complete_again(saved):
    index, oracle = load_index(saved), exact()
    assert type(index) is ShardedIndex and index.stats["recall"] == 1
    assert_equal(index, oracle)
    before = copy.copy(index)  # keeps the older items
    for each in (index, oracle):
        each.upsert(["new", IDS[50]], QUERIES[:2])  # the old one keeps its attributes
        each.upsert(["红"], QUERIES[2:3], [{"colour": "红", "only": True}])
        each.delete([IDS[0], IDS[89]])
    assert_equal(index, oracle)
    assert_equal(index, oracle, where={"colour": "蓝"})
    assert_equal(index, oracle, where={"only": True})
    assert sorted(index.ids) == sorted(oracle.ids) and len(index) == N
    assert_equal(before, exact())
    with pytest.raises(ValueError, match="another copy of this index was changed"):
        before.delete([IDS[1]])

    kill(index, 1)
    index.partial = True
    found = index.search(QUERIES, 100)
    assert found.missing == [1] and found.remark == "1 of 2 shards did not answer."
    # The first shard has the first half, and every second new item.
    first = {*IDS[1:45], "new", "红"}
    assert [set(row) for row in found[0].tolist()] == [first] * len(QUERIES)
    for _ in range(300):
        if not isinstance(index.search(QUERIES), PartialFound):
            break
        time.sleep(0.1)
    assert_equal(index, oracle)
    index.rebalance()
    assert_equal(index, oracle)
    for each in (index, oracle):  # nothing is left in the first shard
        each.delete(sorted(first))
        each.upsert(["a"], QUERIES[:1])
    assert_equal(index, oracle)


def test_a_lost_shard_is_an_error_unless_the_index_is_partial(built, monkeypatch):
    index, one = copy.copy(built), (np.array([["a"]] * 20), np.ones((20, 1), np.float32))
    answers = [one, ShardLost("shard 1 of 2 does not answer")]
    index._shards = SimpleNamespace(ask=lambda *_: answers)
    with pytest.raises(ShardLost, match="shard 1 of 2 does not answer"):
        index.search(QUERIES)
    index.partial = True
    assert index.search(QUERIES).missing == [1]
    answers[0] = ShardLost("shard 0 of 2 does not answer")
    with pytest.raises(ShardLost, match="shard 0 of 2 does not answer"):
        index.search(QUERIES)


def test_a_searcher_says_that_shards_are_missing():
    answer = PartialFound((np.array([["a"]]), np.ones((1, 1))), missing=[1], n_shards=2)
    index = SimpleNamespace(dim=1, ids=["a"], search=lambda *_: answer)
    encoder = SimpleNamespace(embedding_dim=1, modalities=["text"])
    encoder.encode, encoder.remarks = lambda *_: np.ones((1, 1)), lambda _: ["Unknown words."]
    searcher = Searcher(encoder, index, [{"id": "a"}])
    assert searcher.search("red").remark == "Unknown words. 1 of 2 shards did not answer."


def test_a_replica_stands_in_for_another():
    rows = np.random.default_rng(1).normal(size=(3000, DIM)).astype(np.float32)
    queries = rows[:400] + 0.3 * np.random.default_rng(2).normal(size=(400, DIM))
    settings = {"config": ScannConfig(leaves=30), "seconds": 0.5, "shards": 1, "replicas": 2}
    index = ShardedIndex.build(rows, range(3000), 0.9, queries, **settings)
    assert index.stats["mode"] == "sharded" and 0.9 <= index.stats["recall"] < 1
    ids, right = (
        each.search(queries)[0] for each in (index, BruteForceIndex.build(rows, range(3000)))
    )
    shares = [len(set(one) & set(other)) / 10 for one, other in zip(ids, right, strict=True)]
    assert np.mean(shares) == pytest.approx(index.stats["recall"], abs=1e-9)
    kill(index, 0)
    for _ in range(10):
        assert np.array_equal(index.search(queries)[0], ids)


def test_the_command_builds_shards(tmp_path, monkeypatch, capsys):
    run, asked = Run(tmp_path / "run"), {}
    texts = [["a red circle"], ["红色的圆"], ["a blue square"]]
    items = Collection(["a", "b", "c"], {"text": texts})
    EmbeddingStore.export(make_model(), items, run.embeddings)

    def build(embeddings, ids, recall_target, queries, progress, attributes, **options):
        asked.update(options, recall_target=recall_target)
        return BruteForceIndex.build(embeddings, ids)

    monkeypatch.setattr(ShardedIndex, "build", build)
    command = ["index", "--run", str(run.folder), "--ray", "--shards", "4", "--partial"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--recall-target", "0.9"])
    assert end.value.code == 0 and "3 embeddings" in capsys.readouterr().out
    options = {"shards": 4, "replicas": 1, "partial": True, "address": None, "recall_target": 0.9}
    assert asked == options | {"directory": run.folder}
    with pytest.raises(SystemExit) as end:
        cli.main(["index", "--run", str(run.folder), "--shards", "3"])
    assert end.value.code == 2 and "need --ray" in capsys.readouterr().err


def test_the_class_is_found_by_its_entry_point():
    (entry,) = entry_points(group=ENTRY_POINTS, name="ShardedIndex")
    assert entry.load() is sharded_index

"""ScannIndex against BruteForceIndex: recall, tuning, settings, conditions and files."""

import numpy as np
import pytest
from ranking.galleries import METRICS, PARTITIONED, clustered, found, recall

from mmret_tf.ranking import BruteForceIndex, ScannConfig, ScannIndex, build_index, load_index
from mmret_tf.ranking.indexes import scann_index

POINTS, QUERIES = clustered(2000), clustered(100, seed=1)


def build(target=0.95, queries=QUERIES, config=PARTITIONED, **options):
    """An index of `POINTS`, tuned in a moment."""
    return ScannIndex.build(
        POINTS, range(len(POINTS)), target, queries, config=config, seconds=0.2, **options
    )


@pytest.fixture(scope="module")
def oracle():
    return BruteForceIndex.build(POINTS, range(len(POINTS)))


@METRICS
def test_it_reaches_the_recall_that_it_states_before_and_after_saving(metric, tmp_path):
    exact = BruteForceIndex.build(POINTS, range(2000), metric)
    built = build(metric=metric)
    ids, scores = built.search(QUERIES)
    assert built.stats["mode"] == "partitioned"
    assert built.stats["recall"] == pytest.approx(recall(ids, exact.search(QUERIES)[0]))
    assert built.stats["recall"] >= 0.95
    expected = {"recall_target": 0.95, "k": 10, "measured_on": "queries", "n_measured": 100}
    assert expected.items() <= built.stats.items()
    assert built.stats["queries_per_second"] > 0 and built.stats["single_query_ms"] > 0
    rows = POINTS[ids[0]]
    right = -((rows - QUERIES[0]) ** 2).sum(axis=1)
    if metric == "cosine":
        right = rows @ QUERIES[0] / np.linalg.norm(rows, axis=1) / np.linalg.norm(QUERIES[0])
    np.testing.assert_allclose(scores[0], right, rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()

    built.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    assert type(loaded) is ScannIndex and (loaded.metric, loaded.stats) == (metric, built.stats)
    for each, expected in zip(loaded.search(QUERIES), (ids, scores), strict=True):
        np.testing.assert_array_equal(each, expected)
    np.testing.assert_array_equal(loaded.vectors, built.vectors)  # ScaNN writes the same file


def test_it_never_gives_fewer_answers_nor_padding(oracle):
    built = build(0.5)
    for k in (1, 700, 2000, 5000):
        ids, scores = built.search(QUERIES[:5], k)
        assert ids.shape == scores.shape == (5, min(k, 2000))
        assert all(len({*row}) == len(row) for row in ids.tolist())
        assert np.isfinite(scores).all()
    right, right_scores = oracle.search(QUERIES[:5], 5000)
    np.testing.assert_allclose(scores, right_scores, atol=1e-6)
    assert (ids == right).mean() > 0.99  # ScaNN's last bit may decide a near tie


def test_a_higher_target_costs_more_effort():
    built = build(0.3)
    low, low_effort = built.stats, built.effort(10)
    built.tune(1.0, seconds=0.2)
    high = built.stats
    assert low["leaves_to_search"] < high["leaves_to_search"] <= high["leaves"] == 50
    assert low["recall"] < 0.9 and high["recall"] == 1
    assert high["recall_target"] == 1 and low["k"] == high["k"] == 10
    assert low_effort["leaves_to_search"] < built.effort(10)["leaves_to_search"]
    built.tune(k=1, seconds=0.2)
    assert (built.stats["k"], built.stats["recall_target"]) == (1, 1)
    assert built.effort(5)["pre_reorder_num_neighbors"] >= 5


def test_it_is_tuned_on_the_queries_that_are_given(oracle):
    near = build(queries=None)
    assert (near.stats["measured_on"], near.stats["n_measured"]) == ("perturbed embeddings", 2000)
    assert recall(near.search(QUERIES)[0], oracle.search(QUERIES)[0]) >= 0.8
    random = np.random.default_rng(1)
    far, unseen = (random.standard_normal((n, 32)) for n in (2500, 2000))  # unlike any item
    near_leaves = near.stats["leaves_to_search"]
    near.tune(queries=far, seconds=0)
    assert (near.stats["measured_on"], near.stats["n_measured"]) == ("queries", 2000)
    assert near.stats["recall"] >= 0.95 and near.stats["leaves_to_search"] > near_leaves
    assert recall(near.search(unseen)[0], oracle.search(unseen)[0]) >= 0.94  # of the same kind
    with pytest.raises(ValueError, match="queries must have width 32; got 31"):
        build(queries=far[:, 1:])


def test_recall_holds_for_a_larger_k_than_it_was_tuned_for(oracle):
    right = oracle.search(QUERIES, k=50)[0]
    assert recall(build().search(QUERIES, k=50)[0], right) >= 0.93


def test_a_config_is_honoured_as_given(oracle):
    config = ScannConfig(leaves=40, leaves_to_search=7, reorder=33)
    with pytest.warns(UserWarning, match=r"recall at 10 is only 0\.\d+, below the target of 1.0"):
        built = build(1.0, config=config)
    expected = {"leaves": 40, "leaves_to_search": 7, "reorder": 33}
    assert expected.items() <= built.stats.items()
    right = oracle.search(QUERIES)[0]
    assert built.stats["recall"] == pytest.approx(recall(built.search(QUERIES)[0], right))
    built = build(0.98, config=ScannConfig(leaves=40, leaves_to_search=40))
    assert built.stats["leaves_to_search"] == 40 and built.stats["recall"] >= 0.98


def test_a_config_needs_enough_items():
    with pytest.raises(ValueError, match="this config needs 31 items; got 30: leave it out"):
        ScannIndex.build(POINTS[:30], range(30), config=ScannConfig(leaves=31))
    with pytest.raises(ValueError, match="this config needs 16 items; got 15"):
        ScannIndex.build(POINTS[:15], range(15), config=ScannConfig(leaves=3))


def test_a_gallery_that_became_too_small_for_its_tree_is_searched_exactly():
    index = ScannIndex.build(
        POINTS[:60], range(60), queries=QUERIES, config=ScannConfig(leaves=20), seconds=0
    )
    assert index.stats["mode"] == "partitioned"
    index.delete(range(45))
    index.rebalance()
    assert index.stats["mode"] == "exact" and found(index, POINTS[50], 1) == [50]
    assert index.effort(10) == {}
    index.upsert(range(45), POINTS[:45])
    with pytest.raises(ValueError, match=r"call its rebalance\(\) before exporting it"):
        index.tensors()
    index.rebalance()
    assert index.stats["mode"] == "partitioned" and found(index, POINTS[50], 1) == [50]


def test_the_number_of_items_decides_how_they_are_searched(monkeypatch):
    assert build_index(POINTS, range(2000)).stats["mode"] == "exact"
    monkeypatch.setattr(scann_index, "EXACT_BELOW", 2000)
    built = build_index(POINTS, range(2000), queries=QUERIES, seconds=0)
    assert (built.stats["mode"], built.stats["leaves"]) == ("partitioned", 45)  # the root of 2000
    monkeypatch.setattr(scann_index, "MANY", 2000)
    assert build_index(POINTS, range(2000), queries=QUERIES, seconds=0).stats["leaves"] == 90


def test_progress_is_told_line_by_line():
    lines = []
    build(progress=lines.append)
    assert lines[:2] == ["partitioning 2,000 items into 50 leaves", "exact answers to 100 queries"]
    assert all(line.endswith("queries a second") for line in lines[2:]) and len(lines) > 2


def test_a_collapsed_gallery_counts_equal_items_as_found():
    built = ScannIndex.build(np.ones((500, 4)), range(500), config=PARTITIONED, seconds=0)
    assert built.stats["recall"] == 1


SHARES = (0.0005, 0.02, 0.3, 0.9)


@pytest.fixture(scope="module")
def filtered():
    """An index above `SELECTIVE`, and for each share of its items two masks: items at random, and
    the hardest case, items that lie together, where few queries look."""
    points, n = clustered(24_000, dim=16), 24_000
    random, order = np.random.default_rng(0), np.argsort(points[:, 0])
    masks = {}
    for share in SHARES:
        masks[f"random {share}"] = random.random(n) < share
        masks[f"together {share}"] = np.zeros(n, bool)
        masks[f"together {share}"][order[: int(share * n)]] = True
    columns = [mask.tolist() for mask in masks.values()]
    attributes = [dict(zip(masks, row, strict=True)) for row in zip(*columns, strict=True)]
    queries = clustered(30, dim=16, seed=4)
    index = ScannIndex.build(
        points, range(n), 0.9, queries, attributes=attributes, config=PARTITIONED, seconds=0
    )
    return index, BruteForceIndex.build(points, range(n)), queries, masks


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("where", ["random", "together"])
def test_never_fewer_than_k_while_k_match(where, share, filtered):
    index, exact, queries, masks = filtered
    name, mask = f"{where} {share}", masks[f"{where} {share}"]
    ids, scores = index.search(queries, 10, where={name: True})
    assert ids.shape == (30, min(10, mask.sum())) and mask[ids].all()
    assert all(len({*row}) == len(row) for row in ids.tolist())
    right = exact.search(queries, 10, exclude_ids=np.flatnonzero(~mask).tolist())[1]
    if mask.sum() < 20_000:  # selective conditions are answered exactly
        np.testing.assert_allclose(scores, right, atol=1e-5)
    else:
        assert np.mean(scores >= right[:, -1:] - 1e-5) > 0.85


@METRICS
def test_parts_of_a_gallery_reach_the_recall_of_the_whole_together(metric, tmp_path):
    exact = BruteForceIndex.build(POINTS, range(2000), metric)
    right, scores = exact.search(QUERIES)
    parts = []
    for start in (0, 1000):
        rows = slice(start, start + 1000)
        options = {"config": ScannConfig(leaves=20), "seconds": 0.2, "kth": scores[:, -1:]}
        ids = range(start, start + 1000)
        parts.append(ScannIndex.build(POINTS[rows], ids, 0.9, QUERIES, 10, metric, **options))
    found, of_parts = zip(*(part.search(QUERIES) for part in parts), strict=True)
    order = np.argsort(-np.hstack(of_parts), axis=1)[:, :10]
    whole = recall(np.take_along_axis(np.hstack(found), order, axis=1), right)
    assert whole >= 0.9
    counts = [np.sum((right >= start) & (right < start + 1000)) for start in (0, 1000)]
    of_each = [part.stats["recall"] for part in parts]
    assert whole == pytest.approx(np.average(of_each, weights=counts), abs=1e-6)
    parts[0].tune(k=5, seconds=0.1)  # from here on, of the part alone
    assert parts[0].stats["k"] == 5 and parts[0].stats["recall"] >= 0.9

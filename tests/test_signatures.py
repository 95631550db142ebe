"""The search inside an exported graph, against the exact index that Python uses."""

import numpy as np
import pytest
import tensorflow as tf

from mmret_tf import signatures
from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.index import ScannIndex
from mmret_tf.scann_engine import ScannConfig
from mmret_tf.signatures import GalleryGraph

# All leaves and all candidates: which of those that are near a border ScaNN takes differs from
# search to search, by its codes of a few bits, in a server as in Python.
CONFIGS = {
    "exact": None,
    "hashed": ScannConfig(reorder=2000),
    "partitioned": ScannConfig(leaves=45, leaves_to_search=45, reorder=2000),
}
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


def points(n, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def make_items(ids):
    return {key: {"id": key, "captions": [f"item {key}", "红色的圆"]} for key in ids}


def graph(index, k=10, engine="brute_force"):
    return GalleryGraph(index, make_items(index.ids), k, engine)


def assert_alike(answer, ids, scores):
    """The same scores; the same ids too, except where two scores are too close to call."""
    found = answer["scores"].numpy()
    assert found.shape == scores.shape and answer["ids"].shape == ids.shape
    np.testing.assert_allclose(found, scores, rtol=1e-6, atol=1e-6)
    gaps = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=-np.inf)).astype(np.float64)
    is_clear = np.minimum(gaps[:, :-1], gaps[:, 1:]) > 1e-5
    names = np.array([[_text(key) for key in row] for row in answer["ids"].numpy().tolist()])
    assert is_clear.mean() > 0.9 and (names == ids)[is_clear].all()


def _text(key):
    return key.decode() if isinstance(key, bytes) else key


@METRICS
@pytest.mark.parametrize("block_scores", [2**24, 300])  # all at once; or 26 to 300 items at a time
@pytest.mark.parametrize("n_queries", [1, 3, 64])
def test_the_exact_search_is_that_of_the_index(metric, block_scores, n_queries, monkeypatch):
    monkeypatch.setattr(signatures, "BLOCK_SCORES", block_scores)
    index = BruteForceIndex.build(points(1000), [f"{row:04}" for row in range(1000)], metric)
    queries = 3 * points(n_queries, seed=1)
    assert_alike(graph(index).search(tf.constant(queries)), *index.search(queries, k=10))


@METRICS
@pytest.mark.parametrize("mode", CONFIGS)
def test_scanns_ops_answer_as_the_index_does(metric, mode):
    pytest.importorskip("scann")
    config = CONFIGS[mode]
    index = ScannIndex.build(points(2000), np.arange(2000), 0.8, metric=metric, config=config)
    assert index.stats["mode"] == mode
    for k in (1, 10, 30):
        queries = points(5, seed=2)
        answer = graph(index, k, "scann").search(tf.constant(queries))
        assert answer["ids"].dtype == tf.int64
        assert_alike(answer, *index.search(queries, k))


def test_scanns_ops_look_no_less_and_no_more_widely_than_the_index():
    """Four leaves of 45 miss half of the best ten, and the ops miss nearly the same."""
    pytest.importorskip("scann")
    queries = points(64, seed=2)
    exact, _ = BruteForceIndex.build(points(2000), np.arange(2000)).search(queries, 10)
    shares = []
    for leaves_to_search in (4, 20):
        config = ScannConfig(leaves=45, leaves_to_search=leaves_to_search, reorder=300)
        index = ScannIndex.build(points(2000), np.arange(2000), 0.01, config=config)
        found = graph(index, 10, "scann").search(tf.constant(queries))["ids"].numpy()
        same = [len({*a} & {*b}) for a, b in zip(found, index.search(queries, 10)[0], strict=True)]
        assert np.mean(same) > 8.5
        shares.append(np.mean([len({*a} & {*b}) for a, b in zip(found, exact, strict=True)]))
    assert shares[0] < 6.5 < 8.5 < shares[1]


def test_where_scanns_leaves_hold_too_few_everything_is_searched():
    pytest.importorskip("scann")
    config = ScannConfig(leaves=17)
    index = ScannIndex.build(points(300), np.arange(300), recall_target=0.01, config=config)
    assert index.stats["leaves_to_search"] < index.stats["leaves"]
    queries = points(3, seed=3)
    assert_alike(
        graph(index, 200, "scann").search(tf.constant(queries)), *index.search(queries, 200)
    )


def test_equal_items_come_in_their_order_and_the_captions_with_them():
    vectors = np.ones((40, 4), np.float32)
    vectors[7] = [1, 0, 0, 0]
    index = BruteForceIndex.build(vectors, [f"{row}" for row in range(40)])
    items = make_items(index.ids)
    items["7"]["captions"] = ["two\nlines  here", "left"]
    items["0"]["captions"] = []
    answer = GalleryGraph(index, items, 3, "brute_force").search(tf.constant([[1.0, 0, 0, 0]]))
    assert answer["ids"].numpy().tolist() == [[b"7", b"0", b"1"]]
    captions = [text.decode() for text in answer["captions"].numpy()[0]]
    assert captions == ["two lines here\nleft", "", "item 1\n红色的圆"]
    assert answer["scores"].numpy()[0] == pytest.approx([1, 0.5, 0.5])


def test_a_gallery_smaller_than_k_is_returned_whole():
    index = BruteForceIndex.build(np.eye(3), [5, 6, 7])
    answer = graph(index, k=10).search(tf.constant([[0.0, 2.0, 1.0]]))
    assert answer["ids"].numpy().tolist() == [[6, 7, 5]]


def test_a_query_of_length_zero_has_cosine_zero_and_nan_is_refused():
    index = BruteForceIndex.build(np.eye(3), ["a", "b", "c"])
    assert graph(index).search(tf.zeros((1, 3)))["scores"].numpy().tolist() == [[0, 0, 0]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="queries must be finite"):
        graph(index).search(tf.constant([[0.0, np.nan, 0.0]]))


def test_scann_needs_an_index_of_scann():
    with pytest.raises(ValueError, match="needs a ScannIndex, and this is a BruteForceIndex"):
        graph(BruteForceIndex.build(np.eye(3), ["a", "b", "c"]), engine="scann")


def test_an_item_without_captions_answers_with_none():
    index = BruteForceIndex.build(np.eye(2), ["a", "b"])
    items = {"a": {"id": "a", "captions": []}, "b": {"id": "b", "captions": ["two\nlines"]}}
    answer = GalleryGraph(index, items, 2, "brute_force").search(tf.constant(np.eye(2), tf.float32))
    assert answer["captions"].numpy().tolist() == [[b"", b"two lines"], [b"two lines", b""]]

"""Signatures: the search in the graph against the indexes of Python, and queries by modality."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.data import Item
from mmret_tf.ranking import BruteForceIndex, ScannConfig, ScannIndex, Searcher
from mmret_tf.serving import signatures
from mmret_tf.serving.signatures import GalleryGraph, make_signatures

# All leaves and all candidates: near a border, ScaNN's choice varies from search to search, because
# its codes have few bits. That is so in a server as in Python.
CONFIGS = {
    "exact": None,
    "partitioned": ScannConfig(leaves=45, leaves_to_search=45, reorder=2000),
}
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


def points(n, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def make_item(key, captions):
    return Item.of({"id": key, "captions": captions})


def graph(index, k=10, engine="brute_force"):
    items = {key: make_item(key, [f"item {key}", "红色的圆"]) for key in index.ids}
    return GalleryGraph(index, items, k, engine)


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


# The gallery


@METRICS
@pytest.mark.parametrize("block_scores", [2**24, 300])  # all at once; or 26 to 300 items at a time
def test_the_exact_search_is_that_of_the_index(metric, block_scores, monkeypatch):
    monkeypatch.setattr(signatures, "BLOCK_SCORES", block_scores)
    index = BruteForceIndex.build(points(1000), [f"{row:04}" for row in range(1000)], metric)
    gallery = graph(index)
    for n_queries in (1, 3, 64):
        queries = 3 * points(n_queries, seed=1)
        assert_alike(gallery.search(tf.constant(queries)), *index.search(queries, k=10))


@METRICS
@pytest.mark.parametrize("mode", CONFIGS)
def test_the_ops_of_scann_answer_as_the_index_does(metric, mode):
    pytest.importorskip("scann")
    config = CONFIGS[mode]
    index = ScannIndex.build(points(2000), np.arange(2000), 0.8, metric=metric, config=config)
    assert index.stats["mode"] == mode
    queries = points(5, seed=2)
    for k in (1, 30):
        answer = graph(index, k, "scann").search(tf.constant(queries))
        assert answer["ids"].dtype == tf.int64
        assert_alike(answer, *index.search(queries, k))


def test_the_ops_of_scann_search_as_widely_as_the_index():
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


@pytest.mark.parametrize("n_queries", [1, 3, 40])
def test_everything_is_searched_where_the_leaves_of_scann_hold_too_few(n_queries):
    pytest.importorskip("scann")
    config = ScannConfig(leaves=17)
    index = ScannIndex.build(points(300), np.arange(300), recall_target=0.01, config=config)
    assert index.stats["leaves_to_search"] < index.stats["leaves"]
    queries = points(n_queries, seed=3)
    assert_alike(
        graph(index, 200, "scann").search(tf.constant(queries)), *index.search(queries, 200)
    )


def test_scann_needs_an_index_of_scann():
    with pytest.raises(ValueError, match="needs a ScannIndex; got a BruteForceIndex"):
        graph(BruteForceIndex.build(np.eye(3), ["a", "b", "c"]), engine="scann")


def test_equal_items_keep_their_order_and_their_captions():
    vectors = np.ones((40, 4), np.float32)
    vectors[7] = [1, 0, 0, 0]
    index = BruteForceIndex.build(vectors, [f"{row}" for row in range(40)])
    items = {key: make_item(key, [f"item {key}", "圆"]) for key in index.ids}
    items["7"] = make_item("7", ["two\nlines  here", "left"])
    items["0"] = make_item("0", [])
    answer = GalleryGraph(index, items, 3, "brute_force").search(tf.constant([[1.0, 0, 0, 0]]))
    assert answer["ids"].numpy().tolist() == [[b"7", b"0", b"1"]]
    captions = [text.decode() for text in answer["captions"].numpy()[0]]
    assert captions == ["two lines here\nleft", "", "item 1\n圆"]
    assert answer["scores"].numpy()[0] == pytest.approx([1, 0.5, 0.5])


def test_a_gallery_smaller_than_k_is_returned_whole_with_integer_ids():
    index = BruteForceIndex.build(np.eye(3), [5, 2**40, 7])
    answer = graph(index, k=10).search(tf.constant([[0.0, 2.0, 1.0]]))
    assert answer["ids"].numpy().tolist() == [[2**40, 7, 5]]


def test_a_query_of_length_zero_has_cosine_zero_and_nan_is_refused():
    index = BruteForceIndex.build(np.eye(3), ["a", "b", "c"])
    assert graph(index).search(tf.zeros((1, 3)))["scores"].numpy().tolist() == [[0, 0, 0]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="queries must be finite"):
        graph(index).search(tf.constant([[0.0, np.nan, 0.0]]))


# Queries by modality


class ToyTower:
    """Embeds every source as one of the axes."""

    def __init__(self, modality, axis):
        self.modality, self.axis = modality, axis
        self.traced = []

    def preprocess(self, sources):
        self.traced.append("preprocess")
        return tf.fill(tf.shape(sources), self.axis)

    def __call__(self, inputs, training):
        self.traced.append("call")
        return tf.one_hot(inputs, 3)


def toy_encoder(*modalities):
    towers = {name: ToyTower(name, axes().ids.index(name)) for name in modalities}
    return SimpleNamespace(
        towers=towers,
        modalities=list(towers),
        embedding_dim=3,
        encode=lambda name, sources: np.eye(3)[[towers[name].axis] * len(sources)],
        remarks=lambda queries: [""] * len(queries),
    )


def axes(metric="cosine"):
    """Three items, each on an axis, named by the modality that finds it."""
    return BruteForceIndex.build(np.eye(3), ["image", "number", "text"], metric)


def names(*modalities, gallery=None):
    """The names of the signatures of an encoder, each with the names of its inputs."""
    return [
        (name, [each.name for each in inputs])
        for name, (_, inputs) in make_signatures(toy_encoder(*modalities), gallery).items()
    ]


def test_signatures_go_by_the_modalities_of_the_encoder():
    encoders = [(f"encode_{name}", [name]) for name in ("text", "image", "number")]
    assert names("image", "number", "text") == encoders
    assert names("image", "number", "text", gallery=graph(axes())) == [
        ("search_by_text", ["text"]),  # the default
        ("search_by_image", ["image"]),
        ("search_by_number", ["number"]),
        ("search_by_text_and_image", ["text", "image", "text_weight"]),
        ("search_by_text_and_number", ["text", "number", "text_weight"]),
        ("search_by_image_and_number", ["image", "number", "image_weight"]),
        ("search_by_embedding", ["embedding"]),
        *encoders,
    ]


def test_text_comes_first_wherever_its_tower_stands():
    gallery = graph(axes())
    assert names("text", "image", gallery=gallery) == names("image", "text", gallery=gallery)


def test_the_first_modality_is_the_default_where_there_is_no_text():
    assert names("image", "number")[0] == ("encode_image", ["image"])
    searches = [name for name, _ in names("image", "number", gallery=graph(axes()))]
    assert searches[:3] == ["search_by_image", "search_by_number", "search_by_image_and_number"]


@METRICS
def test_a_query_of_two_modalities_is_their_weighted_sum(metric):
    encoder, index = toy_encoder("image", "number", "text"), axes(metric)
    searcher = Searcher(encoder, index, [{"id": key, "captions": []} for key in index.ids])
    function, _ = make_signatures(encoder, graph(index))["search_by_text_and_number"]
    weights = [None, 0.0, 0.25, 1.0]
    sent = tf.constant([-1.0 if weight is None else weight for weight in weights])
    answer = function(tf.constant(["a"] * 4), tf.constant(["5"] * 4), sent)
    for row, weight in enumerate(weights):
        results = searcher.search(text="a", number=b"5", k=3, text_weight=weight)
        scores = [result.score for result in results]
        np.testing.assert_allclose(answer["scores"][row], scores, atol=1e-6)
        ids = [key.decode() for key in answer["ids"].numpy()[row]]
        assert ids == [result.id for result in results]


def test_each_tower_is_traced_once_for_all_signatures():
    encoder = toy_encoder("image", "number", "text")
    for function, inputs in make_signatures(encoder, graph(axes())).values():
        tf.function(function, input_signature=inputs).get_concrete_function()
    assert {len(tower.traced) for tower in encoder.towers.values()} == {2}

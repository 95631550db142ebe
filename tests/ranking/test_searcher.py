"""From a query to ranked items: against sorting by hand, for queries of any modalities."""

import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from mmret_tf.fusion import FusedEncoder
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking import BruteForceIndex, Searcher
from mmret_tf.ranking.results import SearchResults


class FakeEncoder(Encoder):
    """Gives each modality one vector, whatever the source is."""

    vectors = {"image": [1, 0, 0], "text": [0, 1, 0], "sound": [0.6, 0, 0.8]}
    towers = dict.fromkeys(vectors)
    embedding_dim = 3
    fingerprint = ""

    def encode(self, modality, sources, batch_size=None):
        return np.array([self.vectors[modality]] * len(sources), np.float32)

    def remarks(self, queries):
        says = {"sound": "The model knows no such sound."}
        return ["".join(says.get(name, "") for name, _ in query) for query in queries]


@pytest.fixture
def searcher():
    """A gallery of the three axes: scores are the coordinates of the query's vector."""
    index = BruteForceIndex.build(np.eye(3), list("xyz"), attributes=[{"n": n} for n in range(3)])
    return Searcher(FakeEncoder(), index, [{"id": key, "captions": [key * 2]} for key in "xyz"])


def scores(results):
    return {result.id: round(result.score, 3) for result in results}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "a"}, [0, 1, 0]),
        ({"image": b""}, [1, 0, 0]),
        ({"text": "a", "image": b""}, [0.707, 0.707, 0]),
        # 0.25 (0, 1, 0) + 0.75 (1, 0, 0) has the length 0.791.
        ({"text": "a", "image": b"", "text_weight": 0.25}, [0.949, 0.316, 0]),
        # The mean of image and sound, (0.8, 0, 0.4), has the length 0.894.
        ({"image": b"", "sound": b""}, [0.894, 0, 0.447]),
        # 0.5 (0, 1, 0) + 0.5 (0.8, 0, 0.4) has the length 0.671.
        ({"text": "a", "image": b"", "sound": b""}, [0.596, 0.745, 0.298]),
    ],
)
def test_a_query_of_several_modalities_is_their_weighted_sum(searcher, query, expected):
    results = searcher.search(**query)
    assert isinstance(results, SearchResults) and [each.rank for each in results] == [1, 2, 3]
    assert scores(results) == dict(zip("xyz", expected, strict=True))
    assert results[0].caption == results[0].id * 2 == results[0].item["captions"][0]


def test_the_number_of_results(searcher):
    assert len(searcher.search("a", k=2)) == 2
    assert len(searcher.search("a", k=100)) == 3
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got 0"):
        searcher.search("a", k=0)
    with pytest.raises(ValueError, match="a query needs text, image, or several"):
        searcher.search()


def test_conditions_and_exclusions_reach_the_index(searcher):
    assert set(scores(searcher.search("a", where={"n": {"$gte": 1}}))) == {"y", "z"}
    assert set(scores(searcher.search("a", exclude_ids=["y"]))) == {"x", "z"}
    with pytest.raises(ValueError, match="no item has the attribute 'm'"):
        searcher.search("a", where={"m": 5})


def test_an_item_that_was_added_after_the_searcher_was_made(searcher):
    searcher.index.upsert(["new"], [[0, 1, 0]])
    with pytest.raises(ValueError, match="'new', which was added after this searcher was made"):
        searcher.search("a")
    searcher.items["new"] = {"id": "new", "captions": ["a new one"]}
    assert "new" in scores(searcher.search("a"))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width 2, and the model makes width 3"):
        Searcher(FakeEncoder(), BruteForceIndex.build(np.eye(2), ["a", "b"]), [])
    index = BruteForceIndex.build(np.eye(3), list("abc"))
    with pytest.raises(ValueError, match="2 ids of the index have no item, first 'b'"):
        Searcher(FakeEncoder(), index, [{"id": "a"}])


def test_texts_and_pictures_rank_by_cosine(run_folder, shared_model, pairs):
    searcher = Searcher.open(run_folder, shared_model)
    vectors = shared_model.encode_images(pairs.image_paths)
    for query in ({"text": "红色的圆"}, {"image": pairs.image_paths[1]}):
        [(modality, source)] = query.items()
        cosines = vectors @ shared_model.encode(modality, [source])[0]
        order = np.argsort(-cosines, kind="stable")
        results = searcher.search(**query)
        assert [result.id for result in results] == [pairs.ids[row] for row in order]
        assert np.allclose([result.score for result in results], cosines[order], atol=1e-5)


def test_a_picture_of_the_gallery_finds_itself_however_it_is_given(run_folder, shared_model, pairs):
    searcher = Searcher.open(run_folder, shared_model)
    path = pairs.image_paths[1]
    for image in (path, str(path), path.read_bytes(), Image.open(path), np.array(Image.open(path))):
        [best] = searcher.search(image=image, k=1)
        assert (best.id, round(best.score, 4)) == ("001", 1)
    for image, message in (("gone.png", "gone.png"), (b"rubbish", "not an image")):
        with pytest.raises(ValueError, match=message):
            searcher.search(image=image)


def test_a_fused_encoder_embeds_queries_of_several_modalities(searcher):
    fused = mock.MagicMock(spec=FusedEncoder, embedding_dim=3, encode=FakeEncoder().encode)
    fused.remarks = FakeEncoder().remarks
    fused.encode_items.return_value = np.array([[0, 0, 1]])
    searcher = Searcher(fused, searcher.index, searcher.items.values())
    query = {"text": "a", "image": b""}
    assert scores(searcher.search(**query)) == {"x": 0, "y": 0, "z": 1}
    fused.encode_items.assert_called_once_with({"text": [["a"]], "image": [[b""]]})
    # A weight asks for the weighted sum, and a query of one modality has nothing to fuse.
    assert scores(searcher.search(**query, text_weight=1)) == {"x": 0, "y": 1, "z": 0}
    assert scores(searcher.search(text="a")) == {"x": 0, "y": 1, "z": 0}


def test_a_remark_stands_beside_the_results(searcher):
    results = searcher.search(sound="bang", k=1)
    assert results.remark == "The model knows no such sound."
    assert repr(results).splitlines()[1:] == [results.remark]
    assert f"<p>{results.remark}</p>" in results._repr_html_()
    assert searcher.search(text="x").remark == ""


def test_results_know_what_was_asked(searcher):
    results = searcher.search(text="a", texts={"b": -0.5}, sound="bang")
    assert results.query == [("text", "a", 1.0), ("text", "b", -0.5), ("sound", "bang", 1.0)]


def test_weighted_texts_and_an_item_of_the_gallery(searcher):
    results = searcher.search(texts={"a": -1}, with_vectors=True)
    assert scores(results) == {"x": 0, "z": 0, "y": -1}
    assert [each.vector.tolist() for each in results] == np.eye(3)[[0, 2, 1]].tolist()
    assert searcher.search(text="a")[0].vector is None
    # Half of (0, 1, 0) for the text and half of (1, 0, 0) for the item, which is not returned.
    assert scores(searcher.search(text="a", similar_to="x")) == {"y": 0.707, "z": 0}
    assert scores(searcher.search(similar_to="x", exclude_ids=["y"])) == {"z": 0}
    with pytest.raises(ValueError, match="1 ids are not in the index, the first is 'gone'"):
        searcher.search(similar_to="gone")


def test_a_batch_of_queries_answers_as_one_by_one(run_folder, shared_model, pairs):
    searcher = Searcher.open(run_folder, shared_model)
    queries = [
        {"text": "红色的圆"},
        {"image": pairs.image_paths[1], "k": 2},
        {"texts": {"a red circle": 1, "a blue square": -0.5}, "where": {}},
        {"text": "a blue square", "image": pairs.image_paths[0], "text_weight": 0.3},
        {"similar_to": pairs.ids[0], "exclude_ids": [pairs.ids[2]]},
    ]
    batch = searcher.search_batch(queries)
    for query, results in zip(queries, batch, strict=True):
        alone = searcher.search(**query)
        assert [each.id for each in results] == [each.id for each in alone]
        np.testing.assert_allclose(*([e.score for e in r] for r in (results, alone)), atol=1e-5)
    vectors = searcher.embed(queries)
    assert vectors.shape == (5, shared_model.embedding_dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert searcher.search_batch([]) == []


def test_a_batch_is_encoded_once_for_each_modality(searcher):
    queries = [{"text": "a"}, {"text": "b", "image": b""}, {"texts": {"c": 1, "d": -1}}]
    with mock.patch.object(
        FakeEncoder, "encode", autospec=True, side_effect=FakeEncoder.encode
    ) as encode:
        searcher.search_batch(queries)
    assert [call.args[1:] for call in encode.call_args_list] == [
        ("text", ["a", "b", "c", "d"]),
        ("image", [b""]),
    ]


def test_queries_that_ask_alike_search_the_index_once(searcher):
    queries = [
        {"text": "a", "k": 2},
        {"image": b"", "k": 2, "with_vectors": True},
        {"text": "a", "k": 2, "where": {"n": 1}},
        {"text": "a", "k": 2, "where": {"n": True}},  # not the same as 1
        {"text": "a", "k": 2, "exclude_ids": ["y"]},
        {"similar_to": "x", "k": 2},
    ]
    with mock.patch.object(
        BruteForceIndex, "search", autospec=True, side_effect=BruteForceIndex.search
    ) as search:
        answers = searcher.search_batch(queries)
    assert [len(call.args[1]) for call in search.call_args_list] == [2, 1, 1, 1, 1]
    best = [results[0].id if results else None for results in answers]
    assert best == ["y", "x", "y", None, "x", "y"]
    vectors = [[each.vector is not None for each in results] for results in answers]
    assert vectors == [[False] * 2, [True] * 2, [False], [], [False] * 2, [False] * 2]


def test_items_come_and_go(searcher):
    index = searcher.index
    searcher.upsert([{"id": "new", "captions": [], "image": "new.png", "attributes": {"n": 9}}])
    assert scores(searcher.search(image=b"", where={"n": 9})) == {"new": 1}
    searcher.upsert([{"id": "x", "captions": ["a text now"]}])  # an image before: (1, 0, 0)
    assert scores(searcher.search(text="a", k=2)) == {"x": 1, "y": 1}
    assert searcher.items["x"]["captions"] == ["a text now"]
    searcher.delete(["x", "new"])
    assert sorted(scores(searcher.search("a"))) == sorted(searcher.items) == ["y", "z"]
    assert index.ids == list("xyz")  # the index that was given is not changed
    for change in (
        lambda: searcher.upsert([{"id": 5, "captions": ["a"]}]),
        lambda: searcher.delete(["gone"]),
    ):
        with pytest.raises(ValueError, match="must be strings|not in the index"):
            change()
    assert sorted(searcher.items) == ["y", "z"]


def test_a_search_sees_items_and_index_of_one_moment(searcher):
    """Threads search while items come and go: each result has its item, and none fails."""
    is_done, problems = threading.Event(), []

    def search():
        while not is_done.is_set():
            try:
                for result in searcher.search(text="a"):
                    if result.id == "new" and result.item["captions"] != [f"{result.score > 0}"]:
                        problems.append(result)
            except ValueError as error:
                problems.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        searcher.upsert([{"id": "new", "captions": ["True"]}])  # a text: (0, 1, 0)
        searcher.upsert([{"id": "new", "captions": ["False"], "image": b""}])  # (1, 0, 0)
        searcher.delete(["new"])
    is_done.set()
    for thread in threads:
        thread.join()
    assert problems == []

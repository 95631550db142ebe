"""From a query to ranked items: against sorting by hand, for queries of any modalities."""

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

    def remark(self, query):
        return "The model knows no such sound." if "sound" in query else ""


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

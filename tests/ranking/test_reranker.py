"""The second stage: pairs against the parts of their sources, order in a search, and files.

A gallery is kept in half precision, so scores agree to 3e-4.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone, make_model

import mmret_tf as mm
from mmret_tf.data.items import Item
from mmret_tf.ranking import BruteForceIndex, Searcher, load_reranker
from mmret_tf.ranking.reranker import NOT_RERANKED, parts_of_items, rerank


@pytest.fixture(scope="module")
def reranker():
    """Untrained: what it prefers is arbitrary, but always the same."""
    model = make_model()
    keras.utils.set_random_seed(1)
    return mm.Reranker(model, dim=8, weight=3.0)


@pytest.fixture(scope="module")
def searcher(reranker, pairs):
    index = BruteForceIndex.build(reranker.encoder.encode_items(pairs.sources), pairs.ids)
    return Searcher(reranker.encoder, index, pairs.records(), reranker, rerank_k=3)


def second_stage(reranker, caption, key, pairs):
    picture = reranker.encode("image", [pairs.image_paths[pairs.ids.index(key)]])
    return reranker.match({"image": picture, "text": reranker.encode("text", [caption])}).item()


def test_the_first_candidates_are_ranked_by_both_stages(searcher, reranker, pairs):
    first = Searcher(reranker.encoder, searcher.index, pairs.records())
    for caption in CAPTIONS:
        candidates = first.search(caption, k=3)
        scores = {
            each.id: each.score + 3 * second_stage(reranker, caption, each.id, pairs)
            for each in candidates
        }
        found = searcher.search(caption, k=2)
        expected = sorted(scores, key=scores.get, reverse=True)[:2]
        assert [each.id for each in found] == expected
        assert [each.score for each in found] == pytest.approx(
            [scores[key] for key in expected], abs=3e-4
        )
        assert len(searcher.search(caption, k=4)) == 4  # more than `rerank_k`


def test_a_batch_is_ranked_as_its_queries(searcher, picture_files):
    queries = [{"text": each, "k": 2} for each in CAPTIONS] + [{"image": picture_files[0]}]
    together = searcher.search_batch(queries)
    for query, found in zip(queries, together, strict=True):
        alone = searcher.search(**query)
        assert [each.id for each in found] == [each.id for each in alone]
        assert found.remark == alone.remark


def test_it_says_where_it_changes_nothing(searcher, picture_files):
    one_stage = Searcher(searcher.encoder, searcher.index, list(searcher.items.values()))
    for query in ({"image": picture_files[1]}, {"text": "a", "image": picture_files[1]}):
        found, expected = searcher.search(**query), one_stage.search(**query)
        assert [each.score for each in found] == [each.score for each in expected]
    assert NOT_RERANKED in searcher.search(image=picture_files[1]).remark


def test_an_item_counts_by_its_best_picture(reranker, pairs):
    items = [
        Item(id="both", sources={"image": [str(path) for path in pairs.image_paths[:2]]}),
        Item(id="one", sources={"image": [str(pairs.image_paths[0])]}),
    ]
    parts = parts_of_items(reranker, items)
    assert [len(parts[item["id"]]) for item in items] == [2, 1]
    words = reranker.encode("text", CAPTIONS[:1])[0]
    order, scores, _ = rerank(reranker, "text", words, items, [0.5, 0.5], parts)
    by_hand = [0.5 + 3 * second_stage(reranker, CAPTIONS[0], key, pairs) for key in pairs.ids[:2]]
    expected = {"both": max(by_hand), "one": by_hand[0]}
    assert scores == pytest.approx([expected[items[place]["id"]] for place in order], abs=3e-4)


def test_captions_are_ranked_for_a_picture(reranker, picture_files, pairs):
    items = [{"id": text, "captions": [text]} for text in CAPTIONS]
    encoder = reranker.encoder
    index = BruteForceIndex.build(encoder.encode("text", CAPTIONS), CAPTIONS)
    found = Searcher(encoder, index, items, reranker).search(image=picture_files[0], k=4)
    cosines = encoder.encode("text", CAPTIONS) @ encoder.encode("image", picture_files[:1])[0]
    for each in found:
        second = second_stage(reranker, each.id, pairs.ids[0], pairs)
        expected = cosines[CAPTIONS.index(each.id)] + 3 * second
        assert each.score == pytest.approx(expected, abs=3e-4)


def test_added_items_are_ranked_again_too(searcher, picture_files):
    own = Searcher(
        searcher.encoder, searcher.index, list(searcher.items.values()), searcher.reranker
    )
    own.upsert([{"id": "new", "image": str(picture_files[0])}])
    scores = {each.id: each.score for each in own.search(CAPTIONS[0], k=5)}
    assert scores["new"] == pytest.approx(scores["000"], abs=3e-4)  # the same picture
    own.upsert([{"id": "more", "image": str(picture_files[1])}])
    scores = {each.id: each.score for each in own.search(CAPTIONS[0], k=6)}
    assert scores["more"] == pytest.approx(scores["001"], abs=3e-4) and "new" in scores
    own.delete(["new", "more"])
    assert len(own.search(CAPTIONS[0])) == 4 and len(searcher.search(CAPTIONS[0])) == 4


def test_it_is_saved_with_its_encoder_and_its_weight(reranker, pairs, tmp_path):
    reranker.save(tmp_path / "reranker.keras")
    loaded = load_reranker(tmp_path / "reranker.keras")
    assert loaded.encoder.fingerprint == reranker.encoder.fingerprint
    assert loaded.recipe == reranker.recipe and float(loaded.weight) == 3
    parts = reranker.encode("image", pairs.first_sources)
    assert loaded.encode("image", pairs.first_sources) == pytest.approx(parts, abs=1e-6)
    with pytest.raises(ValueError, match="holds a Reranker, not a MultiEncoder"):
        mm.load_model(tmp_path / "reranker.keras")


def test_its_word_vectors_start_as_those_of_the_encoder(reranker):
    tower = reranker.encoder.towers["text"]
    assert np.array_equal(reranker.readers["text"].words.get_weights(), tower.words.get_weights())
    ids = tower.preprocess(tf.constant(["a red circle", ""]))
    words = reranker({"text": ids})["text"].numpy()
    assert words == pytest.approx(reranker.encode("text", ["a red circle", ""]), abs=1e-6)


def test_a_query_of_no_words_is_answered(searcher):
    assert len(searcher.search("", k=4)) == 4


def test_mistakes_are_told(reranker, searcher):
    items = list(searcher.items.values())
    with pytest.raises(ValueError, match="trained for another encoder"):
        Searcher(make_model(backbone=make_backbone(width=4)), searcher.index, items, reranker)
    with pytest.raises(ValueError, match="rerank_k must be an integer of at least 1; got 0"):
        Searcher(reranker.encoder, searcher.index, items, reranker, rerank_k=0)
    with pytest.raises(ValueError, match="an item has none of image, text"):
        Searcher(
            reranker.encoder, searcher.index, [{"id": key} for key in searcher.items], reranker
        )
    with pytest.raises(ValueError, match="the list is empty"):
        reranker.encode("text", [])

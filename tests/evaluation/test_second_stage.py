"""Evaluation with a second stage: ranks against sorting by hand."""

import numpy as np
import pytest
from conftest import make_model

import mmret_tf as mm
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import SecondStage, choose_weight, embed_pairs, evaluate, rank_all
from mmret_tf.evaluation.metrics import evaluate_folds


def ranks_by_hand(images, texts, image_of, scores, k):
    """Ranks of both directions by sorting: the first k by the scores, the rest behind them."""

    def ranked(cosines, second):
        order = np.argsort(-cosines, kind="stable")
        first = order[:k]
        return [*first[np.argsort(-second[first], kind="stable")], *order[k:]]

    cosines = images @ texts.T
    of_captions = [
        1 + ranked(cosines[:, caption], scores[:, caption]).index(image_of[caption])
        for caption in range(len(texts))
    ]
    of_images = [
        1
        + min(
            ranked(cosines[row], scores[row]).index(own) for own in np.flatnonzero(image_of == row)
        )
        for row in range(len(images))
    ]
    return of_captions, of_images


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_ranks_are_those_of_sorting_the_first_k_again(k):
    random = np.random.default_rng(k)
    images, texts = random.normal(size=(8, 5)), random.normal(size=(20, 5))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    image_of = np.concatenate([np.arange(8), random.integers(8, size=12)])
    scores = random.normal(size=(8, 20))
    ranks = rank_all(images, texts, image_of, lambda rows, captions: scores[rows, captions], k)
    of_captions, of_images = ranks_by_hand(images, texts, image_of, scores, k)
    assert ranks.image_ranks.tolist() == of_captions
    assert ranks.caption_ranks.tolist() == of_images


def test_the_scores_of_the_first_stage_change_nothing():
    random = np.random.default_rng(0)
    images, texts = np.eye(6), random.normal(size=(12, 6))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    image_of = np.arange(12) % 6

    def cosines(rows, captions):
        return np.sum(images[rows] * texts[captions], axis=1)

    assert (
        rank_all(images, texts, image_of, cosines, 3).metrics()
        == rank_all(images, texts, image_of).metrics()
    )
    assert evaluate_folds(images, texts, image_of, 2, cosines, 2) == evaluate_folds(
        images, texts, image_of, 2
    )


def test_equal_scores_are_the_worst_rank():
    ranks = rank_all(np.eye(4), np.eye(4), range(4), lambda rows, _: np.zeros(len(rows)), 3)
    assert ranks.image_ranks.tolist() == ranks.caption_ranks.tolist() == [3, 3, 3, 3]


@pytest.fixture(scope="module")
def reranker():
    return mm.Reranker(make_model(), dim=8, weight=2.0)


def test_pairs_are_scored_as_in_a_search(reranker, picture_files):
    """An item of two pictures, in an order other than that of the rows."""
    captions = [["a red circle", "红色的圆"], ["a blue square"], ["a red circle"]]
    sources = {"image": [[path] for path in picture_files[:3]], "text": captions}
    pairs = Pairs(["x", "y", "x#1"], sources, groups=[0, 1, 0])
    images, texts, items = embed_pairs(reranker.encoder, pairs)
    stage = SecondStage(reranker, images, texts, pairs)
    parts = reranker.encode("image", pairs.first_sources)
    words = reranker.encode("text", items.second_sources)
    matched = reranker.match({"image": parts, "text": words})
    second = np.stack([matched[[0, 2]].max(axis=0), matched[1]])
    expected = images @ texts.T + 2 * second
    rows, captions = np.array([0, 1]), np.arange(3)
    for caption in captions:
        found = stage(rows, np.full(2, caption))
        assert found == pytest.approx(expected[:, caption], abs=2e-3)  # kept in half precision
    for row in rows:
        assert stage(np.full(3, row), captions) == pytest.approx(expected[row], abs=2e-3)
    metrics = evaluate(reranker.encoder, pairs, reranker=reranker, rerank_k=2)
    assert metrics["images"] == 2 and 0 <= metrics["chinese"]["t2i_R@1"] <= 1


def test_the_weight_with_the_highest_recall_is_chosen(reranker, picture_files):
    captions = [["a red circle"], ["a blue square"], ["红色的圆"], ["蓝色的方块"]]
    pairs = Pairs(list("abcd"), {"image": [[path] for path in picture_files], "text": captions})
    images, texts, _ = embed_pairs(reranker.encoder, pairs)
    sums = choose_weight(SecondStage(reranker, images, texts, pairs))
    assert sums[float(reranker.weight)] == max(sums.values())

"""Metrics of rankings: by eye, and against a slow oracle."""

import math
import statistics

import numpy as np
import pytest

from mmret_tf.evaluation import Ranks, evaluate_folds, evaluate_retrieval, metrics, rank_all


def unit(*degrees):
    """Points on the unit circle: the smaller the angle between two, the higher the cosine."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def slow_ranks(right, wrong):
    """1-based ranks of the right scores: an explicit sort, wrong ones first on a tie."""
    entries = [(-score, 1) for score in right] + [(-score, 0) for score in wrong]
    return [rank for rank, (_, is_right) in enumerate(sorted(entries), 1) if is_right]


def slow_summary(direction, all_ranks):
    best = [min(ranks) for ranks in all_ranks]
    metrics = {f"{direction}_R@{k}": sum(r <= k for r in best) / len(best) for k in (1, 5, 10)}
    ndcg = []
    for ranks in all_ranks:
        gained = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= 10)
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, 1 + min(10, len(ranks))))
        ndcg.append(gained / ideal)
    metrics[f"{direction}_medr"] = statistics.median(best)
    metrics[f"{direction}_meanr"] = statistics.mean(best)
    metrics[f"{direction}_mrr"] = statistics.mean(1 / rank for rank in best)
    metrics[f"{direction}_ndcg@10"] = statistics.mean(ndcg)
    return metrics


def slow_evaluate(images, texts, image_of):
    """The definition, one query at a time. Rounding makes equal cosines equal."""

    def cosine(a, b):
        return round(float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)), 9)

    i2t, t2i = [], []
    for i, image in enumerate(images):
        right = [cosine(image, text) for c, text in enumerate(texts) if image_of[c] == i]
        wrong = [cosine(image, text) for c, text in enumerate(texts) if image_of[c] != i]
        if right:
            i2t.append(slow_ranks(right, wrong))
    for c, text in enumerate(texts):
        right = [cosine(images[image_of[c]], text)]
        wrong = [cosine(image, text) for i, image in enumerate(images) if i != image_of[c]]
        t2i.append(slow_ranks(right, wrong))
    return slow_summary("i2t", i2t) | slow_summary("t2i", t2i)


def test_perfect_embeddings_score_one_everywhere():
    metrics = evaluate_retrieval(np.eye(3), np.eye(3), [0, 1, 2])
    assert list(metrics) == [
        f"{direction}_{name}"
        for direction in ("i2t", "t2i")
        for name in ("R@1", "R@5", "R@10", "medr", "meanr", "mrr", "ndcg@10")
    ]
    assert all(type(value) is float and value == 1 for value in metrics.values())


def test_by_eye():
    # Caption angles to the images at 0, 40 and 90 degrees:
    #   caption 0 at 10 (image 0): 10 30 80 -> rank 1
    #   caption 1 at 60 (image 0): 60 20 30 -> rank 3
    #   caption 2 at 30 (image 1): 30 10 60 -> rank 1
    #   caption 3 at 55 (image 2): 55 15 35 -> rank 2
    # Captions sorted by angle, for each image (its own in brackets):
    #   image 0: [0] 2 3 [1] -> ranks 1 and 4
    #   image 1: [2] ...     -> rank 1
    #   image 2: 1 [3] ...   -> rank 2
    metrics = evaluate_retrieval(unit(0, 40, 90), unit(10, 60, 30, 55), [0, 0, 1, 2])
    assert metrics["t2i_R@1"] == 2 / 4
    assert metrics["t2i_R@5"] == metrics["t2i_R@10"] == 1
    assert metrics["t2i_medr"] == 1.5
    assert metrics["t2i_meanr"] == 7 / 4
    assert metrics["t2i_mrr"] == pytest.approx((1 + 1 / 3 + 1 + 1 / 2) / 4)
    assert metrics["t2i_ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 + 1 / math.log2(3)) / 4)
    assert metrics["i2t_R@1"] == pytest.approx(2 / 3)
    assert metrics["i2t_medr"] == 1
    assert metrics["i2t_meanr"] == pytest.approx(4 / 3)
    assert metrics["i2t_mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    image_0 = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert metrics["i2t_ndcg@10"] == pytest.approx((image_0 + 1 + 1 / math.log2(3)) / 3)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("block_scores", [1, 100, 2**25])
def test_agrees_with_the_definition_on_random_data_full_of_ties(seed, block_scores, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_SCORES", block_scores)
    random = np.random.default_rng(seed)
    n_images, n_captions = random.integers(1, 30, size=2)
    # Coordinates -1, 0 and 1, and one constant: few different directions, none of length 0.
    images = np.insert(random.integers(-1, 2, (n_images, 3)), 0, 1, axis=1).astype(float)
    texts = np.insert(random.integers(-1, 2, (n_captions, 3)), 0, 1, axis=1).astype(float)
    image_of = random.integers(0, n_images, n_captions)  # 0 to many captions an image, any order
    found = evaluate_retrieval(images, texts, image_of)
    assert found == pytest.approx(slow_evaluate(images, texts, image_of), abs=1e-12)


def test_more_than_ten_captions_an_image_agree_with_the_definition():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((2, 8)), random.standard_normal((40, 8))
    image_of = np.repeat([1, 0], 20)
    metrics = evaluate_retrieval(images, texts, image_of)
    assert metrics == pytest.approx(slow_evaluate(images, texts, image_of), abs=1e-12)


@pytest.mark.parametrize("dim", [2, 256, 2048])
def test_collapsed_embeddings_never_look_good(dim):
    # Every candidate ties with the right one, so each right answer comes last.
    point = np.random.default_rng(0).standard_normal(dim)
    images, texts = np.tile(point, (20, 1)), np.tile(point, (100, 1))
    metrics = evaluate_retrieval(images, texts, np.repeat(np.arange(20), 5))
    assert metrics["t2i_meanr"] == 20  # the last of 20 images
    assert metrics["i2t_meanr"] == 96  # 95 wrong captions, then the first of its own
    assert metrics["t2i_R@10"] == metrics["i2t_R@10"] == 0
    assert metrics["t2i_ndcg@10"] == metrics["i2t_ndcg@10"] == 0


def test_a_lead_within_float32_noise_is_a_tie():
    # Caption 0 is 4e-7 nearer (in cosine) to its own image than to image 1.
    images = np.array([[0.6, 0.8, 0], [0.6, 0, 0.8]])
    texts = np.array([[0.6, 0.8, 0.8 - 6e-7], [0.6, 0.8, 0.8]])
    assert evaluate_retrieval(images, texts, [0, 1])["t2i_meanr"] == 2
    texts = np.array([[0.6, 0.8, 0.8 - 6e-4], [0.6, 0.8 - 6e-4, 0.8]])
    assert evaluate_retrieval(images, texts, [0, 1])["t2i_meanr"] == 1


def test_an_image_without_captions_is_not_a_query_but_can_be_mistaken_for_the_answer():
    # Image 1 has no caption, and lies nearer to caption 0 than image 0 does.
    metrics = evaluate_retrieval(unit(0, 50, 90), unit(40, 90), [0, 2])
    assert metrics["t2i_meanr"] == 1.5  # ranks 2 and 1
    assert metrics["i2t_meanr"] == 1  # images 0 and 2 only


def test_length_of_rows_does_not_matter_and_inputs_stay_as_they_were():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((2, 30, 8)).astype(np.float32)
    before = images.copy(), texts.copy()
    expected = evaluate_retrieval(images, texts, np.arange(30))
    scales = 10.0 ** random.integers(-30, 30, (30, 1))
    assert evaluate_retrieval(images * scales, texts / scales, np.arange(30)) == expected
    assert np.array_equal(images, before[0]) and np.array_equal(texts, before[1])


def test_a_row_of_zeros_is_similar_to_nothing():
    metrics = evaluate_retrieval([[0, 0], [1, 0]], [[1, 0], [1, 0]], [0, 1])
    assert metrics["t2i_meanr"] == 1.5  # caption 0 prefers image 1; caption 1 is right
    assert metrics["i2t_meanr"] == 2  # both captions are alike for either image


GOOD = dict(image_embeddings=np.eye(2), text_embeddings=np.eye(2), caption_to_image=[0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embeddings": np.ones(2)}, r"image_embeddings .* \[n, dim\]; got shape \(2,\)"),
        ({"text_embeddings": np.ones((2, 2, 1))}, r"text_embeddings .* got shape \(2, 2, 1\)"),
        ({"image_embeddings": np.ones((0, 2))}, r"non-empty .* got shape \(0, 2\)"),
        ({"text_embeddings": np.ones((0, 2))}, r"non-empty .* got shape \(0, 2\)"),
        ({"text_embeddings": [["a", "b"]]}, "array of numbers"),
        ({"text_embeddings": [[1, 2], [3]]}, "array of numbers"),
        ({"text_embeddings": np.ones((2, 3))}, "same width; got 2 and 3"),
        (
            {"image_embeddings": [[1, 0], [np.nan, 1]]},
            "NaN, infinity .* in 1 rows, the first is row 1",
        ),
        ({"text_embeddings": [[np.inf, 0], [0, 1]]}, "text_embeddings holds NaN, infinity"),
        ({"caption_to_image": [0]}, r"2 integers, one a caption; got int64 of shape \(1,\)"),
        ({"caption_to_image": [[0, 1]]}, r"got int64 of shape \(1, 2\)"),
        ({"caption_to_image": [0.0, 1.0]}, "2 integers, .* got float64"),
        ({"caption_to_image": [0, 2]}, "rows 0 to 1 of image_embeddings; got values from 0 to 2"),
        ({"caption_to_image": [-1, 0]}, "got values from -1 to 0"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_retrieval(**GOOD | change)
    assert "\n" not in str(caught.value)


def random_embeddings(n_images=40, n_captions=100, seed=3):
    """Captions near their images; an image may have any number of them, or none."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(n_images, 8))
    image_of = random.integers(n_images, size=n_captions)
    return images, images[image_of] + random.normal(size=(n_captions, 8)), image_of


def test_the_ranks_by_eye():
    """Image 1 has no caption; caption 2 lies nearest to it, not to its own image 2."""
    ranks = rank_all(unit(0, 40, 90), unit(10, 5, 60), [0, 0, 2])
    assert ranks.image_ranks.tolist() == [1, 1, 2]
    assert ranks.caption_ranks.tolist() == [1, 1]  # of images 0 and 2
    assert ranks.image_of.tolist() == [0, 0, 1]


def test_intervals_hold_the_recall_and_stay_the_same():
    ranks = rank_all(*random_embeddings())
    for name, (low, high) in ranks.recall_intervals().items():
        assert low <= ranks.metrics()[name] <= high
    assert ranks.recall_intervals() == ranks.recall_intervals()


def test_an_interval_is_that_of_the_binomial_where_images_have_one_caption_each():
    """400 queries, half of them answered: 1.96 standard errors of 0.025."""
    found = np.tile([1, 99], 200)
    low, high = Ranks(found, found, np.arange(400), found).recall_intervals()["t2i_R@1"]
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.008)


def test_captions_are_drawn_with_their_image():
    """Ten images with 40 captions each, found all or not at all: as uncertain as ten queries."""
    image_ranks = np.repeat(np.tile([1, 99], 5), 40)
    caption_ranks = np.tile([1, 99], 5)
    ranks = Ranks(image_ranks, caption_ranks, np.repeat(np.arange(10), 40), caption_ranks)
    intervals = ranks.recall_intervals()
    assert intervals["t2i_R@1"] == intervals["i2t_R@1"]
    assert intervals["t2i_R@1"][1] - intervals["t2i_R@1"][0] >= 0.5


def test_folds_are_the_mean_of_their_parts():
    images, texts, image_of = random_embeddings()
    parts = []
    for fold in range(4):
        chosen = image_of // 10 == fold
        part = slice(10 * fold, 10 * fold + 10)
        parts.append(evaluate_retrieval(images[part], texts[chosen], image_of[chosen] % 10))
    metrics = evaluate_folds(images, texts, image_of, folds=4)
    for name, value in metrics.items():
        assert value == pytest.approx(np.mean([part[name] for part in parts]))
    assert evaluate_folds(images, texts, image_of, folds=1) == evaluate_retrieval(
        images, texts, image_of
    )


@pytest.mark.parametrize(
    ("folds", "image_of", "message"),
    [
        (3, [0, 1, 2, 3], "the 4 images must be a multiple of folds; got 3"),
        (0, [0, 1, 2, 3], "multiple of folds; got 0"),
        (2, [0, 1, 1, 0], "images 2 to 3, a fold, have no caption"),
    ],
)
def test_impossible_folds_are_refused(folds, image_of, message):
    with pytest.raises(ValueError, match=message):
        evaluate_folds(np.eye(4), np.eye(4), image_of, folds)

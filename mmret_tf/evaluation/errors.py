"""Error analysis (错误分析): which captions fail, which images answer too often, what is confused.

Functions of embeddings and captions; `error_plots` draws what `analyse_errors` returns. What a
right image loses to the wrong ones above it adds up exactly: a caption whose image has rank r loses
1 - 1/r of its reciprocal rank, and each of the r - 1 wrong images above takes an equal share, 1/r.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmret_tf._checks import checked_rows
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.metrics import TIE, Ranks, rank_all
from mmret_tf.evaluation.wording import by_language, count_phrases, count_words, rarest_ranks
from mmret_tf.similarity.nearest import nearest

K = 10  # results of a query that are looked at
MOST_BINS = 5  # of captions, by one of their properties
SHOWN_HUBS, SHOWN_CONFUSIONS, SHOWN_CAPTIONS = 8, 10, 3

# Standard deviations of the normal distribution on either side of a 95 % interval.
Z = 1.96


def analyse_errors(
    images: np.ndarray, texts: np.ndarray, pairs: Pairs, vocabulary: Sequence[str] = ()
) -> dict[str, Any]:
    """Find out where retrieval fails. Section 3.1(5).

    Scores are computed in blocks, as in `evaluate_retrieval`. Ranks are those of `rank_all`. The
    first results are those of an exact search: of equal scores the first image comes first, so a
    collapsed model has one hub that answers every query.

    Args:
        images, texts, pairs: Returned by `embed_pairs`. Other modalities may take the place of
            images and texts. Without texts as the second one, "recall" is empty.
        vocabulary: Words of the training captions, the most frequent first, see `vocabulary_of`.
            Without it, "vocabulary_rank" is left out.

    Returns:
        Values that JSON can hold.

        - "recall": R@1 and R@10 of queries of a kind, see `recall_by`, for "all" captions, or for
          the "english" and the "chinese" ones where both occur. Each holds "text_to_image" by
          "words", "phrases" and "vocabulary_rank" of the query, see `count_words`, `count_phrases`
          and `rarest_ranks`; and "image_to_text" by "phrases", the mean of the image's captions.
        - "hubs": images that answer too often, see `find_hubs`.
        - "confusions": wrong images that cost most, see `find_confusions`.

    Raises:
        ValueError: As for `rank_all`.

    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["a blue"]]})
    >>> errors = analyse_errors(np.eye(2), np.array([[1, 0], [1, 0]]), pairs)  # both look like "a"
    >>> [(each["from"], each["R@1"]) for each in errors["recall"]["all"]["text_to_image"]["words"]]
    [(1, 1.0), (2, 0.0)]
    >>> errors["hubs"]["largest"][0], errors["confusions"][0]["right"]
    ({'id': 'a', 'first': 2, 'share': 1.0, 'right': 1}, 'b')
    """
    image_of = pairs.caption_to_image()
    recall, ranks = {}, rank_all(images, texts, image_of)
    if pairs.modalities[1] == "text":
        captions = np.array([each.record for each in pairs.second_sources], object)
        for language, chosen in by_language(captions).items():
            is_all = language == "all"
            some = ranks if is_all else rank_all(images, texts[chosen], image_of[chosen])
            recall[language] = _recall(some, captions[chosen], vocabulary, pairs.modalities[0])
    rows, scores = nearest(
        checked_rows(images, "images", "cosine"),
        checked_rows(texts, "texts", "cosine"),
        min(K, len(images)),
        "cosine",
    )
    return {
        "recall": recall,
        "hubs": find_hubs(rows, image_of, pairs.ids),
        "confusions": find_confusions(rows, scores, ranks.image_ranks, pairs),
    }


def _recall(
    ranks: Ranks, captions: Sequence[str], vocabulary: Sequence[str], first: str
) -> dict[str, dict[str, list]]:
    """Recall in both directions by the wording of captions, between texts and `first`."""
    phrases = count_phrases(captions)
    from_texts = {
        "words": recall_by(count_words(captions), ranks.image_ranks),
        "phrases": recall_by(phrases, ranks.image_ranks),
    }
    if vocabulary:
        rarest = rarest_ranks(captions, vocabulary)
        from_texts["vocabulary_rank"] = recall_by(rarest, ranks.image_ranks, apart=0)
    means = np.rint(np.bincount(ranks.image_of, phrases) / np.bincount(ranks.image_of))
    from_images = {"phrases": recall_by(means.astype(np.int64), ranks.caption_ranks)}
    return {f"text_to_{first}": from_texts, f"{first}_to_text": from_images}


def wilson_interval(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % confidence interval of a share (Wilson 1927), which holds near 0 and 1 and for small n.

    Args:
        hits: Number of successes, a number or an array.
        n: Number of trials, at least 1, likewise.

    Returns:
        The lower and the upper ends, 0 to 1.

    >>> low, high = wilson_interval(5, 10)
    >>> print(f"{low:.3f} to {high:.3f}")
    0.237 to 0.763
    """
    share = hits / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def recall_by(values: np.ndarray, ranks: np.ndarray, apart: int | None = None) -> list[dict]:
    """Recall of queries with similar values: a bin for each value, or a few bins of similar size.

    Args:
        values: Integers `[n]`, a property of each query.
        ranks: Rank of the right answer of each query, from 1, `[n]`.
        apart: A value that gets a bin of its own, the last.

    Returns:
        Bins in order, `MOST_BINS` at most, and the one apart: {"from", "to" (both inclusive),
        "queries", "R@1", "R@1_interval", "R@10", "R@10_interval"}, shares 0 to 1. The intervals are
        Wilson's. They take queries as independent, so they are somewhat narrow where several are
        captions of one image.

    >>> bins = recall_by(np.array([1, 1, 2, 2]), np.array([1, 3, 30, 30]))
    >>> [(each["from"], each["queries"], each["R@1"], each["R@10"]) for each in bins]
    [(1, 2, 0.5, 1.0), (2, 2, 0.0, 0.0)]
    """
    usual = values[values != apart]
    lasts = np.unique(usual)  # last value of each bin
    if len(lasts) > MOST_BINS:
        shares = np.arange(1, MOST_BINS + 1) / MOST_BINS
        lasts = np.unique(np.quantile(usual, shares, method="inverted_cdf"))
    bin_of = np.where(values == apart, len(lasts), np.searchsorted(lasts, values))
    found = []
    for number in np.unique(bin_of):
        chosen = bin_of == number
        low, high, n = values[chosen].min(), values[chosen].max(), int(chosen.sum())
        one = {"from": int(low), "to": int(high), "queries": n}
        for k in (1, K):
            hits = np.count_nonzero(ranks[chosen] <= k)
            ends = wilson_interval(hits, n)
            one |= {f"R@{k}": _rounded(hits / n), f"R@{k}_interval": [*map(_rounded, ends)]}
        found.append(one)
    return found


def find_hubs(rows: np.ndarray, image_of: np.ndarray, ids: Sequence[str]) -> dict[str, Any]:
    """Images that answer too many queries, and those that answer none (hubness 枢纽现象).

    The k-occurrence of an image is the number of queries that have it among their first k results
    (Radovanović et al. 2010). Many queries for few images make the distribution skewed.

    Args:
        rows: Rows of the first results of each query, best first: `[n_queries, k]`, k at most 10.
        image_of: Row of each query's right image, `[n_queries]`.
        ids: Names of the images.

    Returns:
        - "first" and "first_10": of the k-occurrences for k of 1 and of 10, the "mean"; the
          "skewness", 0 if all are equal; the number of images that are "never" found; and a
          "histogram", the number of images with 0, 1, 2 to 3, 4 to 7, ... occurrences.
        - "largest": images that are first most often: {"id", "first" (for this number of queries),
          "share" (of all queries), "right" (for this number, rightly)}.

    >>> hubs = find_hubs(np.array([[0], [0], [0], [1]]), np.array([0, 1, 2, 1]), ["a", "b", "c"])
    >>> hubs["largest"][0]
    {'id': 'a', 'first': 3, 'share': 0.75, 'right': 1}
    >>> hubs["first"]["never"], hubs["first"]["histogram"]  # one image 0 times, 1 once, 1 thrice
    (1, [1, 1, 1])
    """
    n = len(ids)
    hubs: dict[str, Any] = {}
    for name, k in (("first", 1), (f"first_{K}", K)):
        counts = np.bincount(rows[:, :k].ravel(), minlength=n)
        spread = counts.std()
        skewness = np.mean((counts - counts.mean()) ** 3) / spread**3 if spread else 0.0
        hubs[name] = {
            "mean": _rounded(counts.mean()),
            "skewness": _rounded(skewness),
            "never": int(np.count_nonzero(counts == 0)),
            "histogram": np.bincount(np.frexp(counts)[1]).tolist(),  # 2 to 3 have the exponent 2
        }
    first = np.bincount(rows[:, 0], minlength=n)
    right = np.bincount(rows[rows[:, 0] == image_of, 0], minlength=n)
    largest = np.argsort(-first, kind="stable")[:SHOWN_HUBS]
    hubs["largest"] = [
        {
            "id": ids[row],
            "first": int(first[row]),
            "share": _rounded(first[row] / len(rows)),
            "right": int(right[row]),
        }
        for row in largest
    ]
    return hubs


def find_confusions(
    rows: np.ndarray, scores: np.ndarray, image_ranks: np.ndarray, pairs: Pairs
) -> list[dict[str, Any]]:
    """Wrong images that stand above the right one for most of its captions, by what they cost.

    Only the first results of each caption count. The cost is the sum of 1 / rank of the right
    image, over the captions for which the wrong image stands above it: this wrong image's share of
    the reciprocal rank that they lose. An equal score, within 1e-6, stands above.

    Args:
        rows: Rows of the first results of each caption, best first: `[n_captions, k]`.
        scores: Their cosines, of the same shape.
        image_ranks: Rank of each caption's image, from 1, `[n_captions]`.
        pairs: The images with their captions.

    Returns:
        The most expensive first: {"right", "wrong" (ids), "cost", "above" (number of captions for
        which it stands above), "of" (all captions of the right image), "captions",
        "wrong_caption" (the first of the wrong image)}. Of the captions, those that cost most:
        {"text", "wrong_rank", "right_rank"}. Other modalities have empty texts.

    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["blue"]]})
    >>> rows, scores = np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 0]])
    >>> [confusion] = find_confusions(rows, scores, np.array([1, 2]), pairs)
    >>> confusion["right"], confusion["wrong"], confusion["cost"], confusion["captions"]
    ('b', 'a', 0.5, [{'text': 'blue', 'wrong_rank': 1, 'right_rank': 2}])
    """
    image_of, n = pairs.caption_to_image(), len(pairs)
    is_right = rows == image_of[:, None]
    needed = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True) - TIE
    caption, place = np.nonzero(~is_right & (scores >= needed))
    keys, key_of = np.unique(image_of[caption] * n + rows[caption, place], return_inverse=True)
    costs, above = np.bincount(key_of, 1 / image_ranks[caption]), np.bincount(key_of)
    of = np.bincount(image_of, minlength=n)[keys // n]
    most = np.flatnonzero(2 * above > of)
    found = []
    texts = pairs.all_captions() or [""] * len(image_of)  # other modalities have none
    for key in most[np.argsort(-costs[most], kind="stable")][:SHOWN_CONFUSIONS]:
        of_key = np.flatnonzero(key_of == key)
        of_key = of_key[np.argsort(image_ranks[caption[of_key]], kind="stable")][:SHOWN_CAPTIONS]
        captions = [
            {
                "text": texts[caption[each]],
                "wrong_rank": int(place[each]) + 1,
                "right_rank": int(image_ranks[caption[each]]),
            }
            for each in of_key
        ]
        right, wrong = divmod(int(keys[key]), n)
        one = {"right": pairs.ids[right], "wrong": pairs.ids[wrong]}
        one |= {"cost": _rounded(costs[key]), "above": int(above[key]), "of": int(of[key])}
        one["wrong_caption"] = texts[np.searchsorted(image_of, wrong)]
        found.append(one | {"captions": captions})
    return found


def _rounded(value: float) -> float:
    """For people and JSON, with four decimals."""
    return round(float(value), 4)

"""Recall at k, ranks, MRR and nDCG of two arrays of embeddings (检索指标).

Pure NumPy: the functions know arrays and an explicit caption -> image map, never a model. For other
modalities read "image" as the first and "caption" as the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import checked_count, checked_rows

# Two cosines closer than this are a tie: float32 matrix products differ by about 1e-7 with the
# order of their sums, and noise must not decide whether the right answer comes first.
TIE = 1e-6

KS = (1, 5, 10)

# Number of bootstrap samples for an interval.
SAMPLES = 1000

# Number of scores held at once (float32, so 128 MiB).
BLOCK_SCORES = 2**25

# From rows of images and rows of captions, `[n]` both, to the scores of these pairs, `[n]`.
PairScores: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def evaluate_retrieval(
    image_embeddings: npt.ArrayLike,
    text_embeddings: npt.ArrayLike,
    caption_to_image: npt.ArrayLike,
) -> dict[str, float]:
    """Rank all captions for every image and all images for every caption; summarize the ranks.

    Candidates are sorted by cosine similarity (余弦相似度; sections 2.4 and 3.1(5)). Rows may have
    any length: they are normalized here, in a copy. A row of zeros has cosine 0 with everything.

    Ranks start at 1, and ties are pessimistic: a wrong candidate that scores as high as the right
    one (within 1e-6) stands before it. A collapsed model, which gives every input the same
    embedding, therefore gets the last rank everywhere rather than the first.

    An image may have any number of captions. Its image-to-text rank is that of its best caption,
    as is usual for Flickr8k and MS-COCO; nDCG counts all of them. An image without a caption is
    not a query, but it remains a wrong answer to captions.

    Scores are computed in blocks: besides the inputs and their normalized copies (float32), 160 MiB
    are held. 50,000 images and 250,000 captions of width 256 take less than 1 GiB.

    Args:
        image_embeddings: `[n_images, dim]`.
        text_embeddings: `[n_captions, dim]`.
        caption_to_image: `[n_captions]` integers, for each caption the row of its image.

    Returns:
        For each direction, `i2t` (image query, captions ranked) and `t2i` (caption query, images
        ranked): `i2t_R@1`, `i2t_R@5`, `i2t_R@10` (fraction of queries, 0 to 1, with a right
        answer among the first k), `i2t_medr` and `i2t_meanr` (median and mean rank), `i2t_mrr`
        (mean of 1 / rank) and `i2t_ndcg@10` (binary relevance).

    Raises:
        ValueError: An array is empty, has the wrong number of axes or holds NaN or infinity, the
            widths or lengths differ, or an image row does not exist.

    >>> images = [[1, 0], [0, 1]]
    >>> texts = [[1, 0], [2, 1], [1, 0]]  # the third belongs to image 1, but looks like image 0
    >>> metrics = evaluate_retrieval(images, texts, [0, 0, 1])
    >>> metrics["t2i_R@1"], metrics["t2i_meanr"]  # ranks 1, 1, 2
    (0.6666666666666666, 1.3333333333333333)
    >>> metrics["i2t_R@1"], metrics["i2t_meanr"]  # image 0: caption 2 ties with 0, so rank 2
    (0.0, 2.5)
    """
    return rank_all(image_embeddings, text_embeddings, caption_to_image).metrics()


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers, from 1; made by `rank_all`. Section 3.1(5).

    Args:
        image_ranks: Rank of each caption's image among all images, int64 `[n_captions]`.
        caption_ranks: Rank of the best caption of each image that has one, int64 `[n_queries]`.
        image_of: Row of each caption's image in `caption_ranks`, int64 `[n_captions]`.
        caption_ndcg: nDCG at 10 of all captions of each image, 0 to 1, float64 `[n_queries]`.

    >>> image_ranks, caption_ranks = np.array([1, 2, 2, 9]), np.array([1, 2])
    >>> ranks = Ranks(image_ranks, caption_ranks, np.array([0, 0, 1, 1]), np.ones(2))
    >>> ranks.metrics()["t2i_R@1"], ranks.metrics()["i2t_medr"]
    (0.25, 1.5)
    """

    image_ranks: np.ndarray
    caption_ranks: np.ndarray
    image_of: np.ndarray
    caption_ndcg: np.ndarray

    def metrics(self) -> dict[str, float]:
        """The metrics of `evaluate_retrieval`, under the same names."""
        image_to_text = _summary("i2t", self.caption_ranks, self.caption_ndcg)
        return image_to_text | _summary("t2i", self.image_ranks, _gain(self.image_ranks))

    def recall_intervals(self) -> dict[str, list[float]]:
        """95 % confidence intervals of each recall by a percentile bootstrap (自助法置信区间; Efron
        and Tibshirani 1993, chapter 13).

        They tell how far a recall would move with other photographs. Images are drawn with
        replacement, each with all its captions, because captions of one image succeed and fail
        together. The gallery, and with it the ranks, stays the same.

        Returns:
            Lower and upper end of each `i2t_R@1` to `t2i_R@10`, fractions 0 to 1; the same in every
            call.

        >>> ranks = rank_all(np.eye(4), np.eye(4)[[0, 1, 2, 2]], [0, 1, 2, 3])  # 3 of 4 are right
        >>> ranks.recall_intervals()["t2i_R@1"]  # wide, with only 4 images
        [0.25, 1.0]
        """
        n_images = len(self.caption_ranks)
        captions = np.bincount(self.image_of, minlength=n_images)
        hits, queries = {}, {}  # for each recall: right answers and queries of each image
        for k in KS:
            name = f"i2t_R@{k}"
            hits[name], queries[name] = self.caption_ranks <= k, np.ones(n_images)
            name, found = f"t2i_R@{k}", self.image_of[self.image_ranks <= k]
            hits[name], queries[name] = np.bincount(found, minlength=n_images), captions
        right, asked = (np.stack([*each.values()], axis=1) for each in (hits, queries))
        random, drawn = np.random.default_rng(0), []
        for _ in range(SAMPLES):
            times = np.bincount(random.integers(n_images, size=n_images), minlength=n_images)
            drawn.append(times @ right / (times @ asked))
        tails = np.quantile(drawn, [0.025, 0.975], axis=0)
        return dict(zip(hits, tails.T.tolist(), strict=True))


def rank_all(
    image_embeddings: npt.ArrayLike,
    text_embeddings: npt.ArrayLike,
    caption_to_image: npt.ArrayLike,
    rerank: PairScores | None = None,
    rerank_k: int = 50,
) -> Ranks:
    """The ranks that `evaluate_retrieval` summarizes. Section 3.1(5).

    Args:
        image_embeddings, text_embeddings, caption_to_image: As for `evaluate_retrieval`.
        rerank: A second stage (重排序), which scores pairs of an image and a caption. It decides
            the order of the first `rerank_k` candidates of each query; the others stay.
        rerank_k: Number of these candidates, at least 1.

    Returns:
        The ranks of both directions, from 1.

    Raises:
        ValueError: As for `evaluate_retrieval`, or `rerank_k` is below 1.

    >>> rank_all([[1, 0], [0, 1]], [[1, 0], [2, 1], [1, 0]], [0, 0, 1]).image_ranks
    array([1, 1, 2])
    >>> is_right = lambda images, captions: images == np.array([0, 0, 1])[captions]
    >>> rank_all([[1, 0], [0, 1]], [[1, 0], [2, 1], [1, 0]], [0, 0, 1], is_right).image_ranks
    array([1, 1, 1])
    """
    images, texts, image_of = _checked(image_embeddings, text_embeddings, caption_to_image)
    images_above, captions_above = _count_wrong_above(images, texts, image_of)
    if rerank is not None:
        k = checked_count(rerank_k, "rerank_k")
        images_above, captions_above = _count_after_reranking(
            images, texts, image_of, images_above, captions_above, rerank, k
        )

    # Captions by image, the best first within each: `order` has one run of captions per query.
    # The fewer wrong captions stand above a caption, the better it scores.
    order = np.lexsort((captions_above, image_of))
    starts = np.flatnonzero(np.diff(image_of[order], prepend=-1))
    n_relevant = np.diff(starts, append=len(order))
    # The second-best caption of an image has the best one above it, and so on.
    place = np.arange(len(order)) - np.repeat(starts, n_relevant)
    caption_ranks = 1 + captions_above[order] + place
    # The highest gain is that of n right answers at ranks 1 to n.
    ideal = np.cumsum(_gain(np.arange(1, 11)))[np.minimum(n_relevant, 10) - 1]
    caption_ndcg = np.add.reduceat(_gain(caption_ranks), starts) / ideal

    return Ranks(
        image_ranks=1 + images_above,
        caption_ranks=caption_ranks[starts],
        image_of=np.unique(image_of, return_inverse=True)[1],
        caption_ndcg=caption_ndcg,
    )


def evaluate_folds(
    image_embeddings: npt.ArrayLike,
    text_embeddings: npt.ArrayLike,
    caption_to_image: npt.ArrayLike,
    folds: int = 5,
    rerank: PairScores | None = None,
    rerank_k: int = 50,
) -> dict[str, float]:
    """Metrics averaged over equal folds of the images, each ranked by itself (五折平均).

    This is Karpathy's protocol of 5 x 1,000 for MS-COCO's 5,000 test images (arXiv 1412.2306,
    section 4.1). A fold is a run of consecutive images with their captions.

    Args:
        image_embeddings, text_embeddings, caption_to_image: As for `evaluate_retrieval`.
        folds: Number of folds; it must divide the number of images.
        rerank, rerank_k: A second stage, see `rank_all`.

    Returns:
        The metrics of `evaluate_retrieval`, each the mean over the folds.

    Raises:
        ValueError: As for `evaluate_retrieval`, `folds` does not divide the number of images, or a
            fold has no caption.

    >>> images = [[1, 0], [0, 1], [1, 0], [0, 1]]  # every image has a twin, but not in its fold
    >>> evaluate_retrieval(images, images, [0, 1, 2, 3])["t2i_R@1"]
    0.0
    >>> evaluate_folds(images, images, [0, 1, 2, 3], folds=2)["t2i_R@1"]
    1.0
    """
    images, texts, image_of = _checked(image_embeddings, text_embeddings, caption_to_image)
    if folds < 1 or len(images) % folds:
        raise ValueError(f"the {len(images)} images must be a multiple of folds; got {folds}")
    size = len(images) // folds
    parts = []
    for start in range(0, len(images), size):
        chosen = (image_of >= start) & (image_of < start + size)
        if not chosen.any():
            raise ValueError(f"images {start} to {start + size - 1}, a fold, have no caption")
        rows = np.arange(start, start + size)
        fold = images[rows], texts[chosen], image_of[chosen] - start
        of_fold = of_rows(rerank, rows, np.flatnonzero(chosen))
        parts.append(rank_all(*fold, of_fold, rerank_k).metrics())
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def of_rows(
    rerank: PairScores | None, images: np.ndarray, captions: np.ndarray
) -> PairScores | None:
    """A second stage for some of the images and captions.

    Args:
        rerank: For all of them; may be `None`.
        images, captions: The chosen rows.
    """
    if rerank is None:
        return None
    return lambda rows, others: rerank(images[rows], captions[others])


def _checked(
    image_embeddings: npt.ArrayLike, text_embeddings: npt.ArrayLike, caption_to_image: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows of both arrays, of the same width, and the caption -> image map; or ValueError."""
    images = checked_rows(image_embeddings, "image_embeddings", "cosine")
    texts = checked_rows(text_embeddings, "text_embeddings", "cosine")
    if images.shape[1] != texts.shape[1]:
        widths = f"{images.shape[1]} and {texts.shape[1]}"
        raise ValueError(f"images and texts must be embedded in the same width; got {widths}")
    image_of = np.asarray(caption_to_image)
    if image_of.shape != (len(texts),) or image_of.dtype.kind not in "iu":
        got = f"{image_of.dtype} of shape {image_of.shape}"
        raise ValueError(
            f"caption_to_image must hold {len(texts)} integers, one a caption; got {got}"
        )
    low, high = image_of.min(), image_of.max()
    if low < 0 or high >= len(images):
        rows = f"rows 0 to {len(images) - 1} of image_embeddings"
        raise ValueError(f"caption_to_image must point to {rows}; got values from {low} to {high}")
    return images, texts, image_of.astype(np.int64)


def _count_wrong_above(
    images: np.ndarray, texts: np.ndarray, image_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the wrong candidates that score at least as high as each right pair.

    Returns:
        Two arrays `[n_captions]`: wrong images above the caption's own image, and wrong captions
        (those of other images) above this caption when its image is the query.
    """
    n_captions = len(texts)
    # A wrong candidate with this score stands above.
    needed = np.array([images[row] @ text for row, text in zip(image_of, texts, strict=True)]) - TIE
    by_image = np.argsort(image_of, kind="stable")
    image_of_sorted = image_of[by_image]
    images_above, captions_above = np.zeros((2, n_captions), np.int64)
    rows_per_block = max(1, BLOCK_SCORES // n_captions)
    for start in range(0, len(images), rows_per_block):
        scores = images[start : start + rows_per_block] @ texts.T  # [rows, n_captions]
        first, last = np.searchsorted(image_of_sorted, [start, start + rows_per_block])
        own = by_image[first:last]  # the captions of the images of this block
        own_rows = image_of[own] - start
        scores[own_rows, own] = -np.inf  # right answers never stand above one another here
        images_above += np.count_nonzero(scores >= needed, axis=0)
        for row, caption in zip(own_rows, own, strict=True):
            captions_above[caption] = np.count_nonzero(scores[row] >= needed[caption])
    return images_above, captions_above


def _count_after_reranking(
    images: np.ndarray,
    texts: np.ndarray,
    image_of: np.ndarray,
    images_above: np.ndarray,
    captions_above: np.ndarray,
    rerank: PairScores,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The counts of `_count_wrong_above` after the first k candidates were ranked again; a right
    answer that is not among them keeps its place."""
    images_above, captions_above = images_above.copy(), captions_above.copy()
    for caption in np.flatnonzero(images_above < k):
        right = image_of[caption]
        wrong = _best(images @ texts[caption], [right], k - 1)
        scores = rerank(np.append(wrong, right), np.full(len(wrong) + 1, caption))
        images_above[caption] = np.count_nonzero(scores[:-1] >= scores[-1] - TIE)
    order = np.lexsort((captions_above, image_of))  # the best caption of each image first
    images_there, starts = np.unique(image_of[order], return_index=True)
    for image, own in zip(images_there, np.split(order, starts[1:]), strict=True):
        right = own[captions_above[own] + np.arange(len(own)) < k]  # the candidates
        if len(right):
            wrong = _best(texts @ images[image], own, k - len(right))
            candidates = np.concatenate([wrong, right])
            scores = rerank(np.full(len(candidates), image), candidates)
            of_wrong, of_right = scores[: len(wrong)], scores[len(wrong) :]
            captions_above[right] = np.sum(of_wrong >= of_right[:, None] - TIE, axis=1)
    return images_above, captions_above


def _best(scores: np.ndarray, right: npt.ArrayLike, count: int) -> np.ndarray:
    """The rows with the highest scores, without the right ones; in any order."""
    scores[right] = -np.inf
    count = min(count, len(scores) - len(right))
    return np.argpartition(-scores, count - 1)[:count] if count > 0 else np.empty(0, np.int64)


def _gain(ranks: np.ndarray) -> np.ndarray:
    """Discounted gain of one right answer at each rank: 1 / log2(1 + rank), 0 after rank 10."""
    return np.where(ranks <= 10, 1 / np.log2(1.0 + ranks), 0.0)


def _summary(direction: str, ranks: np.ndarray, ndcg: np.ndarray) -> dict[str, float]:
    metrics = {f"R@{k}": np.mean(ranks <= k) for k in KS}
    metrics |= {"medr": np.median(ranks), "meanr": np.mean(ranks)}
    metrics |= {"mrr": np.mean(1 / ranks), "ndcg@10": np.mean(ndcg)}
    return {f"{direction}_{name}": float(value) for name, value in metrics.items()}

"""Evaluation with a re-ranker (重排序): the second stage as a score of pairs for `rank_all`."""

import numpy as np

from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.metrics import rank_all
from mmret_tf.ranking.reranker import Reranker

# Weights of the second stage that `choose_weight` tries.
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


class SecondStage:
    """Scores of pairs, as `rank_all` takes them: those of both stages.

    An item with several pictures counts by the one that fits best.

    Args:
        reranker: The second stage.
        images, texts: Embeddings of the first stage, from `embed_pairs`.
        pairs: What was embedded.

    Attributes:
        reranker, images, texts: As given.
        image_of: Row of the item of each caption, `[n_captions]`.

    >>> from types import SimpleNamespace
    >>> parts = {"image": np.ones((2, 4, 3)), "text": np.ones((2, 5, 3))}  # 4 regions, 5 words
    >>> reranker = SimpleNamespace(encode=lambda modality, sources: parts[modality])  # a `Reranker`
    >>> reranker.match = lambda parts: np.array([[0.1], [0.4]])
    >>> reranker.ranked = lambda first, second: first + second
    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["blue"]]})
    >>> stage = SecondStage(reranker, np.eye(2), np.eye(2), pairs)
    >>> stage(np.array([0, 1]), np.array([0, 0]))  # both images, the first caption
    array([1.1, 0.4])
    """

    def __init__(self, reranker: Reranker, images: np.ndarray, texts: np.ndarray, pairs: Pairs):
        self.reranker, self.images, self.texts = reranker, images, texts
        self._names = pairs.modalities
        first, second = self._names
        by_item = np.argsort(pairs.groups, kind="stable")
        items = pairs.subset(pairs.first_rows())
        self.image_of = items.caption_to_image()
        sources = [pairs.first_sources[row] for row in by_item]
        # Half the bits are enough for unit vectors, and all of them are in memory.
        self._first = reranker.encode(first, sources).astype(np.float16)
        self._second = reranker.encode(second, items.second_sources).astype(np.float16)
        self._counts = np.bincount(pairs.groups)
        self._starts = np.cumsum(self._counts) - self._counts
        self._matched: dict[tuple[bytes, bytes], np.ndarray] = {}

    def __call__(self, rows: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Scores of one image with some captions, or of one caption with some images.

        Args:
            rows: Row of an item for each pair, `[n]`.
            captions: Row of a caption for each pair, `[n]`.

        Returns:
            `[n]`.
        """
        cosines = np.sum(self.images[rows] * self.texts[captions], axis=1)
        key = rows.tobytes(), captions.tobytes()
        if key not in self._matched:  # another weight needs no other match
            self._matched[key] = self._match(rows, captions)
        return self.reranker.ranked(cosines, self._matched[key])

    def _match(self, rows: np.ndarray, captions: np.ndarray) -> np.ndarray:
        is_one_caption = bool((captions == captions[0]).all())
        rows, captions = (rows, captions[:1]) if is_one_caption else (rows[:1], captions)
        counts = self._counts[rows]
        starts = np.cumsum(counts) - counts
        of_rows = np.repeat(self._starts[rows] - starts, counts) + np.arange(counts.sum())
        words = self._second[captions]
        words = words[:, : 1 + np.flatnonzero(words.any(axis=(0, 2))).max(initial=0)]
        parts = dict(zip(self._names, (self._first[of_rows], words), strict=True))
        pairs = self.reranker.match(parts)  # [sources, captions]
        return np.maximum.reduceat(pairs, starts).ravel()


def choose_weight(stage: SecondStage, rerank_k: int = 50) -> dict[float, float]:
    """Give a re-ranker the weight with the highest sum of recalls on a development split.

    Args:
        stage: Of the split. The `weight` of its re-ranker is set.
        rerank_k: Number of candidates.

    Returns:
        The sum of the recalls at 1, 5 and 10 in both directions, by weight; 0 to 6.

    >>> import mmret_tf as mm
    >>> from mmret_tf.evaluation import embed_pairs
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))
    >>> images, texts, _ = embed_pairs(model, pairs)
    >>> sums = choose_weight(SecondStage(mm.Reranker(model, dim=8), images, texts, pairs))
    >>> sorted(sums) == list(WEIGHTS)
    True
    """
    sums = {}
    for weight in WEIGHTS:
        stage.reranker.weight.assign(weight)
        ranks = rank_all(stage.images, stage.texts, stage.image_of, stage, rerank_k)
        sums[weight] = sum(value for name, value in ranks.metrics().items() if "_R@" in name)
    stage.reranker.weight.assign(max(sums, key=sums.get))
    return sums

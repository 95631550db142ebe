"""The second stage of a served search (重排序): regions and words of a gallery in the graph."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmret_tf.ranking.reranker import gallery_modality
from mmret_tf.ranking.searcher import Searcher


class SecondStageGraph(tf.Module):
    """The re-ranker of a searcher, and the regions or words of its gallery as a variable, in half
    precision.

    Args:
        searcher: It has a re-ranker.

    Attributes:
        modality: Of the gallery. Queries of this modality are not ranked again.

    Raises:
        ValueError: The items are of several modalities.
    """

    def __init__(self, searcher: Searcher):
        super().__init__()
        self.reranker = searcher.reranker
        items = [searcher.items[key] for key in searcher.index.ids]
        modalities = {gallery_modality(self.reranker.encoder, item["sources"]) for item in items}
        if len(modalities) > 1:
            found = ", ".join(sorted(modalities))
            raise ValueError(f"a second stage needs a gallery of one modality; this has {found}")
        self.modality = modalities.pop()
        parts = [searcher.parts[item["id"]] for item in items]
        # An item has a row for each of its sources.
        counts = [len(each) for each in parts]
        self.sources = tf.Variable(_source_rows(counts), trainable=False, name="gallery_sources")
        stored = np.concatenate([each.astype(np.float16) for each in parts])
        self.parts = tf.Variable(stored, trainable=False, name="gallery_parts")

    def ranked(
        self, modality: str, inputs: tf.Tensor, rows: tf.Tensor, scores: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Rank candidates again, as `ranking.reranker.rerank` does.

        Args:
            modality: Of the queries.
            inputs: What its tower's `preprocess` returns, `[n, ...]`.
            rows: Candidates of each query, `[n, found]`.
            scores: Those of the first stage, `[n, found]`.

        Returns:
            The candidates in their new order, and their scores.
        """
        queries = self.reranker.read(modality, inputs)

        def second(query: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            words, candidates = query
            sources = tf.gather(self.sources, candidates)  # [found, most sources of an item]
            parts = tf.gather(self.parts, tf.maximum(tf.reshape(sources, [-1]), 0))
            parts = {self.modality: tf.cast(parts, tf.float32), modality: words[None]}
            pairs = tf.reshape(self.reranker.compare(parts), tf.shape(sources))
            return tf.reduce_max(tf.where(sources < 0, -np.inf, pairs), axis=1)

        found = tf.map_fn(second, (queries, rows), fn_output_signature=tf.float32)
        scores, places = tf.math.top_k(scores + self.reranker.weight * found, tf.shape(rows)[1])
        return tf.gather(rows, places, batch_dims=1), scores


def _source_rows(counts: Sequence[int]) -> np.ndarray:
    """Rows of each item's sources, which stand one after another: `[n, most]`, -1 for none.

    >>> _source_rows([1, 2]).tolist()
    [[0, -1], [1, 2]]
    """
    starts = np.cumsum([0, *counts[:-1]])
    numbers = np.arange(max(counts))
    rows = starts[:, None] + numbers
    return np.where(numbers < np.array(counts)[:, None], rows, -1).astype(np.int32)

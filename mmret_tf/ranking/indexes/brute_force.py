"""Exact search (精确检索): every query is compared with every embedding. Section 2.4.

It is the oracle that other indexes are measured against, and the right index for small galleries.
"""

from mmret_tf.ranking.index import Index
from mmret_tf.ranking.indexes.snapshot import Segment


class BruteForceIndex(Index):
    """Exact search: every query is compared with every embedding. Sections 2.4 and 3.1(5).

    Made by `build`, or opened by `load_index`.

    Args:
        snapshot: The items.

    >>> index = BruteForceIndex.build([[1, 0], [0, 1], [1, 1]], ["a", "b", "c"])
    >>> ids, scores = index.search([2, 0], k=2)
    >>> ids.tolist(), scores.round(3).tolist()
    ([['a', 'c']], [[1.0, 0.7070000171661377]])
    >>> index.upsert(["d"], [[1, 0.1]])
    >>> index.delete(["a"])
    >>> index.search([2, 0], k=1)[0].tolist(), index
    ([['d']], BruteForceIndex(3 items, dim 2, 'cosine'))
    """

    def prepare(self, items: Segment) -> Segment:
        return items  # `Segment.nearest` compares each query with all rows

"""Ranked results (检索结果): what a search returns, in Python and from a served model.

Needs no TensorFlow, so that the serving client can use it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmret_tf._checks import printable
from mmret_tf.data.items import Item

# What a served model takes for `text_weight=None`: every request must have a number.
TEXT_WEIGHT_BY_DEFAULT = -1.0


@dataclass(frozen=True)
class SearchResult:
    """One place in a ranking. Section 3.1(5).

    Attributes:
        rank: From 1.
        id: Of the item.
        score: Larger for better matches: the cosine similarity, unless the index is Euclidean.
        item: The record of the item, see `Item`.
        vector: Its embedding, `[dim]`, if the query asked for vectors.

    >>> SearchResult(rank=1, id="a", score=0.8, item={"id": "a", "captions": ["a dog"]}).score
    0.8
    """

    rank: int
    id: str | int
    score: float
    item: dict
    vector: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def caption(self) -> str:
        """The first text of the item, or an empty string."""
        return next(iter(Item.of(self.item)["captions"]), "")


class SearchResults(list):
    """A list of `SearchResult`, best first, that Jupyter shows as pictures. Section 3.1(5).

    Attributes:
        query: The terms of the query, see `Query.terms`: modality, source and weight of each.
        remark: What is wrong with the query, such as words that the model does not know, or "".
        right_ids: Ids of the right answers, which get a frame in Jupyter; see `marked`.

    >>> dog = {"id": "a", "captions": ["a dog"]}
    >>> SearchResults([SearchResult(1, "a", 0.8, dog)])
       1  0.800  a  a dog
    """

    query: Sequence[tuple[str, Any, float]] = ()
    remark: str = ""
    right_ids: frozenset[str | int] = frozenset()

    def marked(self, *right_ids: str | int) -> "SearchResults":
        """The same results with the right answers known.

        Args:
            right_ids: Ids of items; they need not be among the results.

        >>> dog = SearchResult(1, "a", 0.8, {"id": "a", "captions": ["a dog"]})
        >>> SearchResults([dog]).marked("a").right_ids
        frozenset({'a'})
        """
        results = copy.copy(self)
        results.right_ids = frozenset(right_ids)
        return results

    def __repr__(self) -> str:
        lines = [
            f"{result.rank:>4}  {result.score:.3f}  {printable(str(result.id))}  "
            f"{printable(result.caption)}"
            for result in self
        ]
        return "\n".join([*(lines or ["no results"]), *filter(None, [self.remark])])

    def _repr_html_(self) -> str:
        from mmret_tf.ranking.gallery import results_html

        return results_html(self)

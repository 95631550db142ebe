"""The searcher (检索器): from a query in any modalities to ranked items. Sections 3.1(5) and 6."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmret_tf.data.items import Item
from mmret_tf.fusion.fused_encoder import FusedEncoder
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.index import Index
from mmret_tf.ranking.results import EQUAL_SHARES, SearchResult, SearchResults, check_query


class Searcher:
    """An encoder, the index of a gallery's embeddings, and its items. Sections 3.1(5) and 6.

    Args:
        encoder: What made the embeddings, or another form of it. A `FusedEncoder` also embeds the
            queries that have several modalities.
        index: Any `Index`.
        items: One record for each id of the index, see `Item`.

    Raises:
        ValueError: The index has another width than the encoder, or an id without an item.

    >>> from types import SimpleNamespace
    >>> from mmret_tf.ranking import BruteForceIndex
    >>> encoder = SimpleNamespace(embedding_dim=2, modalities=["text"])  # or a `DualEncoder`
    >>> encoder.encode = lambda modality, sources: np.array([[0.6, 0.8]])
    >>> encoder.remark = lambda query: ""
    >>> index = BruteForceIndex.build([[1, 0], [0, 1]], ["a", "b"])
    >>> items = [{"id": "a", "captions": ["a cat"]}, {"id": "b", "captions": ["a dog", "狗"]}]
    >>> searcher = Searcher(encoder, index, items)
    >>> results = searcher.search(text="a dog", k=2)
    >>> results
       1  0.800  b  a dog
       2  0.600  a  a cat
    >>> results[0].item["captions"]
    ['a dog', '狗']
    """

    def __init__(self, encoder: Encoder, index: Index, items: Sequence[Mapping[str, Any]]):
        if index.dim != encoder.embedding_dim:
            raise ValueError(
                f"the index holds embeddings of width {index.dim}, and the model makes width "
                f"{encoder.embedding_dim}: build the index from this model's embeddings"
            )
        self.encoder = encoder
        self.index = index
        self.items = {item["id"]: Item.of(item) for item in items}
        missing = [key for key in index.ids if key not in self.items]
        if missing:
            raise ValueError(
                f"{len(missing)} ids of the index have no item, first {missing[0]!r}: build the "
                "index again from the embeddings of these items (`mmret index`)"
            )

    @classmethod
    def open(cls, run: str | os.PathLike, encoder: Encoder | None = None) -> "Searcher":
        """Open a run's folder, see `Run.open_searcher`.

        Args:
            run: The folder.
            encoder: Another form of the run's encoder, such as a `CompressedEncoder`.

        Raises:
            ValueError: A part is missing or damaged, or the embeddings are another model's.
        """
        from mmret_tf.ranking.run import Run

        return Run(run).open_searcher(encoder)

    def search(
        self,
        text: str | None = None,
        image: Any = None,
        k: int = 10,
        text_weight: float | None = None,
        where: Mapping[str, Any] | None = None,
        exclude_ids: Collection[str] | Collection[int] = (),
        **sources: Any,
    ) -> SearchResults:
        """Rank the gallery for one query. Section 3.1(5).

        Args:
            text: A query in words, in any language that the model was trained on.
            image: A query picture: path, encoded bytes, PIL image or array.
            k: Number of results; the whole gallery if it holds fewer.
            text_weight: Share of the text, 0 to 1, in a query of several modalities, which is then
                the weighted sum of their embeddings (section 3.2(3)). By default a `FusedEncoder`
                embeds such a query; any other encoder sums with equal shares.
            where: A condition on the items' attributes, if the index was built with them, as
                `{"price": {"$lt": 20}}`; see `mmret_tf.ranking.check_condition`.
            exclude_ids: Items not to return.
            sources: Query sources of other modalities, by name.

        Returns:
            A list of `SearchResult`, best first.

        Raises:
            ValueError: The query is empty or unreadable, k is below 1, or `where` is not a valid
                condition.
        """
        query = {"text": text, "image": image, **sources}
        check_query(query, text_weight)
        query = {name: source for name, source in query.items() if source is not None}
        ids, scores = self.index.search(self._embed(query, text_weight), k, where, exclude_ids)
        found = ids[0].tolist()
        if added := [key for key in found if key not in self.items]:
            raise ValueError(
                f"the index holds {added[0]!r}, which was added after this searcher was made: put "
                "its `Item` into `searcher.items`"
            )
        results = SearchResults(
            SearchResult(rank, key, score, self.items[key])
            for rank, (key, score) in enumerate(zip(found, scores[0].tolist(), strict=True), 1)
        )
        results.remark = self.encoder.remark(query)
        return results

    def _embed(self, query: Mapping[str, Any], text_weight: float | None) -> np.ndarray:
        """One vector for the query, `[dim]`."""
        if len(query) > 1 and text_weight is None and isinstance(self.encoder, FusedEncoder):
            return self.encoder.encode_items({name: [[each]] for name, each in query.items()})[0]
        vectors = {name: self.encoder.encode(name, [each])[0] for name, each in query.items()}
        if len(vectors) == 1:
            return next(iter(vectors.values()))
        others = [vector for name, vector in vectors.items() if name != "text"]
        total = sum(others) / len(others)
        if "text" in vectors:
            share = EQUAL_SHARES if text_weight is None else text_weight
            total = share * vectors["text"] + (1 - share) * total
        return total / max(np.linalg.norm(total), 1e-6)

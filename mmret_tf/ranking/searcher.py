"""The searcher (检索器): from a query in any modalities to ranked items. Sections 3.1(5) and 6."""

import copy
import os
import threading
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmret_tf._checks import checked_count
from mmret_tf.data.items import Item
from mmret_tf.fusion.fused_encoder import FusedEncoder
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.index import Index
from mmret_tf.ranking.query import Query
from mmret_tf.ranking.reranker import Reranker, parts_of_items, rerank
from mmret_tf.ranking.results import SearchResult, SearchResults


class Searcher:
    """An encoder, the index of a gallery's embeddings, and its items. Sections 3.1(5) and 6.

    Args:
        encoder: What made the embeddings, or another form of it. A `FusedEncoder` also embeds the
            queries that have several modalities.
        index: Any `Index`.
        items: One record for each id of the index, see `Item`.
        reranker: A second stage, made for this encoder. It ranks the first candidates again where
            the query is a single text or picture and the candidates are of another modality.
        rerank_k: Number of these candidates; at least the number of results.
        parts: Regions and words of the items, by their ids; by default they are read now.

    Raises:
        ValueError: The index has another width than the encoder, or an id without an item, or the
            re-ranker is another encoder's.

    >>> from types import SimpleNamespace
    >>> from mmret_tf.ranking import BruteForceIndex
    >>> encoder = SimpleNamespace(embedding_dim=2, modalities=["text"])  # or a `DualEncoder`
    >>> encoder.encode = lambda modality, sources: np.array([[0.6, 0.8]])
    >>> encoder.remarks = lambda queries: [""]
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

    def __init__(
        self,
        encoder: Encoder,
        index: Index,
        items: Sequence[Mapping[str, Any]],
        reranker: Reranker | None = None,
        rerank_k: int = 50,
        parts: Mapping[str | int, np.ndarray] | None = None,
    ):
        if index.dim != encoder.embedding_dim:
            raise ValueError(
                f"the index holds embeddings of width {index.dim}, and the model makes width "
                f"{encoder.embedding_dim}: build the index from this model's embeddings"
            )
        if reranker is not None and reranker.encoder.fingerprint != encoder.fingerprint:
            raise ValueError("the re-ranker was trained for another encoder: train it again")
        self.encoder = encoder
        self.reranker = reranker
        self.rerank_k = checked_count(rerank_k, "rerank_k")
        self._change = threading.Lock()  # held while a change is prepared
        known = {item["id"]: Item.of(item) for item in items}
        if parts is None:
            parts = parts_of_items(reranker, list(known.values())) if reranker else {}
        # All change together: a change replaces the tuple.
        self._gallery = index, known, ChainMap({}, parts)
        missing = [key for key in index.ids if key not in self.items]
        if missing:
            raise ValueError(
                f"{len(missing)} ids of the index have no item, first {missing[0]!r}: build the "
                "index again from the embeddings of these items (`mmret index`)"
            )

    @property
    def index(self) -> Index:
        """The index."""
        return self._gallery[0]

    @property
    def items(self) -> dict[str | int, Item]:
        """The items by their ids."""
        return self._gallery[1]

    @property
    def parts(self) -> ChainMap[str | int, np.ndarray]:
        """The regions or words of the items, by their ids, for the re-ranker: those that were added
        to this searcher, then those that it was made with."""
        return self._gallery[2]

    @classmethod
    def open(
        cls,
        run: str | os.PathLike,
        encoder: Encoder | None = None,
        reranker: Reranker | None = None,
    ) -> "Searcher":
        """Open a run's folder, see `Run.open_searcher`.

        Args:
            run: The folder.
            encoder: Another form of the run's encoder, such as a `CompressedEncoder`.
            reranker: The run's second stage, see `Run.load_reranker`.

        Raises:
            ValueError: A part is missing or damaged, or the embeddings are another model's.
        """
        from mmret_tf.ranking.run import Run

        return Run(run).open_searcher(encoder, reranker)

    def search(
        self,
        text: str | None = None,
        image: Any = None,
        k: int = 10,
        text_weight: float | None = None,
        where: Mapping[str, Any] | None = None,
        exclude_ids: Collection[str] | Collection[int] = (),
        texts: Mapping[str, float] | None = None,
        similar_to: str | int | None = None,
        with_vectors: bool = False,
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
            texts: Several texts with a weight each, as `{"a red shirt": 1, "buttons": -0.5}`. A
                negative weight moves the ranking away from a text. See also `parse_terms`.
            similar_to: Id of an item, whose embedding is used as a picture's is. The item itself is
                not returned.
            with_vectors: Whether each result has its embedding.
            sources: Query sources of other modalities, by name.

        Returns:
            A list of `SearchResult`, best first.

        Raises:
            ValueError: The query is empty or unreadable, k is below 1, `where` is not a valid
                condition, or `similar_to` is not in the index.
        """
        query = Query(
            text,
            image,
            k,
            text_weight,
            where,
            exclude_ids,
            texts,
            similar_to,
            with_vectors,
            sources,
        )
        return self._search([query])[0]

    def search_batch(self, queries: Sequence[Mapping[str, Any]]) -> list[SearchResults]:
        """Rank the gallery for several queries, which are embedded together.

        Args:
            queries: The arguments of `search` for each query.

        Returns:
            The results of each query.

        Raises:
            ValueError: As for `search`, for any of the queries.
        """
        return self._search([Query.of(arguments) for arguments in queries])

    def upsert(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Embed items and put them into the gallery, in place of those with the same ids.

        The index and the items change together: a search sees both or neither. Only this searcher
        changes; `mmret sync` changes the gallery of a run.

        Args:
            records: One for each item, see `Item`: `{"id": ..., "image": path, "captions": [...]}`.

        Raises:
            ValueError: A source cannot be used, or an id is of another kind than those of the
                index; nothing is changed then.
        """
        items = [Item.of(record) for record in records]
        sources = {
            name: [item["sources"].get(name, []) for item in items]
            for name in self.encoder.modalities
        }
        embeddings = self.encoder.encode_items(sources)
        parts = parts_of_items(self.reranker, items) if self.reranker else {}
        names = [item["id"] for item in items]
        with self._change:
            changed = copy.copy(self.index)
            changed.upsert(names, embeddings, [item["attributes"] for item in items])
            known = {**self.items, **dict(zip(names, items, strict=True))}
            added, stored = self.parts.maps
            self._gallery = changed, known, ChainMap({**added, **parts}, stored)

    def delete(self, ids: Sequence[str] | Sequence[int]) -> None:
        """Remove items from the gallery; see `upsert`.

        Args:
            ids: Of items in the gallery.

        Raises:
            ValueError: An id is not in the index; nothing is removed then.
        """
        with self._change:
            changed, gone = copy.copy(self.index), set(ids)
            changed.delete(ids)
            kept = {key: item for key, item in self.items.items() if key not in gone}
            self._gallery = changed, kept, self.parts

    def embed(self, queries: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """One vector for each query: what `search_batch` compares with the gallery.

        Args:
            queries: As for `search_batch`.

        Returns:
            float32 `[n, dim]`, of unit length unless the terms of a query cancel out.

        Raises:
            ValueError: As for `search_batch`.
        """
        return self._embed([Query.of(arguments) for arguments in queries], self.index)

    def _search(self, queries: Sequence[Query]) -> list[SearchResults]:
        # One gallery for the whole batch, also if it changes meanwhile.
        index, items, parts = self._gallery
        vectors = self._embed(queries, index)
        seconds = self._second_stage(queries)
        remarks = self.encoder.remarks([[term[:2] for term in query.terms] for query in queries])
        alike: dict[tuple, list[int]] = {}
        for row, query in enumerate(queries):
            alike.setdefault((query.conditions, seconds[row] is None), []).append(row)
        answers: list[SearchResults] = [SearchResults()] * len(queries)
        for rows in alike.values():  # together, because each search reads the whole index
            query = queries[rows[0]]
            k = query.k if seconds[rows[0]] is None else max(query.k, self.rerank_k)
            answer = index.search(vectors[rows], k, query.where, query.excluded)
            note = getattr(answer, "remark", "")  # of an index that does not have all items now
            ids, scores = answer
            for row, found, score in zip(rows, ids.tolist(), scores.tolist(), strict=True):
                candidates, own_note = _items_of(found, items), ""
                if seconds[row] is not None:
                    reranked = rerank(self.reranker, *seconds[row], candidates, score, parts)
                    order, score, own_note = reranked
                    candidates = [candidates[place] for place in order[: query.k]]
                names = [item["id"] for item in candidates]
                found_vectors = index.vectors_of(names) if queries[row].with_vectors else None
                answers[row] = _results(candidates, score, found_vectors)
                answers[row].query = queries[row].terms
                answers[row].remark = " ".join(filter(None, [remarks[row], note, own_note]))
        return answers

    def _embed(self, queries: Sequence[Query], index: Index) -> np.ndarray:
        """One vector for each query, `[n, dim]`; each modality is encoded once for all."""
        rows = np.zeros((len(queries), index.dim), np.float32)
        is_fused = [self._is_fused(query) for query in queries]
        if fused := [query for query, is_one in zip(queries, is_fused, strict=True) if is_one]:
            rows[is_fused] = self._fuse(fused)
        others = [row for row, is_one in enumerate(is_fused) if not is_one]
        terms = [(row, *term) for row in others for term in queries[row].terms]
        vectors = np.zeros((len(terms), index.dim), np.float32)
        for name in dict.fromkeys(name for _, name, _, _ in terms):
            of_name = [number for number, term in enumerate(terms) if term[1] == name]
            vectors[of_name] = self.encoder.encode(name, [terms[number][2] for number in of_name])
        for row in others:
            similar_to = queries[row].similar_to
            similar = None if similar_to is None else index.vectors_of([similar_to])[0]
            own = [number for number, term in enumerate(terms) if term[0] == row]
            rows[row] = queries[row].combined(vectors[own], similar)
        return rows

    def _second_stage(self, queries: Sequence[Query]) -> list[tuple[str, np.ndarray] | None]:
        """The modality of each query that is ranked again, and its regions or words."""
        found: list[tuple[str, np.ndarray] | None] = [None] * len(queries)
        if self.reranker is None:
            return found
        single = {
            row: query.terms[0][:2]
            for row, query in enumerate(queries)
            if query.is_plain and len(query.terms) == 1
        }
        for name in dict.fromkeys(name for name, _ in single.values()):
            rows = [row for row, (modality, _) in single.items() if modality == name]
            parts = self.reranker.encode(name, [single[row][1] for row in rows])
            for row, each in zip(rows, parts, strict=True):
                found[row] = name, each
        return found

    def _is_fused(self, query: Query) -> bool:
        """Whether a trained fusion embeds the query."""
        return isinstance(self.encoder, FusedEncoder) and query.is_plain and len(query.terms) > 1

    def _fuse(self, queries: Sequence[Query]) -> np.ndarray:
        sources = [{name: [each] for name, each, _ in query.terms} for query in queries]
        names = dict.fromkeys(name for each in sources for name in each)
        return self.encoder.encode_items(
            {name: [each.get(name, []) for each in sources] for name in names}
        )


def _items_of(ids: Sequence[str | int], items: Mapping[str | int, Item]) -> list[Item]:
    """The items of a ranking."""
    if added := [key for key in ids if key not in items]:
        raise ValueError(
            f"the index holds {added[0]!r}, which was added after this searcher was made: put "
            "its `Item` into `searcher.items`"
        )
    return [items[key] for key in ids]


def _results(
    items: Sequence[Item], scores: Sequence[float], vectors: np.ndarray | None
) -> SearchResults:
    """A ranking; scores may be more than items."""
    vectors = [None] * len(items) if vectors is None else vectors
    return SearchResults(
        SearchResult(rank, item["id"], score, item, vector)
        for rank, (item, score, vector) in enumerate(zip(items, scores, vectors, strict=False), 1)
    )

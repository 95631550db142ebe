"""The signatures of a served model (服务签名): an encoder and a gallery as one TensorFlow graph.

A signature takes what clients send (texts, encoded pictures, vectors), any number of rows, and
answers as `Searcher` does: same preprocessing, same towers, same ranking. Section 6.
"""

import itertools
from collections.abc import Callable, Mapping

import tensorflow as tf

from mmret_tf.data.items import Item
from mmret_tf.fusion.fused_encoder import FusedEncoder
from mmret_tf.models.encoder import Encoder
from mmret_tf.models.towers.tower import Tower
from mmret_tf.ranking.index import Index
from mmret_tf.ranking.indexes.scann_index import ScannIndex
from mmret_tf.ranking.query import EQUAL_SHARES
from mmret_tf.ranking.results import TEXT_WEIGHT_BY_DEFAULT
from mmret_tf.serving.second_stage import SecondStageGraph
from mmret_tf.similarity.vectors import unit_length

# Scores that are held at once: 64 MiB of float32, and as much again to choose among them.
BLOCK_SCORES = 2**24

# Candidates beyond the k-th that are scored again in float64, in case rounding ranked them too low.
SPARE = 16

Answer = dict[str, tf.Tensor]
Signature = tuple[Callable[..., Answer], list[tf.TensorSpec]]


class GalleryGraph(tf.Module):
    """The embeddings, ids and captions of a gallery as variables, and the search among them.

    They are variables because the constants of a graph may not exceed 2 GiB.

    Args:
        index: The index; its embeddings, ids and metric are copied.
        items: The item of each id.
        k: Number of results.
        engine: "brute_force" compares a query with every embedding; "scann" calls ScaNN's ops,
            which the server must have, with the tuned index.
        candidates: Number of candidates of a second stage, if there is one.

    Raises:
        ValueError: `engine` is "scann" and the index is not a `ScannIndex`.
    """

    def __init__(
        self,
        index: Index,
        items: Mapping[str | int, Item],
        k: int,
        engine: str,
        candidates: int = 0,
    ):
        super().__init__()
        self.k, self.found = (min(count, len(index)) for count in (k, max(k, candidates)))
        self.metric = index.metric
        if engine == "scann":
            if not isinstance(index, ScannIndex):
                raise ValueError(f'index="scann" needs a ScannIndex; got a {type(index).__name__}')
            from scann.scann_ops.py import scann_ops

            self.ops = scann_ops
            self.scann = scann_ops.ScannState(index.tensors())
            self.effort = index.effort(self.found)
            self.vectors = self.scann.dataset
        else:
            self.scann = None
            self.vectors = tf.Variable(index.vectors, trainable=False, name="gallery_embeddings")
        dtype = tf.string if isinstance(index.ids[0], str) else tf.int64
        self.ids = tf.Variable(index.ids, trainable=False, dtype=dtype, name="gallery_ids")
        # One string an item, because the number of captions differs.
        captions = [items[key]["captions"] for key in index.ids]
        lines = ["\n".join(" ".join(caption.split()) for caption in each) for each in captions]
        self.captions = tf.Variable(lines, trainable=False, name="gallery_captions")

    def search(self, queries: tf.Tensor) -> Answer:
        """Rank the gallery for each query.

        Args:
            queries: `[n, dim]`, of any length.

        Returns:
            See `answer`.
        """
        return self.answer(*self.rank(queries))

    def answer(self, rows: tf.Tensor, scores: tf.Tensor) -> Answer:
        """The first k of a ranking, as a client gets them.

        Args:
            rows: Row numbers in the gallery, best first, `[n, found]`.
            scores: Their scores, `[n, found]`.

        Returns:
            "ids", "scores" as those of `Index.search`, and "captions", the texts of an item as one
            string with a line each; all `[n, k]`.
        """
        rows = rows[:, : self.k]
        return {
            "ids": tf.gather(self.ids, rows),
            "scores": scores[:, : self.k],
            "captions": tf.gather(self.captions, rows),
        }

    def rank(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The first rows of the gallery for each query, best first, and their scores.

        Args:
            queries: `[n, dim]`, of any length.

        Returns:
            `[n, found]` both: k, or the candidates of a second stage.
        """
        is_finite = tf.reduce_all(tf.math.is_finite(queries))
        queries = _checked(queries, is_finite, "queries must be finite; got NaN or infinity")
        if self.metric == "cosine":
            queries = tf.math.l2_normalize(tf.cast(queries, tf.float64), axis=1, epsilon=1e-300)
            queries = tf.cast(queries, tf.float32)
        rows = self._scann_rows(queries) if self.scann else self._exact_rows(queries)
        return self._ranked(queries, rows)

    @tf.function
    def _exact_rows(self, queries: tf.Tensor) -> tf.Tensor:
        """The best rows and `SPARE` more, `[n, count]`; items are compared block by block."""
        items = self.vectors.shape[0]
        count = min(self.found + SPARE, items)
        n = tf.shape(queries)[0]
        best_scores = tf.fill([n, count], -float("inf"))
        best_rows = tf.zeros([n, count], tf.int32)
        block = tf.maximum(count, BLOCK_SCORES // n)
        for start in tf.range(0, items, block):
            vectors = self.vectors[start : start + block]
            scores = tf.matmul(queries, vectors, transpose_b=True)
            if self.metric == "euclidean":
                # |query|^2 is the same for all items, and changes no rank.
                scores = 2 * scores - tf.reduce_sum(vectors**2, axis=1)
            scores, rows = tf.math.top_k(scores, tf.minimum(count, tf.shape(vectors)[0]))
            # Earlier rows come first and win a tie.
            scores = tf.concat([best_scores, scores], axis=1)
            rows = tf.concat([best_rows, start + rows], axis=1)
            best_scores, place = tf.math.top_k(scores, count)
            best_rows = tf.gather(rows, place, batch_dims=1)
        return best_rows

    @tf.function
    def _scann_rows(self, queries: tf.Tensor) -> tf.Tensor:
        """ScaNN's rows `[n, found]`; the exact ones where its leaves held fewer items."""
        searcher = self.ops.ScannSearcher(self.scann.recreate_handle())
        rows, scores = searcher.search_batched_parallel(queries, self.found, **self.effort)
        # The op is as wide as its longest ranking, and fills the shorter ones with NaN.
        if tf.shape(rows)[1] < self.found or tf.reduce_any(tf.math.is_nan(scores)):
            rows = self._exact_rows(queries)
        return rows

    def _ranked(self, queries: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Score rows `[n, count]` in float64; the best and their scores, earlier rows first."""
        rows = tf.sort(rows, axis=1)
        queries = tf.cast(queries[:, None], tf.float64)
        vectors = tf.cast(tf.gather(self.vectors, rows), tf.float64)
        if self.metric == "cosine":
            scores = tf.clip_by_value(tf.reduce_sum(vectors * queries, axis=2), -1, 1)
        else:
            scores = 0.0 - tf.reduce_sum((vectors - queries) ** 2, axis=2)
        scores, place = tf.math.top_k(tf.cast(scores, tf.float32), self.found)
        return tf.gather(rows, place, batch_dims=1), scores


class TowerGraph:
    """A tower as functions of encoded sources, strings `[n]`.

    As `tf.function`s they stand in the graph once, not once for each signature.

    Args:
        tower: The tower.

    Attributes:
        name: Its modality.
        sources: The input: strings `[n]` under the name of the modality.
        prepare: Function from sources to the tower's inputs.
        network: Function from these inputs to embeddings `[n, dim]`.
        embed: Both, from sources to embeddings.
    """

    def __init__(self, tower: Tower):
        self.name = tower.modality
        self.sources = tf.TensorSpec([None], tf.string, self.name)

        @tf.function(input_signature=[self.sources])
        def prepare(sources: tf.Tensor) -> tf.Tensor:
            return tower.preprocess(_checked(sources))

        @tf.function
        def network(inputs: tf.Tensor) -> tf.Tensor:
            return tower(inputs, training=False)

        @tf.function(input_signature=[self.sources])
        def embed(sources: tf.Tensor) -> tf.Tensor:
            return network(prepare(sources))

        self.prepare, self.network, self.embed = prepare, network, embed

    def encode(self, sources: tf.Tensor) -> Answer:
        """The answer of the signature `encode_X`."""
        return {"embedding": self.embed(sources)}


def pair_embedding(
    first: TowerGraph, second: TowerGraph, fusion: FusedEncoder | None
) -> tuple[Callable[..., tf.Tensor], list[tf.TensorSpec]]:
    """A function from queries of two modalities to one embedding each, and its inputs.

    Args:
        first: The modality that has a weight: 0 to 1, or -1 for none.
        second: The other modality.
        fusion: Embeds the queries without a weight; by default both modalities have equal shares.

    Returns:
        The function, from sources of both `[n]` and weights `[n]` to `[n, dim]`; and its inputs.
    """
    weights = tf.TensorSpec([None], tf.float32, f"{first.name}_weight")
    inputs = [first.sources, second.sources, weights]
    names = f"{first.name}, {second.name} and {weights.name}"

    def weighted(one: tf.Tensor, other: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        share = tf.where(weight < 0, EQUAL_SHARES, weight)[:, None]
        return unit_length(share * first.embed(one) + (1 - share) * second.embed(other))

    @tf.function(input_signature=inputs[:2])
    def fused(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        sources = {first.name: first.prepare(one), second.name: second.prepare(other)}
        return fusion.fuse_inputs(sources)

    def embed(one: tf.Tensor, other: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        n, is_default = tf.size(weight), weight == TEXT_WEIGHT_BY_DEFAULT
        is_right = (tf.size(one) == n) & (tf.size(other) == n)
        is_right &= tf.reduce_all((weight >= 0) & (weight <= 1) | is_default)
        weight = _checked(weight, is_right, f"{names} must have equal rows, weights 0 to 1, or -1")
        if fusion is None:
            return weighted(one, other, weight)
        # The server batches queries of many clients: often one branch serves the whole batch.
        nothing = tf.zeros([n, fusion.embedding_dim])
        needs_fusion, needs_sum = tf.reduce_any(is_default), tf.reduce_any(~is_default)
        return tf.where(
            is_default[:, None],
            tf.cond(needs_fusion, lambda: fused(one, other), lambda: nothing),
            tf.cond(needs_sum, lambda: weighted(one, other, weight), lambda: nothing),
        )

    return embed, inputs


def make_signatures(
    encoder: Encoder, gallery: GalleryGraph | None, second_stage: SecondStageGraph | None = None
) -> dict[str, Signature]:
    """The signatures of an encoder and a gallery: `encode_X` and `search_by_X` for each modality X,
    `search_by_Y_and_X` for each two, and `search_by_embedding`.

    Inputs have a row a query: encoded sources under the name of their modality (texts in UTF-8,
    pictures as the bytes of a file), or "embedding", as `encode_X` answers it. A query of two
    modalities also has the weight of the first, such as "text_weight": 0 to 1, or -1 for what
    `Searcher.search` does without a weight. Text comes first, then the encoder's order.

    No rows at all are an error, and so is a picture that cannot be decoded. An empty or unknown
    text is not.

    Args:
        encoder: A `MultiEncoder`, or a `FusedEncoder`, which also embeds queries of two modalities.
        gallery: The gallery; `None` for the signatures `encode_X` alone.
        second_stage: Ranks the results of `search_by_X` again, where X is not the modality of the
            gallery.

    Returns:
        For each name the function and its inputs. The default signature comes first: that of text,
        or of the encoder's first modality.
    """
    towers = [TowerGraph(tower) for tower in encoder.towers.values()]
    towers.sort(key=lambda tower: tower.name != "text")
    encoders = {f"encode_{tower.name}": (tower.encode, [tower.sources]) for tower in towers}
    if gallery is None:
        return encoders

    queries = {tower.name: (tower.embed, [tower.sources]) for tower in towers}
    fusion = encoder if isinstance(encoder, FusedEncoder) else None
    for first, second in itertools.combinations(towers, 2):
        queries[f"{first.name}_and_{second.name}"] = pair_embedding(first, second, fusion)
    embedding = tf.TensorSpec([None, encoder.embedding_dim], tf.float32, "embedding")
    queries["embedding"] = tf.identity, [embedding]
    searches = {
        f"search_by_{name}": (_search(gallery, embed), inputs)
        for name, (embed, inputs) in queries.items()
    }
    for tower in towers if second_stage else ():
        if tower.name != second_stage.modality:
            search = _two_stages(gallery, second_stage, tower)
            searches[f"search_by_{tower.name}"] = search, [tower.sources]
    return searches | encoders


def _two_stages(
    gallery: GalleryGraph, second_stage: SecondStageGraph, tower: TowerGraph
) -> Callable[[tf.Tensor], Answer]:
    def search(sources: tf.Tensor) -> Answer:
        inputs = tower.prepare(sources)
        rows, scores = gallery.rank(tower.network(inputs))
        return gallery.answer(*second_stage.ranked(tower.name, inputs, rows, scores))

    return search


def _search(gallery: GalleryGraph, embed: Callable[..., tf.Tensor]) -> Callable[..., Answer]:
    return lambda *queries: gallery.search(embed(*queries))


def _checked(rows: tf.Tensor, is_right: bool | tf.Tensor = True, message: str = "") -> tf.Tensor:
    """The rows, or an error of the graph if there are none or they are not right."""
    some = tf.debugging.Assert(tf.shape(rows)[0] > 0, ["no rows: expected at least one"])
    with tf.control_dependencies([some, tf.debugging.Assert(is_right, [message])]):
        return tf.identity(rows)

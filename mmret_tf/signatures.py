"""What a served model computes (服务签名): a dual encoder and its gallery as one TensorFlow graph.

Each signature takes what clients send (strings, encoded pictures, vectors), as many rows as they
like, and answers as `Searcher` does: the same preprocessing, the same towers, the same ranking.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.fused_encoder import FusedEncoder
from mmret_tf.index import ScannIndex
from mmret_tf.preprocessing import crop_and_resize, decode_image
from mmret_tf.searcher import EQUAL_SHARES, TEXT_WEIGHT_BY_DEFAULT

# Scores held at once (float32, so 64 MiB, and as much again to choose among them).
BLOCK_SCORES = 2**24

# Items beyond the k-th that are scored once more, exactly: rounding may have put them too low.
SPARE = 16

Answer = dict[str, tf.Tensor]


class GalleryGraph(tf.Module):
    """A gallery's embeddings, ids and captions as variables, and the search among them.

    Variables, because constants may not be larger than 2 GiB in all.

    Args:
        index: whose embeddings, ids and metric are taken.
        items: one record an id, with its "captions".
        k: how many items are found.
        engine: "brute_force" compares a query with every embedding; "scann" asks ScaNN's ops,
            which a server must have, with what the index has learnt and was tuned to.

    Raises:
        ValueError: "scann" for an index that is no `ScannIndex`.
    """

    def __init__(
        self,
        index: BruteForceIndex | ScannIndex,
        items: dict[str | int, dict],
        k: int,
        engine: str,
    ):
        super().__init__()
        self.k = min(k, len(index))
        self.metric = index.metric
        if engine == "scann":
            if not isinstance(index, ScannIndex):
                raise ValueError(
                    f'index="scann" needs a ScannIndex, and this is a {type(index).__name__}: '
                    "build one (ScannIndex.build, `mmret index`)"
                )
            from scann.scann_ops.py import scann_ops

            self.ops = scann_ops
            self.scann = scann_ops.ScannState(index.tensors())
            self.effort = index.effort(self.k)
            self.vectors = self.scann.dataset
        else:
            self.scann = None
            self.vectors = tf.Variable(index.vectors, trainable=False, name="gallery_embeddings")
        dtype = tf.string if isinstance(index.ids[0], str) else tf.int64
        self.ids = tf.Variable(index.ids, trainable=False, dtype=dtype, name="gallery_ids")
        # One string an item, since items differ in how many captions they have.
        captions = [items[key]["captions"] for key in index.ids]
        lines = ["\n".join(" ".join(caption.split()) for caption in each) for each in captions]
        self.captions = tf.Variable(lines, trainable=False, name="gallery_captions")

    def search(self, queries: tf.Tensor) -> Answer:
        """Queries `[n, dim]` of any length -> "ids", "scores" and "captions", each `[n, k]`.

        The captions of an item come as one string, a line each. Scores are those of `Index.search`.
        """
        finite = tf.reduce_all(tf.math.is_finite(queries))
        tf.debugging.Assert(finite, ["queries must be finite; got NaN or infinity"])
        if self.metric == "cosine":
            queries = tf.math.l2_normalize(tf.cast(queries, tf.float64), axis=1, epsilon=1e-300)
            queries = tf.cast(queries, tf.float32)
        rows = self._scann_rows(queries) if self.scann else self._exact_rows(queries)
        rows, scores = self._ranked(queries, rows)
        return {
            "ids": tf.gather(self.ids, rows),
            "scores": scores,
            "captions": tf.gather(self.captions, rows),
        }

    @tf.function
    def _exact_rows(self, queries: tf.Tensor) -> tf.Tensor:
        """The best k rows and a few more `[n, count]`; a block of items at a time."""
        items = self.vectors.shape[0]
        count = min(self.k + SPARE, items)
        n = tf.shape(queries)[0]
        best_scores = tf.fill([n, count], -float("inf"))
        best_rows = tf.zeros([n, count], tf.int32)
        block = tf.maximum(count, BLOCK_SCORES // n)
        for start in tf.range(0, items, block):
            vectors = self.vectors[start : start + block]
            scores = tf.matmul(queries, vectors, transpose_b=True)
            if self.metric == "euclidean":
                # |query|^2 is one number a query, and moves no rank.
                scores = 2 * scores - tf.reduce_sum(vectors**2, axis=1)
            scores, rows = tf.math.top_k(scores, tf.minimum(count, tf.shape(vectors)[0]))
            # Those that came first stand first, and win a tie.
            scores = tf.concat([best_scores, scores], axis=1)
            rows = tf.concat([best_rows, start + rows], axis=1)
            best_scores, place = tf.math.top_k(scores, count)
            best_rows = tf.gather(rows, place, batch_dims=1)
        return best_rows

    @tf.function
    def _scann_rows(self, queries: tf.Tensor) -> tf.Tensor:
        """What ScaNN finds `[n, k]`; all is searched where its leaves held fewer than k items."""
        searcher = self.ops.ScannSearcher(self.scann.recreate_handle())
        rows, scores = searcher.search_batched_parallel(queries, self.k, **self.effort)
        if tf.reduce_any(tf.math.is_nan(scores)):
            rows = self._exact_rows(queries)
        return rows

    def _ranked(self, queries: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Score some rows `[n, count]` in float64; the k best, of a tie the first row first."""
        rows = tf.sort(rows, axis=1)
        queries = tf.cast(queries[:, None], tf.float64)
        vectors = tf.cast(tf.gather(self.vectors, rows), tf.float64)
        if self.metric == "cosine":
            scores = tf.clip_by_value(tf.reduce_sum(vectors * queries, axis=2), -1, 1)
        else:
            scores = 0.0 - tf.reduce_sum((vectors - queries) ** 2, axis=2)
        scores, place = tf.math.top_k(tf.cast(scores, tf.float32), self.k)
        return tf.gather(rows, place, batch_dims=1), scores


def make_signatures(
    model: DualEncoder, gallery: GalleryGraph | None, fusion: FusedEncoder | None = None
) -> dict[str, tuple[Callable[..., Answer], list[tf.TensorSpec]]]:
    """Each signature's name, its function, and the inputs that the function takes.

    `text`, `image` (encoded, of any format and size that `decode_image` takes), `text_weight` and
    `embedding` have one row a query; `embedding` is also what the encoders answer. Empty inputs are
    an error, and so is a picture that cannot be read; an empty or unknown text is not. A
    `text_weight` of -1 is that of `Searcher.search` where none is given.

    Args:
        model: the dual encoder.
        gallery: what is searched; without it there are only `encode_text` and `encode_image`.
        fusion: trained for queries of text and image, upon the same dual encoder.
    """
    text = tf.TensorSpec([None], tf.string, "text")
    image = tf.TensorSpec([None], tf.string, "image")
    weight = tf.TensorSpec([None], tf.float32, "text_weight")
    embedding = tf.TensorSpec([None, model.embedding_dim], tf.float32, "embedding")
    size = model.image_size

    # As functions of their own they stand in the graph once, not in each signature.
    @tf.function(input_signature=[text])
    def texts(text: tf.Tensor) -> tf.Tensor:
        with _some_rows(text):
            return model.text_tower(model.text_preprocessor(text), training=False)

    @tf.function(input_signature=[image])
    def pictures(image: tf.Tensor) -> tf.Tensor:
        with _some_rows(image):
            return tf.map_fn(
                lambda contents: crop_and_resize(decode_image(contents), size),
                image,
                fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
            )

    @tf.function(input_signature=[image])
    def images(image: tf.Tensor) -> tf.Tensor:
        return model.image_tower(pictures(image), training=False)

    def weighted(text: tf.Tensor, image: tf.Tensor, text_weight: tf.Tensor) -> tf.Tensor:
        share = tf.where(text_weight < 0, EQUAL_SHARES, text_weight)[:, None]
        return share * texts(text) + (1 - share) * images(image)

    @tf.function(input_signature=[text, image])
    def fused(text: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        features = {
            "image": fusion.image_features(pictures(image)),
            "text": fusion.text_features(model.text_preprocessor(text)),
        }
        return fusion(features, training=False)

    def both(text: tf.Tensor, image: tf.Tensor, text_weight: tf.Tensor) -> tf.Tensor:
        n = tf.size(text_weight)
        is_default = text_weight == TEXT_WEIGHT_BY_DEFAULT
        is_even = (tf.size(text) == n) & (tf.size(image) == n)
        is_share = tf.reduce_all((text_weight >= 0) & (text_weight <= 1) | is_default)
        checks = [
            tf.debugging.Assert(is_even, ["text, image and text_weight must have equal rows"]),
            tf.debugging.Assert(is_share, ["text_weight must be from 0 to 1, or -1"]),
        ]
        with tf.control_dependencies(checks):
            text_weight = tf.identity(text_weight)
        if fusion is None:
            return weighted(text, image, text_weight)
        # Of a batch of requests each goes its own way; most batches go one way only.
        nothing = tf.zeros([n, model.embedding_dim])
        return tf.where(
            is_default[:, None],
            tf.cond(tf.reduce_any(is_default), lambda: fused(text, image), lambda: nothing),
            tf.cond(
                tf.reduce_all(is_default),
                lambda: nothing,
                lambda: weighted(text, image, text_weight),
            ),
        )

    encoders = {
        "encode_text": (lambda text: {"embedding": texts(text)}, [text]),
        "encode_image": (lambda image: {"embedding": images(image)}, [image]),
    }
    if gallery is None:
        return encoders

    def by_embedding(embedding: tf.Tensor) -> Answer:
        with _some_rows(embedding):
            return gallery.search(tf.identity(embedding))

    return {
        "search_by_text": (lambda text: gallery.search(texts(text)), [text]),
        "search_by_image": (lambda image: gallery.search(images(image)), [image]),
        "search_by_text_and_image": (
            lambda text, image, text_weight: gallery.search(both(text, image, text_weight)),
            [text, image, weight],
        ),
        "search_by_embedding": (by_embedding, [embedding]),
        **encoders,
    }


def _some_rows(rows: tf.Tensor):
    """A context in which ops run only if there is a row at all."""
    check = tf.debugging.Assert(tf.shape(rows)[0] > 0, ["no rows: expected at least one"])
    return tf.control_dependencies([check])

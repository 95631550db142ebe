"""Matching (匹配): how well the words of a text fit the regions of a picture. Section 3.1(3).

A late fusion compares one finished vector of each modality. Here each word first attends to the
regions that fit it, so the score depends on the pair.
"""

import keras
import numpy as np
from keras import layers, ops

from mmret_tf.fusion.fusion import presence
from mmret_tf.similarity.vectors import unit_length

# Sharpness of the attention at the start: a region whose cosine is 0.1 higher gets e^0.9 = 2.5
# times the weight.
SHARPNESS = 9.0


@keras.saving.register_keras_serializable("mmret_tf")
class CrossAttentionMatch(layers.Layer):
    """Cross attention (交叉注意力) between regions and words, as one score; arXiv 1803.08024.

    Each word attends to the regions: a softmax of its cosines gives them weights. The word then
    counts with its cosine to their weighted sum. The score is the mean over the words.

    Call: a list of regions `[n, length, dim]` and words `[m, other_length, dim]`, unit vectors,
    zeros for padding -> float32 `[n, m]`, the score of each pair, -1 to 1; 0 where one side has no
    vectors.

    >>> regions = ops.array([[[1.0, 0], [0, 1]], [[1, 0], [1, 0]]])  # two pictures
    >>> words = ops.array([[[1.0, 0], [0, 1], [0, 0]]])  # one text: two words and padding
    >>> CrossAttentionMatch()([regions, words]).numpy().round(2).tolist()  # the second lacks a word
    [[1.0], [0.5]]
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        start = keras.initializers.Constant(np.log(SHARPNESS))
        self.log_sharpness = self.add_weight(
            name="log_sharpness", shape=(), initializer=start, dtype="float32", autocast=False
        )
        self.built = True

    def call(self, parts):
        regions, words = (ops.cast(each, "float32") for each in parts)
        n, m, dim = ops.shape(regions)[0], ops.shape(words)[0], regions.shape[-1]
        flat = ops.reshape(words, (-1, dim))  # one large product instead of n * m small ones
        cosines = ops.matmul(regions, ops.transpose(flat))  # [n, length, m * other_length]
        is_region = presence(regions)
        logits = ops.where(is_region[:, :, None], cosines * ops.exp(self.log_sharpness), -1e9)
        weights = ops.softmax(logits, axis=1)
        # The length of a weighted sum of regions follows from their products: the sums themselves,
        # [n, m * other_length, dim], would take most of the memory and time.
        products = ops.matmul(regions, ops.transpose(regions, (0, 2, 1)))
        squared = ops.sum(weights * ops.matmul(products, weights), axis=1)
        length = ops.sqrt(ops.maximum(squared, 1e-12))
        fit = ops.reshape(ops.sum(weights * cosines, axis=1) / length, (n, m, -1))
        is_word = ops.cast(presence(words), fit.dtype)
        return ops.sum(fit * is_word, axis=2) / ops.maximum(ops.sum(is_word, axis=1), 1)

    def compute_output_spec(self, parts) -> keras.KerasTensor:
        regions, words = parts
        return keras.KerasTensor((regions.shape[0], words.shape[0]), "float32")


@keras.saving.register_keras_serializable("mmret_tf")
class PartReader(layers.Layer):
    """Regions or words of a tower, read in their context, as unit vectors of a shared space.

    Words are read in order, by a GRU in both directions (arXiv 1406.1078). Regions keep their
    places, each with a learned vector.

    Call: `[batch, length, width]`, zeros for padding, or token ids `[batch, length]`, 0 for padding
    -> float32 `[batch, length, dim]`, unit vectors, zeros for padding.

    Args:
        dim: Width of the result.
        is_ordered: Whether the vectors follow each other in time, as words do.
        dropout: Fraction of each vector that is dropped in training.
        table: Number and width of word vectors, which are trained here; then it takes token ids.

    >>> reader = PartReader(dim=4, is_ordered=True)
    >>> vectors = reader(ops.array([[[0.3, 0.7], [0, 0]]]))  # one word and padding
    >>> ops.norm(vectors, axis=2).numpy().round(3).tolist()
    [[1.0, 0.0]]
    """

    def __init__(
        self,
        dim: int,
        is_ordered: bool,
        dropout: float = 0.0,
        table: tuple[int, int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim = dim
        self.is_ordered = is_ordered
        policy = {"dtype": self.dtype_policy}
        self.words = None if table is None else layers.Embedding(*table, name="words", **policy)
        self.dropout = layers.Dropout(dropout, **policy)
        if is_ordered:
            recurrence = layers.GRU(dim, return_sequences=True, **policy)
            self.network = layers.Bidirectional(recurrence, merge_mode="ave", **policy)
        else:
            self.norm = layers.BatchNormalization(momentum=0.9, **policy)
            self.network = layers.Dense(dim, **policy)

    def build(self, input_shape):
        if self.words is not None:
            self.words.build(input_shape)
            input_shape = (*input_shape, self.words.output_dim)
        self.network.build(input_shape)
        if not self.is_ordered:
            self.norm.build(input_shape)
            places = (input_shape[1], self.dim)
            start = keras.initializers.RandomNormal(stddev=0.02)
            self.places = self.add_weight(name="places", shape=places, initializer=start)

    def call(self, parts, training=False):
        if self.words is None:
            mask = presence(parts)
        else:
            mask, parts = ops.not_equal(parts, 0), self.words(parts)
        if self.is_ordered:
            parts = self.dropout(parts, training=training)
            parts = self.network(parts, mask=mask, training=training)
            parts = self.dropout(parts, training=training)
        else:
            parts = self.norm(parts, mask=mask, training=training)
            parts = self.network(self.dropout(parts, training=training)) + self.places
        rows = unit_length(ops.reshape(parts, (-1, self.dim)))
        rows = ops.reshape(rows, (ops.shape(mask)[0], -1, self.dim))
        return ops.where(mask[:, :, None], rows, 0.0)

    def compute_output_spec(self, parts, training=False) -> keras.KerasTensor:
        return keras.KerasTensor((*parts.shape[:2], self.dim), "float32")

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "dim": self.dim,
            "is_ordered": self.is_ordered,
            "dropout": self.dropout.rate,
            "table": self.words and (self.words.input_dim, self.words.output_dim),
        }

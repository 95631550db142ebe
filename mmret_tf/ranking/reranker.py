"""The re-ranker (重排序器): the second stage of a search, which compares regions with words.

The first stage compares one vector with one vector, and finds. The second looks at the candidates
that it found, a pair at a time, and ranks. Sections 3.1(3) and 3.1(5).
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mmret_tf.data.items import Item
from mmret_tf.data.modalities import get_modality
from mmret_tf.fusion.matching import CrossAttentionMatch, PartReader
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.encoder import Encoder, MultiEncoder
from mmret_tf.models.fingerprint import weights_digest
from mmret_tf.models.layers import Temperature, track
from mmret_tf.models.towers.tower import Tower, input_batches
from mmret_tf.models.whole_model import WholeModel
from mmret_tf.similarity.losses import numbered_groups, symmetric_cross_entropy

NOT_RERANKED = (
    "The second stage changed nothing: it compares a query with candidates of one other modality."
)


@keras.saving.register_keras_serializable("mmret_tf")
class Reranker(WholeModel):
    """Scores pairs of sources of two modalities by their regions and words; arXiv 1803.08024.

    Call: the inputs of the encoder's towers, a dict by modality -> a dict with the same keys,
    float32 `[batch, length, dim]`: unit vectors, zeros for padding. `match` compares them.

    `compile(optimizer)`, `fit` and `save` are Keras' own; the loss is the cross-entropy of the
    pairs in a batch. Targets are group ids, as for `MultiEncoder`. A batch of pictures that the
    first stage confuses has hard negatives (难负样本): see `training.fit_reranker`.

    Args:
        encoder: The first stage. From here on it is frozen: not trainable and not compiled.
        dim: Width of the compared vectors.
        dropout: Fraction of the regions and words that is dropped in training.
        weight: Of the second stage in a ranking, see `ranked`.
        shared: Another re-ranker, whose layers are used instead of new ones; see `with_towers`.
        shapes: `sequence_shape` of each tower, as a file has it; by default the towers tell it.

    Raises:
        ValueError: A tower of the encoder has no regions or words, or any number of them.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))  # trained, in earnest
    >>> reranker = Reranker(model, dim=8)
    >>> pictures = reranker.encode("image", pairs.first_sources)
    >>> texts = reranker.encode("text", ["a red circle", "红色的圆"])
    >>> pictures.shape, reranker.match({"image": pictures, "text": texts}).shape  # 2 x 2 regions
    ((4, 4, 8), (4, 2))
    """

    def __init__(
        self,
        encoder: MultiEncoder,
        dim: int = 256,
        dropout: float = 0.2,
        weight: float = 1.0,
        shared: "Reranker | None" = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        encoder.trainable = False
        # Its optimizer would be saved with it, at twice the size of the weights.
        encoder.compiled, encoder.optimizer = False, None
        self.encoder = encoder
        self.dim = dim
        self.rate = dropout
        if shared is None:
            towers = encoder.towers.items()
            self.shapes = shapes or {name: tower.sequence_shape() for name, tower in towers}
            if varying := [name for name, (length, _) in self.shapes.items() if length is None]:
                raise ValueError(f"a re-ranker needs a fixed number of parts; {varying[0]} has any")
            self.readers = {
                name: _new_reader(tower, dim, dropout, self.shapes[name]) for name, tower in towers
            }
            self.attention = CrossAttentionMatch(name="attention")
            self.temperature = Temperature(name="temperature")
            start = keras.initializers.Constant(weight)
            self.weight = self.add_weight((), start, trainable=False, name="weight")
        else:
            self.shapes = shared.shapes
            self.readers, self.attention = shared.readers, shared.attention
            self.temperature, self.weight = shared.temperature, shared.weight
        track(self, "reader", self.readers.values())
        # A function, or Keras would make the other re-ranker a part of this one.
        self._fingerprint = lambda: (shared or encoder).fingerprint
        self.built = True
        # Graphs that are traced once, for all batch sizes.
        self._compiled: dict[str, Callable] = {}
        self._match = tf.function(
            lambda first, second: self.attention([first, second]),
            input_signature=[tf.TensorSpec((None, None, dim))] * 2,
        )

    @property
    def fingerprint(self) -> str:
        """That of the first stage, see `Encoder`; of `shared`, if it was given."""
        return self._fingerprint()

    @property
    def recipe(self) -> str:
        """SHA-256 of what decides regions and words besides the encoder."""
        weights = [weight for each in self.readers.values() for weight in each.weights]
        return weights_digest(self.dim, weights)

    def with_towers(self, towers: Mapping[str, Tower]) -> "Reranker":
        """A re-ranker with other towers for some modalities; it shares all layers with this one.

        Args:
            towers: The other towers, by modality; their regions or words are the same.
        """
        return Reranker(self.encoder.with_towers(towers), self.dim, self.rate, shared=self)

    def input_specs(self) -> dict:
        return self.encoder.input_specs()

    def call(self, inputs, training=False):
        return {name: self.read(name, each, training) for name, each in inputs.items()}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        logits = self.compare(y_pred) / self.temperature()
        y = ops.arange(ops.shape(logits)[0]) if y is None else numbered_groups(y)
        return ops.mean(symmetric_cross_entropy(logits, y))

    def read(self, modality: str, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`encode` in TensorFlow ops.

        Args:
            modality: Of the tower.
            inputs: What the tower's `preprocess` returns.
            training: As for any Keras layer.

        Returns:
            float32 `[batch, length, dim]`: unit vectors, zeros for padding.
        """
        reader = self.readers[modality]
        if reader.words is None:  # or it looks up the token ids itself
            inputs = self.encoder.towers[modality].padded_sequence(inputs)
        return reader(inputs, training=training)

    def encode(self, modality: str, sources: Sequence[Any]) -> np.ndarray:
        """Regions or words of sources, ready to be matched.

        Args:
            modality: One of the encoder's.
            sources: A list of what the modality takes.

        Returns:
            float32 `[n, length, dim]`: unit vectors, zeros for padding.

        Raises:
            ValueError: A source cannot be used (the message names it), or the list is empty.
        """
        sources, tower = get_modality(modality).sources(sources), self.encoder.towers[modality]
        if modality not in self._compiled:
            compiled = tf.function(lambda inputs: self.read(modality, inputs), autograph=False)
            self._compiled[modality] = compiled.get_concrete_function(tower.input_specs())
        compiled = self._compiled[modality]
        found = [compiled(batch).numpy() for batch in input_batches(tower, sources)]
        if not found:
            raise ValueError("nothing to encode: the list is empty")
        return np.concatenate(found)

    def match(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compare every source of one modality with every source of another.

        Args:
            parts: Two modalities, `[n, length, dim]` and `[m, length, dim]`, as `encode` gives them
                or in fewer bits.

        Returns:
            float32 `[n, m]`, -1 to 1: rows for the modality that comes first in the encoder.
        """
        first, second = (tf.cast(each, "float32") for each in self._in_order(parts))
        return self._match(first, second).numpy()

    def ranked(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The scores by which candidates are ranked: those of both stages, weighted.

        Args:
            first: Scores of the first stage, `[n]`.
            second: Scores of `match`, `[n]`.

        Returns:
            `[n]`.
        """
        return first + float(self.weight) * second

    def compare(self, parts: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """`match` in TensorFlow ops.

        Args:
            parts: As for `match`, float32.
        """
        return self.attention(self._in_order(parts))

    def _in_order(self, parts: Mapping[str, Any]) -> list:
        """The parts of two modalities, in the encoder's order."""
        return [parts[name] for name in self.encoder.modalities if name in parts]

    def get_config(self) -> dict:
        return {
            "name": self.name,
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "dim": self.dim,
            "dropout": self.rate,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> "Reranker":
        return cls(**keras.saving.deserialize_keras_object(config))


def _new_reader(tower: Tower, dim: int, dropout: float, shape: tuple[int, int]) -> PartReader:
    """A reader of a tower's regions or words; its word vectors start as a copy of the tower's."""
    table = tower.word_table
    size = None if table is None else (table.input_dim, table.output_dim)
    reader = PartReader(dim, tower.is_ordered, dropout, size, name=f"{tower.modality}_reader")
    reader.build((None, *shape) if table is None else (None, shape[0]))
    if table is not None:
        reader.words.set_weights(table.get_weights())
    return reader


def gallery_modality(encoder: Encoder, sources: Mapping[str, Sequence[Any]]) -> str:
    """The modality by which an item is found: the first of the encoder's that it has, as in
    `Encoder.encode_items`; ValueError if it has none."""
    found = [name for name in encoder.modalities if sources.get(name)]
    if not found:
        raise ValueError(f"an item has none of {', '.join(encoder.modalities)}: {sources!r:.80}")
    return found[0]


def parts_of_items(reranker: Reranker, items: Sequence[Item]) -> dict[str | int, np.ndarray]:
    """The regions or words of items, in memory.

    Args:
        reranker: Reads them.
        items: The items.

    Returns:
        By the id of an item, float16 `[n_sources, length, dim]`: enough for unit vectors.

    Raises:
        ValueError: A source cannot be used.
    """
    found = {}
    names = [gallery_modality(reranker.encoder, item["sources"]) for item in items]
    for name in dict.fromkeys(names):
        own = [item for item, each in zip(items, names, strict=True) if each == name]
        sources = [item["sources"][name] for item in own]
        parts = reranker.encode(name, list(itertools.chain(*sources))).astype(np.float16)
        ends = np.cumsum([len(each) for each in sources])
        found |= zip([item["id"] for item in own], np.split(parts, ends[:-1]), strict=True)
    return found


def rerank(
    reranker: Reranker,
    modality: str,
    query: np.ndarray,
    candidates: Sequence[Item],
    scores: Sequence[float],
    parts: Mapping[str | int, np.ndarray],
) -> tuple[Sequence[int], Sequence[float], str]:
    """The order of candidates after the second stage. Section 3.1(5).

    An item with several pictures counts by the one that fits best. The order stays as it is unless
    all candidates are of one modality, and that is not the query's.

    Args:
        reranker: The second stage.
        modality: Of the query.
        query: Its regions or words, `[length, dim]`.
        candidates: Items, best first.
        scores: Those of the first stage, `[n]`.
        parts: Regions or words of the items, by their ids.

    Returns:
        The places of the candidates, best first, and their scores in that order, `[n]` both; and a
        remark, or "".
    """
    found = {gallery_modality(reranker.encoder, item["sources"]) for item in candidates}
    if len(found) != 1 or modality in found:
        return range(len(candidates)), scores, NOT_RERANKED if candidates else ""
    of_items = [parts[item["id"]] for item in candidates]
    starts = np.cumsum([0, *map(len, of_items[:-1])])
    used = query[: 1 + np.flatnonzero(query.any(axis=1)).max(initial=0)]  # without its padding
    pairs = reranker.match({found.pop(): np.concatenate(of_items), modality: used[None]})
    ranked = reranker.ranked(np.asarray(scores), np.maximum.reduceat(pairs.ravel(), starts))
    order = np.argsort(-ranked, kind="stable")
    return order.tolist(), ranked[order].tolist(), ""


def load_reranker(path: str | os.PathLike) -> Reranker:
    """Load a re-ranker, with its encoder, from its `.keras` file. Section 3.1(5).

    Args:
        path: What `Reranker.save` wrote, such as a run's `reranker.keras`.

    Returns:
        A `Reranker` that gives the same scores.

    Raises:
        ValueError: There is no such file, it is not a `.keras` file, or it holds another model.

    >>> load_reranker("none.keras")
    Traceback (most recent call last):
    ValueError: no model at none.keras: expected a .keras file
    """
    return load_as(Reranker, path, compile=False)

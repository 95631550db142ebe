"""The text tower (文本塔): an Embedding and an LSTM, then a head. Sections 2.2, 3.2(2), 4.2."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers, ops

from mmret_tf.data.decoders.text import TextPreprocessor
from mmret_tf.models.layers import POOLINGS, MaskedPooling, TransformerEncoder, track
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.recurrence import LSTM
from mmret_tf.models.towers.tower import Tower

RNNS = ("lstm", "gru", "bilstm", "transformer")
TEXT_POOLINGS = ("last", *POOLINGS)


class SentenceReader(layers.Layer):
    """A recurrent network or a Transformer over word vectors, pooled to one vector a sentence.

    Call: word vectors `[batch, length, word_dim]` and a mask `[batch, length]` -> `[batch, width]`.

    Args:
        rnn, word_dim, units, dropout, pooling, bag_of_words: As for `text_tower`.

    Attributes:
        settings: The arguments, as a tower saves them.
        width: Width of the result.

    Raises:
        ValueError: `rnn` or `pooling` is unknown, or a size is below 1.

    >>> reader = SentenceReader("gru", word_dim=3, units=4, pooling="max", bag_of_words=True)
    >>> reader(ops.ones((2, 5, 3))).shape, reader.width
    (TensorShape([2, 7]), 7)
    """

    def __init__(
        self,
        rnn: str = "lstm",
        word_dim: int = 128,
        units: int = 256,
        dropout: float = 0.0,
        pooling: str = "last",
        bag_of_words: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, size in (("word_dim", word_dim), ("units", units)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        for name, choice, known in (("rnn", rnn, RNNS), ("pooling", pooling, TEXT_POOLINGS)):
            if choice not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {choice!r}")
        self.settings = {
            "rnn": rnn,
            "word_dim": word_dim,
            "units": units,
            "dropout": dropout,
            "pooling": pooling,
            "bag_of_words": bag_of_words,
        }
        policy = {"dtype": self.dtype_policy}
        self.dropout = layers.Dropout(dropout, **policy)
        self.pool = None if pooling == "last" else MaskedPooling(pooling, **policy)
        self.bag = MaskedPooling("mean", **policy) if bag_of_words else None
        self.width = units * (2 if rnn == "bilstm" else 1) + (word_dim if bag_of_words else 0)
        if rnn == "transformer":  # it pools by itself
            kind = "mean" if pooling == "last" else pooling
            self.network, self.pool = TransformerEncoder(units, pooling=kind, **policy), None
        else:
            cell = layers.GRU if rnn == "gru" else LSTM
            self.network = cell(units, return_sequences=self.pool is not None, **policy)
            if rnn == "bilstm":
                self.network = layers.Bidirectional(self.network, **policy)

    def build(self, input_shape):
        self.network.build(input_shape)

    def call(self, words, mask=None, training=False):
        words = self.dropout(words, training=training)
        # Padding after the last word changes no state before it, and pooling ignores it: the mask
        # is then optional. It shortens our own loop and slows down Keras'; with it, cuDNN refuses
        # empty texts.
        has_own_loop = isinstance(self.network, LSTM) and not self.network.autocast
        is_optional = self.pool is not None and self.settings["rnn"] != "bilstm"
        network_mask = mask if has_own_loop or not is_optional else None
        state = self.network(words, mask=network_mask, training=training)
        if self.pool is not None:
            state = self.pool(state, mask=mask)
        if self.bag is not None:
            state = ops.concatenate([state, self.bag(words, mask=mask)], axis=1)
        return state

    def compute_mask(self, inputs, mask=None):
        return None


@keras.saving.register_keras_serializable("mmret_tf")
class TextTower(Tower):
    """Word vectors and a reader, for each member of an ensemble, and a head. Made by `text_tower`.

    Call: token ids `[batch, length]` -> float32 `[batch, embedding_dim]`, unit rows.

    Args:
        text: Adapted `TextPreprocessor`; it is saved with the tower.
        vocabulary_size: Number of token ids.
        reader: Arguments of each member's `SentenceReader`.
        head: Maps the states of all members, concatenated, to the embedding.
    """

    modality = "text"
    batch_size = 256

    def __init__(
        self, text: TextPreprocessor, vocabulary_size: int, reader: dict, head: Head, **kwargs
    ):
        super().__init__(head, **kwargs)
        self.text_preprocessor = text
        self.vocabulary_size = vocabulary_size
        self.reader = reader
        # With Keras' default of +-0.05, all sentences look alike for an epoch or two. A deviation
        # of 1 is too wide: after 8 epochs on Flickr8k, text to image R@10 is 31 % instead of 39 %
        # (one run each).
        self.words, *others = [
            layers.Embedding(
                vocabulary_size,
                reader["word_dim"],
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
                dtype=self.dtype_policy,
                autocast=False,  # casts the words that were looked up, not the table
                name=f"words_{number}" if number else "words",
            )
            for number in range(head.members)
        ]
        track(self, "more_words", others)
        for each in (self.words, *others):
            each.build((None, None))
        self.backbone = [
            SentenceReader(**reader, dtype=self.dtype_policy, name=f"reader_{number}")
            for number in range(head.members)
        ]
        for each in self.backbone:
            each.build((None, None, reader["word_dim"]))
        track(self, "member", self.backbone)

    @property
    def settings(self) -> list:
        text = self.text_preprocessor
        return [text.get_vocabulary(), text.sequence_length, self.reader]

    @property
    def tables(self) -> list[keras.layers.Layer]:
        return [self.text_preprocessor]

    @property
    def word_table(self) -> layers.Embedding:
        return self.words

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        return self.text_preprocessor(sources)

    def remarks(self, sources: Sequence[str]) -> list[str]:
        unknown = self.text_preprocessor.unknown_words(sources)
        return [_remark(*each) for each in zip(sources, unknown, strict=True)]

    def features(self, inputs, training: bool = False):
        """The states of all members' readers, concatenated: token ids -> `[batch, width]`."""
        inputs = without_padding(inputs)
        states = []
        for number, reader in enumerate(self.backbone):
            table = getattr(self, f"more_words_{number - 1}") if number else self.words
            words, mask = _looked_up(table, inputs)
            states.append(reader(words, mask=mask, training=training))
        return ops.concatenate(states, axis=1) if len(states) > 1 else states[0]

    def sequence(self, inputs):
        """Word vectors, of the first member; zeros for padding."""
        return _looked_up(self.words, inputs)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "text": keras.saving.serialize_keras_object(self.text_preprocessor),
            "vocabulary_size": self.vocabulary_size,
            "reader": self.reader,
        }


def _looked_up(table: layers.Embedding, ids):
    """Word vectors, zeros for padding, and the mask of the words."""
    mask = ops.not_equal(ids, 0)
    words = table(ids)
    return words * ops.cast(mask, words.dtype)[:, :, None], mask


def empty_remark(query: str) -> str:
    """What is wrong with an empty query, or "".

    >>> empty_remark("a red circle")
    ''
    """
    if query.strip():
        return ""
    return "The model was given an empty query: the ranking means nothing."


def _remark(query: str, unknown: list[str] | None) -> str:
    """What is wrong with a query, by its unknown words; `None` for no known word."""
    if remark := empty_remark(query):
        return remark
    if unknown is None:
        return "The model knows no word of the query: the ranking means nothing."
    return f"The model does not know: {', '.join(unknown)}." if unknown else ""


def without_padding(ids: tf.Tensor) -> tf.Tensor:
    """Token ids up to the last word of the longest text: Keras takes as long over padding.

    Args:
        ids: `[batch, length]`, 0 for padding.

    Returns:
        `[batch, longest]`, at least one id a text.

    >>> without_padding(tf.constant([[5, 0, 0, 0], [7, 8, 0, 0]])).shape
    TensorShape([2, 2])
    """
    if isinstance(ids, keras.KerasTensor):
        return ids
    ends = tf.where(tf.not_equal(ids, 0), tf.range(1, tf.shape(ids)[1] + 1), 0)
    return ids[:, : tf.maximum(tf.reduce_max(ends), 1)]


def text_tower(
    text: TextPreprocessor,
    rnn: str = "lstm",
    word_dim: int = 128,
    units: int = 256,
    embedding_dim: int = 256,
    dropout: float = 0.0,
    pooling: str = "last",
    bag_of_words: bool = False,
    members: int = 1,
) -> TextTower:
    """Make a text tower: an Embedding and an LSTM, then a projection. Sections 2.2 and 5.

    Args:
        text: `TextPreprocessor` that was adapted to the training captions. Token id 0 is padding
            and never changes a result.
        rnn: "lstm", "gru", "bilstm" (both directions, concatenated) or "transformer".
        word_dim: Width of a word vector.
        units: Width of the recurrent state (of each direction), or of the Transformer, where it
            must be a multiple of 4.
        embedding_dim: Width of the embedding.
        dropout: Fraction of each word vector, and of the pooled state, that is dropped in training.
        pooling: How the hidden states are pooled: the "last" one, their "mean", or their "max". A
            Transformer has no last state: "last" is the "mean" there.
        bag_of_words: Whether to append the mean of the word vectors (词袋) to the pooled state.
        members: Number of members of an ensemble, each with its own word vectors and its own
            reader, see `MultiEncoder`.

    Returns:
        A model, token ids `[batch, length]` -> float32 `[batch, embedding_dim]`, unit rows.

    Raises:
        ValueError: `text` is not adapted, `rnn` or `pooling` is unknown, or a number is out of
            range.

    >>> text = TextPreprocessor(max_tokens=100, sequence_length=4)
    >>> text.adapt(["a red circle", "红色的圆"])
    >>> tower = text_tower(text, units=16, embedding_dim=8)
    >>> vectors = tower(ops.array([[5, 7, 0], [7, 5, 0]]))
    >>> shorter = tower(ops.array([[5, 7]]))  # the same without padding
    >>> vectors.shape, bool(ops.max(ops.abs(vectors[:1] - shorter)) < 1e-6)
    (TensorShape([2, 8]), True)
    """
    if not isinstance(text, TextPreprocessor):
        raise ValueError(f"text must be an adapted TextPreprocessor; got {text!r:.80}")
    if text.vocabulary_size() <= 2:  # padding and unknown words
        raise ValueError("the TextPreprocessor has no vocabulary yet: call its adapt(captions)")
    reader = SentenceReader(rnn, word_dim, units, dropout, pooling, bag_of_words)
    width = reader.width * max(members, 1)
    settings = {"members": members, "is_split": True, "name": "head"}
    # In bfloat16 a single text would spend its time on the conversion of the weights.
    policy = keras.config.dtype_policy().variable_dtype
    head = Head(width, embedding_dim, dropout, dtype=policy, **settings)
    return TextTower(text, text.vocabulary_size(), reader.settings, head, name="text_tower")

"""From captions to token ids (文本预处理), in TensorFlow ops.

One definition serves `tf.data` in training, `encode` in Python, and the exported graph.
"""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from mmret_tf.data.decoders.normalization import nfkc
from mmret_tf.data.sources import InlineSource

# A caption that says left or right, or a sense of rotation, does not describe the mirrored picture.
SIDES = r"(?is).*(\b(left|right|(counter|anti)?clockwise)|左|右|[顺逆]时针).*"


def text_source(text: str) -> InlineSource:
    """A text as a source; ValueError for anything but a string."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a string; got {text!r:.80}")
    return InlineSource(text.encode("utf-8", "replace"), f"the text {text!r:.40}")


def check_text(contents: bytes) -> None:
    """Refuse bytes that are not text, or blank; ValueError with the reason."""
    try:
        is_blank = not contents.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{contents[error.start]:02x}") from None
    if is_blank:
        raise ValueError("empty text")


def names_a_side(texts: tf.Tensor) -> tf.Tensor:
    """Whether each text names left or right (左右), or a sense of rotation, bool `[n]`.

    >>> names_a_side(tf.constant(["a dog on the left", "一只狗"])).numpy().tolist()
    [True, False]
    """
    return tf.strings.regex_full_match(texts, SIDES)


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Words of `standardize_text`: strings `[n]` -> `[n, None]`.

    >>> split_words(tf.constant(["A red ball!"])).to_list()
    [[b'a', b'red', b'ball']]
    """
    return tf.strings.split(standardize_text(texts))


def standardize_text(text: tf.Tensor) -> tf.Tensor:
    """Reduce captions in any script to words between single spaces. Section 3.1(1).

    Texts are brought to NFKC and lower case. Apostrophes are removed ("dog's" becomes "dogs"), and
    other punctuation becomes spaces. Spaces around every Han character make it a token of its own
    (汉字按字切分).

    Args:
        text: Strings of any shape.

    Returns:
        Strings of the same shape.

    >>> print(standardize_text(["A ＲＥＤ dog's ball!", "红色的圆"]).numpy()[1].decode())
    红 色 的 圆
    """
    text = tf.convert_to_tensor(text, tf.string)
    flat = nfkc(tf.reshape(text, [-1]))
    flat = tf.strings.regex_replace(flat, r"['’`]", "")
    flat = tf.strings.regex_replace(flat, r"[\pP\pS\pZ\pC]", " ")
    flat = tf.strings.lower(flat, encoding="utf-8")  # it would end at a zero byte
    flat = tf.strings.regex_replace(flat, r"(\p{Han})", r" \1 ")
    flat = tf.strings.strip(tf.strings.regex_replace(flat, " +", " "))
    return tf.reshape(flat, tf.shape(text))


_standardize = tf.function(
    standardize_text, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
)


@keras.saving.register_keras_serializable("mmret_tf")
class TextPreprocessor(keras.layers.Layer):
    """Captions to token ids: Keras' StringLookup over `standardize_text`. Section 3.1(1).

    Id 0 is padding and 1 is a word outside the vocabulary. `adapt` learns the vocabulary, which is
    a part of the configuration: Keras would write it in the encoding of the locale (汉字 would be
    lost in some).

    Args:
        max_tokens: Maximum size of the vocabulary, the two special ids included.
        sequence_length: Number of tokens of each caption; longer captions are cut, shorter ones
            are padded with 0.
        vocabulary: Words, if they are known already; those of the ids from 2 on.

    Call: strings `[n]` -> int64 `[n, sequence_length]`.

    >>> text = TextPreprocessor(max_tokens=100, sequence_length=5)
    >>> text.adapt(["red red red", "圆圆"])
    >>> text(["RED, red 圆", "green"]).numpy().tolist()  # red is 2, 圆 is 3
    [[2, 2, 3, 0, 0], [1, 0, 0, 0, 0]]
    """

    def __init__(
        self,
        max_tokens: int = 8000,
        sequence_length: int = 32,
        vocabulary: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.max_tokens, self.sequence_length = max_tokens, sequence_length
        self.lookup = None
        if vocabulary:
            self._learn(list(vocabulary))
        self.built = True

    def adapt(self, captions: Iterable[str] | tf.data.Dataset) -> None:
        """Learn the vocabulary: the most frequent words, up to `max_tokens`.

        Args:
            captions: Strings, or a `tf.data.Dataset` of strings, of the training split only.

        Raises:
            ValueError: `captions` is empty, a single string, or not made of strings.
        """
        if not isinstance(captions, tf.data.Dataset):
            is_one = isinstance(captions, str)  # its letters are strings too
            captions = list(captions)
            if is_one or not captions or not all(isinstance(each, str) for each in captions):
                raise ValueError("adapt takes a non-empty list of captions (strings)")
            captions = tf.data.Dataset.from_tensor_slices(captions).batch(1024)
        counter = keras.layers.StringLookup(max_tokens=self.max_tokens, mask_token="")
        counter.adapt(captions.map(split_words))
        self._learn(counter.get_vocabulary(include_special_tokens=False))

    def _learn(self, words: list[str]) -> None:
        self.lookup = keras.layers.StringLookup(vocabulary=words, mask_token="")
        self._known = frozenset(words)

    def get_vocabulary(self, include_special_tokens: bool = True) -> list[str]:
        """The word of each id.

        Args:
            include_special_tokens: Whether to begin with those of the ids 0 and 1.
        """
        if self.lookup is None:
            return ["", "[UNK]"] if include_special_tokens else []
        return self.lookup.get_vocabulary(include_special_tokens)

    def vocabulary_size(self) -> int:
        """Number of ids, the two special ones included."""
        return len(self.get_vocabulary())

    def __call__(self, texts, **kwargs):
        if not isinstance(texts, keras.KerasTensor):  # Keras takes no lists of strings
            texts = tf.convert_to_tensor(texts, tf.string)
        return super().__call__(texts, **kwargs)

    def call(self, texts):
        if self.lookup is None:
            raise ValueError("the TextPreprocessor has no vocabulary yet: call adapt(captions)")
        ids = self.lookup(split_words(texts))
        return ids.to_tensor(shape=(None, self.sequence_length))

    def compute_output_spec(self, texts) -> keras.KerasTensor:
        return keras.KerasTensor((texts.shape[0], self.sequence_length), "int64")

    def count_cut(self, texts: Sequence[str]) -> int:
        """Number of texts that are longer than `sequence_length`.

        Args:
            texts: Strings.
        """
        lengths = split_words(tf.constant(texts, tf.string)).row_lengths()
        return int(tf.math.count_nonzero(lengths > self.sequence_length))

    def unknown_words(self, texts: Sequence[str]) -> list[list[str] | None]:
        """The words of texts that are outside the vocabulary; words that are cut off do not count.

        Args:
            texts: Strings.

        Returns:
            A list for each text, or `None` for a text without a known word.

        Raises:
            ValueError: A text is not a string.

        >>> text = TextPreprocessor(vocabulary=["red", "圆"])
        >>> text.unknown_words(["a red zebra", "圆", "zebra"])
        [['a', 'zebra'], [], None]
        """
        rows = _standardize(tf.constant([text_source(text).content for text in texts])).numpy()
        found: list[list[str] | None] = []
        for row in rows:
            words = row.decode().split()[: self.sequence_length]
            unknown = [word for word in dict.fromkeys(words) if word not in self._known]
            found.append(unknown if self._known.intersection(words) else None)
        return found

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "max_tokens": self.max_tokens,
            "sequence_length": self.sequence_length,
            "vocabulary": self.get_vocabulary(include_special_tokens=False),
        }

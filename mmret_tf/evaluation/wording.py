"""Wording of captions (描述文字): their language, length, things they name, and rarest word.

Properties of queries by which `errors` measures recall.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from mmret_tf.data.decoders.text import TextPreprocessor, split_words
from mmret_tf.data.decoders.text_cards import HAN
from mmret_tf.models.encoder import Encoder

# Captions that are split into words at once.
CAPTIONS_AT_ONCE = 2**16

# Between two of these, or a punctuation mark, a caption names something: "[black dog] on [snow]".
# Words of place ("left") and of the picture itself ("photo") are here because they name nothing.
ENGLISH = """
a an the one two three four five six seven eight nine ten several many some few other another single
each both of in on at by to from with without over under above below beneath between behind beside
near next into onto inside outside through across along around against up down out off after before
during for as like toward towards while and or but who which that where when there here left right
top bottom front back side middle center row column line group picture photo image only nothing else
it its he his she her they their
"""
# A number counts with its measure word (一只) alone: 三 is also a part of 三角形, a triangle.
CHINESE = (
    "[一两二三四五六七八九十几][个只条位名头匹辆张件群对双排行列]|[上下左右前后旁][面边侧方]|"
    "从左到右|从上到下|中间|图中|依次|排成|单独|没有别|图形|[在和与跟及从到向把有着它他她们只]"
)
SEPARATOR = re.compile(rf"\b(?:{'|'.join(ENGLISH.split())})\b|{CHINESE}|[^\w\s'’-]")

# These neither end a phrase nor make one: "a dog is running" and 黑色的狗 are one phrase each.
GLUE = re.compile(r"\b(?:is|are|was|were|be|being|has|have)\b|[的了是]")


def by_language(captions: Sequence[str]) -> dict[str, np.ndarray]:
    """The captions of each language, as in `measure`.

    Args:
        captions: n texts.

    Returns:
        bool `[n]` by name: "english" and "chinese" where some captions contain Han characters and
        others do not; otherwise "all".

    >>> by_language(["a dog", "狗"])
    {'english': array([ True, False]), 'chinese': array([False,  True])}
    >>> by_language(["狗"])
    {'all': array([ True])}
    """
    is_chinese = np.array([bool(HAN.search(each)) for each in captions])
    if is_chinese.all() or not is_chinese.any():
        return {"all": np.ones(len(captions), bool)}
    return {"english": ~is_chinese, "chinese": is_chinese}


def vocabulary_of(model: Encoder) -> list[str]:
    """The words that a model's text tower knows, the most frequent in training first.

    A run keeps no counts of words, and its training data may be gone. The order is always there.

    Args:
        model: An encoder.

    Returns:
        The words; none if the model reads no text, or has a text tower without `TextPreprocessor`.

    >>> from types import SimpleNamespace
    >>> text = SimpleNamespace(text_preprocessor=TextPreprocessor(vocabulary=["red", "圆"]))
    >>> vocabulary_of(SimpleNamespace(towers={"text": text}))  # or an `Encoder`
    ['red', '圆']
    """
    preprocessor = getattr(model.towers.get("text"), "text_preprocessor", None)
    if not isinstance(preprocessor, TextPreprocessor):
        return []
    return [str(word) for word in preprocessor.get_vocabulary(include_special_tokens=False)]


def count_words(captions: Sequence[str]) -> np.ndarray:
    """Length of each caption in words, as the text tower counts: each Chinese character is one.

    Args:
        captions: n texts.

    Returns:
        int64 `[n]`.

    >>> count_words(["A red dog's ball!", "红色的圆"])
    array([4, 4])
    """
    return np.array([len(words) for words in _words(captions)], np.int64)


def count_phrases(captions: Sequence[str]) -> np.ndarray:
    """Number of phrases between function words, which stands for the number of objects named.

    Candidate phrases of RAKE (Rose et al. 2010): what is left between articles, prepositions,
    numbers and the like. There is no parser: a verb by itself counts, and objects side by side
    count as one. English and Chinese function words are known. In all 1,200 captions of 300 drawn
    scenes the number is that of the objects; but the lists were made with these phrasings in view.

    Args:
        captions: n texts.

    Returns:
        int64 `[n]`.

    >>> count_phrases(["Two black dogs are running on the snow.", "一只黑色的狗在草地上奔跑"])
    array([2, 2])
    """
    counts = []
    for caption in captions:
        plain = GLUE.sub(" ", unicodedata.normalize("NFKC", caption).lower())
        counts.append(sum(bool(phrase.strip()) for phrase in SEPARATOR.split(plain)))
    return np.array(counts, np.int64)


def rarest_ranks(captions: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Place of each caption's rarest word in the vocabulary, from 1 for the most frequent word.

    Args:
        captions: n texts.
        vocabulary: Words, the most frequent first.

    Returns:
        int64 `[n]`; 0 for a caption with a word outside the vocabulary, or without words.

    >>> rarest_ranks(["red red", "a red circle", "a zebra"], ["a", "red", "circle"])
    array([2, 3, 0])
    """
    places = {word.encode(): place for place, word in enumerate(vocabulary, 1)}
    ranks = []
    for words in _words(captions):
        known = [places.get(word, 0) for word in words]
        ranks.append(max(known) if known and all(known) else 0)
    return np.array(ranks, np.int64)


def _words(captions: Sequence[str]) -> Iterator[list[bytes]]:
    """The words of each caption, as the text tower splits them."""
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = tf.constant(captions[start : start + CAPTIONS_AT_ONCE], tf.string)
        yield from split_words(some).to_list()

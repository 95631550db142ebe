"""Unicode normal form KC (Unicode 规范化) in TensorFlow ops.

TensorFlow has no op for it, and an exported model cannot call Python. Characters are looked up in
tables made from Python's `unicodedata`.
"""

import functools
import unicodedata

import numpy as np
import tensorflow as tf


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def nfkc(text: tf.Tensor) -> tf.Tensor:
    """Bring strings to Unicode normal form KC.

    Full-width ＲＥＤ becomes RED, the ligature ﬁ becomes fi, and the letter e followed by a
    combining accent becomes é. Separate Korean letters are not composed to syllables.

    Args:
        text: Strings `[n]`, UTF-8.

    Returns:
        Strings `[n]`.

    >>> print(nfkc(tf.constant(["ＲＥＤ ﬁne"])).numpy()[0].decode())
    RED fine
    """
    keys, replacements = _compatibility_table()
    codes = tf.strings.unicode_decode(text, "UTF-8")
    characters = tf.strings.unicode_split(text, "UTF-8", errors="replace")
    row, found = _look_up(keys, codes.flat_values)
    flat = tf.where(found, tf.gather(replacements, row), characters.flat_values)
    text = tf.strings.reduce_join(characters.with_flat_values(flat), axis=-1)

    keys, composed = _composition_table()
    for _ in range(3):  # a Greek letter may have three accents
        codes = tf.strings.unicode_decode(text, "UTF-8")
        follower = tf.concat([codes[:, 1:], tf.zeros_like(codes[:, :1])], axis=1).flat_values
        letter = tf.cast(codes.flat_values, tf.int64)
        row, found = _look_up(keys, letter * 2**21 + tf.cast(follower, tf.int64))
        flat = tf.where(found, tf.gather(composed, row), codes.flat_values)
        swallowed = tf.concat([[False], found[:-1]], axis=0)[: tf.size(found)]
        codes = tf.ragged.boolean_mask(
            codes.with_flat_values(flat), codes.with_flat_values(~swallowed)
        )
        text = tf.strings.unicode_encode(codes, "UTF-8")
    return text


@functools.cache
def _compatibility_table() -> tuple[np.ndarray, np.ndarray]:
    """Code points that NFKC changes, sorted, and the replacement of each (UTF-8)."""
    changed = [
        (code, unicodedata.normalize("NFKC", chr(code)))
        for code in range(0x80, 0x30000)
        if not 0xD800 <= code < 0xE000 and not unicodedata.is_normalized("NFKC", chr(code))
    ]
    return np.array([code for code, _ in changed], np.int32), np.array([new for _, new in changed])


@functools.cache
def _composition_table() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of letter and accent, as `letter * 2**21 + accent`, sorted, and the composed letter of
    each. Korean syllables, which Unicode composes by arithmetic, are left out."""
    pairs = {}
    for code in range(0xC0, 0x30000):
        parts = unicodedata.decomposition(chr(code)).split()
        is_pair = len(parts) == 2 and not parts[0].startswith("<")
        if is_pair and unicodedata.is_normalized("NFC", chr(code)):
            pairs[(int(parts[0], 16) << 21) + int(parts[1], 16)] = code
    keys = np.array(sorted(pairs), np.int64)
    return keys, np.array([pairs[key] for key in keys], np.int32)


def _look_up(keys: np.ndarray, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The position of each value in the sorted keys, and whether it is one of them."""
    row = tf.minimum(tf.searchsorted(keys, values), len(keys) - 1)
    return row, tf.gather(keys, row) == values

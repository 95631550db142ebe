"""Unicode normal form KC (Unicode 规范化) in TensorFlow ops.

TensorFlow has no op for it, and an exported model cannot call Python. The three steps of Unicode's
annex 15, decompose, reorder and compose, look characters up in tables made from Python's
`unicodedata`. All characters of all strings are in one list, with the number of their string.
"""

import functools
import unicodedata

import numpy as np
import tensorflow as tf

# No character from here on is changed.
END = 0x30000

# Korean syllables are composed by arithmetic: 19 initial, 21 middle and 27 final letters.
SYLLABLES = range(0xAC00, 0xD7A4)
INITIALS, MIDDLES, FINALS = 0x1100, 0x1161, 0x11A7
N_MIDDLES, N_FINALS = 21, 28  # "no final" is one of the finals

# A pair of characters as one number: this times the first, and the second.
PAIR = 2**21


# Without AutoGraph, which takes most of a second to convert this module in each process.
@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def nfkc(text: tf.Tensor) -> tf.Tensor:
    """Bring strings to Unicode normal form KC.

    Full-width ＲＥＤ becomes RED, the ligature ﬁ becomes fi, and the letter e followed by a
    combining accent becomes é, also where another mark stands between them.

    Args:
        text: Strings `[n]`, UTF-8.

    Returns:
        Strings `[n]`.

    >>> print(nfkc(tf.constant(["ＲＥＤ ﬁne"])).numpy()[0].decode())
    RED fine
    """
    characters = tf.strings.unicode_decode(text, "UTF-8")
    codes, owners = characters.flat_values, characters.value_rowids()
    return tf.cond(
        tf.reduce_all(_is_plain(codes)),
        lambda: text,
        lambda: _normalized(codes, owners, tf.size(text, tf.int64)),
    )


def _is_plain(codes: tf.Tensor) -> tf.Tensor:
    """Whether each character is ASCII or a common Han character: nothing is to be done for these.

    They are what most queries are made of, and the tables take longer than all else in a text.
    """
    return (codes < 0x80) | ((codes >= 0x4E00) & (codes < 0xA000))


def _normalized(codes: tf.Tensor, owners: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """The normal form of characters, as `n` strings."""
    codes, owners = _decompose(codes, owners)
    codes, classes = _reorder(codes, owners)
    any_length = tf.TensorShape([None])
    codes, _, owners, _ = tf.while_loop(
        lambda codes, classes, owners, is_done: ~is_done,
        lambda codes, classes, owners, is_done: _compose_once(codes, classes, owners),
        (codes, classes, owners, False),
        shape_invariants=(any_length, any_length, any_length, tf.TensorShape([])),
    )
    ragged = tf.RaggedTensor.from_value_rowids(codes, owners, n)
    return tf.strings.unicode_encode(ragged, "UTF-8")


def _decompose(codes: tf.Tensor, owners: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each character replaced by its compatibility decomposition."""
    keys, parts, counts = _decompositions()
    row, is_found = _look_up(keys, codes)
    count = tf.where(is_found, tf.gather(counts, row), 1)
    source = tf.repeat(tf.range(tf.size(codes)), count)
    number = tf.range(tf.size(source)) - tf.gather(tf.cumsum(count, exclusive=True), source)
    start = tf.gather(np.cumsum(counts, dtype=np.int32) - counts, row)
    part = tf.gather(parts, tf.minimum(tf.gather(start, source) + number, len(parts) - 1))
    codes = tf.where(tf.gather(is_found, source), part, tf.gather(codes, source))
    return codes, tf.gather(owners, source)


def _reorder(codes: tf.Tensor, owners: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The marks behind each letter in the order of their classes, and the classes of all."""
    keys, values = _combining_classes()
    row, is_found = _look_up(keys, codes)
    classes = tf.where(is_found, tf.gather(values, row), 0)
    run = tf.cumsum(tf.cast(_starts(classes, owners), tf.int32))
    order = tf.argsort(256 * run + classes, stable=True)
    return tf.gather(codes, order), tf.gather(classes, order)


def _compose_once(
    codes: tf.Tensor, classes: tf.Tensor, owners: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Each letter composed with the first mark or letter that can be; and whether none was."""
    keys, composed = _compositions()
    place, starts = tf.range(tf.size(codes)), _starts(classes, owners)
    first = tf.gather(place[starts], tf.cumsum(tf.cast(starts, tf.int32)) - 1)
    before = tf.maximum(place - 1, 0)
    # A mark goes to the letter of its run, a letter to the letter right before it.
    target = tf.where(starts, before, first)
    is_near = tf.gather(owners, target) == owners
    is_free = (target == before) | (tf.gather(classes, before) < classes)
    is_letter = (tf.gather(classes, target) == 0) & (target < place)
    pair = PAIR * tf.cast(tf.gather(codes, target), tf.int64) + tf.cast(codes, tf.int64)
    row, is_found = _look_up(keys, pair)
    can_be = is_found & is_near & is_free & is_letter

    # The first for each letter, unless the letter itself is taken in this turn.
    n = tf.size(codes)
    chosen = tf.math.unsorted_segment_min(tf.where(can_be, place, n), target, n)
    is_taken = can_be & (tf.gather(chosen, target) == place)
    is_taken &= ~tf.gather(is_taken, target)
    taken = place[is_taken]
    codes = tf.tensor_scatter_nd_update(
        codes, tf.gather(target, taken)[:, None], tf.gather(composed, tf.gather(row, taken))
    )
    kept = ~is_taken
    return codes[kept], classes[kept], owners[kept], tf.size(taken) == 0


def _starts(classes: tf.Tensor, owners: tf.Tensor) -> tf.Tensor:
    """Whether a run starts at each character: a letter, or the first of a string."""
    previous = tf.concat([[tf.constant(-1, tf.int64)], owners[:-1]], axis=0)
    return (classes == 0) | (owners != previous)


@functools.cache
def _decompositions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Characters with a decomposition, sorted; the parts of all in a row; the number of each."""
    forms = {code: unicodedata.normalize("NFKD", chr(code)) for code in _characters()}
    changed = {code: form for code, form in forms.items() if form != chr(code)}
    parts = [ord(part) for form in changed.values() for part in form]
    counts = [len(form) for form in changed.values()]
    return np.array([*changed], np.int32), np.array(parts, np.int32), np.array(counts, np.int32)


@functools.cache
def _combining_classes() -> tuple[np.ndarray, np.ndarray]:
    """Marks, sorted, and their combining classes, 1 to 254."""
    classes = {code: unicodedata.combining(chr(code)) for code in _characters()}
    marks = {code: each for code, each in classes.items() if each}
    return np.array([*marks], np.int32), np.array([*marks.values()], np.int32)


@functools.cache
def _compositions() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of characters as `PAIR * first + second`, sorted, and the composed character."""
    composed = {}
    for code in _characters():
        parts = unicodedata.decomposition(chr(code)).split()
        is_pair = len(parts) == 2 and not parts[0].startswith("<")
        if is_pair and unicodedata.is_normalized("NFC", chr(code)):
            composed[PAIR * int(parts[0], 16) + int(parts[1], 16)] = code
    for code in SYLLABLES:
        pair, final = divmod(code - SYLLABLES.start, N_FINALS)
        initial, middle = divmod(pair, N_MIDDLES)
        first, second = INITIALS + initial, MIDDLES + middle
        if final:
            first, second = code - final, FINALS + final
        composed[PAIR * first + second] = code
    keys = np.array(sorted(composed), np.int64)
    return keys, np.array([composed[key] for key in keys.tolist()], np.int32)


def _characters() -> list[int]:
    """The characters that tables are made of: no halves of pairs, no Korean syllables."""
    return [
        code for code in range(0x80, END) if not 0xD800 <= code < 0xE000 and code not in SYLLABLES
    ]


def _look_up(keys: np.ndarray, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The position of each value in the sorted keys, and whether it is one of them."""
    row = tf.minimum(tf.searchsorted(keys, values), len(keys) - 1)
    return row, tf.gather(keys, row) == values

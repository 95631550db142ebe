"""What users give, checked: counts, rows, ids, items, and text that is going to be shown."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = Sequence[str] | Sequence[int] | np.ndarray

# Rows whose lengths are 1 within this need not be divided by them.
UNIT = 1e-6


def checked_count(value: int, name: str) -> int:
    """A number of things that must be an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    return int(value)


def checked_queries(queries: npt.ArrayLike, dim: int, metric: str) -> np.ndarray:
    """`[n_queries, dim]`, or `[dim]` for one, checked; copied unless they fit as they are."""
    rows = np.reshape(queries, (1, -1)) if np.ndim(queries) == 1 else queries
    rows = checked_rows(rows, "queries", metric, copy=False)
    if rows.shape[1] != dim:
        raise ValueError(f"queries must have width {dim}; got {rows.shape[1]}")
    return rows


def checked_rows(array: npt.ArrayLike, name: str, metric: str, copy: bool = True) -> np.ndarray:
    """Check `[n, dim]` numbers; return a float32 copy, with rows of unit length for cosine.

    Without `copy`, and for a file that is mapped into memory, the array itself is returned if its
    rows are what a copy's would be.
    """
    fits = isinstance(array, np.ndarray if not copy else np.memmap)
    fits = fits and array.dtype == np.float32 and array.flags.c_contiguous
    try:
        with np.errstate(over="ignore"):
            rows = array if fits else np.array(array, dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers [n, dim]; {error}") from None
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} must be a non-empty array [n, dim]; got shape {rows.shape}")
    # A sum in float64 can neither overflow nor vanish, and NaN or infinity shows in it.
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    # Squared distances must fit into float32, which ends at 3.4e38.
    bad = np.flatnonzero(~(norms < (np.inf if metric == "cosine" else 1e18)))
    if bad.size:
        where = f"{bad.size} rows, the first is row {bad[0]}"
        raise ValueError(f"{name} holds NaN, infinity or too large numbers in {where}")
    if metric == "cosine":
        norms[norms == 0] = 1
        if fits and np.abs(norms - 1).max() > UNIT:
            rows, fits = np.array(rows), False
        if not fits:
            np.divide(rows, norms[:, None], out=rows, casting="same_kind")
    return rows


def checked_ids(ids: Ids, n: int | None = None) -> np.ndarray:
    """Check that there are n different ids; int64, or strings as objects; `[n]`."""
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
        raise ValueError(f"ids must be a list of strings or integers; got {ids!r:.80}")
    ids = [key.item() if isinstance(key, np.generic) else key for key in ids]
    if n is not None and len(ids) != n:
        raise ValueError(f"ids must have one id a row: there are {n} rows and {len(ids)} ids")
    types = {type(key) for key in ids}
    if types not in (set(), {str}, {int}):
        names = ", ".join(sorted(each.__name__ for each in types))
        raise ValueError(f"ids must be all strings or all integers; got {names}")
    if twice := [key for key, times in Counter(ids).items() if times > 1]:
        raise ValueError(f"ids must be unique; {len(twice)} come more than once: {twice[0]!r:.80}")
    # NumPy's strings drop a final NUL, and its integers have 64 bits.
    if bad := [key for key in ids if ("\0" in key if types == {str} else key.bit_length() > 63)]:
        raise ValueError(f"ids must fit into a NumPy array, without NUL; got {bad[0]!r}")
    return np.array(ids, object if types == {str} else np.int64)


def check_collection(ids: Ids, name: str) -> None:
    """Raise ValueError unless `ids` is a list, a set or the like; a single string is refused."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Collection):
        raise ValueError(f"{name} must be a list of ids; got {ids!r:.80}")


def check_items(sources: Mapping[str, Sequence[Sequence[Any]]]) -> int:
    """The number of items; ValueError if the lists differ in length or an item has no source."""
    counts = {name: len(each) for name, each in sources.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"every modality must have one list an item; got {counts}")
    for row, item in enumerate(zip(*sources.values(), strict=True)):
        if any(isinstance(each, str | bytes) for each in item):
            raise ValueError(f"the sources of an item must be lists; item {row} has one source")
        if not any(len(each) for each in item):
            raise ValueError(f"item {row} has no {' or '.join(sources)}: nothing to embed")
    return next(iter(counts.values()))


def one_line(text: str) -> str:
    """Text of untrusted origin as one line of valid Unicode; half a character becomes an escape."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def printable(text: str) -> str:
    r"""`one_line`, fit for a terminal, a log or a table: control characters, escape sequences and
    marks of writing direction become spaces.

    >>> printable("a\x1b[2Jb\nc\u202e")
    'a [2Jb c'
    """
    return one_line("".join(each if each.isprintable() else " " for each in one_line(text)))

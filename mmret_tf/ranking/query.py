"""A query (查询): weighted terms, and conditions on what is returned. Section 3.1(5).

Needs no TensorFlow.
"""

import functools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from mmret_tf._checks import check_collection

# Share of the text in a query of text and image, where no fusion was trained for such queries.
EQUAL_SHARES = 0.5
# Weight of a term that `parse_terms` finds after a minus. With the demo's model and 12 queries as
# `a star -"a red star"`, a red star is in 7 % of the first ten results without the minus, in 1 %
# with -0.5 and in none with -1; a star is in 60, 54 and 39 %.
MINUS = -0.5

# After a minus at the start or after white space: words in quotation marks, or one word.
_MINUS_TERM = re.compile(r'(?<!\S)[-－]+(?:"([^"]+)"|“([^”]+)”|(\S*\w\S*))')


@dataclass(frozen=True)
class Query:
    """The arguments of `Searcher.search`, checked.

    Attributes:
        text, image, k, text_weight, where, exclude_ids, texts, similar_to, with_vectors: As there.
        sources: Query sources of other modalities, by name.

    Raises:
        ValueError: It asks for nothing, or an argument has a value that it cannot have.

    >>> Query.of({"text": "a shirt", "texts": {"buttons": -0.5}}).terms
    [('text', 'a shirt', 1.0), ('text', 'buttons', -0.5)]
    """

    text: str | None = None
    image: Any = None
    k: int = 10
    text_weight: float | None = None
    where: Mapping[str, Any] | None = None
    exclude_ids: Collection[str] | Collection[int] = ()
    texts: Mapping[str, float] | None = None
    similar_to: str | int | None = None
    with_vectors: bool = False
    sources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.text, str | None):
            raise ValueError(f"text must be a string; got {self.text!r:.80}")
        if not isinstance(self.texts, Mapping | None):
            raise ValueError(f"texts must be a dictionary of weights; got {self.texts!r:.80}")
        for text, weight in (self.texts or {}).items():
            if not isinstance(text, str) or not _is_weight(weight):
                raise ValueError(
                    "texts must map strings to weights, numbers other than 0; got "
                    f"{text!r:.80}: {weight!r:.80}"
                )
        if not self.terms and self.similar_to is None:
            names = ", ".join(["text", "image", *self.sources])
            raise ValueError(f"a query needs {names}, or several of them; got none")
        check_collection(self.exclude_ids, "exclude_ids")
        share = self.text_weight
        if share is not None and not (_is_number(share) and 0 <= share <= 1):
            raise ValueError(f"text_weight must be from 0 to 1; got {share!r:.80}")

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Query":
        """A query from the arguments of `Searcher.search`, by name.

        Args:
            arguments: Those that differ from the default.

        Raises:
            ValueError: See the class.
        """
        known = {each.name for each in fields(cls)} - {"sources"}
        sources = {name: each for name, each in arguments.items() if name not in known}
        return cls(
            **{name: each for name, each in arguments.items() if name in known}, sources=sources
        )

    @functools.cached_property
    def terms(self) -> list[tuple[str, Any, float]]:
        """What is to be embedded: modality, source and weight of each term."""
        texts = {self.text: 1.0} if self.text is not None else {}
        texts = [
            ("text", text, weight) for text, weight in (texts | dict(self.texts or {})).items()
        ]
        others = {"image": self.image, **self.sources}
        return texts + [(name, each, 1.0) for name, each in others.items() if each is not None]

    @property
    def excluded(self) -> Collection[str] | Collection[int]:
        """Ids of the items that are not returned: `exclude_ids`, and the item itself."""
        return self.exclude_ids if self.similar_to is None else [*self.exclude_ids, self.similar_to]

    @property
    def conditions(self) -> tuple:
        """Equal for queries that differ in nothing but what they look for."""
        return repr(self.k), repr(self.where), tuple(map(repr, self.excluded))

    @property
    def is_plain(self) -> bool:
        """Whether it has one source of each modality and nothing that weighs them."""
        return not self.texts and self.similar_to is None and self.text_weight is None

    def combined(self, terms: np.ndarray, similar: np.ndarray | None) -> np.ndarray:
        """One vector for the query.

        The texts are summed by their weights, and the sum is scaled to unit length. The other
        modalities and the item are averaged. The text's share then weighs the two (section 3.2(3)).

        Args:
            terms: The embedding of each of `terms`, `[n_terms, dim]`.
            similar: The embedding of the item `similar_to`, `[dim]`.

        Returns:
            `[dim]`, of unit length unless the terms cancel out.
        """
        pairs = list(zip(self.terms, terms, strict=True))
        texts = [weight * each for (name, _, weight), each in pairs if name == "text"]
        others = [each for (name, _, _), each in pairs if name != "text"]
        if similar is not None:
            others.append(similar)
        if not texts or not others:
            return _scaled(texts or others)
        share = EQUAL_SHARES if self.text_weight is None else self.text_weight
        return _scaled([share * _scaled(texts), (1 - share) * sum(others) / len(others)])


def parse_terms(text: str) -> dict[str, float]:
    """The terms of a query as people type it: after a minus, what the results should not show.

    A minus counts at the start and after white space; "well-known" has none. It applies to the next
    word, or to several in quotation marks. The full-width － works as well.

    Args:
        text: A query in words.

    Returns:
        `texts` of `Searcher.search`: weight 1 for what remains, `MINUS` for the other terms.

    >>> parse_terms('a well-known beach -snow -"a red car"')
    {'a well-known beach': 1.0, 'snow': -0.5, 'a red car': -0.5}
    >>> parse_terms("海滩 －雪")
    {'海滩': 1.0, '雪': -0.5}
    """
    minus = {"".join(match.groups("")): MINUS for match in _MINUS_TERM.finditer(text)}
    rest = " ".join(_MINUS_TERM.sub(" ", text).split())
    return ({rest: 1.0} if rest or not minus else {}) | minus


def _scaled(vectors: list[np.ndarray]) -> np.ndarray:
    """The sum of vectors, scaled to unit length; a single vector as it is."""
    if len(vectors) == 1:
        return vectors[0]
    total = sum(vectors)
    return total / max(np.linalg.norm(total), 1e-6)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_weight(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value != 0

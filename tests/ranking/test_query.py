"""Queries: what is refused, how terms are weighed, and the minus that people type."""

import numpy as np
import pytest

from mmret_tf.ranking.query import Query, parse_terms


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": None, "image": None}, "a query needs text, image, or several .* got none"),
        ({"sound": None}, "a query needs text, image, sound, or several .* got none"),
        ({"texts": {}}, "a query needs text, image, or several .* got none"),
        ({"text": 5}, "text must be a string; got 5"),
        ({"text": ["a dog"], "image": b""}, r"text must be a string; got \['a dog'\]"),
        ({"text": "a dog", "text_weight": 2}, "text_weight must be from 0 to 1; got 2"),
        ({"text": "a dog", "text_weight": -0.1}, "text_weight must be from 0 to 1; got -0.1"),
        ({"text": "a dog", "text_weight": float("nan")}, "must be from 0 to 1; got nan"),
        ({"text": "a dog", "text_weight": "1"}, "text_weight must be from 0 to 1; got '1'"),
        ({"texts": ["a dog"]}, r"texts must be a dictionary of weights; got \['a dog'\]"),
        ({"texts": {"a dog": 0}}, "numbers other than 0; got 'a dog': 0"),
        ({"texts": {"a dog": "1"}}, "numbers other than 0; got 'a dog': '1'"),
        ({"texts": {"a dog": float("inf")}}, "numbers other than 0; got 'a dog': inf"),
        ({"texts": {"a dog": True}}, "numbers other than 0; got 'a dog': True"),
        ({"texts": {5: 1}}, "texts must map strings to weights, .* got 5: 1"),
    ],
)
def test_queries_that_are_refused(query, message):
    with pytest.raises(ValueError, match=message):
        Query.of(query)


def test_queries_that_are_right():
    Query.of({"text": "", "image": None})
    Query.of({"image": np.zeros((2, 2)), "text_weight": 1})
    Query.of({"number": b"3", "text_weight": 0})
    Query.of({"similar_to": 0})
    Query.of({"texts": {"a dog": np.float32(0.5)}})


def test_the_terms_of_a_query_are_texts_then_other_sources():
    query = Query.of({"image": b"i", "text": "a", "texts": {"b": -2}, "sound": b"s"})
    expected = [("text", "a", 1.0), ("text", "b", -2), ("image", b"i", 1.0), ("sound", b"s", 1.0)]
    assert query.terms == expected


X, Y, Z = np.eye(3)


@pytest.mark.parametrize(
    ("query", "terms", "similar", "expected"),
    [
        ({"text": "a"}, [X], None, [1, 0, 0]),
        ({"texts": {"a": 1, "b": -0.75}}, [X, Y], None, [0.8, -0.6, 0]),
        ({"texts": {"a": -1}}, [X], None, [-1, 0, 0]),
        ({"similar_to": "z"}, [], Z, [0, 0, 1]),
        ({"text": "a", "similar_to": "z", "text_weight": 0.6}, [X], Z, [0.832, 0, 0.555]),
        # The texts are summed first: (0.8, -0.6, 0), then half of it and half of (0, 0, 1).
        ({"texts": {"a": 4, "b": -3}, "image": b""}, [X, Y, Z], None, [0.566, -0.424, 0.707]),
        # The mean of a picture and an item, (0, 0.5, 0.5), counts as the other half.
        ({"text": "a", "image": b"", "similar_to": "z"}, [X, Y], Z, [0.816, 0.408, 0.408]),
        # Terms that cancel out leave nothing, and no division by 0.
        ({"texts": {"a": 1, "b": -1}}, [X, X], None, [0, 0, 0]),
    ],
)
def test_terms_are_summed_by_their_weights(query, terms, similar, expected):
    vector = Query.of(query).combined(np.reshape(terms, (-1, 3)), similar)
    np.testing.assert_allclose(vector, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a dog", {"a dog": 1}),
        ("", {"": 1}),
        ("a dog -snow", {"a dog": 1, "snow": -0.5}),
        ("-snow a dog", {"snow": -0.5, "a dog": 1}),
        ("-snow", {"snow": -0.5}),
        ("狗 －雪", {"狗": 1, "雪": -0.5}),
        ("狗\u3000－雪", {"狗": 1, "雪": -0.5}),
        ('a dog -"deep snow" on a beach', {"a dog on a beach": 1, "deep snow": -0.5}),
        ("狗 －“深 雪”", {"狗": 1, "深 雪": -0.5}),
        ("a well-known dog", {"a well-known dog": 1}),
        ("狗－雪", {"狗－雪": 1}),
        ("a dog - snow", {"a dog - snow": 1}),
        ("a dog --", {"a dog --": 1}),
        ("a --dog", {"a": 1, "dog": -0.5}),
        ("-a -b", {"a": -0.5, "b": -0.5}),
    ],
)
def test_a_minus_at_the_start_of_a_word_makes_a_negative_term(text, terms):
    assert parse_terms(text) == terms

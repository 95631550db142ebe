"""Ranked results as text and as a web page, and queries that are refused."""

import numpy as np
import pytest

from mmret_tf.ranking.results import SearchResult, SearchResults, check_query


def results_of(*records):
    return SearchResults(
        SearchResult(rank, record["id"], 1 / rank, record) for rank, record in enumerate(records, 1)
    )


def test_results_are_shown_as_a_line_each():
    results = results_of({"id": "a", "captions": ["a dog", "狗"]}, {"id": "b", "captions": []})
    assert repr(results) == "   1  1.000  a  a dog\n   2  0.500  b  "
    assert repr(SearchResults()) == "no results"
    assert results[0].caption == "a dog" and results[1].caption == ""


def test_jupyter_shows_a_card_for_each_result():
    page = results_of({"id": "a", "captions": ["a dog"]}, {"id": "b"})._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 2 and "<b>2</b> · 0.500" in page


@pytest.mark.parametrize(
    ("query", "text_weight", "message"),
    [
        ({"text": None, "image": None}, None, "a query needs text, image, or several .* got none"),
        ({"text": 5}, None, "text must be a string; got 5"),
        ({"text": ["a dog"], "image": b""}, None, r"text must be a string; got \['a dog'\]"),
        ({"text": "a dog"}, 2, "text_weight must be from 0 to 1; got 2"),
        ({"text": "a dog"}, -0.1, "text_weight must be from 0 to 1; got -0.1"),
        ({"text": "a dog"}, float("nan"), "text_weight must be from 0 to 1; got nan"),
    ],
)
def test_queries_that_are_refused(query, text_weight, message):
    with pytest.raises(ValueError, match=message):
        check_query(query, text_weight)


def test_queries_that_are_right():
    check_query({"text": "", "image": None}, None)
    check_query({"text": None, "image": np.zeros((2, 2))}, 1)
    check_query({"number": b"3"}, 0)

"""Ranked results as text and as a web page."""

from mmret_tf.ranking.results import SearchResult, SearchResults


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

"""Ranked results as pictures: thumbnails, web pages, and the gallery in a PNG file."""

import numpy as np
import pytest
from PIL import Image

from mmret_tf.ranking.gallery import (
    COLUMNS,
    THUMBNAIL,
    draw_gallery,
    draw_items,
    results_html,
    thumbnail,
)
from mmret_tf.ranking.results import SearchResult, SearchResults

GREY = (211, 211, 211)


def record(key, *captions, images=()):
    sources = {"image": [str(image) for image in images], "text": list(captions)}
    return {"id": key, "sources": sources, "attributes": {}}


def results_of(*records):
    return SearchResults(
        SearchResult(rank, each["id"], 1 / rank, each) for rank, each in enumerate(records, 1)
    )


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    return path


def colours(picture):
    assert picture.size == (8, 8)
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}


def test_a_thumbnail_is_the_first_source_that_can_be_read(red, tmp_path):
    assert colours(thumbnail(record("a", "a dog", images=[red]), 8)) == {(255, 0, 0)}
    gone = tmp_path / "gone.png"
    assert colours(thumbnail(record("a", images=[gone, red]), 8)) == {(255, 0, 0)}
    assert colours(thumbnail(record("a", images=[gone]), 8)) == {GREY}
    assert colours(thumbnail({"id": "a"}, 8)) == {GREY}
    assert colours(thumbnail({"id": "a", "image": str(red), "captions": []}, 8)) == {(255, 0, 0)}


def test_an_item_without_a_picture_shows_its_first_text(tmp_path):
    def inked_rows(*captions, images=()):
        pixels = np.asarray(thumbnail(record("a", *captions, images=images)).convert("L"))
        assert pixels.shape == (THUMBNAIL, THUMBNAIL)
        return (pixels < 128).any(axis=1)

    one = inked_rows("red", "not shown")
    assert one[:40].any() and not one[40:].any()
    assert np.array_equal(inked_rows("red", images=[tmp_path / "gone.png"]), one)


def test_a_page_escapes_captions_and_shows_a_card_for_each_result(red):
    results = results_of(
        record("a", "<script>alert('红')</script>", images=[red]),
        record("b", "a dog", images=[red.with_name("gone.png")]),
        record("c"),
    )
    page = results_html(results)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<script>" not in page and "&lt;script&gt;" in page and "红" in page


def test_a_gallery_frames_the_right_answers(red, tmp_path):
    results = results_of(record("a", "红色的圆", images=[red]), record("b", "a dog"))
    rows = [("a red circle", results), ("图" * 200, results_of(record("c")))]
    draw_gallery(rows, tmp_path / "gallery.png", ["b", None])
    sheet = np.asarray(Image.open(tmp_path / "gallery.png"))
    assert sheet.shape[1] > 2 * THUMBNAIL and sheet.shape[0] > 2 * THUMBNAIL
    framed = (sheet == [0, 128, 0]).all(axis=-1)
    rows, columns = np.flatnonzero(framed.any(axis=1)), np.flatnonzero(framed.any(axis=0))
    assert columns.min() > THUMBNAIL and rows.max() < 2 * THUMBNAIL  # the second of the first row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.png", "red.png"]


def test_a_page_of_items_has_a_picture_with_up_to_two_captions_below(red, tmp_path):
    file = tmp_path / "items.png"
    records = [record(str(n), "a dog", images=[red]) for n in range(COLUMNS + 1)]
    records[-1] = record("last", "one\x1b", "二", "not drawn", images=[red])
    draw_items(records, file)
    page = Image.open(file)
    assert page.size == (12 + COLUMNS * (THUMBNAIL + 12), 12 + 2 * (3 * THUMBNAIL + 12))
    row = 12 + 3 * THUMBNAIL + 12
    assert page.getpixel((20, 20)) == page.getpixel((20, row + 8)) == (255, 0, 0)
    pixels = np.asarray(page.convert("L"))
    second = pixels[row + 2 * THUMBNAIL : row + 3 * THUMBNAIL]
    assert (second[:, 12 : 12 + THUMBNAIL] < 128).any()  # of the last item
    assert (second[:, 12 + THUMBNAIL :] == 255).all()

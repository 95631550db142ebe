"""From a query to ranked items: against sorting by hand, in Jupyter, as a picture, from disk."""

import numpy as np
import pytest
from conftest import CAPTIONS
from PIL import Image

from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import load_model
from mmret_tf.embeddings import EmbeddingStore
from mmret_tf.fused_encoder import FusedEncoder
from mmret_tf.fusion import GatedFusion
from mmret_tf.index import build_index
from mmret_tf.searcher import THUMBNAIL, Searcher, card, draw_gallery


@pytest.fixture
def pairs(tmp_path, batch):
    paths = []
    for number, pixels in enumerate(batch["image"]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    ids = [f"00{number}" for number in range(4)]
    return PairDataset(ids, paths, [[caption] for caption in CAPTIONS], [{}] * 4, [""] * 4)


@pytest.fixture
def run(tmp_path, model, pairs):
    folder = tmp_path / "run"
    folder.mkdir()
    model.save(folder / "model.keras")
    store = EmbeddingStore.export(model, pairs, folder / "embeddings")
    build_index(store.embeddings, store.ids).save(folder / "index")
    return folder


def expected_order(model, pairs, query):
    scores = model.encode_images(pairs.image_paths) @ query
    order = np.argsort(-scores, kind="stable")
    return [pairs.ids[row] for row in order], scores[order]


def test_text_image_and_both_rank_by_cosine(run, model, pairs):
    searcher = Searcher.open(run)
    text = model.encode_texts(["红色的圆"])[0]
    image = model.encode_images([pairs.image_paths[1]])[0]
    both = 0.25 * text + 0.75 * image
    for arguments, query in [
        ({"text": "红色的圆"}, text),
        ({"image": pairs.image_paths[1]}, image),
        (
            {"text": "红色的圆", "image": pairs.image_paths[1], "text_weight": 0.25},
            both / np.linalg.norm(both),
        ),
    ]:
        results = searcher.search(**arguments)
        ids, scores = expected_order(model, pairs, query)
        assert [result.id for result in results] == ids
        assert [result.rank for result in results] == [1, 2, 3, 4]
        assert np.allclose([result.score for result in results], scores, atol=1e-5)
        assert [result.item["id"] for result in results] == ids


def test_a_query_of_both_goes_through_the_trained_fusion_of_the_run(run, model, pairs):
    fused = FusedEncoder(load_model(run / "model.keras"), GatedFusion(4))
    generator = np.random.default_rng(0)
    weights = fused.fusion.get_weights()
    fused.fusion.set_weights([each + generator.normal(size=each.shape) for each in weights])
    query = {"text": "红色的圆", "image": pairs.image_paths[1]}
    weighted = Searcher.open(run).search(**query)
    fused.save(run / "fusion.keras")
    searcher = Searcher.open(run)
    expected = fused.encode_items([[query["image"]]], [[query["text"]]])[0]
    ids, scores = expected_order(model, pairs, expected)
    results = searcher.search(**query)
    assert [result.id for result in results] == ids
    assert np.allclose([result.score for result in results], scores, atol=1e-5)
    assert [result.score for result in results] != [result.score for result in weighted]
    # An explicit weight asks for the weighted sum, and one modality goes as before.
    half = searcher.search(**query, text_weight=0.5)
    assert [(each.id, each.score) for each in half] == [(each.id, each.score) for each in weighted]
    text, _ = expected_order(model, pairs, model.encode_texts(["红色的圆"])[0])
    assert [result.id for result in searcher.search(text="红色的圆")] == text


def test_a_fusion_upon_another_model_is_refused(run, model):
    model.set_weights([weight + 1 for weight in model.get_weights()])
    FusedEncoder(model, GatedFusion(4)).save(run / "fusion.keras")
    with pytest.raises(ValueError, match="fusion.keras stands on another model"):
        Searcher.open(run)
    model.save(run / "fusion.keras")
    with pytest.raises(ValueError, match="holds a DualEncoder, not a FusedEncoder"):
        Searcher.open(run)


def test_a_picture_in_the_gallery_finds_itself_however_it_is_given(run, pairs):
    searcher = Searcher.open(run)
    path = pairs.image_paths[2]
    for image in (path, str(path), path.read_bytes(), Image.open(path), np.array(Image.open(path))):
        assert searcher.search(image=image, k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_k(run):
    searcher = Searcher.open(run)
    assert len(searcher.search("a red circle", k=2)) == 2
    assert len(searcher.search("a red circle", k=100)) == 4


def test_bad_queries_are_explained(run):
    searcher = Searcher.open(run)
    for arguments, message in [
        ({}, "needs text, an image, or both; got neither"),
        ({"text": "a", "k": 0}, "k must be"),
        ({"text": "a", "text_weight": 2}, "text_weight must be from 0 to 1; got 2"),
        ({"image": "gone.png"}, "gone.png"),
        ({"image": b"rubbish"}, "not an image"),
        ({"text": 5}, "text must be a string; got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            searcher.search(**arguments)


def test_html_shows_pictures_and_escapes_captions(model, pairs):
    pairs.captions[0] = ["<script>alert('红')</script>"]
    items = [
        {"id": key, "image": str(path), "captions": captions}
        for key, path, captions in zip(pairs.ids, pairs.image_paths, pairs.captions, strict=True)
    ]
    index = BruteForceIndex.build(model.encode_images(pairs.image_paths), pairs.ids)
    pairs.image_paths[1].unlink()  # a picture that is gone leaves a grey card
    del items[2]["image"]  # and so does an item without one
    items[3]["captions"] = []
    results = Searcher(model, index, items).search("a red circle")
    page = results._repr_html_()
    assert len(repr(results).splitlines()) == 4
    assert page.count("data:image/jpeg;base64,") == 4
    assert "<script>" not in page and "&lt;script&gt;" in page and "红" in page


def test_a_card_without_a_picture_shows_the_first_caption():
    def inked_rows(*captions, image=None):
        pixels = np.asarray(card({"image": image, "captions": list(captions)}).convert("L"))
        assert pixels.shape == (THUMBNAIL, THUMBNAIL)
        return (pixels < 128).any(axis=1)

    assert not inked_rows().any() and not inked_rows("").any()
    one, many = inked_rows("red", "not shown"), inked_rows("a red circle " * 50)
    assert one[:40].any() and not one[40:].any() and many[-40:].any()
    assert (inked_rows("红色的圆" * 12) != one).any()
    for strange in ("two\nlines\t\0", "\udc80", "🦊", "x" * 10_000, " \u2028 "):
        inked_rows(strange)
    assert inked_rows("red", image="gone.png")[THUMBNAIL // 2 :].any()  # "file not found"


def test_gallery_picture(run, pairs, tmp_path):
    searcher = Searcher.open(run)
    path = pairs.image_paths[0]
    rows = [("a red circle", searcher.search("a red circle", k=3)), ("图", searcher.search("图"))]
    right = searcher.search("a red circle", k=1)[0].id
    draw_gallery(rows, tmp_path / "gallery.png", [right, None])
    sheet = np.asarray(Image.open(tmp_path / "gallery.png"))
    assert sheet.shape[1] > 4 * THUMBNAIL and sheet.shape[0] > 2 * THUMBNAIL
    assert (sheet == [0, 128, 0]).all(axis=-1).any()  # the green frame
    assert path.exists() and not (tmp_path / "gallery.png.partial").exists()


def test_a_run_whose_model_changed_is_refused(run, model):
    model.text_tower.get_layer("projection").bias.assign(np.ones(4))
    model.save(run / "model.keras")
    with pytest.raises(ValueError, match="made by another model .* `mmret embed`"):
        Searcher.open(run)


def test_parts_that_do_not_fit_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="width 3, and the model makes width 4"):
        Searcher(model, BruteForceIndex.build(np.eye(3), ["a", "b", "c"]), [])
    with pytest.raises(ValueError, match="4 ids of the index have no item, first 'a'"):
        Searcher(model, BruteForceIndex.build(np.eye(4), list("abcd")), [])
    with pytest.raises(ValueError, match="no run at"):
        Searcher.open(tmp_path / "gone")


def test_conditions_and_exclusions_reach_the_index(model, pairs):
    vectors = model.encode_images(pairs.image_paths)
    attributes = [{"price": 10 * row} for row in range(4)]
    index = BruteForceIndex.build(vectors, pairs.ids, attributes=attributes)
    items = [
        {"id": key, "image": None, "captions": [], "attributes": each}
        for key, each in zip(pairs.ids, attributes, strict=True)
    ]
    searcher = Searcher(model, index, items)
    dear = searcher.search("a red circle", where={"price": {"$gte": 20}})
    assert sorted(result.id for result in dear) == sorted(pairs.ids[2:])
    others = searcher.search("a red circle", exclude_ids=pairs.ids[1:])
    assert [result.id for result in others] == pairs.ids[:1]
    with pytest.raises(ValueError, match="no item has the attribute 'prise'"):
        searcher.search("a red circle", where={"prise": 5})


def test_an_item_that_the_searcher_does_not_know_yet(model, pairs):
    vectors = model.encode_images(pairs.image_paths)
    index = BruteForceIndex.build(vectors, pairs.ids)
    items = [{"id": key, "image": None, "captions": []} for key in pairs.ids]
    searcher = Searcher(model, index, items)
    index.upsert(["new"], vectors[:1])
    with pytest.raises(ValueError, match="'new', which came after this searcher: put its record"):
        searcher.search("a red circle")
    searcher.items["new"] = {"id": "new", "image": None, "captions": []}
    assert "new" in [result.id for result in searcher.search("a red circle")]

"""Items with an image, several, none, or no text: loaded, trained on, embedded and searched."""

from pathlib import Path

import numpy as np
import pytest
from conftest import draw, load_quietly, make_backbone, make_mixed_collection, write_jsonl

from mmret_tf import embeddings
from mmret_tf.config import TrainConfig
from mmret_tf.datasets import PairDataset, load_pairs
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint
from mmret_tf.fused_encoder import FusedEncoder, load_fused_encoder
from mmret_tf.fusion import GatedFusion, WeightedSum
from mmret_tf.index import build_index
from mmret_tf.items import ItemDataset, caption_items, load_items
from mmret_tf.measuring import evaluate
from mmret_tf.searcher import Searcher
from mmret_tf.training import load_splits, train


@pytest.fixture
def folder(tmp_path):
    return make_mixed_collection(tmp_path / "mixed")


@pytest.fixture
def items(folder):
    return load_quietly(folder, loader=load_items)


def names(items):
    return [[path.name for path in paths] for paths in items.image_paths]


def test_items_of_every_kind_are_loaded(folder):
    with pytest.warns(UserWarning, match="3 of 9 entries were put aside") as caught:
        items = load_items(folder)
    assert caught[0].filename == __file__
    assert items.ids == ["red.png", "two", "note", "alone.png", "dev.png", "dev note"]
    assert names(items) == [
        ["red.png"], ["blue.png", "navy.png"], [], ["alone.png"], ["dev.png"], []
    ]  # fmt: skip
    assert items.captions == [
        ["a red circle", "红色的圆"],
        ["a blue square"],
        ["a red circle", "红色的圆"],
        [],
        ["蓝色的方块"],
        ["a blue square"],
    ]
    assert items.attributes[2] == {"kind": "note"}
    assert items.splits == ["train"] * 4 + ["dev"] * 2
    reasons = dict(items.quarantined)
    assert reasons["gone.png"] == "the image does not exist (captions.jsonl line 5)"
    assert reasons["empty.png"] == "empty file" and "truncated" in reasons["cut.jpg"]
    assert repr(items) == (
        "ItemDataset(6 items, 5 images, 7 captions, splits: train (4), dev (2), 3 put aside)"
    )
    assert not items.is_plain and items.split("val").ids == ["dev.png", "dev note"]
    assert load_items(folder, "validation").ids == ["dev.png", "dev note"]
    with pytest.raises(ValueError, match="no items of split 'test'; .* train"):
        items.split("test")
    with pytest.raises(ValueError, match="has no items of split 'test'; it has train"):
        load_items(folder, "test")


def test_pairs_are_a_row_an_image_and_a_group_an_item(folder, items):
    pairs = load_quietly(folder)
    for each in (pairs, items.pairs()):
        assert each.ids == ["red.png", "two#0", "two#1", "dev.png"]
        assert [path.name for path in each.image_paths] == [
            "red.png", "blue.png", "navy.png", "dev.png"
        ]  # fmt: skip
        assert each.captions[1] == each.captions[2] == ["a blue square"]
        assert each.groups == [0, 1, 1, 2]
        assert each.splits == ["train", "train", "train", "dev"]
    aside = dict(pairs.quarantined)
    assert len(aside) == len(pairs.quarantined) == 6
    assert aside["alone.png"] == "image without a caption"
    assert aside["captions.jsonl line 3"].startswith("text without an image: load_items takes it")
    assert items.split("train").pairs().groups == [0, 1, 1]
    with pytest.raises(ValueError, match="none of the 2 items has both an image and a caption"):
        items.subset([2, 3]).pairs()


def test_plain_collections_are_the_same_either_way():
    items, pairs = load_items("scenes", "dev", 3, 1), load_pairs("scenes", "dev", 3, 1)
    assert items.is_plain and items.pairs() == pairs


def test_rows_of_one_caption_are_joined_and_files_count_once(tmp_path):
    for name in "abcd":
        draw(tmp_path / f"{name}.png", ord(name))
    draw(tmp_path.parent / "outside.png")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "outside.png")
    write_jsonl(
        tmp_path,
        {"id": "text", "caption": "one"},
        {"id": "text", "caption": "two"},
        {"id": "text", "captions": ["three"]},
        {"id": "x", "images": ["a.png", "./a.png", "b.png", "link.png"], "caption": "x"},
        {"id": "x#1", "image": "c.png", "caption": "its name is that of an image of x"},
        {"id": "y", "images": ["b.png", "d.png"], "captions": []},
        {"id": "nothing", "captions": [" "]},
    )
    items = load_quietly(tmp_path, loader=load_items)
    assert items.ids == ["text", "x", "y"]
    assert items.captions == [["one", "two"], ["x"], []]
    assert names(items) == [[], ["a.png", "b.png"], ["d.png"]]
    assert items.quarantined == [
        ("captions.jsonl line 7", "empty caption"),
        ("captions.jsonl line 3", "duplicate id or image: 'text' (captions.jsonl line 3)"),
        ("a.png", "duplicate id or image: 'x' (captions.jsonl line 4)"),
        ("link.png", "leads outside the collection (captions.jsonl line 4)"),
        ("c.png", "duplicate id or image: 'x#1' (captions.jsonl line 5)"),
        ("b.png", "duplicate id or image: 'y' (captions.jsonl line 6)"),
        ("captions.jsonl line 7", "neither an image nor a caption"),
    ]


def test_text_alone_is_a_collection_for_load_items_only(tmp_path):
    write_jsonl(tmp_path, {"id": "a", "caption": "x"}, {"id": "b", "caption": "y"})
    assert load_items(tmp_path).ids == ["a", "b"]
    with pytest.raises(ValueError, match="names 0 images; 2 entries .* load_items takes it"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["x", "x"]}, "ids must be unique; 'x' comes more than once"),
        ({"captions": [["a"], []]}, "every item must have an image or a caption; 'y' has none"),
        ({"splits": ["dev"]}, "one entry an item; got 2, 2, 2, 2, 1"),
        ({"captions": [["a"], "b"]}, "images and captions of an item must be lists; 'y' has one"),
        ({"image_paths": [Path("x.png"), []]}, "must be lists; 'x' has one"),
    ],
)
def test_an_item_dataset_is_consistent(change, message):
    good = dict(ids=["x", "y"], image_paths=[["x.png"], []], captions=[[], ["b"]])
    with pytest.raises(ValueError, match=message):
        ItemDataset(**good | dict(attributes=[{}, {}], splits=["", ""]) | change)


def test_each_caption_is_an_item_once(items):
    captions = caption_items(items.pairs())
    assert captions.ids == ["red.png#0", "red.png#1", "two#0#0", "dev.png#0"]
    assert captions.captions == [["a red circle"], ["红色的圆"], ["a blue square"], ["蓝色的方块"]]
    assert captions.image_paths == [[]] * 4 and captions.splits == ["train"] * 3 + ["dev"]
    assert captions.quarantined == items.quarantined


def search_by_hand(embeddings, ids, query):
    query = query / np.linalg.norm(query)
    scores = embeddings @ query
    order = np.argsort(-scores, kind="stable")
    return [ids[row] for row in order], scores[order]


@pytest.mark.parametrize("kind", ["mixed", "images", "captions"])
def test_every_kind_of_query_finds_every_kind_of_item(kind, items, model, tmp_path):
    gallery = {
        "mixed": items,
        "images": items.subset([0, 1, 3, 4]),
        "captions": caption_items(items.pairs()),
    }[kind]
    store = EmbeddingStore.export(model, gallery, tmp_path / "store")
    expected = []
    for paths, captions in zip(gallery.image_paths, gallery.captions, strict=True):
        rows = model.encode_images(paths) if paths else model.encode_texts(captions)
        expected.append(rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)))
    expected = np.array(expected)
    assert np.allclose(store.embeddings, expected, atol=1e-5)

    searcher = Searcher(model, build_index(store.embeddings, store.ids), store.items)
    text, picture = "红色的圆", items.image_paths[1][1]
    by_text, by_image = model.encode_texts([text])[0], model.encode_images([picture])[0]
    for query, vector in [
        ({"text": text}, by_text),
        ({"image": picture}, by_image),
        ({"text": text, "image": picture, "text_weight": 0.3}, 0.3 * by_text + 0.7 * by_image),
    ]:
        results = searcher.search(**query)
        ids, scores = search_by_hand(expected, gallery.ids, vector)
        found = np.array([result.score for result in results])
        assert np.allclose(found, scores, atol=1e-5)
        # Items with the same texts tie.
        assert {r.id: round(r.score, 4) for r in results} == pytest.approx(
            dict(zip(ids, scores, strict=True)), abs=1e-4
        )
        assert len(repr(results).splitlines()) == len(gallery)
        assert results._repr_html_().count("data:image/jpeg") == len(gallery)


def test_a_fused_encoder_embeds_images_and_texts_of_an_item(items, model, tmp_path):
    fused = FusedEncoder(model, GatedFusion(model.embedding_dim))
    fused.save(tmp_path / "fusion.keras")
    for each in (fused, load_fused_encoder(tmp_path / "fusion.keras")):
        store = EmbeddingStore.export(each, items, tmp_path / "store")
        expected = fused.encode_items(items.image_paths, items.captions)
        np.testing.assert_allclose(store.embeddings, expected, atol=1e-5)
        assert store.fingerprint == model_fingerprint(model)


def test_fusions_that_differ_in_configuration_alone_share_no_chunks(items, model):
    digests = set()
    for share in (0.3, 0.4):
        fused = FusedEncoder(model, WeightedSum({"image": share, "text": 1 - share}, learned=False))
        rows = embeddings._Rows(fused, items, None)
        digests.add(rows.digest(slice(0, 6)))
        assert rows.fingerprint == model_fingerprint(model)
    assert len(digests) == 2


def test_such_a_collection_can_be_trained_on(folder, tmp_path):
    make_backbone().save(tmp_path / "backbone.keras")
    config = TrainConfig(
        data=str(folder),
        backbone=str(tmp_path / "backbone.keras"),
        image_size=16,
        embedding_dim=8,
        word_dim=8,
        units=8,
        epochs=1,
        batch_size=4,
    )
    with pytest.warns(UserWarning, match="3 of 9 entries were put aside"):
        report = train(config, tmp_path / "run")
    assert report["train_images"] == 3 and report["development_images"] == 1
    assert report["development"]["images"] == 1 and len(report["quarantined"]) == 3
    store = EmbeddingStore.open(tmp_path / "run" / "embeddings")
    assert store.ids == load_quietly(folder, loader=load_items).ids
    build_index(store.embeddings, store.ids).save(tmp_path / "run" / "index")
    results = Searcher.open(tmp_path / "run").search("a red circle")
    assert len(results) == 6


def test_without_pairs_there_is_no_training_and_without_pairs_in_dev_no_measure(tmp_path):
    draw(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "caption": "a dog", "split": "train"},
        {"id": "note", "caption": "a cat", "split": "dev"},
    ]
    write_jsonl(tmp_path, *rows)
    training, development, gallery = load_splits(TrainConfig(data=str(tmp_path)))
    assert training.ids == ["a.png"] and development is None and gallery.ids == ["a.png", "note"]
    write_jsonl(tmp_path, rows[0] | {"split": "dev"}, rows[1] | {"split": "train"})
    with pytest.raises(ValueError, match="has both an image and a caption"):
        load_splits(TrainConfig(data=str(tmp_path)))


def test_images_of_one_item_are_measured_as_one(items, model):
    pairs = items.pairs()
    metrics = evaluate(model, pairs)
    assert (metrics["images"], metrics["captions"]) == (3, 4)
    # As single images they would have answered for each other: one of two is always wrong.
    single = PairDataset(**{**vars(pairs), "groups": None})
    assert evaluate(model, single)["images"] == 4
    doubled = PairDataset(
        ["a#0", "a#1"], [pairs.image_paths[0]] * 2, [["a red circle"]] * 2, [{}] * 2, [""] * 2
    )
    assert evaluate(model, doubled)["t2i_R@1"] == 0
    doubled.groups = [0, 0]
    assert evaluate(model, doubled)["t2i_R@1"] == 1

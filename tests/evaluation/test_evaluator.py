"""Evaluation of an encoder: items with several images, languages, folds, other modalities."""

import numpy as np
import pytest

from mmret_tf.data import Collection
from mmret_tf.data.modalities import MODALITIES, Modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import (
    embed_pairs,
    evaluate,
    evaluate_folds,
    evaluate_retrieval,
    measure,
    measure_parts,
    pairs_of,
)


class Vectors:
    """An encoder that looks up the vector of each source by its content."""

    def __init__(self, **vectors):
        self.vectors = vectors

    def encode(self, modality, sources):
        return np.array([self.vectors[source.read().decode()] for source in sources], np.float32)


def make_pairs(images, captions, **settings):
    """Images, given as their encoded content, with their captions."""
    sources = {"image": [[image.encode()] for image in images], "text": captions}
    return Pairs(list(images), sources, **settings)


def test_images_of_one_item_count_as_one_by_their_mean():
    encoder = Vectors(front=[1, 0], back=[0, 1], shoe=[0.6, 0.8], hat=[-1, 0], cap=[0, -1])
    pairs = make_pairs(
        ["front", "hat", "back"], [["shoe"], ["hat", "cap"], ["shoe"]], groups=[7, 3, 7]
    )
    images, texts, items = embed_pairs(encoder, pairs)
    np.testing.assert_allclose(images, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-6)
    np.testing.assert_allclose(texts, [[0.6, 0.8], [-1, 0], [0, -1]], atol=1e-6)
    assert items.ids == ["front", "hat"] and items.caption_to_image().tolist() == [0, 1, 1]
    metrics = evaluate(encoder, pairs)
    assert (metrics["images"], metrics["captions"], metrics["t2i_R@1"]) == (2, 3, 1)


def test_images_of_one_item_do_not_answer_for_each_other():
    encoder = Vectors(a=[1, 0], b=[1, 0], red=[1, 0])
    for groups, recall in ((None, 0), ([0, 0], 1)):
        metrics = evaluate(encoder, make_pairs("ab", [["red"], ["red"]], groups=groups))
        assert metrics["t2i_R@1"] == recall


def test_a_model_is_evaluated_by_its_embeddings():
    random = np.random.default_rng(0)
    names = ["a", "b", "c", "red", "blue", "green", "circle"]
    encoder = Vectors(**{name: random.normal(size=4) for name in names})
    pairs = make_pairs("abc", [["red", "blue"], ["green"], ["circle"]])
    images, texts = (
        np.array([encoder.vectors[each] for each in part]) for part in (names[:3], names[3:])
    )
    metrics = evaluate(encoder, pairs)
    expected = evaluate_retrieval(images, texts, [0, 0, 1, 2])
    assert {name: metrics[name] for name in expected} == expected
    assert (metrics["images"], metrics["captions"], metrics["folds"]) == (3, 4, 1)


def test_both_languages_are_measured_apart():
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(6, 4)), random.normal(size=(12, 4))
    pairs = make_pairs("abcdef", [["a circle", "一个圆"]] * 6)
    metrics, rows = measure(images, texts, pairs), np.arange(6)
    assert metrics["english"] == evaluate_retrieval(images, texts[0::2], rows)
    assert metrics["chinese"] == evaluate_retrieval(images, texts[1::2], rows)
    assert set(metrics["intervals"]) == {
        f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)
    }
    for captions in (["a circle", "red"], ["一个圆", "red 圆"]):  # one language
        assert not {"english", "chinese"} & set(
            measure(images, texts, make_pairs("abcdef", [captions] * 6))
        )


def test_folds_give_means_only():
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(6, 4)), random.normal(size=(6, 4))
    metrics = measure(images, texts, make_pairs("abcdef", [["red"], ["红"]] * 3), folds=3)
    expected = evaluate_folds(images, texts, range(6), folds=3)
    assert metrics == {"images": 6, "captions": 6, "folds": 3} | expected
    with pytest.raises(ValueError, match="6 images must be a multiple of folds; got 4"):
        measure(images, texts, make_pairs("abcdef", [["red"]] * 6), folds=4)


def test_other_modalities_are_measured_under_their_names(monkeypatch):
    monkeypatch.setitem(MODALITIES, "number", Modality("number", (".num",), int, None))
    pairs = Pairs(["1", "2"], {"number": [[b"1"], [b"2"]], "text": [["one", "一"], ["two"]]})
    encoder = Vectors(**{"1": [1, 0], "2": [0, 1]}, one=[1, 0], two=[0, 1], 一=[0, 1])
    metrics = evaluate(encoder, pairs)
    assert (metrics["number"], metrics["captions"]) == (2, 3)
    assert metrics["text_to_number_R@1"] == 2 / 3 and metrics["number_to_text_R@1"] == 0.5
    assert metrics["english"]["text_to_number_R@1"] == 1
    swapped = Pairs(["1", "2"], {"text": [["one"], ["two"]], "number": [[b"1"], [b"2"]]})
    metrics = evaluate(encoder, swapped, folds=2)
    assert metrics["text_to_number_R@1"] == 1 and metrics["captions"] == metrics["number"] == 2


def test_every_two_modalities_that_items_have_are_ranked_in_both_directions():
    encoder = Vectors(a=[1, 0], b=[0, 1], red=[1, 0], blue=[0, 1], low=[0, 1], high=[1, 0])
    encoder.modalities = ["text", "image", "audio", "video"]
    sources = {
        "image": [[b"a"], [b"b"], []],
        "audio": [[b"low"], [b"high"], [b"low"]],  # exchanged: right for no image
        "text": [["red"], ["blue"], ["blue"]],
    }
    parts = pairs_of(encoder, Collection(["0", "1", "2"], sources))
    names = [["image", "audio"], ["image", "text"], ["audio", "text"]]
    assert [list(part.modalities) for part in parts] == names
    metrics = measure_parts([embed_pairs(encoder, part) for part in parts])
    assert list(metrics) == ["image_and_audio", "image_and_text", "audio_and_text"]
    assert metrics["image_and_text"]["t2i_R@1"] == metrics["image_and_text"]["i2t_R@1"] == 1
    of_sounds = metrics["image_and_audio"]
    assert of_sounds["image_to_audio_R@1"] == of_sounds["audio_to_image_R@1"] == 0
    assert (of_sounds["images"], of_sounds["audio"]) == (2, 2)

    del sources["audio"]
    (part,) = pairs_of(encoder, Collection(["0", "1", "2"], sources))
    alone = measure_parts([embed_pairs(encoder, part)])
    assert alone["t2i_R@1"] == 1  # without the name of the pair
    with pytest.raises(ValueError, match="no item has two of image, audio, video, text"):
        pairs_of(encoder, Collection(["0"], {"text": [["red"]]}))

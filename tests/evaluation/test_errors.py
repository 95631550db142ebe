"""Error analysis: recall of kinds of queries, hubs and confusions, beside counts by brute force."""

import json

import numpy as np
import pytest

import mmret_tf as mm
from mmret_tf.data.drawn.scenes import draw_scenes
from mmret_tf.data.modalities import MODALITIES, Modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import analyse_errors, errors, rank_all
from mmret_tf.evaluation.errors import find_confusions, find_hubs, recall_by, wilson_interval
from mmret_tf.evaluation.wording import (
    by_language,
    count_phrases,
    count_words,
    rarest_ranks,
    vocabulary_of,
)


def make_pairs(*captions):
    """Images "0", "1", ... with the captions of each."""
    names = [str(number) for number in range(len(captions))]
    sources = {"image": [[f"{name}.png"] for name in names], "text": captions}
    return Pairs(names, sources)


def random_case(seed, n_images=12, per_image=3, dim=4):
    """Embeddings of images and of captions near them, and their pairs."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(n_images, dim))
    texts = np.repeat(images, per_image, axis=0) + random.normal(size=(n_images * per_image, dim))
    return images, texts, make_pairs(*[["a red dog", "two cats", "雪"]] * n_images)


def test_words_are_counted_as_the_text_tower_counts_them(monkeypatch):
    monkeypatch.setattr("mmret_tf.evaluation.wording.CAPTIONS_AT_ONCE", 2)
    assert count_words(["A dog's ball!", "红色的圆 T恤", "...", "one"]).tolist() == [3, 6, 0, 1]


@pytest.mark.parametrize(
    ("caption", "n"),
    [
        ("A black dog is running after a white dog in the snow .", 3),
        ("two dogs", 1),
        ("a man, a woman and their dog", 3),
        ("a dog on the left", 1),
        ("Ａ ｄｏｇ！", 1),
        ("of the", 0),
        ("...", 0),
        ("一只黑色的狗和一只白色的猫", 2),
        ("红色的大圆形在蓝色的小正方形的上面", 2),
        ("一个三角形", 1),  # 三 is no number here
        ("桌子、椅子", 2),
    ],
)
def test_phrases_are_what_stands_between_function_words(caption, n):
    assert count_phrases([caption]).tolist() == [n]


def test_the_phrases_of_drawn_scenes_are_their_objects():
    scenes = draw_scenes("dev", size=300)
    objects = np.repeat([len(scene.objects) for scene in scenes], 4)
    captions = [caption for scene in scenes for caption in scene.captions]
    assert len(captions) == 1200 and (count_phrases(captions) == objects).all()


def test_the_rarest_word_is_the_last_in_the_vocabulary():
    vocabulary = ["a", "red", "色", "红"]
    captions = ["a a", "red a", "红色", "a zebra", "!"]
    assert rarest_ranks(captions, vocabulary).tolist() == [1, 2, 4, 0, 0]


def test_the_vocabulary_of_a_model_is_sorted_by_frequency_and_may_be_missing():
    text = mm.TextPreprocessor()
    text.adapt(["dog dog dog cat cat 雪"])

    class Model:
        towers = {"text": type("Tower", (), {"text_preprocessor": text})}

    assert vocabulary_of(Model) == ["dog", "cat", "雪"]
    Model.towers = {"text": type("OtherTower", (), {})}
    assert vocabulary_of(Model) == []
    Model.towers = {}
    assert vocabulary_of(Model) == []


def test_languages_are_apart_where_both_occur():
    assert {name: rows.tolist() for name, rows in by_language(["a", "狗", "T恤"]).items()} == {
        "english": [True, False, False],
        "chinese": [False, True, True],
    }
    assert [*by_language(["a", "b"])] == ["all"] == [*by_language(["狗"])]


def test_wilson_intervals():
    low, high = wilson_interval(np.array([0, 5, 10, 0]), np.array([10, 10, 10, 1]))
    assert low == pytest.approx([0, 0.2366, 0.7225, 0], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.7634, 1, 0.7935], abs=1e-4)


def test_few_values_have_a_bin_each_and_the_one_apart_comes_last():
    values, ranks = np.array([3, 1, 0, 1, 1, 3]), np.array([1, 1, 99, 5, 11, 2])
    bins = recall_by(values, ranks, apart=0)
    seen = [(b["from"], b["to"], b["queries"], b["R@1"], b["R@10"]) for b in bins]
    assert seen == [(1, 1, 3, 0.3333, 0.6667), (3, 3, 2, 0.5, 1), (0, 0, 1, 0, 0)]
    assert recall_by(np.zeros(2, int), ranks[:2], apart=0)[0]["queries"] == 2
    assert recall_by(values, ranks)[0]["from"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_many_values_have_bins_of_similar_size(seed):
    random = np.random.default_rng(seed)
    values, ranks = random.poisson(12, 1000), random.integers(1, 30, 1000)
    bins = recall_by(values, ranks)
    assert len(bins) == 5 and min(each["queries"] for each in bins) > 100
    for one, following in zip(bins, bins[1:], strict=False):
        assert one["to"] < following["from"]
    for one in bins:
        chosen = ranks[(values >= one["from"]) & (values <= one["to"])]
        assert one["queries"] == len(chosen)
        assert one["R@10"] == pytest.approx(np.mean(chosen <= 10), abs=1e-4)
        assert one["R@10_interval"][0] < one["R@10"] < one["R@10_interval"][1]


def test_hubs_by_hand():
    # Image 0 is first for all but the last query, and image 3 is never found.
    rows = np.array([[0, 1], [0, 1], [0, 2], [0, 1], [2, 0]])
    hubs = find_hubs(rows, np.array([0, 1, 2, 3, 2]), list("abcd"))
    assert hubs["largest"][:2] == [
        {"id": "a", "first": 4, "share": 0.8, "right": 1},
        {"id": "c", "first": 1, "share": 0.2, "right": 1},
    ]
    # Occurrences 4, 0, 1, 0: mean 1.25; then 5, 3, 2, 0.
    assert hubs["first"]["mean"] == 1.25 and hubs["first"]["never"] == 2
    assert hubs["first"]["histogram"] == [2, 1, 0, 1]
    deviations = np.array([2.75, -1.25, -0.25, -1.25])
    skewness = np.mean(deviations**3) / np.mean(deviations**2) ** 1.5
    assert hubs["first"]["skewness"] == pytest.approx(skewness, abs=1e-4)
    assert hubs["first_10"]["histogram"] == [1, 0, 2, 1] and hubs["first_10"]["never"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_hubs_and_confusions_are_those_of_comparing_all(seed, monkeypatch):
    monkeypatch.setattr(errors, "K", 12)  # all images
    monkeypatch.setattr(errors, "SHOWN_CONFUSIONS", 1000)
    images, texts, pairs = random_case(seed)
    found = analyse_errors(images, texts, pairs)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, images)]
    scores, image_of = unit[0] @ unit[1].T, pairs.caption_to_image()
    first = np.bincount(scores.argmax(axis=1), minlength=12)
    largest = found["hubs"]["largest"][0]
    assert largest["first"] == first.max() and first[int(largest["id"])] == first.max()

    expected = {}
    for right in range(12):
        mine = np.flatnonzero(image_of == right)
        for wrong in {*range(12)} - {right}:
            above = [row for row in mine if scores[row, wrong] > scores[row, right]]
            if len(above) > len(mine) / 2:
                ranks = [1 + np.sum(scores[row] > scores[row, right]) for row in above]
                expected[str(right), str(wrong)] = sum(1 / rank for rank in ranks)
    costs = {(each["right"], each["wrong"]): each["cost"] for each in found["confusions"]}
    assert len(costs) == len(found["confusions"]) > 3
    assert costs == pytest.approx(expected, abs=1e-4)
    assert [*costs.values()] == sorted(costs.values(), reverse=True)


def test_the_costs_add_up_to_the_reciprocal_rank_that_is_lost(monkeypatch):
    """With one caption an image, every wrong image above is above for most captions."""
    monkeypatch.setattr(errors, "SHOWN_CONFUSIONS", 1000)
    random = np.random.default_rng(0)
    images = random.normal(size=(10, 3))
    texts = images + random.normal(size=(10, 3))
    found = analyse_errors(images, texts, make_pairs(*[["a"]] * 10))
    lost = np.sum(1 - 1 / rank_all(images, texts, np.arange(10)).image_ranks)
    assert sum(each["cost"] for each in found["confusions"]) == pytest.approx(lost, abs=1e-3)
    assert lost > 1


def test_a_confusion_has_its_captions_the_most_expensive_first():
    pairs = make_pairs(["one", "两只狗", "three"], ["wrong"], ["other"])
    # The wrong image is above for the first two captions, the other one for the first alone.
    rows = np.array([[1, 2, 0], [1, 0, 2], [0, 1, 2], [1, 0, 2], [2, 0, 1]])
    scores = np.tile([0.9, 0.8, 0.7], (5, 1))
    [confusion] = find_confusions(rows, scores, np.array([3, 2, 1, 1, 1]), pairs)
    assert confusion == {
        "right": "0",
        "wrong": "1",
        "cost": 0.8333,
        "above": 2,
        "of": 3,
        "wrong_caption": "wrong",
        "captions": [
            {"text": "两只狗", "wrong_rank": 1, "right_rank": 2},
            {"text": "one", "wrong_rank": 1, "right_rank": 3},
        ],
    }


def test_both_languages_are_analysed_apart():
    images, texts, pairs = random_case(0)
    found = analyse_errors(images, texts, pairs, ["a", "dog", "雪"])
    english, chinese = found["recall"]["english"], found["recall"]["chinese"]
    image_of = pairs.caption_to_image()
    is_chinese = np.arange(36) % 3 == 2
    ranks = rank_all(images, texts[is_chinese], image_of[is_chinese])
    [one] = chinese["text_to_image"]["words"]
    assert (one["from"], one["queries"]) == (1, 12)
    assert one["R@1"] == pytest.approx(np.mean(ranks.image_ranks == 1), abs=1e-4)
    [one] = chinese["image_to_text"]["phrases"]
    assert one["R@1"] == pytest.approx(np.mean(ranks.caption_ranks == 1), abs=1e-4)
    words = english["text_to_image"]["words"]
    assert [(each["from"], each["queries"]) for each in words] == [(2, 12), (3, 12)]
    [unknown] = english["text_to_image"]["vocabulary_rank"]  # red, two and cats
    assert (unknown["from"], unknown["queries"]) == (0, 24)
    [known] = chinese["text_to_image"]["vocabulary_rank"]
    assert (known["from"], known["queries"]) == (3, 12)
    assert len(json.dumps(found)) < 16_000


def test_one_image_is_always_right():
    found = analyse_errors(np.eye(1), np.ones((2, 1)), make_pairs(["a dog", "a cat"]))
    assert found["confusions"] == []
    assert found["hubs"]["largest"] == [{"id": "0", "first": 2, "share": 1.0, "right": 2}]
    assert found["hubs"]["first"]["skewness"] == 0 and found["hubs"]["first"]["never"] == 0
    assert found["recall"]["all"]["text_to_image"]["phrases"][0]["R@1"] == 1


def test_a_collapsed_model_has_one_hub_and_confuses_all():
    found = analyse_errors(np.ones((20, 4)), np.ones((20, 4)), make_pairs(*[["a dog"]] * 20))
    assert found["hubs"]["largest"][0] == {"id": "0", "first": 20, "share": 1.0, "right": 1}
    assert found["hubs"]["first"]["never"] == 19 and found["hubs"]["first_10"]["never"] == 10
    assert found["hubs"]["first"]["skewness"] > 4
    assert found["recall"]["all"]["text_to_image"]["words"][0]["R@10"] == 0
    assert found["confusions"][0]["cost"] == 0.05 and len(found["confusions"]) == 10


def test_other_modalities_have_hubs_and_confusions(monkeypatch):
    sound = Modality("sound", (".wav",), lambda contents: None, MODALITIES["image"].thumbnail)
    monkeypatch.setitem(MODALITIES, "sound", sound)
    sources = {"image": [[b"a"], [b"b"]], "sound": [[b"x"], [b"y"]]}
    texts = np.array([[1, 0], [1, 0]])
    found = analyse_errors(np.eye(2), texts, Pairs(["a", "b"], sources), ["dog"])
    assert found["recall"] == {} and found["hubs"]["largest"][0]["first"] == 2
    [confusion] = found["confusions"]
    assert confusion["right"] == "b" and confusion["captions"][0]["text"] == ""
    sources = {"sound": sources["sound"], "text": [["a dog"], ["a cat"]]}
    found = analyse_errors(np.eye(2), texts, Pairs(["a", "b"], sources))
    assert [*found["recall"]["all"]] == ["text_to_sound", "sound_to_text"]

"""Pictures of an error analysis: they show its numbers, and are whole files."""

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.modalities import MODALITIES, Modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import analyse_errors, draw_errors
from mmret_tf.evaluation.plots import error_plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, by the name of their file."""
    saved = {}
    save = error_plots.save_figure

    def keep(figure, path):
        saved[path.name] = figure
        return save(figure, path)

    monkeypatch.setattr(error_plots, "save_figure", keep)
    return saved


def make_pairs(folder, *captions):
    paths = [folder / f"{number}.png" for number in range(len(captions))]
    for path in paths:
        Image.new("RGB", (30, 20), "orange").save(path)
    ids = [path.stem for path in paths]
    return Pairs(ids, {"image": [[path] for path in paths], "text": captions})


def size_of_png(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and len(image.convert("L").getcolors()) > 2
        return image.size


def bar_heights(axes):
    return [bar.get_height() for container in axes.containers[1::2] for bar in container]


def test_the_pictures_show_the_numbers(tmp_path, figures):
    pairs = make_pairs(tmp_path, ["red", "一只红色的狗"], ["a blue zebra", "蓝"])
    texts = np.array([[1, 0], [1, 0], [1, 0], [0, 1]])  # the third is wrong
    errors = analyse_errors(np.eye(2), texts, pairs, ["red", "blue", "a", "蓝"])
    drawn = draw_errors(errors, pairs, tmp_path / "plots")
    names = ["errors_recall.png", "errors_hubs.png", "errors_confusions.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        size_of_png(path)

    english, chinese = np.reshape(figures["errors_recall.png"].axes, (2, 4))
    titles = [*["text to image, English"] * 3, "image to text, English"]
    assert [axes.get_title() for axes in english] == titles
    assert bar_heights(english[0]) == [100, 0, 100, 100]  # R@1 of 1 and 3 words, then R@10
    ranks = [label.get_text() for label in english[2].get_xticklabels()]
    assert ranks == ["1\nn=1", "unknown\nn=1"]
    assert bar_heights(chinese[0]) == [100, 100, 100, 100]

    first, first_10, *pictures = figures["errors_hubs.png"].axes
    assert [bar.get_height() for bar in first.patches] == [0, 1, 1]  # 3 queries and 1
    assert "mean 2.0" in first.get_title() and "skewness 0.0; 0 images" in first.get_title()
    assert [bar.get_height() for bar in first_10.patches] == [0, 0, 0, 2]
    assert pictures[0].get_title() == "3 queries (75.0%)\nright for 2"


def test_confusions_are_a_row_each_with_their_captions(tmp_path, monkeypatch):
    lines = []
    draw_line = error_plots.draw_line
    monkeypatch.setattr(
        error_plots,
        "draw_line",
        lambda draw, place, text: lines.append((text, draw_line(draw, place, text))),
    )
    long = "一只黑色的狗" * 30
    pairs = make_pairs(tmp_path, ["a\x1b[2J bell"], [long], ["W" * 300])
    texts = np.eye(3)[[0, 0, 0]]
    errors = analyse_errors(np.eye(3), texts, pairs)
    *_, path = draw_errors(errors, pairs, tmp_path)
    width, height = size_of_png(path)
    assert height == 54 + 4 * 184  # images 1 and 2 below 0, and as high as each other
    words = [text for text, _ in lines]
    assert "above for 1 of 1 captions, cost 0.33" in words
    assert f"wrong 1, right 3:  {long[:50]}…" in words
    assert "the wrong image's own:  a [2J bell" in words
    assert all(right < width for text, right in lines if "W" not in text)


def test_a_model_without_errors_says_so(tmp_path):
    pairs = make_pairs(tmp_path, ["a dog"])
    errors = analyse_errors(np.eye(1), np.eye(1), pairs)
    for path in draw_errors(errors, pairs, tmp_path):
        size_of_png(path)


def test_without_texts_there_is_no_recall_by_wording(tmp_path, monkeypatch):
    sound = Modality("sound", (".wav",), lambda contents: None, MODALITIES["image"].thumbnail)
    monkeypatch.setitem(MODALITIES, "sound", sound)
    pairs = Pairs(["a", "b"], {"image": [[b"a"], [b"b"]], "sound": [[b"x"], [b"y"]]})
    errors = analyse_errors(np.eye(2), np.eye(2)[[0, 0]], pairs)
    names = [path.name for path in draw_errors(errors, pairs, tmp_path)]
    assert names == ["errors_hubs.png", "errors_confusions.png"]

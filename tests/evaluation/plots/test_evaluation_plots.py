"""Plots of runs and evaluations: they show the numbers given, and are whole PNG files."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation import (
    draw_curves,
    draw_evaluation,
    draw_recall_at_k,
    draw_similarities,
)
from mmret_tf.evaluation.plots import evaluation_plots

HISTORY = [
    {"loss": 4.0, "spread": 0.8, "val_i2t_R@1": 0.1, "val_t2i_R@10": 0.2},
    {"loss": 3.0, "spread": 0.9, "val_i2t_R@1": 0.15, "val_t2i_R@10": 0.4},
]

# Mathematics that matplotlib refuses to set, Chinese, a bell, half a character, nothing.
ODD_CAPTIONS = [
    r"from $5 to $\nonsense{",
    "一只黑色的狗在雪地里奔跑" * 9,
    "a\abell\nrings",
    "\ud800",
    "",
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = evaluation_plots.save_figure
    monkeypatch.setattr(
        evaluation_plots,
        "save_figure",
        lambda figure, path: saved.append(figure) or save(figure, path),
    )
    return saved


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (40, 30), path.stem).save(path)
    return paths


def make_pairs(pictures, captions):
    """Images "a", "b", "c" with one caption each."""
    sources = {"image": [[path] for path in pictures], "text": [[each] for each in captions]}
    return Pairs(["a", "b", "c"], sources)


def size_of_png(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 2  # not blank
        return image.size


def test_curves_show_the_loss_and_every_recall_by_epoch(tmp_path, figures):
    path = draw_curves(HISTORY, str(tmp_path / "curves.png"))
    assert path == tmp_path / "curves.png"
    assert size_of_png(path) == (1500, 600)
    left, right = figures[0].axes
    assert left.lines[0].get_xydata().tolist() == [[1, 4], [2, 3]]
    assert [line.get_label() for line in right.lines] == [
        "image to text, R@1",
        "text to image, R@10",
    ]
    assert np.allclose(right.lines[0].get_xydata(), [[1, 10], [2, 15]])
    assert np.allclose(right.lines[1].get_xydata(), [[1, 20], [2, 40]])
    assert left.get_xlabel() == right.get_xlabel() == "epoch"
    assert right.get_ylabel() == "recall (%)"


def test_curves_differ_without_colour(tmp_path, figures):
    names = [f"val_{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
    draw_curves([{"loss": 1.0} | dict.fromkeys(names, 0.5)], tmp_path / "curves.png")
    lines = figures[0].axes[1].lines
    assert len({line.get_marker() for line in lines}) == 6
    assert len({line.get_linestyle() for line in lines}) == 4


def test_curves_of_a_run_without_development_split_say_so(tmp_path, figures):
    size_of_png(draw_curves([{"loss": 1.0}], tmp_path / "curves.png"))
    assert [text.get_text() for text in figures[0].axes[1].texts] == ["not measured"]


@pytest.mark.parametrize(
    "history",
    [[], [{"spread": 0.5}], {"loss": 1}, [1], ["loss"], [{"loss": "1"}], [{"loss": 1.0, "a": [2]}]],
)
def test_curves_need_a_loss(tmp_path, history):
    with pytest.raises(ValueError, match="at least one epoch: its loss and other numbers"):
        draw_curves(history, tmp_path / "curves.png")


def test_similarities_are_cosines_with_images_as_rows(tmp_path, figures):
    images, texts = [[2, 0], [0, 3]], [[5, 0], [1, 1]]
    size_of_png(draw_similarities(images, texts, ["east", "north-east"], tmp_path / "cosines.png"))
    axes, colour_bar = figures[0].axes
    assert np.allclose(axes.images[0].get_array(), [[1, 0.5**0.5], [0, 0.5**0.5]])
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]  # marks of the right pairs
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1  east", "2  north-east"]
    assert colour_bar.get_ylabel() == "cosine"


@pytest.mark.parametrize("n", [1, 5, 32])
def test_similarities_leave_nothing_outside_the_picture(tmp_path, figures, n):
    draw_similarities(np.eye(n), np.eye(n), ["a long caption " * 9] * n, tmp_path / "cosines.png")
    (figure,) = figures
    drawn = figure.get_tightbbox()  # in inches
    assert drawn.x0 >= 0 and drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight()


def test_similarities_shorten_captions(tmp_path, figures):
    captions = ["two dogs play together in the deep snow", "雪" * 40, *ODD_CAPTIONS]
    path = draw_similarities(np.eye(7), np.eye(7), captions, tmp_path / "cosines.png")
    size_of_png(path)
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert labels[0] == "1  two dogs play together in the…"
    assert labels[1] == "2  " + "雪" * 15 + "…"
    assert labels[2] == r"3  from $5 to $\nonsense{"
    assert labels[4] == "5  a bell rings"


@pytest.mark.parametrize(
    ("images", "texts", "n_labels", "message"),
    [
        (np.eye(33), np.eye(33), 33, "at most 32 pairs .* got 33"),
        (np.eye(3), np.eye(3)[:2], 3, "one caption, embedded in the same width"),
        (np.eye(3), np.eye(3)[:, :2], 3, "one caption, embedded in the same width"),
        (np.eye(3), np.eye(3), 2, "and 2 labels"),
        (np.zeros((0, 3)), np.eye(3), 3, "image_embeddings must be a non-empty array"),
        (np.eye(3), np.full((3, 3), np.nan), 3, "text_embeddings holds NaN"),
    ],
)
def test_similarities_of_unequal_numbers_are_refused(tmp_path, images, texts, n_labels, message):
    with pytest.raises(ValueError, match=message):
        draw_similarities(images, texts, ["a"] * n_labels, tmp_path / "cosines.png")


def test_recall_at_k_is_drawn_until_everything_is_found(tmp_path, figures):
    path = draw_recall_at_k([1, 2, 2, 9], [1, 30], tmp_path / "recall.png")
    assert size_of_png(path) == (1050, 675)
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    from_images, from_texts = axes.lines
    assert (
        from_images.get_label() == "image to text (queries: 2)\nR@1 50.0 %, R@5 50.0 %, R@10 50.0 %"
    )
    assert (
        from_texts.get_label() == "text to image (queries: 4)\nR@1 25.0 %, R@5 75.0 %, R@10 100.0 %"
    )
    assert from_images.get_xdata().tolist() == from_texts.get_xdata().tolist() == [*range(1, 31)]
    assert from_images.get_ydata().tolist() == [50] * 29 + [100]
    assert from_texts.get_ydata().tolist() == [25] + [75] * 7 + [100] * 22
    assert [int(from_texts.get_xdata()[place]) for place in from_texts.get_markevery()] == [
        1,
        5,
        10,
    ]
    assert from_images.get_linestyle() != from_texts.get_linestyle()


def test_recall_at_k_reaches_10_even_where_all_are_first(tmp_path, figures):
    size_of_png(draw_recall_at_k([1], [1], tmp_path / "recall.png"))
    assert figures[0].axes[0].lines[0].get_xdata()[-1] == 10


def test_the_best_and_the_worst_captions_are_drawn_with_their_answers(
    tmp_path, monkeypatch, pictures
):
    """Three images at 0, 90 and 180 degrees. Caption 0 lies on its image, caption 1 is 10 degrees
    off its image, and caption 2 belongs to the image that is farthest from it."""
    galleries = {}
    monkeypatch.setattr(
        evaluation_plots,
        "draw_gallery",
        lambda rows, path, right_ids: galleries.update({path.name: (rows, right_ids)}),
    )
    monkeypatch.setattr(evaluation_plots, "SHOWN_QUERIES", 2)
    monkeypatch.setattr(evaluation_plots, "SHOWN_RESULTS", 2)
    pairs = make_pairs(pictures, ["on it", "near it", "wrong"])
    angles = np.radians([[0, 90, 180], [0, 100, -10]])
    images, texts = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    draw_evaluation(images, texts, pairs, tmp_path)
    rows, right_ids = galleries["best.png"]
    assert [title for title, _ in rows] == ["on it", "near it"] and right_ids == ["a", "b"]
    rows, right_ids = galleries["worst.png"]
    assert rows[0][0] == "wrong" and right_ids[0] == "c"
    found = [(each.rank, each.id, each.item["image"]) for each in rows[0][1]]
    assert found == [
        (rank, key, str(path)) for rank, key, path in zip((1, 2, 3), "abc", pictures, strict=True)
    ]
    scores = [each.score for each in rows[0][1]]
    assert scores == pytest.approx(np.cos(np.radians([10, 100, 190])), abs=1e-6)


def test_an_evaluation_is_drawn_whole(tmp_path, pictures):
    pairs = make_pairs(pictures, ODD_CAPTIONS[:3])
    drawn = draw_evaluation(np.eye(3), np.eye(3)[[0, 2, 1]], pairs, tmp_path / "plots", HISTORY)
    names = ["curves.png", "recall.png", "similarities.png", "best.png", "worst.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        size_of_png(path)
    assert len(draw_evaluation(np.eye(3), np.eye(3), pairs, tmp_path / "plots")) == 4  # no curves


def test_a_drawing_that_fails_leaves_no_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def full_disk(source, target):
        assert os.path.getsize(source) > 1000
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        draw_curves(HISTORY, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r'^pictures need .* pip install "mmret_tf\[notebooks\]"$'
    ):
        draw_curves(HISTORY, tmp_path / "curves.png")

"""Figures: Jupyter shows them, on a white page, and pictures are made small for it."""

import io

import numpy as np
from PIL import Image

from mmret_tf.evaluation.plots import shown
from mmret_tf.evaluation.plots.figures import new_figure


def test_jupyter_gets_a_white_picture():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.format == "PNG" and image.size == (200, 100)
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_a_character_without_a_glyph_does_not_stop_a_picture(recwarn):
    figure = new_figure(2, 1)
    figure.text(0.5, 0.5, "\U0001f980")
    assert len(figure._repr_png_()) > 100
    assert not recwarn.list


def test_shown_pictures_are_narrow_and_small(tmp_path):
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (300, 1200, 3), np.uint8)
    Image.fromarray(noise).save(path)
    picture = shown(path, width=400)
    assert picture.size == (400, 100)
    assert picture.mode == "P"  # a byte a pixel


def test_figures_become_pictures():
    assert shown(new_figure(2, 1), width=100).size == (100, 50)

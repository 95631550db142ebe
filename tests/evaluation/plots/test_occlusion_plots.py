"""Pictures of occlusion: the map lies on the picture, and each word has its bar."""

import numpy as np
import pytest
from drawn_texts import check_layout, texts_of

from mmret_tf.evaluation.plots import draw_occlusion, draw_word_drops

DROPS = np.zeros((6, 8))
DROPS[1, 2], DROPS[4, 5] = 0.4, -0.2


@pytest.mark.parametrize("picture", [np.full((6, 8, 3), 200), np.full((6, 8), 90.0)])
def test_the_map_lies_on_the_picture(picture):
    figure = draw_occlusion(picture, DROPS, "a red circle 红色的圆 $\\nonsense{")
    check_layout(figure)
    left, right, _ = figure.axes
    assert np.array_equal(left.images[0].get_array(), picture)
    grey, heat = right.images
    assert grey.get_array().shape == (6, 8)
    assert np.array_equal(heat.get_array(), DROPS)
    assert heat.get_clim() == (-0.4, 0.4)  # 0 is in the middle of the colours
    assert np.argmax(heat.get_alpha()) == 8 + 2 and heat.get_alpha()[0, 0] == 0
    said = [text.get_text() for text in texts_of(figure)]
    assert {"picture 图像", "drop of the cosine 余弦的下降"} <= set(said)


def test_a_picture_without_any_drop_is_drawn():
    check_layout(draw_occlusion(np.zeros((4, 4)), np.zeros((4, 4))))


def test_drops_of_another_picture_are_refused():
    with pytest.raises(ValueError, match=r"drops must be \(6, 8\), as the picture; got \(4, 4\)"):
        draw_occlusion(np.zeros((6, 8, 3)), np.zeros((4, 4)))


def test_each_word_has_its_bar_in_the_order_of_the_caption():
    words = ["a", "red", "圆", "incomprehensibility$\\x{", "a"]
    figure = draw_word_drops(words, [0, 0.3, -0.1, 0.2, 0])
    check_layout(figure)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0, 0.3, -0.1, 0.2, 0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["a", "red", "圆", "incomprehensibility$…", "a"]
    assert axes.yaxis_inverted()  # the first word is above
    assert axes.get_xlabel() == "drop of the cosine 余弦的下降"


@pytest.mark.parametrize("drops", [[], [0.1], [[0.1, 0.2]]])
def test_every_word_needs_a_drop(drops):
    with pytest.raises(ValueError, match="one for each of 2 words"):
        draw_word_drops(["a", "dog"], drops)

"""What a figure says and how it is laid out: its texts, and whether they are readable."""

import itertools
import warnings
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

SLACK = 1  # pixels


def texts_of(figure):
    """The texts that are drawn, each with a glyph for every character."""
    seen, draw = [], Text.draw

    def noted(text, *args, **kwargs):
        seen.append(text)
        return draw(text, *args, **kwargs)

    with warnings.catch_warnings(), mock.patch.object(Text, "draw", noted):
        warnings.filterwarnings("error", "Glyph")
        FigureCanvasAgg(figure).draw()
    return [text for text in seen if text.get_visible() and text.get_text().strip()]


def check_layout(figure):
    """All texts are inside of the picture, none lies on another or on the edge of a box."""
    boxes = {text: text.get_window_extent() for text in texts_of(figure)}
    for text, box in boxes.items():
        assert _is_inside(box, figure.bbox), text
    for (one, box), (other, its_box) in itertools.combinations(boxes.items(), 2):
        assert not _overlap(box, its_box), (one, other)
    for axes in figure.axes:
        for patch in axes.patches:
            edge = patch.get_window_extent()
            for text, box in boxes.items():
                assert _is_inside(box, edge) or not _overlap(box, edge), (text, patch)


def has_chinese(text):
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def _is_inside(box, outer):
    return (
        box.x0 > outer.x0 - SLACK
        and box.y0 > outer.y0 - SLACK
        and box.x1 < outer.x1 + SLACK
        and box.y1 < outer.y1 + SLACK
    )


def _overlap(box, other):
    across = min(box.x1, other.x1) - max(box.x0, other.x0)
    return across > SLACK and min(box.y1, other.y1) - max(box.y0, other.y0) > SLACK

"""Pictures of what a tower looks at (遮挡图): the drops that `evaluation.occlusion` measures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmret_tf.evaluation.plots.figures import font_families, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Red: the part speaks for the target. Blue: against it.
COLOURS, FOR, AGAINST = "RdBu_r", "firebrick", "steelblue"
OPACITY = 0.8  # of the largest drop
CAPTION_WIDTH, WORD_WIDTH = 100, 20  # letters
DROP = "drop of the cosine 余弦的下降"


def draw_occlusion(picture: npt.ArrayLike, drops: npt.ArrayLike, caption: str = "") -> "Figure":
    """Draw a picture, and beside it the map of its drops over the picture in grey. Section 2.2.

    Args:
        picture: `[height, width]` or `[height, width, 3]`, levels 0 to 255.
        drops: `[height, width]`, returned by `occlusion_map`.
        caption: With which the picture was compared; it is the title.

    Returns:
        A figure. Red: without this part the cosine falls. Blue: without it the cosine rises.

    Raises:
        ValueError: `drops` has another height or width than `picture`.

    >>> figure = draw_occlusion(np.zeros((8, 8, 3)), np.eye(8), "a red circle 红色的圆")
    >>> len(figure.axes)  # two pictures and the scale
    3
    """
    picture, drops = np.asarray(picture), np.asarray(drops, np.float64)
    if picture.shape[:2] != drops.shape:
        raise ValueError(f"drops must be {picture.shape[:2]}, as the picture; got {drops.shape}")
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    figure, families = new_figure(9, 4.5), font_families()
    left, right = figure.subplots(1, 2)
    left.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    right.imshow(grey, cmap="gray", vmin=-255, vmax=255)  # paler than the map
    largest = np.abs(drops).max() or 1.0
    span = {"cmap": COLOURS, "vmin": -largest, "vmax": largest}
    heat = right.imshow(drops, alpha=OPACITY * np.abs(drops) / largest, **span)
    figure.colorbar(heat, ax=right, shrink=0.8).set_label(DROP, fontfamily=families)
    plain = {"fontfamily": families, "fontsize": 10, "parse_math": False}
    figure.suptitle(shortened(caption, CAPTION_WIDTH), **plain)
    left.set_title("picture 图像", **plain)
    right.set_title("what the cosine depends on 余弦依赖的区域", **plain)
    for axes in (left, right):
        axes.set_axis_off()
    return figure


def draw_word_drops(words: Sequence[str], drops: npt.ArrayLike) -> "Figure":
    """Draw the drop of each word of a caption as a bar, in the order of the words. Section 2.2.

    Args:
        words: Of the caption.
        drops: `[n_words]`, returned by `word_drops`.

    Returns:
        A figure. Red, to the right: without this word the cosine falls. Blue: it rises.

    Raises:
        ValueError: There is no word, or another number of drops.

    >>> figure = draw_word_drops(["红色", "的", "圆"], [0.3, 0.0, 0.2])
    >>> len(figure.axes[0].patches)
    3
    """
    drops = np.asarray(drops, np.float64)
    if not len(words) or drops.shape != (len(words),):
        raise ValueError(f"drops must be one for each of {len(words)} words; got {drops.shape}")
    figure, families = new_figure(9, 0.9 + 0.26 * len(words)), font_families()
    axes, places = figure.subplots(), np.arange(len(words))
    axes.barh(places, drops, color=np.where(drops < 0, AGAINST, FOR), zorder=2)
    axes.axvline(0, color="black", linewidth=0.8)
    plain = {"fontfamily": families, "parse_math": False}
    axes.set_yticks(places, [shortened(word, WORD_WIDTH) for word in words], fontsize=10, **plain)
    axes.invert_yaxis()
    axes.set_xlabel(DROP, fontfamily=families)
    axes.grid(axis="x", alpha=0.3)
    return figure

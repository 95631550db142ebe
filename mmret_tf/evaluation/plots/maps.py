"""Maps of embeddings (嵌入地图): vectors of many numbers as points of a plane."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import checked_rows
from mmret_tf.evaluation.plots.figures import font_families, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "o^sDvP"  # of the kinds
MOST_LABELS = 10  # colours that can be told apart
LABEL_WIDTH = 24  # letters in the legend


def principal_components(
    vectors: npt.ArrayLike, dimensions: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Project vectors on the directions of their largest variance (主成分分析, PCA).

    A projection loses all other directions: points that lie together on the plane may lie far apart
    in space. The shares of the variance say how much is kept.

    Args:
        vectors: `[n, dim]`, at least two rows.
        dimensions: Number of directions, at most `dim` and at most n.

    Returns:
        `[n, dimensions]` and the share of the variance on each direction, `[dimensions]`; zeros if
        all vectors are equal. The largest weight of a direction is positive, so that maps repeat.

    Raises:
        ValueError: `vectors` is not such an array, or there are too few rows or columns.

    >>> points, shares = principal_components([[0, 0, 2], [0, 0, -2], [1, 0, 0], [-1, 0, 0]])
    >>> points.round(3).tolist()
    [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    >>> shares.round(3).tolist()
    [0.8, 0.2]
    """
    rows = checked_rows(vectors, "vectors", "euclidean").astype(np.float64)
    if dimensions > min(rows.shape) or len(rows) < 2:
        raise ValueError(
            f"{dimensions} directions need at least as many rows and columns; got {rows.shape}"
        )
    centred = rows - rows.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:dimensions]
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.sign(directions[np.arange(dimensions), largest])[:, None]
    total = np.sum(lengths**2)
    shares = lengths[:dimensions] ** 2 / total if total > 0 else np.zeros(dimensions)
    return centred @ directions.T, shares


def draw_embedding_map(
    embeddings: Mapping[str, npt.ArrayLike],
    labels: Sequence[str] | None = None,
    lines: bool = False,
    colours: Mapping[str, str] | None = None,
) -> "Figure":
    """Draw embeddings as points of a plane, by their two principal components. Section 2.2.

    A projection loses variance: of a space of 256 directions, two often keep less than half. Each
    axis says its share. Use the map to see groups and gaps, and cosines to compare two embeddings.

    The axes fit the points, so that a collapsed space fills the plane as well: read their numbers,
    or set the limits of `figure.axes[0]` to compare two maps.

    Args:
        embeddings: For each kind, such as "picture 图像" and "caption 说明文字", `[n, dim]`. A kind
            has a marker.
        labels: n labels, the same for all kinds, at most `MOST_LABELS` different ones. A label has
            a colour. By default a kind has.
        lines: Whether to join the same rows of the kinds, which are matching pairs, by a line.
        colours: Matplotlib's colour for each label, or for each kind if there are no labels.

    Returns:
        A figure.

    Raises:
        ValueError: There are too many kinds or labels, the kinds differ in width, or with `labels`
            or `lines` in their number of rows.

    >>> kinds = {"picture 图像": np.eye(4), "caption 说明文字": np.eye(4) + 0.1}
    >>> figure = draw_embedding_map(kinds, ["red 红", "red 红", "blue 蓝", "blue 蓝"], lines=True)
    >>> len(figure.axes)
    1
    """
    rows = {name: checked_rows(each, name, "euclidean") for name, each in embeddings.items()}
    labels = labels if labels is None else [str(each) for each in labels]
    names = list(dict.fromkeys(labels)) if labels is not None else list(rows)
    _check(rows, labels, names, lines)
    colours = {name: f"C{number}" for number, name in enumerate(names)} | dict(colours or {})
    points, shares = principal_components(np.concatenate(list(rows.values())))
    ends = np.cumsum([len(each) for each in rows.values()])
    parts = np.split(points, ends[:-1])
    figure, families = new_figure(9, 5.4), font_families()
    axes = figure.subplots()
    if lines:
        for other in parts[1:]:
            across, up = np.stack([parts[0], other]).transpose(2, 0, 1)
            axes.plot(across, up, color="silver", linewidth=0.7, zorder=1)
    style = {"edgecolors": "black", "linewidths": 0.4, "s": 36}
    for marker, (kind, part) in zip(MARKERS, zip(rows, parts, strict=True), strict=False):
        shades = [colours[each] for each in (labels or [kind] * len(part))]
        axes.scatter(*part.T, c=shades, marker=marker, **style)
        colour = "white" if labels else colours[kind]
        axes.scatter([], [], c=colour, marker=marker, label=shortened(kind, LABEL_WIDTH), **style)
    for name in names if labels else ():
        patch = style | {"marker": "s", "c": colours[name], "s": 60}
        axes.scatter([], [], label=shortened(name, LABEL_WIDTH), **patch)
    axes.set_aspect("equal", adjustable="datalim")
    for number, (axis, share) in enumerate(zip((axes.xaxis, axes.yaxis), shares, strict=True), 1):
        text = f"component {number} 主成分 {number}: {share:.0%} of the variance 方差"
        axis.set_label_text(text, fontfamily=families)
    axes.grid(alpha=0.3)
    prop = {"family": families}
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, prop=prop)
    return figure


def _check(
    rows: Mapping[str, np.ndarray],
    labels: Sequence[str] | None,
    names: Sequence[str],
    lines: bool,
) -> None:
    if not 1 <= len(rows) <= len(MARKERS):
        raise ValueError(f"embeddings must have 1 to {len(MARKERS)} kinds; got {len(rows)}")
    if len(names) > MOST_LABELS:
        raise ValueError(f"labels must be at most {MOST_LABELS} different ones; got {len(names)}")
    shapes = {name: each.shape for name, each in rows.items()}
    if len({width for _, width in shapes.values()}) > 1:
        raise ValueError(f"all kinds must have the same width; got {shapes}")
    counts = {n for n, _ in shapes.values()} | ({len(labels)} if labels is not None else set())
    if (lines or labels is not None) and len(counts) > 1:
        got = f"{shapes}" + (f" and {len(labels)} labels" if labels is not None else "")
        raise ValueError(f"labels and lines need the same number of rows in all kinds; got {got}")

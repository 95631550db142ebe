"""Plots of a training run and of an evaluation (图表), as PNG files: curves, cosines, answers.

The functions take arrays and draw with matplotlib, without its global state. matplotlib comes with
the extra `notebooks`; without it each function raises an ImportError that says so.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import checked_rows
from mmret_tf._files import replaced_file
from mmret_tf.data.decoders.text_cards import HAN_FONT_FILE
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.metrics import KS, rank_all
from mmret_tf.ranking.gallery import draw_gallery
from mmret_tf.ranking.results import SearchResult, SearchResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MOST_PAIRS = 32  # in `draw_similarities`: the captions of more are not readable
SHOWN_QUERIES, SHOWN_RESULTS = 6, 5  # in the galleries of the best and of the worst
LABEL_WIDTH = 30  # letters of a caption beside the matrix of similarities
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}

# Line and marker: curves differ in more than their colour.
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ("-", "x"), ("--", "*"))


def draw_curves(history: Sequence[dict[str, float]], path: str | os.PathLike) -> Path:
    """Draw the loss, and beside it each recall on the development split, by epoch. Section 5.

    Args:
        history: One dict an epoch, as "history" in `report.json`: "loss", and with a development
            split also "val_i2t_R@1" and so on, shares from 0 to 1.
        path: PNG file to write.

    Returns:
        The path.

    Raises:
        ValueError: There is no epoch, or one without a loss.

    >>> import tempfile
    >>> history = [{"loss": 4.1, "val_t2i_R@10": 0.2}, {"loss": 3.2, "val_t2i_R@10": 0.3}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_curves(history, f"{folder}/curves.png").name
    'curves.png'
    """
    if not history or any("loss" not in epoch for epoch in history):
        raise ValueError("history must have at least one epoch, and a loss in each")
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    left.plot(epochs, [epoch["loss"] for epoch in history], "k-o", markersize=4)
    left.set(title="Loss on the training split", ylabel="loss, mean of the epoch")

    names = dict.fromkeys(name for epoch in history for name in epoch)  # each once, in order
    recalls = [name for name in names if name.startswith("val_") and "_R@" in name]
    for name, (line, marker) in zip(recalls, itertools.cycle(STYLES), strict=False):
        shares = np.array([epoch.get(name, np.nan) for epoch in history])
        direction, recall = name.removeprefix("val_").split("_", 1)
        label = f"{DIRECTIONS.get(direction, direction)}, {recall}"
        right.plot(epochs, 100 * shares, line, marker=marker, markersize=4, label=label)
    right.set(title="Recall on the development split", ylabel="recall (%)")
    if recalls:
        right.set_ylim(bottom=0)
        right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)  # beside the curves
    else:
        right.text(0.5, 0.5, "not measured", ha="center", transform=right.transAxes)
    for axes in (left, right):
        axes.set(xlabel="epoch", xlim=(0.5, len(history) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    return _save(figure, path)


def draw_similarities(
    image_embeddings: npt.ArrayLike,
    text_embeddings: npt.ArrayLike,
    labels: Sequence[str],
    path: str | os.PathLike,
) -> Path:
    """Draw the cosine of every image with every caption; right pairs are on the diagonal. Section
    2.4.

    Args:
        image_embeddings: `[n, dim]`, rows of any length; n is at most `MOST_PAIRS`.
        text_embeddings: `[n, dim]`, one caption for each image, in the same order.
        labels: The n captions.
        path: PNG file to write.

    Returns:
        The path.

    Raises:
        ValueError: There are no pairs or too many, the three differ in number, or the embeddings
            hold NaN or infinity.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_similarities(np.eye(2), np.eye(2), ["a dog", "猫"], f"{folder}/cosines.png").name
    'cosines.png'
    """
    images = checked_rows(image_embeddings, "image_embeddings", "cosine")
    texts = checked_rows(text_embeddings, "text_embeddings", "cosine")
    n = len(images)
    if images.shape != texts.shape or n != len(labels):
        raise ValueError(
            "every image needs one caption, embedded in the same width: image_embeddings are "
            f"{images.shape}, text_embeddings {texts.shape}, and there are {len(labels)} labels"
        )
    if n > MOST_PAIRS:
        raise ValueError(f"at most {MOST_PAIRS} pairs are readable in one picture; got {n}")
    figure = _figure(4 + 0.22 * n, 4.5 + 0.22 * n)
    figure.set_layout_engine("compressed")  # "constrained" for axes of fixed proportions
    axes = figure.subplots()
    matrix = axes.imshow(images @ texts.T, cmap="cividis")
    figure.colorbar(matrix, label="cosine", shrink=0.8)
    places = np.arange(n)
    axes.plot(places, places, "wo", markeredgecolor="black", label="right pair")
    numbered = [f"{place + 1}  {_shortened(label)}" for place, label in enumerate(labels)]
    axes.set_xticks(
        places, numbered, rotation=90, fontsize=8, parse_math=False, fontfamily=_font_families()
    )
    axes.set_yticks(places, places + 1, fontsize=8)
    axes.set(xlabel="caption", ylabel="image, by the number of its caption")
    axes.set_title("Similarity of images and captions", pad=28)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return _save(figure, path)


def recall_curve(ranks: npt.ArrayLike, k: npt.ArrayLike) -> np.ndarray:
    """Recall at each K: the share of queries with the right answer in the first K. Section 3.1(5).

    Args:
        ranks: `[n]`, rank of the right answer to each query, from 1.
        k: `[m]`, the values of K.

    Returns:
        float64 `[m]`, from 0 to 1.

    Raises:
        ValueError: There are no ranks, or one is below 1 or not finite.

    >>> recall_curve([1, 2, 2, 9], [1, 2, 5, 10]).tolist()
    [0.25, 0.75, 0.75, 1.0]
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or ranks.size == 0:
        raise ValueError(f"ranks must be a non-empty array [n]; got shape {ranks.shape}")
    if not (np.isfinite(ranks).all() and ranks.min() >= 1):
        raise ValueError("ranks start at 1, and all must be finite")
    return np.searchsorted(np.sort(ranks), k, side="right") / ranks.size


def draw_recall_at_k(
    image_ranks: npt.ArrayLike, caption_ranks: npt.ArrayLike, path: str | os.PathLike
) -> Path:
    """Draw recall over K for both directions, until every right answer is found. Section 3.1(5).

    Args:
        image_ranks: `[n_captions]`, rank of each caption's image among all images, as in `Ranks`.
        caption_ranks: `[n_images]`, rank of the best caption of each image among all captions.
        path: PNG file to write.

    Returns:
        The path.

    Raises:
        ValueError: As for `recall_curve`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_recall_at_k([1, 2, 2, 9], [1, 30], f"{folder}/recall.png").name
    'recall.png'
    """
    directions = {"image to text": caption_ranks, "text to image": image_ranks}
    marked = {name: 100 * recall_curve(ranks, KS) for name, ranks in directions.items()}
    largest = max(KS[-1], int(np.max(image_ranks)), int(np.max(caption_ranks)))
    every_k = np.arange(1, largest + 1)
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for (name, ranks), (line, marker) in zip(directions.items(), STYLES, strict=False):
        values = ", ".join(
            f"R@{k} {value:.1f} %" for k, value in zip(KS, marked[name], strict=True)
        )
        label = f"{name} (queries: {len(ranks):,})\n{values}"
        places = [k - 1 for k in KS]
        axes.plot(
            every_k,
            100 * recall_curve(ranks, every_k),
            line,
            marker=marker,
            markevery=places,
            label=label,
        )
    axes.set_xscale("log")
    ticks = [k for k in (*KS, 50, 100, 500, 1000, 5000, 10000) if k <= largest]
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.set(
        title="How often the right answer is among the first K results",
        xlabel="K (number of results, log scale)",
        ylabel="recall (% of queries)",
        ylim=(0, 103),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return _save(figure, path)


def draw_evaluation(
    images: np.ndarray,
    texts: np.ndarray,
    pairs: Pairs,
    folder: str | os.PathLike,
    history: Sequence[dict[str, float]] = (),
) -> list[Path]:
    """Draw all plots of one evaluation: the curves of the run, recall over K, the cosines of the
    first pairs, and galleries of the captions with the best and the worst ranks. Section 3.1(5).

    Args:
        images, texts, pairs: Returned by `embed_pairs`.
        folder: Folder to write; files of an older evaluation are replaced.
        history: History of the training, see `draw_curves`; without it, no curves are drawn.

    Returns:
        The paths of `curves.png`, `recall.png`, `similarities.png`, `best.png` and `worst.png`.

    Raises:
        ValueError: As for `rank_all` and `draw_curves`.

    >>> import tempfile
    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["蓝"]]})
    >>> images = texts = np.eye(2)  # or by `embed_pairs`
    >>> [path.name for path in draw_evaluation(images, texts, pairs, tempfile.mkdtemp())]
    ['recall.png', 'similarities.png', 'best.png', 'worst.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    captions, image_of = pairs.all_captions(), pairs.caption_to_image()
    ranks = rank_all(images, texts, image_of)
    first = np.unique(image_of, return_index=True)[1][:16]  # a caption of each image
    drawn = [draw_curves(history, folder / "curves.png")] if history else []
    drawn.append(draw_recall_at_k(ranks.image_ranks, ranks.caption_ranks, folder / "recall.png"))
    drawn.append(
        draw_similarities(
            images[: len(first)],
            texts[first],
            [captions[row] for row in first],
            folder / "similarities.png",
        )
    )
    units = checked_rows(images, "images", "cosine")
    sentences = checked_rows(texts, "texts", "cosine")
    # Among captions with the same rank, the best are nearest to their image.
    nearness = np.einsum("nd,nd->n", units[image_of], sentences)
    order = np.lexsort((-nearness, ranks.image_ranks))
    items = pairs.records()
    for name, rows in (("best", order[:SHOWN_QUERIES]), ("worst", order[::-1][:SHOWN_QUERIES])):
        answers, right_ids = [], []
        for row in rows:
            right, rank = image_of[row], int(ranks.image_ranks[row])
            answers.append((captions[row], _answers(right, rank, units @ sentences[row], items)))
            right_ids.append(pairs.ids[right])
        drawn.append(folder / f"{name}.png")
        draw_gallery(answers, drawn[-1], right_ids)
    return drawn


def _answers(
    right: int, rank: int, scores: np.ndarray, items: Sequence[Mapping[str, Any]]
) -> SearchResults:
    """The first items of a caption's ranking, and the right item at the end if it is missing.

    Args:
        right: Row of the right item.
        rank: Its rank.
        scores: Of all items, `[n_items]`.
        items: Their records.
    """
    first = np.argsort(-scores, kind="stable")[:SHOWN_RESULTS]
    places = list(enumerate(first, 1))
    if right not in first:
        places.append((rank, right))
    return SearchResults(
        SearchResult(place, items[row]["id"], float(scores[row]), items[row])
        for place, row in places
    )


def _figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, outside of pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "mmret_tf[notebooks]"') from None
    return Figure((width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _font_families() -> list[str]:
    """Matplotlib's own font, and the package's for the Chinese characters that it lacks."""
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(HAN_FONT_FILE)
    return ["DejaVu Sans", FontProperties(fname=HAN_FONT_FILE).get_name()]


def _shortened(text: str) -> str:
    """The start of a caption. A Chinese character counts as two letters; characters that cannot be
    printed become spaces."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words]
    fitting = int(np.searchsorted(np.cumsum(widths), LABEL_WIDTH, side="right"))
    return words if fitting == len(words) else words[:fitting].rstrip() + "…"


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the PNG, whole or not at all."""
    with replaced_file(path) as temporary, warnings.catch_warnings():
        # One warning for each character without a glyph; the picture shows a box there.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format="png")
    return Path(path)

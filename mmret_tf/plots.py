"""Pictures of a training run and of an evaluation, as PNG files: curves, similarities, answers.

Pure functions over arrays, drawn by matplotlib without its global state; it comes with the extra
`notebooks`, and where it is missing each function raises an ImportError that says so.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmret_tf.checks import checked_rows
from mmret_tf.evaluation import Ranks, rank_all
from mmret_tf.searcher import CHINESE_FONTS, SearchResult, SearchResults, draw_gallery

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmret_tf.datasets import PairDataset

DOTS_PER_INCH = 150
MOST_PAIRS = 32  # in `draw_similarities`: with more, the captions are no longer readable
SHOWN_QUERIES, SHOWN_RESULTS = 6, 5  # in the galleries of the best and of the worst
LABEL_WIDTH = 30  # Latin letters of a caption beside the matrix of similarities
MARKED = (1, 5, 10)  # the K of the usual tables
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}

# Line and marker, so that curves differ without colour.
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ("-", "x"), ("--", "*"))


def draw_curves(history: Sequence[dict[str, float]], path: str | os.PathLike) -> Path:
    """Draw the loss, and beside it every recall on the development split, by epoch. Section 3.1(4).

    Args:
        history: one dict an epoch, as "history" in `report.json`: "loss", and if there was a
            development split "val_i2t_R@1" and so on, as shares from 0 to 1.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: there is no epoch, or one without a loss.

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
        image_embeddings: `[n, dim]`, of any length; n is at most `MOST_PAIRS`.
        text_embeddings: `[n, dim]`, row by row those of the images' captions.
        labels: the n captions.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: there are no pairs or too many, the three differ in number, or the embeddings
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
    figure.set_layout_engine("compressed")  # as `constrained`, for axes of fixed proportions
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
    """For each K, the share of queries whose right answer is among the first K. Section 3.1(5).

    Args:
        ranks: `[n]`, of the right answer to each query, from 1.
        k: `[m]`, the K.

    Returns:
        float64 `[m]`, from 0 to 1.

    Raises:
        ValueError: there are no ranks, or one is not a number from 1.

    >>> recall_curve([1, 2, 2, 9], [1, 2, 5, 10]).tolist()
    [0.25, 0.75, 0.75, 1.0]
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or ranks.size == 0:
        raise ValueError(f"ranks must be one a query, and not empty; got shape {ranks.shape}")
    if not (np.isfinite(ranks).all() and ranks.min() >= 1):
        raise ValueError("ranks start at 1, and all must be finite")
    return np.searchsorted(np.sort(ranks), k, side="right") / ranks.size


def draw_recall_at_k(
    image_ranks: npt.ArrayLike, caption_ranks: npt.ArrayLike, path: str | os.PathLike
) -> Path:
    """Draw for both directions how recall grows with K, until every right answer is found. Section
    3.1(5).

    Args:
        image_ranks: `[n_captions]`, of each caption's image among all images, as in
            `mmret_tf.evaluation.Ranks`.
        caption_ranks: `[n_images]`, of the best caption of each image among all captions.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: there are no ranks in a direction, or one is not a number from 1.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_recall_at_k([1, 2, 2, 9], [1, 30], f"{folder}/recall.png").name
    'recall.png'
    """
    directions = {"image to text": caption_ranks, "text to image": image_ranks}
    marked = {name: 100 * recall_curve(ranks, MARKED) for name, ranks in directions.items()}
    largest = max(MARKED[-1], int(np.max(image_ranks)), int(np.max(caption_ranks)))
    every_k = np.arange(1, largest + 1)
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for (name, ranks), (line, marker) in zip(directions.items(), STYLES, strict=False):
        values = ", ".join(
            f"R@{k} {value:.1f} %" for k, value in zip(MARKED, marked[name], strict=True)
        )
        label = f"{name} (queries: {len(ranks):,})\n{values}"
        places = [k - 1 for k in MARKED]
        axes.plot(
            every_k,
            100 * recall_curve(ranks, every_k),
            line,
            marker=marker,
            markevery=places,
            label=label,
        )
    axes.set_xscale("log")
    ticks = [k for k in (*MARKED, 50, 100, 500, 1000, 5000, 10000) if k <= largest]
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.set(
        title="How often the right answer is among the first K results",
        xlabel="K (number of results looked at, log scale)",
        ylabel="recall (% of queries)",
        ylim=(0, 103),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return _save(figure, path)


def draw_evaluation(
    images: np.ndarray,
    texts: np.ndarray,
    pairs: PairDataset,
    folder: str | os.PathLike,
    history: Sequence[dict[str, float]] = (),
) -> list[Path]:
    """Draw all pictures of one evaluation: the curves of the run, recall at every K, the cosines of
    the first pairs, and the captions whose picture stands first and last. Section 3.1(5).

    Args:
        images, texts, pairs: as `measuring.embed_pairs` returns them.
        folder: it is made if it is missing; pictures of an older evaluation are replaced.
        history: see `draw_curves`; none are drawn without.

    Returns:
        The paths of `curves.png`, `recall.png`, `similarities.png`, `best.png` and `worst.png`.

    Raises:
        ValueError: as `rank_all` and `draw_curves`.

    >>> import tempfile
    >>> from mmret_tf.datasets import load_pairs
    >>> pairs = load_pairs("scenes", split="dev", size=2)
    >>> images, texts = np.eye(2), np.repeat(np.eye(2), 4, axis=0)  # or of `embed_pairs`
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
    # Of many captions whose picture comes first, those are the best that lie nearest to it.
    nearness = np.einsum("nd,nd->n", units[image_of], sentences)
    order = np.lexsort((-nearness, ranks.image_ranks))
    for name, rows in (("best", order[:SHOWN_QUERIES]), ("worst", order[::-1][:SHOWN_QUERIES])):
        answers = [_answers(row, units @ sentences[row], ranks, pairs) for row in rows]
        right_ids = [pairs.ids[image_of[row]] for row in rows]
        drawn.append(folder / f"{name}.png")
        draw_gallery(answers, drawn[-1], right_ids)
    return drawn


def _answers(
    row: int, scores: np.ndarray, ranks: Ranks, pairs: PairDataset
) -> tuple[str, SearchResults]:
    """A caption and the first pictures of its ranking; the right one at the end if it is not among
    them. `scores` are those of all images, `[n_images]`."""
    right = pairs.caption_to_image()[row]
    first = np.argsort(-scores, kind="stable")[:SHOWN_RESULTS]
    places = list(enumerate(first, 1))
    if right not in first:
        places.append((int(ranks.image_ranks[row]), right))
    results = SearchResults(
        SearchResult(rank, pairs.ids[image], scores[image], {"image": pairs.image_paths[image]})
        for rank, image in places
    )
    return pairs.all_captions()[row], results


def _figure(width: float, height: float) -> Figure:
    """An empty figure, of inches, that belongs to no window and no notebook."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "mmret_tf[notebooks]"') from None
    return Figure((width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _font_families() -> list[str]:
    """Matplotlib's own font, and where it lacks a character the Chinese fonts of the system."""
    from matplotlib.font_manager import fontManager

    # Reversed, so that of a file with several faces the first one stays: it has the plain name.
    installed = {Path(font.fname).name: font.name for font in reversed(fontManager.ttflist)}
    return ["DejaVu Sans", *(installed[file] for file in CHINESE_FONTS if file in installed)]


def _shortened(text: str) -> str:
    """The start of a caption; a Chinese character takes the place of two Latin letters.

    Characters that cannot be printed become spaces.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words]
    fitting = int(np.searchsorted(np.cumsum(widths), LABEL_WIDTH, side="right"))
    return words if fitting == len(words) else words[:fitting].rstrip() + "…"


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the PNG, whole or not at all."""
    temporary = Path(f"{os.fspath(path)}.partial")
    try:
        with warnings.catch_warnings():
            # One for each character that no font has: the boxes in the picture say as much.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Path(path)

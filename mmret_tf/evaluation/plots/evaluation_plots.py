"""Plots of a training run and of an evaluation (评估图), as PNG files: curves, cosines, answers."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import checked_rows
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.metrics import KS, rank_all
from mmret_tf.evaluation.plots.figures import font_families, new_figure, save_figure, shortened
from mmret_tf.ranking.gallery import draw_gallery
from mmret_tf.ranking.results import SearchResult, SearchResults
from mmret_tf.similarity.vectors import row_cosines

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
    if not isinstance(history, list | tuple) or not history or not all(map(_is_epoch, history)):
        raise ValueError("history must be a list of at least one epoch: its loss and other numbers")
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    left.plot(epochs, [epoch["loss"] for epoch in history], "k-o", markersize=4)
    left.set(title="Loss on the training split", ylabel="loss, mean of the epoch")

    recalls = [name for name in history[0] if name.startswith("val_") and "_R@" in name]
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
    return save_figure(figure, path)


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
        got = f"{images.shape}, {texts.shape} and {len(labels)} labels"
        raise ValueError(f"every image needs one caption, embedded in the same width; got {got}")
    if n > MOST_PAIRS:
        raise ValueError(f"at most {MOST_PAIRS} pairs are readable in one picture; got {n}")
    figure = new_figure(4 + 0.22 * n, 4.5 + 0.22 * n)
    figure.set_layout_engine("compressed")  # "constrained" for axes of fixed proportions
    axes = figure.subplots()
    matrix = axes.imshow(images @ texts.T, cmap="cividis")
    figure.colorbar(matrix, label="cosine", shrink=0.8)
    places = np.arange(n)
    axes.plot(places, places, "wo", markeredgecolor="black", label="right pair")
    numbered = [
        f"{place + 1}  {shortened(label, LABEL_WIDTH)}" for place, label in enumerate(labels)
    ]
    plain = {"rotation": 90, "parse_math": False, "fontfamily": font_families()}
    axes.set_xticks(places, numbered, fontsize=8, **plain)
    axes.set_yticks(places, places + 1, fontsize=8)
    axes.set(xlabel="caption", ylabel="image, by the number of its caption")
    axes.set_title("Similarity of images and captions", pad=28)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return save_figure(figure, path)


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

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_recall_at_k([1, 2, 2, 9], [1, 30], f"{folder}/recall.png").name
    'recall.png'
    """
    largest = max(KS[-1], np.max(image_ranks), np.max(caption_ranks))
    every_k, places = np.arange(1, largest + 1), [k - 1 for k in KS]
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for name, ranks, (line, marker) in (
        ("image to text", caption_ranks, STYLES[0]),
        ("text to image", image_ranks, STYLES[1]),
    ):
        found = np.searchsorted(np.sort(ranks), every_k, side="right")
        recall = 100 * found / len(ranks)
        values = ", ".join(f"R@{k} {recall[k - 1]:.1f} %" for k in KS)
        label = f"{name} (queries: {len(ranks):,})\n{values}"
        axes.plot(every_k, recall, line, marker=marker, markevery=places, label=label)
    axes.set_xscale("log")
    ticks = [k for k in (*KS, 50, 100, 500, 1000, 5000, 10000) if k <= largest]
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.set(title="How often the right answer is among the first K results", ylim=(0, 103))
    axes.set(xlabel="K (number of results, log scale)", ylabel="recall (% of queries)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


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
    labels = [captions[row] for row in first]
    drawn = [draw_curves(history, folder / "curves.png")] if history else []
    drawn += [
        draw_recall_at_k(ranks.image_ranks, ranks.caption_ranks, folder / "recall.png"),
        draw_similarities(images[: len(first)], texts[first], labels, folder / "similarities.png"),
    ]
    # Among captions with the same rank, the best are nearest to their image.
    order = np.lexsort((-row_cosines(images[image_of], texts), ranks.image_ranks))
    items = pairs.records()
    for name, rows in (("best", order[:SHOWN_QUERIES]), ("worst", order[::-1][:SHOWN_QUERIES])):
        answers = []
        for row in rows:
            scores, right = images @ texts[row], image_of[row]
            places = dict(enumerate(np.argsort(-scores, kind="stable")[:SHOWN_RESULTS], 1))
            if right not in places.values():  # then the right item comes at the end
                places[int(ranks.image_ranks[row])] = right
            results = SearchResults(
                SearchResult(rank, items[place]["id"], float(scores[place]), items[place])
                for rank, place in places.items()
            )
            answers.append((captions[row], results))
        drawn.append(folder / f"{name}.png")
        draw_gallery(answers, drawn[-1], [pairs.ids[image_of[row]] for row in rows])
    return drawn


def _is_epoch(value: object) -> bool:
    """Whether this is a dict of numbers with a loss."""
    return (
        isinstance(value, dict)
        and "loss" in value
        and all(isinstance(each, int | float) for each in value.values())
    )

"""Pictures of an error analysis (错误分析图): recall by wording, hubs, and the worst confusions.

They show what `analyse_errors` returns.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmret_tf._files import replaced_file
from mmret_tf.data.decoders.text_cards import SIZE, draw_line
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.errors import K
from mmret_tf.evaluation.plots.figures import new_figure, save_figure, shortened
from mmret_tf.ranking.gallery import THUMBNAIL, thumbnail

# Labels of the queries' properties in `analyse_errors`. An image has several captions.
PROPERTIES = {
    "words": "words of the caption",
    "phrases": "phrases between function words:\nabout one for each object that is named",
    "vocabulary_rank": "rarest word, by its place in\nthe vocabulary (1: most frequent)",
}
IMAGE_PROPERTIES = {"phrases": "phrases between function words,\nmean of the image's captions"}
LONG_RANGE = 7  # letters; the two numbers of a longer one stand below each other
BARS = ((1, "tab:blue"), (K, "lightsteelblue"))  # R@1 and R@10

# Captions beside two confused pictures: longest in letters and in pixels, height; space around.
CAPTION_LETTERS, CAPTION_WIDTH, LINE_HEIGHT, PAD = 100, 1130, 34, 12


def draw_errors(errors: Mapping[str, Any], pairs: Pairs, folder: str | os.PathLike) -> list[Path]:
    """Draw an error analysis. Section 3.1(5).

    Args:
        errors: Returned by `analyse_errors`.
        pairs: The pairs that were analysed.
        folder: Folder to write; files of an older analysis are replaced.

    Returns:
        The paths of `errors_recall.png`, unless there are no texts, `errors_hubs.png` and
        `errors_confusions.png`.

    >>> import tempfile
    >>> from mmret_tf.evaluation.errors import analyse_errors
    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["蓝"]]})
    >>> errors = analyse_errors(np.eye(2), np.array([[1, 0], [1, 0]]), pairs)
    >>> [path.name for path in draw_errors(errors, pairs, tempfile.mkdtemp())]
    ['errors_recall.png', 'errors_hubs.png', 'errors_confusions.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = dict(zip(pairs.ids, pairs.records(), strict=True))
    drawn = []
    if errors["recall"]:
        drawn.append(_draw_recall(errors["recall"], folder / "errors_recall.png"))
    drawn.append(_draw_hubs(errors["hubs"], records, folder / "errors_hubs.png"))
    path = folder / "errors_confusions.png"
    return [*drawn, _draw_confusions(errors["confusions"], records, path)]


def _draw_recall(recall: Mapping[str, Any], path: Path) -> Path:
    """A row of panels for each language, a panel for each property of the queries."""
    rows = [
        [(direction, *each) for direction, by in directions.items() for each in by.items()]
        for directions in recall.values()
    ]
    figure = new_figure(4.2 * len(rows[0]), 0.6 + 3.9 * len(rows))
    grid = figure.subplots(len(rows), len(rows[0]), sharey=True, squeeze=False)
    for language, row, panels in zip(recall, grid, rows, strict=True):
        for axes, (direction, name, bins) in zip(row, panels, strict=True):
            _draw_bins(axes, bins, name == "vocabulary_rank")
            named = "" if language == "all" else f", {language.capitalize()}"
            axes.set_title(direction.replace("_", " ") + named)
            is_text = direction.startswith("text_to_")
            axes.set_xlabel((PROPERTIES if is_text else IMAGE_PROPERTIES)[name])
        row[0].set_ylabel("recall (% of queries)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.suptitle("How often queries of a kind find the right answer (n queries, 95 % intervals)")
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return save_figure(figure, path)


def _draw_bins(axes: Any, bins: Sequence[Mapping[str, Any]], is_rank: bool) -> None:
    """Bars of R@1 and R@10 with their intervals, and lines at the recall of all queries.

    Only a rank can be 0 for an unknown word; it has the last bin.
    """
    places, n = np.arange(len(bins)), np.array([each["queries"] for each in bins])
    for number, (k, colour) in enumerate(BARS):
        shares = 100 * np.array([each[f"R@{k}"] for each in bins])
        ends = 100 * np.array([each[f"R@{k}_interval"] for each in bins]).T
        errors = np.abs(ends - shares)
        style = {"width": 0.4, "capsize": 3, "color": colour, "error_kw": {"elinewidth": 1}}
        axes.bar(places + 0.4 * number - 0.2, shares, yerr=errors, label=f"R@{k}", **style)
        label = "all queries" if number == 0 else None
        axes.axhline(shares @ n / n.sum(), color="grey", linestyle=":", linewidth=1, label=label)
    ranges = [_range_of(each["from"], each["to"]) for each in bins]
    ranges = [each.replace("–", "–\n") if len(each) > LONG_RANGE else each for each in ranges]
    if is_rank and bins[-1]["to"] == 0:
        ranges[-1] = "unknown"
    labels = [f"{each}\nn={count:,}" for each, count in zip(ranges, n, strict=True)]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylim(0, 103)


def _range_of(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"


def _draw_hubs(hubs: Mapping[str, Any], records: Mapping[str, Any], path: Path) -> Path:
    """How many queries images answer, for the first and the first ten results; the largest hubs."""
    largest = hubs["largest"]
    figure = new_figure(13, 6.5)
    above, below = figure.subfigures(2, 1, height_ratios=[1.6, 1])
    for axes, (name, k) in zip(
        above.subplots(1, 2), (("first", 1), (f"first_{K}", K)), strict=True
    ):
        one = hubs[name]
        counts = one["histogram"]
        bars = axes.bar(range(len(counts)), counts, color="tab:blue", width=0.9)
        axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=8)
        ranges = [_range_of(2**power, 2 ** (power + 1) - 1) for power in range(len(counts) - 1)]
        axes.set_xticks(range(len(counts)), ["0", *ranges], fontsize=8)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 3 * max(counts))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="queries (log scale)", ylabel="number of images (log scale)")
        place = "first" if k == 1 else f"among the first {k}"
        axes.set_title(
            f"Queries for which an image is {place}:\nmean {one['mean']:.1f}, "
            f"skewness {one['skewness']:.1f}; {one['never']:,} images for none"
        )
    below.suptitle("The images that are first most often")
    for axes, hub in zip(np.ravel(below.subplots(1, len(largest))), largest, strict=True):
        axes.imshow(thumbnail(records[hub["id"]]))
        axes.set_axis_off()
        axes.set_title(
            f"{hub['first']:,} queries ({hub['share']:.1%})\nright for {hub['right']:,}", fontsize=9
        )
    return save_figure(figure, path)


def _draw_confusions(
    confusions: Sequence[Mapping[str, Any]], records: Mapping[str, Any], path: Path
) -> Path:
    """A row for each confusion: the right image, the wrong one above it, and their captions."""
    height = THUMBNAIL + 2 * PAD
    top = SIZE + 3 * PAD
    texts = 3 * PAD + 2 * THUMBNAIL
    sheet = Image.new(
        "RGB", (texts + CAPTION_WIDTH, top + height * max(1, len(confusions))), "white"
    )
    draw = ImageDraw.Draw(sheet)
    if not confusions:
        draw_line(draw, (PAD, PAD), "No wrong image stands above the right one for most captions.")
    else:
        draw_line(draw, (PAD, PAD), "right image")
        draw_line(draw, (2 * PAD + THUMBNAIL, PAD), "wrong one above")
        draw_line(draw, (texts, PAD), "captions of the right image, with the ranks of both")
    for row, one in enumerate(confusions):
        below = top + row * height
        for column, (name, colour) in enumerate((("right", "green"), ("wrong", "red"))):
            left = PAD + column * (THUMBNAIL + PAD)
            sheet.paste(thumbnail(records[one[name]]), (left, below))
            box = (left - 4, below - 4, left + THUMBNAIL + 3, below + THUMBNAIL + 3)
            draw.rectangle(box, outline=colour, width=4)
        lines = [f"above for {one['above']} of {one['of']} captions, cost {one['cost']:.2f}"]
        for each in one["captions"]:
            ranks = f"wrong {each['wrong_rank']}, right {each['right_rank']}"
            lines.append(f"{ranks}:  {shortened(each['text'], CAPTION_LETTERS)}")
        if one["wrong_caption"]:
            caption = shortened(one["wrong_caption"], CAPTION_LETTERS)
            lines.append(f"the wrong image's own:  {caption}")
        for number, line in enumerate(lines):
            draw_line(draw, (texts, below + number * LINE_HEIGHT), line)
    with replaced_file(path) as temporary:
        sheet.save(temporary, "PNG")
    return path

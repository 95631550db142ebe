"""Tables for the terminal: what was measured, and what was published beside it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mmret_tf.published import Published

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


def metrics_table(metrics: dict) -> Table:
    """Recall in both directions, with its interval where that is known; by language, where both
    occur. `metrics` are those of `measuring.measure`."""
    title = f"{metrics['images']} images, {metrics['captions']} captions"
    if metrics["folds"] > 1:
        title += f", mean of {metrics['folds']} folds"
    table = Table(title, "R@1", "R@5", "R@10", "median")
    if "intervals" in metrics:
        table.caption = "± half of the 95 % confidence interval, by bootstrap over the images"
    parts = {"": metrics} | {
        f", {name}": metrics[name] for name in ("english", "chinese") if name in metrics
    }
    for language, part in parts.items():
        for direction, words in DIRECTIONS.items():
            recalls = [_recall(part, f"{direction}_R@{k}") for k in (1, 5, 10)]
            table.add_row(words + language, *recalls, f"{part[f'{direction}_medr']:g}")
    return table


def _recall(metrics: dict, name: str) -> str:
    recall = f"{metrics[name]:.1%}"
    if "intervals" in metrics:
        low, high = metrics["intervals"][name]
        recall += f" ±{50 * (high - low):.1f}"
    return recall


def published_table(metrics: dict, results: Sequence[Published]) -> Table:
    """What was measured beside what others have published on the same collection."""
    columns = ("image to text R@1", "R@5", "R@10", "text to image R@1", "R@5", "R@10")
    caption = "Published: of the test split, 1,000 images, five captions each"
    table = Table("Recall in %", *columns, caption=caption)
    names = [f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
    table.add_row("measured here", *(f"{100 * metrics[name]:.1f}" for name in names))
    for result in results:
        recalls = [*result.image_to_text, *(result.text_to_image or ["-"] * 3)]
        table.add_row(result.method, *map(str, recalls))
    return table


def compression_table(report: dict, precision: str) -> Table:
    """What a smaller image tower saves and costs: see `compression.compression_report`."""
    table = Table(f"{report['images']} images", "float32", precision)
    for name, unit, words in (
        ("bytes", 1e-6, "size, MB"),
        ("images_per_second", 1, "images a second"),
        ("t2i_R@10", 100, "text to image R@10, %"),
        ("i2t_R@10", 100, "image to text R@10, %"),
    ):
        values = report[f"float32_{name}"], report[name]
        table.add_row(words, *(f"{unit * value:.1f}" for value in values))
    return table

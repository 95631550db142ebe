"""Tables for the terminal: metrics of an evaluation, and what a compressed tower saves."""

from rich.table import Table

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


def metrics_table(metrics: dict) -> Table:
    """Recall in both directions, with confidence intervals where they are known.

    Args:
        metrics: Returned by `evaluate` or `measure`. Where both languages occur, each gets rows of
            its own.
    """
    counts = [f"{metrics[name]} {name}" for name in ("images", "captions") if name in metrics]
    counts += [f"mean of {metrics['folds']} folds"] * (metrics["folds"] > 1)
    table = Table(", ".join(counts), "R@1", "R@5", "R@10", "median")
    if "intervals" in metrics:
        table.caption = "± half of the 95 % confidence interval, by bootstrap over the images"
    directions = [name.removesuffix("_R@1") for name in metrics if name.endswith("_R@1")]
    languages = {f", {name}": metrics[name] for name in ("english", "chinese") if name in metrics}
    for language, part in {"": metrics, **languages}.items():
        for direction in reversed(directions):
            words = DIRECTIONS.get(direction, direction.replace("_", " "))
            recalls = [_recall(part, f"{direction}_R@{k}") for k in (1, 5, 10)]
            table.add_row(words + language, *recalls, f"{part[f'{direction}_medr']:g}")
    return table


def _recall(metrics: dict, name: str) -> str:
    low, high = metrics.get("intervals", {}).get(name, (0, 0))
    return f"{metrics[name]:.1%}" + (f" ±{50 * (high - low):.1f}" if "intervals" in metrics else "")


def compression_table(report: dict, precision: str) -> Table:
    """Size, speed and recall of a compressed image tower beside float32.

    Args:
        report: Returned by `compression_report`.
        precision: Heading of its column.
    """
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

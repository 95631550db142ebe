"""Tables for the terminal: metrics of an evaluation, what a compressed tower saves, and what a
collection holds."""

from rich.table import Table

from mmret_tf._checks import printable

# Rows of the table of reasons.
MOST_REASONS = 12

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


def metrics_tables(metrics: dict) -> list[Table]:
    """A table for each pair of modalities.

    Args:
        metrics: Returned by `measure_parts`.
    """
    parts = [metrics] if "folds" in metrics else metrics.values()
    return [metrics_table(part) for part in parts]


def metrics_table(metrics: dict) -> Table:
    """Recall in both directions, with confidence intervals where they are known.

    Args:
        metrics: Returned by `evaluate` or `measure`. Where both languages occur, each gets rows of
            its own.
    """
    names = list(metrics)[: list(metrics).index("folds")]
    counts = [f"{metrics[name]} {name}" for name in names]
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


def inspection_table(report: dict) -> Table:
    """What a collection holds, a fact a row.

    Args:
        report: Returned by `inspect_collection`.
    """
    table = Table("layout", printable(report["layout"]) or "in memory")
    splits = {name or "no split": count for name, count in report["splits"].items()}
    table.add_row("items", f"{report['items']} ({_counted(splits)})")
    for name, counts in report["modalities"].items():
        table.add_row(f"{name} sources", f"{counts['sources']} of {counts['items']} items")
    pictures = report["pictures"]
    rows = {
        "captions an image": _spread(report["captions_per_image"]),
        "languages of captions": _counted(report["languages"]),
        "words in a caption": _spread(report["caption_words"]),
        "picture formats": _counted(pictures["formats"]),
        "picture width, pixels": _spread(pictures["width"]),
        "picture height, pixels": _spread(pictures["height"]),
        "pictures of one colour": str(pictures["flat"] or ""),
        "unreadable pictures": str(pictures["unreadable"] or ""),
        "entries set aside": str(sum(each["count"] for each in report["set_aside"])),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _counted(counts: dict[str, int]) -> str:
    return printable(", ".join(f"{name} {count}" for name, count in counts.items()))


def _spread(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    low, high = spread["min"], spread["max"]
    middle = f"median {spread['median']:g}, mean {spread['mean']:.1f}"
    return f"{low}" if low == high else f"{low} to {high}, {middle}"


def set_aside_table(report: dict) -> Table:
    """The reasons for which entries were set aside, the most frequent first.

    Args:
        report: Returned by `inspect_collection`.
    """
    table = Table("set aside because", "entries", "such as")
    for each in report["set_aside"][:MOST_REASONS]:
        places = ", ".join(place for place, _ in each["examples"])
        table.add_row(printable(each["reason"]), str(each["count"]), printable(places))
    if more := report["set_aside"][MOST_REASONS:]:
        count = sum(each["count"] for each in more)
        table.add_row(f"{len(more)} more reasons", str(count), "see --json")
    return table

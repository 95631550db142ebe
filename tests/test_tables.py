"""Tables for the terminal show the numbers of the reports."""

from rich.console import Console

from mmret_tf._tables import (
    MOST_REASONS,
    compression_table,
    inspection_table,
    metrics_table,
    set_aside_table,
)


def lines_of(table, capsys):
    """The cells of each row, and the whole text."""
    Console(width=120).print(table)
    text = capsys.readouterr().out
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()], text


def recalls(forward="i2t", backward="t2i", shift=0.0):
    numbers = {f"{way}_R@{k}": 0.01 * k + shift for way in (forward, backward) for k in (1, 5, 10)}
    return numbers | {f"{forward}_medr": 3.0, f"{backward}_medr": 2.5}


def test_both_directions_and_languages_with_their_intervals(capsys):
    intervals = {name: [0.0, 0.03] for name in recalls() if "_R@" in name}
    counts = {"images": 4, "captions": 8, "folds": 1}
    report = counts | recalls() | {"intervals": intervals, "chinese": recalls(shift=0.5)}
    rows, text = lines_of(metrics_table(report), capsys)
    assert "4 images, 8 captions" in text and "95 % confidence interval" in text
    assert ["text to image", "1.0% ±1.5", "5.0% ±1.5", "10.0% ±1.5", "2.5"] in rows
    assert ["image to text", "1.0% ±1.5", "5.0% ±1.5", "10.0% ±1.5", "3"] in rows
    assert ["text to image, chinese", "51.0%", "55.0%", "60.0%", "2.5"] in rows
    assert "english" not in text


def test_folds_are_named(capsys):
    _, text = lines_of(metrics_table({"images": 4, "captions": 4, "folds": 2} | recalls()), capsys)
    assert "4 images, 4 captions, mean of 2 folds" in text and "±" not in text


def test_other_modalities_stand_under_their_names(capsys):
    report = {"sound": 4, "text": 4, "folds": 1} | recalls("sound_to_text", "text_to_sound")
    rows, _ = lines_of(metrics_table(report), capsys)
    assert ["sound to text", "1.0%", "5.0%", "10.0%", "3"] in rows


def test_a_compressed_tower_stands_beside_float32(capsys):
    small = {"bytes": 1.5e6, "images_per_second": 83.25, "t2i_R@10": 0.5, "i2t_R@10": 0.25}
    report = {"images": 9} | small | {f"float32_{name}": 2 * each for name, each in small.items()}
    rows, text = lines_of(compression_table(report, "int8"), capsys)
    assert "9 images" in text and "int8" in text
    assert ["size, MB", "3.0", "1.5"] in rows
    assert ["images a second", "166.5", "83.2"] in rows
    assert ["text to image R@10, %", "100.0", "50.0"] in rows
    assert ["image to text R@10, %", "50.0", "25.0"] in rows


def test_what_a_collection_lacks_has_no_row(capsys):
    report = {"layout": "", "items": 1, "splits": {"": 1}, "set_aside": []}
    report |= {"modalities": {"text": {"items": 1, "sources": 2}}, "languages": {"english": 2}}
    report |= {"captions_per_image": None, "caption_words": {"min": 2, "max": 4}}
    report["caption_words"] |= {"median": 2.5, "mean": 2.875}
    report["pictures"] = {"formats": {}, "width": None, "height": None, "flat": 0, "unreadable": 0}
    rows, text = lines_of(inspection_table(report), capsys)
    assert "layout" in text and "in memory" in text and "picture" not in text
    assert ["items", "1 (no split 1)"] in rows and ["text sources", "2 of 1 items"] in rows
    assert ["words in a caption", "2 to 4, median 2.5, mean 2.9"] in rows


def test_the_most_frequent_reasons_have_rows_and_the_rest_are_counted(capsys):
    reasons = [
        {"reason": f"reason {n}", "count": 2, "examples": [["a\x1b.png", "x"], ["b.png", "x"]]}
        for n in range(MOST_REASONS + 2)
    ]
    rows, text = lines_of(set_aside_table({"set_aside": reasons}), capsys)
    assert ["reason 0", "2", "a .png, b.png"] in rows and "\x1b" not in text
    assert rows[-2][:2] == ["2 more reasons", "4"]

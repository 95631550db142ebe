"""Result galleries (结果图库): ranked results drawn as a picture, or as HTML for Jupyter."""

import base64
import html
import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from mmret_tf._checks import printable
from mmret_tf._files import replaced_file
from mmret_tf.data.decoders.text_cards import HAN, draw_line
from mmret_tf.data.items import Item
from mmret_tf.data.modalities import MODALITIES, file_modalities, get_modality
from mmret_tf.ranking.results import SearchResults

THUMBNAIL = 160  # pixels
RIGHT, FRAME = "green", 4  # of a right answer: colour, and width in pixels

# Captions below a picture, and pictures in a row, of a page of items.
MOST_CARDS, COLUMNS = 2, 6


def thumbnail(record: Mapping[str, Any], side: int = THUMBNAIL) -> Image.Image:
    """An item as a square picture: its first source that can be read; grey if none can.

    Args:
        record: Of the item. One that came from a server has no files, but may have texts.
        side: In pixels.
    """
    sources = Item.of(record)["sources"]
    for modality in sorted(MODALITIES.values(), key=lambda each: not each.is_file):
        for source in sources.get(modality.name, []):
            try:
                return modality.thumbnail(modality.as_source(source).read(), side)
            except ValueError:  # the file is gone
                continue
    return Image.new("RGB", (side, side), "lightgrey")


def playing_modalities(record: Mapping[str, Any]) -> list[str]:
    """The modalities of an item's files that play, such as "audio"; no file is read.

    Args:
        record: As for `thumbnail`.
    """
    sources = Item.of(record)["sources"]
    return [each.name for each in file_modalities() if each.playable and sources.get(each.name)]


def playable(record: Mapping[str, Any], modality: str | None = None) -> tuple[str, bytes] | None:
    """What a page plays of an item: its first source that plays and can be read.

    Args:
        record: As for `thumbnail`.
        modality: Of the source; by default any.

    Returns:
        A media type, such as "audio/wav", and the content; `None` if nothing plays.
    """
    for name in playing_modalities(record):
        if modality not in (None, name):
            continue
        known = get_modality(name)
        for source in Item.of(record)["sources"][name]:
            try:
                return known.playable(known.as_source(source).read())
            except ValueError:  # the file is gone, or damaged
                continue
    return None


def results_html(results: SearchResults) -> str:
    """Results as a table: the query, then pictures with rank, score and caption, and a remark.

    It needs no styles, which GitHub strips. Captions are in the language of the query where an item
    has one. A right answer has a check mark, and a green frame that is part of its picture unless
    that moves. Sounds have a player, and clips move.
    """
    words, cells = _query_html(results.query)
    is_han = bool(HAN.search(words))
    for result in results:
        caption = html.escape(_caption(result.item, is_han))
        is_right = result.id in results.right_ids
        mark = " ✓" if is_right else ""
        cells.append(
            f"{_face(result.item, caption, is_right)}<br>"
            f"<b>{result.rank}</b> · {result.score:.3f}{mark}<br>{caption}"
        )
    cells = [f'<td width="{THUMBNAIL}" align="left" valign="top">{cell}</td>' for cell in cells]
    rows = ["".join(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    if words:
        columns = min(COLUMNS, len(cells))
        rows.insert(0, f'<th colspan="{columns}" align="left">{html.escape(words)}</th>')
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    remark = f"<p>{html.escape(results.remark)}</p>" if results.remark else ""
    return f"<table>{table}</table>{remark}"


def _query_html(terms: Sequence[tuple[str, Any, float]]) -> tuple[str, list[str]]:
    """A query's words, and a cell for each of its pictures, sounds and clips."""
    words, cells = [], []
    for name, source, weight in terms:
        if name == "text":
            words.append(source if weight > 0 else f"− {source}")
        else:
            record = {"id": "query", "sources": {name: [source]}}
            cells.append(f"{_face(record, 'query', False)}<br><b>query</b>")
    return " ".join(words), cells


def _caption(record: Mapping[str, Any], is_han: bool) -> str:
    """The first caption of an item in the language of the query, or else its first one."""
    captions = Item.of(record)["captions"]
    own = [each for each in captions if bool(HAN.search(each)) == is_han]
    return next(iter([*own, *captions]), "")


def _face(record: Mapping[str, Any], caption: str, is_right: bool) -> str:
    """The picture of an item, with a player if it sounds; the picture moves if it has a clip."""
    still = thumbnail(record)
    if is_right:
        box = (0, 0, still.width - 1, still.height - 1)
        ImageDraw.Draw(still).rectangle(box, outline=RIGHT, width=FRAME)
    jpeg = io.BytesIO()
    still.save(jpeg, "JPEG")
    picture, player = ("image/jpeg", jpeg.getvalue()), ""
    for modality in playing_modalities(record):
        if (played := playable(record, modality)) is None:
            continue
        if played[0].startswith("image/"):
            picture = played
        else:
            url = _data_url(*played)
            player = f'<audio controls src="{url}" aria-label="{caption}" '
            player += f'style="width:{THUMBNAIL}px">'
            player += "</audio>"
    size = f'width="{THUMBNAIL}" height="{THUMBNAIL}"'
    return f'<img src="{_data_url(*picture)}" {size} alt="{caption}">{player}'


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def draw_gallery(
    queries: Sequence[tuple[str, SearchResults]],
    path: str | os.PathLike,
    right_ids: Sequence[str | int | None] | None = None,
) -> None:
    """Draw a row of ranked results for each query, as a PNG file. Section 3.1(5).

    Args:
        queries: A title and its results for each row.
        path: The file to write.
        right_ids: For each query the id of the right answer, which gets a green frame.

    >>> import tempfile
    >>> from mmret_tf.ranking.results import SearchResult
    >>> results = SearchResults([SearchResult(1, "a", 0.8, {"id": "a", "captions": ["红色的圆"]})])
    >>> file = f"{tempfile.mkdtemp()}/gallery.png"
    >>> draw_gallery([("a red circle", results)], file, right_ids=["a"])
    >>> Image.open(file).size  # one result of THUMBNAIL pixels
    (184, 224)
    """
    columns = max(len(results) for _, results in queries)
    pad, title_height = 12, 28
    row_height = title_height + THUMBNAIL + 24
    sheet = Image.new(
        "RGB", (pad + columns * (THUMBNAIL + pad), pad + len(queries) * row_height), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for row, (title, results) in enumerate(queries):
        top = pad + row * row_height
        draw_line(draw, (pad, top), textwrap.shorten(title, 110))
        for column, result in enumerate(results):
            left, below = pad + column * (THUMBNAIL + pad), top + title_height
            sheet.paste(thumbnail(result.item), (left, below))
            if right_ids is not None and result.id == right_ids[row]:
                box = (left - FRAME, below - FRAME, left + THUMBNAIL + 3, below + THUMBNAIL + 3)
                draw.rectangle(box, outline=RIGHT, width=FRAME)
            draw.text(
                (left, below + THUMBNAIL + 4), f"{result.rank}   {result.score:.3f}", fill="black"
            )
    with replaced_file(path) as temporary:
        sheet.save(temporary, "PNG")


def draw_items(records: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draw a page of items with their captions below, as a PNG file. Section 2.1.

    Args:
        records: Items, with one or two captions each; more are not drawn.
        path: The file to write.

    >>> import tempfile
    >>> file = f"{tempfile.mkdtemp()}/items.png"
    >>> draw_items([{"id": "a", "image": "gone.png", "captions": ["a red circle"]}], file)
    >>> Image.open(file).size  # a thumbnail and a card below it
    (184, 344)
    """
    pad = 12
    items = [Item.of(record) for record in records]
    cards = min(MOST_CARDS, max((len(item["captions"]) for item in items), default=0))
    columns, rows = min(COLUMNS, len(items)), math.ceil(len(items) / COLUMNS)
    width, height = THUMBNAIL + pad, (1 + cards) * THUMBNAIL + pad
    sheet = Image.new("RGB", (pad + columns * width, pad + rows * height), "white")
    for number, item in enumerate(items):
        row, column = divmod(number, COLUMNS)
        left, top = pad + column * width, pad + row * height
        sheet.paste(thumbnail(item), (left, top))
        for caption in item["captions"][:MOST_CARDS]:
            top += THUMBNAIL
            card = get_modality("text").thumbnail(printable(caption).encode(), THUMBNAIL)
            sheet.paste(card, (left, top))
    with replaced_file(path) as temporary:
        sheet.save(temporary, "PNG")

"""From a query (text, an image, or both) to ranked results with pictures (检索与排序).

Section 3.1(5) and 6 of the document: embed the query, take the nearest embeddings of the gallery
from the index, and show their items, best first.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmret_tf.brute_force import BruteForceIndex
from mmret_tf.compression import CompressedImageTower
from mmret_tf.dual_encoder import DualEncoder, load_model
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint
from mmret_tf.fused_encoder import FusedEncoder, load_fused_encoder
from mmret_tf.index import ScannIndex, load_index
from mmret_tf.preprocessing import ImageSource

THUMBNAIL = 160  # pixels

# Of the text in a query of text and image, where nothing was trained for such queries.
EQUAL_SHARES = 0.5
# What a served model takes in the place of `text_weight=None`: every request must have a number.
TEXT_WEIGHT_BY_DEFAULT = -1.0


@dataclass(frozen=True)
class SearchResult:
    """One place in a ranking. Section 3.1(5).

    Attributes:
        rank: from 1.
        id: of the item.
        score: larger for better matches: the cosine similarity, unless the index is Euclidean.
        item: the record of the item: its "id", the path of its "image" (`None` for text alone), its
            "captions" and its "attributes".

    >>> SearchResult(rank=1, id="a", score=0.8, item={"id": "a", "captions": ["a dog"]}).score
    0.8
    """

    rank: int
    id: str | int
    score: float
    item: dict


class SearchResults(list):
    """A list of `SearchResult`, best first, that Jupyter shows as pictures. Section 3.1(5).

    >>> dog = {"id": "a", "image": None, "captions": ["a dog"], "attributes": {}}
    >>> SearchResults([SearchResult(1, "a", 0.8, dog)])
       1  0.800  a  a dog
    """

    def __repr__(self) -> str:
        lines = [
            f"{result.rank:>4}  {result.score:.3f}  {result.id}  "
            + " / ".join(result.item["captions"][:1])
            for result in self
        ]
        return "\n".join(lines) or "no results"

    def _repr_html_(self) -> str:
        cards = []
        for result in self:
            jpeg = io.BytesIO()
            card(result.item).save(jpeg, "JPEG")
            source = base64.b64encode(jpeg.getvalue()).decode()
            caption = html.escape(" / ".join(result.item["captions"][:1]))
            cards.append(
                f'<div style="width:{THUMBNAIL}px">'
                f'<img src="data:image/jpeg;base64,{source}" alt="{caption}">'
                f"<div><b>{result.rank}</b> · {result.score:.3f}<br>{caption}</div></div>"
            )
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(cards)}</div>'


class Searcher:
    """A model, the index of a gallery's embeddings, and its items. Section 3.1(5) and 6.

    Args:
        model: the dual encoder that made the embeddings; or a `FusedEncoder` upon it, which then
            embeds the queries that have both text and image.
        index: `BruteForceIndex` or `ScannIndex`.
        items: one record an id of the index, `{"id", "image", "captions", "attributes"}`.

    Raises:
        ValueError: the index has another width than the model, or an id without an item.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(embedding_dim=2)  # or a `DualEncoder`, with `ScannIndex`
    >>> model.encode_texts = lambda texts: np.array([[0.6, 0.8]])
    >>> index = BruteForceIndex.build([[1, 0], [0, 1]], ["a", "b"])
    >>> items = [{"id": "a", "captions": ["a cat"]}, {"id": "b", "captions": ["a dog", "狗"]}]
    >>> searcher = Searcher(model, index, items)
    >>> results = searcher.search(text="a dog", k=2)
    >>> results
       1  0.800  b  a dog
       2  0.600  a  a cat
    >>> results[0].item["captions"]
    ['a dog', '狗']
    """

    def __init__(
        self,
        model: DualEncoder | FusedEncoder,
        index: BruteForceIndex | ScannIndex,
        items: Sequence[dict],
    ):
        if index.dim != model.embedding_dim:
            raise ValueError(
                f"the index holds embeddings of width {index.dim}, and the model makes width "
                f"{model.embedding_dim}: build the index from this model's embeddings"
            )
        self.fusion = model if isinstance(model, FusedEncoder) else None
        self.model = model if self.fusion is None else self.fusion.encoder
        self.index = index
        self.items = {item["id"]: item for item in items}
        missing = [key for key in index.ids if key not in self.items]
        if missing:
            raise ValueError(
                f"{len(missing)} ids of the index have no item, first {missing[0]!r}: build the "
                "index again from the embeddings of these items (`mmret index`)"
            )

    @classmethod
    def open(cls, run: str | os.PathLike, compressed: bool = False) -> Searcher:
        """Open a run's folder: `model.keras`, `embeddings/` and `index/`. A `fusion.keras`, if
        there is one, is a `FusedEncoder` for queries of text and image, and brings its model.

        Args:
            run: the folder.
            compressed: whether query pictures are embedded by the image tower that `mmret compress`
                left in `compressed/`.

        Raises:
            ValueError: a part is missing or damaged, or the embeddings are another model's.
        """
        run = Path(run)
        if not run.is_dir():
            raise ValueError(f"no run at {run}: expected a folder that `mmret train` made")
        store = EmbeddingStore.open(run / "embeddings")
        if (run / "fusion.keras").exists():
            model = load_fused_encoder(run / "fusion.keras")
            if store.fingerprint != model_fingerprint(model.encoder):
                raise ValueError(
                    f"{run / 'fusion.keras'} stands on another model than the one that made "
                    f"{store.directory}: train it again, or move it away"
                )
        else:
            model = load_model(run / "model.keras")
            if store.fingerprint != model_fingerprint(model):
                raise ValueError(
                    f"{store.directory} was made by another model than {run / 'model.keras'}: "
                    "run `mmret embed` and `mmret index` again"
                )
        searcher = cls(model, load_index(run / "index"), store.items)
        if compressed:
            tower = CompressedImageTower.load(run / "compressed", searcher.model)
            searcher.model.image_encoder = tower
        return searcher

    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        text_weight: float | None = None,
        where: Mapping[str, Any] | None = None,
        exclude_ids: Collection[str] | Collection[int] = (),
    ) -> SearchResults:
        """Rank the gallery for one query. Section 3.1(5).

        Args:
            text: a query in words, in any language that the model was trained on.
            image: a query picture: path, encoded bytes, PIL image or array.
            k: how many results; the whole gallery if it holds fewer.
            text_weight: makes of a query of both the weighted sum of their embeddings (section
                3.2(3)), with this share of the text, 0 to 1. By default the trained fusion embeds
                such a query; without one, the shares are equal.
            where: a condition on the items' attributes, if the index was built with them; as
                `{"price": {"$lt": 20}}`, see `mmret_tf.filters.check_condition`.
            exclude_ids: items not to return.

        Returns:
            A list of `SearchResult`, best first.

        Raises:
            ValueError: neither text nor image is given, k is below 1, the picture is unreadable, or
                the condition is none.
        """
        check_query(text, image, text_weight)
        if image is None:
            query = self.model.encode_texts([text])[0]
        elif text is None:
            query = self.model.encode_images([image])[0]
        elif text_weight is None and self.fusion is not None:
            query = self.fusion.encode_items([[image]], [[text]])[0]
        else:
            share = EQUAL_SHARES if text_weight is None else text_weight
            texts, images = self.model.encode_texts([text]), self.model.encode_images([image])
            query = share * texts[0] + (1 - share) * images[0]
        query = query / max(np.linalg.norm(query), 1e-6)
        ids, scores = self.index.search(query, k, where, exclude_ids)
        found = ids[0].tolist()
        if added := [key for key in found if key not in self.items]:
            raise ValueError(
                f"the index holds {added[0]!r}, which came after this searcher: put its record "
                'into `searcher.items`, {"id", "image", "captions", "attributes"}'
            )
        return SearchResults(
            SearchResult(rank, key, score, self.items[key])
            for rank, (key, score) in enumerate(zip(found, scores[0].tolist(), strict=True), 1)
        )


def check_query(text: str | None, image: ImageSource | None, text_weight: float | None) -> None:
    """Refuse what is no query; ValueError."""
    if text is None and image is None:
        raise ValueError("a query needs text, an image, or both; got neither")
    if not isinstance(text, str | None):
        raise ValueError(f"text must be a string; got {text!r:.80}")
    if text_weight is not None and not 0 <= text_weight <= 1:
        raise ValueError(f"text_weight must be from 0 to 1; got {text_weight}")


def thumbnail(path: str | os.PathLike) -> Image.Image:
    """A square RGB picture of `THUMBNAIL` pixels; a grey one where the file is gone."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        return ImageOps.fit(upright, (THUMBNAIL, THUMBNAIL))
    except OSError:
        grey = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "lightgrey")
        ImageDraw.Draw(grey).text((8, THUMBNAIL // 2), "file not found", fill="black")
        return grey


def card(item: dict) -> Image.Image:
    """An item as a square picture: its first image, or its first caption where it has none.

    What comes from a server is without its image, too.
    """
    if item.get("image"):
        return thumbnail(item["image"])
    text = " ".join(" ".join(item["captions"][:1]).split())
    text = text.encode("utf-8", "replace").decode()  # half a character has no glyph
    blank = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "whitesmoke")
    draw, font = ImageDraw.Draw(blank), _font(text)
    lines = [""]
    for piece in PIECES.findall(text):
        if draw.textlength(lines[-1] + piece.rstrip(), font) > THUMBNAIL - 16:
            lines.append("")
        lines[-1] += piece
    draw.multiline_text((8, 6), "\n".join(lines[:7]), fill="black", font=font)
    return blank


def draw_gallery(
    queries: Sequence[tuple[str, SearchResults]],
    path: str | os.PathLike,
    right_ids: Sequence[str | int | None] | None = None,
) -> None:
    """Write a picture with a row of ranked results for each query.

    Args:
        queries: a title and its results, a row each.
        path: the PNG to write.
        right_ids: for each query, the id of the right answer, which gets a green frame.
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
        font = _font(title)
        draw.text((pad, top), textwrap.shorten(title, 110), fill="black", font=font)
        for column, result in enumerate(results):
            left, below = pad + column * (THUMBNAIL + pad), top + title_height
            sheet.paste(card(result.item), (left, below))
            if right_ids is not None and result.id == right_ids[row]:
                box = (left - 4, below - 4, left + THUMBNAIL + 3, below + THUMBNAIL + 3)
                draw.rectangle(box, outline="green", width=4)
            draw.text(
                (left, below + THUMBNAIL + 4), f"{result.rank}   {result.score:.3f}", fill="black"
            )
    temporary = Path(f"{os.fspath(path)}.partial")
    sheet.save(temporary, "PNG")
    os.replace(temporary, path)


# Where a line may break: after a Chinese character, and after a word; a long one, anywhere.
PIECES = re.compile(r"[\u2e80-\uffff]\s*|[^\s\u2e80-\uffff]{1,12}\s*")

# Fonts with Chinese glyphs, as Debian, Fedora, macOS and Windows name their files.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "simsun.ttc",
)


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; for text beyond Latin letters, a Chinese font of the system, if any."""
    if not text.isascii():
        for name in CHINESE_FONTS:
            try:
                return ImageFont.truetype(name, 18)
            except OSError:
                continue
    return ImageFont.load_default(18)

"""The embedding store (嵌入库): a gallery's embeddings and items on disk, resumable and checked.

Embedding a gallery is the slow part of sections 3.2(1, 2) and 7.2 of the document. It is done in
chunks that survive a kill.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import claimed_folder, open_array, read_manifest, replaced_content
from mmret_tf.data.collection import Collection
from mmret_tf.data.items import Item
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import identities
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.storage.chunks import CHUNK_ROWS, EncodeBlocks, encode_chunks, rows_of
from mmret_tf.similarity.vectors import row_cosines

FORMAT = "mmret_tf embeddings"
VERSION = 3

DTYPES = ("float32", "float16", "int8")

# What decides the embedding of an item besides the item, and how it is stored.
ENCODED_BY = ("fingerprint", "form", "recipe")
MADE_BY = (*ENCODED_BY, "dtype")


class EmbeddingStore:
    """The embeddings of a gallery, memory-mapped, and one record an item. Section 3.2(1, 2).

    A folder with `embeddings.npy` (`[n, dim]`: float32, float16, or int8 with the `scales.npy` of
    its rows), `items.jsonl` (a JSON object a line, see `Item`, UTF-8), `files.jsonl` (for each
    item, SHA-256, size and time of its files, by modality) and `manifest.json` (format version, n,
    dim, dtype, fingerprint of the encoder, size and SHA-256 of each file). Nothing in it is
    executed.

    Attributes:
        embeddings: float32 `[n, dim]`; read-only and on disk, unless stored in fewer bits: then it
            is made in memory when it is first asked for. See also `rows`.
        items: One `Item` a row.
        ids: The `id` of each item, strings.
        fingerprint: Of the encoder that made the embeddings.
        form: How it computed them: "float32", "int8" and so on.
        made_by: "fingerprint", "form" and "recipe" of the encoder, and "dtype": rows can be used
            again where all are equal.
        loss: What the storage type costs: 1 minus the cosine (余弦相似度) of an embedding as it is
            stored and as it was made, "mean" and "max" over the rows.
        directory: Where the files are.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))  # trained, in earnest
    >>> folder = Path(tempfile.mkdtemp()) / "embeddings"
    >>> store = EmbeddingStore.export(model, pairs, folder)
    >>> store.embeddings.shape, EmbeddingStore.open(folder).ids[0], len(store.items[0]["captions"])
    ((4, 8), 'dev-0-00000', 4)
    """

    def __init__(
        self,
        directory: Path,
        stored: np.ndarray,
        scales: np.ndarray | None,
        items: list[Item],
        manifest: dict[str, Any],
    ):
        self.directory = directory
        self._stored, self._scales = stored, scales
        self.items = items
        self.ids = [item["id"] for item in items]
        self.fingerprint = manifest.get("fingerprint")
        self.form = manifest.get("form", "float32")
        self.made_by = {name: manifest.get(name) for name in MADE_BY}
        self.loss = manifest.get("loss", {"mean": 0.0, "max": 0.0})

    def __len__(self) -> int:
        """The number of items."""
        return len(self.items)

    def __repr__(self) -> str:
        n, dim = self._stored.shape
        return f"EmbeddingStore({n} items, dim {dim}, {os.fspath(self.directory)!r})"

    @classmethod
    def export(
        cls,
        encoder: Encoder,
        collection: Collection,
        directory: str | os.PathLike,
        dtype: str = "float32",
        known: "EmbeddingStore | None" = None,
        encode: EncodeBlocks | None = None,
    ) -> "EmbeddingStore":
        """Embed all items of a collection and write them to `directory`.

        Every 1,024 rows are saved in `<directory>.partial` as they are made. When the export is
        killed and called again, chunks of the same encoder, ids and sources are read back, and the
        rest is encoded; other leftovers there are deleted.

        At the end, in this order: the whole store is written in `<directory>.partial/new`, its
        manifest last; an older store moves from `directory` to `<directory>.partial/old`; `new`
        moves to `directory`; `<directory>.partial` is deleted. A kill therefore leaves the old
        store, the new one, or (between the two moves) none, and then the next export restores the
        old one before it begins.

        Args:
            encoder: Embeds the items.
            collection: The items; also `Pairs`, a row an item.
            directory: Does not exist, is empty, or holds an older store, which is replaced.
            dtype: How embeddings are stored: "float32"; "float16", half the size; or "int8", a
                quarter, with a scale for each row. `loss` says what that costs.
            known: A store, perhaps the older one. Its rows are used again for items of the same
                content, if the same encoder made them and stored them in the same type.
            encode: Embeds blocks of items, see `EncodeBlocks`; by default the encoder's
                `encode_items` does, in this process.

        Returns:
            The new store, opened.

        Raises:
            ValueError: `directory` holds something else, the collection is empty, a source cannot
                be read, attributes are not JSON, or an embedding is NaN or infinite (the message
                names the item).
        """
        directory = Path(directory)
        if not len(collection):
            raise ValueError("nothing to embed: the collection is empty")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        files, items = _files(collection), collection.records()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "n": len(items),
            "dim": encoder.embedding_dim,
            "dtype": dtype,
            "form": encoder.form,
            "recipe": encoder.recipe,
            "fingerprint": encoder.fingerprint,
        }
        lines = {"items.jsonl": [_line(item) for item in items]}
        lines["files.jsonl"] = [_json_bytes(each) + b"\n" for each in files]
        made_by = {name: manifest[name] for name in MADE_BY}
        rows = _known_rows(known, made_by, items, files)
        with claimed_folder(directory, FORMAT) as partial:
            new = collection.subset(np.flatnonzero(rows < 0).tolist())
            encoded_by = [VERSION, *(manifest[name] for name in ENCODED_BY)]
            encode = encode or functools.partial(map, encoder.encode_items)
            chunks = encode_chunks(encoder, encoded_by, new, partial, encode)
            with replaced_content(directory, partial, manifest) as folder:
                manifest["loss"] = _write_embeddings(chunks, known, rows, folder, manifest)
                for name, each in lines.items():
                    (folder / name).write_bytes(b"".join(each))
        return cls.open(directory)

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "EmbeddingStore":
        """Open a store, after checking that it is whole: sizes, SHA-256, shapes, ids.

        Args:
            directory: What `export` wrote, wherever it was moved since.

        Raises:
            ValueError: There is no store, or it is damaged, or of another version of mmret_tf.
        """
        directory = Path(directory)
        directory, manifest = read_manifest(directory, FORMAT, VERSION)
        n, dim, dtype = (manifest.get(name) for name in ("n", "dim", "dtype"))
        if dtype not in DTYPES:
            raise ValueError(f"{directory} is damaged: its dtype is {dtype!r}")
        stored = open_array(directory / "embeddings.npy", (n, dim), dtype)
        scales = open_array(directory / "scales.npy", (n, 1)) if dtype == "int8" else None
        records = _json_lines(directory / "items.jsonl")
        try:
            items = [Item.of(record) for record in records]
            ids = {item["id"] for item in items if isinstance(item["id"], str)}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory} is damaged: items.jsonl, {error}") from None
        if not len(ids) == len(items) == len(stored):
            raise ValueError(
                f"{directory} is damaged: {len(stored)} embeddings, {len(items)} items, "
                f"{len(ids)} different ids"
            )
        return cls(directory, stored, scales, items, manifest)

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        return self._stored if self._stored.dtype == np.float32 else self.rows(slice(None))

    def rows(self, rows: Sequence[int] | int | slice, columns: slice = slice(None)) -> np.ndarray:
        """Some of the embeddings, read from the disk.

        Args:
            rows: Their numbers.
            columns: The numbers to read of each.

        Returns:
            float32 `[n, dim]`, not to be changed; `[dim]` for one row.
        """
        found = self._stored[rows, columns].astype(np.float32, copy=False)
        return found if self._scales is None else found * self._scales[rows]

    @functools.cached_property
    def files(self) -> list[dict[str, list[list]]]:
        """For each item, `[SHA-256, size, time of the last change]` of its files, by modality; the
        last two are `Source.identity_stamp`. ValueError if `files.jsonl` is damaged."""
        files = _json_lines(self.directory / "files.jsonl")
        try:
            entries = [entry for each in files for group in each.values() for entry in group]
            is_right = all(isinstance(identity, str) for identity, _, _ in entries)
        except (TypeError, ValueError, AttributeError):
            is_right = False
        if not is_right or len(files) != len(self):
            raise ValueError(f"{self.directory} is damaged: files.jsonl")
        return files

    @functools.cached_property
    def contents(self) -> list[str]:
        """A digest of all sources of each item. What was embedded is equal if it is."""
        return list(map(_content, self.items, self.files))


def _files(collection: Collection) -> list[dict[str, list[list]]]:
    """See `EmbeddingStore.files`."""
    found: list[dict[str, list[list]]] = [{} for _ in collection.ids]
    for name, of_items in collection.sources.items():
        if get_modality(name).is_file:
            identities(chain(*of_items))  # in several threads
            for files, each in zip(found, of_items, strict=True):
                if each:
                    files[name] = [
                        [source.identity, *(source.identity_stamp or (None, None))]
                        for source in each
                    ]
    return found


def _content(item: Item, files: dict[str, list[list]]) -> str:
    """See `EmbeddingStore.contents`."""
    content = {
        name: [entry[0] for entry in files[name]] if name in files else records
        for name, records in sorted(item["sources"].items())
    }
    return hashlib.sha256(_json_bytes(content)).hexdigest()


def _known_rows(
    known: "EmbeddingStore | None", made_by: dict, items: list[Item], files: list[dict]
) -> np.ndarray:
    """For each item, a row of the known store that has its embedding, or -1."""
    if known is None or known.made_by != made_by:
        return np.full(len(items), -1)
    rows = {content: row for row, content in enumerate(known.contents)}
    return np.array([rows.get(content, -1) for content in map(_content, items, files)])


def _write_embeddings(
    chunks: list[Path],
    known: "EmbeddingStore | None",
    rows: np.ndarray,
    folder: Path,
    manifest: dict,
) -> dict[str, float]:
    """Write the rows of the known store and of the chunks, in the type of the manifest.

    Args:
        chunks: Files with the new embeddings, in order.
        known: The store of the others, if there are any.
        rows: The row of each item in `known`, or -1 for the next one of the chunks: `[n]`.
        folder: Where to write.
        manifest: "n", "dim" and "dtype".

    Returns:
        What the type costs, see `EmbeddingStore`.
    """
    n, dim, dtype = (manifest[name] for name in ("n", "dim", "dtype"))
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n, dim)}
    scales = np.empty((n, 1), np.float32)
    place = np.cumsum(rows < 0)  # number of new rows up to each
    losses = np.zeros(n)
    # Not through a memory map: on a full disk, that would end the process.
    with open(folder / "embeddings.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, CHUNK_ROWS):
            block = slice(start, min(start + CHUNK_ROWS, n))
            is_new = rows[block] < 0
            embeddings = np.empty((len(is_new), dim), np.float32)
            last = int(place[block.stop - 1])
            embeddings[is_new] = rows_of(chunks, last - np.count_nonzero(is_new), last, dim)
            if not is_new.all():
                embeddings[~is_new] = known.rows(rows[block][~is_new])
            stored, scales[block] = _stored(embeddings, dtype)
            file.write(stored.tobytes())
            if dtype != "float32":
                losses[block] = 1 - row_cosines(embeddings, stored * scales[block])
    if dtype == "int8":
        np.save(folder / "scales.npy", scales, allow_pickle=False)
    n_known = n - int(place[-1])  # they are stored again without a loss
    before = known.loss if n_known else {"mean": 0.0, "max": 0.0}
    mean = (losses.sum() + n_known * before["mean"]) / n
    return {"mean": float(mean), "max": float(max(losses.max(), before["max"]))}


def _stored(embeddings: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | float]:
    """Rows as they are stored, and the factor that restores each."""
    scales: np.ndarray | float = 1.0
    if dtype == "int8":
        scales = np.maximum(np.abs(embeddings).max(axis=1, keepdims=True), 1e-12) / 127
        embeddings = np.rint(embeddings / scales)
    return embeddings.astype(dtype), scales


def _line(item: Item) -> bytes:
    """One line of `items.jsonl`."""
    if not isinstance(item["id"], str):
        raise ValueError(f"ids of a collection must be strings; got {item['id']!r}")
    try:
        return _json_bytes(item) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"item {item['id']!r} cannot be written as JSON: {error}") from None


def _json_lines(path: Path) -> list:
    """The JSON value of each line of a file; ValueError if it is damaged."""
    try:
        text = path.read_bytes().decode("utf-8")
        # Only "\n" ends a line: a caption may hold U+2028, which str.splitlines would take.
        return [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.parent} is damaged: {path.name}, {error}") from None


def _json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, Chinese as it is."""
    # A file name that is not UTF-8 has lone surrogates; "\udc80" is their JSON escape as well.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")

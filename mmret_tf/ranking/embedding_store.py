"""The embedding store (嵌入库): a gallery's embeddings and items on disk, resumable and checked.

Embedding a gallery is the slow part of sections 3.2(1, 2) and 7.2 of the document. It is done in
chunks that survive a kill.
"""

import hashlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import (
    claimed_folder,
    open_array,
    read_manifest,
    replaced_content,
)
from mmret_tf.data.collection import Collection
from mmret_tf.data.items import Item
from mmret_tf.data.progress import Progress
from mmret_tf.data.sources import identities
from mmret_tf.models.encoder import Encoder
from mmret_tf.similarity.vectors import row_cosines

FORMAT = "mmret_tf embeddings"
VERSION = 2

DTYPES = ("float32", "float16", "int8")

# Number of rows that are encoded, and lost by a kill, at most.
CHUNK_ROWS = 1024


class EmbeddingStore:
    """The embeddings of a gallery, memory-mapped, and one record an item. Section 3.2(1, 2).

    A folder with `embeddings.npy` (`[n, dim]`: float32, float16, or int8 with the `scales.npy` of
    its rows), `items.jsonl` (a JSON object a line, see `Item`, UTF-8) and `manifest.json` (format
    version, n, dim, dtype, fingerprint of the encoder, size and SHA-256 of each file). Nothing in
    it is executed.

    Attributes:
        embeddings: float32 `[n, dim]`; read-only and on disk, unless stored in fewer bits.
        items: One `Item` a row.
        ids: The `id` of each item, strings.
        fingerprint: Of the encoder that made the embeddings.
        form: How it computed them: "float32", "int8" and so on.
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
        self, directory: Path, embeddings: np.ndarray, items: list[Item], manifest: dict[str, Any]
    ):
        self.directory = directory
        self.embeddings = embeddings
        self.items = items
        self.ids = [item["id"] for item in items]
        self.fingerprint = manifest.get("fingerprint")
        self.form = manifest.get("form", "float32")
        self.loss = manifest.get("loss", {"mean": 0.0, "max": 0.0})

    def __len__(self) -> int:
        """The number of items."""
        return len(self.items)

    def __repr__(self) -> str:
        n, dim = self.embeddings.shape
        return f"EmbeddingStore({n} items, dim {dim}, {os.fspath(self.directory)!r})"

    @classmethod
    def export(
        cls,
        encoder: Encoder,
        collection: Collection,
        directory: str | os.PathLike,
        dtype: str = "float32",
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
            encoder: Embeds the items by its `encode_items`.
            collection: The items; also `Pairs`, a row an item.
            directory: Does not exist, is empty, or holds an older store, which is replaced.
            dtype: How embeddings are stored: "float32"; "float16", half the size; or "int8", a
                quarter, with a scale for each row. `loss` says what that costs.

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
        lines = [_line(item) for item in collection.records()]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "n": len(lines),
            "dim": encoder.embedding_dim,
            "dtype": dtype,
            "form": encoder.form,
            "fingerprint": encoder.fingerprint,
        }
        with claimed_folder(directory, FORMAT) as partial:
            chunks = _encode_chunks(encoder, manifest["fingerprint"], collection, partial)
            with replaced_content(directory, partial, manifest) as new:
                manifest["loss"] = _write_embeddings(chunks, new, manifest)
                (new / "items.jsonl").write_bytes(b"".join(lines))
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
        embeddings = open_array(directory / "embeddings.npy", (n, dim), dtype)
        if dtype != "float32":
            embeddings = embeddings.astype(np.float32)
        if dtype == "int8":
            embeddings *= open_array(directory / "scales.npy", (n, 1))
        try:
            text = (directory / "items.jsonl").read_bytes().decode("utf-8")
            # Only "\n" ends a line: a caption may hold U+2028, which str.splitlines would take.
            records = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
            items = [Item.of(record) for record in records]
            ids = {item["id"] for item in items if isinstance(item["id"], str)}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory} is damaged: items.jsonl, {error}") from None
        if not len(ids) == len(items) == len(embeddings):
            raise ValueError(
                f"{directory} is damaged: {len(embeddings)} embeddings, {len(items)} items, "
                f"{len(ids)} different ids"
            )
        return cls(directory, embeddings, items, manifest)


def _encode_chunks(
    encoder: Encoder, fingerprint: str, collection: Collection, partial: Path
) -> list[Path]:
    """Bring the partial folder up to date; return its chunks in order, `[CHUNK_ROWS, dim]` each.

    A chunk is named after all that decides its content, so a whole file of that name is right.
    """
    n = len(collection)
    made_by = [VERSION, fingerprint, encoder.form, encoder.recipe]
    used = {name: collection.sources.get(name, [[]] * n) for name in encoder.modalities}
    blocks = [slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS)]
    chunks = []
    for block in blocks:
        digests = [
            [name, [len(each) for each in sources[block]], identities(chain(*sources[block]))]
            for name, sources in used.items()
        ]
        content = _json_bytes([*made_by, collection.ids[block], digests])
        chunks.append(partial / f"{hashlib.sha256(content).hexdigest()}.npy")
    for path in partial.glob("*.npy*"):
        if path not in chunks:
            path.unlink()

    progress = Progress(n, "item") if len(chunks) > 1 else None
    for block, chunk in zip(blocks, chunks, strict=True):
        if not _is_whole(chunk, (block.stop - block.start, encoder.embedding_dim)):
            rows = encoder.encode_items({name: each[block] for name, each in used.items()})
            _check_rows(rows, collection.ids[block], encoder.embedding_dim)
            temporary = chunk.with_name(f"{chunk.name}.partial")
            with open(temporary, "wb") as file:
                np.save(file, rows, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without the content
            os.replace(temporary, chunk)
        if progress is not None:
            progress.update(block.stop)
    return chunks


def _is_whole(chunk: Path, shape: tuple[int, int]) -> bool:
    """Whether a chunk is there, and holds as many numbers as it should."""
    try:
        return bool(open_array(chunk, shape).size)
    except ValueError:
        return False


def _check_rows(embeddings: np.ndarray, ids: list[str], dim: int) -> None:
    """Refuse embeddings of another shape, or with NaN or infinity."""
    if embeddings.shape != (len(ids), dim):
        raise ValueError(
            f"encode_items must return [{len(ids)}, {dim}], one row an item; "
            f"got shape {embeddings.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the embedding of item {ids[bad[0]]!r} holds NaN or infinity (and {bad.size - 1} "
            "others of its chunk): the model's weights may be broken"
        )


def _write_embeddings(chunks: list[Path], folder: Path, manifest: dict) -> dict[str, float]:
    """Write all chunks as one array in the type of the manifest; return what that costs."""
    n, dim, dtype = (manifest[name] for name in ("n", "dim", "dtype"))
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n, dim)}
    scales = np.empty((n, 1), np.float32)
    cosines = []
    # Not through a memory map: on a full disk, that would end the process.
    with open(folder / "embeddings.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start, chunk in zip(range(0, n, CHUNK_ROWS), chunks, strict=True):
            block = slice(start, start + CHUNK_ROWS)
            embeddings = np.load(chunk, allow_pickle=False)
            stored, scales[block] = _stored(embeddings, dtype)
            file.write(stored.tobytes())
            if dtype != "float32":
                cosines.append(row_cosines(embeddings, stored * scales[block]))
    if dtype == "int8":
        np.save(folder / "scales.npy", scales, allow_pickle=False)
    losses = 1 - np.concatenate(cosines or [np.ones(1)])
    return {"mean": float(losses.mean()), "max": float(losses.max())}


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


def _json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, Chinese as it is."""
    # A file name that is not UTF-8 has lone surrogates; "\udc80" is their JSON escape as well.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")

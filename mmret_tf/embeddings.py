"""A gallery's embeddings and its items on disk (嵌入库): made once, resumable, checked on opening.

Embedding a gallery is the slow part of sections 3.1(3) and 7.2 of the document; it is done in
chunks that outlive a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from mmret_tf.folders import claim_folder, open_array, partial_folder, read_manifest, replace_folder

if TYPE_CHECKING:
    from mmret_tf.datasets import PairDataset

FORMAT = "mmret_tf embeddings"
VERSION = 1

# Rows that are encoded, and lost by a kill, at most.
CHUNK_ROWS = 1024


class EmbeddingStore:
    """The embeddings of a gallery, memory-mapped, and one record an item. Section 3.1(3).

    A folder with `embeddings.npy` (float32 `[n, dim]`), `items.jsonl` (a JSON object a line:
    `{"id", "image", "captions", "attributes"}`, UTF-8) and `manifest.json` (format version, n, dim,
    dtype, fingerprint of the model, size and SHA-256 of each file). Nothing in it is executed.

    Attributes:
        embeddings: float32 `[n, dim]`, read-only, on disk.
        items: one dict a row.
        ids: the `id` of each item, strings.
        fingerprint: of the model that made the embeddings, see `model_fingerprint`.
        directory: where the files are.

    >>> import tempfile, types
    >>> from mmret_tf.datasets import PairDataset
    >>> files, captions = [Path("a.png"), Path("b.png")], [["red", "红"], ["blue"]]
    >>> pairs = PairDataset(["a", "b"], files, captions, [{}, {}], ["", ""])
    >>> model = types.SimpleNamespace(weights=[], encode_images=lambda features: features)
    >>> folder = Path(tempfile.mkdtemp()) / "embeddings"
    >>> store = EmbeddingStore.export(model, pairs, folder, features=np.eye(2, dtype="float32"))
    >>> store.ids, store.embeddings.shape, EmbeddingStore.open(folder).items[0]["captions"]
    (['a', 'b'], (2, 2), ['red', '红'])
    """

    def __init__(
        self, directory: Path, embeddings: np.ndarray, items: list[dict], fingerprint: str
    ):
        self.directory = directory
        self.embeddings = embeddings
        self.items = items
        self.ids = [item["id"] for item in items]
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """The number of items."""
        return len(self.items)

    def __repr__(self) -> str:
        n, dim = self.embeddings.shape
        return f"EmbeddingStore({n} items, dim {dim}, {os.fspath(self.directory)!r})"

    @classmethod
    def export(
        cls,
        model: Any,
        pairs: PairDataset,
        directory: str | os.PathLike,
        batch_size: int = 64,
        features: np.ndarray | None = None,
    ) -> EmbeddingStore:
        """Embed all images of a collection and write them to `directory`.

        Every 1,024 rows are saved as they come, in `<directory>.partial`. When the export is killed
        and called again, chunks of the same model, ids, paths and features are read back, and the
        rest is encoded; whatever else a killed export left there is deleted.

        At the end, in this order: the whole store is written in `<directory>.partial/new`, its
        manifest last; an older store moves from `directory` to `<directory>.partial/old`; `new`
        moves to `directory`; `<directory>.partial` is deleted. A kill therefore leaves the old
        store, the new one, or (between the two moves) none, and then the next export puts the old
        one back before it begins.

        Args:
            model: has `encode_images(list of paths) -> [n, dim]`, and `weights`.
            pairs: the collection; its captions and attributes go into the items.
            directory: does not exist, is empty, or holds an older store, which is replaced.
            batch_size: images that are given to the model at once.
            features: the backbone's features of the images `[n, features]`; they are given to
                `encode_images` in place of the paths.

        Returns:
            The new store, opened.

        Raises:
            ValueError: `directory` holds something else, the collection is empty, features do not
                fit, attributes are not JSON, or an embedding is NaN or infinite (the message names
                the item).
        """
        directory = Path(directory)
        if len(pairs.ids) == 0:
            raise ValueError("nothing to embed: the collection has no images")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if features is not None:
            features = np.asarray(features)
            if features.ndim != 2 or len(features) != len(pairs.ids) or features.dtype.kind != "f":
                raise ValueError(
                    f"features must be a float array [{len(pairs.ids)}, features], one row an "
                    f"image; got {features.dtype} of shape {features.shape}"
                )
        lines = [_item_line(pairs, row) for row in range(len(pairs.ids))]
        claim_folder(directory, FORMAT)

        fingerprint = model_fingerprint(model)
        chunks = _encode_chunks(model, pairs, features, fingerprint, directory, batch_size)
        dims = {np.load(chunk, mmap_mode="r").shape[1] for chunk in chunks}
        if len(dims) != 1:
            raise ValueError(f"the model must make embeddings of one width; got {sorted(dims)}")
        n, dim = len(lines), dims.pop()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "n": n,
            "dim": dim,
            "dtype": "float32",
            "fingerprint": fingerprint,
        }
        with replace_folder(directory, manifest) as new:
            embeddings = np.lib.format.open_memmap(
                new / "embeddings.npy", mode="w+", dtype=np.float32, shape=(n, dim)
            )
            for start, chunk in zip(range(0, n, CHUNK_ROWS), chunks, strict=True):
                embeddings[start : start + CHUNK_ROWS] = np.load(chunk, allow_pickle=False)
            embeddings.flush()
            del embeddings
            (new / "items.jsonl").write_bytes(b"".join(lines))
        return cls.open(directory)

    @classmethod
    def open(cls, directory: str | os.PathLike) -> EmbeddingStore:
        """Open a store, after checking that it is whole: sizes, SHA-256, shapes, ids.

        Args:
            directory: what `export` wrote, wherever it was moved since.

        Raises:
            ValueError: there is no store, or it is damaged, or of a newer version of mmret_tf.
        """
        directory = Path(directory)
        manifest = read_manifest(directory, FORMAT, VERSION)
        shape = manifest.get("n"), manifest.get("dim")
        embeddings = open_array(directory / "embeddings.npy", shape)
        try:
            text = (directory / "items.jsonl").read_bytes().decode("utf-8")
            # Only "\n" ends a line: a caption may hold U+2028, which str.splitlines would take.
            items = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
            ids = {item["id"] for item in items if isinstance(item["id"], str)}
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(f"{directory} is damaged: items.jsonl, {error}") from None
        if not len(ids) == len(items) == len(embeddings):
            raise ValueError(
                f"{directory} is damaged: {len(embeddings)} embeddings, {len(items)} items, "
                f"{len(ids)} different ids"
            )
        return cls(directory, embeddings, items, manifest.get("fingerprint"))


def model_fingerprint(model: Any) -> str:
    """SHA-256 of what decides a model's embeddings: weights, vocabulary and image size.

    It stays the same when the model is saved and loaded, and changes with every training step.

    Args:
        model: has `weights` (variables or arrays); `text_preprocessor` and `image_size` count where
            they exist.

    Returns:
        64 hexadecimal digits.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> before = model_fingerprint(model)
    >>> model.set_weights([weight + 1 for weight in model.get_weights()])
    >>> model_fingerprint(model) == before
    False
    """
    text = getattr(model, "text_preprocessor", None)
    digest = hashlib.sha256()
    digest.update(
        _json_bytes(
            {
                "image_size": getattr(model, "image_size", None),
                "vocabulary": None if text is None else text.get_vocabulary(),
            }
        )
    )
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        # Not the name: Keras numbers unnamed layers and weights anew in each process.
        digest.update(_json_bytes([str(value.dtype), list(np.shape(weight))]))
        digest.update(value.tobytes())
    return digest.hexdigest()


def _item_line(pairs: PairDataset, row: int) -> bytes:
    """One line of `items.jsonl`."""
    item = {
        "id": pairs.ids[row],
        "image": os.path.abspath(pairs.image_paths[row]),
        "captions": list(pairs.captions[row]),
        "attributes": pairs.attributes[row],
    }
    if not isinstance(item["id"], str):
        raise ValueError(f"ids of a collection must be strings; got {item['id']!r} in row {row}")
    try:
        return _json_bytes(item) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"item {item['id']!r} cannot be written as JSON: {error}") from None


def _json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, Chinese as it is."""
    # A file name that is not UTF-8 comes as lone surrogates; "\udc80" is their JSON escape as well.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _encode_chunks(
    model: Any,
    pairs: PairDataset,
    features: np.ndarray | None,
    fingerprint: str,
    directory: Path,
    batch_size: int,
) -> list[Path]:
    """Bring the partial folder up to date; return its chunks in order, `[CHUNK_ROWS, dim]` each.

    A chunk is named after what decides its content, so that the file of a name is always right.
    """
    partial = partial_folder(directory)
    partial.mkdir(parents=True, exist_ok=True)
    n = len(pairs.ids)
    blocks = [slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS)]
    chunks = []
    for block in blocks:
        paths = [os.path.abspath(path) for path in pairs.image_paths[block]]
        digest = hashlib.sha256(_json_bytes([VERSION, fingerprint, pairs.ids[block], paths]))
        if features is not None:
            rows = np.ascontiguousarray(features[block])
            digest.update(_json_bytes([str(rows.dtype), rows.shape[1]]) + rows.tobytes())
        chunks.append(partial / f"{digest.hexdigest()}.npy")
    for path in partial.glob("*.npy*"):
        if path not in chunks:
            path.unlink()

    progress = keras.utils.Progbar(n, unit_name="image") if len(chunks) > 1 else None
    for block, chunk in zip(blocks, chunks, strict=True):
        if not chunk.exists():
            embeddings = _encode(model, pairs, features, block, batch_size)
            temporary = chunk.with_name(f"{chunk.name}.partial")
            with open(temporary, "wb") as file:
                np.save(file, embeddings, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without the content
            os.replace(temporary, chunk)
        if progress is not None:
            progress.update(block.stop)
    return chunks


def _encode(
    model: Any, pairs: PairDataset, features: np.ndarray | None, block: slice, batch_size: int
) -> np.ndarray:
    """The embeddings of some rows, checked, float32 `[rows, dim]`."""
    inputs = list(pairs.image_paths[block]) if features is None else features[block]
    batches = [
        np.asarray(model.encode_images(inputs[start : start + batch_size]), np.float32)
        for start in range(0, len(inputs), batch_size)
    ]
    is_even = all(batch.ndim == 2 and batch.shape[1:] == batches[0].shape[1:] for batch in batches)
    if not is_even or sum(map(len, batches)) != len(inputs):
        raise ValueError(
            f"encode_images must return [n, dim], one row an image, for {len(inputs)} images; "
            f"got shapes {sorted({batch.shape for batch in batches})}"
        )
    embeddings = np.concatenate(batches)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the embedding of item {pairs.ids[block.start + bad[0]]!r} holds NaN or infinity "
            f"(and {bad.size - 1} others of its chunk): the model's weights may be broken"
        )
    return embeddings

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
    from mmret_tf.items import ItemDataset

FORMAT = "mmret_tf embeddings"
VERSION = 1

DTYPES = ("float32", "float16", "int8")

# Rows that are encoded, and lost by a kill, at most.
CHUNK_ROWS = 1024


class EmbeddingStore:
    """The embeddings of a gallery, memory-mapped, and one record an item. Section 3.1(3).

    A folder with `embeddings.npy` (`[n, dim]`: float32, float16, or int8 beside the `scales.npy` of
    its rows), `items.jsonl` (a JSON object a line: `{"id", "image", "captions", "attributes"}`,
    UTF-8; "image" is null where there is none, and "images" is added where there are several) and
    `manifest.json` (format version, n, dim, dtype, fingerprint of the model, size and SHA-256 of
    each file). Nothing in it is executed.

    Attributes:
        embeddings: float32 `[n, dim]`; read-only and on disk, unless stored in fewer bits.
        items: one dict a row.
        ids: the `id` of each item, strings.
        fingerprint: of the model that made the embeddings, see `model_fingerprint`.
        encoder: in what form its image tower did: "float32", or the name of an `image_encoder`.
        loss: what storing cost: 1 minus the cosine (余弦相似度) of an embedding as it is stored and
            as it was made, "mean" and "max" over the rows.
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
        self, directory: Path, embeddings: np.ndarray, items: list[dict], manifest: dict[str, Any]
    ):
        self.directory = directory
        self.embeddings = embeddings
        self.items = items
        self.ids = [item["id"] for item in items]
        self.fingerprint = manifest.get("fingerprint")
        self.encoder = manifest.get("encoder", "float32")
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
        model: Any,
        collection: PairDataset | ItemDataset,
        directory: str | os.PathLike,
        features: np.ndarray | None = None,
        dtype: str = "float32",
    ) -> EmbeddingStore:
        """Embed all items of a collection and write them to `directory`.

        Every 1,024 rows are saved as they come, in `<directory>.partial`. When the export is killed
        and called again, chunks of the same model, ids, paths, captions (where they are embedded)
        and features are read back, and the rest is encoded; whatever else a killed export left
        there is deleted.

        At the end, in this order: the whole store is written in `<directory>.partial/new`, its
        manifest last; an older store moves from `directory` to `<directory>.partial/old`; `new`
        moves to `directory`; `<directory>.partial` is deleted. A kill therefore leaves the old
        store, the new one, or (between the two moves) none, and then the next export puts the old
        one back before it begins.

        Args:
            model: has `weights`, and `encode_items(images, captions) -> [n, dim]`, a list of each
                for every item, or else `encode_images(list of paths) -> [n, dim]`. Of a
                `FusedEncoder` the fingerprint is that of its dual encoder, which embeds queries.
                The name of the `image_encoder`, if there is one, is noted.
            collection: its captions and attributes go into the items.
            directory: does not exist, is empty, or holds an older store, which is replaced.
            features: the backbone's features of the images `[n, features]`, of a `PairDataset`;
                they are given to `encode_images` in place of the paths.
            dtype: in which the embeddings are stored: "float32"; "float16", half as large; or
                "int8", a quarter, with a scale for each row. `loss` says what that costs.

        Returns:
            The new store, opened.

        Raises:
            ValueError: `directory` holds something else, the collection is empty, features do not
                fit, the model embeds images only and the items may have others, attributes are not
                JSON, or an embedding is NaN or infinite (the message names the item).
        """
        directory = Path(directory)
        rows = _Rows(model, collection, features)
        if len(rows.ids) == 0:
            raise ValueError("nothing to embed: the collection is empty")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        lines = [rows.line(row) for row in range(len(rows.ids))]
        claim_folder(directory, FORMAT)

        chunks = _encode_chunks(rows, directory)
        dims = {np.load(chunk, mmap_mode="r").shape[1] for chunk in chunks}
        if len(dims) != 1:
            raise ValueError(f"the model must make embeddings of one width; got {sorted(dims)}")
        n, dim = len(lines), dims.pop()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "n": n,
            "dim": dim,
            "dtype": dtype,
            "encoder": rows.encoder,
            "fingerprint": rows.fingerprint,
        }
        cosines = []
        with replace_folder(directory, manifest) as new:
            stored = np.lib.format.open_memmap(
                new / "embeddings.npy", mode="w+", dtype=dtype, shape=(n, dim)
            )
            scales = np.empty((n, 1), np.float32)
            for start, chunk in zip(range(0, n, CHUNK_ROWS), chunks, strict=True):
                block = slice(start, start + CHUNK_ROWS)
                embeddings = np.load(chunk, allow_pickle=False)
                stored[block], scales[block] = _stored(embeddings, dtype)
                if dtype != "float32":
                    cosines.append(row_cosines(embeddings, stored[block] * scales[block]))
            stored.flush()
            del stored
            if dtype == "int8":
                np.save(new / "scales.npy", scales, allow_pickle=False)
            losses = 1 - np.concatenate(cosines or [np.ones(1)])
            manifest["loss"] = {"mean": float(losses.mean()), "max": float(losses.max())}
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
            items = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
            ids = {item["id"] for item in items if isinstance(item["id"], str)}
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(f"{directory} is damaged: items.jsonl, {error}") from None
        if not len(ids) == len(items) == len(embeddings):
            raise ValueError(
                f"{directory} is damaged: {len(embeddings)} embeddings, {len(items)} items, "
                f"{len(ids)} different ids"
            )
        return cls(directory, embeddings, items, manifest)


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


def row_cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each row of one array with the same row of another, `[n, dim]` -> `[n]`.

    >>> row_cosines(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("nd,nd->n", first, second) / np.maximum(lengths, 1e-12)


def _stored(embeddings: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | float]:
    """Rows in the form in which they are stored, and what each is multiplied by to have it back."""
    scales: np.ndarray | float = 1.0
    if dtype == "int8":
        scales = np.maximum(np.abs(embeddings).max(axis=1, keepdims=True), 1e-12) / 127
        embeddings = np.rint(embeddings / scales)
    return embeddings.astype(dtype), scales


def _json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, Chinese as it is."""
    # A file name that is not UTF-8 comes as lone surrogates; "\udc80" is their JSON escape as well.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


class _Rows:
    """What an export embeds, whatever kind of collection and of model it was given."""

    def __init__(
        self, model: Any, collection: PairDataset | ItemDataset, features: np.ndarray | None
    ):
        # An item may have any number of images, a row of pairs has one: not in a list.
        has_lists = any(isinstance(paths, (list, tuple)) for paths in collection.image_paths)
        self.model = model
        self.ids = collection.ids
        self.images = [
            [os.path.abspath(path) for path in (paths if has_lists else [paths])]
            for paths in collection.image_paths
        ]
        self.captions = collection.captions
        self.attributes = collection.attributes
        self.features = None if features is None else np.asarray(features)
        self.embeds_items = features is None and hasattr(model, "encode_items")
        if has_lists and not self.embeds_items:
            raise ValueError(
                "an ItemDataset needs a model with encode_items, and no features: for images "
                "alone, give its pairs()"
            )
        if features is not None and (
            self.features.ndim != 2
            or len(self.features) != len(self.ids)
            or self.features.dtype.kind != "f"
        ):
            raise ValueError(
                f"features must be a float array [{len(self.ids)}, features], one row an image; "
                f"got {self.features.dtype} of shape {self.features.shape}"
            )
        # A fused encoder's embeddings lie in the space of its dual encoder, which embeds queries.
        space = getattr(model, "encoder", model)
        self.fingerprint = model_fingerprint(space)
        self.encoder = getattr(getattr(space, "image_encoder", None), "name", "float32")
        self.made_by = [VERSION, self.fingerprint, self.encoder]
        if space is not model:
            # The weights do not tell all: a weighted sum has its weights in its configuration.
            config = model.to_json() if isinstance(model, keras.Model) else None
            self.made_by += [model_fingerprint(model), config]

    def line(self, row: int) -> bytes:
        """One line of `items.jsonl`."""
        images = self.images[row]
        item = {"id": self.ids[row], "image": images[0] if images else None}
        if len(images) > 1:
            item["images"] = images
        item |= {"captions": list(self.captions[row]), "attributes": self.attributes[row]}
        if not isinstance(item["id"], str):
            raise ValueError(
                f"ids of a collection must be strings; got {item['id']!r} in row {row}"
            )
        try:
            return _json_bytes(item) + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"item {item['id']!r} cannot be written as JSON: {error}") from None

    def digest(self, block: slice) -> str:
        """SHA-256 of all that decides the embeddings of some rows."""
        parts = [*self.made_by, self.ids[block], self.images[block]]
        if self.embeds_items:
            parts.append([list(captions) for captions in self.captions[block]])
        digest = hashlib.sha256(_json_bytes(parts))
        if self.features is not None:
            rows = np.ascontiguousarray(self.features[block])
            digest.update(_json_bytes([str(rows.dtype), rows.shape[1]]) + rows.tobytes())
        return digest.hexdigest()

    def encode(self, block: slice) -> np.ndarray:
        """The embeddings of some rows, checked, float32 `[rows, dim]`."""
        if self.embeds_items:
            embeddings = self.model.encode_items(self.images[block], self.captions[block])
        elif self.features is not None:
            embeddings = self.model.encode_images(self.features[block])
        else:
            embeddings = self.model.encode_images([paths[0] for paths in self.images[block]])
        embeddings = np.asarray(embeddings, np.float32)
        n = len(self.ids[block])
        if embeddings.ndim != 2 or len(embeddings) != n:
            name = "encode_items" if self.embeds_items else "encode_images"
            raise ValueError(
                f"{name} must return [n, dim], one row an item, for {n} items; "
                f"got shape {embeddings.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if bad.size:
            raise ValueError(
                f"the embedding of item {self.ids[block.start + bad[0]]!r} holds NaN or infinity "
                f"(and {bad.size - 1} others of its chunk): the model's weights may be broken"
            )
        return embeddings


def _encode_chunks(rows: _Rows, directory: Path) -> list[Path]:
    """Bring the partial folder up to date; return its chunks in order, `[CHUNK_ROWS, dim]` each.

    A chunk is named after what decides its content, so that the file of a name is always right.
    """
    partial = partial_folder(directory)
    partial.mkdir(parents=True, exist_ok=True)
    n = len(rows.ids)
    blocks = [slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS)]
    chunks = [partial / f"{rows.digest(block)}.npy" for block in blocks]
    for path in partial.glob("*.npy*"):
        if path not in chunks:
            path.unlink()

    progress = keras.utils.Progbar(n, unit_name="item") if len(chunks) > 1 else None
    for block, chunk in zip(blocks, chunks, strict=True):
        if not chunk.exists():
            embeddings = rows.encode(block)
            temporary = chunk.with_name(f"{chunk.name}.partial")
            with open(temporary, "wb") as file:
                np.save(file, embeddings, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without the content
            os.replace(temporary, chunk)
        if progress is not None:
            progress.update(block.stop)
    return chunks

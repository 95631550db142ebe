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

DTYPES = ("float32", "float16", "int8")

# Rows that are encoded, and lost by a kill, at most.
CHUNK_ROWS = 1024


class EmbeddingStore:
    """The embeddings of a gallery, memory-mapped, and one record an item. Section 3.1(3).

    A folder with `embeddings.npy` (`[n, dim]`: float32, float16, or int8 beside the `scales.npy` of
    its rows), `items.jsonl` (a JSON object a line: `{"id", "image", "captions", "attributes"}`,
    UTF-8) and `manifest.json` (format version, n, dim, dtype, fingerprint of the model, size and
    SHA-256 of each file). Nothing in it is executed.

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
        pairs: PairDataset,
        directory: str | os.PathLike,
        features: np.ndarray | None = None,
        dtype: str = "float32",
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
            model: has `encode_images(list of paths) -> [n, dim]`, and `weights`; the name of its
                `image_encoder`, if it has one, is noted.
            pairs: the collection; its captions and attributes go into the items.
            directory: does not exist, is empty, or holds an older store, which is replaced.
            features: the backbone's features of the images `[n, features]`; they are given to
                `encode_images` in place of the paths.
            dtype: in which the embeddings are stored: "float32"; "float16", half as large; or
                "int8", a quarter, with a scale for each row. `loss` says what that costs.

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
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
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
        encoder = getattr(getattr(model, "image_encoder", None), "name", "float32")
        chunks = _encode_chunks(model, pairs, features, fingerprint, encoder, directory)
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
            "encoder": encoder,
            "fingerprint": fingerprint,
        }
        cosines = []
        with replace_folder(directory, manifest) as new:
            stored = np.lib.format.open_memmap(
                new / "embeddings.npy", mode="w+", dtype=dtype, shape=(n, dim)
            )
            scales = np.empty((n, 1), np.float32)
            for start, chunk in zip(range(0, n, CHUNK_ROWS), chunks, strict=True):
                rows = slice(start, start + CHUNK_ROWS)
                embeddings = np.load(chunk, allow_pickle=False)
                stored[rows], scales[rows] = _stored(embeddings, dtype)
                if dtype != "float32":
                    cosines.append(row_cosines(embeddings, stored[rows] * scales[rows]))
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
        manifest = read_manifest(directory, FORMAT, VERSION)
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
    encoder: str,
    directory: Path,
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
        digest = hashlib.sha256(
            _json_bytes([VERSION, fingerprint, encoder, pairs.ids[block], paths])
        )
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
            embeddings = _encode(model, pairs, features, block)
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
    model: Any, pairs: PairDataset, features: np.ndarray | None, block: slice
) -> np.ndarray:
    """The embeddings of some rows, checked, float32 `[rows, dim]`."""
    inputs = list(pairs.image_paths[block]) if features is None else features[block]
    embeddings = np.asarray(model.encode_images(inputs), np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(inputs):
        raise ValueError(
            f"encode_images must return [n, dim], one row an image, for {len(inputs)} images; "
            f"got shape {embeddings.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the embedding of item {pairs.ids[block.start + bad[0]]!r} holds NaN or infinity "
            f"(and {bad.size - 1} others of its chunk): the model's weights may be broken"
        )
    return embeddings

"""Resumable embedding (断点续算): rows are encoded in chunks, and a chunk survives a kill.

A chunk is named after all that decides its content, so a whole file of that name is right.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import open_array
from mmret_tf.data.collection import Collection
from mmret_tf.data.progress import Progress
from mmret_tf.data.sources import identities
from mmret_tf.models.encoder import Encoder

# Number of rows that are encoded, and lost by a kill, at most.
CHUNK_ROWS = 1024

# From the sources of items in blocks, as `Encoder.encode_items` takes them, to the embeddings of
# each block, in their order.
EncodeBlocks = Callable[[Iterable[Mapping[str, Sequence[Sequence[Any]]]]], Iterable[np.ndarray]]


def encode_chunks(
    encoder: Encoder,
    encoded_by: Sequence,
    collection: Collection,
    partial: Path,
    encode: EncodeBlocks,
) -> list[Path]:
    """Embed the items of a collection; chunks that are there already are not made again.

    Args:
        encoder: The encoder.
        encoded_by: What identifies the encoder and the form of a chunk, as JSON values.
        collection: The items.
        partial: Folder of the chunks. Others than those of this collection are deleted.
        encode: Embeds the items by the encoder.

    Returns:
        The files of the chunks in order, `[CHUNK_ROWS, dim]` each; the last may have fewer rows.

    Raises:
        ValueError: A source cannot be read, or an embedding is NaN or infinite.
    """
    n = len(collection)
    used = {name: collection.sources.get(name, [[]] * n) for name in encoder.modalities}
    blocks = [slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS)]
    chunks = []
    for block in blocks:
        digests = [
            [name, [len(each) for each in sources[block]], identities(chain(*sources[block]))]
            for name, sources in used.items()
        ]
        content = json.dumps([*encoded_by, collection.ids[block], digests]).encode()
        chunks.append(partial / f"{hashlib.sha256(content).hexdigest()}.npy")
    for path in set(partial.glob("*.npy*")) - set(chunks):
        path.unlink()

    progress = Progress(n, "item") if len(chunks) > 1 else None
    missing = [
        (block, chunk)
        for block, chunk in zip(blocks, chunks, strict=True)
        if not _is_whole(chunk, (block.stop - block.start, encoder.embedding_dim))
    ]
    found = encode({name: each[block] for name, each in used.items()} for block, _ in missing)
    for (block, chunk), rows in zip(missing, found, strict=True):
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


def rows_of(chunks: Sequence[Path], start: int, stop: int, dim: int) -> np.ndarray:
    """Some of the rows that all chunks hold together.

    Args:
        chunks: Files of `encode_chunks`.
        start, stop: The first row, and the row behind the last.
        dim: Width of the rows.

    Returns:
        float32 `[stop - start, dim]`.
    """
    found = [np.empty((0, dim), np.float32)]
    for number in range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)):
        first = number * CHUNK_ROWS
        chunk = np.load(chunks[number], mmap_mode="r", allow_pickle=False)
        found.append(chunk[max(0, start - first) : stop - first])
    return np.concatenate(found)


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

"""Embeddings in TensorBoard's projector (嵌入投影): each point is a small picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmret_tf._checks import printable
from mmret_tf.data.sources import Source
from mmret_tf.ranking.gallery import thumbnail

THUMBNAIL = 48  # pixels; TensorBoard shows sprites of at most 8192 pixels a side


def write_projector(
    directory: str | os.PathLike,
    embeddings: np.ndarray,
    modality: str,
    sources: Sequence[Source],
    labels: Sequence[str],
) -> None:
    """Write what `tensorboard --logdir directory` shows under Projector.

    Args:
        directory: It is made if it is missing.
        embeddings: `[n, dim]`, of at most 10,000 sources.
        modality: Name of the modality of the sources.
        sources: One for each embedding; its thumbnail is shown.
        labels: A text for each, such as its caption.

    Raises:
        ValueError: The lengths differ, there are none or too many, or a source cannot be read.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> folder, pairs = tempfile.mkdtemp(), mm.load_pairs("scenes", split="dev", size=2)
    >>> write_projector(folder, np.eye(2), "image", pairs.first_sources, ["a scene", "图"])
    >>> sorted(os.listdir(folder))
    ['labels.tsv', 'projector_config.pbtxt', 'thumbnails.png', 'vectors.tsv']
    """
    from tensorboard.plugins import projector  # slow to import

    n = len(embeddings)
    if not n == len(sources) == len(labels) or not 0 < n <= 10_000:
        raise ValueError(
            "the projector takes an embedding, a source and a label for each of 1 to 10,000 "
            f"points; got {n}, {len(sources)} and {len(labels)}"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    across = int(np.ceil(np.sqrt(n)))  # TensorBoard wants a square
    thumbnails = Image.new("RGB", (across * THUMBNAIL, across * THUMBNAIL))
    for place, source in enumerate(sources):
        corner = place % across * THUMBNAIL, place // across * THUMBNAIL
        thumbnails.paste(
            thumbnail({"id": "", "sources": {modality: [source.record]}}, THUMBNAIL), corner
        )
    thumbnails.save(directory / "thumbnails.png")
    np.savetxt(directory / "vectors.tsv", embeddings, fmt="%.6g", delimiter="\t")
    lines = [printable(label) + "\n" for label in labels]
    (directory / "labels.tsv").write_text("".join(lines), encoding="utf-8")

    config = projector.ProjectorConfig()
    points = config.embeddings.add()
    points.tensor_name = modality
    points.tensor_path, points.metadata_path = "vectors.tsv", "labels.tsv"
    points.sprite.image_path = "thumbnails.png"
    points.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])
    projector.visualize_embeddings(str(directory), config)

"""Embeddings to look at in TensorBoard's projector (嵌入投影): each point is a small picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmret_tf.preprocessing import ImageSource, load_batches

THUMBNAIL = 48  # pixels; TensorBoard shows sprites of at most 8192 pixels a side


def write_projector(
    directory: str | os.PathLike,
    embeddings: np.ndarray,
    images: Sequence[ImageSource],
    labels: Sequence[str],
) -> None:
    """Write what `tensorboard --logdir directory` shows under Projector.

    Args:
        directory: is made, or written into.
        embeddings: `[n, dim]`, of at most 10,000 images.
        images: the pictures `[n]`, see `preprocessing.load_image`.
        labels: a text for each, say its caption.

    Raises:
        ValueError: the lengths differ, there are none or too many, or a picture cannot be read.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_projector(folder, np.eye(2), np.zeros((2, 9, 9, 3)), ["black", "黑色"])
    >>> sorted(os.listdir(folder))
    ['labels.tsv', 'projector_config.pbtxt', 'thumbnails.png', 'vectors.tsv']
    """
    from tensorboard.plugins import projector  # slow to import

    if not len(embeddings) == len(images) == len(labels) or not 0 < len(images) <= 10_000:
        raise ValueError(
            "the projector takes an embedding, an image and a label for each of 1 to 10,000 "
            f"points; got {len(embeddings)}, {len(images)} and {len(labels)}"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    across = int(np.ceil(np.sqrt(len(images))))  # TensorBoard wants a square
    thumbnails = Image.new("RGB", (across * THUMBNAIL, across * THUMBNAIL))
    pictures = (picture for batch in load_batches(images, THUMBNAIL) for picture in batch)
    for place, picture in enumerate(pictures):
        corner = place % across * THUMBNAIL, place // across * THUMBNAIL
        thumbnails.paste(Image.fromarray(picture), corner)
    thumbnails.save(directory / "thumbnails.png")
    np.savetxt(directory / "vectors.tsv", embeddings, fmt="%.6g", delimiter="\t")
    lines = [" ".join(label.split()) + "\n" for label in labels]
    (directory / "labels.tsv").write_text("".join(lines), encoding="utf-8")

    config = projector.ProjectorConfig()
    points = config.embeddings.add()
    points.tensor_name = "images"
    points.tensor_path, points.metadata_path = "vectors.tsv", "labels.tsv"
    points.sprite.image_path = "thumbnails.png"
    points.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])
    projector.visualize_embeddings(str(directory), config)

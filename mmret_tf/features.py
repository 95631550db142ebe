"""A frozen backbone gives the same features in every epoch: computed once, they are kept on disk.

An epoch after that takes seconds (特征缓存).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint
from mmret_tf.preprocessing import ImageSource, load_batches
from mmret_tf.towers import ImageTower


class _Backbone:
    """The frozen backbone in the place of the model: what it gives is stored like embeddings."""

    text_preprocessor = None

    def __init__(self, tower: ImageTower):
        self.tower = tower
        self.weights = tower.backbone.weights
        self.image_size = tower.image_size

    def encode_images(self, images: Sequence[ImageSource]) -> np.ndarray:
        batches = load_batches(images, self.image_size)
        return np.concatenate([self.tower.features_on_batch(batch) for batch in batches])


def backbone_features(
    model: DualEncoder, parts: Sequence[PairDataset], directory: str | os.PathLike
) -> Callable[[PairDataset], np.ndarray | None]:
    """Compute a frozen backbone's features of all images, once each, and keep them in a folder.

    They are read again where the folder already holds those of the same backbone and images, and
    an interrupted computation goes on where it stopped.

    Returns:
        A function from rows of `parts` to their features `[n, features]`; it gives `None` where the
        backbone is trained, and its features change with every step.
    """
    tower = model.image_tower
    if tower.backbone.trainable:
        return lambda part: None
    rows = {key: (part, row) for part in parts for row, key in enumerate(part.ids)}
    columns = ("image_paths", "captions", "attributes", "splits")
    taken = {name: [getattr(part, name)[row] for part, row in rows.values()] for name in columns}
    pairs = PairDataset(list(rows), **taken)
    encoder = _Backbone(tower)
    try:
        store = EmbeddingStore.open(directory)
    except ValueError:
        store = None
    if store is None or (store.fingerprint, store.ids) != (model_fingerprint(encoder), pairs.ids):
        store = EmbeddingStore.export(encoder, pairs, directory)
    row_of = {key: row for row, key in enumerate(store.ids)}
    return lambda part: store.embeddings[[row_of[key] for key in part.ids]]

"""A frozen backbone gives the same features in every epoch: computed once, they are kept on disk.

An epoch after that takes seconds (特征缓存). What is kept is named after the content of the picture
and all that the backbone does with it, so that nothing stale is ever used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint
from mmret_tf.preprocessing import crop_and_resize, decode_image, load_image
from mmret_tf.towers import ImageTower

PIXELS_AT_ONCE = 64 * 224 * 224


class _Backbone:
    """The frozen backbone in the place of the model: what it gives is stored like embeddings.

    A row holds the features of all views of a picture, one after the other.
    """

    text_preprocessor = None

    def __init__(self, tower: ImageTower, views: Sequence[int], min_crop: float):
        self.tower = tower
        self.image_size = tower.image_size
        self.views = views
        self.min_crop = min_crop
        # As if it were a weight, so that it counts in the fingerprint: what is done to a picture.
        said = f"{tower.scaling} {tower.scales} {list(views)} {min_crop} {tower.backbone.to_json()}"
        self.weights = [*tower.backbone.weights, np.frombuffer(said.encode(), np.uint8)]

    def encode_images(self, paths: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(content_digest(path)[:7], "big") for path in paths]
        at_once = max(1, PIXELS_AT_ONCE // (len(self.views) * self.image_size**2))
        pictures = tf.data.Dataset.from_tensor_slices(
            ([os.fsencode(path) for path in paths], seeds)
        )
        pictures = pictures.map(self.draw, tf.data.AUTOTUNE).batch(at_once).prefetch(2)
        rows = []
        try:
            for batch in pictures:
                seen = [
                    self.tower.features_on_batch(batch[:, place], self.scales_of(view))
                    for place, view in enumerate(self.views)
                ]
                rows.append(np.concatenate(seen, axis=1))
        except tf.errors.OpError:
            for path in paths:
                load_image(path, self.image_size)  # it says which cannot be read, and why
            raise
        return np.concatenate(rows)

    def scales_of(self, view: int) -> list[int]:
        """The plain picture is seen at all scales, as in a search; other views at one by turns."""
        scales = self.tower.scales
        return scales if view == 0 else [scales[view // 2 % len(scales)]]

    def draw(self, path: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The views of a picture, uint8 `[views, image_size, image_size, 3]`."""
        image = decode_image(tf.io.read_file(path))
        forms = []
        for view in self.views:
            crop = None if view < 2 else tf.stack([seed, view])
            form = crop_and_resize(image, self.image_size, crop, False, self.min_crop)
            forms.append(tf.reverse(form, [1]) if view % 2 else form)
        return tf.stack(forms)


def backbone_features(
    model: DualEncoder, parts: Sequence[PairDataset], directory: str | os.PathLike
) -> Callable[[PairDataset], np.ndarray | None]:
    """Compute a frozen backbone's features of all images, once each, and keep them in a folder.
    Section 3.1(3).

    They are read again where the folder already holds those of the same backbone and pictures, and
    an interrupted computation goes on where it stopped.

    Args:
        model: the backbone of its image tower.
        parts: the images, of several splits, say.
        directory: the folder, an `EmbeddingStore`; what it holds of others is replaced.

    Returns:
        A function from rows of `parts` to their features, float32 `[n, features]`; it gives `None`
        where the backbone is trained, and its features change with every step.

    Raises:
        ValueError: a picture cannot be read, or the folder holds something else.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, trainable=False)
    >>> model = DualEncoder(image, mm.text_tower(100))
    >>> pairs, folder = mm.load_pairs("scenes", split="dev", size=4), Path(tempfile.mkdtemp())
    >>> features_of = backbone_features(model, [pairs], folder / "features")
    >>> features_of(pairs.subset([0, 1])).shape  # 1 x 1 x 256, see `small_cnn`
    (2, 256)
    """
    if model.image_tower.backbone.trainable:
        return lambda part: None
    paths = [path for part in parts for path in part.image_paths]
    features_of = _cached(_Backbone(model.image_tower, (0,), 1.0), paths, directory)
    return lambda part: features_of(part.image_paths)


def feature_views(
    model: DualEncoder,
    pairs: PairDataset,
    features: np.ndarray,
    directory: str | os.PathLike,
    views: int,
    min_crop: float,
) -> np.ndarray:
    """A frozen backbone's features of several views (视图) of each image, kept like the plain ones.

    Training on them sees a picture in more than one form, though no backbone runs any more. The
    first view is the plain picture, the second its mirror image; the others are random crops, which
    follow from the content of the picture, and every second of them is mirrored. Of several scales
    a view but the first has one, by turns. Section 3.1(3).

    Args:
        model: its backbone is frozen.
        pairs: the images.
        features: those of the plain pictures, `[n, features]`, as `backbone_features` gives them.
        directory: where the others are kept.
        views: how many, at least 2.
        min_crop: see `PairDataset.as_dataset`.

    Returns:
        float32 `[n, views, features]`.

    Raises:
        ValueError: as `backbone_features`.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, trainable=False)
    >>> model = DualEncoder(image, mm.text_tower(100))
    >>> pairs, folder = mm.load_pairs("scenes", split="dev", size=4), Path(tempfile.mkdtemp())
    >>> features = backbone_features(model, [pairs], folder / "features")(pairs)
    >>> views = feature_views(model, pairs, features, folder / "views", views=3, min_crop=0.8)
    >>> views.shape, np.array_equal(views[:, 0], features)
    ((4, 3, 256), True)
    """
    encoder = _Backbone(model.image_tower, range(1, views), min_crop)
    others = _cached(encoder, pairs.image_paths, directory)(pairs.image_paths)
    others = others.reshape(len(pairs), views - 1, -1)
    return np.concatenate([features[:, None], others], axis=1)


def content_digest(path: str | os.PathLike) -> bytes:
    """SHA-256 of a file, 32 bytes.

    Args:
        path: the file.

    Raises:
        ValueError: it cannot be read; the message says why.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "abc"
    >>> _ = file.write_bytes(b"abc")
    >>> content_digest(file).hex()[:8]  # of NIST's test vector
    'ba7816bf'
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: {error.strerror or error}") from None


def _cached(
    encoder: _Backbone, paths: Sequence[Path], directory: str | os.PathLike
) -> Callable[[Sequence[Path]], np.ndarray]:
    """A function from paths to their rows, of a store of one row for each content that there is."""
    content = {path: content_digest(path).hex() for path in dict.fromkeys(paths)}
    path_of = {digest: path for path, digest in content.items()}
    n = len(path_of)
    rows = PairDataset(list(path_of), list(path_of.values()), [[""]] * n, [{}] * n, [""] * n)
    try:
        store = EmbeddingStore.open(directory)
    except ValueError:
        store = None
    if store is None or (store.fingerprint, store.ids) != (model_fingerprint(encoder), rows.ids):
        store = EmbeddingStore.export(encoder, rows, directory)
    row_of = {digest: row for row, digest in enumerate(store.ids)}
    return lambda some: np.asarray(store.embeddings[[row_of[content[path]] for path in some]])

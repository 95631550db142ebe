"""A model and a collection -> the metrics of `evaluation`: the whole by the standard protocol, by
language, or in folds.
"""

from __future__ import annotations

import re

import numpy as np

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder, mean_vectors
from mmret_tf.evaluation import evaluate_folds, evaluate_retrieval, rank_all

HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def embed_pairs(
    model: DualEncoder, pairs: PairDataset, features: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, PairDataset]:
    """What an evaluation ranks: the embeddings of the items and of all their captions. Section
    3.1(3).

    Args:
        model: the dual encoder.
        pairs: images with any number of captions. Several images of one item count as one, by the
            mean of their embeddings, as in a gallery.
        features: the backbone's features of the images, `[n_images, features]`, if known.

    Returns:
        float32 `[n_items, dim]`, float32 `[n_captions, dim]`, and the first image of each item,
        whose `all_captions()` and `caption_to_image()` belong to the two.

    Raises:
        ValueError: a picture cannot be read.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(encode_images=np.array)  # or a `DualEncoder`
    >>> model.encode_texts = lambda texts: np.eye(len(texts))
    >>> files, captions = ["front.png", "back.png"], [["shoe", "鞋"]] * 2
    >>> pairs = PairDataset(["f", "b"], files, captions, [{}] * 2, [""] * 2, groups=[0, 0])
    >>> images, texts, items = embed_pairs(model, pairs, features=np.eye(2))
    >>> images.round(3).tolist(), texts.shape, items.ids  # one item, by the mean of its images
    ([[0.7070000171661377, 0.7070000171661377]], (2, 2), ['f'])
    """
    images = model.encode_images(pairs.image_paths if features is None else features)
    items = {group: [] for group in pairs.groups}
    for group, image in zip(pairs.groups, images, strict=True):
        items[group].append(image)
    images = mean_vectors(np.array, list(items.values()), images.shape[1])
    pairs = pairs.subset(pairs.first_rows())
    return images, model.encode_texts(pairs.all_captions()), pairs


def evaluate(
    model: DualEncoder, pairs: PairDataset, features: np.ndarray | None = None, folds: int = 1
) -> dict:
    """Rank the images and captions of one collection against each other. Section 3.1(5).

    Args:
        model, pairs, features: see `embed_pairs`.
        folds: parts of the collection that are ranked each by itself, see `evaluate_folds`.

    Returns:
        The metrics of `evaluate_retrieval`, such as "t2i_R@10", fractions 0 to 1, and more: see
        `measuring.measure`.

    Raises:
        ValueError: a picture cannot be read, or as `evaluate_folds`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(encode_images=np.array)  # or a `DualEncoder`
    >>> model.encode_texts = lambda texts: np.eye(len(texts))
    >>> pairs = PairDataset(["a", "b"], ["a.png", "b.png"], [["red"], ["蓝"]], [{}] * 2, [""] * 2)
    >>> metrics = evaluate(model, pairs, features=[[1, 0], [1, 1]])
    >>> metrics["images"], metrics["t2i_R@1"], metrics["chinese"]["t2i_R@1"]
    (2, 1.0, 1.0)
    """
    return measure(*embed_pairs(model, pairs, features), folds)


def measure(images: np.ndarray, texts: np.ndarray, pairs: PairDataset, folds: int = 1) -> dict:
    """The metrics of what `embed_pairs` returned. Section 3.1(5).

    Args:
        images, texts, pairs: `[n_items, dim]`, `[n_captions, dim]`, and whose they are.
        folds: see `evaluate`.

    Returns:
        The metrics of `evaluate_retrieval` and the number of "images", "captions" and "folds";
        "intervals": of each recall the 95 % confidence interval, see `Ranks.recall_intervals`.
        Where captions with and without Han characters occur, "chinese" and "english" hold the
        metrics of each apart, the captions of the other left out. Of several folds there are the
        means alone.

    Raises:
        ValueError: as `evaluate_folds`.

    >>> pairs = PairDataset(["a", "b"], ["a.png", "b.png"], [["red"], ["蓝"]], [{}] * 2, [""] * 2)
    >>> metrics = measure(np.eye(2), np.array([[1, 0], [1, 0]]), pairs)  # both look like "a"
    >>> metrics["t2i_R@1"], metrics["english"]["t2i_R@1"], metrics["chinese"]["t2i_R@1"]
    (0.5, 1.0, 0.0)
    """
    captions, image_of = pairs.all_captions(), pairs.caption_to_image()
    metrics = {"images": len(images), "captions": len(captions), "folds": folds}
    if folds > 1:
        return metrics | evaluate_folds(images, texts, image_of, folds)
    ranks = rank_all(images, texts, image_of)
    metrics |= ranks.metrics() | {"intervals": ranks.recall_intervals()}
    is_chinese = np.array([bool(HAN.search(caption)) for caption in captions])
    if is_chinese.any() and not is_chinese.all():
        for language, chosen in (("english", ~is_chinese), ("chinese", is_chinese)):
            metrics[language] = evaluate_retrieval(images, texts[chosen], image_of[chosen])
    return metrics

"""Evaluation of an encoder on a collection (模型评估): as a whole, by language, or in folds."""

import itertools
from collections.abc import Sequence

import numpy as np

from mmret_tf.data.collection import Collection
from mmret_tf.data.decoders.text_cards import HAN
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.metrics import PairScores, evaluate_folds, of_rows, rank_all
from mmret_tf.evaluation.second_stage import SecondStage
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.reranker import Reranker
from mmret_tf.similarity.vectors import mean_vectors

# Names of the counts in a report; other modalities are counted under their own names.
COUNTS = {"image": "images", "text": "captions"}


def embed_pairs(model: Encoder, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Embed what an evaluation ranks: the items, and all their captions. Section 3.1(4).

    Args:
        model: An encoder of both modalities of the pairs.
        pairs: Images with any number of captions, or any other two modalities. Several images of
            one item count as one, by the mean of their embeddings, as in a gallery.

    Returns:
        float32 `[n_items, dim]`, float32 `[n_captions, dim]`, and pairs of one row an item, whose
        `second_sources` and `caption_to_image()` belong to the two arrays.

    Raises:
        ValueError: A source cannot be read, or the model lacks a modality.

    >>> from types import SimpleNamespace
    >>> vectors = {"image": np.eye(2), "text": np.ones((2, 2))}
    >>> model = SimpleNamespace(encode=lambda modality, sources: vectors[modality])  # an `Encoder`
    >>> sources = {"image": [["front.png"], ["back.png"]], "text": [["shoe", "鞋"]] * 2}
    >>> pairs = Pairs(["front", "back"], sources, groups=[0, 0])  # two images of one item
    >>> images, texts, items = embed_pairs(model, pairs)
    >>> images.round(2), texts.shape, items.ids
    (array([[0.71, 0.71]], dtype=float32), (2, 2), ['front'])
    """
    first, second = pairs.modalities
    vectors = model.encode(first, pairs.first_sources)
    by_group = np.argsort(pairs.groups, kind="stable")
    items = pairs.subset(pairs.first_rows())
    means = mean_vectors(vectors[by_group], np.bincount(pairs.groups))
    return means, model.encode(second, items.second_sources), items


def evaluate(
    model: Encoder,
    pairs: Pairs,
    folds: int = 1,
    reranker: Reranker | None = None,
    rerank_k: int = 50,
) -> dict:
    """Rank the images and captions of a collection against each other. Section 3.1(5).

    Args:
        model, pairs: As for `embed_pairs`.
        folds: Number of equal parts that are ranked each by itself, see `evaluate_folds`.
        reranker: A second stage, which ranks the first candidates of each query again.
        rerank_k: Number of these candidates.

    Returns:
        The metrics of `evaluate_retrieval`, such as "t2i_R@10", fractions 0 to 1, and more: see
        `measure`.

    Raises:
        ValueError: As for `embed_pairs` and `evaluate_folds`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(encode=lambda modality, sources: np.eye(2))  # or an `Encoder`
    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["蓝"]]})
    >>> metrics = evaluate(model, pairs)
    >>> metrics["images"], metrics["t2i_R@1"], metrics["chinese"]["t2i_R@1"]
    (2, 1.0, 1.0)
    """
    images, texts, items = embed_pairs(model, pairs)
    stage = None if reranker is None else SecondStage(reranker, images, texts, pairs)
    return measure(images, texts, items, folds, stage, rerank_k)


def measure(
    images: np.ndarray,
    texts: np.ndarray,
    pairs: Pairs,
    folds: int = 1,
    rerank: PairScores | None = None,
    rerank_k: int = 50,
) -> dict:
    """The metrics of embeddings from `embed_pairs`. Section 3.1(5).

    Args:
        images: `[n_items, dim]`, embeddings of the first modality.
        texts: `[n_captions, dim]`, embeddings of the second modality.
        pairs: The items that they belong to.
        folds: As for `evaluate`.
        rerank, rerank_k: A second stage, see `rank_all`.

    Returns:
        The metrics of `evaluate_retrieval`, and the number of "images", "captions" and "folds";
        "intervals" with the 95 % confidence interval of each recall, see `Ranks.recall_intervals`.
        Where some captions contain Han characters and others do not, "chinese" and "english" hold
        the metrics of one kind each, with the captions of the other left out. Several folds give
        means only, without intervals and languages. Other modalities are counted under their own
        names, and their metrics are called "sound_to_text_R@1" and so on.

    Raises:
        ValueError: As for `evaluate_folds`.

    >>> pairs = Pairs(["a", "b"], {"image": [["a.png"], ["b.png"]], "text": [["red"], ["蓝"]]})
    >>> metrics = measure(np.eye(2), np.array([[1, 0], [1, 0]]), pairs)  # both look like "a"
    >>> metrics["t2i_R@1"], metrics["english"]["t2i_R@1"], metrics["chinese"]["t2i_R@1"]
    (0.5, 1.0, 0.0)
    """
    first, second = pairs.modalities
    image_of = pairs.caption_to_image()
    sizes = {COUNTS.get(first, first): len(images), COUNTS.get(second, second): len(texts)}
    if folds > 1:
        metrics = evaluate_folds(images, texts, image_of, folds, rerank, rerank_k)
    else:
        ranks = rank_all(images, texts, image_of, rerank, rerank_k)
        metrics = ranks.metrics() | {"intervals": ranks.recall_intervals()}
        is_chinese = np.array([bool(HAN.search(each.record)) for each in pairs.second_sources])
        if second == "text" and is_chinese.any() and not is_chinese.all():
            for language, chosen in (("english", ~is_chinese), ("chinese", is_chinese)):
                of_chosen = of_rows(rerank, np.arange(len(images)), np.flatnonzero(chosen))
                of_language = images, texts[chosen], image_of[chosen]
                metrics[language] = rank_all(*of_language, of_chosen, rerank_k).metrics()
    return sizes | {"folds": folds} | named_by_modality(metrics, pairs)


def pairs_of(model: Encoder, collection: Collection) -> list[Pairs]:
    """The pairs of each two modalities that an encoder embeds and items have in common.

    Args:
        model: The encoder.
        collection: The items.

    Returns:
        `Pairs`; texts come second in each.

    Raises:
        ValueError: No item has two of the modalities.

    >>> from types import SimpleNamespace
    >>> sources = {"image": [["a.png"]], "text": [["a dog"]], "audio": [["a.wav"]]}
    >>> model = SimpleNamespace(modalities=["text", "image", "audio"])
    >>> ["_and_".join(pairs.modalities) for pairs in pairs_of(model, Collection(["a"], sources))]
    ['image_and_audio', 'image_and_text', 'audio_and_text']
    """
    names = sorted(model.modalities, key=lambda name: name == "text")
    both = [each for each in itertools.combinations(names, 2) if collection.has_pairs(*each)]
    if not both:
        raise ValueError(f"no item has two of {', '.join(names)}: there is nothing to rank")
    return [collection.pairs(*each) for each in both]


def measure_parts(embedded: Sequence[tuple[np.ndarray, np.ndarray, Pairs]], folds: int = 1) -> dict:
    """The metrics of several pairs of modalities; those of one pair as they are. Section 3.1(5).

    Args:
        embedded: Results of `embed_pairs`.
        folds: As for `evaluate`.

    Returns:
        For each pair, such as "audio_and_text", what `measure` returns.

    >>> pairs = Pairs(["a", "b"], {"audio": [["a.wav"], ["b.wav"]], "text": [["red"], ["蓝"]]})
    >>> both = measure_parts([(np.eye(2), np.eye(2), pairs)] * 2)
    >>> both["audio_and_text"]["text_to_audio_R@1"]
    1.0
    """
    metrics = {
        "_and_".join(pairs.modalities): measure(first, second, pairs, folds)
        for first, second, pairs in embedded
    }
    return metrics if len(embedded) > 1 else next(iter(metrics.values()), {})


def named_by_modality(metrics: dict, pairs: Pairs) -> dict:
    """Metrics under the general names of the pairs' modalities; i2t and t2i stay as they are."""
    first, second = pairs.modalities
    if (first, second) == ("image", "text"):
        return metrics
    names = {"i2t": f"{first}_to_{second}", "t2i": f"{second}_to_{first}"}
    return {
        names.get(name[:3], name[:3]) + name[3:]: (
            named_by_modality(value, pairs) if isinstance(value, dict) else value
        )
        for name, value in metrics.items()
    }

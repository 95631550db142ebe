"""Encoders (编码器): several modalities in one embedding space.

`MultiEncoder` is the Keras model of any number of towers; `DualEncoder`, in `dual_encoder`, is its
case of two. `VariantEncoder` is the same encoder with smaller or faster forms of some towers.
"""

import abc
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mmret_tf._checks import check_items
from mmret_tf.data.modalities import get_modality
from mmret_tf.models.collapse import CollapseAlarm
from mmret_tf.models.fingerprint import weights_digest
from mmret_tf.models.layers import Temperature, track
from mmret_tf.models.towers.tower import Tower, TowerForm, encode_sources
from mmret_tf.models.whole_model import WholeModel
from mmret_tf.similarity import losses  # noqa: F401  a saved model names its loss
from mmret_tf.similarity.replicas import gather_replicas, weighted_loss
from mmret_tf.similarity.vectors import mean_vectors


class Encoder(abc.ABC):
    """Embeds sources of several modalities in one space. An index and a searcher need no more.

    Attributes:
        towers: What encodes each modality, by its name.
        embedding_dim: Width of the embeddings.
        form: How the towers compute, such as "float32" or "int8".
        recipe: Identity of what else decides the embedding of an item, such as a fusion.
    """

    towers: Mapping[str, TowerForm]
    embedding_dim: int
    form: str = "float32"
    recipe: str = ""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Identity of the space: embeddings can be compared if it is equal. 64 hex digits."""

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that can be encoded."""
        return list(self.towers)

    def encode(
        self, modality: str, sources: Sequence[Any], batch_size: int | None = None
    ) -> np.ndarray:
        """Embed sources of one modality. Section 3.1(2).

        Args:
            modality: One of `modalities`.
            sources: A list of what the modality takes: paths, encoded bytes, texts, arrays, or
                `Source` objects.
            batch_size: Number of sources that are embedded at once, while the next are prepared.

        Returns:
            float32 `[n, dim]`, unit rows.

        Raises:
            ValueError: There is no such modality, `sources` is empty or not a list, or a source
                cannot be used (the message names it).
        """
        if modality not in self.towers:
            known = ", ".join(self.modalities)
            raise ValueError(f"this encoder has no tower for {modality!r}; it has: {known}")
        sources = get_modality(modality).sources(sources)
        return encode_sources(self.towers[modality], sources, batch_size)

    def encode_images(self, images: Sequence[Any], batch_size: int | None = None) -> np.ndarray:
        """Embed pictures: `encode("image", images)`. Section 3.2(1).

        Args:
            images: Paths, encoded bytes, PIL images or arrays `[height, width, 3]` in any mix; each
                is cropped to its centre.
            batch_size: See `encode`, also for the result and the errors.
        """
        return self.encode("image", images, batch_size)

    def encode_texts(self, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """Embed captions or queries: `encode("text", texts)`. Section 3.2(2).

        Args:
            texts: Strings. An empty one, or one of unknown words only, has an embedding too.
            batch_size: See `encode`, also for the result and the errors.
        """
        return self.encode("text", texts, batch_size)

    def remarks(self, queries: Sequence[Sequence[tuple[str, Any]]]) -> list[str]:
        """What is wrong with queries that can be embedded all the same, such as unknown words.

        Args:
            queries: The modality and the source of each term of each query.

        Returns:
            Sentences for each query, or "".
        """
        found: list[list[str]] = [[] for _ in queries]
        terms = [(row, *term) for row, query in enumerate(queries) for term in query]
        for name, tower in self.towers.items():
            own = [(row, source) for row, modality, source in terms if modality == name]
            remarks = tower.remarks([source for _, source in own]) if own else []
            for (row, _), remark in zip(own, remarks, strict=True):
                found[row].append(remark)
        return [" ".join(filter(None, each)) for each in found]

    def encode_items(self, sources: Mapping[str, Sequence[Sequence[Any]]]) -> np.ndarray:
        """Embed items that have any number of sources, for a gallery. Section 7.2.

        The embedding of an item is the mean of its sources in one modality, scaled to unit length:
        in the first of `modalities` that the item has. Texts of an item with images are therefore
        not used, because captions are what queries look like; a `FusedEncoder` uses both.

        Args:
            sources: For each modality one list of sources an item, empty if the item lacks it.

        Returns:
            float32 `[n, dim]`, unit rows.

        Raises:
            ValueError: The numbers of items differ, an item has no source, or as for `encode`.
        """
        n = check_items(sources)
        embeddings, is_done = np.zeros((n, self.embedding_dim), np.float32), np.zeros(n, bool)
        for name in self.modalities:
            given = sources.get(name, [()] * n)
            used = [() if done else each for done, each in zip(is_done, given, strict=True)]
            embeddings += self.mean_embeddings(name, used)
            is_done |= [bool(len(each)) for each in used]
        if not is_done.all():
            row = int(np.argmin(is_done))
            raise ValueError(f"item {row} has none of {', '.join(self.modalities)}")
        return embeddings

    def mean_embeddings(self, modality: str, sources: Sequence[Sequence[Any]]) -> np.ndarray:
        """Mean embedding of each item's sources, scaled to unit length.

        Args:
            modality: One of `modalities`.
            sources: One list of sources an item.

        Returns:
            float32 `[n, dim]`; zeros for an item without sources.
        """
        flat = list(itertools.chain.from_iterable(sources))
        if not flat:
            return np.zeros((len(sources), self.embedding_dim), np.float32)
        return mean_vectors(self.encode(modality, flat), [len(each) for each in sources])


@keras.saving.register_keras_serializable("mmret_tf")
class MultiEncoder(WholeModel, Encoder):
    """Any number of towers with one embedding space. Section 5; arXiv 2103.00020.

    Call: the towers' inputs, a dict by modality, of all modalities or of some -> a dict with the
    same keys, float32 `[batch, dim]`, unit rows. A tuple of such dicts, as `joint_dataset` gives
    for several pairs of modalities, gives a tuple, and its losses are summed.

    `compile`, `fit`, `evaluate`, `predict` and `save` are Keras' own. Targets are group ids
    `[batch]`: rows with the same id show one item. Without targets, every row is an item of its
    own. The loss is one of `mmret_tf.losses`, or any Keras loss that takes a dict of two
    modalities; with more modalities it is summed over all pairs of them. The metric `spread` warns
    of collapse: 1 minus the squared length of the mean embedding, of the narrowest modality.

    Towers with several `members` form an ensemble (集成): the loss is computed for each member's
    part of the embeddings and averaged. Members share the backbone, the batches and the temperature
    alone. The cosine of two embeddings is the mean of the members' cosines.

    Under a `tf.distribute` strategy the negatives are those of the whole batch, of all replicas.

    Args:
        towers: One tower a modality.
        temperature: Shared with another encoder; by default a new one.
        name: Name of the model.
        dtype: Policy of the model's own weights.

    Raises:
        ValueError: There are fewer than two towers, two have the same modality, or they differ in
            `embedding_dim` or `members`.

    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor(max_tokens=100, sequence_length=8)
    >>> text.adapt(["a red circle", "红色的圆"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = MultiEncoder([image, mm.text_tower(text, units=8, embedding_dim=8)])
    >>> model.modalities, model.encode("text", ["a red circle"]).shape
    (['image', 'text'], (1, 8))
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        temperature: Temperature | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        towers = list(towers)
        names = [tower.modality for tower in towers]
        if len(towers) < 2 or len(set(names)) != len(names):
            raise ValueError(f"an encoder needs towers of different modalities; got {names}")
        for setting in ("embedding_dim", "members"):
            values = [getattr(tower, setting) for tower in towers]
            if len(set(values)) != 1:
                got = dict(zip(names, values, strict=True))
                raise ValueError(f"all towers must have the same {setting}; got {got}")
        self.towers = dict(zip(names, towers, strict=True))
        track(self, "part", towers)
        self.embedding_dim, self.members = towers[0].embedding_dim, towers[0].members
        self.temperature = temperature or Temperature(name="temperature")
        self.spread = keras.metrics.Mean("spread")
        self.built = True

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of what else decides the embeddings.

        It survives saving and loading, and changes with every training step.
        """
        settings = {name: tower.settings for name, tower in self.towers.items()}
        return weights_digest(settings, self.weights)

    def call(self, inputs, training=False):
        if isinstance(inputs, tuple | list):
            return tuple(self.call(each, training) for each in inputs)
        given = list(inputs) if isinstance(inputs, dict) else [type(inputs)]
        if not given or set(given) - set(self.towers):
            known = " or ".join(self.modalities)
            raise ValueError(f"inputs must be a dict of {known}; got {given}")
        return {name: self.towers[name](value, training=training) for name, value in inputs.items()}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if isinstance(y_pred, tuple | list):
            y = [None] * len(y_pred) if y is None else y
            parts = zip(y, y_pred, strict=True)
            costs = sum(self._loss_of_pairs(*part, sample_weight) for part in parts)
        else:
            costs = self._loss_of_pairs(y, y_pred, sample_weight)
        return costs + sum(self._aggregate_additional_loss(extra) for extra in self.losses)

    def _loss_of_pairs(self, y, y_pred, sample_weight):
        """The loss of one batch, summed over all pairs of its modalities."""
        if len(y_pred) < 2:
            raise ValueError(f"a loss needs two modalities in the inputs; got only {list(y_pred)}")
        y_pred, y, sample_weight = gather_replicas((y_pred, y, sample_weight))
        if y is None:
            y = ops.arange(ops.shape(next(iter(y_pred.values())))[0])
        spreads = [1 - ops.sum(ops.mean(rows, axis=0) ** 2) for rows in y_pred.values()]
        self.spread.update_state(ops.min(ops.stack(spreads)))
        temperature, loss = self.temperature(), self._pair_loss()
        length = self.members**-0.5  # of each member's part of a unit vector
        parts = {
            name: ops.split(rows / length, self.members, axis=1) for name, rows in y_pred.items()
        }
        costs = 0.0
        for first, second in itertools.combinations(y_pred, 2):
            for one, other in zip(parts[first], parts[second], strict=True):
                pair = {first: one, second: other, "temperature": temperature}
                costs = costs + loss(y, pair, sample_weight) / self.members
        return costs

    def _pair_loss(self) -> Callable:
        """The loss of two modalities, `(y_true, y_pred, sample_weight) -> number`."""
        with tf.init_scope():  # outside of the graph, where an optimizer cannot be described
            given, weight = self.loss, self.get_compile_config()["loss_weights"]
        if isinstance(given, dict | list | tuple) or isinstance(weight, dict | list | tuple):
            raise ValueError(
                "compile takes one loss, for all pairs of modalities, and loss_weights as a number"
            )
        return weighted_loss(keras.losses.get(given), 1.0 if weight is None else weight)

    def input_specs(self) -> dict:
        return {name: tower.input_specs() for name, tower in self.towers.items()}

    def fit(
        self,
        *args,
        callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] | None = None,
        **kwargs,
    ) -> keras.callbacks.History:
        """Keras' `fit`, with one warning if the embeddings collapse.

        Args:
            callbacks: Keras callbacks, such as `RetrievalMetrics`.
            args, kwargs: As for `keras.Model.fit`; the data may be that of `Pairs.as_dataset`.
        """
        callbacks = keras.tree.flatten(callbacks) if callbacks is not None else []
        if isinstance(args[0] if args else kwargs.get("x"), tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras would warn: a dataset has its order
        if self.optimizer is not None and not self.optimizer.built:
            # Variables that are made inside the first step cause a second trace of it.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().fit(*args, callbacks=[*callbacks, CollapseAlarm()], **kwargs)

    def with_towers(self, towers: Mapping[str, Tower]) -> "MultiEncoder":
        """An encoder with other towers for some modalities; it shares the rest with this one.

        Args:
            towers: The other towers, by modality.
        """
        return MultiEncoder({**self.towers, **towers}.values(), self.temperature)

    def get_config(self) -> dict:
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "towers": [keras.saving.serialize_keras_object(each) for each in self.towers.values()],
        }

    @classmethod
    def from_config(cls, config: dict) -> "MultiEncoder":
        return cls(**keras.saving.deserialize_keras_object(config))


class VariantEncoder(Encoder):
    """An encoder with other forms of some of its towers, such as compressed ones.

    Its embeddings lie in the same space, so that it has the encoder's fingerprint.

    Args:
        encoder: The encoder.
        towers: The other forms, by modality.
        form: How they compute, such as "int8".
    """

    def __init__(self, encoder: MultiEncoder, towers: Mapping[str, TowerForm], form: str):
        self.encoder = encoder
        self.towers = {**encoder.towers, **towers}
        self.embedding_dim, self.form = encoder.embedding_dim, form

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

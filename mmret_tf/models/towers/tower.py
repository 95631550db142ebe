"""The interface of towers (塔): everything between a source's bytes and a unit vector.

A tower is a backbone and a head. All towers are alike, whatever their modality.
"""

import abc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mmret_tf._checks import checked_count
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import Source
from mmret_tf.models.towers.head import Head
from mmret_tf.models.whole_model import WholeModel


class TowerForm(Protocol):
    """What encodes sources in place of a tower: the tower itself, or a smaller form of it."""

    modality: str
    embedding_dim: int
    batch_size: int

    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        """Encoded sources, strings `[batch]` -> inputs of the network."""

    def compiled_preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        """`preprocess` as a graph that is traced once."""

    def predict_on_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs -> float32 `[batch, embedding_dim]`, unit rows."""

    def remarks(self, sources: Sequence[Any]) -> list[str]:
        """What is wrong with each query, or ""."""


class Tower(WholeModel):
    """A backbone and a head for one modality. Section 2.2.

    Call: the result of `preprocess` -> float32 `[batch, embedding_dim]`, unit rows.

    A subclass sets `modality` and defines `preprocess` and `features`; `augment` and `sequence` are
    optional. It keeps its network in the attribute `backbone`. If its `__init__` has arguments
    besides `head`, it adds them to `get_config`.

    Args:
        head: Maps features to the embedding.
        kwargs: As for `keras.Model`.

    Attributes:
        modality: Name of the modality.
        batch_size: Default number of sources that are encoded at once.
        is_ordered: Whether the vectors of `sequence` follow each other in time, as words do.
        needs_ops: Name of a package whose ops `preprocess` adds to TensorFlow's; a server of an
            export must have them. By default "".
    """

    modality: ClassVar[str]
    batch_size: ClassVar[int] = 64
    is_ordered: ClassVar[bool] = True
    needs_ops: ClassVar[str] = ""

    def __init__(self, head: Head, **kwargs: Any):
        super().__init__(**kwargs)
        self.head = head
        self.built = True
        self._preprocess = None
        self._predict = None

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        return self.head.embedding_dim

    @property
    def members(self) -> int:
        """Number of members of an ensemble, see `MultiEncoder`."""
        return self.head.members

    @property
    def tables(self) -> list[keras.layers.Layer]:
        """Layers with lookup tables, which an export has to track."""
        return []

    @property
    def settings(self) -> list:
        """All that decides the embedding besides the weights, as JSON values."""
        return []

    @property
    def sequence_settings(self) -> list:
        """All that decides `sequence` besides the weights and `settings`, as JSON values."""
        return []

    def set_regions(self, layers: Sequence[str] = (), pool: int = 1) -> None:
        """Choose what `sequence` returns, if the tower has a choice; see `ImageTower.set_regions`.

        Args:
            layers, pool: By default what the tower has by itself.

        Raises:
            ValueError: The tower has no choice.
        """
        if layers or pool != 1:
            raise ValueError(f"{type(self).__name__} has regions of its own: choose none")

    @abc.abstractmethod
    def preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        """Turn encoded sources into the input of the network, in TensorFlow ops.

        The same function serves `tf.data`, `encode` and the exported graph.

        Args:
            sources: Encoded content, strings `[batch]`.

        Returns:
            `[batch, ...]`.
        """

    def augment(self, sources: tf.Tensor, seeds: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
        """`preprocess` for training: content may be cropped or changed at random (数据增强).

        Args:
            sources: Encoded content, strings `[batch]`.
            seeds: Integers `[batch, 2]` that decide all random changes.
            mirror: Booleans `[batch]`: whether to exchange left and right, if the tower can.

        Returns:
            `[batch, ...]`.
        """
        return self.preprocess(sources)

    @abc.abstractmethod
    def features(self, inputs, training: bool = False):
        """Output of the backbone, `[batch, width]`."""

    def view_inputs(self, sources: tf.Tensor, seeds: tf.Tensor, view: int) -> tf.Tensor:
        """One view (视图) of each source, for a cache.

        Args:
            sources: Encoded content, strings `[batch]`.
            seeds: Integers `[batch, 2]`.
            view: Number of the view: 0 is the source without augmentation, odd numbers are
                mirrored.

        Returns:
            `[batch, ...]`, as `preprocess` does.
        """
        if view == 0:
            return self.preprocess(sources)
        mirror = tf.fill([tf.shape(sources)[0]], view % 2 == 1)
        return self.augment(sources, seeds, mirror)

    def view_features(self, sources: tf.Tensor, seeds: tf.Tensor, view: int):
        """Features of one view of each source.

        Args:
            sources, seeds, view: As for `view_inputs`.

        Returns:
            `[batch, width]`.
        """
        return self.features(self.view_inputs(sources, seeds, view))

    def call(self, inputs, training=False):
        return self.head(self.features(inputs, training=training), training=training)

    def sequence(self, inputs):
        """Regions, words or frames, which early and hybrid fusion read instead of one vector.

        Args:
            inputs: The result of `preprocess`.

        Returns:
            `[batch, length, width]`, and a boolean mask `[batch, length]`, False for padding.

        Raises:
            ValueError: The tower has no such sequence.
        """
        raise ValueError(f"{type(self).__name__} has no sequence: use a late fusion")

    def padded_sequence(self, inputs: tf.Tensor) -> tf.Tensor:
        """`sequence` as one tensor, float32 `[batch, length, width]`, zeros for padding.

        Args:
            inputs: The result of `preprocess`.

        Raises:
            ValueError: The tower has no such sequence.
        """
        vectors, mask = self.sequence(inputs)
        return ops.where(mask[:, :, None], ops.cast(vectors, "float32"), 0.0)

    @property
    def word_table(self) -> keras.layers.Embedding | None:
        """The layer that looks up the vectors of `sequence` by what `preprocess` returns, token ids
        with 0 for padding; `None` for a tower whose `sequence` computes them."""
        return None

    # It traces the tower, and Keras reads every property when it saves or loads a model: a method.
    def sequence_shape(self) -> tuple[int | None, int]:
        """Length (`None` if it varies) and width of `padded_sequence`, from its graph.

        Raises:
            ValueError: The tower has no such sequence.
        """
        # With AutoGraph, an error of `sequence` itself would be buried in a trace.
        compiled = tf.function(self.padded_sequence, autograph=False)
        return tuple(compiled.get_concrete_function(self.input_specs()).output_shapes[1:])

    def compiled_preprocess(self, sources: tf.Tensor) -> tf.Tensor:
        """`preprocess` as a graph that is traced once."""
        return self._preprocess_graph()(sources)

    def _preprocess_graph(self) -> tf.types.experimental.ConcreteFunction:
        if self._preprocess is None:
            strings = tf.TensorSpec([None], tf.string)
            compiled = tf.function(self.preprocess, input_signature=[strings])
            self._preprocess = compiled.get_concrete_function()
        return self._preprocess

    def input_specs(self) -> Any:
        return keras.tree.map_structure(_any_batch, self._preprocess_graph().structured_outputs)

    def predict_on_batch(self, x):
        """Keras' `predict_on_batch`, as a graph that is traced once for all batch sizes."""
        if self._predict is None:
            self._predict = tf.function(lambda inputs: self(inputs), autograph=False)
            self._predict.get_concrete_function(keras.tree.map_structure(_any_batch, x))
        return self._predict(x).numpy()

    def encode(self, sources: Sequence[Source], batch_size: int | None = None) -> np.ndarray:
        """Embed sources.

        Args:
            sources: Sources of the tower's modality.
            batch_size: Number of sources that are embedded at once, while the next are prepared.

        Returns:
            float32 `[n, embedding_dim]`, unit rows.

        Raises:
            ValueError: A source cannot be used (the message names it), or the list is empty.
        """
        return encode_sources(self, sources, batch_size)

    def remarks(self, sources: Sequence[Any]) -> list[str]:
        """What is wrong with queries that can be embedded all the same.

        Args:
            sources: Queries of the tower's modality.

        Returns:
            A sentence for each, or "".
        """
        return [""] * len(sources)

    def get_config(self) -> dict:
        """Arguments of `__init__`, and which parts are frozen."""
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "head": keras.saving.serialize_keras_object(self.head),
            "trainable": self.trainable,
            "frozen": [layer.name for layer in self.layers if not layer.trainable],
        }

    @classmethod
    def from_config(cls, config: dict) -> "Tower":
        config = keras.saving.deserialize_keras_object(config)
        trainable, frozen = config.pop("trainable"), config.pop("frozen")
        tower = cls(**config)
        if not trainable:  # True would thaw a frozen backbone too
            tower.trainable = False
        for layer in tower.layers:
            if layer.name in frozen:
                layer.trainable = True  # TensorFlow ignores False if it is False already
                layer.trainable = False
        return tower


def _any_batch(batch) -> tf.TensorSpec:
    """The type of a batch `[batch, ...]`, with any number of rows."""
    return tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)


def encode_sources(
    tower: TowerForm, sources: Sequence[Source], batch_size: int | None = None
) -> np.ndarray:
    """See `Tower.encode`."""
    batches = input_batches(tower, sources, batch_size)
    embeddings = [tower.predict_on_batch(batch) for batch in batches]
    if not embeddings:
        raise ValueError("nothing to encode: the list is empty")
    return np.concatenate(embeddings)


def input_batches(
    tower: TowerForm, sources: Sequence[Source], batch_size: int | None = None
) -> Iterator[tf.Tensor]:
    """Inputs of a tower's network in batches; while one is used, the next is prepared."""
    step = tower.batch_size if batch_size is None else checked_count(batch_size, "batch_size")
    blocks = [sources[start : start + step] for start in range(0, len(sources), step)]
    if len(blocks) < 2:  # a query does not wait for a thread
        yield from (_prepared(tower, block) for block in blocks)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_prepared, tower, blocks[0])
        for block in blocks[1:]:
            ready = ahead.result()
            ahead = pool.submit(_prepared, tower, block)
            yield ready
        yield ahead.result()


def _prepared(tower: TowerForm, sources: Sequence[Source]) -> tf.Tensor:
    """Inputs for some sources; ValueError that names the source that cannot be used."""
    read = get_modality(tower.modality).read
    contents = [read(source) for source in sources]
    try:
        return tower.compiled_preprocess(tf.constant(contents))
    except tf.errors.OpError:
        for source, content in zip(sources, contents, strict=True):
            try:
                get_modality(tower.modality).check(content)
                tower.preprocess(tf.constant([content]))  # its errors are shorter than a graph's
            except (ValueError, tf.errors.OpError) as reason:
                raise ValueError(f"{source.name}: {reason}") from None
        raise

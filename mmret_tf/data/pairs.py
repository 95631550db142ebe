"""Pairs (图文对): rows on which an encoder is trained and evaluated, and their `tf.data` batches.

Sections 2.1 and 3.1(1) of the document.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmret_tf.data.cleaning import WholeRows
from mmret_tf.data.collection import Collection
from mmret_tf.data.decoders.text import names_a_side
from mmret_tf.data.items import source_ids
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import InlineSource, Source


class Pairs(Collection):
    """Rows that pair one source of a modality with one or more of another. Section 2.1.

    Made by `Collection.pairs` or `load_pairs`.

    Args:
        ids, sources, attributes, splits, quarantined: As for `Collection`; `sources` has the first
            modality and then the second.
        groups: Group number of each row; rows with the same number show the same item, and are
            never negatives of each other. By default each row is an item of its own.

    Attributes:
        modalities: Names of the first and the second modality.

    Raises:
        ValueError: As for `Collection`, or a row has not exactly one source of the first modality
            and at least one of the second.

    >>> sources = {"image": [["a.png"], ["b.png"]], "text": [["red", "红"], ["blue"]]}
    >>> pairs = Pairs(["a", "b"], sources)
    >>> pairs.all_captions(), pairs.caption_to_image()
    (['red', '红', 'blue'], array([0, 0, 1]))
    >>> pairs.image_paths, pairs.subset([1]).ids
    ([PosixPath('a.png'), PosixPath('b.png')], ['b'])
    """

    def __init__(
        self,
        ids: Sequence[str],
        sources: Mapping[str, Sequence[Sequence[Any]]],
        attributes: Sequence[dict[str, Any]] | None = None,
        splits: Sequence[str] | None = None,
        quarantined: Sequence[tuple[str, str]] = (),
        groups: Sequence[int] | None = None,
    ):
        super().__init__(ids, sources, attributes, splits, quarantined)
        self.groups = list(range(len(self.ids))) if groups is None else _renumbered(groups)
        self.modalities = tuple(self.sources)
        if len(self.modalities) != 2 or len(self.groups) != len(self.ids):
            raise ValueError("pairs have two modalities, and one group a row")
        for key, first, second in zip(self.ids, *self.sources.values(), strict=True):
            if len(first) != 1 or not second:
                raise ValueError(
                    f"every row must have one {self.modalities[0]} and at least one "
                    f"{self.modalities[1]}; {key!r} has {len(first)} and {len(second)}"
                )

    @property
    def image_paths(self) -> list[Path]:
        """The image file of each row."""
        return [paths[0] for paths in super().image_paths]

    @property
    def first_sources(self) -> list[Source]:
        """The source of the first modality of each row, `[n]`."""
        return [each for (each,) in self.sources[self.modalities[0]]]

    @property
    def second_sources(self) -> list[Source]:
        """Every source of the second modality, row after row: `[n_captions]`."""
        return [source for each in self.sources[self.modalities[1]] for source in each]

    def all_captions(self) -> list[str]:
        """Every caption, row after row: `[n_captions]`."""
        return [caption for captions in self.captions for caption in captions]

    def caption_to_image(self) -> np.ndarray:
        """The row of the image of each caption in `all_captions()`: int64 `[n_captions]`."""
        counts = [len(each) for each in self.sources[self.modalities[1]]]
        return np.repeat(np.arange(len(self), dtype=np.int64), counts)

    def first_rows(self) -> list[int]:
        """The first row of each group: one row an item.

        Returns:
            Row numbers, ascending.

        >>> sources = {"image": [["front.png"], ["back.png"]], "text": [["a shoe"], ["a shoe"]]}
        >>> Pairs(["f", "b"], sources, groups=[0, 0]).first_rows()
        [0]
        """
        return np.unique(self.groups, return_index=True)[1].tolist()

    def _is_usable(self, sources: Mapping[str, list[Source]]) -> bool:
        return all(sources.values())

    def subset(self, rows: Iterable[int]) -> "Pairs":
        rows = list(rows)
        return self._rows(rows, groups=[self.groups[row] for row in rows])

    def as_dataset(
        self,
        model: Any,
        batch_size: int = 64,
        training: bool = False,
        seed: int = 0,
        captions_per_image: int = 1,
        shard: tuple[int, int] = (0, 1),
        order: Callable[[], np.ndarray] | None = None,
    ) -> tf.data.Dataset:
        """Batches `({"image": ..., "text": ...}, group_ids)` for `fit` and `predict`. Section
        3.1(1).

        With `training`, each epoch has a new order. It has each row `captions_per_image` times,
        with different captions and a new augmentation each time. Half of the images are mirrored,
        except where the caption names left or right (左右). An incomplete last batch is dropped
        unless it is the only one, so that each batch has the same number of negatives. `seed`, the
        global seed of TensorFlow and the number of the epoch decide all of this.

        Where files were not checked on loading, training checks each when it comes first. A damaged
        one is set aside in `quarantined`, with a warning, and the next row takes its place.

        Without `training`, every caption comes with its image, in the order of `all_captions()`,
        without augmentation.

        Args:
            model: An encoder; its towers turn encoded sources into their inputs.
            batch_size: Number of pairs in a batch.
            training: Whether the batches are for training.
            seed: Seed of the order, the captions and the augmentation.
            captions_per_image: Number of pairs of each row in an epoch. A row with fewer captions
                repeats them.
            shard: The number of this worker, from 0, and the number of workers that share each
                batch. Each decodes its own rows, but checks all files that were not checked.
            order: Called for each epoch of training: all row numbers, `[n]`, in the order in which
                they make batches; by default a random one.

        Returns:
            Batches of the inputs of both towers, by modality, and int64 `[batch]` group ids: two
            captions of one item are never negatives of each other.

        Raises:
            ValueError: The model lacks a tower, there are no rows, or a number is below 1.

        >>> import mmret_tf as mm
        >>> pairs, text = mm.load_pairs("scenes", size=20), mm.TextPreprocessor(sequence_length=16)
        >>> text.adapt(pairs.all_captions())
        >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32)
        >>> model = mm.DualEncoder(image, mm.text_tower(text))
        >>> inputs, groups = next(iter(pairs.as_dataset(model, batch_size=5, training=True)))
        >>> inputs["image"].shape, inputs["text"].shape, groups.shape
        (TensorShape([5, 32, 32, 3]), TensorShape([5, 16]), TensorShape([5]))
        """
        if missing := [name for name in self.modalities if name not in model.towers]:
            raise ValueError(f"the model has no tower for {missing[0]}")
        if batch_size < 1 or not len(self):
            raise ValueError(f"no batches of {batch_size} can be made of {len(self)} rows")
        if not 0 <= shard[0] < shard[1] <= batch_size:
            raise ValueError(f"worker {shard[0]} of {shard[1]} has no rows of {batch_size}")
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image must be at least 1; got {captions_per_image}")
        towers = {name: model.towers[name] for name in self.modalities}
        sources = zip(self.modalities, (self.first_sources, self.second_sources), strict=True)
        readers = {name: _reader_of(name, each) for name, each in sources}
        groups = tf.constant(self.groups, tf.int64)

        def load(row, other, seeds=None):
            rows = dict(zip(self.modalities, (row, other), strict=True))
            contents = {name: readers[name](rows[name]) for name in rows}
            if training:
                mirror = seeds[:, 1] % 2 == 0
                if "text" in contents:
                    mirror &= ~names_a_side(contents["text"])
                inputs = {
                    name: towers[name].augment(each, seeds, mirror)
                    for name, each in contents.items()
                }
            else:
                inputs = {name: towers[name].preprocess(each) for name, each in contents.items()}
            return inputs, tf.gather(groups, row)

        if training:
            rows = self._training_rows(captions_per_image, seed, order)
        else:
            image_of = self.caption_to_image()
            rows = tf.data.Dataset.from_tensor_slices((image_of, np.arange(len(image_of))))
        drop_remainder = training and len(self) * captions_per_image >= batch_size
        batches = rows.batch(batch_size, drop_remainder)
        worker, workers = shard
        if workers > 1:
            batches = batches.map(lambda *numbers: tuple(each[worker::workers] for each in numbers))
        return batches.map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _training_rows(
        self, captions_per_image: int, seed: int, order: Callable[[], np.ndarray] | None
    ) -> tf.data.Dataset:
        """Rows in a new order for each epoch, with a caption and two random numbers each."""
        image_of = self.caption_to_image()
        starts = tf.constant(np.searchsorted(image_of, np.arange(len(self))))
        counts = tf.constant([len(each) for each in self.sources[self.modalities[1]]], tf.int64)

        def draw(row, numbers):
            some = (numbers[0] + tf.range(captions_per_image, dtype=tf.int64)) % counts[row]
            seeds = tf.reshape(numbers[1:], (captions_per_image, 2))
            return tf.fill([captions_per_image], row), starts[row] + some, seeds

        if order is None:
            rows = tf.data.Dataset.range(len(self))
            rows = rows.shuffle(len(self), seed=seed, reshuffle_each_iteration=True)
        else:
            rows = tf.data.Dataset.from_generator(
                order, output_signature=tf.TensorSpec([], tf.int64)
            )
            rows = rows.apply(tf.data.experimental.assert_cardinality(len(self)))
        if not self.is_checked:
            whole = WholeRows(self.sources, self.quarantined)
            rows = rows.map(
                lambda row: tf.numpy_function(whole.first_from, [row], tf.int64), tf.data.AUTOTUNE
            ).map(lambda row: tf.ensure_shape(row, []))
        # Each row has its numbers before threads decode it, so their order does not matter.
        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        numbers = numbers.batch(1 + 2 * captions_per_image, drop_remainder=True)
        return tf.data.Dataset.zip(rows, numbers).map(draw).unbatch()


def joint_dataset(
    parts: Sequence[Pairs], model: Any, batch_size: int = 64, **options: Any
) -> tf.data.Dataset:
    """Batches of several pairs of modalities at once, for `MultiEncoder.fit`. Section 2.1.

    Each step has a batch of every part, and their losses are summed. An item takes part with the
    pairs of modalities that it has. An epoch shows the longest part once; the others start again
    when they end.

    Args:
        parts: Pairs, such as those of images and texts, and those of sounds and texts.
        model: An encoder with a tower for each modality.
        batch_size: Number of pairs in a batch of each part.
        options: As for `Pairs.as_dataset`, for training.

    Returns:
        Tuples of the parts' inputs, and tuples of their group ids; of a single part, its own
        batches.

    Raises:
        ValueError: There are no parts, or as for `Pairs.as_dataset`.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", size=20), mm.TextPreprocessor(sequence_length=16)
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=32)
    >>> model = mm.DualEncoder(image, mm.text_tower(text))
    >>> parts = [pairs, pairs.subset(range(5))]
    >>> batches = joint_dataset(parts, model, batch_size=5)
    >>> len(batches), [each["image"].shape[0] for each in next(iter(batches))[0]]
    (4, [5, 5])
    """
    if not parts:
        raise ValueError("no pairs of modalities to train on")
    each = [part.as_dataset(model, batch_size, training=True, **options) for part in parts]
    if len(each) == 1:
        return each[0]
    steps = max(len(part) for part in each)
    batches = tf.data.Dataset.zip(*(part.repeat() for part in each)).take(steps)
    return batches.map(lambda *step: tuple(zip(*step, strict=True)))


def draw_pairs(collection: Collection, first: str, second: str) -> Pairs:
    """See `Collection.pairs`."""
    if not collection.has_pairs(first, second):
        raise ValueError(
            f"none of the {len(collection)} items has both {first} and {second}: there is nothing "
            "to learn from how they belong together"
        )
    rows, quarantined = [], list(collection.quarantined)
    for row, key in enumerate(collection.ids):
        ones, others = (collection.sources[name][row] for name in (first, second))
        if ones and others:
            rows += zip([row] * len(ones), source_ids(key, len(ones)), ones, strict=True)
        else:
            has, lacks = (first, second) if ones else (second, first)
            quarantined.append((key, f"{has} without {lacks}"))
    items = [row for row, _, _ in rows]
    pairs = Pairs(
        [key for _, key, _ in rows],
        {
            first: [[source] for *_, source in rows],
            second: [collection.sources[second][row] for row in items],
        },
        [collection.attributes[row] for row in items],
        [collection.splits[row] for row in items],
        quarantined,
        groups=items,
    )
    pairs.layout, pairs.is_checked = collection.layout, collection.is_checked
    return pairs


def _reader_of(modality: str, sources: Sequence[Source]):
    """A TensorFlow function from row numbers `[batch]` to encoded contents `[batch]`."""
    read_source = get_modality(modality).read
    if all(isinstance(source, InlineSource) for source in sources):
        contents = tf.constant([read_source(source) for source in sources])
        return lambda rows: tf.gather(contents, rows)

    def read(rows: np.ndarray) -> np.ndarray:
        return np.array([read_source(sources[row]) for row in rows], object)

    def read_in_graph(rows: tf.Tensor) -> tf.Tensor:
        contents = tf.numpy_function(read, [rows], tf.string, stateful=False)
        return tf.ensure_shape(contents, [None])

    return read_in_graph


def _renumbered(groups: Sequence[int]) -> list[int]:
    """The same groups with the numbers 0, 1, ... in the order in which they occur."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]

"""A collection of captioned images on disk -> PairDataset -> batches for a model (图文对数据集).

Section 2.1 / 3.1(1) of the tutorial document. What `loading` found unusable is put aside and
reported, so that training meets no bad input.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmret_tf.loading import image_ids, load_columns
from mmret_tf.preprocessing import crop_and_resize, decode_image
from mmret_tf.splits import count_splits, rows_of_split

# A caption that says left or right would be false of the mirrored picture.
SIDES = r"(?is).*(\b(left|right)|左|右).*"


@dataclass(repr=False)
class PairDataset:
    """Images and their captions; all lists have one item an image, and pixels stay on disk.
    Section 2.1.

    Args:
        ids: unique names: the path of the image as the captions file has it, or the `id` that
            the layout gives.
        image_paths: the image files.
        captions: for each image one caption or more.
        attributes: for each image what else the layout says of it, often `{}`.
        splits: "train", "dev" or "test"; "" for an image that its layout puts in no split.
        quarantined: what was put aside on loading: (path or place, reason).
        groups: for each image a number; images with the same one show one item, and are never
            negatives of each other. By default each is an item of its own.

    Raises:
        ValueError: the lists differ in length, an id comes twice, or an image has no caption.

    >>> files = [Path("a.png"), Path("b.png")]
    >>> pairs = PairDataset(["a", "b"], files, [["red", "红"], ["blue"]], [{}, {}], ["dev", "dev"])
    >>> pairs.all_captions(), pairs.caption_to_image()
    (['red', '红', 'blue'], array([0, 0, 1]))
    >>> pairs.subset([1]).ids, pairs.split("dev")
    (['b'], PairDataset(2 images, 3 captions, splits: dev (2), 0 put aside))
    """

    ids: list[str]
    image_paths: list[Path]
    captions: list[list[str]]
    attributes: list[dict[str, Any]]
    splits: list[str]
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    groups: list[int] | None = None

    def __post_init__(self) -> None:
        if self.groups is None:
            self.groups = list(range(len(self.ids)))
        lists = [self.ids, self.image_paths, self.captions, self.attributes, self.splits]
        check_lists(
            [*lists, self.groups],
            "ids, image_paths, captions, attributes, splits and groups must have one item an image",
        )
        if not all(self.captions):
            bare = self.ids[[bool(each) for each in self.captions].index(False)]
            raise ValueError(f"every image must have a caption; {bare!r} has none")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"PairDataset({len(self)} images, {len(self.all_captions())} captions, "
            f"splits: {count_splits(self.splits)}, {len(self.quarantined)} put aside)"
        )

    def all_captions(self) -> list[str]:
        """Every caption of every image, image after image: `[n_captions]`."""
        return [caption for captions in self.captions for caption in captions]

    def caption_to_image(self) -> np.ndarray:
        """For each of `all_captions()` the row of its image: int64 `[n_captions]`."""
        counts = [len(captions) for captions in self.captions]
        return np.repeat(np.arange(len(self), dtype=np.int64), counts)

    def first_rows(self) -> list[int]:
        """The first row of each group: one image an item.

        Returns:
            Row numbers, ascending; all rows where no two images show one item.

        >>> files, captions = [Path("front.png"), Path("back.png")], [["a shoe"], ["a shoe"]]
        >>> PairDataset(["f", "b"], files, captions, [{}, {}], ["", ""], groups=[0, 0]).first_rows()
        [0]
        """
        first: dict[int, int] = {}
        for row, group in enumerate(self.groups):
            first.setdefault(group, row)
        return list(first.values())

    def subset(self, rows: Iterable[int]) -> PairDataset:
        """The images of these rows, in this order; groups are numbered anew, as they come.
        `quarantined` stays that of the whole.

        Args:
            rows: row numbers from 0.

        Raises:
            IndexError: there is no such row.
        """
        rows = list(rows)
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            image_paths=[self.image_paths[row] for row in rows],
            captions=[self.captions[row] for row in rows],
            attributes=[self.attributes[row] for row in rows],
            splits=[self.splits[row] for row in rows],
            groups=_numbered([self.groups[row] for row in rows]),
        )

    def split(self, name: str) -> PairDataset:
        """The images of one split.

        Args:
            name: "train", "dev" (or "val", "validation") or "test".

        Raises:
            ValueError: there are none; the message names the splits that there are.
        """
        return self.subset(rows_of_split(self.splits, name, "images"))

    def as_dataset(
        self,
        model: Any,
        batch_size: int = 64,
        training: bool = False,
        seed: int = 0,
        deterministic: bool = True,
        features: np.ndarray | None = None,
        min_crop: float = 0.8,
        captions_per_image: int = 1,
    ) -> tf.data.Dataset:
        """Batches `({"image": ..., "text": ...}, group_ids)` for `fit` and `predict`. Section
        3.1(1).

        With `training`, an epoch has each image once, in a new order, with one of its captions
        drawn anew, cropped at random, and mirrored half of the time unless that caption says left
        or right (左右); or, with `captions_per_image`, so many times in a row, with other captions
        and other crops. The last batch is dropped if it is not full (and not the only one): losses
        that take the rest of the batch as negatives want as many in each. All of it follows from
        `seed` and the number of epochs drawn before.

        Without, every caption comes with its image, in the order of `all_captions()`, centre
        cropped, nothing dropped.

        Args:
            model: it says by `image_size` (pixels) how large the images are to be, and its
                `text_preprocessor` turns strings `[batch]` into token ids `[batch, length]`.
            batch_size: pairs a batch.
            training: see above.
            seed: of the order, the captions, the crops and the flips.
            deterministic: False lets a batch take whichever images are decoded first, which
                keeps every core busy when the sizes of images differ much.
            features: `[n_images, width]`, say a backbone's output or a memory map of it, to stand
                for the images: nothing is decoded, cropped or mirrored then. Or `[n_images, views,
                width]`: training draws one of an image's views (视图), of which the first is the
                plain picture and every second one is mirrored, as `feature_views` makes them.
            min_crop: share of a picture's shorter side that a random crop keeps at least, above 0;
                1 where captions tell of things at the very edge.
            captions_per_image: how many pairs of each image an epoch has; an image that has fewer
                captions repeats them.

        Returns:
            Batches of "image": uint8 `[batch, image_size, image_size, 3]`, or float32
            `[batch, width]` with `features`; "text": int64 `[batch, length]`; group ids: int64
            `[batch]`, of `groups`, so that two captions of one item are never negatives of each
            other.

        Raises:
            ValueError: the model has no text_preprocessor, there are no images, `batch_size` or
                `captions_per_image` is below 1, `features` has another shape, or `min_crop` is 0,
                below, or above 1.

        >>> from types import SimpleNamespace
        >>> from mmret_tf.preprocessing import TextPreprocessor
        >>> pairs, text = load_pairs("scenes", size=20), TextPreprocessor(sequence_length=16)
        >>> text.adapt(pairs.all_captions())
        >>> model = SimpleNamespace(image_size=32, text_preprocessor=text)  # or a DualEncoder
        >>> inputs, groups = next(iter(pairs.as_dataset(model, batch_size=5, training=True)))
        >>> inputs["image"].shape, inputs["text"].shape, groups.shape
        (TensorShape([5, 32, 32, 3]), TensorShape([5, 16]), TensorShape([5]))
        """
        if getattr(model, "text_preprocessor", None) is None:
            raise ValueError("the model has no text_preprocessor; give it an adapted one")
        if batch_size < 1 or not len(self):
            raise ValueError(f"no batches of {batch_size} can be made of {len(self)} images")
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image must be at least 1; got {captions_per_image}")
        if features is not None and (features.ndim not in (2, 3) or len(features) != len(self)):
            raise ValueError(
                f"features must have shape [{len(self)}, width], a row an image, or "
                f"[{len(self)}, views, width]; got {features.shape}"
            )
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1; got {min_crop}")
        image_of = self.caption_to_image()
        starts = tf.constant(np.searchsorted(image_of, np.arange(len(self))))
        counts = tf.constant([len(captions) for captions in self.captions], tf.int64)
        captions = tf.constant(self.all_captions())
        paths = tf.constant([os.fsencode(path) for path in self.image_paths])
        groups = tf.constant(self.groups, tf.int64)

        def draw(row, numbers):
            some = (numbers[0] + tf.range(captions_per_image, dtype=tf.int64)) % counts[row]
            seeds = tf.reshape(numbers[1:], (captions_per_image, 2))
            return tf.fill([captions_per_image], row), starts[row] + some, seeds

        def may_flip(caption):
            return ~tf.strings.regex_full_match(tf.gather(captions, caption), SIDES)

        def load(row, caption, crop_seed=None):
            image = decode_image(tf.io.read_file(paths[row]))
            image = crop_and_resize(image, model.image_size, crop_seed, may_flip(caption), min_crop)
            return row, caption, image

        def look_up(row, caption, seeds=None):
            chosen = [row]
            if features.ndim == 3:
                view = tf.zeros_like(row) if seeds is None else seeds[:, 0] % features.shape[1]
                chosen.append(tf.where(may_flip(caption), view, view - view % 2))
            image = tf.numpy_function(
                lambda *chosen: np.asarray(features[chosen], np.float32),
                chosen,
                tf.float32,
                stateful=False,
            )
            return row, caption, tf.ensure_shape(image, (None, features.shape[-1]))

        def finish(row, caption, image):
            text = model.text_preprocessor(tf.gather(captions, caption))
            return {"image": image, "text": text}, tf.gather(groups, row)

        if training:
            order = tf.data.Dataset.range(len(self))
            order = order.shuffle(len(self), seed=seed, reshuffle_each_iteration=True)
            # Numbers for each image: its first caption, and a seed of crop and flip for each pair.
            # They come with it, so the order in which threads decode changes nothing.
            numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
            numbers = numbers.batch(1 + 2 * captions_per_image, drop_remainder=True)
            pairs = tf.data.Dataset.zip(order, numbers).map(draw).unbatch()
        else:
            pairs = tf.data.Dataset.from_tensor_slices((image_of, np.arange(len(image_of))))
        drop_remainder = training and len(self) * captions_per_image >= batch_size
        if features is None:
            batches = pairs.map(load, tf.data.AUTOTUNE).batch(batch_size, drop_remainder)
        else:
            batches = pairs.batch(batch_size, drop_remainder).map(look_up)
        options = tf.data.Options()
        options.deterministic = deterministic or not training
        return batches.map(finish).prefetch(tf.data.AUTOTUNE).with_options(options)


def load_pairs(
    source: str | os.PathLike[str],
    split: str | None = None,
    size: int = 2000,
    seed: int = 0,
) -> PairDataset:
    """Load a collection of images with captions. Sections 2.1 and 3.1(1).

    What cannot be used (a damaged or missing image, an image without a caption, an empty caption,
    a row that cannot be read, an image outside the folder, an id that comes twice) is put aside in
    `quarantined`, with its reason, and a warning counts it.

    Layouts, the first that is found:

    - `captions.jsonl`: a line `{"image": "a.png", "captions": ["a dog", "一只狗"]}` for each image;
      `id`, `split` and `attributes` may be added, and `caption` may hold one string instead.
      `images` may name several that show one item: each is a row, with the ids "item#0", "item#1"
      and so on, in one group. Rows of text alone are for `load_items`.
    - `captions.csv`: columns image, caption and perhaps split; a row for each caption.
    - `dataset_*.json` of Karpathy; images beside it or in `images/`; "restval" is "train".
    - MS-COCO: `captions_*.json`, perhaps in `annotations/`, images in `train2017/` and so on.
    - Flickr8k: `captions.txt` or `Flickr8k.token.txt`, `Images/`, `Flickr_8k.trainImages.txt`...
    - `a.jpg` and `a.txt`, a caption a line, in any subfolder.

    Splits are by image. Where a layout names none, the id of an image decides: 80 % are "train",
    10 % "dev" and 10 % "test", today and on any machine.

    Args:
        source: "scenes" (drawn pictures, see `scenes`; a folder of that name is "./scenes"), a
            folder, or the captions file itself.
        split: "train", "dev" (or "val", "validation") or "test"; `None` for all images, and for
            the training split of scenes. Other splits are not decoded.
        size: the number of scenes.
        seed: of the scenes.

    Returns:
        A `PairDataset`. Its pictures were decoded once, to be checked, and are read again by what
        uses them.

    Raises:
        ValueError: nothing is there, the layout is not known, the captions file cannot be read,
            no image is usable, or the collection has no such split.

    >>> pairs = load_pairs("scenes", split="dev", size=3)
    >>> len(pairs), pairs.image_paths[0].name, len(pairs.quarantined)
    (3, '0000.png', 0)
    """
    return image_rows(**load_columns(source, split, size, seed, needs_both=True))


def image_rows(
    ids: list[str],
    image_paths: list[list[Path]],
    captions: list[list[str]],
    attributes: list[dict[str, Any]],
    splits: list[str],
    quarantined: list[tuple[str, str]],
) -> PairDataset:
    """The images of items that have captions, a row each; those of one item are one group."""
    rows = [
        (item, path, name)
        for item, (key, paths) in enumerate(zip(ids, image_paths, strict=True))
        if captions[item]
        for path, name in zip(paths, image_ids(key, len(paths)), strict=True)
    ]
    items = [item for item, _, _ in rows]
    return PairDataset(
        ids=[name for _, _, name in rows],
        image_paths=[path for _, path, _ in rows],
        captions=[captions[item] for item in items],
        attributes=[attributes[item] for item in items],
        splits=[splits[item] for item in items],
        quarantined=quarantined,
        groups=_numbered(items),
    )


def check_lists(lists: list[list], expected: str) -> None:
    """Refuse lists of different lengths, or ids, the first list, that are not unique; ValueError.

    `expected` says what the lists are, for the message.
    """
    if len({len(each) for each in lists}) != 1:
        raise ValueError(f"{expected}; got {', '.join(str(len(each)) for each in lists)}")
    ids = lists[0]
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"ids must be unique; {twice!r} comes more than once")


def _numbered(groups: list[int]) -> list[int]:
    """The same groups with the numbers 0, 1, ... in the order in which they come."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]

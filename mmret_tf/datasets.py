"""A collection of captioned images on disk -> PairDataset -> batches for a model (图文对数据集).

Section 2.1 / 3.1(1) of the tutorial document. Every image is decoded once on loading; what is
unusable is put aside and reported, so that training meets no bad input.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmret_tf.layouts import (
    Collection,
    Problem,
    Record,
    hash_split,
    is_inside,
    normal_split,
    read_layout,
)
from mmret_tf.preprocessing import crop_and_resize, decode_failure, decode_image
from mmret_tf.scenes import cached_scenes

# A larger image file is not even read. The largest picture that is decoded, as a BMP, has half.
MAX_IMAGE_BYTES = 2**29

# A scan of more images shows its progress.
PROGRESS_FROM = 1000

# A caption that says left or right would be false of the mirrored picture.
SIDES = r"(?is).*(\b(left|right)|左|右).*"


@dataclass(repr=False)
class PairDataset:
    """Images and their captions; all lists have one item an image, and pixels stay on disk.

    Args:
        ids: unique names: the path of the image as the captions file has it, or the `id` that
            the layout gives.
        image_paths: the image files.
        captions: for each image one caption or more.
        attributes: for each image what else the layout says of it, often `{}`.
        splits: "train", "dev" or "test"; "" for an image that its layout puts in no split.
        quarantined: what was put aside on loading: (path or place, reason).

    Raises:
        ValueError: the lists differ in length, an id comes twice, or an image has no caption.

    >>> files = [Path("a.png"), Path("b.png")]
    >>> pairs = PairDataset(["a", "b"], files, [["red", "红"], ["blue"]], [{}, {}], ["dev", "dev"])
    >>> pairs.all_captions(), pairs.caption_to_image()
    (['red', '红', 'blue'], array([0, 0, 1]))
    """

    ids: list[str]
    image_paths: list[Path]
    captions: list[list[str]]
    attributes: list[dict[str, Any]]
    splits: list[str]
    quarantined: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists = (self.ids, self.image_paths, self.captions, self.attributes, self.splits)
        if len({len(each) for each in lists}) != 1:
            raise ValueError(
                "ids, image_paths, captions, attributes and splits must have one item an image; "
                f"got {', '.join(str(len(each)) for each in lists)}"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise ValueError(f"ids must be unique; {twice!r} comes more than once")
        if not all(self.captions):
            bare = self.ids[[bool(each) for each in self.captions].index(False)]
            raise ValueError(f"every image must have a caption; {bare!r} has none")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"PairDataset({len(self)} images, {len(self.all_captions())} captions, "
            f"splits: {_count_splits(self.splits)}, {len(self.quarantined)} put aside)"
        )

    def all_captions(self) -> list[str]:
        """Every caption of every image, image after image: `[n_captions]`."""
        return [caption for captions in self.captions for caption in captions]

    def caption_to_image(self) -> np.ndarray:
        """For each of `all_captions()` the row of its image: int64 `[n_captions]`."""
        counts = [len(captions) for captions in self.captions]
        return np.repeat(np.arange(len(self), dtype=np.int64), counts)

    def subset(self, rows: Iterable[int]) -> PairDataset:
        """The images of these rows, in this order. `quarantined` stays that of the whole."""
        rows = list(rows)
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            image_paths=[self.image_paths[row] for row in rows],
            captions=[self.captions[row] for row in rows],
            attributes=[self.attributes[row] for row in rows],
            splits=[self.splits[row] for row in rows],
        )

    def split(self, name: str) -> PairDataset:
        """The images of one split: "train", "dev" (or "val", "validation") or "test".

        Raises:
            ValueError: there are none; the message names the splits that there are.
        """
        name = normal_split(name)
        rows = [row for row, split in enumerate(self.splits) if split == name]
        if not rows:
            raise ValueError(f"no images of split {name!r}; there are {_count_splits(self.splits)}")
        return self.subset(rows)

    def as_dataset(
        self,
        model: Any,
        batch_size: int = 64,
        training: bool = False,
        seed: int = 0,
        deterministic: bool = True,
        features: np.ndarray | None = None,
        min_crop: float = 0.8,
    ) -> tf.data.Dataset:
        """Batches `({"image": ..., "text": ...}, group_ids)` for `fit` and `predict`.

        With `training`, an epoch has each image once, in a new order, with one of its captions
        drawn anew, cropped at random, and mirrored half of the time unless that caption says left
        or right (左右). The last batch is dropped if it is not full (and not the only one): losses
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
                for the images: nothing is decoded, cropped or mirrored then.
            min_crop: share of a picture's shorter side that a random crop keeps at least, above 0;
                1 where captions tell of things at the very edge.

        Returns:
            Batches of "image": uint8 `[batch, image_size, image_size, 3]`, or float32
            `[batch, width]` with `features`; "text": int64 `[batch, length]`; group ids: int64
            `[batch]`, the row of each image, so that two captions of one image are never
            negatives of each other.

        Raises:
            ValueError: the model has no text_preprocessor, there are no images, `batch_size` is
                below 1, `features` has another shape, or `min_crop` is 0, below, or above 1.

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
        if features is not None and (features.ndim != 2 or len(features) != len(self)):
            raise ValueError(
                f"features must have shape [{len(self)}, width], a row an image; "
                f"got {features.shape}"
            )
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1; got {min_crop}")
        image_of = self.caption_to_image()
        starts = tf.constant(np.searchsorted(image_of, np.arange(len(self))))
        counts = tf.constant([len(captions) for captions in self.captions], tf.int64)
        captions = tf.constant(self.all_captions())
        paths = tf.constant([os.fsencode(path) for path in self.image_paths])

        def draw(row, numbers):
            return row, starts[row] + numbers[0] % counts[row], numbers[1:]

        def load(row, caption, crop_seed=None):
            image = decode_image(tf.io.read_file(paths[row]))
            flip = ~tf.strings.regex_full_match(captions[caption], SIDES)
            image = crop_and_resize(image, model.image_size, crop_seed, flip, min_crop)
            return row, caption, image

        def look_up(row, caption, *_):
            image = tf.numpy_function(
                lambda rows: np.asarray(features[rows], np.float32),
                [row],
                tf.float32,
                stateful=False,
            )
            return row, caption, tf.ensure_shape(image, (None, features.shape[1]))

        def finish(row, caption, image):
            text = model.text_preprocessor(tf.gather(captions, caption))
            return {"image": image, "text": text}, row

        if training:
            order = tf.data.Dataset.range(len(self))
            order = order.shuffle(len(self), seed=seed, reshuffle_each_iteration=True)
            # Three numbers an image: its caption, and the seed of its crop and flip. They come
            # with the image, so the order in which threads decode changes nothing.
            numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
            numbers = numbers.batch(3, drop_remainder=True)
            pairs = tf.data.Dataset.zip(order, numbers).map(draw)
        else:
            pairs = tf.data.Dataset.from_tensor_slices((image_of, np.arange(len(image_of))))
        drop_remainder = training and len(self) >= batch_size
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

    Raises:
        ValueError: nothing is there, the layout is not known, the captions file cannot be read,
            no image is usable, or the collection has no such split.

    >>> pairs = load_pairs("scenes", split="dev", size=3)
    >>> len(pairs), pairs.image_paths[0].name, len(pairs.quarantined)
    (3, '0000.png', 0)
    """
    split = None if split is None else normal_split(split)
    if source == "scenes":
        source = cached_scenes(split or "train", size, seed)
    collection = read_layout(Path(source))
    splits = [record.split for record in collection.records]
    if collection.records and split is not None and split not in splits:
        raise ValueError(
            f"{source} has no images of split {split!r}; it has {_count_splits(splits)}"
        )

    records = [r for r in _find_images(collection) if split is None or r.split == split]
    records = _decode_images(collection, records)
    quarantined = [
        (_one_line(problem.place), _one_line(problem.reason))
        for problem in _problems_of(collection, split)
    ]
    some = "; ".join(": ".join(each) for each in quarantined[:3])
    some += "; ..." if len(quarantined) > 3 else ""
    if not records:
        raise ValueError(
            f"nothing usable in {source}: {collection.source} names {len(collection.records)} "
            f"images; {len(quarantined)} entries were put aside: {some or 'none'}"
        )
    if quarantined:
        total = len(records) + len(quarantined)
        warnings.warn(
            f"{len(quarantined)} of {total} entries were put aside (see .quarantined): {some}",
            stacklevel=2,
        )
    return PairDataset(
        ids=[record.id for record in records],
        image_paths=[collection.folder / record.path for record in records],
        captions=[record.captions for record in records],
        attributes=[record.attributes for record in records],
        splits=[record.split for record in records],
        quarantined=quarantined,
    )


def _find_images(collection: Collection) -> list[Record]:
    """The records that are distinct, and have captions and a file inside the collection."""
    found, ids, files = [], set(), set()
    for record in collection.records:
        with collection.put_aside(record.path, record.id):
            if not is_inside(collection.folder, record.path):
                raise ValueError(f"leads outside the collection ({record.place})")
            if not (file := collection.folder / record.path).is_file():
                raise ValueError(f"the image does not exist ({record.place})")
            f"{record.id}{record.path}".encode()  # an error if it is not valid Unicode
            if not record.captions:
                raise ValueError("image without a caption")
            if record.id in ids or os.path.realpath(file) in files:
                raise ValueError(f"duplicate id or image: {record.id!r} ({record.place})")
            ids.add(record.id)
            files.add(os.path.realpath(file))
            found.append(record)

    named = {record.path for record in collection.records}
    for record_id, path in collection.image_files():
        if path not in named:
            collection.problems.append(Problem(path, "image without a caption", record_id))
    return found


def _decode_images(collection: Collection, records: list[Record]) -> list[Record]:
    """The records whose images decode."""
    bar = None
    if len(records) > PROGRESS_FROM:
        bar = keras.utils.Progbar(len(records), unit_name="image")
    whole = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda record: _try_to_decode(collection.folder / record.path), records)
        for number, (record, reason) in enumerate(zip(records, reasons, strict=True), 1):
            if reason is None:
                whole.append(record)
            else:
                collection.problems.append(Problem(record.path, reason, record.id))
            if bar is not None:
                bar.update(number)
    return whole


def _try_to_decode(file: Path) -> str | None:
    """The reason why an image cannot be used, if there is one."""
    try:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            return f"too large: more than {MAX_IMAGE_BYTES} bytes"
        decode_image(file.read_bytes())
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except tf.errors.OpError as error:
        return decode_failure(error)
    return None


def _problems_of(collection: Collection, split: str | None) -> list[Problem]:
    """The problems of one split, and those of which nobody can tell the split."""
    split_of = {record.id: record.split for record in reversed(collection.records)}

    def concerns(problem: Problem) -> bool:
        if split is None or problem.record_id is None:
            return True
        if collection.is_hashed:
            return hash_split(problem.record_id) == split
        return split_of.get(problem.record_id, split) == split

    return [problem for problem in collection.problems if concerns(problem)]


def _count_splits(splits: list[str]) -> str:
    """How many images each split has, in words: "train (6000), dev (1000)"."""
    counts = Counter(splits)
    return ", ".join(f"{name or 'no split'} ({count})" for name, count in counts.items()) or "none"


def _one_line(text: str) -> str:
    """A name from an untrusted collection, fit for a message."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())

"""Loading a collection (加载数据集): read its layout, clean it, and warn of what is set aside.

Sections 2.1 and 3.1(1) of the document.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmret_tf._checks import printable
from mmret_tf.data.cleaning import problems_of, usable_records
from mmret_tf.data.collection import Collection
from mmret_tf.data.drawn.files import KINDS, cached_drawn
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.data.readers.packed.memory import read_dataset
from mmret_tf.data.readers.reader import read_layout
from mmret_tf.data.readers.reading import Reading, Record, TableForm
from mmret_tf.data.splits import count_splits, normal_split


def load(
    source: str | os.PathLike[str],
    split: str | None = None,
    size: int = 2000,
    seed: int = 0,
    check: bool = True,
    **form: str,
) -> Collection:
    """Load a collection. Sections 2.1, 3.1(1) and 7.2.

    Entries that cannot be used are set aside in `quarantined` with the reason, and a warning gives
    their number. These are damaged and missing files, empty captions, rows that cannot be read,
    files outside the folder, ids that occur twice, and images that no row names. An item keeps its
    other files; an item that loses all of them is set aside as a whole.

    Layouts, in the order in which they are tried:

    - `captions.jsonl`: `{"image": "a.png", "captions": ["a dog", "一只狗"]}` for each item.
      "id", "split" and "attributes" are optional, "caption" may hold one string, and "images"
      several images. A row may have images alone; a row of text alone needs an "id". The general
      form is `{"id": "a", "sources": {"image": [...], "text": [...]}}`.
    - Hugging Face's `imagefolder`: `metadata.jsonl` or `metadata.csv` with `file_name` and a
      column of text, beside the images or in a folder for each split. Other columns are
      attributes.
    - `captions.csv`, `captions.tsv`: columns image and caption, optionally split; a row for each
      caption, or several columns of captions. Columns of other usual names (filepath, file_name,
      image_name; title, text, comment) and the separators ; | and tab are found as well.
    - Flickr8k-CN, Flickr30k-CN, COCO-CN and AIC-ICC, beside English captions if there are any.
    - Sounds: ESC-50 (folds 1 to 3 are "train", 4 "dev", 5 "test"), AudioCaps and Clotho.
    - Videos: MSVD and MSR-VTT. MP4, WebM and AVI need PyAV: `pip install "mmret_tf[video]"`.
    - Karpathy's `dataset_*.json`, images beside it or in `images/`; "restval" is "train".
    - MS-COCO: `captions_*.json`, perhaps in `annotations/`, images in `train2017/` and so on.
    - Flickr8k: `captions.txt` or `Flickr8k.token.txt`, `Images/`, `Flickr_8k.trainImages.txt`...
    - Any other `.csv` or `.tsv`, if it is the only one, or one for each split.
    - WebDataset: `.tar` files, read where they are. `source` may name some of them, with ranges
      of numbers: `shards/{000000..000123}.tar`.
    - Parquet: `.parquet` files with pictures, or paths of pictures, as Hugging Face distributes
      them. Needs pyarrow: `pip install "mmret_tf[parquet]"`.
    - TFRecord: `.tfrecord` files of `tf.train.Example` with the features image (or image/encoded)
      and caption.
    - The stamps of Tux Paint: pictures with English and Chinese captions, some with a sound.
    - `a.jpg` and `a.txt`, a caption a line, in any subfolder.
    - Pictures alone, in any subfolder: items without captions. Folders of one depth are classes,
      with their name as the attribute "label".

    Where a layout names no splits, the folders `train/`, `validation/` and `test/` do. Without
    these a hash of the id decides: 80 % of the items are "train", 10 % "dev" and 10 % "test", the
    same on every machine.

    Args:
        source: "scenes", "clips", "sounds" or "worlds" (drawn, see `draw_scenes`, `draw_clips`,
            `draw_sounds` and `draw_worlds`; a folder of that name is "./scenes"), a folder, or the
            captions file itself.
        split: "train", "dev" (or "val", "validation") or "test"; `None` for all items, and for
            the training split of drawn data. Files of other splits are not decoded.
        size: Number of drawn items; of worlds the largest number.
        seed: Seed of the drawn items.
        check: Whether each file is decoded once. Otherwise loading is quick, and damaged files
            stay until `Collection.checked` or training sets them aside.
        form: How to read a table: "image_column", "caption_column" ("label" makes the class of a
            picture its caption), "separator" and "encoding", see `TableForm`. The first two apply
            to Parquet and TFRecord as well.

    Returns:
        A `Collection`.

    Raises:
        ValueError: The path does not exist, the layout is unknown, the captions file cannot be
            read, no entry is usable, or the collection lacks the split.

    >>> items = load("scenes", split="dev", size=3)
    >>> len(items), items.ids[0], len(items.pairs())
    (3, 'dev-0-00000', 3)
    """
    collection, source = _load(source, split, size, seed, check, form)
    _warn(collection.quarantined, len(collection))
    return collection


load_items = load


def load_pairs(
    source: str | os.PathLike[str],
    split: str | None = None,
    size: int = 2000,
    seed: int = 0,
    check: bool = True,
    **form: str,
) -> Pairs:
    """Load the images of a collection that have captions: `load(...).pairs("image", "text")`.
    Sections 2.1 and 3.1(1).

    Args:
        source, split, size, seed, check, form: As for `load`.

    Returns:
        A row for each image. Items without an image or without a caption are set aside.

    Raises:
        ValueError: As for `load`, or no item has both an image and a caption.

    >>> pairs = load_pairs("scenes", split="dev", size=3)
    >>> len(pairs), pairs.image_paths[0].name, len(pairs.quarantined)
    (3, '0000.png', 0)
    """
    collection, source = _load(source, split, size, seed, check, form)
    if not collection.has_pairs("image", "text"):
        raise ValueError(f"nothing usable in {source}: no item has both an image and a caption")
    pairs = collection.pairs("image", "text")
    _warn(pairs.quarantined, len(pairs))
    return pairs


def _load(
    source: str | os.PathLike[str],
    split: str | None,
    size: int,
    seed: int,
    check: bool,
    form: dict[str, str],
) -> tuple[Collection, str]:
    """The collection, and its path for messages."""
    split = None if split is None else normal_split(split)
    if source in KINDS:
        source = cached_drawn(source, split or "train", size, seed)
    reading = read_layout(Path(source), TableForm(**form))
    return usable_collection(reading, split, source, check), os.fspath(source)


def usable_collection(
    reading: Reading, split: str | None, source: str | os.PathLike, check: bool = True
) -> Collection:
    """The usable items of a reader's result.

    Args:
        reading: The result.
        split: One split, or `None` for all items.
        source: Name of what was read, for messages.
        check: Whether the files are decoded.

    Raises:
        ValueError: Nothing is usable, or there is no such split.
    """
    splits = [record.split for record in reading.records]
    if reading.records and split is not None and split not in splits:
        raise ValueError(f"{source} has no items of split {split!r}; it has {count_splits(splits)}")
    records = usable_records(reading, split, check)
    quarantined = problems_of(reading, split)
    if not records:
        files = sum(len(record.paths) for record in reading.records)
        raise ValueError(
            f"nothing usable in {source}: {reading.source} names {files} files; "
            f"{len(quarantined)} entries were set aside: {_some(quarantined)}"
        )
    names = dict.fromkeys(name for record in records for name in record.sources)
    collection = Collection(
        [record.id for record in records],
        {name: _column(reading, records, name) for name in names},
        [record.attributes for record in records],
        [record.split for record in records],
        quarantined,
    )
    collection.layout, collection.is_checked = reading.layout, check
    return collection


def _column(reading: Reading, records: list[Record], name: str) -> Iterator[list]:
    """The values of one modality, item by item: texts as they are, sources of files. The records
    give them up, because there may be millions."""
    for record in records:
        values = record.sources.pop(name, [])
        yield [reading.take(each) for each in values] if get_modality(name).is_file else values


def _some(quarantined: list[tuple[str, str]]) -> str:
    some = "; ".join(printable(": ".join(each)) for each in quarantined[:3]) or "none"
    return some + ("; ..." if len(quarantined) > 3 else "")


def collect(
    dataset: Iterable[Mapping[str, Any]], image_column: str, caption_column: str
) -> Collection:
    """See `Collection.from_dataset`."""
    reading = read_dataset(dataset, TableForm(image_column, caption_column))
    for record in reading.records:
        record.split = record.split or ""
    collection = usable_collection(reading, None, "the dataset")
    _warn(collection.quarantined, len(collection))
    return collection


def _warn(quarantined: list[tuple[str, str]], usable: int) -> None:
    if quarantined:
        total = usable + len(quarantined)
        warnings.warn(
            f"{len(quarantined)} of {total} entries were set aside (see .quarantined): "
            + _some(quarantined),
            stacklevel=3,  # the line that calls the loader
        )

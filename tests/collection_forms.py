"""The same drawn scenes in every form of a collection that can be read.

    python tests/collection_forms.py --size 500 --folder forms

Writes each form into a folder of its own in `forms`, which must not exist yet; loads it; and
compares its items, splits and first training batches with those of the first form, bit for bit.
Prints a line for each form, and exits with 1 if one differs. Without --folder nothing is kept.
"""

import argparse
import csv
import io
import json
import shutil
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet
import tensorflow as tf
from PIL import Image

import mmret_tf as mm
from mmret_tf.data.splits import normal_split

SPLITS = ("test", "train", "validation")  # as they are sorted


def make_rows(size):
    """Scenes as (file name, PNG, captions, split), in the order of the names."""
    rows = []
    for split in SPLITS:
        pairs = mm.load_pairs("scenes", split, size=max(2, size // len(SPLITS)))
        for number, (path, captions) in enumerate(
            zip(pairs.image_paths, pairs.captions, strict=True)
        ):
            rows.append((f"{split}/{number:05}.png", path.read_bytes(), captions, split))
    return rows


def write_images(folder, rows):
    for name, content, *_ in rows:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_text(path, *lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def write_table(path, rows, header, separator=",", encoding="utf-8"):
    """A row for each caption: image, its number, caption, split."""
    text = io.StringIO()
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator="\n")
    writer.writerow(header)
    for name, _, captions, split in rows:
        writer.writerows([name, number, caption, split] for number, caption in enumerate(captions))
    path.write_bytes(text.getvalue().encode(encoding))


def json_lines(folder, rows):
    """captions.jsonl"""
    lines = [{"image": n, "captions": c, "split": s} for n, _, c, s in rows]
    write_text(folder / "captions.jsonl", *(json.dumps(line) for line in lines))


def comma(folder, rows):
    """captions.csv"""
    write_table(folder / "captions.csv", rows, ["image", "number", "caption", "split"])


def tab(folder, rows):
    """A .tsv of filepath and title"""
    write_table(folder / "mine.tsv", rows, ["filepath", "number", "title", "split"], "\t")


def semicolon(folder, rows):
    """A .csv with semicolons, in UTF-16"""
    header = ["file_name", "number", "text", "split"]
    write_table(folder / "mine.csv", rows, header, ";", "utf-16")


def bar(folder, rows):
    """Flickr30k's results.csv"""
    header = ["image_name", " comment_number", " comment", "split"]
    write_table(folder / "results.csv", rows, header, "|")


def unusual(folder, rows):
    """A .csv of unusual columns, in GB 18030"""
    write_table(folder / "mine.csv", rows, ["图片", "号", "说明", "split"], ",", "gb18030")


def image_folder(folder, rows):
    """imagefolder, a metadata.jsonl for each split"""
    for split in SPLITS:
        of_split = [row for row in rows if row[3] == split]
        lines = [{"file_name": Path(n).name, "text": c} for n, _, c, _ in of_split]
        write_text(folder / split / "metadata.jsonl", *(json.dumps(line) for line in lines))


def image_folder_csv(folder, rows):
    """imagefolder, a metadata.csv for each split, a row for each caption"""
    for split in SPLITS:
        of_split = [(Path(n).name, p, c, s) for n, p, c, s in rows if s == split]
        write_table(folder / split / "metadata.csv", of_split, ["file_name", "n", "text", "fold"])


def shards(folder, rows):
    """WebDataset, shards of seven items"""
    shutil.rmtree(folder)
    for split in SPLITS:
        of_split = [row for row in rows if row[3] == split]
        for start in range(0, len(of_split), 7):
            (folder / split).mkdir(parents=True, exist_ok=True)
            with tarfile.open(folder / split / f"{start // 7:06}.tar", "w") as archive:
                for name, content, captions, _ in of_split[start : start + 7]:
                    stem = Path(name).stem
                    add_member(archive, f"{stem}.png", content)
                    add_member(archive, f"{stem}.txt", "\n".join(captions).encode())


def add_member(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def in_memory(folder, rows):
    """A `tf.data.Dataset` of dicts"""
    rows = [{"id": n, "image": p, "captions": c, "split": normal_split(s)} for n, p, c, s in rows]
    columns = {name: tf.ragged.constant([row[name] for row in rows]) for name in rows[0]}
    return tf.data.Dataset.from_tensor_slices(columns)


def parquet(folder, rows):
    """Parquet as Hugging Face has it, a file for each split, row groups of seven"""
    shutil.rmtree(folder)
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        of_split = [row for row in rows if row[3] == split]
        images = [{"bytes": content, "path": Path(name).name} for name, content, *_ in of_split]
        table = pyarrow.table({"image": images, "caption": [c for _, _, c, _ in of_split]})
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, file, row_group_size=7)


def tf_records(folder, rows):
    """TFRecord, a file for each split, named as by TensorFlow Datasets"""
    shutil.rmtree(folder)
    folder.mkdir()
    for split in SPLITS:
        file = folder / f"mine-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(file)) as writer:
            for name, content, captions, _ in (row for row in rows if row[3] == split):
                writer.write(make_example(image=content, caption=captions, id=name))


def make_example(**features):
    """A serialized `tf.train.Example` of bytes, texts and numbers, or lists of them."""
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        for value in values if isinstance(values, list) else [values]:
            value = value.encode() if isinstance(value, str) else value
            kind = {bytes: feature.bytes_list, int: feature.int64_list}
            kind.get(type(value), feature.float_list).value.append(value)
    return example.SerializeToString()


def karpathy(folder, rows):
    """Karpathy's dataset_*.json"""
    images = [
        {"filename": n, "split": normal_split(s), "sentences": [{"raw": each} for each in c]}
        for n, _, c, s in rows
    ]
    write_text(folder / "dataset_mine.json", json.dumps({"images": images}))


def coco(folder, rows):
    """MS-COCO's annotations, a file for each split"""
    for split in SPLITS:
        of_split = [(number, row) for number, row in enumerate(rows) if row[3] == split]
        content = {
            "images": [{"id": number, "file_name": row[0]} for number, row in of_split],
            "annotations": [
                {"image_id": number, "caption": text} for number, row in of_split for text in row[2]
            ],
        }
        name = f"captions_{normal_split(split).replace('dev', 'val')}2017.json"
        write_text(folder / "annotations" / name, json.dumps(content))


def write_lists(folder, rows, name, dev="val"):
    """A list of the images of each split."""
    for split, short in (("train", "train"), ("validation", dev), ("test", "test")):
        write_text(folder / name.format(short), *(row[0] for row in rows if row[3] == split))


def numbered(rows):
    """Name, number and text of each caption."""
    return [(n, number, text) for n, _, c, _ in rows for number, text in enumerate(c)]


def flickr8k(folder, rows):
    """Flickr8k's Flickr8k.token.txt"""
    lines = [f"{name}#{number}\t{text}" for name, number, text in numbered(rows)]
    write_text(folder / "Flickr8k.token.txt", *lines)
    write_lists(folder, rows, "Flickr_8k.{}Images.txt", "dev")


def flickr8k_cn(folder, rows):
    """Flickr8k-CN"""
    lines = [f"{name}#zhc#{number} {text}" for name, number, text in numbered(rows)]
    write_text(folder / "data" / "flickr8kzhc.caption.txt", *lines)
    write_lists(folder, rows, "data/flickr8k{}.txt")


def coco_cn(folder, rows):
    """COCO-CN"""
    lines = [f"{name}#{number}\t{text}" for name, number, text in numbered(rows)]
    write_text(folder / "imageid.human-written-caption.txt", *lines)
    write_lists(folder, rows, "coco-cn_{}.txt")


def ai_challenger(folder, rows):
    """AIC-ICC, a file for each split"""
    for split in SPLITS:
        images = [{"image_id": n, "caption": c} for n, _, c, s in rows if s == split]
        name = f"caption_{split}_annotations_20170902.json"
        write_text(folder / name, json.dumps(images))


def text_beside(folder, rows):
    """A text file beside each picture"""
    for name, _, captions, _ in rows:
        write_text((folder / name).with_suffix(".txt"), *captions)


# What makes each form, and the settings with which it is loaded.
FORMS = {
    "captions.jsonl": (json_lines, {}),
    "captions.csv": (comma, {}),
    "tab": (tab, {}),
    "semicolon": (semicolon, {}),
    "results.csv": (bar, {}),
    "unusual": (
        unusual,
        {"image_column": "图片", "caption_column": "说明", "encoding": "gb18030"},
    ),
    "imagefolder": (image_folder, {}),
    "imagefolder-csv": (image_folder_csv, {}),
    "karpathy": (karpathy, {}),
    "coco": (coco, {}),
    "flickr8k": (flickr8k, {}),
    "flickr8k-cn": (flickr8k_cn, {}),
    "coco-cn": (coco_cn, {}),
    "aic-icc": (ai_challenger, {}),
    "text": (text_beside, {}),
    "shards": (shards, {}),
    "parquet": (parquet, {}),
    "tfrecord": (tf_records, {}),
    "tf.data": (in_memory, {}),
}


def make_form(name, folder, rows):
    """Write the rows in a form; return the pairs that are loaded from it."""
    write, settings = FORMS[name]
    write_images(folder, rows)
    dataset = write(folder, rows)
    if dataset is not None:
        return mm.Collection.from_dataset(dataset).pairs()
    return mm.load_pairs(folder, **settings)


def first_batches(pairs, model):
    """All batches of the first epoch of a training, as arrays."""
    dataset = pairs.as_dataset(model, batch_size=8, training=True, seed=3)
    return [
        (inputs["image"].numpy(), inputs["text"].numpy(), groups.numpy())
        for inputs, groups in dataset
    ]


def content(pairs, model):
    """What has to be the same in every form; without a model, all but the batches."""
    pictures = [np.asarray(Image.open(io.BytesIO(each.read()))) for each in pairs.first_sources]
    batches = first_batches(pairs.split("train"), model) if model else []
    return pairs.captions, pairs.splits, pictures, batches


def difference(one, other):
    """The first part of two contents that differs; "" if they are the same."""
    for name, first, second in zip(("captions", "splits"), one, other, strict=False):
        if first != second:
            return name
    batches = [[array for batch in each[3] for array in batch] for each in (one, other)]
    for name, *arrays in (("pictures", one[2], other[2]), ("batches", *batches)):
        if len(arrays[0]) != len(arrays[1]) or not all(map(np.array_equal, *arrays)):
            return name
    return ""


def main(size, folder, batched=tuple(FORMS)):
    """Print how many items each form has; return the forms that differ from the first.

    Args:
        size: Number of scenes.
        folder: Folder of the forms.
        batched: Forms whose batches are compared, which takes a second each.
    """
    from conftest import make_model, make_text

    rows = make_rows(size)
    model = make_model(make_text([caption for row in rows for caption in row[2]], length=12))
    wrong, right = [], content(make_form("captions.jsonl", folder / "right", rows), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in FORMS:
            pairs = make_form(name, folder / name, rows)
            is_batched = name in batched
            found = content(pairs, model if is_batched else None)
            differs = difference(right if is_batched else (*right[:3], []), found)
            print(f"{name}: {len(pairs)} items {'differ in ' + differs if differs else 'alike'}")
            wrong += [name] * bool(differs or pairs.quarantined)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where to keep the forms")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(main(options.size, options.folder or Path(temporary))))

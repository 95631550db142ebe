"""Layouts of JSON: `captions.jsonl`, Karpathy's `dataset_*.json`, MS-COCO's `captions_*.json`."""

import json
import re
from pathlib import Path
from posixpath import join

from mmret_tf.data.modalities import file_modalities, get_modality
from mmret_tf.data.readers.paths import IMAGE_FOLDERS, find_file, relative_name
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import Reading, Record, get_field


class JsonLines(Reader):
    """A JSON object a line, for each item or for each caption of one.

    "image" or "images", or another modality of files, "caption" or "captions", and perhaps "id",
    "split" and "attributes".
    "sources", an object of lists by modality, is the general spelling. Files may come without
    captions, and captions with an id may come without files.
    """

    names = ("captions.jsonl",)
    precedence = 0

    def read(self, reading: Reading, file: Path) -> None:
        """Lines with one `caption` each are joined where they describe the same item."""
        joined: dict[tuple[str, ...], Record] = {}
        for place, line in reading.lines(file):
            if not line.strip():
                continue
            with reading.set_aside(place):
                row = json.loads(line.strip())
                sources = _row_files(row, reading.folder)
                paths = [path for each in sources.values() for path in each]
                record = Record(str(get_field(row, "id", (str, int), *paths[:1])), sources, place)
                split = get_field(row, "split", str, None)
                attributes = get_field(row, "attributes", dict, {})
                json.dumps(attributes, ensure_ascii=False).encode()
                texts = _general_form(row, is_file=False)
                captions = get_field(row, "captions", list, texts.pop("text", None))
                if captions is None:
                    is_one = "caption" in row or not (paths or texts)
                    captions = [get_field(row, "caption", str)] if is_one else []
                    record = joined.setdefault((record.id, *paths), record)
                record.set_split(split)
                record.attributes.update(attributes)
                if record.place == place:
                    reading.records.append(record)
                for name, each in {"text": captions, **texts}.items():
                    reading.add_texts(record, each, place, name)


class Karpathy(Reader):
    """Karpathy's splits of Flickr8k, Flickr30k and MS-COCO."""

    names = ("dataset_*.json",)
    precedence = 2

    def read(self, reading: Reading, file: Path) -> None:
        """{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""
        reading.base = None
        [images] = reading.json_lists(file, "images")
        for place, row in images:
            with reading.set_aside(place):
                parent = get_field(row, "filepath", str, ".")
                name = relative_name(reading.folder, join(parent, get_field(row, "filename", str)))
                path = find_file(reading.folder, name, (".", *IMAGE_FOLDERS))
                record = Record(name, {"image": [path]}, place)
                record.set_split(get_field(row, "split", str, None))
                sentences = get_field(row, "sentences", list)
                reading.records.append(record)
                raw = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
                reading.add_texts(record, raw, place)


class Coco(Reader):
    """MS-COCO's annotations, a file a split."""

    names = ("annotations/captions_*.json", "captions_*.json")
    precedence = 3

    def read(self, reading: Reading, file: Path) -> None:
        """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
        reading.base = None
        part = file.stem.removeprefix("captions_")  # "train2017", which is also the images' folder
        split = re.match("train|val|dev|test", part)
        places = (part, ".", "images", join("images", part))
        images, annotations = reading.json_lists(file, "images", "annotations")
        records: dict[str, Record] = {}
        for place, row in images:
            with reading.set_aside(place):
                image_id = str(get_field(row, "id", (str, int)))
                name = relative_name(reading.folder, get_field(row, "file_name", str))
                if image_id in records:
                    raise ValueError(f"duplicate id {image_id}, that of {records[image_id].id}")
                path = find_file(reading.folder, name, places)
                record = Record(name, {"image": [path]}, place)
                record.set_split(split and split[0])
                records[image_id] = record
        reading.records.extend(records.values())
        for place, row in annotations:
            with reading.set_aside(place):
                image_id = str(get_field(row, "image_id", (str, int)))
                if image_id not in records:
                    raise ValueError(f"image_id {image_id} is not among the images")
                reading.add_texts(records[image_id], [row.get("caption")], place)


def _general_form(row: object, is_file: bool) -> dict[str, list]:
    """The lists of a row's "sources" whose content is in files, or is in the row."""
    sources = get_field(row, "sources", dict, {})
    names = [name for name in sources if get_modality(name).is_file == is_file]
    return {name: get_field(sources, name, list) for name in names}


def _row_files(row: object, folder: Path) -> dict[str, list[str]]:
    """The files that a row names, by modality; empty for a row of text alone."""
    named = _general_form(row, is_file=True)
    for name in (modality.name for modality in file_modalities()):
        one, several = get_field(row, name, str, None), get_field(row, f"{name}s", list, None)
        if one is not None and several is not None:
            raise ValueError(f"a row has `{name}` or `{name}s`, not both")
        if one is not None or several is not None:
            named[name] = [one] if several is None else several
    if not named and get_field(row, "id", (str, int), None) is None:
        raise ValueError("`image` must be a string, got null (text alone needs an `id`)")
    for name, paths in named.items():
        if not paths or not all(isinstance(each, str) and each for each in paths):
            got = json.dumps(paths)[:40]
            raise ValueError(f"`{name}s` must be a list of strings, at least one; got {got}")
    return {name: [find_file(folder, each) for each in paths] for name, paths in named.items()}

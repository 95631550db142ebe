"""The Chinese sets (中文数据集): Flickr8k-CN, Flickr30k-CN, COCO-CN and AIC-ICC, as distributed.

English captions in the same folder are read as well. To read the Chinese ones alone, give the path
of their file.
"""

import json
import os
import re
from pathlib import Path
from posixpath import join

from mmret_tf.data.readers.paths import find_file
from mmret_tf.data.readers.reader import Reader, all_readers
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, Record, TableForm, get_field

# "name.jpg#zhc#0 caption", "name#0<tab>caption", "name#zhb:0 caption".
LINE = re.compile(r"(\S+?)#(?:[a-z]+[#:])?\d+\s+(\S.*)", re.DOTALL)
SPLIT = re.compile(r"train|val|test")

# Files of captions that people wrote or translated; beside these, translations by machine and texts
# cut into words are left out.
BY_PEOPLE = re.compile(r"zhc|zhm|human-written|manually-translated")
IN_WORDS = re.compile(r"\bseg\.|bosonseg")


class ChineseCaptions(Reader):
    """Flickr8k-CN, Flickr30k-CN and COCO-CN: a caption a line, with the name of its image.

    Lists of images, `...train.txt` and so on, are the splits; so is the end of a captions file's
    own name.
    """

    names = (
        *("*zh*.caption*.txt", "data/*zh*.caption*.txt", "*/TextData/*zh*.caption*.txt"),
        *("imageid.*-caption.txt", "*/imageid.*-caption.txt"),
    )
    has_all_names = True
    precedence = 1.5

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        files = super().find(folder, form)
        whole = [file for file in files if not IN_WORDS.search(file.name)] or files
        by_people = [file for file in whole if BY_PEOPLE.search(file.name)]
        has_training = any("test" not in file.name for file in by_people)
        return by_people if has_training else whole

    def read(self, reading: Reading, file: Path) -> None:
        own_split = _last_split(file.name.split(".caption")[0])
        for place, line in reading.lines(file):
            with reading.set_aside(place):
                if row := LINE.fullmatch(line.strip("\r\n")):
                    reading.add_row(place, _image(reading.folder, row[1]), row[2], own_split)
                elif line.strip():
                    raise ValueError("expected the image's name, #, a number and the caption")
        for listed in sorted(file.parent.glob("*.txt")):
            split = _last_split(listed.stem)
            if split and ".caption" not in listed.name and not own_split:
                for place, line in reading.lines(listed):
                    if line.strip():
                        reading.add_row(place, _image(reading.folder, line.strip()), split=split)

    def complete(self, reading: Reading) -> None:
        """Add the captions of the first English captions file, and the images that it alone has."""
        own = {record.paths[0]: record.id for record in reading.records}
        for reader in all_readers():
            files = reader.find(reading.folder, reading.form) if reader.names else []
            if reader is ChineseCaptions or not files:
                continue
            other = Reading(reading.folder, reading.source, form=reading.form)
            for file in files:
                reader().read(other, file)
            reading.problems += other.problems
            for record in other.records:
                if record.paths[0] not in own:
                    reading.records.append(record)
                    continue
                for text in record.sources.get("text", []):
                    reading.add_row(record.place, own[record.paths[0]], text)
            return


class AiChallenger(Reader):
    """AIC-ICC (AI Challenger): `[{"image_id": "name.jpg", "caption": ["...", ...]}]`.

    Images of `caption_train_annotations_DATE.json` are in `caption_train_images_DATE/`.
    """

    names = ("caption_*_annotations_*.json", "*/caption_*_annotations_*.json")
    precedence = 1.6

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        place = file.relative_to(reading.folder).as_posix()
        try:
            rows = json.loads(reading.read_bytes(file))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
        if not isinstance(rows, list):
            raise ValueError(f"{file} must hold a JSON list")
        folder = join(os.path.dirname(place), file.stem.replace("_annotations_", "_images_"))
        split = SPLIT.search(file.name)
        for number, row in enumerate(rows):
            with reading.set_aside(f"{place} [{number}]"):
                name = get_field(row, "image_id", str)
                path = find_file(reading.folder, name, (folder, "."))
                record = Record(path, {"image": [path]}, f"{place} [{number}]")
                record.set_split(split and split[0])
                reading.records.append(record)
                reading.add_texts(record, get_field(row, "caption", list), record.place)


def _last_split(name: str) -> str | None:
    """The split that stands at the end of a name, or `None`."""
    last = re.search(r"(train|val|test)$", name)
    return last and last[0]


def _image(folder: Path, name: str) -> str:
    """The file of an image that is named without its suffix, and without its folder in MS-COCO."""
    name = name if name.endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"
    part = re.match(r"COCO_(\w+?2014)_", name)
    places = [join(part[1], name), join("images", part[1], name)] if part else []
    return next((place for place in places if (folder / place).is_file()), name)

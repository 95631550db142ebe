"""Layouts without a captions file: a text file beside each picture, or pictures alone."""

import os
from collections import defaultdict
from pathlib import Path
from posixpath import basename, dirname

from mmret_tf.data.decoders.pictures import SUFFIXES
from mmret_tf.data.readers.paths import files_below
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Problem, Reading, Record, TableForm
from mmret_tf.data.splits import split_of_path

# The attribute that holds the class of a picture, as Hugging Face's `imagefolder` has it.
LABEL = "label"
COLUMNS = "image_column and caption_column"


class TextBeside(Reader):
    """a.jpg and a.txt, in any subfolder; each line of the text is a caption."""

    precedence = 9

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        stems = {os.path.splitext(name)[0] for name in files_below(folder, SUFFIXES)}
        texts = files_below(folder, (".txt",))
        return [folder] if any(os.path.splitext(text)[0] in stems for text in texts) else []

    def read(self, reading: Reading, folder: Path) -> None:
        images = defaultdict(list)
        for image in files_below(folder, SUFFIXES):
            images[os.path.splitext(image)[0] + ".txt"].append(image)
        for text in files_below(folder, (".txt",)):
            with reading.set_aside(text):
                if text not in images:
                    raise ValueError("no image of this name")
                for place, line in reading.lines(folder / text):
                    for image in images[text] if line.strip() else ():
                        reading.add_row(place, image, line)


class Pictures(Reader):
    """Pictures alone, in any subfolder: items without captions.

    Folders of the same depth are classes, if there are several: their name is the attribute
    `label`, and the caption if `caption_column` asks.
    """

    takes = ("caption_column",)
    precedence = 10

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        return [folder] if next(files_below(folder, SUFFIXES), None) else []

    def read(self, reading: Reading, folder: Path) -> None:
        for table in sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")]):
            reason = f"its columns are not known: name them with {COLUMNS}"
            reading.problems.append(Problem(table.name, reason))
        images = list(files_below(folder, SUFFIXES))
        folders = {dirname(image) for image in images}
        labels = {basename(each) for each in folders}
        are_classes = len(labels) > 1 and len({each.count("/") for each in folders}) == 1
        are_classes &= not all(split_of_path(f"{each}/") for each in labels)
        if reading.form.caption_column and not (
            are_classes and reading.form.caption_column == LABEL
        ):
            raise ValueError(f"{folder} holds pictures alone: there is no column of captions")
        for image in images:
            label = basename(dirname(image))
            attributes = {LABEL: label} if are_classes else {}
            sources = {"image": [image]}
            if reading.form.caption_column:
                sources["text"] = [label]
            reading.records.append(Record(image, sources, image, attributes=attributes))

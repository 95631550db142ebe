"""Layouts without a captions file: a text file beside each picture."""

import os
from collections import defaultdict
from pathlib import Path

from mmret_tf.data.decoders.pictures import SUFFIXES
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import Reading, files_below


class TextBeside(Reader):
    """a.jpg and a.txt, in any subfolder; each line of the text is a caption."""

    precedence = 9

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

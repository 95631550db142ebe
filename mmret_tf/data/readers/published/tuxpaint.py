"""The stamps of Tux Paint (印章): pictures with captions in many languages, some with a sound."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, splitext

from mmret_tf.data.readers.paths import files_below, first_bytes
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Problem, Reading, Record, TableForm

# The line of a language: "zh_CN.utf8=..."; the first line, in English, has no such mark.
TRANSLATION = re.compile(r"([a-z]{2,3}(?:_[a-z]{2})?(?:@[a-z]+)?)\.utf-?8=(.*)", re.IGNORECASE)
ENGLISH, CHINESE = "en", "zh_cn"

# Suffixes of sound effects, in the order of preference.
SOUNDS = (".ogg", ".wav")

# Texts that are looked into to recognise the layout, and the bytes that are read of each.
LOOKED_AT, LOOKED_BYTES = 20, 4096


class TuxPaint(Reader):
    """The stamps of Tux Paint, as in the folder `stamps/` of its packages; or a folder of these.

    A stamp is `NAME.txt` with `NAME.png`, and perhaps the sound effect `NAME.ogg` or `NAME.wav`.
    Its captions are the English line and the one in Simplified Chinese; other languages and
    spoken descriptions, `NAME_desc_fr.ogg` and the like, are left out. The attribute `folder` is
    where it is, such as "animals/birds".

    Pictures in SVG cannot be read. A stamp that has no other picture is set aside, unless it has a
    sound. Pictures without a text, such as mirrored ones, are set aside.
    """

    precedence = 8.5

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        """The folder, if most of its first texts beside pictures have lines of languages."""
        pictures = {splitext(name)[0] for name in files_below(folder, (".png", ".svg"))}
        beside = (text for text in _texts(folder) if splitext(text)[0] in pictures)
        found = list(itertools.islice(beside, LOOKED_AT))
        marked = sum(_has_translations(folder / text) for text in found)
        return [folder] if 2 * marked > len(found) else []

    def read(self, reading: Reading, folder: Path) -> None:
        below = set(files_below(folder, (".png", ".svg", *SOUNDS)))
        for text in _texts(folder):
            name = splitext(text)[0]
            sources = {}
            if f"{name}.png" in below:
                sources["image"] = [f"{name}.png"]
            if sound := next((name + each for each in SOUNDS if name + each in below), None):
                sources["audio"] = [sound]
            if f"{name}.svg" in below and "image" not in sources:
                reading.problems.append(Problem(f"{name}.svg", "SVG cannot be read", name))
            elif not sources:
                reading.problems.append(Problem(text, "no picture or sound of this name", name))
            if sources:
                record = Record(name, sources, text)
                record.attributes = {"folder": dirname(name)} if dirname(name) else {}
                reading.records.append(record)
                with reading.set_aside(text, name):
                    _add_captions(reading, record, folder / text)


def _add_captions(reading: Reading, record: Record, file: Path) -> None:
    """Add the English caption of a stamp, then the Chinese one, as far as there are any."""
    captions: dict[str, tuple[str, str]] = {}
    for place, line in reading.lines(file):
        row = TRANSLATION.fullmatch(line.strip())
        language, text = row.groups() if row else (ENGLISH, line)
        if text.strip():
            captions.setdefault(language.lower(), (text, place))
    if not captions.keys() & {ENGLISH, CHINESE}:
        raise ValueError("no caption in English or Chinese")
    for language in (ENGLISH, CHINESE):
        if language in captions:
            text, place = captions[language]
            reading.add_texts(record, [text], place)


def _texts(folder: Path) -> Iterator[str]:
    """Names of the texts below a folder."""
    return files_below(folder, (".txt",))


def _has_translations(file: Path) -> bool:
    """Whether a text has a line of a language after the first."""
    lines = first_bytes(file, LOOKED_BYTES).decode("utf-8", "replace").splitlines()
    return any(TRANSLATION.match(line) for line in lines[1:])

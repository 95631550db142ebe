"""Sets of sounds (声音数据集): ESC-50, AudioCaps and Clotho, as distributed."""

from collections.abc import Iterator
from pathlib import Path
from posixpath import join

from mmret_tf.data.readers.paths import find_file, find_named, first_bytes
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import Reading, Record
from mmret_tf.data.readers.tables import table_rows
from mmret_tf.data.splits import normal_split

# ESC-50 has five folds of 400 sounds and no splits: it is meant for cross-validation.
DEV_FOLD, TEST_FOLD = 4, 5

# How far into a table its header may reach.
HEADER_BYTES = 4096


class Esc50(Reader):
    """ESC-50: `meta/esc50.csv`, sounds in `audio/`.

    The caption is the category, with spaces for underscores. Folds 1 to 3 are "train", 4 is "dev"
    and 5 is "test". The attributes are `fold` and `category`.
    """

    names = ("meta/esc50.csv",)
    precedence = 1.7

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        for place, row in _rows(reading, file, ("filename", "fold", "category")):
            with reading.set_aside(place):
                name, fold, category = (row[key] for key in ("filename", "fold", "category"))
                if not fold.isdecimal():
                    raise ValueError(f"the fold must be a number, got {fold[:40]!r}")
                facts = {"fold": int(fold), "category": category}
                path = find_file(reading.folder, name, ("audio", "."))
                record = Record(name, {"audio": [path]}, place, attributes=facts)
                record.set_split({DEV_FOLD: "dev", TEST_FOLD: "test"}.get(int(fold), "train"))
                reading.records.append(record)
                reading.add_texts(record, [category.replace("_", " ")], place)


class AudioCaps(Reader):
    """AudioCaps: `train.csv`, `val.csv` and `test.csv`, perhaps in `dataset/`; a row a caption.

    The sounds are not distributed. Those of `train.csv` are looked for in `train/`, `audio/train/`,
    `audio/` and the folder itself, as `YOUTUBEID.wav`, `YYOUTUBEID.wav` (as in AudioSet's files),
    `YOUTUBEID_START.wav` or `AUDIOCAPID.wav` (of any of the clip's rows), or with the suffix
    `.flac`. An item is a clip: `YOUTUBEID_START`.
    """

    names = tuple(
        f"{folder}{split}.csv" for folder in ("", "dataset/") for split in ("train", "val", "test")
    )
    has_all_names = True
    precedence = 1.75
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")

    @classmethod
    def has_layout(cls, file: Path) -> bool:
        header = first_bytes(file, HEADER_BYTES).decode("utf-8-sig", "replace").split("\n")[0]
        return set(cls.columns) <= {name.strip(' \r"').lower() for name in header.split(",")}

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        part = file.stem
        places = (part, join("audio", part), "audio", ".")
        clips: dict[str, list[tuple[str, dict[str, str]]]] = {}
        for place, row in _rows(reading, file, self.columns):
            with reading.set_aside(place):
                if not row["youtube_id"].strip():
                    raise ValueError("empty youtube_id")
                clip = f"{row['youtube_id'].strip()}_{row['start_time'].strip()}"
                clips.setdefault(clip, []).append((place, row))
        for clip, rows in clips.items():
            place, row = rows[0]
            video = row["youtube_id"].strip()
            names = [video, f"Y{video}", clip]
            names += [each["audiocap_id"] for _, each in rows if each["audiocap_id"].strip()]
            path = find_named(reading.folder, names, (".wav", ".flac"), places)
            record = Record(clip, {"audio": [path]}, place, normal_split(part))
            reading.records.append(record)
            for place, row in rows:
                reading.add_texts(record, [row["caption"]], place)


class Clotho(Reader):
    """Clotho: `clotho_captions_development.csv`, `..._validation.csv` and `..._evaluation.csv`,
    sounds in `development/` and so on, or in `clotho_audio_development/` and so on.

    These are the splits "train", "dev" and "test".
    """

    names = ("clotho_captions_*.csv",)
    precedence = 1.8

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        part = file.stem.removeprefix("clotho_captions_")
        split = "train" if part == "development" else normal_split(part)
        places = (part, f"clotho_audio_{part}", join("audio", part), ".")
        for place, row in _rows(reading, file, ("file_name", "caption_1")):
            with reading.set_aside(place):
                name = row["file_name"]
                path = find_file(reading.folder, name, places)
                record = Record(name, {"audio": [path]}, place, split)
                reading.records.append(record)
                texts = [text for key, text in row.items() if key.startswith("caption_")]
                reading.add_texts(record, texts, place)


def _rows(
    reading: Reading, file: Path, needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each row of a table, and its cells by the names of their columns.

    Raises:
        ValueError: One of the columns that are needed is missing.
    """
    columns, rows = table_rows(reading, file)
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{file} has no column {' nor '.join(missing)}")
    for place, row in rows:
        yield place, dict(zip(columns, row, strict=True))

"""Sets of videos (视频数据集): MSVD and MSR-VTT, as distributed."""

import re
from pathlib import Path

from mmret_tf.data.readers.paths import find_named
from mmret_tf.data.readers.reader import Reader
from mmret_tf.data.readers.reading import USUAL_FORM, Reading, Record, TableForm, get_field

# Suffixes of videos, that of the distributed files first.
MSVD_SUFFIXES, MSR_VTT_SUFFIXES = (".avi", ".mp4", ".webm"), (".mp4", ".webm", ".avi")
MSR_VTT_PLACES = ("videos", "TrainValVideo", "TestVideo", "videos/all", ".")
DESCRIPTION = re.compile(r"(\S+)\s+(\S.*)", re.DOTALL)


class Msvd(Reader):
    """MSVD: lines "VIDEO caption" in `AllVideoDescriptions.txt`, videos in `YouTubeClips/`.

    The lists of videos `train_list.txt`, `val_list.txt` and `test_list.txt`, which others publish,
    are the splits; a video in none of them has no split. Without the lists a hash decides.
    """

    names = ("AllVideoDescriptions.txt",)
    precedence = 1.85

    def read(self, reading: Reading, file: Path) -> None:
        reading.base = None
        records: dict[str, Record] = {}
        for place, line in reading.lines(file):
            if not line.strip() or line.startswith("#"):
                continue
            with reading.set_aside(place):
                row = DESCRIPTION.fullmatch(line.strip())
                if not row:
                    raise ValueError("expected the video's name, a space and the caption")
                name, text = row.groups()
                if name not in records:
                    places = ("YouTubeClips", "videos", ".")
                    path = find_named(reading.folder, [name], MSVD_SUFFIXES, places)
                    records[name] = Record(name, {"video": [path]}, place)
                reading.add_texts(records[name], [text], place)
        reading.records.extend(records.values())
        for split in ("train", "val", "test"):
            listed = file.parent / f"{split}_list.txt"
            for place, line in reading.lines(listed) if listed.is_file() else ():
                with reading.set_aside(place):
                    _set_split(records, line.strip(), split)


class MsrVtt(Reader):
    """MSR-VTT: `train_val_videodatainfo.json` and `test_videodatainfo.json`, or one file for all:
    `videodatainfo_2017.json` or `MSRVTT_data.json`.

    The videos are in `videos/`, `TrainValVideo/`, `TestVideo/` or `videos/all/`. The split
    "validate" is "dev". The attribute `category` is the number of the category.
    """

    names = (
        *("*videodatainfo*.json", "*annotation/*videodatainfo*.json"),
        *("MSRVTT_data.json", "annotation/MSRVTT_data.json"),
    )
    has_all_names = True
    precedence = 1.9

    @classmethod
    def find(cls, folder: Path, form: TableForm = USUAL_FORM) -> list[Path]:
        """Its files; `MSRVTT_data.json`, which has all videos, if there are no others."""
        files = super().find(folder, form)
        return [file for file in files if "videodatainfo" in file.name] or files[:1]

    def read(self, reading: Reading, file: Path) -> None:
        """{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}."""
        reading.base = None
        videos, sentences = reading.json_lists(file, "videos", "sentences")
        records: dict[str, Record] = {}
        for place, row in videos:
            with reading.set_aside(place):
                name = get_field(row, "video_id", str)
                if name in records:
                    raise ValueError(f"duplicate id {name}")
                path = find_named(reading.folder, [name], MSR_VTT_SUFFIXES, MSR_VTT_PLACES)
                record = Record(name, {"video": [path]}, place)
                record.set_split(get_field(row, "split", str, None))
                category = get_field(row, "category", (str, int), None)
                record.attributes = {} if category is None else {"category": category}
                records[name] = record
        reading.records.extend(records.values())
        for place, row in sentences:
            with reading.set_aside(place):
                name = get_field(row, "video_id", str)
                if name not in records:
                    raise ValueError(f"video_id {name} is not among the videos")
                reading.add_texts(records[name], [row.get("caption")], place)


def _set_split(records: dict[str, Record], line: str, split: str) -> None:
    """Set the split of the video that a list names, with or without its suffix."""
    if not line:
        return
    name = next((each for each in (line, Path(line).stem) if each in records), None)
    if name is None:
        raise ValueError(f"{line} has no caption")
    records[name].set_split(split)

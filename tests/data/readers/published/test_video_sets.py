"""MSVD and MSR-VTT as they are distributed, and the rows that are set aside."""

import json

import numpy as np
import pytest
from conftest import load_quietly, write

from mmret_tf.data import load
from mmret_tf.data.decoders.clips import encode_frames
from mmret_tf.data.readers.reader import read_layout

IDS = ["-4wsu_5_15", "a_1_2", "b_3_4"]


def write_msvd(folder, newline="\n"):
    lines = [f"{name} a man {verb}" for name in IDS for verb in ("runs", "sings")]
    write(folder / "AllVideoDescriptions.txt", "# MSVD", "", *lines, newline=newline)


def test_msvd(film, tmp_path):
    write_msvd(tmp_path, newline="\r\n")
    files = [
        film(tmp_path / "YouTubeClips" / f"{name}.avi", 60 * n) for n, name in enumerate(IDS, 1)
    ]
    for split, name in zip(
        ("train", "val", "test"), (IDS[0], f"{IDS[1]}.avi", IDS[2]), strict=True
    ):
        write(tmp_path / f"{split}_list.txt", name, "")
    items = load(tmp_path)
    assert items.ids == IDS and items.splits == ["train", "dev", "test"]
    assert [each.path for [each] in items.sources["video"]] == files
    assert items.captions == [["a man runs", "a man sings"]] * 3 and items.quarantined == []


def test_msvd_without_lists_is_split_by_a_hash(tmp_path):
    write_msvd(tmp_path)
    reading = read_layout(tmp_path)
    assert reading.is_hashed and [record.id for record in reading.records] == IDS


def test_bad_lines_of_msvd_are_set_aside(film, tmp_path):
    write(tmp_path / "AllVideoDescriptions.txt", "a a man runs", "a", "b a cat", "b 两只猫")
    write(tmp_path / "train_list.txt", "a", "c")
    write(tmp_path / "test_list.txt", "a")
    file = film(tmp_path / "videos" / "a.mp4")
    items = load_quietly(tmp_path, loader=load)
    assert [each.path for [each] in items.sources["video"]] == [file]
    assert items.ids == ["a"] and items.splits == ["train"]
    assert dict(items.quarantined) == {
        "AllVideoDescriptions.txt line 2": "expected the video's name, a space and the caption",
        "train_list.txt line 2": "c has no caption",
        "test_list.txt line 1": "split 'test', but a is in 'train' already",
        "YouTubeClips/b.avi": "the file does not exist (AllVideoDescriptions.txt line 3)",
    }


def info(*splits, first=0):
    """The content of a file of MSR-VTT with a video of each of these splits."""
    names = [f"video{number}" for number in range(first, first + len(splits))]
    videos = [
        {"video_id": name, "split": split, "category": 9, "id": 0, "url": "http://x"}
        for name, split in zip(names, splits, strict=True)
    ]
    texts = ("a man sings", "一个人在唱歌")
    sentences = [
        {"video_id": name, "caption": text, "sen_id": 0} for text in texts for name in names
    ]
    return {"info": {}, "videos": videos, "sentences": sentences}


@pytest.mark.parametrize("folder", ["", "train_val_annotation"])
def test_msr_vtt_in_two_files(folder, film, tmp_path):
    first, second = info("train", "validate"), info("test", first=2)
    write(tmp_path / folder / "train_val_videodatainfo.json", json.dumps(first))
    write(tmp_path / "test_videodatainfo.json", json.dumps(second))
    write(tmp_path / "MSRVTT_data.json", json.dumps(info("train", "train", "train")))
    places = ("TrainValVideo", "TrainValVideo", "TestVideo")
    files = {
        f"video{n}": film(tmp_path / place / f"video{n}.mp4", 60 + 50 * n)
        for n, place in enumerate(places)
    }
    items = load(tmp_path)
    paths = [each.path for [each] in items.sources["video"]]
    assert dict(zip(items.ids, paths, strict=True)) == files
    assert dict(zip(items.ids, items.splits, strict=True)) == {
        "video0": "train",
        "video1": "dev",
        "video2": "test",
    }
    assert items.captions == [["a man sings", "一个人在唱歌"]] * 3
    assert items.attributes == [{"category": 9}] * 3 and items.quarantined == []
    one = load(tmp_path / folder / "train_val_videodatainfo.json")
    assert one.ids == ["video0", "video1"]


@pytest.mark.parametrize("name", ["MSRVTT_data.json", "videodatainfo_2017.json"])
@pytest.mark.parametrize("place", ["videos", "videos/all"])
def test_msr_vtt_in_one_file(name, place, tmp_path):
    write(tmp_path / name, json.dumps(info("train", "test")))
    for number in range(2):
        path = tmp_path / place / f"video{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_frames(np.full((2, 8, 8), 99 + number)))
    items = load(tmp_path)
    assert items.ids == ["video0", "video1"] and items.splits == ["train", "test"]


def test_bad_rows_of_msr_vtt_are_set_aside(tmp_path):
    content = info("train", "train", "test")
    content["videos"] += [{"video_id": 7}, content["videos"][0], "video9"]
    content["sentences"] += [{"video_id": "video8", "caption": "x"}, {"video_id": "video0"}]
    write(tmp_path / "MSRVTT_data.json", json.dumps(content))
    for number in range(2):
        path = tmp_path / "videos" / f"video{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_frames(np.full((2, 8, 8), 99)) if number == 0 else b"rubbish")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["video0"] and items.captions == [["a man sings", "一个人在唱歌"]]
    aside = dict(items.quarantined)
    assert "not an image" in aside.pop("videos/video1.mp4")
    assert aside == {
        "MSRVTT_data.json videos[3]": "`video_id` must be a string, got 7",
        "MSRVTT_data.json videos[4]": "duplicate id video0",
        "MSRVTT_data.json videos[5]": 'expected a JSON object, got "video9"',
        "MSRVTT_data.json sentences[6]": "video_id video8 is not among the videos",
        "MSRVTT_data.json sentences[7]": "a caption must be a string, got null",
        "videos/video2.mp4": "the file does not exist (MSRVTT_data.json videos[2])",
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"videos": []}'])
def test_a_broken_file_of_msr_vtt_is_a_value_error(text, tmp_path):
    write(tmp_path / "test_videodatainfo.json", text)
    with pytest.raises(ValueError, match="test_videodatainfo.json: "):
        load(tmp_path)

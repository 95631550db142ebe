"""The Chinese sets as they are distributed, beside English captions and alone."""

import json

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load

NAMES = ("1_a", "2_b", "3_c")


def draw_all(folder, suffix=".jpg", prefix=""):
    for level, name in enumerate(NAMES):
        draw(folder / f"{prefix}{name}{suffix}", 50 + level)


def write_flickr8k_cn(folder):
    draw_all(folder / "Flicker8k_Dataset")
    write(
        folder / "flickr8kzhc.caption.txt", *(f"{name}.jpg#zhc#0 第 {name} 只狗" for name in NAMES)
    )
    write(folder / "flickr8kzhb.caption.txt", *(f"{name}.jpg#zhb#0 机器翻译" for name in NAMES))
    for split, name in zip(("train", "val", "test"), NAMES, strict=True):
        write(folder / f"flickr8k{split}.txt", name)


def test_flickr8k_cn(tmp_path):
    write_flickr8k_cn(tmp_path)
    items = load(tmp_path)
    assert items.ids == [f"{name}.jpg" for name in NAMES]
    assert items.captions == [[f"第 {name} 只狗"] for name in NAMES]
    assert items.splits == ["train", "dev", "test"] and items.quarantined == []


@pytest.mark.parametrize("english", ["captions.txt", "Flickr8k.token.txt", "dataset_flickr8k.json"])
def test_english_captions_stand_beside_the_chinese_ones(english, tmp_path):
    write_flickr8k_cn(tmp_path)
    rows = [(f"{name}.jpg", f"dog {name}") for name in NAMES]
    if english == "captions.txt":
        write(tmp_path / english, "image,caption", *map(",".join, rows))
    elif english == "Flickr8k.token.txt":
        write(tmp_path / english, *(f"{name}#0\t{text}" for name, text in rows))
    else:
        images = [{"filename": n, "split": "train", "sentences": [{"raw": t}]} for n, t in rows]
        write(tmp_path / english, json.dumps({"images": images}))
    items = load(tmp_path)
    assert items.captions == [[f"第 {name} 只狗", f"dog {name}"] for name in NAMES]
    assert items.splits == ["train", "dev", "test"] and items.quarantined == []
    alone = load(tmp_path / "flickr8kzhc.caption.txt")
    assert alone.captions == [[f"第 {name} 只狗"] for name in NAMES]


def test_flickr30k_cn_in_folders_of_splits(tmp_path):
    draw_all(tmp_path / "flickr30k-images")
    for split, name in zip(("train", "val", "test"), NAMES, strict=True):
        folder = f"flickr30kzhbboson{split}"
        file = tmp_path / folder / "TextData" / f"seg.{folder}.caption.txt"
        write(file, f"{name}#zhb:0 一 只 狗", f"{name}#zhb:1 狗 {name}")
    items = load(tmp_path)
    assert dict(zip(items.ids, items.splits, strict=True)) == {
        "1_a.jpg": "train",
        "2_b.jpg": "dev",
        "3_c.jpg": "test",
    }
    assert sorted(items.captions) == [["一 只 狗", f"狗 {name}"] for name in NAMES]


def test_coco_cn_beside_the_annotations_of_ms_coco(tmp_path):
    draw_all(tmp_path / "train2014", prefix="COCO_train2014_")
    ids = [f"COCO_train2014_{name}" for name in NAMES]
    folder = tmp_path / "coco-cn-version1805v1.1"
    write(folder / "imageid.human-written-caption.txt", *(f"{each}#0\t狗" for each in ids[:2]))
    write(folder / "imageid.human-written-caption.bosonseg.txt", f"{ids[0]}#0\t狗 狗")
    for split, each in zip(("train", "val"), ids[:2], strict=True):
        write(folder / f"coco-cn_{split}.txt", each)
    images = [{"id": number, "file_name": f"{each}.jpg"} for number, each in enumerate(ids)]
    rows = [{"image_id": number, "caption": "a dog"} for number in range(3)]
    content = {"images": images, "annotations": rows}
    write(tmp_path / "annotations" / "captions_train2014.json", json.dumps(content))
    items = load(tmp_path)
    assert items.captions == [["狗", "a dog"], ["狗", "a dog"], ["a dog"]]
    assert items.splits == ["train", "dev", "train"] and items.quarantined == []


def test_aic_icc(tmp_path):
    for part, date in (("train", "20170902"), ("validation", "20170910")):
        folder = tmp_path / f"ai_challenger_caption_{part}_{date}"
        draw(folder / f"caption_{part}_images_{date}" / "a.jpg", 9 if part == "train" else 99)
        rows = [
            {"url": "http://x", "image_id": "a.jpg", "caption": ["一只狗", "狗"]},
            {"image_id": 3},
        ]
        write(folder / f"caption_{part}_annotations_{date}.json", json.dumps(rows))
    items = load_quietly(tmp_path, loader=load)
    assert items.splits == ["train", "dev"] and items.captions == [["一只狗", "狗"]] * 2
    assert len(items.quarantined) == 2
    assert all(place.endswith(".json [1]") for place, _ in items.quarantined)


def test_bad_lines_are_set_aside(tmp_path):
    write_flickr8k_cn(tmp_path)
    with open(tmp_path / "flickr8kzhc.caption.txt", "ab") as file:
        file.write("no number\n1_a.jpg#zhc#1 \n9.jpg#zhc#0 狗\n".encode())
    items = load_quietly(tmp_path, loader=load)
    reason = "expected the image's name, #, a number and the caption"
    assert dict(items.quarantined) == {
        "flickr8kzhc.caption.txt line 4": reason,
        "flickr8kzhc.caption.txt line 5": reason,
        "9.jpg": "the file does not exist (flickr8kzhc.caption.txt line 6)",
    }


@pytest.mark.parametrize("text", ["{", "{}", "[" * 100_000])
def test_broken_annotations_are_a_value_error(text, tmp_path):
    write(tmp_path / "caption_train_annotations_20170902.json", text)
    with pytest.raises(ValueError, match="caption_train_annotations_20170902.json"):
        load(tmp_path)

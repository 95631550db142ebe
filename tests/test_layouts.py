"""What load_pairs reads from each layout, and which rows of a captions file it puts aside."""

import json
from collections import Counter

import pytest
from conftest import draw, load_quietly, write, write_jsonl

from mmret_tf import layouts
from mmret_tf.datasets import load_pairs

# Every layout holds the same collection: three images, and a caption or two for each.

IDS = ["a.jpg", "b.png", "c.jpg"]
CAPTIONS = [['a "red", round ball', "红色的球"], ["a dog"], ["两只猫", "two cats"]]
SPLITS = ["train", "dev", "test"]


def flickr8k(root):
    write(
        root / "captions.txt",
        "image,caption",
        'a.jpg,"a ""red"", round ball"',
        "a.jpg,红色的球",
        "b.png,a dog",
        "c.jpg,两只猫 ",
        "c.jpg,two cats",
        newline="\r\n",
    )
    for split, name in zip(SPLITS, IDS, strict=True):
        write(root / f"Flickr_8k.{split}Images.txt", name)
    return root, "Images"


def flickr8k_older(root):
    flickr8k(root)
    (root / "captions.txt").unlink()
    write(
        root / "Flickr8k.token.txt",
        'a.jpg#0\ta "red", round ball',
        "a.jpg#1\t红色的球",
        "b.png#0\ta dog",
        "c.jpg#0\t两只猫",
        "c.jpg#1\ttwo cats",
    )
    return root, "Flicker8k_Dataset"


def karpathy(root):
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions]}
        for name, split, captions in zip(IDS, ["restval", "val", "test"], CAPTIONS, strict=True)
    ]
    write(root / "dataset_tiny.json", json.dumps({"images": images, "dataset": "tiny"}))
    return root, "images"


def karpathy_file(root):
    karpathy(root)
    return root / "dataset_tiny.json", "."


def coco(root, folder="annotations"):
    for number, split in enumerate(["train", "val", "test"]):
        images = [{"id": 7, "file_name": IDS[number]}]
        annotations = [
            {"id": i, "image_id": 7, "caption": caption}
            for i, caption in enumerate(CAPTIONS[number])
        ]
        write(
            root / folder / f"captions_{split}2017.json",
            json.dumps({"images": images, "annotations": annotations}),
        )
    return root, ("train2017", "val2017", "test2017")


def coco_flat(root):
    coco(root, ".")
    return root, "images"


def jsonl(root):
    write_jsonl(
        root,
        {"image": "a.jpg", "captions": CAPTIONS[0], "split": "train"},
        {"image": "./b.png", "caption": "a dog", "split": "validation"},
        {"image": "c.jpg", "caption": "两只猫", "split": "test"},
        {"image": "c.jpg", "caption": "two cats"},
    )
    return root, "."


def csv_file(root):
    file = write(
        root / "mine.csv",
        "split,caption,image,source",
        'train,"a ""red"", round ball",a.jpg,web',
        "train,红色的球,a.jpg,web",
        "val,a dog,b.png,web",
        "",
        "test,两只猫,c.jpg,web",
        ",two cats,c.jpg,web",
    )
    return file, "."


@pytest.mark.parametrize(
    "layout",
    [flickr8k, flickr8k_older, karpathy, karpathy_file, coco, coco_flat, jsonl, csv_file],
)
@pytest.mark.filterwarnings("error:.*put aside")
def test_every_layout_gives_the_same_pairs(layout, tmp_path):
    source, folders = layout(tmp_path)
    folders = [folders] * 3 if isinstance(folders, str) else folders
    paths = [tmp_path / folder / name for folder, name in zip(folders, IDS, strict=True)]
    for path, level in zip(paths, (10, 20, 30), strict=True):
        draw(path, level)
    pairs = load_pairs(source)
    pairs = pairs.subset(sorted(range(3), key=lambda row: pairs.ids[row]))
    assert pairs.ids == IDS
    assert pairs.image_paths == paths
    assert pairs.captions == CAPTIONS
    assert pairs.splits == SPLITS
    assert pairs.quarantined == [] and pairs.attributes == [{}, {}, {}]
    for row, split in enumerate(SPLITS):
        assert load_pairs(source, split=split).ids == pairs.split(split).ids == [IDS[row]]
    assert load_pairs(source, split="val").ids == pairs.split("validation").ids == ["b.png"]


def test_pairs_of_image_and_text_in_subfolders(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "one dog", "", "一只狗")
    draw(tmp_path / "more" / "B.PNG")
    write(tmp_path / "more" / "B.txt", "two cats")
    draw(tmp_path / "alone.jpg")
    write(tmp_path / "notes.txt", "hello")
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["a.jpg", "more/B.PNG"]
    assert pairs.captions == [["one dog", "一只狗"], ["two cats"]]
    assert pairs.quarantined == [
        ("notes.txt", "no image of this name"),
        ("alone.jpg", "image without a caption"),
    ]


def test_ids_and_attributes_come_from_the_layout_where_it_has_them(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    write_jsonl(
        tmp_path,
        {"image": "a.png", "captions": ["x"], "id": 42, "attributes": {"colour": "红"}},
        {"image": "b.png", "captions": ["y"]},
    )
    pairs = load_pairs(tmp_path)
    assert pairs.ids == ["42", "b.png"]
    assert pairs.attributes == [{"colour": "红"}, {}]


def test_karpathy_file_paths(tmp_path):
    draw(tmp_path / "val2014" / "x.jpg")
    image = {"filepath": "val2014", "filename": "x.jpg", "split": "val"}
    image["sentences"] = [{"raw": "a dog"}]
    write(tmp_path / "dataset_coco.json", json.dumps({"images": [image]}))
    pairs = load_pairs(tmp_path)
    assert pairs.ids == ["val2014/x.jpg"]
    assert pairs.image_paths == [tmp_path / "val2014" / "x.jpg"]


def test_without_splits_the_id_decides_and_decides_the_same_for_ever(tmp_path):
    expected = {"1.jpg": "train", "2.jpg": "test", "3.jpg": "train", "12.jpg": "dev"}
    for name in expected:
        draw(tmp_path / name)
    write(tmp_path / "captions.csv", "image,caption", *(f"{name},x" for name in expected))
    pairs = load_pairs(tmp_path)
    assert dict(zip(pairs.ids, pairs.splits, strict=True)) == expected
    assert load_pairs(tmp_path, split="train").ids == ["1.jpg", "3.jpg"]
    counts = Counter(layouts.hash_split(f"{i}.jpg") for i in range(10_000))
    assert [counts[split] for split in SPLITS] == pytest.approx([8000, 1000, 1000], rel=0.1)


def test_an_image_in_no_list_is_in_no_split(tmp_path):
    flickr8k(tmp_path)
    for name in IDS:
        draw(tmp_path / "Images" / name)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    pairs = load_pairs(tmp_path)
    assert pairs.splits == ["train", "dev", ""]
    expected = r"no images of split 'test'; .* train \(1\), dev \(1\), no split \(1\)"
    with pytest.raises(ValueError, match=expected):
        load_pairs(tmp_path, split="test")
    with pytest.raises(ValueError, match=expected):
        pairs.split("test")


def test_bad_rows_of_a_table_are_put_aside_by_line(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(tmp_path / "Images" / name)
    write(
        tmp_path / "captions.txt",
        "\ufeffimage,caption",
        "a.jpg,one,two",
        "a.jpg",
        'a.jpg,"never closed',
        "a.jpg,   ",
        "a.jpg,caf\u00e9",
        'b.jpg,"two',
        'lines"',
        "../../secret.jpg,x",
        "/etc/secret.jpg,x",
        "c.jpg,",
    )
    with open(tmp_path / "captions.txt", "ab") as file:
        file.write(b"b.jpg,caf\xe9\nb.jpg,last\n")
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["a.jpg", "b.jpg"]
    assert pairs.captions == [["café"], ["two\nlines", "last"]]
    assert sorted(pairs.quarantined) == [
        ("../secret.jpg", "leads outside the collection (captions.txt line 9)"),
        ("/etc/secret.jpg", "leads outside the collection (captions.txt line 10)"),
        ("Images/c.jpg", "image without a caption"),
        ("captions.txt line 11", "empty caption"),
        ("captions.txt line 12", "not UTF-8: byte 0xe9 at 10"),
        ("captions.txt line 2", "expected 2 fields (image,caption), got 3"),
        ("captions.txt line 3", "expected 2 fields (image,caption), got 1"),
        ("captions.txt line 4", "not CSV: ',' expected after '\"'"),
        ("captions.txt line 5", "empty caption"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "a.png"', "not JSON: Expecting ',' delimiter, line 1 column 18"),
        ('["a.png", "x"]', 'expected a JSON object, got ["a.png", "x"]'),
        ("[" * 100_000, "JSON nested too deeply"),
        ('{"caption": "x"}', "`image` must be a string, got null"),
        ('{"image": 3, "caption": "x"}', "`image` must be a string, got 3"),
        ('{"image": "", "caption": "x"}', '`image` must be a string, got ""'),
        ('{"image": "a.png", "caption": null}', "`caption` must be a string, got null"),
        ('{"id": "a"}', "`caption` must be a string, got null"),
        ('{"captions": ["x"]}', "`image` must be a string, got null (text alone needs an `id`)"),
        (
            '{"image": "a.png", "images": ["b.png"], "caption": "x"}',
            "a row has `image` or `images`",
        ),
        ('{"images": "a.png", "caption": "x"}', '`images` must be a list, got "a.png"'),
        ('{"images": [], "caption": "x"}', "`images` must be a list of strings, at least one; got"),
        ('{"images": ["a.png", 3], "caption": "x"}', "`images` must be a list of strings"),
        ('{"images": ["a.png", ""], "caption": "x"}', "`images` must be a list of strings"),
        ('{"image": "a.png", "captions": "x"}', '`captions` must be a list, got "x"'),
        ('{"image": "a.png", "captions": [5]}', "a caption must be a string, got 5"),
        ('{"image": "a.png", "captions": [" "]}', "empty caption"),
        ('{"image": "a.png", "captions": ["\\ud800"]}', "not valid Unicode: half a character"),
        ('{"image": "a.png", "caption": "x", "split": 1}', "`split` must be a string, got 1"),
        ('{"image": "a.png", "caption": "x", "id": []}', "`id` must be a string or number"),
        ('{"image": "a.png", "caption": "x", "attributes": 1}', "`attributes` must be an object"),
        ('{"image": "a.png", "caption": "x", "attributes": {"a": "\\ud800"}}', "not valid Unicode"),
    ],
)
def test_bad_lines_of_jsonl_are_put_aside(line, reason, tmp_path):
    draw(tmp_path / "good.png")
    write(tmp_path / "captions.jsonl", '{"image": "good.png", "caption": "x"}', line)
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["good.png"]
    assert pairs.quarantined[0][0] == "captions.jsonl line 2"
    assert pairs.quarantined[0][1].startswith(reason)


def test_bad_items_of_the_json_layouts_are_put_aside(tmp_path):
    draw(tmp_path / "coco" / "val" / "a.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, 5]
    annotations = [{"image_id": i, "caption": c} for i, c in [(1, "x"), (2, "x"), (1, None)]]
    content = json.dumps({"images": images, "annotations": annotations})
    write(tmp_path / "coco" / "annotations" / "captions_val.json", content)
    pairs = load_quietly(tmp_path / "coco" / "annotations" / "captions_val.json")
    assert pairs.ids == ["a.jpg"] and pairs.captions == [["x"]]
    file = "annotations/captions_val.json"
    assert pairs.quarantined == [
        (f"{file} images[1]", "duplicate id 1, that of a.jpg"),
        (f"{file} images[2]", "expected a JSON object, got 5"),
        (f"{file} annotations[1]", "image_id 2 is not among the images"),
        (f"{file} annotations[2]", "a caption must be a string, got null"),
    ]

    draw(tmp_path / "karpathy" / "a.jpg")
    draw(tmp_path / "karpathy" / "alone.jpg")
    images = [{"filename": "a.jpg", "sentences": [{"raw": "x"}, {}]}, {"filename": "b.jpg"}]
    write(tmp_path / "karpathy" / "dataset_x.json", json.dumps({"images": images}))
    pairs = load_quietly(tmp_path / "karpathy")
    assert pairs.captions == [["x"]]
    assert pairs.quarantined == [
        ("dataset_x.json images[0]", "a caption must be a string, got null"),
        ("dataset_x.json images[1]", "`sentences` must be a list, got null"),
        ("alone.jpg", "image without a caption"),
    ]


def test_with_a_split_only_what_was_looked_at_is_reported(tmp_path):
    flickr8k(tmp_path)
    for name in IDS:
        draw(tmp_path / "Images" / name)
    with open(tmp_path / "captions.txt", "a", encoding="utf-8") as file:
        file.write("a.jpg,\nb.png,\nhello\n")
    write(tmp_path / "Flickr_8k.devImages.txt", "b.png", "listed.jpg", "a.jpg")
    (tmp_path / "Images" / "c.jpg").write_bytes(b"")
    train = [
        ("captions.txt line 7", "empty caption"),
        ("captions.txt line 9", "expected 2 fields (image,caption), got 1"),
        ("Flickr_8k.devImages.txt line 3", "split 'dev', but a.jpg is in 'train' already"),
    ]
    dev = [
        ("captions.txt line 8", "empty caption"),
        ("captions.txt line 9", "expected 2 fields (image,caption), got 1"),
        ("Images/listed.jpg", "the image does not exist (Flickr_8k.devImages.txt line 2)"),
    ]
    assert load_quietly(tmp_path, split="train").quarantined == train
    assert load_quietly(tmp_path, split="dev").quarantined == dev
    assert {*load_quietly(tmp_path).quarantined} == {*train, *dev, ("Images/c.jpg", "empty file")}
    with pytest.raises(ValueError, match="nothing usable .* Images/c.jpg: empty file"):
        load_pairs(tmp_path, split="test")


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "", "none of the layouts known: captions.jsonl, .*; it holds nothing"),
        ({"a.jpg": "", "x.md": ""}, "", "none of the layouts known: .*; it holds a.jpg, x.md"),
        ({"x.md": ""}, "x.md", "x.md is none of the layouts known"),
        ({}, "nowhere", "there is no folder or captions file .*nowhere"),
        ({"captions.csv": "file,text\n"}, "", "image and caption; got 'file,text'"),
        ({"captions.txt": ""}, "", "must begin with a header .* got ''"),
        ({"captions.jsonl": ""}, "", "nothing usable in .* captions.jsonl names 0 images; 0 ent"),
        ({"captions.csv": "image,caption\na.jpg,x\n"}, "", "nothing usable .*a.jpg: the image doe"),
        ({"dataset_a.json": "{"}, "", "dataset_a.json: not JSON: .* line 1 column 2"),
        ({"dataset_a.json": "[]"}, "", r"dataset_a.json: expected a JSON object, got \[\]"),
        ({"captions_a.json": "{}"}, "", "captions_a.json: `images` must be a list, got null"),
        ({"dataset_a.json": "", "dataset_b.json": ""}, "", "several dataset_.*: give the path of"),
    ],
)
def test_a_collection_that_cannot_be_used_is_a_value_error_of_one_line(
    files, source, message, tmp_path
):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_pairs(tmp_path / source)
    assert "\n" not in str(caught.value)

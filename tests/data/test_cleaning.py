"""Files that are missing, damaged, doubled, too large or outside are set aside with a reason."""

import pytest
from conftest import draw, load_quietly, write, write_jsonl

from mmret_tf.data import cleaning, load_items, load_pairs
from mmret_tf.data.readers import reading


def test_every_kind_of_bad_file_is_set_aside_and_counted(tmp_path):
    write_jsonl(
        tmp_path,
        *({"image": f"{name}", "captions": ["a dog", "狗"]} for name in ("a.jpg", "b.png")),
        *({"image": name, "caption": "x"} for name in ("cut.jpg", "empty.png", "text.jpg")),
        {"image": "gone.jpg", "caption": "x"},
    )
    for name in ("a.jpg", "b.png", "cut.jpg", "alone.gif"):
        draw(tmp_path / name)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is not a picture")
    expected = "5 of 7 entries were set aside .see .quarantined.: gone.jpg: .*; ...$"
    with pytest.warns(UserWarning, match=expected) as caught:
        pairs = load_pairs(tmp_path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert pairs.ids == ["a.jpg", "b.png"]
    assert pairs.quarantined == [
        ("gone.jpg", "the file does not exist (captions.jsonl line 6)"),
        ("alone.gif", "image without a caption"),
        ("cut.jpg", "not a whole image: truncated or damaged"),
        ("empty.png", "empty file"),
        ("text.jpg", "not an image: expected JPEG, PNG, GIF, BMP or WebP"),
    ]


def test_an_item_keeps_its_other_files(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    write_jsonl(
        tmp_path,
        {"id": "some", "images": ["empty.png", "a.png", "gone.png"], "caption": "x"},
        {"id": "none", "images": ["gone.png", "lost.png"], "caption": "x"},
    )
    items = load_quietly(tmp_path, loader=load_items)
    assert items.ids == ["some"]
    assert [path.name for path in items.image_paths[0]] == ["a.png"]
    assert dict(items.quarantined) == {
        "gone.png": "the file does not exist (captions.jsonl line 2)",
        "lost.png": "the file does not exist (captions.jsonl line 2)",
        "empty.png": "empty file",
    }


def test_an_image_has_one_id_one_record_and_one_split(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name)
    write_jsonl(
        tmp_path,
        {"image": "a.png", "captions": ["x"], "id": "one", "split": "train"},
        {"image": "b.png", "captions": ["x"], "id": "one", "split": "train"},
        {"image": "a.png", "captions": ["x"], "id": "two", "split": "train"},
        {"image": "c.png", "caption": "x", "split": "train"},
        {"image": "c.png", "caption": "y", "split": "test"},
    )
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["one", "c.png"] and pairs.captions == [["x"], ["x"]]
    assert pairs.quarantined == [
        ("captions.jsonl line 5", "split 'test', but c.png is in 'train' already"),
        ("b.png", "duplicate id or file: 'one' (captions.jsonl line 2)"),
        ("a.png", "duplicate id or file: 'two' (captions.jsonl line 3)"),
    ]


def test_rows_of_one_caption_are_joined_and_files_count_once(tmp_path):
    root = tmp_path / "collection"
    for name in "abcd":
        draw(root / f"{name}.png", ord(name))
    draw(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    write_jsonl(
        root,
        {"id": "text", "caption": "one"},
        {"id": "text", "caption": "two"},
        {"id": "text", "captions": ["three"]},
        {"id": "x", "images": ["a.png", "./a.png", "b.png", "link.png"], "caption": "x"},
        {"id": "x#1", "image": "c.png", "caption": "its name is that of an image of x"},
        {"id": "y", "images": ["b.png", "d.png"], "captions": []},
        {"id": "nothing", "captions": [" "]},
    )
    items = load_quietly(root, loader=load_items)
    assert items.ids == ["text", "x", "y"]
    assert items.captions == [["one", "two"], ["x"], []]
    assert [[path.name for path in paths] for paths in items.image_paths] == [
        [], ["a.png", "b.png"], ["d.png"]
    ]  # fmt: skip
    assert items.quarantined == [
        ("captions.jsonl line 7", "empty caption"),
        ("captions.jsonl line 3", "duplicate id or file: 'text' (captions.jsonl line 3)"),
        ("a.png", "duplicate id or file: 'x' (captions.jsonl line 4)"),
        ("link.png", "leads outside the collection (captions.jsonl line 4)"),
        ("c.png", "duplicate id or file: 'x#1' (captions.jsonl line 5)"),
        ("b.png", "duplicate id or file: 'y' (captions.jsonl line 6)"),
        ("captions.jsonl line 7", "neither a file nor a caption"),
    ]


def test_links_that_lead_outside_are_not_followed(tmp_path):
    root = tmp_path / "collection"
    draw(root / "a.png")
    draw(tmp_path / "outside" / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "inner.png").symlink_to(root / "b.png")
    draw(root / "b.png")
    names = ["a.png", "inner.png", "link.png", "folder/secret.png", "nul\0.png"]
    write_jsonl(root, *({"image": name, "caption": "x"} for name in names))
    pairs = load_quietly(root)
    assert pairs.ids == ["a.png", "inner.png"]
    aside = dict(pairs.quarantined)
    assert set(aside) == {"link.png", "folder/secret.png", "nul\0.png", "b.png"}
    assert aside["link.png"] == "leads outside the collection (captions.jsonl line 3)"
    assert aside["b.png"] == "image without a caption"

    (tmp_path / "captions.csv").write_text("image,caption\na.png,x\n")
    (root / "captions.jsonl").unlink()
    (root / "captions.csv").symlink_to(tmp_path / "captions.csv")
    with pytest.raises(ValueError, match="captions.csv is a link that leads outside"):
        load_pairs(root)


def test_ids_that_are_not_unicode_are_set_aside(tmp_path):
    write_jsonl(tmp_path, {"id": "a", "caption": "x"})
    write(
        tmp_path / "captions.jsonl",
        '{"id": "a", "caption": "x"}',
        '{"id": "\\ud800", "caption": "x"}',
    )
    items = load_quietly(tmp_path, loader=load_items)
    assert items.ids == ["a"]
    assert items.quarantined == [
        ("captions.jsonl line 2", "not valid Unicode: half a character (a lone surrogate)")
    ]


def test_large_files_and_folders_named_like_files_are_not_read(tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    draw(tmp_path / "large.png")
    with open(tmp_path / "large.png", "ab") as file:
        file.truncate(2**20)
    monkeypatch.setattr(cleaning, "MAX_FILE_BYTES", 2**19)
    write(tmp_path / "captions.csv", "image,caption", "a.png,x", "b.png,x", "large.png,x")
    assert load_quietly(tmp_path).quarantined == [
        ("b.png", "the file does not exist (captions.csv line 3)"),
        ("large.png", "too large: more than 524288 bytes"),
    ]
    monkeypatch.setattr(reading, "MAX_CAPTIONS_BYTES", 10)
    with pytest.raises(ValueError, match="captions.csv is not a file of at most 10 bytes"):
        load_pairs(tmp_path)


def test_a_long_scan_shows_its_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cleaning, "PROGRESS_FROM", 2)
    names = ["a.png", "b.png", "c.png"]
    for number, name in enumerate(names, 1):
        draw(tmp_path / name)
        write(tmp_path / "captions.csv", "image,caption", *(f"{name},x" for name in names[:number]))
        load_pairs(tmp_path)
        assert ("3/3 files" in capsys.readouterr().out) == (number == 3)


def test_with_a_split_only_what_was_looked_at_is_reported(tmp_path):
    for name in ("a.jpg", "b.png", "c.jpg"):
        draw(tmp_path / "Images" / name)
    write(
        tmp_path / "captions.txt",
        *("image,caption", "a.jpg,x", "b.png,x", "c.jpg,x"),
        *("a.jpg,", "b.png,", "hello"),
    )
    write(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg")
    write(tmp_path / "Flickr_8k.devImages.txt", "b.png", "listed.jpg", "a.jpg")
    write(tmp_path / "Flickr_8k.testImages.txt", "c.jpg")
    (tmp_path / "Images" / "c.jpg").write_bytes(b"")
    train = [
        ("captions.txt line 5", "empty caption"),
        ("captions.txt line 7", "expected 2 fields (image,caption), got 1"),
        ("Flickr_8k.devImages.txt line 3", "split 'dev', but a.jpg is in 'train' already"),
    ]
    dev = [
        ("captions.txt line 6", "empty caption"),
        ("captions.txt line 7", "expected 2 fields (image,caption), got 1"),
        ("Images/listed.jpg", "the file does not exist (Flickr_8k.devImages.txt line 2)"),
    ]
    assert load_quietly(tmp_path, split="train").quarantined == train
    assert load_quietly(tmp_path, split="dev").quarantined == dev
    assert {*load_quietly(tmp_path).quarantined} == {*train, *dev, ("Images/c.jpg", "empty file")}
    with pytest.raises(ValueError, match="nothing usable .* Images/c.jpg: empty file"):
        load_pairs(tmp_path, split="test")


def test_where_a_hash_splits_problems_belong_to_the_split_of_their_id(tmp_path):
    write_jsonl(
        tmp_path,
        {"image": "1.jpg", "caption": "x"},  # train
        {"image": "12.jpg", "caption": "x"},  # dev
        {"id": "3.jpg", "caption": "x"},  # train
    )
    draw(tmp_path / "2.jpg")  # would be in test
    gone = "the file does not exist (captions.jsonl line 1)"
    assert load_quietly(tmp_path, "train", loader=load_items).quarantined == [("1.jpg", gone)]
    aside = dict(load_quietly(tmp_path, loader=load_items).quarantined)
    assert set(aside) == {"1.jpg", "12.jpg", "2.jpg"}

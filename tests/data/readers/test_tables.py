"""Layouts of tables: captions.csv and Flickr8k's files, and rows that are set aside by line."""

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load, load_pairs

IDS = ["a.jpg", "b.png", "c.jpg"]


def write_flickr8k(folder):
    write(
        folder / "captions.txt",
        "image,caption",
        'a.jpg,"a ""red"", round ball"',
        "a.jpg,红色的球",
        "b.png,a dog",
        "c.jpg,两只猫 ",
        "c.jpg,two cats",
        newline="\r\n",
    )
    for split, name in zip(("train", "dev", "test"), IDS, strict=True):
        write(folder / f"Flickr_8k.{split}Images.txt", name)


def test_flickr8k(check_layout, tmp_path):
    write_flickr8k(tmp_path)
    check_layout(tmp_path, tmp_path / "Images")


def test_flickr8k_with_its_older_captions_file(check_layout, tmp_path):
    write_flickr8k(tmp_path)
    (tmp_path / "captions.txt").unlink()
    write(
        tmp_path / "Flickr8k.token.txt",
        'a.jpg#0\ta "red", round ball',
        "a.jpg#1\t红色的球",
        "b.png#0\ta dog",
        "c.jpg#0\t两只猫",
        "c.jpg#1\ttwo cats",
    )
    check_layout(tmp_path, tmp_path / "Flicker8k_Dataset")


def test_csv(check_layout, tmp_path):
    file = write(
        tmp_path / "mine.csv",
        "split,caption,image,source",
        'train,"a ""red"", round ball",a.jpg,web',
        "train,红色的球,a.jpg,web",
        "val,a dog,b.png,web",
        "",
        "test,两只猫,c.jpg,web",
        ",two cats,c.jpg,web",
    )
    check_layout(file, tmp_path)


def test_an_image_in_no_list_is_in_no_split(tmp_path):
    write_flickr8k(tmp_path)
    for name in IDS:
        draw(tmp_path / "Images" / name)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    pairs = load_pairs(tmp_path)
    assert pairs.splits == ["train", "dev", ""]
    counts = r"train \(1\), dev \(1\), no split \(1\)"
    with pytest.raises(ValueError, match=f"has no items of split 'test'; it has {counts}"):
        load_pairs(tmp_path, split="test")
    with pytest.raises(ValueError, match=f"no items of split 'test'; there are {counts}"):
        pairs.split("test")


def test_bad_rows_of_a_table_are_set_aside_by_line(tmp_path):
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
    aside = dict(pairs.quarantined)
    assert aside.pop("c.jpg") == "image without text"
    assert aside == {
        "../secret.jpg": "leads outside the collection (captions.txt line 9)",
        "/etc/secret.jpg": "leads outside the collection (captions.txt line 10)",
        "captions.txt line 11": "empty caption",
        "captions.txt line 12": "not UTF-8: byte 0xe9 at 10",
        "captions.txt line 2": "expected 2 fields (image,caption), got 3",
        "captions.txt line 3": "expected 2 fields (image,caption), got 1",
        "captions.txt line 4": "not CSV: ',' expected after '\"'",
        "captions.txt line 5": "empty caption",
    }


def test_bad_lines_of_the_older_flickr8k_file_are_set_aside(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tx", "", "a.jpg\ty", "a.jpg#1 z")
    pairs = load_quietly(tmp_path)
    assert pairs.captions == [["x"]]
    reason = "expected name.jpg#number, a tab and the caption"
    assert pairs.quarantined == [
        ("Flickr8k.token.txt line 3", reason),
        ("Flickr8k.token.txt line 4", reason),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "name,words\n", "got 'name,words': name them with image_column and"),
        ("mine.tsv", "image\twords\n", "got 'image,words': name them with image_column and"),
        ("captions.txt", "", "captions.txt must begin with a header .* got ''"),
        ("captions.csv", 'image,"caption', "captions.csv must begin with a header: unexpected end"),
    ],
)
def test_a_table_needs_its_header(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / name)


def test_several_columns_of_captions(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, 9)
    rows = ("image,caption,Caption,caption", "a.png,first,second,third", "b.png,only,,")
    write(tmp_path / "captions.csv", *rows)
    pairs = load_quietly(tmp_path)
    assert pairs.captions == [["first", "second", "third"], ["only"]] and not pairs.quarantined
    write(tmp_path / "captions.csv", "image,image,caption", "a.png,b.png,which")
    with pytest.raises(ValueError, match="more than one column image"):
        load_quietly(tmp_path)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("image", "caption"),
        ("filepath", "title"),
        ("File_Name", "Text"),
        ("image_name", " comment"),
    ],
)
def test_usual_columns_and_separators_are_found(separator, image, caption, tmp_path):
    draw(tmp_path / "a.png", 9)
    rows = [[" number", image, caption], ["0", "a.png", "a dog"], ["1", "a.png", "一只狗"]]
    write(tmp_path / "captions.csv", *map(separator.join, rows))
    pairs = load_quietly(tmp_path)
    assert pairs.captions == [["a dog", "一只狗"]] and not pairs.quarantined


@pytest.mark.parametrize("separator", ["", "semicolon", ";"])
def test_columns_may_be_named(separator, tmp_path):
    draw(tmp_path / "a.png", 9)
    write(tmp_path / "captions.csv", "图;image;说明", "a.png;b.png;a dog, a ball")
    form = {"image_column": "图", "caption_column": "说明", "separator": separator}
    assert load_quietly(tmp_path, **form).captions == [["a dog, a ball"]]
    with pytest.raises(ValueError, match="one of captions .* got '图,image,说明'"):
        load_quietly(tmp_path, image_column="图", caption_column="words", separator=";")
    with pytest.raises(ValueError, match="separator must be one of .* got '/'"):
        load_quietly(tmp_path, separator="/")


def test_results_of_flickr30k_with_the_row_that_lacks_a_separator(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "flickr30k_images" / name, 9)
    rows = ['a.jpg| 0| A "dog , runs .', "a.jpg| 1   A dog runs .", "b.jpg| 0| x| y", "b.jpg| 0| z"]
    write(tmp_path / "results.csv", "image_name| comment_number| comment", *rows)
    pairs = load_quietly(tmp_path)
    assert pairs.captions == [['A "dog , runs .', "A dog runs ."], ["z"]]
    (aside,) = pairs.quarantined
    assert aside == (
        "results.csv line 4",
        "expected 3 fields (image_name,comment_number,comment), got 4",
    )


def test_a_table_for_each_split(tmp_path):
    for split, name in (("train", "a.png"), ("val", "b.png"), ("test", "c.png")):
        draw(tmp_path / name, 9)
        write(tmp_path / f"{split}.csv", "image,caption", f"{name},x")
    assert load_quietly(tmp_path).splits == ["test", "train", "dev"]


def test_the_captions_file_of_flickr30k(tmp_path):
    draw(tmp_path / "flickr30k-images" / "a.jpg")
    write(tmp_path / "results_20130124.token", "a.jpg#0\ta dog", "a.jpg#1\tone dog")
    assert load_quietly(tmp_path).captions == [["a dog", "one dog"]]


def test_a_table_of_something_else_does_not_hide_the_layout(tmp_path):
    draw(tmp_path / "a.png")
    write(tmp_path / "prices.csv", "name,price", "a,3")
    write(tmp_path / "names.csv", "name", "a")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a.png"] and items.captions == [[]]
    reason = "its columns are not known: name them with image_column and caption_column"
    assert items.quarantined == [("names.csv", reason), ("prices.csv", reason)]
    write(tmp_path / "a.txt", "a dog")
    assert load_quietly(tmp_path).captions == [["a dog"]]
    write(tmp_path / "words.csv", "price,words", "a.png,a cat")
    form = {"image_column": "price", "caption_column": "words"}
    assert load_quietly(tmp_path, **form).captions == [["a cat"]]

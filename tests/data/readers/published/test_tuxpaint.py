"""Stamps of Tux Paint, and folders of pictures and texts that are none."""

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load
from mmret_tf.data.readers.reader import read_layout

DUCK = ("A duck.", "de.utf8=Eine Ente.", "tlh.utf8=???", "zh_CN.utf8=鸭子。", "zh_TW.utf8=鴨子。")


def write_stamp(folder, name, *lines, level=100, newline="\n"):
    """A stamp's picture and text."""
    write(folder / f"{name}.txt", *lines, newline=newline)
    return draw(folder / f"{name}.png", level)


@pytest.fixture
def stamps(beep, tmp_path):
    """A folder of stamps of every kind."""
    write_stamp(tmp_path, "animals/birds/duck", *DUCK)
    beep(tmp_path / "animals/birds/duck.wav")
    write(tmp_path / "animals/birds/duck_desc_fr.ogg", "spoken, is not read")
    write(tmp_path / "animals/birds/duck.dat", "scale 20%")
    write_stamp(tmp_path, "animals/cat", "A cat.", "zh_cn.utf8=猫。", level=50, newline="\r\n")
    write(tmp_path / "animals/cat.svg", "<svg/>")
    draw(tmp_path / "animals/cat_mirror.png", 51)
    write_stamp(tmp_path, "sum", "A sum. 6x7=42", "en_GB.utf8=A sum. 6x7=42", level=150)
    for name in ("bell", "lamp"):
        write(tmp_path / f"{name}.svg", "<svg/>")
        write(tmp_path / f"{name}.txt", f"A {name}.", "fr.utf8=x")
    beep(tmp_path / "bell.wav", 600)
    write(tmp_path / "gift2.txt", "A gift.", "fr.utf8=Un cadeau.")
    return tmp_path


def test_stamps(stamps):
    items = load_quietly(stamps, loader=load)
    assert items.layout == "TuxPaint"
    assert items.ids == ["bell", "sum", "animals/cat", "animals/birds/duck"]
    assert items.captions == [
        ["A bell."],
        ["A sum. 6x7=42"],
        ["A cat.", "猫。"],
        ["A duck.", "鸭子。"],
    ]
    assert items.attributes == [{}, {}, {"folder": "animals"}, {"folder": "animals/birds"}]
    names = {
        key: [[source.path.name for source in each] for each in items.sources[key]]
        for key in ("image", "audio")
    }
    assert names == {
        "image": [[], ["sum.png"], ["cat.png"], ["duck.png"]],
        "audio": [["bell.wav"], [], [], ["duck.wav"]],
    }
    assert dict(items.quarantined) == {
        "bell.svg": "SVG cannot be read",
        "lamp.svg": "SVG cannot be read",
        "gift2.txt": "no picture or sound of this name",
        "animals/cat_mirror.png": "image without a caption",
    }


def test_a_folder_of_stamps_is_read_as_well(stamps):
    items = load(stamps / "animals" / "birds")
    assert items.ids == ["duck"] and items.captions == [["A duck.", "鸭子。"]]
    assert read_layout(stamps).is_hashed


def test_ogg_comes_before_wav(beep, tmp_path):
    write_stamp(tmp_path, "duck", *DUCK)
    for suffix in (".wav", ".ogg"):
        beep(tmp_path / f"duck{suffix}")
    [[sound]] = load(tmp_path).sources["audio"]
    assert sound.path.name == "duck.ogg"


def test_stamps_without_a_caption_that_is_read(tmp_path):
    write_stamp(tmp_path, "a", "", "zh_CN.utf8=鸭子。")
    write_stamp(tmp_path, "b", "", "fr.utf8=Un canard.", level=120)
    write_stamp(tmp_path, "c", *DUCK, level=130)
    with open(tmp_path / "c.txt", "ab") as file:
        file.write("vi.utf8=Vịt".encode("utf-16"))
    items = load_quietly(tmp_path, loader=load)
    assert items.captions == [["鸭子。"], [], ["A duck.", "鸭子。"]]
    assert dict(items.quarantined) == {
        "b.txt": "no caption in English or Chinese",
        "c.txt line 6": "not UTF-8: byte 0xff at 1",
    }


def test_other_texts_beside_pictures_are_not_stamps(tmp_path):
    write_stamp(tmp_path, "a", "a dog", "x=1")
    write_stamp(tmp_path, "b", "a cat", "de.utf8=ist ein Kommentar", level=50)
    assert read_layout(tmp_path).layout == "TextBeside"
    write(tmp_path / "a.txt", "a dog", "fr.utf8=un chien")
    assert read_layout(tmp_path).layout == "TuxPaint"
    write(tmp_path / "captions.csv", "image,caption", "a.png,x")
    assert read_layout(tmp_path).layout == "Csv: captions.csv"

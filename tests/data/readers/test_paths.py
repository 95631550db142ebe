"""Files of a collection: links, other spellings of names, and folders of images."""

import json
import os
import unicodedata

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data.readers.paths import files_below, find_file, find_named, first_bytes, is_inside
from mmret_tf.data.readers.reading import Reading


def test_paths_inside_a_folder(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    folder = tmp_path / "folder"
    (folder / "out").symlink_to(tmp_path)
    (folder / "in").symlink_to(folder / "sub")
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    reading = Reading(folder, "")
    for path in ("a.png", "sub/a.png", "sub/../a.png", "in/a.png", "."):
        assert is_inside(folder, path), path
        assert reading.real_path(path) == os.path.realpath(folder / path)
    outside = ("../a.png", "out/a.png", "sub/../../a.png", str(folder / "a.png"), "a\0.png")
    for path in (*outside, "link.png", "..", "a\0/a.png"):
        assert not is_inside(folder, path), path
        assert reading.real_path(path) is None, path


def test_a_file_is_found_in_the_first_place_that_has_it(tmp_path):
    write(tmp_path / "b" / "x.jpg")
    write(tmp_path / "c" / "x.jpg")
    assert find_file(tmp_path, "x.jpg", (".", "b", "c")) == "b/x.jpg"
    assert find_file(tmp_path, "y.jpg", (".", "b", "c")) == "y.jpg"


def test_files_below_a_folder_without_the_hidden_ones(tmp_path):
    for name in (
        *("b.jpg", "a.PNG", "a.txt", ".hidden.jpg", "sub/c.jpg"),
        *(".git/d.jpg", "__MACOSX/e.jpg"),
    ):
        write(tmp_path / name)
    assert list(files_below(tmp_path, (".jpg", ".png"))) == ["a.PNG", "b.jpg", "sub/c.jpg"]


SPELLINGS = {
    "as it is": lambda file: file.name,
    "in a folder of images": lambda file: file.name,
    "absolute": str,
    "of Windows": lambda file: f"photos\\{file.name}",
    "accents apart": lambda file: unicodedata.normalize("NFD", file.name),
    "accents composed": lambda file: unicodedata.normalize("NFC", file.name),
}
FOLDERS = {"in a folder of images": "Images", "of Windows": "photos"}


# A row of JSON lines has the path below the collection.
KINDS = [("captions.csv", spelling) for spelling in SPELLINGS]
KINDS += [("captions.jsonl", each) for each in SPELLINGS if each != "in a folder of images"]


@pytest.mark.parametrize(("layout", "spelling"), KINDS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_found_however_a_row_spells_its_name(layout, spelling, form, tmp_path):
    folder = tmp_path / FOLDERS.get(spelling, "")
    file = draw(folder / unicodedata.normalize(form, "café.png"), 9)
    name = SPELLINGS[spelling](file)
    if layout == "captions.jsonl":
        write(tmp_path / layout, json.dumps({"image": name, "caption": "a cup"}))
    else:
        write(tmp_path / layout, "image,caption", f'"{name}",a cup')
    pairs = load_quietly(tmp_path)
    assert pairs.image_paths == [file] and pairs.quarantined == []


@pytest.mark.parametrize("name", ["x" * 304 + ".png", "../outside.png", "/etc/passwd"])
def test_one_bad_name_costs_its_row_alone(name, tmp_path):
    draw(tmp_path / "a.png", 9)
    write(tmp_path / "captions.csv", "image,caption", "a.png,a dog", f"{name},a cat")
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["a.png"] and len(pairs.quarantined) == 1


def test_the_first_name_that_exists_is_found(tmp_path):
    def found(*names):
        return find_named(tmp_path, names, (".wav", ".flac"), ("audio", "."))

    assert found("a", "b") == "audio/a.wav"
    write(tmp_path / "b.flac", "x")
    assert found("a", "b") == "b.flac"
    write(tmp_path / "audio" / "a.flac", "x")
    assert found("a", "b") == "audio/a.flac"


def test_the_first_bytes_of_a_file(tmp_path):
    assert first_bytes(write(tmp_path / "a.txt", "abc"), 2) == b"ab"
    os.mkfifo(tmp_path / "pipe")
    assert first_bytes(tmp_path / "pipe", 2) == first_bytes(tmp_path, 2) == b""
    assert first_bytes(tmp_path / "gone", 2) == b""

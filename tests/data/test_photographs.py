"""The photographs in `data/photographs`: complete, captioned in two languages, free to share."""

import re
from pathlib import Path

import pytest
from PIL import Image

import mmret_tf as mm

FOLDER = Path(__file__).parents[2] / "data" / "photographs"

LICENCES = {
    "CC0-1.0": "publicdomain/zero/1.0",
    "CC-PDM-1.0": "publicdomain/mark/1.0",
    "CC-BY-2.0": "licenses/by/2.0",
    "CC-BY-3.0": "licenses/by/3.0",
    "CC-BY-4.0": "licenses/by/4.0",
    "CC-BY-SA-3.0": "licenses/by-sa/3.0",
    "CC-BY-SA-4.0": "licenses/by-sa/4.0",
}

# | [file](file) | author | [licence](address) | package | ...
ROW = re.compile(
    r"\| \[(.+)\]\(\1\) \| (.+?) \| \[(.+?)\]\(https://creativecommons.org/(.+?)/\) \| (.+?) \|"
)


@pytest.fixture(scope="module")
def photographs():
    return mm.load(FOLDER)


def test_nothing_is_set_aside(photographs):
    assert photographs.quarantined == []
    assert 36 <= len(photographs) <= 60
    assert set(photographs.splits) == {"test"}


def test_every_file_has_a_line_and_every_line_a_file(photographs):
    names = [f"{name}.jpg" for name in photographs.ids]
    assert sorted(names) == sorted(file.name for file in FOLDER.glob("*.jpg"))
    assert {file.suffix for file in FOLDER.iterdir()} == {".jpg", ".jsonl", ".md"}


def test_each_has_two_captions_in_english_and_two_in_chinese(photographs):
    for captions in photographs.captions:
        assert [bool(re.search("[\u4e00-\u9fff]", caption)) for caption in captions] == [
            *(False, False, True, True)
        ]
    every = [caption for captions in photographs.captions for caption in captions]
    assert len(set(every)) == len(every)


def test_the_readme_names_each_author_and_licence(photographs):
    rows = ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(rows) == len(photographs)
    named = {file: (author, licence, package) for file, author, licence, _, package in rows}
    for name, attributes in zip(photographs.ids, photographs.attributes, strict=True):
        expected = (attributes["author"], attributes["licence"], attributes["source"])
        assert named[f"{name}.jpg"] == expected
    assert all(LICENCES[licence] == address for _, _, licence, address, _ in rows)


def test_the_files_are_small_and_hold_no_metadata():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000
    for file in FOLDER.glob("*.jpg"):
        with Image.open(file) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert max(image.size) <= 320
            assert not image.info.keys() & {"exif", "xmp", "icc_profile", "photoshop", "comment"}
